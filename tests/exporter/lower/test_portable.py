"""A spline written with standard ops: its values everywhere, and which ops it takes."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from actx.custom_ops import ACTIVATIONS, Spline
from actx.exporter import Form, fit
from actx.exporter.choose import Choice
from actx.exporter.errors import ActxError
from actx.exporter.lift import ScalarFunction, Site
from actx.exporter.lower import Lowered, Native, lower
from actx.exporter.runtimes.openvino import OpenVino
from tests.exporter.lower.running import UNIT, in_reference, in_runtime, prepared

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.fitting import Fit

FORMS = ("relu", "hardswish", "pwl:3", "pwl:8", "pwl:16", "pwl:32", "poly:4", "poly:8", "poly:12", "spline:4x3",
         "spline:6x2", "spline:16x3")  # fmt: skip
# Some functions are written in every form; of the others each in two of the forms that are no large tables, which take time.
LARGE = frozenset({"pwl:32", "poly:12", "spline:16x3"})
FEW = ("gelu", "silu", "tanh", "softplus", "exp", "xielu", "softsign")
SMALL = [form for form in FORMS if form not in LARGE]
OPSETS = (13, 18, 21, 25)
INTERVAL = (-8.0, 8.0)
# Of 1 + |x| + |s|, in float32: a chain of leaky ReLUs takes 64 ops, Horner's rule of degree 12 about 30, and each of their
# roundings is of a term that may be a few times the result. Each link of a chain rounds a distance to its knot, too.
ROUNDINGS = 256
NEAR = np.linspace(-10, 10, 2001)
FAR = np.array([-6e4, -1e3, -100.0, 100.0, 1e3, 6e4])


def functions(form: str) -> list[str]:
    """The functions that are written in a form."""
    others = [name for name in ACTIVATIONS if name not in FEW]
    turns = 2 * SMALL
    return [*FEW, *(name for i, name in enumerate(others) if form in turns[i % len(SMALL) :][:2])]


@cache
def fitted(name: str, form: str) -> Fit | None:
    """Return the fit, on an interval where all of R is out of reach, or None where the form cannot follow at all."""
    for interval in (None, INTERVAL):
        try:
            found: Fit = fit(ACTIVATIONS[name], Form.parse(form), interval=interval, fold=False)
        except ActxError:
            continue
        return found
    return None


def bare(
    spline: Spline,
    dtype: str = "float32",
    opset: int = 18,
    shape: tuple[int | str, ...] = ("n",),
    native: Native = "actx",
) -> Lowered:
    """Lower a spline in a graph of nothing else, from x to y."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = (helper.make_tensor_value_info(name, kind, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], "act")], "g", [x], [y])
    model = prepared(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))
    channels = None if spline.axis is None else len(spline.knots)
    site = Site(
        "act", "scalar", {}, ScalarFunction((), channels), "x", "y", ("y",), ir.DataType(kind), shape, spline.axis, None
    )
    anything = fit(ACTIVATIONS["relu"], Form.parse("relu"))
    found = dataclasses.replace(anything, spline=spline, core_error=1.0, max_error=1.0)
    return lower(model, [Choice(site, found.form, found, "")], native=native)


def assert_is_the_spline(spline: Spline, x: np.ndarray, y: np.ndarray, dtype: str, *, one_op: bool = False) -> None:
    wide = x.astype(np.float64)
    expected = spline(wide)
    steepest = max(1.0, float(np.abs(spline.coefficients[..., 1]).max())) if spline.degree == 1 else 1.0
    outermost = float(np.abs(spline.knots).max(initial=0.0))
    bound = (
        UNIT["float32"] * steepest * (ROUNDINGS * (1 + np.abs(wide) + np.abs(expected)) + spline.segments * outermost)
    )
    if (
        dtype == "float16"
    ):  # computed in float32 and rounded once more, but for HardSwish, which rounds at each of its steps
        bound += UNIT["float16"] * (4 * np.abs(wide) if one_op else np.abs(expected)) + 2.0**-25
        bound[np.abs(expected) > 65000] = np.inf
    assert (np.abs(y.astype(np.float64) - expected) <= bound)[np.isfinite(y)].all()
    assert np.isfinite(y[np.abs(expected) < 65000]).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", UNIT)
