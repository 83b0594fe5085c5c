"""The ops: every question is asked of every op, in float64, in float32 arithmetic, and through onnx."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import checker, defs, helper, shape_inference
from onnx.reference import ReferenceEvaluator

from actx.custom_ops import Spline
from actx.custom_ops.ops import DOMAIN, OPS, OPSET, Op, TensorType, reference_ops, register_schemas
from tests.op_cases import REFUSED, Case, cases, channel_table, special_numbers, types_of
from tests.op_strategies import any_case

ALL = pytest.mark.parametrize("op_type", OPS)
CASES = {op_type: list(cases(op_type)) for op_type in OPS}
UNIT = 2.0**-24


@pytest.fixture(autouse=True)
def _schemas() -> None:
    register_schemas()


def test_cases_have_their_own_names_and_cover_every_type_and_rank() -> None:
    for op_type, found in CASES.items():
        assert len({str(case) for case in found}) == len(found)
        first = [case.inputs[0] for case in found if case.inputs[0] is not None]
        assert {array.dtype for array in first} == set(types_of(op_type))
        assert {array.ndim for array in first} >= ({3} if op_type == "QAttention" else set(range(1, 6)))


# --- reference and contract ---


@ALL
def test_reference_has_the_inferred_type_and_shape_and_keeps_the_contract(op_type: str) -> None:
    for case in CASES[op_type]:
        result = case.op.reference(case.inputs)
        output = case.op.output(types(case))
        assert (result.dtype, result.shape) == (output.dtype, output.shape), str(case)
        assert case.op.agrees(result, case.inputs).all(), str(case)


@ALL
def test_contract_is_no_wider_than_a_few_roundings(op_type: str) -> None:
    """Off by 1 % of the largest result, ordinary numbers break the contract, whatever the op and type."""
    for case in CASES[op_type]:
        result = case.op.reference(case.inputs)
        if result.size == 0 or "x16" in case.name:
            continue
        with np.errstate(all="ignore"):
            finite = np.isfinite(result.astype(np.float64)) & np.isfinite(case.op.tolerance(case.inputs))
            step = max(1.0, 0.05 * float(np.abs(np.where(finite, result, 0).astype(np.float64)).max()))
            wrong = (result.astype(np.float64) + step).astype(result.dtype)
        near = finite & (np.abs(result.astype(np.float64)) < 50) & (wrong != result)
        allowed = case.op.agrees(wrong, case.inputs)
        assert not (allowed & near).all() or not near.any(), str(case)


def test_contract_of_nan_infinity_and_overflow() -> None:
    op = OPS["Spline"](Spline.of([], [[0, 0, 1]]))
    inputs = (np.array([300, np.nan, np.inf, 255.875, 1], np.float16), None)
    assert op.agrees(np.array([np.inf, np.nan, np.inf, 65472, 1], np.float16), inputs).tolist() == [True] * 5
    assert op.agrees(np.array([65504, 0, -np.inf, np.inf, np.nan], np.float16), inputs).tolist() == [False] * 5


def test_reference_overflows_to_infinity_in_silence() -> None:
    square = OPS["Spline"](Spline.of([], [[0, 0, 1]]))
    result = square.reference([np.array([300.0, -300.0, np.inf, np.nan], np.float16), None])
    np.testing.assert_array_equal(result, [np.inf, np.inf, np.inf, np.nan])


# --- an implementation in float32, as the kernels compute it ---


def in_float32(case: Case) -> Any:
    """Evaluate in float32 arithmetic, each operation rounded, and round once to the element type."""
    output = case.op.output(types(case))
    inputs = [None if array is None else array.astype(np.float32) for array in case.inputs]
    with np.errstate(all="ignore"):
        return FLOAT32[case.op.NAME](case.op, *inputs).astype(output.dtype)


def horner32(spline: Spline, x: Any) -> Any:
    if spline.axis is not None:
        rows = np.moveaxis(x, spline.axis, 0)
        parts = zip(spline.knots, spline.coefficients, spline.origins, strict=True)
        found = [horner32(Spline(*part), row) for part, row in zip(parts, rows, strict=True)]
        return np.moveaxis(np.array(found, np.float32).reshape(rows.shape), 0, spline.axis)
    return table32(spline, spline.coefficients, x)


def table32(spline: Spline, coefficients: Any, x: Any) -> Any:
    segment = np.searchsorted(spline.knots, x, side="right").clip(0, spline.segments - 1)
    t = x - spline.origins[segment]
    y = coefficients[segment, -1]
    for power in range(coefficients.shape[1] - 2, -1, -1):
        # A fused multiply-add: float64 holds the product exactly, and its sum is rounded once more at most.
        y = (y.astype(np.float64) * t + coefficients[segment, power]).astype(np.float32)
    tails = np.where(x < 0, tail32(coefficients[0], -1), tail32(coefficients[-1], 1))
    return np.where(np.isinf(x), tails, np.where(np.isnan(x), x, y)).astype(np.float32)


def tail32(piece: Any, sign: float) -> Any:
    order = int(np.flatnonzero(piece)[-1]) if piece.any() else 0
    return piece[0] if order == 0 else np.float32(np.inf) * piece[order] * np.float32(sign**order)


def mix32(op: Any, x: Any, g: Any, u: Any) -> Any:
    first, tables = op.entries[0], np.stack([entry.coefficients for entry in op.entries])
    rows, weights = x.reshape(-1, x.shape[-1]) if x.size else x.reshape(0, 0), g.reshape(-1, len(tables))
    found = np.zeros(rows.shape, np.float32)
    for i in range(len(rows)):
        mixed = np.zeros(tables.shape[1:], np.float32)
        for weight, table in zip(weights[i], tables, strict=True):
            mixed = (mixed + weight * table.astype(np.float64)).astype(np.float32)
        found[i] = table32(first, mixed, rows[i])
    y = found.reshape(x.shape)
    return y if u is None else y * u


def polynorm32(op: Any, x: Any, w: Any, b: Any, u: Any) -> Any:
    y = np.zeros_like(x)
    for i, weight in enumerate(w):
        mean = (x ** (2 * (len(w) - i))).sum(axis=-1, keepdims=True, dtype=np.float32) / np.float32(max(x.shape[-1], 1))
        y = (y + weight / np.sqrt(mean + np.float32(op.epsilon))) * x
    return (y + b) if u is None else (y + b) * u


def gated32(op: Any, x: Any) -> Any:
    gate, other = op.halves(x)
    return horner32(op.spline, gate) * (other if op.other is None else horner32(op.other, other))


FLOAT32: dict[str, Any] = {
    "Spline": lambda op, x, u: horner32(op.spline, x) * (np.float32(1) if u is None else u),
    "GatedSpline": gated32,
    "SplineMix": mix32,
    "PolyNorm": polynorm32,
}


@pytest.mark.parametrize("op_type", FLOAT32)
def test_float32_arithmetic_keeps_the_contract(op_type: str) -> None:
    for case in CASES[op_type]:
        kept = case.op.agrees(in_float32(case), case.inputs)
        assert kept.all(), f"{case}: {np.count_nonzero(~kept)}"


@pytest.mark.parametrize("op_type", FLOAT32)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_float32_arithmetic_keeps_the_contract_on_anything(op_type: str, data: st.DataObject) -> None:
    case = data.draw(any_case(op_type))
    assert case.op.agrees(in_float32(case), case.inputs).all()


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)])
def test_every_half_precision_number_keeps_the_contract(dtype: np.dtype[Any]) -> None:
    x = np.arange(2**16).astype(np.uint16).view(dtype)
    for table in (channel_table(3, 1, 0, 16, 3), channel_table(4, 1, 0, 4, 16)):
        case = Case("all", OPS["Spline"](table), (x[None], None))
        assert case.op.agrees(in_float32(case), case.inputs).all()


# --- values ---


def test_gated_spline_takes_the_halves_that_it_says() -> None:
    x = np.array([[1, 2, -3, 4]], np.float32)
    relu = Spline.of([0], [[0, 0], [0, 1]])
    ten = Spline.of([], [[10, 1]])
    op = OPS["GatedSpline"]
    for arguments, expected in (
        ((), [-3, 8]),
        ((None, -1, "interleaved"), [2, 0]),
        ((None, -1, "split", 1), [0, 8]),
        ((ten, 1, "split", 0), [7, 28]),
        ((ten, 1, "interleaved", 1), [22, 28]),
    ):
        np.testing.assert_array_equal(op(relu, *arguments).reference([x]), [expected])


def test_spline_mix_mixes_tables() -> None:
    identity, relu = (Spline.of([0], table) for table in ([[0, 1], [0, 1]], [[0, 0], [0, 1]]))
    x = np.array([[-2, 3, np.inf], [-2, 3, -np.inf]], np.float32)
    g = np.array([[1, -1], [0.5, 2]], np.float32)
    result = OPS["SplineMix"]((identity, relu)).reference([x, g, None])
    np.testing.assert_array_equal(result, [[-2, 0, 0], [-1, 7.5, -np.inf]])
    doubled = OPS["SplineMix"]((identity, relu)).reference([x[:, :2], g, np.full((2, 2), 2, np.float32)])
    np.testing.assert_array_equal(doubled, [[-4, 0], [-2, 15]])


def test_polynorm_is_its_formula() -> None:
    x = np.random.default_rng(0).normal(0, 2, (4, 3, 50)).astype(np.float32)
    w, b, u = np.array([0.5, -1, 2], np.float32), np.array([0.1], np.float32), x[::-1].copy()

    def normalised(power: int) -> Any:
        z = x.astype(np.float64) ** power
        return z / np.sqrt((z**2).mean(-1, keepdims=True) + 0.5)

    expected = 0.5 * normalised(3) - normalised(2) + 2 * normalised(1) + np.float64(b[0])
    np.testing.assert_allclose(OPS["PolyNorm"](0.5).evaluate([x, w, b, None]), expected, rtol=1e-13)
    np.testing.assert_allclose(OPS["PolyNorm"](0.5).evaluate([x, w, b, u]), expected * u, rtol=1e-13)


def test_lut_entries_are_for_codes_in_ascending_order() -> None:
    op = OPS["Lut"](tuple(range(256)), 2)
    np.testing.assert_array_equal(op.reference([np.array([-128, -1, 0, 127], np.int8)]), [0, 127, 128, 255])
    np.testing.assert_array_equal(op.reference([np.array([0, 255], np.uint8)]), [0, 255])
    assert op.reference([np.array([0], np.int8)]).dtype == np.uint8


def test_gated_lut_rounds_half_to_even_and_saturates() -> None:
    table = [0.0] * 256
    table[128:133] = [0.5, 1.5, 3e38, -3e38, 100.0]
    x = np.array([0, 1, 2, 3, 4, 0], np.int8)
    u = np.array([6, 6, 15, 15, 6, 8], np.uint8)
    result = OPS["GatedLut"](tuple(table), 5, 7).reference([x, u])
    np.testing.assert_array_equal(result, [7, 9, 127, -128, 107, 9])


# --- attributes ---


@ALL
def test_attributes_round_trip(op_type: str) -> None:
    for case in CASES[op_type]:
        again = type(case.op).from_attributes(case.op.attributes())
        assert again.attributes() == case.op.attributes()
        if case.inputs[0] is not None and case.inputs[0].size < 100:
            assert_same(again.reference(case.inputs), case.op.reference(case.inputs))


@ALL
def test_attributes_that_are_refused(op_type: str) -> None:
    for attributes in REFUSED[op_type]:
        with pytest.raises(ValueError, match=f"actx::{op_type} |spline"):
            OPS[op_type].from_attributes(attributes)


def assert_same(result: Any, expected: Any) -> None:
    """Widened, as numpy's comparison does not know the NaN of bfloat16."""
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result.astype(np.float64), expected.astype(np.float64))


