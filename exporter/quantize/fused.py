"""Whether quantized sites stayed whole: what ONNX Runtime made of each, read from the graph that it optimized.

1. A site is the nodes that carry its name (`SITE_METADATA`) in our file, but for Q/DQ. ONNX Runtime drops metadata and renames
   what it makes up, and keeps the names of the other values: so a site's nodes in the optimized graph are those that lead
   to what the site gives, back to the first values that are known from our file and are not the site's own, or that a
   conversion gives. Where what the site gives is gone, fused into what comes behind, the first values behind it that are
   left stand for it.
2. The optimized graph has no types. Codes are what QuantizeLinear, the QLinear ops, a QGemm with an output scale and our tables
   give, 8-bit inputs and constants, and those that only moved since. All else is no code.
3. An island is a DequantizeLinear, QuantizeLinear or Cast directly in front of a site, inside or behind it. The edges of the
   graph are none: inputs become codes somewhere, and outputs numbers. Nor is what stands in front of a layer that the site is
   part of: there it is the layer's.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from actx.exporter.errors import UsageError
from actx.exporter.lower import SITE_METADATA
from actx.exporter.runtimes.onnxruntime import DEFAULT, RuntimeOptions, inference_session
from actx.exporter.runtimes.settings import OPTIMIZED_MODEL
from actx.exporter.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

_CODE_TYPES = frozenset({TensorProto.UINT8, TensorProto.INT8})
_Q_DQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_ISLANDS = _Q_DQ | {"DynamicQuantizeLinear", "Cast"}
_GIVE_CODES = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "Lut", "GatedLut", "QAttention"})
_GIVES_NUMBERS = "QLinearToFloat"
_LAYERS = frozenset({"QGemm", "QLinear", "QLinearConv", "QLinearMatMul"})
# What keeps the type of its first input.
_MOVES = frozenset(
    {
        "Concat", "Expand", "Flatten", "Gather", "GatherND", "Identity", "MaxPool", "NhwcMaxPool", "Pad", "Reshape", "Resize",
        "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_SCALE_OF_QGEMM = 7  # among its inputs: without one it gives float32 (ONNX Runtime, contrib operators)


@dataclass(frozen=True)
class SiteFusion:
    """What a site is in the optimized graph.

    Attributes:
        site: its name.
        op_types: of its nodes, in the order they run; one of a linear op where the site was fused into it; empty where nothing
            is left that depends on the site.
        integer_in: whether all that it reads is 8-bit codes, constants aside.
        integer_out: whether what it gives is.
        islands: what converts beside it: "DequantizeLinear in front".
    """

    site: str
    op_types: tuple[str, ...]
    integer_in: bool
    integer_out: bool
    islands: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it is one node between codes, with nothing that converts beside it."""
        return len(self.op_types) == 1 and self.integer_in and self.integer_out and not self.islands

    def __str__(self) -> str:
        """Say it in a line, for a table: "Lut: codes in, codes out"."""
        ops = "+".join(self.op_types) or "nothing is left of it"
        reads, gives = ("codes" if integer else "floats" for integer in (self.integer_in, self.integer_out))
        return ", ".join([f"{ops}: {reads} in, {gives} out", *self.islands])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "op_types": list(self.op_types), "islands": list(self.islands), "whole": self.whole}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> SiteFusion:
        """Return what `to_dict` gave."""
        return cls(
            str(entry["site"]),
            tuple(entry["op_types"]),
            bool(entry["integer_in"]),
            bool(entry["integer_out"]),
            tuple(entry["islands"]),
        )


def inspect_fused(model: Path, sites: Sequence[str], options: RuntimeOptions = DEFAULT) -> tuple[SiteFusion, ...]:
    """Open a graph in ONNX Runtime and tell what became of its sites, in the order given.

    Args:
        model: the ``.onnx`` file that we wrote, with the names of sites in its nodes' metadata.
        sites: names of those that were quantized.
        options: how it is opened: other optimizations give another graph.

    Raises:
        UsageError: no node of the file has the name of a site.
        ActxError: the file cannot be opened.
    """
    written = onnx.load(model, load_external_data=False).graph
    own = _values_of_sites(written)
    unknown = [name for name in sites if name not in own]
    if unknown:
        raise UsageError(
            f"{model} has no site {unknown[0]!r}",
            note=f"it has {', '.join(list(own)[:5]) or 'none'}",
            remedy="Take the names from the manifest.",
        )
    before, after = _Graph(written), _Graph(optimized_graph(model, options))
    return tuple(_fusion(name, own[name], before, after) for name in sites)


def optimized_graph(model: Path, options: RuntimeOptions) -> onnx.GraphProto:
    """Return the graph that ONNX Runtime makes of a model, without weights.

    Raises:
        ActxError: the file cannot be opened.
    """
    with scratch() as folder:
        inference_session(model, options, trace=folder).end_profiling()
        return onnx.load(folder / OPTIMIZED_MODEL, load_external_data=False).graph