def test_values(form: str, dtype: str) -> None:
    x = np.concatenate([NEAR, FAR]).astype(dtype)
    for i, name in enumerate(functions(form)):
        found = fitted(name, form)
        if found is None:
            continue
        lowered = bare(found.spline, dtype, OPSETS[i % len(OPSETS)])
        (y,) = in_runtime(lowered.portable, {"x": x})
        assert y.dtype == np.dtype(dtype)
        assert_is_the_spline(found.spline, x, y, dtype, one_op=form == "hardswish")
        (again,) = in_reference(lowered.portable, {"x": x})
        assert lowered.native is not None
        (native,) = in_reference(lowered.native, {"x": x})
        # Steep pieces cancel in float32: exp on an interval has slopes of thousands. So do the links of a far knot: a
        # rational has knots at hundreds.
        largest = max(np.abs(found.spline.coefficients).max(), np.abs(found.spline.knots).max(initial=0.0))
        steep = max(1.0, float(largest) / 100)
        agreement = steep * (1e-4 + (4 * UNIT["float16"] if dtype == "float16" else 0))
        finite = np.isfinite(y)
        for other in (again, native):
            difference = np.abs(y[finite].astype(float) - other[finite])
            assert (difference <= agreement * (1 + np.abs(y[finite].astype(float)))).all()


@pytest.mark.parametrize("form", FORMS)
def test_zero_nan_and_infinities(form: str) -> None:
    for dtype in UNIT:
        x = np.array([0.0, -0.0, np.nan, np.inf, -np.inf], dtype)
        for name in functions(form):
            found = fitted(name, form)
            if found is None:
                continue
            lowered = bare(found.spline, dtype)
            expected = found.spline(x)
            for y in (*in_runtime(lowered.portable, {"x": x}), *in_reference(lowered.portable, {"x": x})):
                if expected[0] == 0:
                    assert (y[:2] == 0).all(), name
                assert np.isnan(y[2]), name
                if lowered.placements[0].lowering == "HardSwish":  # by its definition -inf times 0
                    assert y[3] == np.inf
                    continue
                finite = np.isfinite(expected[3:])
                np.testing.assert_allclose(y[3:][finite], expected[3:][finite], atol=1e-4, rtol=2 * UNIT[dtype])
                np.testing.assert_array_equal(y[3:][~finite], expected[3:][~finite])


# --- which ops ---


@pytest.mark.parametrize(
    ("name", "form", "opset", "ops"),
    [
        ("relu", "pwl:8", 18, "Relu"),
        ("gelu", "relu", 18, "Relu"),
        ("leaky_relu", "pwl:8", 18, "LeakyRelu"),
        ("leaky_relu", "spline:8x3", 13, "LeakyRelu"),
        ("hardswish", "hardswish", 14, "HardSwish"),
        ("gelu", "hardswish", 25, "HardSwish"),
        ("gelu", "hardswish", 13, "HardSigmoid+Mul"),
    ],
)
def test_a_spline_that_is_one_op(name: str, form: str, opset: int, ops: str) -> None:
    found = fitted(name, form)
    assert found is not None
    assert bare(found.spline, opset=opset).placements[0].lowering == ops


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("opset", OPSETS)
def test_bfloat16(opset: int, form: str) -> None:
    """Few ops take it in old opsets; onnx's checker knows which."""
    x = NEAR.astype(ir.DataType.BFLOAT16.numpy())
    for name in ("gelu", "leaky_relu"):
        found = fitted(name, form)
        if found is None:
            continue
        (y,) = in_reference(bare(found.spline, "bfloat16", opset).portable, {"x": x})
        expected = found.spline(x.astype(np.float64))
        assert (np.abs(y.astype(np.float64) - expected) <= 2 * 2.0**-8 * (1 + np.abs(expected))).all()


@pytest.mark.parametrize(("opset", "ops"), [(18, "Cast+HardSwish"), (22, "HardSwish")])
def test_one_op_in_bfloat16(opset: int, ops: str) -> None:
    found = fitted("hardswish", "hardswish")
    assert found is not None
    assert bare(found.spline, "bfloat16", opset).placements[0].lowering == ops


@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "mish", "softplus"])
def test_linear_pieces_are_a_chain_of_leaky_relus(name: str) -> None:
    found = fitted(name, "pwl:16")
    assert found is not None
    lowered = bare(found.spline)
    used = [node.op_type for node in lowered.portable.graph]
    assert "Where" not in used
    assert used.count("LeakyRelu") <= found.spline.segments - 3
    assert len(used) <= 2 * found.spline.segments + 8


