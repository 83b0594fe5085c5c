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
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from actx.exporter.lift.ops import DIV, LAYERS, LAYOUT, MUL, MULTILINEAR, SUMS, WEIGHT_AND_BIAS, op_of, tensor_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


# Ends the name of a constant that the export changed.
OWN = "/actx/own"


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
    scaled = _scaled([*before, *after])
    if scaled is None:
        return False
    for (node, index), tensor in scaled.items():
        replace_constant(graph, node, index, tensor)
    return True


def _constant_indices(node: ir.Node) -> list[int]:
    return [i for i, v in enumerate(node.inputs) if tensor_of(v) is not None]


def _backward(value: ir.Value, factor: float) -> list[_Absorption] | None:
    """1."""
    found: list[_Absorption] = []
    while (node := value.producer()) is not None and node.outputs[0] is value:
        op, constants = op_of(node), _constant_indices(node)
        if op in WEIGHT_AND_BIAS:
            return _absorb_all(node, factor, found)
        if op in MULTILINEAR and len(constants) == 1:
            return [*found, _Absorption(node, constants[0], factor)]
        if op == DIV and len(constants) == 1:
            return [*found, _Absorption(node, constants[0], factor if constants == [0] else 1 / factor)]
        if op in SUMS and len(constants) == 1:
            found.append(_Absorption(node, constants[0], factor))
            value = _present(node.inputs[1 - constants[0]])
        elif op in LAYOUT:
            value = _present(node.inputs[0])
        else:
            return None
        if len(value.consumers()) > 1 or value.is_graph_output():
            return None
    return None


def _present(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _absorb_all(node: ir.Node, factor: float, found: list[_Absorption]) -> list[_Absorption] | None:
    """Scale weight and bias."""
    weight, *_ = indices = WEIGHT_AND_BIAS[op_of(node)]
    present = [i for i in indices if i == weight or (i < len(node.inputs) and node.inputs[i] is not None)]
    if not set(present) <= set(_constant_indices(node)):
        return None
    return [*found, *(_Absorption(node, i, factor) for i in present)]


def _forward(value: ir.Value, factor: float) -> list[_Absorption] | None:
    """2. A value that arrives by two ways is scaled twice, and absorbed twice."""
    found: list[_Absorption] = []
    queue = [value]
    while queue:
        current = queue.pop()
        if current.is_graph_output():
            return None
        for node in current.consumers():
            if list(node.inputs).count(current) != 1:
                return None
            absorbed = _absorb_input(node, current, factor)
            if absorbed is not None:
                found.append(absorbed)
            elif op_of(node) == MUL or (op_of(node) in LAYOUT and node.inputs[0] is current):
                queue.append(node.outputs[0])
            else:
                return None
    return found


def _absorb_input(node: ir.Node, value: ir.Value, factor: float) -> _Absorption | None:
    """Return what absorbs a factor of one input of the node: a weight or a constant factor, never a bias."""
    op, constants = op_of(node), _constant_indices(node)
    if op in MULTILINEAR and len(constants) == 1:
        return _Absorption(node, constants[0], factor)
    if op == DIV and constants == [1]:
        return _Absorption(node, 1, 1 / factor)
    if op in LAYERS and op in WEIGHT_AND_BIAS and node.inputs[0] is value:
        weight = WEIGHT_AND_BIAS[op][0]
        return _Absorption(node, weight, factor) if weight in constants else None
    return None


def _scaled(absorptions: Sequence[_Absorption]) -> dict[tuple[ir.Node, int], ir.Tensor[Any]] | None:
    """Return the new constant per node and input, None where a number would leave the range of its type."""
    factors: dict[tuple[ir.Node, int], float] = {}
    for absorption in absorptions:
        place = absorption.node, absorption.index
        factors[place] = factors.get(place, 1.0) * absorption.factor
    scaled: dict[tuple[ir.Node, int], ir.Tensor[Any]] = {}
    for (node, index), factor in factors.items():
        old = tensor_of(node.inputs[index])
        assert old is not None
        exact = old.numpy().astype(np.float64)
        with np.errstate(over="ignore"):
            new = (exact * factor).astype(old.numpy().dtype)
        if (np.isfinite(exact) & ~np.isfinite(new.astype(np.float64))).any():
            return None
        scaled[node, index] = ir.Tensor(new, dtype=old.dtype)
    return scaled


def replace_constant(graph: ir.Graph, node: ir.Node, index: int, tensor: ir.Tensor[Any]) -> None:
    """Give a node a constant of its own in the place of one that others may read."""
    name = f"{str(_present(node.inputs[index]).name).removesuffix(OWN)}{OWN}"
    while name in graph.initializers:
        name += "_"
    tensor.name = name
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
    graph.register_initializer(value)
    node.replace_input_with(index, value)
