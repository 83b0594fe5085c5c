"""The questions that every way to run the kernels has to answer alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.op_cases import REFUSED, cases

if TYPE_CHECKING:
    from tests.custom_ops.cpu.process import Runs


def check_contract(runs: Runs, op_type: str, isa: str) -> None:
    """Every case of the op keeps the op's contract."""
    for case in cases(op_type):
        result = runs.run(op_type, case.op.attributes(), case.inputs, isa=isa)
        expected = case.op.reference(case.inputs)
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape), str(case)
        assert case.op.agrees(result, case.inputs).all(), str(case)


def check_refusals(runs: Runs, op_type: str) -> None:
    """Every attribute that the op's definition refuses is refused, and says of which op it is."""
    for attributes in REFUSED[op_type]:
        with pytest.raises(ValueError, match=f"actx::{op_type}"):
            runs.run(op_type, attributes, [np.zeros((2, 4), np.float32)])
