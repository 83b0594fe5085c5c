"""int8 with scales of run time: codes, distances, and what ONNX Runtime makes of the nodes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from actx.exporter.errors import UsageError
from actx.exporter.quantize.dynamic import to_dynamic_int8
from actx.exporter.quantize.params import WeightCodes
from tests.exporter.quantize.graphs import lowered, outputs, store
from tests.exporter.quantize.test_real import embedding_cosine
from tests.networks import SPELLINGS, WIDTH, Graph, feeds

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def layer(op: str = "MatMul", *, bias: bool = False, **attributes: int) -> ir.Model:
    """One linear layer of x [batch, WIDTH], with a weight whose channels differ in size by a factor of 1000."""
    graph, rng = Graph(20), np.random.default_rng(0)
    x = graph.input("x", ["batch", WIDTH])
    weight = rng.standard_normal((WIDTH, 4)) * np.logspace(-2, 1, 4)
    inputs = [x, graph.weight("weight", weight.T if attributes.get("transB") else weight)]
    offsets = graph.weight("bias", rng.standard_normal(4))
    if bias and op == "Gemm":
        value = graph.op(op, *inputs, offsets, **attributes)
    else:
        value = graph.op(op, *inputs, **attributes)
        value = graph.op("Add", value, offsets) if bias else value
    graph.output(value, "y", 2)
    model: ir.Model = ir.from_proto(graph.model())
    return model


def optimized(model: ir.Model, folder: Path) -> Counter[str]:
    """The ops of ONNX Runtime's optimized graph."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(store(model, folder)), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx", load_external_data=False).graph.node)


def reference(x: NDArray[Any], weight: NDArray[Any]) -> NDArray[np.float64]:
    """The definition of DynamicQuantizeLinear, and exact products of the codes [batch, n], [n, channels]."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    zero = np.clip(np.rint(np.float32(-low) / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    own = WeightCodes.of(weight, 1)
    return (codes.astype(np.float64) @ own.codes) * (float(scale) * own.scales.astype(np.float64))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("op", "attributes"), [("MatMul", {}), ("Gemm", {}), ("Gemm", {"transB": 1})])
def test_a_layer_is_the_product_of_its_codes(op: str, attributes: dict[str, int], bias: bool, tmp_path: Path) -> None:
    model = layer(op, bias=bias, **attributes)
    quantized = to_dynamic_int8(model)
    x = np.random.default_rng(1).uniform(-1, 3, (5, WIDTH)).astype(np.float32)
    constants = {
        name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value
    }
    expected = reference(x, constants["weight"].T if attributes else constants["weight"])
    expected = expected + (constants["bias"] if bias else 0)
    found = outputs(quantized, tmp_path, [{"x": x}])[0]["y"]
    # Three float32 operations on exact integers.
    size = np.abs(expected) + (np.abs(constants["bias"]) if bias else 0)
    assert (np.abs(found - expected) <= 4 * 2.0**-24 * size + 1e-30).all()
    assert "weight" not in quantized.graph.initializers


def test_nodes_are_fused_with_the_bias(tmp_path: Path) -> None:
    assert optimized(to_dynamic_int8(layer(bias=True)), tmp_path) == {"DynamicQuantizeMatMul": 1}


def test_layers_that_share_an_input_quantize_it_once(tmp_path: Path) -> None:
    proto = SPELLINGS["silu"].model(20, gated="matmul")
    plain = lowered(proto, tmp_path)
    quantized = to_dynamic_int8(plain)
    assert sum(node.op_type == "DynamicQuantizeLinear" for node in quantized.graph) == 2
    ops = optimized(quantized, tmp_path)
    assert (ops["MatMulIntegerToFloat"], ops["DynamicQuantizeMatMul"], ops["Cast"], ops["Add"]) == (2, 1, 0, 0)
    names = {str(value.name) for node in plain.graph for value in node.outputs}
    assert names <= {str(value.name) for node in quantized.graph for value in node.outputs}
    assert np.isfinite(outputs(quantized, tmp_path, [feeds(proto)])[0]["y"]).all()


def test_layers_that_share_a_weight_store_it_once(tmp_path: Path) -> None:
    graph = Graph(20)
    x, weight = graph.input("x", ["batch", WIDTH]), graph.weight("weight", np.eye(WIDTH))
    graph.output(graph.op("MatMul", graph.op("MatMul", x, weight), weight), "y", 2)
    quantized = to_dynamic_int8(ir.from_proto(graph.model()))
    assert len(quantized.graph.initializers) == 2
    batch = {"x": np.random.default_rng(0).uniform(-1, 1, (3, WIDTH)).astype(np.float32)}
    # Twice the codes' step, which is that of the input: the weight is exact.
    assert np.abs(outputs(quantized, tmp_path, [batch])[0]["y"] - batch["x"]).max() <= 2 * 2 / 255


def test_what_is_left_out_stays_and_the_given_model_is_not_changed() -> None:
    graph = Graph(20)
    x, weight = graph.input("x", ["batch", WIDTH]), graph.weight("weight", np.eye(WIDTH))
    graph.output(graph.op("MatMul", graph.op("MatMul", x, weight), weight), "y", 2)
    model: ir.Model = ir.from_proto(graph.model())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    first = next(str(node.name) for node in model.graph)
    quantized = to_dynamic_int8(model, exclude=[first])
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert [node.op_type for node in quantized.graph].count("MatMulInteger") == 1
    assert quantized.graph.initializers["weight"].const_value is model.graph.initializers["weight"].const_value


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="quantized already"):
        to_dynamic_int8(to_dynamic_int8(layer()))
    with pytest.raises(UsageError, match="nothing to quantize"):
        to_dynamic_int8(layer("Gemm", transA=1))


@pytest.mark.real
def test_the_encoder(encoder_dynamo_onnx: Path, encoder_data: Any, tmp_path: Path) -> None:
    plain = lowered(encoder_dynamo_onnx, tmp_path)
    batches = encoder_data("held_out")[::3]
    before = outputs(plain, tmp_path, batches)
    name = next(iter(before[0]))
    quantized = to_dynamic_int8(plain)
    # ONNX Runtime's own dynamic quantizer reaches 0.9933, per channel.
    assert embedding_cosine(outputs(quantized, tmp_path, batches), before, batches, name) >= 0.993
    layers = sum(node.op_type == "MatMulInteger" for node in quantized.graph)
    ops = optimized(quantized, tmp_path)
    assert ops["DynamicQuantizeMatMul"] + ops["MatMulIntegerToFloat"] == layers
    assert ops["MatMulInteger"] == 0
