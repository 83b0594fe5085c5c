"""Linear layers as the graph holds them: a MatMul with a constant weight behind, a Gemm or a Conv of one group.

What is added to a MatMul per column is its bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

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


class Refusal(Exception):  # noqa: N818 - the graph is as it should be
    """A part of a graph is not what a step can work on, and the reason in words.

    Attributes:
        reason: a clause that can follow "kept: ".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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
    def adder(self) -> ir.Node:
        """The node that reads the bias."""
        producer = self.output.producer()
        assert producer is not None
        return producer

    @property
    def weight_axis(self) -> int:
        """The axis of the weight that runs over what the layer gives."""
        transposed = self.node.attributes.get_int("transB", 0)
        return 0 if op_of(self.node) == CONV or transposed else 1

    @property
    def axis(self) -> int:
        """The same axis of the output, counted from the end."""
        return 1 - len(constant_of(self.weight).shape) if op_of(self.node) == CONV else -1

    @property
    def width(self) -> int:
        """The size of that axis."""
        return int(constant_of(self.weight).shape.numpy()[self.weight_axis])

    @property
    def pointwise(self) -> bool:
        """Whether what it gives at a place depends on its input there alone: no window, and nothing but the one product."""
        if op_of(self.node) == CONV:
            return _is_pointwise(self.node, constant_of(self.weight))
        if op_of(self.node) == GEMM:
            attributes = self.node.attributes
            plain = attributes.get_float("alpha", 1.0) == 1 and attributes.get_float("beta", 1.0) == 1
            return plain and not attributes.get_int("transA", 0)
        return True

    def matrix(self) -> NDArray[np.float64]:
        """Return the weight of a pointwise layer as float64 [inputs, outputs]."""
        return self.read(constant_of(self.weight))

    def read(self, weight: ir.TensorProtocol) -> NDArray[np.float64]:
        """Return another weight of the layer's layout as `matrix` does."""
        exact = weight.numpy().astype(np.float64)
        flat = exact.reshape(exact.shape[:2])
        return flat.T if self.weight_axis == 0 else flat

    def offsets(self) -> NDArray[np.float64]:
        """Return the bias as float64 [outputs]; zeros without one."""
        if self.bias is None:
            return np.zeros(self.width)
        return constant_of(self.bias).numpy().astype(np.float64).reshape(-1)

    def tensor(self, matrix: NDArray[np.float64]) -> ir.Tensor[Any]:
        """Return a weight [inputs, outputs] in the layout and type of the layer's own; infinite what the type does not hold."""
        old = constant_of(self.weight)
        return _typed(matrix.T if self.weight_axis == 0 else matrix, old)

    def scaled(self, factors: NDArray[np.float64]) -> ir.Tensor[Any]:
        """Return the weight with what gives each output multiplied by one of `factors`, float64 [outputs]."""
        old = constant_of(self.weight)
        weight = old.numpy().astype(np.float64)
        shape = [-1 if axis == self.weight_axis else 1 for axis in range(weight.ndim)]
        return _typed(weight * factors.reshape(shape), old)

    def bias_tensor(self, offsets: NDArray[np.float64]) -> ir.Tensor[Any]:
        """Return a bias [outputs] in the shape and type of the layer's own."""
        assert self.bias is not None
        return _typed(offsets, constant_of(self.bias))

    def rows(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return a tensor that the layer reads or gives with one row per place: [places, channels]."""
        moved = np.moveaxis(values, self.axis, -1)
        return moved.reshape(-1, moved.shape[-1])


def layer_before(value: ir.Value, role: str, *, own: bool = True) -> Layer:
    """Return the layer that gives a value.

    Args:
        value: what it gives, bias included.
        role: what to call the value in a refusal.
        own: whether weight and bias must be read by nothing else.

    Raises:
        Refusal: there is none.
    """
    node = value.producer()
    if node is None:
        raise Refusal(f"{role} is no output of a layer")
    bias = None
    if op_of(node) == ADD:
        node, bias = _before_bias(node, role, own=own)
    if op_of(node) in QUANTIZED:
        raise Refusal(f"{role} comes from {node.op_type}: it is quantized")
    if op_of(node) not in PACKABLE:
        kind = "which is no layer" if op_of(node) not in LAYERS else "a layer that is not packed"
        raise Refusal(f"{role} comes from {node.op_type}, {kind}")
    if node.graph is not value.graph:
        raise Refusal(f"{role} comes from another graph")
    weight = _constant(node.inputs[1], f"the weight of {role}", own=own)
    if op_of(node) != MATMUL and len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = _constant(node.inputs[2], f"the bias of {role}", own=own)
    layer = Layer(node, weight, bias, value)
    _check(layer, role)
    return layer


def _before_bias(add: ir.Node, role: str, *, own: bool) -> tuple[ir.Node, ir.Value]:
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
    return node, _constant(constants[0], f"the bias of {role}", own=own)


def _constant(value: ir.Value | None, what: str, *, own: bool) -> ir.Value:
    tensor = tensor_of(value)
    if value is None or tensor is None:
        node = None if value is None else value.producer()
        if node is not None and op_of(node) in QUANTIZED:
            raise Refusal(f"{what} is quantized")
        raise Refusal(f"{what} is not constant")
    if tensor.dtype not in TYPES:
        raise Refusal(f"{what} is of type {tensor.dtype}")
    if own and (len(value.consumers()) > 1 or len(list(value.uses())) > 1 or value.is_graph_output()):
        raise Refusal(f"{what} is read elsewhere too")
    return value


def _check(layer: Layer, role: str) -> None:
    """Check the shapes of the constants."""
    op, rank = op_of(layer.node), len(constant_of(layer.weight).shape)
    if op != CONV and rank != 2:
        raise Refusal(f"the weight of {role} has rank {rank}")
    if op == CONV and layer.node.attributes.get_int("group", 1) != 1:
        raise Refusal(f"{role} comes from a Conv of several groups")
    if layer.bias is not None and not _is_per_column(layer):
        shape = list(constant_of(layer.bias).shape.numpy())
        raise Refusal(f"the bias of {role} has shape {shape}, not one number for each of {layer.width} columns")


def _is_per_column(layer: Layer) -> bool:
    """Tell whether there is one number per column, in a shape that adds no dimension to the output."""
    assert layer.bias is not None
    shape = constant_of(layer.bias).shape.numpy()
    rank = 1 if layer.output.shape is None else len(layer.output.shape)
    return int(np.prod(shape)) == layer.width == (shape[-1] if shape else 0) and len(shape) <= rank


def layers_behind(value: ir.Value, role: str) -> tuple[Layer, ...]:
    """Return the layers that read a value, one for each of its readers.

    Args:
        value: what they read.
        role: what to call the value in a refusal.

    Raises:
        Refusal: it is read by something else, or by nothing.
    """
    if value.is_graph_output():
        raise Refusal(f"{role} is an output of the model")
    readers = value.consumers()
    if not readers:
        raise Refusal(f"{role} is read by nothing")
    return tuple(_reading(node, value, role) for node in readers)


def _reading(node: ir.Node, value: ir.Value, role: str) -> Layer:
    if op_of(node) not in PACKABLE or node.inputs[0] is not value or list(node.inputs).count(value) != 1:
        raise Refusal(f"{role} is read by {node.op_type}, which is no layer")
    if node.graph is not value.graph:
        raise Refusal(f"{role} is read within a body")
    output, what = node.outputs[0], f"what reads {role}"
    readers = output.consumers()
    biased = len(readers) == 1 and op_of(readers[0]) == ADD and not output.is_graph_output()
    if op_of(node) == MATMUL and biased and any(tensor_of(v) is not None for v in readers[0].inputs):
        try:
            return layer_before(readers[0].outputs[0], what, own=False)
        except Refusal:  # what is added is no bias
            pass
    return layer_before(output, what, own=False)


def _is_pointwise(conv: ir.Node, weight: ir.TensorProtocol) -> bool:
    attributes = conv.attributes
    strides = attributes.get_ints("strides", ())
    pads = attributes.get_ints("pads", ())
    automatic = attributes.get_string("auto_pad", "NOTSET")
    kernel = weight.shape.numpy()[2:]
    return set(kernel) <= {1} and set(strides) <= {1} and set(pads) <= {0} and automatic in {"NOTSET", "VALID"}


def _typed(numbers: NDArray[np.float64], old: ir.TensorProtocol) -> ir.Tensor[Any]:
    """Return numbers in the shape and type of another tensor."""
    with np.errstate(over="ignore"):
        typed = numbers.reshape(old.shape.numpy()).astype(old.dtype.numpy(), order="C")
    return ir.Tensor(typed, dtype=old.dtype)


def constant_of(value: ir.Value) -> ir.TensorProtocol:
    """Return the tensor of a value that is constant."""
    found = tensor_of(value)
    assert found is not None
    return found