@pytest.mark.parametrize("name", ["gelu", "silu", "quick_gelu"])
def test_an_even_polynomial_takes_both_sides_at_once(name: str) -> None:
    found = fitted(name, "poly:8")
    assert found is not None
    used = [node.op_type for node in bare(found.spline).portable.graph]
    assert "Abs" in used
    assert "Where" not in used
    assert len(used) <= 2 * 8 + 5


def test_a_jump_takes_a_selection() -> None:
    step = Spline.of([0.5], [[0.0, 1.0], [2.0, 1.0]])
    lowered = bare(step)
    assert "Where" in lowered.placements[0].lowering
    x = np.array([np.nextafter(np.float32(0.5), np.float32(0)), 0.5], np.float32)
    (y,) = in_runtime(lowered.portable, {"x": x})
    np.testing.assert_array_equal(y, [x[0], 2.5])


@pytest.mark.parametrize("pieces", [[[1.0], [2.0]], [[0.0], [1.0], [0.0]], [[3.0, 0, 0], [3.5, 0, 0]]])
def test_constant_pieces_keep_nan(pieces: list[list[float]]) -> None:
    step = Spline.of(range(len(pieces) - 1), pieces)
    x = np.array([np.nan, -np.inf, np.inf, -1, 0, 0.5, 1], np.float32)
    (y,) = in_runtime(bare(step).portable, {"x": x})
    np.testing.assert_array_equal(y, step(x))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("dtype", UNIT)
def test_tables_per_channel(dtype: str, opset: int) -> None:
    names = ("gelu", "tanh", "mish")
    for form in ("pwl:8", "spline:4x3", "poly:4", "hardswish"):
        splines = [found.spline for name in names if (found := fitted(name, form))]
        if len({(spline.segments, spline.degree) for spline in splines}) > 1:
            continue
        stacked = Spline(
            np.stack([s.knots for s in splines]), np.stack([s.coefficients for s in splines]),
            np.stack([s.origins for s in splines]), axis=-3,
        )  # fmt: skip
        x = np.random.default_rng(0).uniform(-9, 9, (2, 3, 20, 5)).astype(dtype)
        lowered = bare(stacked, dtype, opset, ("batch", 3, "height", "width"))
        (y,) = in_runtime(lowered.portable, {"x": x})
        assert_is_the_spline(stacked, x, y, dtype)
        assert lowered.native is not None
        (native,) = in_reference(lowered.native, {"x": x})
        np.testing.assert_array_equal(native, stacked(x).astype(dtype))


def test_relus_per_channel() -> None:
    slopes = np.array([0.0, 0.25, -0.5], np.float32)
    pieces = np.zeros((3, 2, 2), np.float32)
    pieces[:, 0, 1], pieces[:, 1, 1] = slopes, 1
    prelu = Spline(np.zeros((3, 1)), pieces, np.zeros((3, 2)), axis=-1)
    lowered = bare(prelu, shape=("n", 3))
    assert lowered.placements[0].lowering == "PRelu"
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    np.testing.assert_array_equal(in_runtime(lowered.portable, {"x": x})[0], prelu(x).astype(np.float32))


# --- random tables ---


