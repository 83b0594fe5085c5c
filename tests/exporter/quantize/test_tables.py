"""Tables against fractions, against ONNX Runtime's own DequantizeLinear, op, QuantizeLinear, and through the kernels.

Numbers of the cases are those of the module's docstring.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from actx.custom_ops import ACTIVATIONS, Spline, cpu
from actx.custom_ops.ops import DOMAIN, OPSET
from actx.exporter.choose import choose
from actx.exporter.errors import ActxError
from actx.exporter.fitting import Form, fit
from actx.exporter.lift import Mixture, PolyNorm, ScalarFunction, lift
from actx.exporter.load import load
from actx.exporter.lower import lower
from actx.exporter.lower.own import STANDARD_OPS
from actx.exporter.quantize.params import QuantParams
from actx.exporter.quantize.tables import gated_table, output_range, site_function, site_table
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.targets import find_target
from tests.exporter.quantize.graphs import store
from tests.networks import SPELLINGS
from tests.op_cases import channel_table, tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from actx.custom_ops.ops import Op
    from actx.exporter.lift import Site
    from actx.exporter.quantize.tables import Function

INT8, UINT8 = ir.DataType.INT8, ir.DataType.UINT8
LIMITS = {INT8: (-128, 127), UINT8: (0, 255)}
# Of float32 numbers, the normal ones.
SMALLEST, LARGEST = 2.0**-126, float(np.finfo(np.float32).max)
# How near to a tie ONNX Runtime's float32 may decide otherwise, in steps of the output.
NEAR_A_TIE = 1e-4


def numbers_of(x: QuantParams) -> list[float]:
    """What the codes stand for, without rounding: 9 bits times 24 bits fit float64."""
    low, high = LIMITS[x.dtype]
    return [float((code - x.zero_point) * Fraction(x.scale)) for code in range(low, high + 1)]


def code_of(value: float, y: QuantParams) -> int:
    """The code nearest to a number, in fractions: Python rounds them half to even."""
    low, high = LIMITS[y.dtype]
    if np.isinf(value):
        return high if value > 0 else low
    return min(max(round(Fraction(value) / Fraction(y.scale)) + y.zero_point, low), high)


def expected(function: Function, x: QuantParams, y: QuantParams) -> list[int] | None:
    """1, in fractions; None where a value is NaN."""
    with np.errstate(all="ignore"):
        values = function(np.array(numbers_of(x)))
    return None if np.isnan(values).any() else [code_of(float(value), y) for value in values]


def check(function: Function, x: QuantParams, y: QuantParams) -> None:
    entries = expected(function, x, y)
    if entries is None:
        with pytest.raises(ActxError, match="nan at"):
            site_table(function, x, y)
    else:
        assert list(site_table(function, x, y).table) == entries


@st.composite
def any_params(draw: st.DrawFn) -> QuantParams:
    """Any scale of float32; often a power of two, so that values meet ties."""
    exponents = st.integers(-126, 127).map(lambda e: 2.0**e)
    near = st.integers(-10, 4).map(lambda e: 2.0**e)
    scale = draw(near | exponents | st.floats(2.0**-13, 4, width=32) | st.floats(SMALLEST, LARGEST, width=32))
    dtype = draw(st.sampled_from([INT8, UINT8]))
    return QuantParams(scale, draw(st.integers(*LIMITS[dtype])), dtype)


# Ranges of trained networks, saturating and symmetric ones, and the smallest and the largest scale that there is.
ASYMMETRIC = [QuantParams.asymmetric(*r) for r in ((-3.2, 5.1), (-0.28, 9.0), (0.0, 6.0), (-11.0, 0.0), (-1e-3, 2e-3))]
SYMMETRIC = [QuantParams.symmetric(peak) for peak in (0.25, 1.0, 4.0, 10.0, 127.0)]
EXTREME = [
    QuantParams(SMALLEST),
    QuantParams(LARGEST),
    QuantParams(SMALLEST, 3, UINT8),
    QuantParams(LARGEST, 255, UINT8),
]
FIXED = [*ASYMMETRIC, *SYMMETRIC, *EXTREME, QuantParams(0.5, 128, UINT8), QuantParams(0.03, -128, INT8)]


# --- 1. against fractions ---


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_entry_is_the_value_rounded_half_to_even(name: str) -> None:
    for x in FIXED:
        for y in FIXED[:: 3 if x in EXTREME else 2]:
            check(ACTIVATIONS[name], x, y)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(ACTIVATIONS)), any_params(), any_params())
def test_at_any_scale_and_zero_point(name: str, x: QuantParams, y: QuantParams) -> None:
    check(ACTIVATIONS[name], x, y)


@pytest.mark.parametrize("form", ["relu", "hardswish", "pwl:8", "poly:8", "spline:8x3"])
@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_forms(name: str, form: str) -> None:
    spline = fit(ACTIVATIONS[name], Form.parse(form)).spline
    for x in FIXED[::2]:
        for y in FIXED[1::3]:
            check(spline, x, y)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(tables())), any_params(), any_params())
def test_any_spline(name: str, x: QuantParams, y: QuantParams) -> None:
    check(tables()[name], x, y)


def test_ties_go_to_the_even_code() -> None:
    table = site_table(np.abs, QuantParams(0.5), QuantParams(1.0, 0, UINT8)).table
    assert table[128 : 128 + 8] == (0, 0, 1, 2, 2, 2, 3, 4)


def test_a_table_saturates_and_keeps_the_zero_point() -> None:
    table = site_table(lambda x: 1000 * x, QuantParams(1.0), QuantParams(1.0, 7, UINT8)).table
    assert (table[0], table[127], table[128], table[129]) == (0, 0, 7, 255)
    assert site_table(lambda x: np.where(x > 0, np.inf, -np.inf), QuantParams(1.0), QuantParams(1.0)).table[::255] == (
        -128,
        127,
    )


# --- per channel ---


def per_channel(spline: Spline) -> list[Spline]:
    return [spline.channel(i) for i in range(len(spline.knots))]


@pytest.mark.parametrize("axis", [1, -1])
def test_a_spline_per_channel_has_a_table_for_each(axis: int) -> None:
    spline = channel_table(0, 3, axis)
    x, y = ASYMMETRIC[0], SYMMETRIC[2]
    op = site_table(spline, x, y)
    assert (op.axis, op.channels) == (axis, 3)
    assert op.table == sum((site_table(one, x, y).table for one in per_channel(spline)), ())


def site_of(name: str, folder: Path) -> Site:
    onnx.save(SPELLINGS[name].model(20), folder / "source.onnx")
    (site,) = lift(load(folder / "source.onnx").model).sites
    return site


@pytest.mark.parametrize("name", ["prelu_per_channel", "apl_per_channel"])
def test_a_function_per_channel_has_a_table_for_each(name: str, tmp_path: Path) -> None:
    site = site_of(name, tmp_path)
    function = site.function
    assert isinstance(function, ScalarFunction)
    assert function.channels is not None
    x, y = SYMMETRIC[1], ASYMMETRIC[0]
    op = site_table(function, x, y, site.axis)
    assert (op.axis, op.channels) == (site.axis, function.channels)
    for i in range(function.channels):
        assert list(op.table[256 * i : 256 * (i + 1)]) == expected(function.channel(i), x, y)
    with pytest.raises(ValueError, match="needs the axis"):
        site_table(function, x, y)


# --- 2. gated ---


@pytest.mark.parametrize("name", ["silu", "gelu", "sigmoid", "relu2"])
def test_factors_of_a_gated_site_are_rounded_once(name: str) -> None:
    for x in (*ASYMMETRIC, *SYMMETRIC):
        for u, y in zip(ASYMMETRIC, SYMMETRIC, strict=True):
            op = gated_table(ACTIVATIONS[name], x, u, y)
            values = ACTIVATIONS[name](np.array(numbers_of(x)))
            exact = [Fraction(float(v)) * Fraction(u.scale) / Fraction(y.scale) for v in values]
            # Half an ulp of float32, and three roundings of float64 before it.
            bound = Fraction(2.0**-24 + 4 * 2.0**-53)
            for entry, wanted in zip(op.table, exact, strict=True):
                assert abs(Fraction(entry) - wanted) <= bound * abs(wanted) + Fraction(2.0**-150)
            assert (op.u_zero_point, op.y_zero_point) == (u.zero_point, y.zero_point)
            assert op.to == (None if x.dtype == y.dtype else int(y.dtype))


@pytest.mark.parametrize(
    ("x", "y"), [(QuantParams(1e30), QuantParams(1e-30)), (QuantParams(LARGEST), QuantParams(1.0))]
)
def test_factors_beyond_float32_are_an_error(x: QuantParams, y: QuantParams) -> None:
    with pytest.raises(ActxError, match="cannot be a table") as found:
        gated_table(ACTIVATIONS["relu2"], x, QuantParams(1.0), y)
    assert "inf at" in found.value.note


def test_a_gate_per_channel_has_no_table() -> None:
    with pytest.raises(ActxError, match="differs per channel"):
        gated_table(channel_table(0, 3, -1), SYMMETRIC[0], SYMMETRIC[0], SYMMETRIC[0])


# --- 3. no value ---


def test_the_code_without_a_value_is_named() -> None:
    with pytest.raises(ActxError, match="cannot be a table of 8-bit codes") as found, np.errstate(invalid="ignore"):
        site_table(np.sqrt, QuantParams(0.25, 10, UINT8), QuantParams(1.0))
    assert found.value.note == "it gives nan at -2.5, which code 0 stands for"


# --- 4. ranges ---


def test_a_range_is_that_of_the_function_and_not_of_what_was_seen() -> None:
    low, high = output_range(ACTIVATIONS["silu"], QuantParams.symmetric(8.0))
    assert -0.27847 < low < -0.2784
    assert high == ACTIVATIONS["silu"](np.array(127 * QuantParams.symmetric(8.0).scale))
    assert output_range(ACTIVATIONS["relu6"], QuantParams.symmetric(50.0)) == (0, 6)
    assert output_range(ACTIVATIONS["exp"], QuantParams(100.0)) == (0, np.inf)


def test_a_range_over_channels_holds_all_of_them() -> None:
    spline, x = channel_table(0, 3, -1), ASYMMETRIC[0]
    each = [output_range(one, x) for one in per_channel(spline)]
    assert output_range(spline, x) == (min(low for low, _ in each), max(high for _, high in each))


# --- 5. what stands in the graph ---


def placed(name: str, form: str, folder: Path) -> tuple[Any, Any, ir.Model]:
    onnx.save(SPELLINGS[name].model(20), folder / "source.onnx")
    model = load(folder / "source.onnx").model
    (choice,) = choose(lift(model).sites, find_target("onnx"), form=Form.parse(form))
    lowered = lower(model, [choice], native=None)
    (placement,) = lowered.placements
    return choice, placement, lowered.portable


@pytest.mark.parametrize(
    ("form", "kind"),
    [("keep", ScalarFunction), ("spline:32x3", ScalarFunction), ("pwl:8", Spline), ("hardswish", Spline)],
)
def test_the_function_is_what_the_portable_graph_computes(form: str, kind: type, tmp_path: Path) -> None:
    """Where its slope is folded, hardswish is c s(x / c) of what the changed layer gives."""
    choice, placement, portable = placed("gelu_op", form, tmp_path)
    function = site_function(choice, placement)
    assert isinstance(function, kind)
    assert function is not None
    assert (placement.scale != 1) == (form == "hardswish")
    ends = (placement.input, placement.output)
    fed = np.random.default_rng(0).uniform(-1, 1, (2, 5, 8)).astype(np.float32)
    result = RuntimeOptions(optimization="none").open(store(portable, tmp_path), ends).run({"x": fed})
    before, after = (result[name].astype(np.float64) for name in ends)
    # Sums of hinges, erf and clipped lines in float32: a few units of what they add up, which is below 8.
    np.testing.assert_allclose(after, function(before), atol=8 * 8 * 2.0**-24, rtol=0)


@pytest.mark.parametrize("function", [PolyNorm(np.ones(3), 0.0, 1e-6), Mixture(())])
def test_rows_and_mixtures_have_no_function_of_elements(function: PolyNorm | Mixture, tmp_path: Path) -> None:
    choice, placement, _ = placed("gelu_op", "keep", tmp_path)
    assert site_function(replace(choice, site=replace(choice.site, function=function)), placement) is None


# --- ONNX Runtime's own Q/DQ ---


OPS = {name: op for name, op in STANDARD_OPS.items() if name in ACTIVATIONS}
# e^x of a float32 x is off by x of its roundings; of the others, none grows faster than its input.
REACHES = {"exp": (0.5, 2.0)}
EVERYTHING = {INT8: np.arange(-128, 128).astype(np.int8), UINT8: np.arange(256).astype(np.uint8)}


def pairs(name: str) -> list[tuple[QuantParams, QuantParams]]:
    """Ranges of several sizes, the output's whole or a third of it, so that the rest saturates."""
    found = []
    for reach in REACHES.get(name, (0.7, 3.0, 8.0, 20.0)):
        for x in (QuantParams.symmetric(reach), QuantParams.asymmetric(-reach, reach / 2)):
            low, high = output_range(ACTIVATIONS[name], x)
            for part in (1.0, 0.3):
                found.append((x, QuantParams.asymmetric(part * low, part * high)))
                found.append((x, QuantParams.symmetric(part * max(-low, high))))
    return found