# --- types and shapes ---


def types(case: Case) -> list[TensorType | None]:
    return [None if array is None else TensorType.of(array) for array in case.inputs]


def float32(*shape: Any) -> TensorType:
    return TensorType(np.dtype(np.float32), shape)


RELU = Spline.of([0], [[0, 0], [0, 1]])


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (
            OPS["Spline"](RELU),
            [TensorType(np.dtype(np.float64), (2,)), None],
            "takes X of float32 or float16 or bfloat16 here",
        ),
        (
            OPS["Spline"](RELU),
            [float32(2), TensorType(np.dtype(np.float16), (2,))],
            "takes U of float32 here, got float16",
        ),
        (OPS["Spline"](RELU), [float32(2, 3), float32(2, 1)], "X and U of one shape"),
        (OPS["Spline"](RELU), [float32(2, 3), float32(3)], "X and U of one shape"),
        (OPS["Spline"](RELU.per_channel(4, -1)), [float32(2, 3), None], "axis -1 has 3 elements, actx::Spline has 4"),
        (OPS["Spline"](RELU.per_channel(4, 2)), [float32(4, 4), None], "has axis 2, and its input has rank 2"),
        (OPS["GatedSpline"](RELU), [float32(2, 3)], "an even size along axis -1"),
        (OPS["GatedSpline"](RELU), [float32()], "has axis -1, and its input has rank 0"),
        (OPS["GatedSpline"](RELU.per_channel(2, -1)), [float32(2, 2)], "axis -1 has 1 elements"),
        (OPS["SplineMix"]((RELU, RELU)), [float32(2, 3), float32(2, 3), None], "one shape, got .3,. and .2,."),
        (OPS["SplineMix"]((RELU, RELU)), [float32(2, 3), float32(3, 2), None], "but for the last axis"),
        (OPS["SplineMix"]((RELU, RELU)), [float32(), float32(2), None], "rank 1 or more"),
        (OPS["SplineMix"]((RELU,)), [float32(2, 3), float32(2, 1), float32(2, 1)], "X and U of one shape"),
        (OPS["PolyNorm"](), [float32(), float32(3), float32(1), None], "rank 1 or more"),
        (OPS["PolyNorm"](), [float32(2), float32(5), float32(1), None], "1 to 4 weights"),
        (OPS["PolyNorm"](), [float32(2), float32(), float32(1), None], "1 to 4 weights"),
        (OPS["PolyNorm"](), [float32(2), float32(3), float32(2), None], r"B and \[1\] of one shape"),
        (OPS["Lut"](tuple(range(256))), [TensorType(np.dtype(np.int8), (2,))], "has the entry 128"),
        (OPS["Lut"]((0,) * 512, None, 0), [TensorType(np.dtype(np.int8), (3,))], "has 2 channels"),
        (OPS["GatedLut"]((0.0,) * 256, 200), [TensorType(np.dtype(np.int8), (3,))] * 2, "the entry 200"),
    ],
)
def test_types_and_shapes_that_do_not_fit(op: Op, inputs: list[TensorType | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        op.output(inputs)


# --- onnx ---


def network(op: Op, inputs: list[TensorType | None]) -> onnx.ModelProto:
    output = op.output(inputs)
    names = ["" if tensor is None else parameter.name for tensor, parameter in zip(inputs, op.INPUTS, strict=True)]
    node = helper.make_node(op.NAME, names, ["s"], domain=DOMAIN)
    node.attribute.extend(attribute(op.NAME, name, given) for name, given in op.attributes().items())
    graph = helper.make_graph(
        [node, helper.make_node("Identity", ["s"], ["y"])],
        "g",
        [value(name, tensor) for name, tensor in zip(names, inputs, strict=True) if tensor is not None],
        [value("y", TensorType(output.dtype, None if output.shape is None else (None,) * len(output.shape)))],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, OPSET)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def attribute(op_type: str, name: str, given: Any) -> onnx.AttributeProto:
    """Typed by the schema, as an empty list does not tell its type."""
    return helper.make_attribute(
        name, given, attr_type=int(defs.get_schema(op_type, DOMAIN).attributes[name].type.value)
    )


def value(name: str, tensor: TensorType) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(tensor.dtype), tensor.shape)


def inferred(model: onnx.ModelProto, **options: bool) -> tuple[int, list[Any] | None]:
    found = shape_inference.infer_shapes(model, **options).graph.value_info[0].type.tensor_type
    dims: list[Any] = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in found.shape.dim]
    dims = [None if str(dim).startswith("unk__") else dim for dim in dims]  # onnx's own name for what nobody named
    return found.elem_type, dims if found.HasField("shape") else None


