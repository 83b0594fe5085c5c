"""Recognise two linear layers of one input that one layer can take the place of.

1. A layer is a MatMul with the weight behind, a Gemm or a Conv of one group; what is added to a MatMul per column is its bias.
2. Weight and bias are constants that no other node reads: packed beside the originals they would be stored twice.
3. The two have one op with the same attributes, read one value, and their weights agree in type and shape. A bias that one
   lacks is zeros.
4. What a layer gives is read as the factor it is, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from actx.exporter.ffn.refusal import Refusal
from actx.exporter.lift.ops import LAYERS, contrib, op_of, standard, tensor_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

ADD, MATMUL, GEMM, CONV = ("", "Add"), ("", "MatMul"), ("", "Gemm"), ("", "Conv")
PACKABLE = frozenset({MATMUL, GEMM, CONV})
TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
QUANTIZED = standard(
    "QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"
) | contrib(
    "QuantizeLinear", "DequantizeLinear", "QLinearConv", "MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A linear layer.

    Attributes:
        node: the MatMul, Gemm or Conv.
        weight: its constant.
        bias: its constant, None where there is none.
        output: what it gives, bias included.
    """

    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    output: ir.Value

    @property
    def input(self) -> ir.Value:
        """What the layer reads."""
        (x, *_) = self.node.inputs
        assert x is not None
        return x

    @property
    def weight_axis(self) -> int:
        """The axis of the weight that runs over what the layer gives."""
        transposed = self.node.attributes.get_int("transB", 0)
        return 0 if op_of(self.node) == CONV or transposed else 1

    @property
    def axis(self) -> int:
        """The same axis of the output, counted from the end."""
        return 1 - len(_tensor(self.weight).shape) if op_of(self.node) == CONV else -1

    @property
    def width(self) -> int:
        """The size of that axis."""
        return int(_tensor(self.weight).shape.numpy()[self.weight_axis])


@dataclass(frozen=True)
class Pair:
    """Two layers that one can take the place of."""

    gate: Layer
    other: Layer


def find_pair(gate: ir.Value, other: ir.Value) -> Pair:
    """Return the layers that give two values.

    Raises:
        Refusal: one does not come from a layer, or the two cannot be one.
    """
    pair = Pair(_layer(gate, "the gate"), _layer(other, "the other factor"))
    _compare(pair.gate, pair.other)
    return pair


def _layer(value: ir.Value, role: str) -> Layer:
    """1, 2."""
    node = value.producer()
    if node is None:
        raise Refusal(f"{role} is no output of a layer")
    bias = None
    if op_of(node) == ADD:
        node, bias = _before_bias(node, role)
    if op_of(node) in QUANTIZED:
        raise Refusal(f"{role} comes from {node.op_type}: it is quantized")
    if op_of(node) not in PACKABLE:
        kind = "which is no layer" if op_of(node) not in LAYERS else "a layer that is not packed"
        raise Refusal(f"{role} comes from {node.op_type}, {kind}")
    if node.graph is not value.graph:
        raise Refusal(f"{role} comes from another graph")
    weight = _constant(node.inputs[1], f"the weight of {role}")
    if op_of(node) != MATMUL and len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = _constant(node.inputs[2], f"the bias of {role}")
    layer = Layer(node, weight, bias, value)
    _check(layer, role)
    return layer


def _before_bias(add: ir.Node, role: str) -> tuple[ir.Node, ir.Value]:
    """Return the MatMul whose bias an Add adds, and that bias."""
    constants = [v for v in add.inputs if tensor_of(v) is not None]
    sums = [v for v in add.inputs if v is not None and tensor_of(v) is None]
    if len(constants) != 1 or len(sums) != 1:
        raise Refusal(f"{role} is the sum of two values")
    node = sums[0].producer()
    if node is None or op_of(node) != MATMUL:
        raise Refusal(f"{role} is a sum behind {'an input' if node is None else node.op_type}, which has no such bias")
    if len(sums[0].consumers()) > 1 or sums[0].is_graph_output():
        raise Refusal(f"{role} is read before its bias is added")
    return node, _constant(constants[0], f"the bias of {role}")