def dequantized(name: str, rows: Sequence[tuple[QuantParams, QuantParams]]) -> onnx.ModelProto:
    """All codes through DequantizeLinear, the op and QuantizeLinear, once for every pair of parameters."""
    nodes, initializers, outputs = [], [], []
    entry, op = ACTIVATIONS[name], OPS[name]
    attributes = op.attributes(dict(zip(entry.parameters, entry.defaults, strict=True)))
    for i, (x, y) in enumerate(rows):
        for side, params in (("x", x), ("y", y)):
            scale, zero = params.constants()
            initializers += [
                onnx.numpy_helper.from_array(scale, f"{side}{i}s"),
                onnx.numpy_helper.from_array(zero, f"{side}{i}z"),
            ]
        nodes += [
            helper.make_node("DequantizeLinear", [x.dtype.name, f"x{i}s", f"x{i}z"], [f"real{i}"]),
            helper.make_node(op.op_type, [f"real{i}"], [f"f{i}"], **attributes),
            helper.make_node("QuantizeLinear", [f"f{i}", f"y{i}s", f"y{i}z"], [f"code{i}"]),
        ]
        outputs.append(helper.make_tensor_value_info(f"code{i}", int(y.dtype), [256]))
    inputs = [helper.make_tensor_value_info(dtype.name, int(dtype), [256]) for dtype in (INT8, UINT8)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)


