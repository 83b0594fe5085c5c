"""Latency of an artifact against its original, and where the time goes, node by node.

1. Three sessions take part: the original (A), the artifact (B) and the original again (A'). Every round runs each once
   on one batch, in an order drawn from a seeded generator, so that drifts of the machine hit all three alike.
2. The round's log ratio is (log A + log A')/2 - log B, its noise log A - log A'. The median of either over the rounds
   is reported with a 95 % percentile-bootstrap interval (Efron and Tibshirani, An Introduction to the Bootstrap,
   chapter 13).
3. The noise band is the end of the A/A' interval that is farther from 0. The artifact is `faster` or `slower` only if
   the interval of its log ratio excludes 0 and the median lies outside the noise band. Below 6 rounds no interval for a
   median reaches 95 %, and the verdict is always `no difference`.
4. The time per node comes from a separate run under ONNX Runtime's profiler, which costs time itself and counts whole
   microseconds: shares are of the sum over nodes, and say where time goes rather than how much there is.
"""

from __future__ import annotations

import gc
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import onnx

from actx.exporter import runtime
from actx.exporter.collection import no_garbage_collection
from actx.exporter.data import Arrays, Data, cast_feeds
from actx.exporter.errors import UsageError
from actx.exporter.metrics import json_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.exporter.runtime import RuntimeOptions, Session

Progress: TypeAlias = Callable[[int, int], None]
Verdict: TypeAlias = Literal["faster", "slower", "no difference"]

MIN_ROUNDS = 6  # 2 * 0.5**6 < 5 %: the least for which the sign of every round can be evidence
_BOOTSTRAP = 2000
_LARGEST_POOL = 8  # batches that the rounds cycle through: all are held in memory
_CAST_PREFIX = "InsertedPrecisionFreeCast_"
# An activation that the runtime folded into one of these cannot be timed apart from it.
_LINEAR = ("Conv", "Gemm", "MatMul", "Attention", "LSTM", "GRU", "MoE")
# What the runtime inserts to change a layout, a type or a device.
_MOVES = ("ReorderInput", "ReorderOutput", "Transpose", "Cast", "MemcpyFromHost", "MemcpyToHost")


@dataclass(frozen=True)
class Latency:
    """Latency of one session in milliseconds, over `runs` runs.

    Attributes:
        throughput: samples per second.
    """

    runs: int
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    throughput: float


@dataclass(frozen=True)
class Comparison:
    """How the artifact compares with the original; ratios are original / artifact, so above 1 is faster.

    Attributes:
        verdict: see the module's docstring, rule 3.
        ratio: of the medians.
        paired_ratio: median over rounds of the ratio within a round.
        interval: 95 % interval of `paired_ratio`.
        aa_ratio: the same for the original against itself, which would be 1 without noise.
        noise: the noise band as a ratio >= 1: what lies between 1/noise and noise is no difference.
    """

    verdict: Verdict
    ratio: float
    paired_ratio: float
    interval: tuple[float, float]
    aa_ratio: float
    noise: float


@dataclass(frozen=True)
class NodeTime:
    """Time of one node of the optimized graph.

    Attributes:
        name: the node's name in the optimized graph, or "OP_INDEX" where it has none.
        op_type: the operator, as optimized.
        microseconds_per_run: mean over runs, without the nodes of its subgraphs.
        share: of the sum over all nodes; None where that is 0.
        site: the site it belongs to, or None.
    """

    name: str
    op_type: str
    microseconds_per_run: float
    share: float | None
    site: str | None