def _constant(value: ir.Value | None, what: str) -> ir.Value:
    """2."""
    tensor = tensor_of(value)
    if value is None or tensor is None:
        node = None if value is None else value.producer()
        if node is not None and op_of(node) in QUANTIZED:
            raise Refusal(f"{what} is quantized")
        raise Refusal(f"{what} is not constant")
    if tensor.dtype not in TYPES:
        raise Refusal(f"{what} is of type {tensor.dtype}")
    if len(value.consumers()) > 1 or len(list(value.uses())) > 1 or value.is_graph_output():
        raise Refusal(f"{what} is read elsewhere too")
    return value


def _check(layer: Layer, role: str) -> None:
    """1: the shapes of the constants."""
    op, rank = op_of(layer.node), len(_tensor(layer.weight).shape)
    if op != CONV and rank != 2:
        raise Refusal(f"the weight of {role} has rank {rank}")
    if op == CONV and layer.node.attributes.get_int("group", 1) != 1:
        raise Refusal(f"{role} comes from a Conv of several groups")
    if layer.bias is not None and not _is_per_column(layer):
        shape = list(_tensor(layer.bias).shape.numpy())
        raise Refusal(f"the bias of {role} has shape {shape}, not one number for each of {layer.width} columns")


def _is_per_column(layer: Layer) -> bool:
    """Tell whether there is one number per column, in a shape that adds no dimension to the output."""
    assert layer.bias is not None
    shape = _tensor(layer.bias).shape.numpy()
    rank = 1 if layer.output.shape is None else len(layer.output.shape)
    return int(np.prod(shape)) == layer.width == (shape[-1] if shape else 0) and len(shape) <= rank


def _compare(gate: Layer, other: Layer) -> None:
    """3."""
    if gate.node.op_type != other.node.op_type:
        raise Refusal(f"the gate comes from {gate.node.op_type}, the other factor from {other.node.op_type}")
    if gate.node is other.node:
        raise Refusal("both factors are one value")
    if gate.input is not other.input:
        raise Refusal("the two layers read different inputs")
    settings = [{name: attribute.value for name, attribute in of.node.attributes.items()} for of in (gate, other)]
    differing = [name for name in {**settings[0], **settings[1]} if settings[0].get(name) != settings[1].get(name)]
    if differing:
        raise Refusal(f"the attributes of the two layers differ: {', '.join(sorted(differing))}")
    tensors = _tensor(gate.weight), _tensor(other.weight)
    shapes = [list(tensor.shape.numpy()) for tensor in tensors]
    if shapes[0] != shapes[1]:
        raise Refusal(f"the weights are of shapes {shapes[0]} and {shapes[1]}")
    types = {_tensor(v).dtype for of in (gate, other) for v in (of.weight, of.bias) if v is not None}
    if len(types) > 1:
        raise Refusal(f"weights and biases are of types {', '.join(sorted(map(str, types)))}")


def packed_weight(pair: Pair) -> ir.LazyTensor:
    """Return both weights side by side, the gate's first; they are read, and put together, when the tensor is."""
    first, second = _tensor(pair.gate.weight), _tensor(pair.other.weight)
    axis = pair.gate.weight_axis
    sizes = [2 * size if i == axis else size for i, size in enumerate(first.shape.numpy())]

    def join() -> ir.TensorProtocol:
        return ir.Tensor(np.concatenate([first.numpy(), second.numpy()], axis), dtype=first.dtype)

    return ir.LazyTensor(join, first.dtype, ir.Shape(sizes))


def packed_bias(pair: Pair) -> ir.Tensor[Any] | None:
    """Return both biases, one after the other, of shape (2H,); None where there are none."""
    if pair.gate.bias is None and pair.other.bias is None:
        return None
    dtype = _tensor(pair.gate.weight).dtype
    return ir.Tensor(np.concatenate([_bias(pair.gate), _bias(pair.other)]), dtype=dtype)


def _bias(layer: Layer) -> NDArray[Any]:
    if layer.bias is None:
        return np.zeros(layer.width, _tensor(layer.weight).dtype.numpy())
    return _tensor(layer.bias).numpy().reshape(-1)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    found = tensor_of(value)
    assert found is not None
    return found