@pytest.mark.parametrize("name", OPS)
def test_onnx_runtime_differs_only_at_ties(name: str, tmp_path: Path) -> None:
    rows = pairs(name)
    onnx.save(dequantized(name, rows), tmp_path / "pairs.onnx")
    session = RuntimeOptions(threads=1, optimization="none").open(tmp_path / "pairs.onnx")
    found = session.run({dtype.name: codes for dtype, codes in EVERYTHING.items()})
    for i, (x, y) in enumerate(rows):
        steps = ACTIVATIONS[name](x.numbers) / y.scale
        to_a_tie = np.abs(np.abs(steps - np.floor(steps)) - 0.5)
        differs = np.array(site_table(ACTIVATIONS[name], x, y).table) != found[f"code{i}"]
        assert (to_a_tie[differs] <= NEAR_A_TIE).all(), (x, y)


# --- the kernels ---


def run_op(op: Op, inputs: dict[str, Any], to: ir.DataType, folder: Path) -> Any:
    node = helper.make_node(op.NAME, list(inputs), ["y"], domain=DOMAIN, **op.attributes())
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    result = helper.make_tensor_value_info("y", int(to), next(iter(inputs.values())).shape)
    graph = helper.make_graph([node], "g", values, [result])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), folder / "op.onnx")
    return RuntimeOptions(libraries=(cpu.load().path,)).open(folder / "op.onnx").run(inputs)["y"]


