"""Every GPU kernel against the float64 reference, in Triton's interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from actx.custom_ops import ACTIVATIONS, Spline
from actx.custom_ops.gpu.launch import EXACT, LONGEST_ROW, MAX_ERROR
from actx.custom_ops.gpu.tables import pack, place
from actx.custom_ops.ops import OPS
from actx.custom_ops.ops.op import FLOATS
from actx.custom_ops.ops.rounding import product_error, rounded
from tests.custom_ops.cpu.agreement import check_case
from tests.custom_ops.gpu.interpreter import run_exact, run_gate_up, run_spline
from tests.op_cases import GPU_OPS, Case, around_knots, cases, gelu_table, numbers, random_table, special_numbers
from tests.op_strategies import any_case

if TYPE_CHECKING:
    from typing import Any

    from actx.custom_ops.gpu.tables import Search
    from tests.custom_ops.gpu.interpreter import Interpreter

# The cases of an op that are run, one in so many; a number that shares no factor with their order.
EVERY = {"Spline": 11, "GatedSpline": 17, "SplineMix": 5, "PolyNorm": 3, "Lut": 1, "GatedLut": 3}
HALVES = FLOATS[1:]
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
PATTERNS = np.arange(2**16, dtype=np.uint16)


@pytest.mark.parametrize("op_type", GPU_OPS)
def test_cases_keep_the_contract(op_type: str, interpreter: Interpreter) -> None:
    for case in list(cases(op_type))[:: EVERY[op_type]]:
        check_case(interpreter, case)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("op_type", GPU_OPS)
def test_any_node_keeps_the_contract(op_type: str, interpreter: Interpreter) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(any_case(op_type))
    def check(case: Case) -> None:
        check_case(interpreter, case)  # type: ignore[arg-type]

    check()


# --- how a segment is found ---


def sample(table: Spline, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([special_numbers(dtype), around_knots(table, dtype), numbers(1, (301,), dtype)])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("table", [gelu_table(4, 3), random_table(3, 4, 2), gelu_table(3, 1)])
def test_every_search_finds_the_same(table: Spline, dtype: np.dtype[Any], interpreter: Interpreter) -> None:
    x = sample(table, dtype)
    ways: tuple[Search, ...] = ("select", "buckets", "count") if place(table.knots, dtype) else ("select", "count")
    first, *others = [interpreter.call(run_spline, table, way, x) for way in ways]
    assert OPS["Spline"](table).agrees(first, [x, None]).all()
    for other in others:
        np.testing.assert_array_equal(other.astype(np.float64), first.astype(np.float64))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("segments", [3, 16, 32])
def test_every_half_precision_number_finds_its_segment(
    segments: int, dtype: np.dtype[Any], interpreter: Interpreter
) -> None:
    table, x = gelu_table(segments, 3), PATTERNS.view(dtype)
    way: Search = "select" if segments == 3 else "buckets"
    assert pack(table, dtype).search == way
    assert OPS["Spline"](table).agrees(interpreter.call(run_spline, table, way, x), [x, None]).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_buckets_part_the_knots_or_are_not_used(dtype: np.dtype[Any]) -> None:
    for name, knots in {"close": [1, 1 + 2**-23, 9], "far": [-1e30, 0, 1e30], "subnormal": [-1e-40, 1e-40, 1]}.items():
        table = Spline.of([*knots, 1e31, 2e31], np.ones((6, 2)))
        assert pack(table, dtype).search == "count", name
        with pytest.raises(ValueError, match="no 128 buckets part these knots"):
            pack(table, dtype, "buckets")
    assert pack(gelu_table(32, 3), dtype).search == "buckets"


# --- PolyNorm ---


@pytest.mark.parametrize("cols", [LONGEST_ROW, LONGEST_ROW + 1])
def test_long_rows_of_polynorm_are_read_twice(cols: int, interpreter: Interpreter) -> None:
    x, u = (numbers(seed, (2, cols), np.float16) for seed in (1, 2))
    w, b = np.array([0.3, -0.2, 0.7], np.float16), np.array([0.1], np.float16)
    check_case(interpreter, Case(f"{cols}", OPS["PolyNorm"](), (x, w, b, u)))  # type: ignore[arg-type]


# --- the GPU's own functions ---


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_exact_functions_are_within_their_bound(name: str, dtype: np.dtype[Any], interpreter: Interpreter) -> None:
    x = np.concatenate([special_numbers(dtype), np.linspace(-30, 30, 1999).astype(dtype)])
    result, wide = interpreter.call(run_exact, name, "alone", x, x), x.astype(np.float64)
    with np.errstate(all="ignore"):
        exact = np.where(wide == -np.inf, -1.0 if name == "tanh" else 0.0, ACTIVATIONS[name](wide))
        close = np.abs(result.astype(np.float64) - exact) <= rounded(exact, MAX_ERROR * (1 + np.abs(wide)), dtype)
    assert (close | (result == exact) | (np.isnan(result) & np.isnan(exact))).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_exact_functions_gate(name: str, dtype: np.dtype[Any], interpreter: Interpreter) -> None:
    x, u = (numbers(seed, (999,), dtype) for seed in (1, 2))
    gated = interpreter.call(run_exact, name, "apart", x, u)
    wide, factor = x.astype(np.float64), u.astype(np.float64)
    exact = ACTIVATIONS[name](wide)
    error = product_error(exact, MAX_ERROR * (1 + np.abs(wide)), factor, np.zeros_like(factor))
    assert (np.abs(gated.astype(np.float64) - exact * factor) <= rounded(exact * factor, error, dtype)).all()
    halves = interpreter.call(run_exact, name, "halves", np.stack([np.concatenate([x, u])] * 2), u)
    np.testing.assert_array_equal(halves.astype(np.float64), np.concatenate([gated] * 2).astype(np.float64))


# --- both products of a gated layer, and the function of their sums ---


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("rows", "inner", "cols"), [(1, 1, 1), (5, 33, 70), (130, 32, 64), (128, 96, 65), (3, 200, 128)]
)
def test_gate_up_is_within_the_contract_where_its_sums_are_exact(
    rows: int, inner: int, cols: int, dtype: np.dtype[Any], interpreter: Interpreter
) -> None:
    """Whole numbers, whose sums every type holds: what is left is GatedSpline of the packed product."""
    rng = np.random.default_rng(rows)
    x = rng.integers(-1, 2, (rows, inner)).astype(dtype)
    w = (rng.integers(-1, 2, (inner, 2 * cols)) / 8).astype(dtype)
    packed = x.astype(np.float64) @ w.astype(np.float64)
    assert (packed.astype(dtype).astype(np.float64) == packed).all()
    for table in (gelu_table(16, 3), gelu_table(3, 2), random_table(4, 5, 1)):
        found = interpreter.call(run_gate_up, table, x, w)
        assert OPS["GatedSpline"](table).agrees(found, [packed.astype(dtype)]).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gate_up_sums_in_float32(dtype: np.dtype[Any], interpreter: Interpreter) -> None:
    """Of numbers that are no exact sums: the function moves with its argument by no more than its slope."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in ((9, 300), (300, 40)))
    table, (gate, up) = gelu_table(16, 3), np.hsplit(x.astype(np.float64) @ w.astype(np.float64), 2)
    moved, moved_up = np.hsplit(2.0**-24 * 300 * (np.abs(x.astype(np.float64)) @ np.abs(w.astype(np.float64))), 2)
    expected, slope = table(gate) * up, 1.2
    once = OPS["GatedSpline"](table).tolerance([np.hstack([gate, up]).astype(np.float32)])
    bound = once + np.abs(expected) * UNIT[dtype.name] + slope * moved * np.abs(up) + np.abs(table(gate)) * moved_up
    found = interpreter.call(run_gate_up, table, x, w).astype(np.float64)
    assert (np.abs(found - expected) <= bound).all()
