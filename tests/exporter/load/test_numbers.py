"""What a graph computes of sizes it knows, or copies, becomes numbers; what it does not know stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from actx.exporter.load.prepare import prepare
from tests.networks import Graph

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 8


def prepared(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    prepare(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def graph_of(write: Callable[[Graph, str], str], shape: tuple[int | str, ...] = ("batch", 3, WIDTH)) -> onnx.ModelProto:
    g = Graph(18)
    x = g.input("x", list(shape))
    g.output(write(g, x), "y", len(shape))
    return g.model()


def assert_folded(proto: onnx.ModelProto, *types: str) -> ir.Model:
    """The nodes are these, in order, and give what the source gives."""
    model = prepared(proto)
    assert [node.op_type for node in model.graph] == [*types, "Identity"]
    x = np.random.default_rng(0).standard_normal((2, 3, WIDTH)).astype(np.float32)
    before, after = (
        ort.InferenceSession(p.SerializeToString()).run(None, {"x": x})[0] for p in (proto, ir.to_proto(model))
    )
    assert np.array_equal(before, after)
    return model


def halves(g: Graph, x: str) -> str:
    """As torch's older exporter writes chunk: the middle is computed of the shape."""
    size = g.op("Gather", g.op("Shape", x), [2], axis=0)
    half = g.op("Div", g.op("Add", size, [1]), [2])
    first = g.op("Slice", x, [0], half, [2])
    second = g.op("Slice", x, half, g.op("Mul", half, [2]), [2])
    return g.op("Concat", second, first, axis=2)


def test_the_halves_of_a_known_size() -> None:
    model = assert_folded(graph_of(halves), "Slice", "Slice", "Concat")
    (first,) = (node.outputs[0] for node in list(model.graph)[:1])
    assert first.shape is not None
    assert first.shape[-1] == WIDTH // 2


def test_a_size_that_is_not_known_stays() -> None:
    proto = graph_of(halves, ("batch", 3, "width"))
    assert "Shape" in {node.op_type for node in prepared(proto).graph}


@pytest.mark.parametrize("fill", ["ConstantOfShape", "Expand"])
def test_a_fill_beside_what_it_has_the_shape_of(fill: str) -> None:
    def write(g: Graph, x: str) -> str:
        shape = g.op("Shape", x)
        value = onnx.numpy_helper.from_array(np.array([0.5], np.float32))
        ones = g.op("ConstantOfShape", shape, value=value) if fill == "ConstantOfShape" else g.op("Expand", 0.5, shape)
        return g.op("Add", ones, g.op("Tanh", x))

    assert_folded(graph_of(write), "Tanh", "Add")


def test_a_stored_fill_of_a_static_shape() -> None:
    def write(g: Graph, x: str) -> str:
        return g.op("Where", g.op("Greater", x, 0.0), x, g.constant(np.zeros((2, 3, WIDTH), np.float32)))

    model = assert_folded(graph_of(write, (2, 3, WIDTH)), "Greater", "Where")
    where = next(node for node in model.graph if node.op_type == "Where")
    assert where.inputs[2] is not None
    assert where.inputs[2].shape == ir.Shape([])


def test_a_fill_that_gives_the_result_its_shape_stays() -> None:
    """Of a sum with one number per batch, the zeros are what makes it as wide as x."""

    def write(g: Graph, x: str) -> str:
        zeros = g.op("Expand", 0.0, g.op("Shape", x))
        return g.op("Add", zeros, g.reduce("ReduceMean", x, [2]))

    assert_folded(graph_of(write), "Shape", "Expand", "ReduceMean", "Add")


def test_the_parts_of_a_constant() -> None:
    def write(g: Graph, x: str) -> str:
        parts = g.ops("Split", 2, g.constant(np.array([0.5, 2.0], np.float32)), [1, 1], axis=0)
        return g.op("Mul", g.op("Mul", x, parts[0]), parts[1])

    assert_folded(graph_of(write), "Mul", "Mul")


def test_an_output_that_is_a_size_stays() -> None:
    g = Graph(18)
    x = g.input("x", [2, WIDTH])
    g.output(g.op("Shape", x), "size", 1, np.int64)
    g.output(g.op("Relu", x), "y", 2)
    model = prepared(g.model())
    (size, _) = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(
        None, {"x": np.ones((2, WIDTH), np.float32)}
    )
    assert size.tolist() == [2, WIDTH]


def test_a_fill_with_a_dimension_more_stays() -> None:
    def write(g: Graph, x: str) -> str:
        ones = g.op("Expand", g.constant(np.ones((1, 1, 1, 1), np.float32)), g.op("Shape", x))
        return g.op("Squeeze", g.op("Add", ones, x), [0])

    assert_folded(graph_of(write), "Shape", "Expand", "Add", "Squeeze")
