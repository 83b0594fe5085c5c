"""The questions that every way to run the kernels has to answer alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.op_cases import REFUSED, cases

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.custom_ops.cpu.process import Runs
    from tests.op_cases import Case


def check_contract(runs: Runs, op_type: str) -> None:
    """Every case of the op keeps the op's contract with every instruction set."""
    for case in cases(op_type):
        check_case(runs, case)


def check_case(runs: Runs, case: Case) -> None:
    """The case keeps the op's contract with every instruction set."""
    expected = case.op.reference(case.inputs)
    kept: list[NDArray[Any]] = []
    for isa in runs.isas:
        result = runs.run(case.op.NAME, case.op.attributes(), case.inputs, isa=isa)
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape), f"{case} {isa}"
        if not any(result.tobytes() == other.tobytes() for other in kept):
            assert case.op.agrees(result, case.inputs).all(), f"{case} {isa}"
            kept.append(result)


def check_refusals(runs: Runs, op_type: str) -> None:
    """Every set of attributes that the op's definition refuses is refused for what it is, with inputs that fit others."""
    inputs = next(cases(op_type)).inputs
    for attributes in REFUSED[op_type]:
        with pytest.raises(ValueError, match=rf"actx::{op_type}: .*(attribute|spline|entry)"):
            runs.run(op_type, attributes, inputs)
