"""Cut a graph at its linear layers and sites, so that each part can be run on what other models give it.

1. The cuts are the inputs and outputs of linear layers and of sites, and the graph's outputs. A layer's bias belongs to it.
2. A cut must be a value of every model that is looked at, by its name, and a float tensor. What has no such cut around it is
   a part of the segment behind it: both layers and the function of a packed FFN, for one.
3. A slope that was folded into the layers around a site scales all values between them. They are compared as so many times
   the original's.
4. Of a site behind which layers were refitted, the values between the layers around it are no cuts: its form may have been
   moved, and the layers make good what it does. It is one segment with them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from actx.exporter.lift.naming import module_path
from actx.exporter.lift.ops import LAYERS, LAYOUT, MUL, SUMS, op_of, tensor_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from actx.exporter.lift import Site

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Changed:
    """A site of the original, and what was done around it.

    Attributes:
        site: it.
        scale: its values are so many times the original's (see `Placement`).
        refitted: whether layers behind it were.
    """

    site: Site
    scale: float = 1.0
    refitted: bool = False


@dataclass(frozen=True)
class Segment:
    """What computes one cut from the cuts before it.

    Attributes:
        name: of the site in it, else of the module of its layer, or of the last node.
        kind: which of these.
        node: name of the layer's node, else of the last product, else of the last node. Its name too where the module has
            several segments.
        output: name of the value that it gives, in every model.
        scale: in the models that were rewritten that is so many times the original's.
    """

    name: str
    kind: Literal["site", "layer", "other"]
    node: str
    output: str
    scale: float = 1.0

    @property
    def fed(self) -> str:
        """The input that stands for its output in what reads it (see `feed`)."""
        return f"{self.output}/actx/fed"


def segments(model: ir.Model, changed: Sequence[Changed], held: Collection[str]) -> tuple[Segment, ...]:
    """Return the segments of a model, in the order of the graph.

    Args:
        model: the original.
        changed: its sites.
        held: names of the values that every other model has too.
    """
    graph = model.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    hidden: set[ir.Value] = set()
    scales: dict[ir.Value, float] = {}
    for one in changed:
        if one.refitted:
            hidden.update(_around(one.site, values))  # 4.
        elif one.scale != 1:
            scales.update(dict.fromkeys(_around(one.site, values), one.scale))  # 3.
    ends = {value for node in graph if _is_layer(node) for value in (node.inputs[0], _output(node))}
    ends |= {values[name] for one in changed for name in (one.site.input, one.site.output) if name in values}
    ends |= set(graph.outputs)
    cuts = [
        value
        for value in values.values()
        if value in ends - hidden and value.dtype in _FLOATS and value.name in held  # 1. and 2.
    ]
    owners = {name: one.site.name for one in changed for name in one.site.values}
    found = [_segment(value, set(cuts), owners, scales.get(value, 1.0)) for value in cuts]
    return tuple(_unique(part, found) for part in found)


def feed(model: ir.Model, parts: Sequence[Segment]) -> ir.Model:
    """Return a model that computes the output of every segment from what it is fed for those of the others.

    Its inputs are the model's own and one per segment, `Segment.fed`; its outputs are the segments'. The model is not changed.
    """
    apart = model.clone()
    graph = apart.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    graph.outputs.clear()
    for part in parts:
        value = values[part.output]
        stand_in = ir.Value(name=part.fed, type=value.type, shape=value.shape)
        ir.convenience.replace_all_uses_with(value, stand_in)
        graph.inputs.append(stand_in)
        graph.outputs.append(value)
    RemoveUnusedNodesPass()(apart)
    return apart


def _is_layer(node: ir.Node) -> bool:
    return op_of(node) in LAYERS and len(node.inputs) > 1 and tensor_of(node.inputs[1]) is not None


def _output(layer: ir.Node) -> ir.Value:
    """Return what a layer gives, its bias included."""
    output = layer.outputs[0]
    readers = output.consumers()
    biased = len(readers) == 1 and op_of(readers[0]) in SUMS and not output.is_graph_output()
    if biased and any(tensor_of(value) is not None for value in readers[0].inputs):
        return readers[0].outputs[0]
    return output


def _around(site: Site, values: Mapping[str, ir.Value]) -> Iterator[ir.Value]:
    """Yield the values between the layers around a site, but for those that it computes within."""
    before: ir.Value | None = values.get(site.input)
    while before is not None:
        yield before
        node = before.producer()
        before = next(iter(_variables(node)), None) if node is not None and _passes(node, SUMS) else None
    behind = [values[site.output]]
    while behind:
        value = behind.pop()
        yield value
        behind += [output for node in value.consumers() if _passes(node, {MUL}) for output in node.outputs]


def _passes(node: ir.Node, ops: Collection[tuple[str, str]]) -> bool:
    """Tell whether what a node gives has the scale of what it reads: a change of layout, or a sum or product of its kind."""
    constants = sum(tensor_of(value) is not None for value in node.inputs)
    return op_of(node) in LAYOUT or (op_of(node) in ops and constants == (1 if op_of(node) in SUMS else 0))


def _variables(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and tensor_of(value) is None]


def _segment(value: ir.Value, cuts: Collection[ir.Value], owners: Mapping[str, str], scale: float) -> Segment:
    """Name a segment after what is in it."""
    nodes = list(_inside(value, cuts))
    sites = [owners[name] for node in nodes for output in node.outputs if (name := str(output.name)) in owners]
    layers = [node for node in nodes if _is_layer(node)]
    products = [node for node in nodes if op_of(node) in LAYERS]  # of two activations too
    last = (layers or products or nodes)[0]
    node = str(last.name or last.outputs[0].name)
    if sites:
        return Segment(sites[0], "site", node, str(value.name), scale)
    return Segment((module_path(last) or [node])[-1], "layer" if layers else "other", node, str(value.name), scale)


def _unique(part: Segment, others: Sequence[Segment]) -> Segment:
    """Call a segment after its node where its module has another one of its rank: a site, then layers, then the rest."""
    ranks = ("site", "layer", "other")
    known = ranks[: ranks.index(part.kind) + 1]
    shared = sum(other.name == part.name for other in others if other.kind in known) > 1
    return replace(part, name=part.node) if shared and part.kind != "site" else part


def _inside(value: ir.Value, cuts: Collection[ir.Value]) -> Iterator[ir.Node]:
    """Yield the nodes that compute a cut from other cuts, the last one first."""
    queue, seen = [value], {value}
    while queue:
        node = queue.pop().producer()
        if node is None:
            continue
        yield node
        new = [read for read in _variables(node) if read not in cuts and read not in seen]
        seen.update(new)
        queue += new
