"""Recognise two linear layers of one input that one layer can take the place of.

1. What a layer is, `linear` says.
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

from actx.exporter.linear import Layer, Refusal, constant_of, layer_before

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    pair = Pair(layer_before(gate, "the gate"), layer_before(other, "the other factor"))
    _compare(pair.gate, pair.other)
    return pair


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
    tensors = constant_of(gate.weight), constant_of(other.weight)
    shapes = [list(tensor.shape.numpy()) for tensor in tensors]
    if shapes[0] != shapes[1]:
        raise Refusal(f"the weights are of shapes {shapes[0]} and {shapes[1]}")
    types = {constant_of(v).dtype for of in (gate, other) for v in (of.weight, of.bias) if v is not None}
    if len(types) > 1:
        raise Refusal(f"weights and biases are of types {', '.join(sorted(map(str, types)))}")


def packed_weight(pair: Pair) -> ir.LazyTensor:
    """Return both weights side by side, the gate's first; they are read, and put together, when the tensor is."""
    first, second = constant_of(pair.gate.weight), constant_of(pair.other.weight)
    axis = pair.gate.weight_axis
    sizes = [2 * size if i == axis else size for i, size in enumerate(first.shape.numpy())]

    def join() -> ir.TensorProtocol:
        return ir.Tensor(np.concatenate([first.numpy(), second.numpy()], axis), dtype=first.dtype)

    return ir.LazyTensor(join, first.dtype, ir.Shape(sizes))


def packed_bias(pair: Pair) -> ir.Tensor[Any] | None:
    """Return both biases, one after the other, of shape (2H,); None where there are none."""
    if pair.gate.bias is None and pair.other.bias is None:
        return None
    dtype = constant_of(pair.gate.weight).dtype
    return ir.Tensor(np.concatenate([_bias(pair.gate), _bias(pair.other)]), dtype=dtype)


def _bias(layer: Layer) -> NDArray[Any]:
    if layer.bias is None:
        return np.zeros(layer.width, constant_of(layer.weight).dtype.numpy())
    return constant_of(layer.bias).numpy().reshape(-1)
