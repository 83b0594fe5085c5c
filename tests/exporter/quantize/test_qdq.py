"""int8 and float8 by Q/DQ: where they stand, their scales, how far the numbers move. Bounds are half a step of each scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from actx.exporter.errors import ActxError, UsageError
from actx.exporter.lower import SITE_METADATA
from actx.exporter.quantize import SCHEMES, quantize
from tests.exporter.quantize.graphs import UNIT, lowered, outputs, relative_l2
from tests.networks import SPELLINGS, SURROUNDINGS, WIDTH, Graph, feeds, unary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

Batch = dict[str, Any]
LEVELS = 127


def layer(op: str = "MatMul", opset: int = 20, dtype: Any = np.float32, **attributes: Any) -> ir.Model:
    """One linear layer of x, with a weight whose channels differ in size by a factor of 1000."""
    graph = Graph(opset, dtype)
    rng = np.random.default_rng(0)
    if op == "Conv":
        x = graph.input("x", ["batch", 3, 6, 6])
        weight = rng.standard_normal((4, 3, 3, 3)) * np.logspace(-2, 1, 4)[:, None, None, None]
    else:
        x = graph.input("x", ["batch", WIDTH])
        weight = rng.standard_normal((WIDTH, 4)) * np.logspace(-2, 1, 4)
        weight = weight.T if attributes.get("transB") else weight
    value = graph.op(op, x, graph.weight("weight", weight), **attributes)
    graph.output(value, "y", 4 if op == "Conv" else 2)
    model: ir.Model = ir.from_proto(graph.model())
    return model


def data(model: ir.Model, sizes: Sequence[int] = (4, 7, 1)) -> list[Batch]:
    rng = np.random.default_rng(1)
    (x,) = model.graph.inputs
    assert x.shape is not None
    dims = [d for d in x.shape if isinstance(d, int)]
    dtype = np.float32 if x.dtype is None else x.dtype.numpy()
    return [{"x": rng.uniform(-3, 3, (n, *dims)).astype(dtype)} for n in sizes]


def constant(model: ir.Model, name: str) -> NDArray[Any]:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def pairs(model: ir.Model) -> list[str]:
    return [str(node.inputs[0].name) for node in model.graph if node.op_type == "QuantizeLinear" and node.inputs[0]]


@pytest.mark.parametrize(
    ("op", "attributes", "axis"), [("MatMul", {}, 1), ("Gemm", {}, 1), ("Gemm", {"transB": 1}, 0), ("Conv", {}, 0)]
)
def test_a_layer_moves_by_half_a_step_of_input_and_weight(
    op: str, attributes: dict[str, Any], axis: int, tmp_path: Path
) -> None:
    model = layer(op, **attributes)
    batches = data(model)
    typed = quantize(model, "int8", batches=batches)
    weight = constant(model, "weight")
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scales = constant(typed, f"weight/actx/axis_{axis}/scale")
    np.testing.assert_allclose(scales, np.abs(weight).max(axis=others) / LEVELS, rtol=1e-6)
    peak = max(np.abs(batch["x"]).max() for batch in batches)
    np.testing.assert_allclose(constant(typed, "x/actx/scale"), peak / LEVELS, rtol=1e-6)
    terms = weight.size // weight.shape[axis]
    bound = (peak / LEVELS / 2) * np.abs(weight).sum(axis=others) + scales / 2 * terms * peak * (1 + 1 / LEVELS)
    moved = [
        np.abs(a["y"] - b["y"])
        for a, b in zip(outputs(typed, tmp_path, batches), outputs(model, tmp_path, batches), strict=True)
    ]
    bound = bound[:, None, None] if op == "Conv" else bound
    assert all((difference <= bound * (1 + 1e-4)).all() for difference in moved)


@pytest.mark.parametrize(("op", "attributes"), [("MatMul", {}), ("Gemm", {"transB": 1})])
def test_float8_moves_a_number_by_a_sixteenth(op: str, attributes: dict[str, Any], tmp_path: Path) -> None:
    model = layer(op, **attributes)
    batches = data(model)
    typed = quantize(model, "fp8", batches=batches)
    weight = constant(model, "weight").T if attributes else constant(model, "weight")
    scale, scales = constant(typed, "x/actx/scale"), constant(typed, f"weight/actx/axis_{1 - len(attributes)}/scale")
    np.testing.assert_allclose(scales, np.abs(weight).max(axis=0) / 448, rtol=1e-6)
    points = [v.dtype for name, v in typed.graph.initializers.items() if "zero_point" in name]
    assert points == [ir.DataType.FLOAT8E4M3FN] * 2
    after, before = (outputs(graph, tmp_path, batches) for graph in (typed, model))
    for a, b, batch in zip(after, before, batches, strict=True):
        x, w = np.abs(batch["x"]), np.abs(weight)
        # Three mantissa bits round by 2^-4 of a number, and subnormal codes are 2^-9 apart.
        dx, dw = x / 16 + scale / 1024, w / 16 + scales / 1024
        assert (np.abs(a["y"] - b["y"]) <= (x @ dw + dx @ w + dx @ dw) * (1 + 1e-4)).all()
        assert (a["y"] != b["y"]).any()


def test_symmetric_int8_with_zero_points_of_zero(tmp_path: Path) -> None:
    typed = quantize(layer(), "int8", batches=data(layer()))
    points = [v.const_value.numpy() for n, v in typed.graph.initializers.items() if "zero_point" in n and v.const_value]
    assert len(points) == 2
    assert all(point.dtype == np.int8 and not point.any() for point in points)


def test_a_residual_and_a_bias_are_not_quantized(tmp_path: Path) -> None:
    plain = lowered(SURROUNDINGS["residual"].build(20), tmp_path)
    batches = [feeds(SURROUNDINGS["residual"].build(20))]
    typed = quantize(plain, "int8", batches=batches)
    for node in typed.graph:
        given = [v.producer().op_type for v in node.inputs if v is not None and v.producer() is not None]  # type: ignore[union-attr]
        assert ("DequantizeLinear" in given) == (node.op_type in {"MatMul", "Gemm"})
    bound = 8 / LEVELS  # four tensors of rms at least a quarter of their peak, each moved by up to half a step
    assert relative_l2(outputs(typed, tmp_path, batches), outputs(plain, tmp_path, batches), "y") <= bound


@pytest.mark.parametrize("form", ["keep", "pwl:16"])
def test_no_pair_is_inside_a_site_and_names_stay(form: str, tmp_path: Path) -> None:
    plain = lowered(SPELLINGS["gelu_legacy"].model(20), tmp_path, form)
    typed = quantize(plain, "int8", batches=[feeds(SPELLINGS["gelu_legacy"].model(20))])
    others = [str(n.outputs[0].name) for n in typed.graph if "uantizeLinear" not in n.op_type]
    assert others == [str(n.outputs[0].name) for n in plain.graph]
    for node in typed.graph:
        if "uantizeLinear" in node.op_type:
            assert SITE_METADATA not in node.metadata_props
    read = {v for n in typed.graph if SITE_METADATA in n.metadata_props for v in n.inputs if v is not None}
    assert not any(v.producer() is not None and v.producer().op_type == "DequantizeLinear" for v in read)  # type: ignore[union-attr]


def test_weights_stay_the_same_tensors(tmp_path: Path) -> None:
    model = layer()
    typed = quantize(model, "int8", batches=data(model))
    assert typed.graph.initializers["weight"].const_value is model.graph.initializers["weight"].const_value
    assert "weight/actx/axis_1/scale" not in model.graph.initializers


def test_a_product_of_two_activations_stays_in_floating_point() -> None:
    graph = Graph(20)
    x = graph.input("x", ["batch", WIDTH, WIDTH])
    value = graph.op("MatMul", graph.op("MatMul", x, x), np.eye(WIDTH, dtype=np.float32))
    graph.output(value, "y", 3)
    model: ir.Model = ir.from_proto(graph.model())
    typed = quantize(model, "int8", batches=[{"x": np.ones((1, WIDTH, WIDTH), np.float32)}])
    assert len(pairs(typed)) == 2


def test_channels_and_inputs_of_zero_have_a_scale(tmp_path: Path) -> None:
    graph = Graph(20)
    x = graph.input("x", ["batch", 2])
    graph.output(graph.op("MatMul", x, np.array([[0, 1], [0, 2]], np.float32)), "y", 2)
    model: ir.Model = ir.from_proto(graph.model())
    typed = quantize(model, "int8", batches=[{"x": np.zeros((1, 2), np.float32)}])
    assert (outputs(typed, tmp_path, [{"x": np.zeros((3, 2), np.float32)}])[0]["y"] == 0).all()


def test_int8_and_float16(tmp_path: Path) -> None:
    proto = SPELLINGS["gelu_op"].model(20)
    plain, batches = lowered(proto, tmp_path), [feeds(proto, batch=8, tokens=16)]
    typed = quantize(plain, "int8-fp16", batches=batches)
    types = {str(v.dtype) for n in typed.graph if n.op_type == "DequantizeLinear" for v in n.outputs}
    assert types == {"FLOAT16"}
    assert [(v.name, v.dtype) for v in typed.graph.outputs] == [("y", ir.DataType.FLOAT)]
    mixed, only = (
        relative_l2(outputs(graph, tmp_path, batches), outputs(plain, tmp_path, batches), "y")
        for graph in (typed, quantize(plain, "int8", batches=batches))
    )
    # Rounding to float16 may move a number across the border between two steps, which costs a step more.
    assert mixed <= 2 * only + 8 * UNIT


def test_a_float16_source_is_quantized_in_its_own_type(tmp_path: Path) -> None:
    model = layer(dtype=np.float16)
    typed = quantize(model, "int8", batches=data(model))
    assert constant(typed, "x/actx/scale").dtype == np.float16
    assert np.isfinite(outputs(typed, tmp_path, data(model))[0]["y"]).all()


@pytest.mark.parametrize("scheme", [name for name, scheme in SCHEMES.items() if scheme.layers])
def test_needs_data(scheme: str) -> None:
    with pytest.raises(UsageError, match="needs data"):
        quantize(layer(), scheme)
    with pytest.raises(UsageError, match="no data to calibrate on"):
        quantize(layer(), scheme, batches=[])


def test_unknown_scheme() -> None:
    with pytest.raises(UsageError, match="int3") as error:
        quantize(layer(), "int3")
    assert all(name in error.value.note for name in SCHEMES)


def test_a_quantized_source_is_refused() -> None:
    typed = quantize(layer(), "int8", batches=data(layer()))
    with pytest.raises(UsageError, match="quantized already"):
        quantize(typed, "int8", batches=data(layer()))


def test_nothing_to_quantize() -> None:
    graph = Graph(20)
    graph.output(unary("Relu")(graph, graph.input("x", ["batch"])), "y", 1)
    with pytest.raises(UsageError, match="nothing to quantize"):
        quantize(ir.from_proto(graph.model()), "int8", batches=[{"x": np.ones(1, np.float32)}])


@pytest.mark.parametrize(("scheme", "dtype"), [("int8-fp16", np.float32), ("int8", np.float16), ("fp8", np.float32)])
def test_opsets_without_float16_pairs_are_refused(scheme: str, dtype: Any) -> None:
    model = layer(opset=18, dtype=dtype)
    with pytest.raises(UsageError, match="opset"):
        quantize(model, scheme, batches=data(model))


def test_infinite_data_is_refused() -> None:
    with pytest.raises(ActxError, match="x is not finite"):
        quantize(layer(), "int8", batches=[{"x": np.full((1, WIDTH), np.inf, np.float32)}])


def test_writes_and_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quantize(layer(), "int8", batches=data(layer()))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