@pytest.mark.parametrize("dtype", [INT8, UINT8])
def test_the_kernel_gives_the_table(dtype: ir.DataType, tmp_path: Path) -> None:
    x = QuantParams(0.06, 3, dtype)
    y = QuantParams.asymmetric(*output_range(ACTIVATIONS["mish"], x), dtype)
    op = site_table(ACTIVATIONS["mish"], x, y)
    assert run_op(op, {"x": EVERYTHING[dtype]}, dtype, tmp_path).tolist() == list(op.table)


def test_the_kernel_gives_the_tables_of_channels(tmp_path: Path) -> None:
    x, y = QuantParams(0.05), QuantParams(0.1)
    op = site_table(channel_table(3, 3, -2), x, y)
    codes = np.tile(EVERYTHING[INT8], (2, 3, 1))
    wanted = np.array(op.table).reshape(3, 256)
    assert (run_op(op, {"x": codes}, INT8, tmp_path) == wanted).all()


@pytest.mark.parametrize("dtype", [INT8, UINT8])
def test_the_gated_kernel_gives_the_product(dtype: ir.DataType, tmp_path: Path) -> None:
    """The factor is rounded to float32 and once more times a code of 8 bits: the product is exact but for ties."""
    x, u = QuantParams(0.06, 3, dtype), QuantParams(0.03, 1, dtype)
    low, high = output_range(ACTIVATIONS["silu"], x)
    y = QuantParams.symmetric(4 * max(-low, high)) if dtype == INT8 else QuantParams.asymmetric(4 * low, 4 * high)
    op = gated_table(ACTIVATIONS["silu"], x, u, y)
    gate, up = (np.ascontiguousarray(a) for a in np.meshgrid(EVERYTHING[dtype], EVERYTHING[dtype]))
    found = run_op(op, {"x": gate, "u": up}, dtype, tmp_path)
    steps = ACTIVATIONS["silu"](x.dequantize(gate)) * u.dequantize(up) / y.scale
    wanted = y.quantize(steps * y.scale)
    to_a_tie = np.abs(np.abs(steps - np.floor(steps)) - 0.5)
    # Two roundings of float32, of at most 256 steps before it saturates.
    assert (to_a_tie[found != wanted] <= 2 * 256 * 2.0**-24).all()
    assert (found == op.reference([gate, up])).all()