@dataclass(frozen=True)
class Breakdown:
    """Time per node of one model.

    Attributes:
        nodes: all nodes, in the order they run.
        sites: share of every site that was asked for; None, not measured, where none of its nodes is left because it
            was folded into a linear op, removed, or lies in a subgraph. Where a bias was fused into an activation, its
            time is in the share.
        activation_share: share of all sites that could be measured together; None, not measured, where none could.
        runs: number of runs measured.
        shapes: shapes of the inputs.
    """

    nodes: tuple[NodeTime, ...]
    sites: dict[str, float | None]
    activation_share: float | None
    runs: int
    shapes: dict[str, tuple[int, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: null for what was not measured."""
        return json_values(asdict(self))


@dataclass(frozen=True)
class LatencyReport:
    """What was measured.

    Attributes:
        original, artifact, original_again: latency of the three sessions.
        comparison: the verdict and its evidence.
        original_nodes, artifact_nodes: time per node.
        runs, warmup: rounds measured, and rounds before them.
        shapes: the input shapes of every batch that the rounds cycled through.
        batch_sizes: their numbers of samples.
        synthetic: whether the data was random.
        source: where the data came from.
        notes: what was done to the data, and what limits the verdict.
        runtime: versions, machine and options.
    """

    original: Latency
    artifact: Latency
    original_again: Latency
    comparison: Comparison
    original_nodes: Breakdown
    artifact_nodes: Breakdown
    runs: int
    warmup: int
    shapes: tuple[dict[str, tuple[int, ...]], ...]
    batch_sizes: tuple[int, ...]
    synthetic: bool
    source: str
    notes: tuple[str, ...]
    runtime: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: null for what was not measured."""
        return json_values(asdict(self))


def profile(
    original: Path,
    artifact: Path,
    data: Data,
    *,
    options: RuntimeOptions = runtime.DEFAULT,
    runs: int = 50,
    warmup: int = 5,
    owners_original: Mapping[str, str] | None = None,
    owners_artifact: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LatencyReport:
    """Measure both models, interleaved in this process, on the first batches of the data (8 at most).

    Args:
        original: the model before.
        artifact: the model after.
        data: made for the original's inputs; cast to the artifact's where these differ.
        options: how to run both. Idle threads are stopped between runs whatever they say, because several sessions
            take turns.
        runs: rounds to measure.
        warmup: rounds before them.
        owners_original: the site of every value that a site computes, by the value's name in the original.
        owners_artifact: likewise in the artifact.
        seed: of the order within rounds and of the bootstrap.
        progress: called as ``progress(rounds done, rounds to do)``.

    Raises:
        UsageError: `runs` is below 1 or `warmup` below 0.
        ActxError: a model cannot be opened or run.
    """
    if runs < 1 or warmup < 0:
        msg = "at least one run, and no negative warm-up, is needed"
        raise UsageError(msg, note=f"got {runs} runs, {warmup} for warm-up")
    options = replace(options, spin_between_runs=False)
    batches = list(islice(data.batches(), _LARGEST_POOL))
    sessions = [runtime.open_session(model, options) for model in (original, artifact, original)]
    feeds = [[cast_feeds(batch.feeds, runtime.input_specs(session)) for batch in batches] for session in sessions]
    rng = np.random.default_rng(seed)
    times = _interleaved(sessions, feeds, runs=runs, warmup=warmup, rng=rng, progress=progress)
    samples = sum(batches[i % len(batches)].samples for i in range(runs))
    first, second, again = (summarize(row, samples) for row in times)
    del sessions
    return LatencyReport(
        original=first,
        artifact=second,
        original_again=again,
        comparison=compare_latency(times[0], times[1], times[2], seed=seed),
        original_nodes=node_times(original, feeds[0][0], owners_original or {}, options, runs=min(runs, 20)),
        artifact_nodes=node_times(artifact, feeds[1][0], owners_artifact or {}, options, runs=min(runs, 20)),
        runs=runs,
        warmup=warmup,
        shapes=tuple(_shapes(batch.feeds) for batch in batches),
        batch_sizes=tuple(batch.samples for batch in batches),
        synthetic=data.synthetic,
        source=data.source,
        notes=(*data.notes, *_notes(runs)),
        runtime=runtime.describe_runtime(options),
    )


def summarize(nanoseconds: NDArray[np.int64], samples: int) -> Latency:
    """Return the statistics of one session's times; `samples` is what all its runs processed together."""
    milliseconds = np.asarray(nanoseconds, dtype=np.float64) / 1e6
    p50, p90, p95, p99 = (float(p) for p in np.percentile(milliseconds, (50, 90, 95, 99)))
    total = float(milliseconds.sum()) / 1e3
    throughput = samples / total if total else math.inf
    low, mean = float(milliseconds.min()), float(milliseconds.mean())
    return Latency(len(milliseconds), low, p50, p90, p95, p99, mean, throughput)


def compare_latency(
    original: NDArray[np.int64], artifact: NDArray[np.int64], original_again: NDArray[np.int64], *, seed: int = 0
) -> Comparison:
    """Judge paired times by rules 2 and 3.

    Args:
        original: nanoseconds, shape (rounds,).
        artifact: likewise; element i of each is from round i.
        original_again: likewise.
        seed: of the bootstrap.
    """
    # A clock tick is the least that could have been read: 0 has no logarithm.
    a, b, again = (
        np.log(np.maximum(np.asarray(row, dtype=np.float64), 1.0)) for row in (original, artifact, original_again)
    )
    center, low, high = _median_interval((a + again) / 2 - b, seed)
    aa, aa_low, aa_high = _median_interval(a - again, seed)
    noise = max(abs(aa_low), abs(aa_high))
    verdict: Verdict = "no difference"
    if len(a) >= MIN_ROUNDS and abs(center) > noise and (low > 0 or high < 0):
        verdict = "faster" if center > 0 else "slower"
    ratio = math.exp(float(np.median(np.concatenate([a, again])) - np.median(b)))
    return Comparison(verdict, ratio, math.exp(center), (math.exp(low), math.exp(high)), math.exp(aa), math.exp(noise))


def node_times(
    model: Path,
    feeds: Arrays,
    owners: Mapping[str, str],
    options: RuntimeOptions = runtime.DEFAULT,
    *,
    runs: int = 20,
    warmup: int = 3,
) -> Breakdown:
    """Run a model under ONNX Runtime's profiler and map its nodes to sites.

    The optimized graph that ran tells the outputs of every node, so that a node fused from a site's nodes is found by
    the value it computes. Values that the runtime itself introduced belong to the site that all their consumers belong
    to. A node that it inserted to change a layout, a type or a device belongs to none. Profile and graph are written to
    a temporary folder and deleted.

    Args:
        model: the ``.onnx`` file.
        feeds: one array per input.
        owners: the site of every value that a site computes, by the value's name in the model.
        options: how to run it.
        runs: runs to measure.
        warmup: runs before them.

    Raises:
        UsageError: `runs` is below 1 or `warmup` below 0.
        ActxError: the model cannot be opened or run.
    """
    if runs < 1 or warmup < 0:
        msg = "at least one run, and no negative warm-up, is needed"
        raise UsageError(msg, note=f"got {runs} runs, {warmup} for warm-up")
    with tempfile.TemporaryDirectory(prefix="actx-profile-") as folder:
        trace = Path(folder)
        session = runtime.open_session(model, options, trace=trace)
        try:
            for _ in range(warmup + runs):
                runtime.run(session, feeds)
        finally:
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load(trace / runtime.OPTIMIZED_MODEL, load_external_data=False).graph
    measured = _runs(events)[-runs:]
    return _breakdown(measured, _node_sites(graph, measured, _known_values(model), owners), owners, _shapes(feeds))


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


def _interleaved(
    sessions: Sequence[Session],
    feeds: Sequence[Sequence[Arrays]],
    *,
    runs: int,
    warmup: int,
    rng: np.random.Generator,
    progress: Progress | None,
) -> NDArray[np.int64]:
    """Rule 1: return nanoseconds, shape (sessions, runs)."""
    times = np.zeros((len(sessions), runs), dtype=np.int64)
    for session, batches in zip(sessions, feeds, strict=True):
        for batch in batches:
            runtime.run(session, batch)  # with its checks, and every shape is allocated for once
    gc.collect()
    with no_garbage_collection():
        for index in range(-warmup, runs):
            for which in rng.permutation(len(sessions)):
                batch = feeds[which][index % len(feeds[which])]
                start = time.perf_counter_ns()
                sessions[which].run(None, batch)
                elapsed = time.perf_counter_ns() - start
                if index >= 0:
                    times[which, index] = elapsed
            if progress is not None:
                progress(index + warmup + 1, runs + warmup)
    return times


def _median_interval(values: NDArray[np.float64], seed: int) -> tuple[float, float, float]:
    """Return the median and the ends of its 95 % percentile-bootstrap interval."""
    rng = np.random.default_rng(seed)
    draws = values[rng.integers(0, len(values), (_BOOTSTRAP, len(values)))]
    low, high = np.percentile(np.median(draws, axis=1), (2.5, 97.5))
    return float(np.median(values)), float(low), float(high)


def _notes(runs: int) -> tuple[str, ...]:
    few = f"{runs} rounds are too few to show a difference; {MIN_ROUNDS} are the least"
    return (few,) if runs < MIN_ROUNDS else ()


def _shapes(feeds: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}


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
    if any(linear in node.op_type for linear in _LINEAR):
        return None
    for output in node.output:
        name = _name(output, names)
        if name in names:
            return owners.get(name)
        users = consumers.get(output, set())
        if len(users) == 1:
            return next(iter(users))
    return None


def _breakdown(
    runs: Sequence[Sequence[_Event]],
    sites: Mapping[_Node, str],
    owners: Mapping[str, str],
    shapes: dict[str, tuple[int, ...]],
) -> Breakdown:
    totals: dict[_Node, int] = defaultdict(int)
    for event in (event for run in runs for event in run):
        totals[event.node] += event.microseconds
    everything = sum(totals.values())
    nodes = tuple(
        NodeTime(
            node.name, node.op_type, total / len(runs), total / everything if everything else None, sites.get(node)
        )
        for node, total in totals.items()
    )
    shares: dict[str, float | None] = dict.fromkeys(owners.values())
    for node in nodes:
        if node.site is not None and node.share is not None:
            shares[node.site] = (shares[node.site] or 0.0) + node.share
    measured = [share for share in shares.values() if share is not None]
    return Breakdown(nodes, shares, sum(measured) if measured else None, len(runs), shapes)