@st.composite
def splines(draw: st.DrawFn) -> Spline:
    """Any table: continuous or not, with tails of any degree, with origins, symmetric knots among them."""
    segments, degree = draw(
        st.sampled_from([(1, 2), (2, 1), (2, 3), (3, 1), (3, 3), (4, 2), (4, 8), (6, 1), (9, 3), (32, 1)])
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    knots = np.cumsum(rng.uniform(0.2, 1.0, segments - 1)) - 0.3 * segments
    if draw(st.booleans()) and segments % 2 == 0:
        knots[: segments // 2] = -knots[segments // 2 - 1 :][::-1] if segments > 2 else 0
        knots = np.sort(knots) if len(np.unique(knots)) == len(knots) else np.arange(segments - 1) - segments // 2 + 1.0
    pieces = rng.standard_normal((segments, degree + 1)) / 3.0 ** np.arange(degree + 1)
    if draw(st.booleans()):
        pieces[[0, -1], 2:] = 0
    if draw(st.booleans()):
        pieces[0, 1:] = 0
    origins = np.zeros(segments) if draw(st.booleans()) else np.append(knots, knots[-1:] if len(knots) else [0.5])
    if degree == 1 and draw(st.booleans()):  # continuous
        values = np.interp(knots, knots, rng.standard_normal(len(knots))) if len(knots) else np.zeros(0)
        origins = np.concatenate([knots[:1], knots]) if len(knots) else origins
        slopes = np.concatenate([rng.standard_normal(1), np.diff(values) / np.diff(knots), rng.standard_normal(1)])
        pieces = np.stack([np.concatenate([values[:1], values]), slopes[:segments]], axis=1) if len(knots) else pieces
    return Spline.of(knots, pieces, origins)


@settings(max_examples=150, deadline=None)
@given(splines(), st.sampled_from(OPSETS))
def test_random_tables(spline: Spline, opset: int) -> None:
    x = np.concatenate([np.linspace(-6, 6, 601), [np.nan]]).astype(np.float32)
    x = x[~np.isin(x, spline.knots)]
    (y,) = in_runtime(bare(spline, opset=opset).portable, {"x": x})
    wide = np.abs(x.astype(np.float64))[:, None] + np.abs(spline.origins).max() + np.abs(spline.knots).max(initial=0)
    magnitude = (np.abs(spline.coefficients.astype(np.float64)).max(axis=0) * wide ** np.arange(spline.degree + 1)).sum(
        1
    )
    assert (np.abs(y - spline(x)) <= ROUNDINGS * UNIT["float32"] * (1 + magnitude))[:-1].all()
    assert np.isnan(y[-1])


# --- for a runtime that compiles chains of elementwise ops ---


# More selected pieces than these need more registers than AVX2 has, and OpenVINO compiles no graph that does.
FEW_SELECTIONS = 4


def fused(spline: Spline, size: int) -> ir.Model:
    """Lower a spline as for OpenVINO, over a known number of elements: else it does not fuse."""
    model = bare(spline, shape=(size,), native="standard").native
    assert model is not None
    return model


@pytest.mark.parametrize("form", [*FORMS, "spline:32x3"])
def test_values_where_chains_are_compiled(form: str, tmp_path: Path) -> None:
    x = np.concatenate([NEAR, FAR, [0.0]]).astype(np.float32)
    for name in ("gelu", "mish", "softplus") if form in LARGE else ("gelu", "silu", "tanh", "mish", "softplus", "exp"):
        found = fitted(name, form)
        if found is None:
            continue
        model = fused(found.spline, x.size)
        (y,) = in_runtime(model, {"x": x})
        assert_is_the_spline(found.spline, x, y, "float32", one_op=form == "hardswish")
        if found.spline(np.zeros(1))[0] == 0:
            assert y[-1] == 0
        if sum(node.op_type == "Where" for node in model.graph) > FEW_SELECTIONS:
            continue
        ir.save(model, tmp_path / "form.onnx")
        (theirs,) = OpenVino(threads=1).open(tmp_path / "form.onnx").run({"x": x}).values()
        assert_is_the_spline(found.spline, x, theirs, "float32", one_op=form == "hardswish")


def test_where_chains_are_compiled_nothing_waits_in_registers() -> None:
    """A knot is a line and a comparison, and no piece is selected."""
    cases = {"pwl:16": ("mish", {"Max", "Min"}), "poly:12": ("mish", {"Clip"}), "spline:32x3": ("gelu", {"Clip"})}
    for form, (name, ops) in cases.items():
        found = fitted(name, form)
        assert found is not None
        used = {node.op_type for node in fused(found.spline, 8).graph}
        assert used & ops
        assert not used & {"LeakyRelu", "PRelu", "Where"}


def test_slopes_per_channel_where_chains_are_compiled(tmp_path: Path) -> None:
    """OpenVINO would take the slopes of PRelu for those of another axis."""
    slopes = np.linspace(-1, 1, 4, dtype=np.float32)
    spline = Spline(
        np.zeros((4, 1)), np.stack([np.zeros((4, 2)), np.stack([slopes, np.ones(4)], 1)], 2), np.zeros((4, 2)), axis=-1
    )
    model = bare(spline, shape=(2, 5, 4), native="standard").native
    assert model is not None
    ir.save(model, tmp_path / "form.onnx")
    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    (y,) = OpenVino(threads=1).open(tmp_path / "form.onnx").run({"x": x}).values()
    assert np.allclose(y, np.where(x < 0, slopes * x, x), rtol=1e-6)
