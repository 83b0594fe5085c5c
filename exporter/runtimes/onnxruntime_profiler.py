"""Where the time goes in ONNX Runtime, node by node.

It comes from a run of its own under ONNX Runtime's profiler, which costs time itself and counts whole microseconds: shares are
of the sum over nodes, and say where time goes rather than how much there is.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import onnx

from actx.exporter.errors import UsageError
from actx.exporter.runtimes.base import Breakdown, breakdown
from actx.exporter.runtimes.settings import OPTIMIZED_MODEL
from actx.exporter.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from actx.exporter.data import Arrays

_SECONDS, _FEWEST_RUNS = 10, 3
_CAST_PREFIX = "InsertedPrecisionFreeCast_"
# An activation that the runtime folded into one of these cannot be timed apart from it.
_LINEAR = ("Conv", "Gemm", "MatMul", "Attention", "LSTM", "GRU", "MoE")
_OWN_LINEAR = frozenset({"QAttention", "QLinear", "QLinearToFloat"})
# What the runtime inserts to change a layout, a type or a device.
_MOVES = ("ReorderInput", "ReorderOutput", "Transpose", "Cast", "MemcpyFromHost", "MemcpyToHost")


class Profiled(Protocol):
    """A session whose runs are profiled."""

    def run(self, feeds: Arrays) -> Arrays:
        """Run once."""

    def end_profiling(self) -> Path:
        """Return the file with the profile."""


def node_times(
    open_profiled: Callable[[Path], Profiled],
    model: Path,
    feeds: Arrays,
    owners: Mapping[str, str],
    *,
    runs: int,
    warmup: int,
) -> Breakdown:
    """Run a model under ONNX Runtime's profiler and map its nodes to sites.

    The optimized graph that ran tells the outputs of every node, so that a node fused from a site's nodes is found by
    the value it computes. Values that the runtime itself introduced belong to the site that all their consumers belong
    to. A node that it inserted to change a layout, a type or a device belongs to none. Profile and graph are written to
    a temporary folder and deleted.

    Args:
        open_profiled: opens the model, given an empty folder for the profile and the optimized graph (without weights).
        model: the ``.onnx`` file.
        feeds: one array per input.
        owners: the site of every value that a site computes, by the value's name in the model.
        runs: runs to measure; of a model that takes long, as many as begin within 10 s, and 3 at least.
        warmup: runs before them.

    Raises:
        UsageError: `runs` is below 1 or `warmup` below 0.
        ActxError: the model cannot be opened or run.
    """
    if runs < 1 or warmup < 0:
        msg = "at least one run, and no negative warm-up, is needed"
        raise UsageError(msg, note=f"got {runs} runs, {warmup} for warm-up", remedy="Give larger numbers.")
    with scratch() as folder:
        trace = folder
        session = open_profiled(trace)
        try:
            for _ in range(warmup):
                session.run(feeds)
            begin, done = time.monotonic(), 0
            while done < runs and (done < _FEWEST_RUNS or time.monotonic() - begin < _SECONDS):
                session.run(feeds)
                done += 1
        finally:
            events = session.end_profiling().read_bytes()
        graph = (trace / OPTIMIZED_MODEL).read_bytes()
    return read_trace(events, graph, model, feeds, owners, runs=done)


def read_trace(
    events: bytes, graph: bytes, model: Path, feeds: Arrays, owners: Mapping[str, str], *, runs: int
) -> Breakdown:
    """Map what ONNX Runtime's profiler wrote to sites (see `node_times`).

    Args:
        events: the profile.
        graph: the optimized graph, without weights.
        model: as in `node_times`.
        feeds: likewise.
        owners: likewise.
        runs: the last runs that count.
    """
    measured = _runs(json.loads(events))[-runs:]
    sites = _node_sites(onnx.load_from_string(graph).graph, measured, _known_values(model), owners)
    shapes = {name: array.shape for name, array in feeds.items()}
    return breakdown(_mean_times(measured, sites), owners, len(measured), shapes)


class _Node(NamedTuple):
    """What tells a node from every other one in all runs; a subgraph may repeat the names and numbers of its graph."""

    name: str
    op_type: str
    number: str
    nested: bool


class _Event(NamedTuple):
    """One node in one run, with the microseconds that it took itself."""

    node: _Node
    microseconds: int


def _runs(events: Sequence[Mapping[str, Any]]) -> list[list[_Event]]:
    """Sort the node events into runs, in order of time, and take the time of nested nodes off the outer ones."""
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["cat"] == "Session" and e["name"] == "model_run")
    nodes = sorted(
        (e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")),
        key=lambda e: (e["ts"], -e["dur"]),
    )
    return [_self_times([e for e in nodes if start <= e["ts"] <= end]) for start, end in spans]


def _self_times(nodes: Sequence[Mapping[str, Any]]) -> list[_Event]:
    """Tell nested from outer nodes by their intervals: those of a subgraph run within the node that holds it."""
    own = [int(node["dur"]) for node in nodes]
    nested = [False] * len(nodes)
    stack: list[int] = []
    for i, node in enumerate(nodes):
        while stack and node["ts"] >= nodes[stack[-1]]["ts"] + nodes[stack[-1]]["dur"]:
            stack.pop()
        if stack:
            nested[i] = True
            own[stack[-1]] -= int(node["dur"])
        stack.append(i)
    return [
        _Event(_node(event, nested=inner), max(microseconds, 0))
        for event, microseconds, inner in zip(nodes, own, nested, strict=True)
    ]


def _node(event: Mapping[str, Any], *, nested: bool) -> _Node:
    args = event["args"]
    return _Node(event["name"].removesuffix("_kernel_time"), args["op_name"], args.get("node_index", ""), nested)


def _known_values(model: Path) -> dict[str, str]:
    """Return the op that computes each value of the model, empty for inputs and initializers."""
    graph = onnx.load(model, load_external_data=False).graph
    given = dict.fromkeys([value.name for value in (*graph.input, *graph.initializer)], "")
    return given | {name: node.op_type for node in graph.node for name in node.output}


def _node_sites(
    graph: onnx.GraphProto, runs: Sequence[Sequence[_Event]], known: Mapping[str, str], owners: Mapping[str, str]
) -> dict[_Node, str]:
    """Return the site of every node that belongs to one.

    The graph is stored in the order in which it runs, and many nodes have no name: they are matched by position, in the
    first run whose sequence of ops is the graph's. Where none is, nothing is attributed.
    """
    sites = _sites_of_outputs(graph, known, owners)
    stored = [node.op_type for node in graph.node]
    orders = ([event.node for event in run if not event.node.nested] for run in runs)
    order: list[_Node] = next((nodes for nodes in orders if [node.op_type for node in nodes] == stored), [])
    found = {
        ran: next((sites[name] for name in node.output if name in sites), None)
        for ran, node in zip(order, graph.node, strict=False)
    }
    return {node: site for node, site in found.items() if site is not None}


def _sites_of_outputs(graph: onnx.GraphProto, known: Mapping[str, str], owners: Mapping[str, str]) -> dict[str, str]:
    """Return the site of every value of the optimized graph that is computed for one, and not by a linear op or a move.

    What a move takes is what it gives: the model's name for a value may be behind it.
    """
    consumers: dict[str, set[str | None]] = defaultdict(set)
    for value in graph.output:
        consumers[value.name].add(None)
    names = {name: name for name in known}
    sites: dict[str, str] = {}
    for node in reversed(graph.node):
        if _is_inserted(node, known):
            names.setdefault(node.input[0], _name(node.output[0], names))
            consumers[node.input[0]] |= consumers[node.output[0]]
            continue
        site = _site_of(node, names, owners, consumers)
        if site is not None:
            sites.update(dict.fromkeys(node.output, site))
        for name in node.input:
            consumers[name].add(site)
    return sites


def _is_inserted(node: onnx.NodeProto, known: Mapping[str, str]) -> bool:
    """Tell whether a node moves data, and the model has no such node in its place."""
    return node.op_type in _MOVES and known.get(node.output[0]) != node.op_type


def _name(value: str, names: Mapping[str, str]) -> str:
    """Return the model's name for a value of the optimized graph, or its own where the model has none."""
    return names.get(value, value.removeprefix(_CAST_PREFIX))


def _site_of(
    node: onnx.NodeProto, names: Mapping[str, str], owners: Mapping[str, str], consumers: Mapping[str, set[str | None]]
) -> str | None:
    if node.op_type in _OWN_LINEAR or any(linear in node.op_type for linear in _LINEAR):
        return None
    for output in node.output:
        name = _name(output, names)
        if name in names:
            return owners.get(name)
        users = consumers.get(output, set())
        if len(users) == 1:
            return next(iter(users))
    return None


def _mean_times(
    runs: Sequence[Sequence[_Event]], sites: Mapping[_Node, str]
) -> list[tuple[str, str, float, str | None]]:
    totals: dict[_Node, int] = defaultdict(int)
    for event in (event for run in runs for event in run):
        totals[event.node] += event.microseconds
    return [(node.name, node.op_type, total / len(runs), sites.get(node)) for node, total in totals.items()]
