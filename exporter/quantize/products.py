"""Products with a constant matrix, and how one is written by other nodes in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from actx.exporter.errors import UsageError
from actx.exporter.lift.ops import op_of, tensor_of
from actx.exporter.linear import GEMM, MATMUL

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy as np
    from numpy.typing import NDArray

WEIGHTS_ONLY = frozenset({"DequantizeLinear", "MatMulNBits", "GatherBlockQuantized", "MatMulInteger", "QuantizeLinear"})


@dataclass(frozen=True)
class Product:
    """A MatMul, or a Gemm without factors, of a constant float32 matrix.

    Attributes:
        node: the MatMul or Gemm.
        weight: its second input.
        transposed: whether the weight is [outputs, inputs].
    """

    node: ir.Node
    weight: ir.Value
    transposed: bool

    @property
    def name(self) -> str:
        """The node's name, or that of what it gives where it has none."""
        return name_of(self.node)

    @property
    def input(self) -> ir.Value:
        """What is multiplied."""
        x = self.node.inputs[0]
        assert x is not None
        return x

    def rows(self) -> NDArray[np.float32]:
        """Return the matrix as [outputs, inputs]."""
        matrix = matrix_of(self.weight)
        return matrix if self.transposed else matrix.T

    def replace(self, nodes: list[ir.Node]) -> None:
        """Put nodes in the product's place; the last one gives the product, to which a Gemm's third input is added."""
        node = self.node
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            nodes[-1].outputs[0].name = f"{node.outputs[0].name}/actx/product"
            nodes[-1].outputs[0].type = node.outputs[0].type
            nodes = [*nodes, ir.Node("", "Add", [nodes[-1].outputs[0], bias], name=f"{name_of(node)}/actx/bias")]
        replace_node(graph, node, nodes)


def products(model: ir.Model, exclude: Collection[str]) -> list[Product]:
    """Return the products in a graph that are not left out by name.

    Raises:
        UsageError: the model's weights are quantized already.
    """
    taken = sorted({node.op_type for node in model.graph} & WEIGHTS_ONLY)
    if taken:
        raise UsageError(
            "the model is quantized already",
            note=f"it has {', '.join(taken)} nodes",
            remedy="Leave the scheme out, or give the model in floating point.",
        )
    found = (_product(node) for node in model.graph if name_of(node) not in exclude)
    return [product for product in found if product is not None]


def name_of(node: ir.Node) -> str:
    """Return a node's name, or that of its first output where it has none."""
    return str(node.name or node.outputs[0].name)


def nothing_to_quantize(what: str) -> UsageError:
    """Return the error of a model without any such product."""
    return UsageError(
        "there is nothing to quantize",
        note=f"the model has no {what} of a constant float32 matrix but those that are left out",
        remedy="Choose another scheme, or none.",
    )


def matrix_of(value: ir.Value | None) -> NDArray[np.float32]:
    """Return the numbers of a constant."""
    tensor = tensor_of(value)
    assert tensor is not None
    array: NDArray[np.float32] = tensor.numpy()
    return array


def is_matrix(value: ir.Value | None) -> bool:
    """Tell whether a value is a constant float32 matrix that is not empty."""
    tensor = tensor_of(value)
    return tensor is not None and tensor.dtype is ir.DataType.FLOAT and len(tensor.shape) == 2 and tensor.size > 0


def replace_node(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node]) -> None:
    """Put nodes in a node's place; the last one's output takes over the name, type and shape of the node's."""
    nodes[-1].metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, nodes[-1].outputs)


def remove_unused(graph: ir.Graph, values: list[ir.Value]) -> None:
    """Remove constants that nothing reads any more."""
    for value in values:
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(str(value.name), None)


def _product(node: ir.Node) -> Product | None:
    if op_of(node) not in {MATMUL, GEMM} or not is_matrix(node.inputs[1]):
        return None
    x, weight = node.inputs[:2]
    assert x is not None
    assert weight is not None
    if op_of(node) == MATMUL:  # a vector's product is a vector
        return (
            None
            if tensor_of(x) is not None or (x.shape is not None and len(x.shape) < 2)
            else Product(node, weight, False)
        )
    settings = node.attributes
    factors = settings.get_float("alpha", 1.0), settings.get_float("beta", 1.0)
    plain = factors == (1, 1) and not settings.get_int("transA", 0)
    return Product(node, weight, bool(settings.get_int("transB", 0))) if plain else None