def small(op_type: str) -> list[Case]:
    """Cases that onnx's evaluator is asked about: its checks take milliseconds each."""
    found = [case for case in CASES[op_type] if case.inputs[0] is not None and case.inputs[0].size < 400]
    return found[:: max(1, len(found) // 60)]


@ALL
def test_onnx_runs_checks_and_infers_it(op_type: str) -> None:
    for case in small(op_type):
        model = network(case.op, types(case))
        checker.check_model(model, full_check=True)
        expected = case.op.reference(case.inputs)
        kind = helper.np_dtype_to_tensor_dtype(expected.dtype)
        assert inferred(model, check_type=True, strict_mode=True) == (kind, list(expected.shape)), str(case)
        feeds = {p.name: array for p, array in zip(case.op.INPUTS, case.inputs, strict=True) if array is not None}
        (result,) = ReferenceEvaluator(model, new_ops=reference_ops()).run(None, feeds)
        assert_same(result, expected)


@pytest.mark.parametrize(
    ("op", "inputs", "expected"),
    [
        (OPS["Spline"](RELU), [float32("batch", 3), None], ["batch", 3]),
        (OPS["Spline"](RELU), [float32("batch", None), float32(4, 3)], [4, 3]),
        (OPS["GatedSpline"](RELU), [float32("batch", 6)], ["batch", 3]),
        (OPS["GatedSpline"](RELU), [float32("batch", "width")], ["batch", None]),
        (OPS["GatedSpline"](RELU, None, 1), [float32(2, 8, "n")], [2, 4, "n"]),
        (OPS["SplineMix"]((RELU,)), [float32("batch", 7), float32(5, 1), None], [5, 7]),
        (OPS["PolyNorm"](), [float32("batch", "n"), float32("k"), float32(1), None], ["batch", "n"]),
        (OPS["Lut"]((0,) * 256, 2), [TensorType(np.dtype(np.int8), ("batch", 2))], ["batch", 2]),
    ],
)
def test_dimensions_that_are_no_numbers(op: Op, inputs: list[TensorType | None], expected: list[Any]) -> None:
    assert inferred(network(op, inputs), check_type=True, strict_mode=True)[1] == expected


def test_a_rank_that_is_not_known_stays_unknown() -> None:
    anything = TensorType(np.dtype(np.float16), None)
    for op, inputs in (
        (OPS["Spline"](RELU), [anything, None]),
        (OPS["GatedSpline"](RELU), [anything]),
        (OPS["PolyNorm"](), [anything, anything, anything, None]),
    ):
        assert inferred(network(op, list(inputs))) == (onnx.TensorProto.FLOAT16, None)


@ALL
def test_onnx_refuses_what_the_kernels_do_not_take(op_type: str) -> None:
    case = CASES[op_type][0]
    whole = network(case.op, types(case))
    for attributes in REFUSED[op_type]:
        model = onnx.ModelProto.FromString(whole.SerializeToString())
        node = model.graph.node[0]
        del node.attribute[:]
        node.attribute.extend(attribute(op_type, k, v) for k, v in attributes.items() if v is not None)
        with pytest.raises((checker.ValidationError, shape_inference.InferenceError)):
            checker.check_model(model, full_check=True)
    doubles = network(case.op, types(case))
    doubles.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises((checker.ValidationError, shape_inference.InferenceError)):
        checker.check_model(doubles, full_check=True)
    extra = network(case.op, types(case))
    extra.graph.node[0].attribute.append(helper.make_attribute("colour", 3))
    with pytest.raises(checker.ValidationError, match="Unrecognized attribute"):
        checker.check_model(extra, full_check=True)


def test_schemas_are_registered_once() -> None:
    register_schemas()
    for name in OPS:
        assert defs.get_schema(name, DOMAIN).since_version == OPSET
    assert [op.__name__ for op in reference_ops()] == list(OPS)


def test_special_numbers_hold_what_they_say() -> None:
    for dtype in types_of("Spline"):
        found = special_numbers(dtype).astype(np.float64)
        assert np.isnan(found).any()
        assert np.isinf(found).any()
        assert (np.signbit(found) & (found == 0)).any()
