"""What is a linear layer, whatever op writes it, and how its numbers are read and written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from actx.exporter.linear import Refusal, constant_of, layer_before, layers_behind
from tests.networks import HIDDEN, OUT, WIDTH, Graph

if TYPE_CHECKING:
    from collections.abc import Callable

RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.standard_normal((WIDTH, HIDDEN)), RNG.standard_normal(HIDDEN)


def matmul(g: Graph, x: str) -> str:
    return g.linear(x, "layer", WEIGHT, BIAS)


def matmul_bias_first(g: Graph, x: str) -> str:
    return g.op("Add", g.weight("bias", BIAS[None]), g.linear(x, "layer", WEIGHT))


def matmul_alone(g: Graph, x: str) -> str:
    return g.linear(x, "layer", WEIGHT)


def gemm(g: Graph, x: str) -> str:
    return g.op("Gemm", x, g.weight("weight", WEIGHT), g.weight("bias", BIAS))


def gemm_transposed(g: Graph, x: str) -> str:
    return g.op("Gemm", x, g.weight("weight", WEIGHT.T), g.weight("bias", BIAS[None]), transB=1)


def conv(g: Graph, x: str) -> str:
    return g.op("Conv", x, g.weight("weight", WEIGHT.T[..., None, None]), g.weight("bias", BIAS))


def conv_in_one_dimension(g: Graph, x: str) -> str:
    return g.op("Conv", x, g.weight("weight", WEIGHT.T[..., None]))


LAYERS: dict[str, tuple[Callable[[Graph, str], str], list[int]]] = {
    "matmul": (matmul, [2, 5, WIDTH]),
    "bias_first": (matmul_bias_first, [2, 5, WIDTH]),
    "without_bias": (matmul_alone, [2, 5, WIDTH]),
    "gemm": (gemm, [4, WIDTH]),
    "transposed": (gemm_transposed, [4, WIDTH]),
    "conv": (conv, [2, WIDTH, 3, 5]),
    "conv1d": (conv_in_one_dimension, [2, WIDTH, 7]),
}


def built(write: Callable[[Graph, str], str], shape: list[int], dtype: Any = np.float32) -> tuple[ir.Model, ir.Value]:
    """Return a model of one layer between two Tanh, and what the layer gives."""
    g = Graph(18, dtype)
    x = g.op("Tanh", g.input("x", list(shape)))
    g.output(g.op("Tanh", write(g, x)), "y", len(shape))
    proto = g.model()
    onnx.checker.check_model(proto)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    _, *_, last, _ = model.graph
    value = last.inputs[0]
    assert value is not None
    return model, value


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_layer_is_found_from_both_sides(name: str, dtype: Any) -> None:
    _, output = built(*LAYERS[name], dtype)
    layer = layer_before(output, "it")
    (behind,) = layers_behind(layer.input, "it")
    assert behind == layer
    assert layer.output is output
    assert layer.pointwise
    assert layer.width == HIDDEN
    np.testing.assert_array_equal(layer.matrix(), WEIGHT.astype(dtype))
    without = name in {"without_bias", "conv1d"}
    np.testing.assert_array_equal(layer.offsets(), np.zeros(HIDDEN) if without else BIAS.astype(dtype))
    assert (layer.bias is None) == without


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_the_matrix_is_what_it_gives(name: str) -> None:
    model, output = built(*LAYERS[name])
    layer = layer_before(output, "it")
    x = RNG.standard_normal(LAYERS[name][1]).astype(np.float32)
    (got,) = onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    expected = np.tanh(layer.rows(np.tanh(x)) @ layer.matrix() + layer.offsets())
    np.testing.assert_allclose(layer.rows(got), expected, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_written_is_read_again(name: str, dtype: Any) -> None:
    layer = layer_before(built(*LAYERS[name], dtype)[1], "it")
    other = RNG.standard_normal((WIDTH, HIDDEN)).astype(dtype).astype(np.float64)
    old = constant_of(layer.weight)
    tensor = layer.tensor(other)
    assert (tensor.shape, tensor.dtype) == (old.shape, old.dtype)
    assert tensor.numpy().flags.c_contiguous
    np.testing.assert_array_equal(layer.read(tensor), other)
    factors = 2.0 ** RNG.integers(-3, 3, HIDDEN)
    np.testing.assert_array_equal(layer.read(layer.scaled(factors)), layer.matrix() * factors)
    if layer.bias is not None:
        new = layer.bias_tensor(layer.offsets() * 2)
        assert new.shape == constant_of(layer.bias).shape
        np.testing.assert_array_equal(new.numpy().reshape(-1), layer.offsets() * 2)


def test_what_a_type_does_not_hold_is_infinite_without_a_word() -> None:
    layer = layer_before(built(matmul, [2, WIDTH], np.float16)[1], "it")
    for tensor in (layer.tensor(np.full((WIDTH, HIDDEN), 1e6)), layer.bias_tensor(np.full(HIDDEN, 1e6))):
        assert np.isinf(tensor.numpy()).all()


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Gemm", {"alpha": 0.5}),
        ("Gemm", {"beta": 2.0}),
        ("Conv", {"strides": [2, 2]}),
        ("Conv", {"pads": [0, 0, 1, 1]}),
        ("Conv", {"auto_pad": "SAME_UPPER"}),
    ],
)
def test_a_layer_that_is_more_than_a_product_per_place(op: str, attributes: dict[str, Any]) -> None:
    weight = WEIGHT if op == "Gemm" else WEIGHT.T[..., None, None]
    shape = [4, WIDTH] if op == "Gemm" else [2, WIDTH, 4, 4]
    layer = layer_before(
        built(lambda g, x: g.op(op, x, g.weight("w", weight), g.weight("b", BIAS), **attributes), shape)[1], "it"
    )
    assert not layer.pointwise


def test_a_window_is_not_one_place() -> None:
    window = RNG.standard_normal((HIDDEN, WIDTH, 3, 3))
    layer = layer_before(
        built(lambda g, x: g.op("Conv", x, g.weight("w", window), pads=[1, 1, 1, 1]), [2, WIDTH, 4, 4])[1], "it"
    )
    assert not layer.pointwise
    assert layer.width == HIDDEN


REFUSED: dict[str, tuple[Callable[[Graph, str], str], list[int], str]] = {
    "groups": (
        lambda g, x: g.op("Conv", x, g.weight("w", np.ones((WIDTH, 1, 1, 1))), group=WIDTH),
        [2, WIDTH, 4, 4],
        "it comes from a Conv of several groups",
    ),
    "two_values": (lambda g, x: g.op("Add", x, g.op("Neg", x)), [2, WIDTH], "it is the sum of two values"),
    "no_layer": (lambda g, x: g.op("Neg", x), [2, WIDTH], "it comes from Neg, which is no layer"),
    "variable": (
        lambda g, x: g.op("MatMul", x, g.op("Transpose", x, perm=[1, 0])),
        [2, WIDTH],
        "the weight of it is not constant",
    ),
    "rank": (
        lambda g, x: g.op("MatMul", x, g.weight("w", np.ones((2, WIDTH, 3)))),
        [2, 4, WIDTH],
        "the weight of it has rank 3",
    ),
    "bias_per_row": (
        lambda g, x: g.op("Gemm", x, g.weight("w", WEIGHT), g.weight("b", np.ones((4, 1)))),
        [4, WIDTH],
        r"the bias of it has shape \[4, 1\], not one number for each of 12 columns",
    ),
    "scalar_bias": (
        lambda g, x: g.op("Add", g.linear(x, "layer", WEIGHT), 1.0),
        [4, WIDTH],
        r"the bias of it has shape \[\]",
    ),
    "shared": (
        lambda g, x: g.op("Add", g.op("MatMul", g.linear(x, "a", np.eye(WIDTH)), "a.weight"), g.weight("b", np.ones(WIDTH))),
        [4, WIDTH],
        "the weight of it is read elsewhere too",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_layer_and_why(name: str) -> None:
    write, shape, reason = REFUSED[name]
    with pytest.raises(Refusal, match=f"^{reason}"):
        layer_before(built(write, shape)[1], "it")


def test_a_bias_that_is_none_stays_outside() -> None:
    model, _ = built(lambda g, x: g.op("Add", g.linear(x, "layer", WEIGHT), 1.0), [4, WIDTH])
    tanh = next(iter(model.graph))
    (layer,) = layers_behind(tanh.outputs[0], "it")
    assert layer.bias is None
    assert layer.output.producer() is layer.node


def test_readers_that_are_no_layers() -> None:
    model, _ = built(lambda g, x: g.op("MatMul", g.op("Transpose", x, perm=[1, 0]), x), [4, WIDTH])
    tanh = next(iter(model.graph))
    with pytest.raises(Refusal, match="it is read by Transpose, which is no layer"):
        layers_behind(tanh.outputs[0], "it")
    with pytest.raises(Refusal, match="it is an output of the model"):
        layers_behind(model.graph.outputs[0], "it")


def in_a_body() -> onnx.ModelProto:
    """A value that a layer reads in both branches of an If, and one beside it."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [WIDTH, OUT], np.ones(WIDTH * OUT))
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["t", "w"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, OUT])],
        )
        for name in ("then", "otherwise")
    ]
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node("If", ["which"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, WIDTH]),
        helper.make_tensor_value_info("which", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, OUT])]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [weight]))


def test_a_layer_in_a_body_is_left_alone() -> None:
    model = ir.from_proto(in_a_body())
    tanh = next(iter(model.graph))
    with pytest.raises(Refusal, match="it is read within a body"):
        layers_behind(tanh.outputs[0], "it")


def test_a_weight_that_the_caller_may_give_is_not_constant() -> None:
    model, output = built(*LAYERS["matmul"])
    weight = model.graph.initializers["layer.weight"]
    model.graph.inputs.append(weight)
    with pytest.raises(Refusal, match="the weight of it is not constant"):
        layer_before(output, "it")
