"""The kernels of 64-bit Arm, cross-built and run by an emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from actx.custom_ops.ops import OPS
from tests.custom_ops.cpu.agreement import check_contract, check_refusals
from tests.op_cases import cases

if TYPE_CHECKING:
    from actx.custom_ops import cpu
    from tests.custom_ops.cpu.process import Process

# Exact by definition: the same bits everywhere.
EXACT = ("Lut", "GatedLut", "QAttention", "QLinear", "QLinearToFloat")


def test_offers_neon_and_the_portable_kernels(neon: Process) -> None:
    assert neon.isas == ("neon", "portable")
    assert neon.kernels("avx2") == ()


@pytest.mark.parametrize("op_type", OPS)
def test_every_instruction_set_keeps_the_contract(neon: Process, op_type: str) -> None:
    check_contract(neon, op_type)


@pytest.mark.parametrize("op_type", OPS)
def test_refuses_what_the_op_refuses(neon: Process, op_type: str) -> None:
    check_refusals(neon, op_type)


@pytest.mark.parametrize("op_type", EXACT)
def test_tables_give_the_same_codes_as_here(neon: Process, library: cpu.Library, op_type: str) -> None:
    for case in cases(op_type):
        is_open = np.isinf(case.op.tolerance(case.inputs))
        results = [
            np.where(is_open, 0, runs.run(op_type, case.op.attributes(), case.inputs)) for runs in (neon, library)
        ]
        np.testing.assert_array_equal(*results, err_msg=str(case))