def _values_of_sites(graph: onnx.GraphProto) -> dict[str, set[str]]:
    """1. Return the values that the nodes of each site give."""
    found: dict[str, set[str]] = defaultdict(set)
    for node in graph.node:
        names = [entry.value for entry in node.metadata_props if entry.key == SITE_METADATA]
        if names and node.op_type not in _Q_DQ:
            found[names[0]].update(node.output)
    return dict(found)


class _Graph:
    """Who gives and who reads each value."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.producers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(self.nodes):
            for name in node.input:
                self.readers[name].append(i)
        self.constants = {tensor.name for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input} - self.constants
        self.outputs = {value.name for value in graph.output}
        self.codes = self._codes(graph)

    def _codes(self, graph: onnx.GraphProto) -> set[str]:
        """2."""
        found = {value.name for value in graph.input if value.type.tensor_type.elem_type in _CODE_TYPES}
        found |= {tensor.name for tensor in graph.initializer if tensor.data_type in _CODE_TYPES}
        for node in self.nodes:
            if _gives_codes(node) or (node.op_type in _MOVES and node.input[0] in found):
                found.add(node.output[0])
        return found

    def knows(self, name: str) -> bool:
        return name in self.producers or name in self.inputs or name in self.constants

    def read(self, nodes: Iterable[int]) -> Iterator[str]:
        """Yield what nodes read that is computed or fed."""
        return (name for i in nodes for name in self.nodes[i].input if name and name not in self.constants)


def _gives_codes(node: onnx.NodeProto) -> bool:
    if node.op_type == "QGemm":
        return len(node.input) > _SCALE_OF_QGEMM and bool(node.input[_SCALE_OF_QGEMM])
    is_qlinear = node.op_type.startswith("QLinear") and node.op_type != _GIVES_NUMBERS
    return is_qlinear or node.op_type in _GIVE_CODES


def _fusion(site: str, own: set[str], before: _Graph, after: _Graph) -> SiteFusion:
    ends = list(
        dict.fromkeys(end for name in sorted(own) if _leaves(name, own, before) for end in _left(name, before, after))
    )
    nodes = _nodes(ends, own, before, after)
    inside = {name for i in nodes for name in after.nodes[i].output}
    starts = [name for name in after.read(nodes) if name not in inside]
    return SiteFusion(
        site,
        tuple(after.nodes[i].op_type for i in nodes),
        bool(starts) and all(name in after.codes for name in starts),
        bool(ends) and all(name in after.codes for name in ends),
        tuple(_islands(after, nodes, ends)),
    )


def _leaves(name: str, own: set[str], graph: _Graph) -> bool:
    """Tell whether a value of the site is read by others."""
    return name in graph.outputs or any(own.isdisjoint(graph.nodes[i].output) for i in graph.readers[name])


def _left(name: str, before: _Graph, after: _Graph) -> list[str]:
    """1. Return a value of our file, or the first ones behind it, that the optimized graph computes."""
    queue, seen, found = [name], {name}, []
    while queue:
        current = queue.pop(0)
        if current in after.producers:
            found.append(current)
            continue
        behind = [given for i in before.readers[current] for given in before.nodes[i].output if given not in seen]
        seen.update(behind)
        queue += behind
    return found


def _nodes(ends: Sequence[str], own: set[str], before: _Graph, after: _Graph) -> list[int]:
    """1. Return the places of the nodes that lead to the ends."""
    queue, found = list(ends), set[int]()
    while queue:
        i = after.producers.get(queue.pop())
        if i is not None and i not in found:
            found.add(i)
            queue += [name for name in after.nodes[i].input if name in own or _is_made_up(name, before, after)]
    return sorted(found)


def _is_made_up(name: str, before: _Graph, after: _Graph) -> bool:
    """Tell whether ONNX Runtime brought a value up inside a site; what converts stands in front of it."""
    i = after.producers.get(name)
    return i is not None and not before.knows(name) and after.nodes[i].op_type not in _ISLANDS


def _islands(graph: _Graph, nodes: Sequence[int], ends: Sequence[str]) -> Iterator[str]:
    """3."""
    places = set(nodes)
    own = [i for i in nodes if graph.nodes[i].op_type not in _LAYERS]
    front = [i for name in graph.read(own) if (i := graph.producers.get(name)) is not None and i not in places]
    behind = [i for name in ends for i in graph.readers[name] if i not in places]
    for where, found in (("in front", front), ("inside", nodes), ("behind", behind)):
        for op in dict.fromkeys(graph.nodes[i].op_type for i in found if _is_island(graph, i)):
            yield f"{op} {where}"


def _is_island(graph: _Graph, i: int) -> bool:
    node = graph.nodes[i]
    at_an_edge = node.input[0] in graph.inputs or not graph.outputs.isdisjoint(node.output)
    return node.op_type in _ISLANDS and not at_an_edge
