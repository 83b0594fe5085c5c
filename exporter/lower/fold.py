"""Fold a scale of a site's input and output into the layers around it.

f(x) = g(c x) / c needs no multiplications where the layer before gives c x at once and the layer after takes g / c: the
weights and biases absorb them.

1. Backward, every way from the site's input must end in constants that absorb c: a bias and the weight before it, the scale
   and bias of a normalisation, a constant factor. What is scaled must have no other reader.
2. Forward, every way from the site's output must end in a weight or factor that absorbs 1/c: through changes of layout and
   the product of a gated FFN, to MatMul, Gemm or Conv.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

LAYOUT = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"})
# Ops that take a weight, and the inputs that scale with their output: the weight, and the bias.
LAYERS = {"MatMul": (1,), "Gemm": (1, 2), "Conv": (1, 2), "ConvTranspose": (1, 2)}
NORMS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,), "BatchNormalization": (1, 2)}


@dataclass(frozen=True)
class _Absorption:
    """A constant input of a node that is to be multiplied by a factor."""

    node: ir.Node
    index: int
    factor: float


def fold_slope(
    graph: ir.Graph, site_input: ir.Value, site_output: ir.Value, readers: Collection[str], slope: float
) -> bool:
    """Multiply a site's input and output by the slope, if the layers around it can absorb that.

    Args:
        graph: the graph, changed in place.
        site_input: the value to scale.
        site_output: the value that then arrives scaled.
        readers: names of the values that may be computed from the input: those of the site.
        slope: c > 0.

    Returns:
        Whether it was folded; if not, the graph is as it was.
    """
    if any(node.outputs[0].name not in readers for node in site_input.consumers()) or site_input.is_graph_output():
        return False
    before = _backward(site_input, slope)
    after = _forward(site_output, 1 / slope)
    if before is None or after is None:
        return False
    for absorption in (*before, *after):
        _scale(graph, absorption)
    return True


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and not value.is_graph_input() and ir.convenience.get_const_tensor(value) is not None


def _constant_indices(node: ir.Node) -> list[int]:
    return [i for i, v in enumerate(node.inputs) if _is_constant(v)]


def _backward(value: ir.Value, factor: float) -> list[_Absorption] | None:
    """1."""
    found: list[_Absorption] = []
    while (node := value.producer()) is not None:
        constants = _constant_indices(node)
        scaled = LAYERS.get(node.op_type) or NORMS.get(node.op_type)
        if scaled is not None:
            return _absorb_all(node, scaled, factor, found)
        if node.op_type in {"Mul", "Div"} and constants in ([0], [1]):
            inverted = node.op_type == "Div" and constants == [1]
            return [*found, _Absorption(node, constants[0], 1 / factor if inverted else factor)]
        if node.op_type in {"Add", "Sub"} and constants in ([0], [1]):
            found.append(_Absorption(node, constants[0], factor))
            value = _present(node.inputs[1 - constants[0]])
        elif node.op_type in LAYOUT:
            value = _present(node.inputs[0])
        else:
            return None
        if len(value.consumers()) > 1 or value.is_graph_output():
            return None
    return None


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _absorb_all(
    node: ir.Node, indices: Sequence[int], factor: float, found: list[_Absorption]
) -> list[_Absorption] | None:
    """Scale a layer's weight and bias; a MatMul may hold its weight on either side."""
    if node.op_type == "MatMul" and not _is_constant(node.inputs[1]):
        indices = (0,)
    present = [i for i in indices if i < len(node.inputs) and node.inputs[i] is not None]
    if not present or not all(_is_constant(node.inputs[i]) for i in present):
        return None
    return [*found, *(_Absorption(node, i, factor) for i in present)]


def _forward(value: ir.Value, factor: float) -> list[_Absorption] | None:
    """2."""
    found: list[_Absorption] = []
    queue = [value]
    while queue:
        current = queue.pop()
        if current.is_graph_output():
            return None
        for node in current.consumers():
            absorbed = _absorb_input(node, current, factor)
            if absorbed is not None:
                found.append(absorbed)
            elif (node.op_type in LAYOUT and node.inputs[0] is current) or (
                node.op_type == "Mul" and list(node.inputs).count(current) == 1
            ):
                queue.append(node.outputs[0])
            else:
                return None
    return found


def _absorb_input(node: ir.Node, value: ir.Value, factor: float) -> _Absorption | None:
    """Return what absorbs a factor of one input of the node: a weight or a constant factor, never a bias."""
    if node.op_type in LAYERS:
        side = 1 if node.inputs[0] is value else 0
        if node.op_type != "MatMul" and side == 0:
            return None
        return _Absorption(node, side, factor) if _is_constant(node.inputs[side]) else None
    constants = _constant_indices(node)
    if node.op_type == "Mul" and constants in ([0], [1]):
        return _Absorption(node, constants[0], factor)
    if node.op_type == "Div" and constants == [1]:
        return _Absorption(node, 1, 1 / factor)
    return None


def _scale(graph: ir.Graph, absorption: _Absorption) -> None:
    old = _present(absorption.node.inputs[absorption.index])
    tensor = ir.convenience.get_const_tensor(old)
    assert tensor is not None
    array = tensor.numpy()
    scaled = (array.astype(np.float64) * absorption.factor).astype(array.dtype)
    name = f"{old.name}/actx/scaled"
    while name in graph.initializers:
        name += "_"
    value = ir.Value(name=name, const_value=ir.tensor(scaled, dtype=tensor.dtype, name=name))
    value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(scaled.shape)
    graph.register_initializer(value)
    absorption.node.replace_input_with(absorption.index, value)
