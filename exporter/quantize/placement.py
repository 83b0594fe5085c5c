"""Put nodes and constants into a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence


def insert_behind(
    graph: ir.Graph,
    value: ir.Value,
    op: str,
    name: str,
    dtype: ir.DataType,
    more: Sequence[ir.Value] = (),
    **attributes: int,
) -> ir.Value:
    """Insert a node behind the one that gives a value, and return its result, which has the value's shape.

    Args:
        graph: the graph, changed in place.
        value: the node's first input.
        op: its type, of ONNX's own domain.
        name: of the node and of its result.
        dtype: of its result.
        more: its other inputs.
        attributes: its attributes.
    """
    settings = [ir.AttrInt64(key, number) for key, number in attributes.items()]
    node = ir.Node("", op, [value, *more], settings, name=name)
    output = node.outputs[0]
    output.name, output.type, output.shape = name, ir.TensorType(dtype), value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return output


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Add a tensor to a graph under its own name."""
    value = ir.Value(
        name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
    )
    graph.register_initializer(value)
    return value
