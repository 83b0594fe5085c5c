"""The ops in a build that ends the process at a wrong address or undefined behaviour."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actx.custom_ops.ops import OPS
from tests.custom_ops.cpu.agreement import check_case, check_contract, check_refusals
from tests.op_strategies import any_case

if TYPE_CHECKING:
    from actx.custom_ops.cpu import Library
    from tests.custom_ops.cpu.process import Process


def test_has_the_instruction_sets_of_this_machine(sanitized: Process, library: Library) -> None:
    assert sanitized.isas == library.isas


@pytest.mark.parametrize("op_type", OPS)
def test_every_instruction_set_keeps_the_contract(sanitized: Process, op_type: str) -> None:
    check_contract(sanitized, op_type)


@pytest.mark.parametrize("op_type", OPS)
def test_refuses_what_the_op_refuses(sanitized: Process, op_type: str) -> None:
    check_refusals(sanitized, op_type)


@pytest.mark.parametrize("op_type", OPS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_type_and_table(sanitized: Process, op_type: str, data: st.DataObject) -> None:
    check_case(sanitized, data.draw(any_case(op_type)))


def test_refuses_inputs_that_do_not_fit(sanitized: Process) -> None:
    table = {"degree": 1, "knots": [0.0], "coefficients": [0.0, 0.0, 0.0, 1.0], "origins": [0.0, 0.0]}
    x = np.zeros((2, 3), np.float32)
    for inputs in ([x, x[:1]], [x, x.astype(np.float16)], [x.astype(np.uint8)], [], [None], [x, None, None]):
        with pytest.raises(ValueError, match="actx::Spline"):
            sanitized.run("Spline", table, inputs)
    with pytest.raises(ValueError, match="two halves"):
        sanitized.run("GatedSpline", table, [x])
