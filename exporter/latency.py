"""Latency of an artifact against its original, and where the time goes, node by node.

1. A round opens the original (A), the artifact (B) and the original again (A') anew, in an order drawn from a seeded
   generator. Where a session's memory happens to lie makes it up to a few percent faster or slower for its lifetime
   (Mytkowicz et al., Producing Wrong Data Without Doing Anything Obviously Wrong, ASPLOS 2009): what varies is repeated
   from there on (Kalibera and Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013).
2. Opening and the first run are timed. After one turn for warm-up come those that count. In a turn each session runs
   once on the round's batch, in an order drawn anew, so that drifts of the machine hit all three alike. Turns end when
   the two least times of each session are within 2 % of each other, or after 40 turns or 2 seconds, and not before 3.
3. A session's time in a round is the least of its turns: other processes only ever add to it (Chen and Revels, Robust
   Benchmarking in Noisy Environments, 2016). The round's log ratio is (log A + log A')/2 - log B, its noise is
   log A - log A'.
4. The medians of both over the rounds are reported, the first with its 95 % interval. Intervals lie between order
   statistics, which is exact whatever the distribution (Conover, Practical Nonparametric Statistics, section 3.2).
5. The noise band is the end of the 99 % interval of A/A' that is farther from 0. The artifact is `faster` or `slower`
   only if the interval of its log ratio excludes 0 and the median lies outside the noise band. Below 8 rounds no
   interval reaches 99 %, and the verdict is always `no difference`.
6. Unless their number is given, rounds end when both intervals are at most 2 % wide, or after 50 rounds or 20 seconds,
   and not before 8.
7. The time per node comes from a separate run under ONNX Runtime's profiler, which costs time itself and counts whole
   microseconds: shares are of the sum over nodes, and say where time goes rather than how much there is.
"""

from __future__ import annotations

import gc
import heapq
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

from actx.exporter import machine, runtime
from actx.exporter.collection import no_garbage_collection
from actx.exporter.data import Arrays, Data, cast_feeds
from actx.exporter.errors import UsageError
from actx.exporter.footprint import peak_memory
from actx.exporter.metrics import json_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.exporter.runtime import RuntimeOptions, Session

Progress: TypeAlias = Callable[[int, int], None]
Verdict: TypeAlias = Literal["faster", "slower", "no difference"]

# Rules 4 and 5.
_LEVEL = 0.95
_NOISE_LEVEL = 0.99
MIN_ROUNDS = 8  # 2 * 0.5**8 < 1 - _NOISE_LEVEL
# Rule 2.
_MIN_TURNS = 3
_MAX_TURNS = 40
_MAX_TURNS_NS = 2_000_000_000
_AGREEMENT = 0.02
# Rule 6.
_MAX_ROUNDS = 50
_MAX_ROUNDS_S = 20.0
_NARROW = 0.02
_BUSY = 0.5  # cores that others keep busy: more makes times doubtful
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
class Startup:
    """What it takes until a model has run once.

    Attributes:
        load: milliseconds to open it from a file that the system has cached, median over rounds.
        first_run: milliseconds of the first run of a session, median over rounds.
        peak_memory: bytes that a process of its own needs for both (see `footprint`); None where that is unknown.
    """

    load: float
    first_run: float
    peak_memory: int | None


@dataclass(frozen=True)
class Comparison:
    """How the artifact compares with the original; ratios are original / artifact, so above 1 is faster.

    Attributes:
        verdict: see the module's docstring, rule 5.
        ratio: of the medians over the rounds.
        paired_ratio: median over rounds of the ratio within a round.
        interval: 95 % interval of `paired_ratio`; below 6 rounds it has no ends.
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
        graph: file name of the artifact.
        original, artifact, original_again: latency of the three, over the runs of all rounds.
        original_startup, artifact_startup: time until they have run once, and memory.
        comparison: the verdict and its evidence.
        original_nodes, artifact_nodes: time per node.
        runs: rounds measured.
        shapes: the input shapes of every batch that the rounds cycled through.
        batch_sizes: their numbers of samples.
        synthetic: whether the data was random.
        source: where the data came from.
        notes: what was done to the data, and what limits the verdict.
        runtime: versions, machine and options; the load average before, and the cores that others kept busy meanwhile.
    """

    graph: str
    original: Latency
    artifact: Latency
    original_again: Latency
    original_startup: Startup
    artifact_startup: Startup
    comparison: Comparison
    original_nodes: Breakdown
    artifact_nodes: Breakdown
    runs: int
    shapes: tuple[dict[str, tuple[int, ...]], ...]
    batch_sizes: tuple[int, ...]
    synthetic: bool
    source: str
    notes: tuple[str, ...]
    runtime: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: null for what was not measured."""
        return json_values(asdict(self))


class Round(NamedTuple):
    """Nanoseconds of one round.

    Attributes:
        start: to open each session and to run it first, shape (sessions, 2).
        turns: of the runs after that, shape (sessions, turns).
    """

    start: NDArray[np.int64]
    turns: NDArray[np.int64]


def profile(
    original: Path,
    artifact: Path,
    data: Data,
    *,
    options: RuntimeOptions = runtime.DEFAULT,
    runs: int | None = None,
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
        options: how to run both. Whatever they say, idle threads are stopped between runs, because several sessions
            take turns, and threads are pinned.
        runs: rounds to measure; None for as many as rule 6 says.
        owners_original: the site of every value that a site computes, by the value's name in the original.
        owners_artifact: likewise in the artifact.
        seed: of the order within rounds.
        progress: called as ``progress(rounds done, rounds to do)``.

    Raises:
        UsageError: `runs` is below 1.
        ActxError: a model cannot be opened or run.
    """
    if runs is not None and runs < 1:
        msg = "at least one run is needed"
        raise UsageError(msg, note=f"got {runs} runs", remedy="Give --runs a larger number, or leave it out.")
    options = replace(options, spin_between_runs=False, pin_threads=True)
    load = machine.load_average()
    batches = list(islice(data.batches(), _LARGEST_POOL))
    pair = (original, artifact)
    inputs = [runtime.input_specs(runtime.open_session(model, options)) for model in pair]
    feeds = [[cast_feeds(batch.feeds, specs) for batch in batches] for specs in inputs]
    others = machine.Others()
    rng = np.random.default_rng(seed)

    def measure(index: int) -> Round:
        batch = [rows[index % len(rows)] for rows in (*feeds, feeds[0])]
        return _round((*pair, original), batch, options, rng)

    rounds = take_rounds(measure, runs, progress)
    busy = others.cores()
    samples = sum(batches[i % len(batches)].samples * done.turns.shape[1] for i, done in enumerate(rounds))
    first, second, again = (summarize(row, samples) for row in np.concatenate([done.turns for done in rounds], axis=1))
    starts = np.stack([done.start for done in rounds])
    startups = [_startup(starts[:, i], peak_memory(model, feeds[i][0], options)) for i, model in enumerate(pair)]
    described = runtime.describe_runtime(options) | {"load_average": load, "others_busy_cores": busy}
    return LatencyReport(
        graph=artifact.name,
        original=first,
        artifact=second,
        original_again=again,
        original_startup=startups[0],
        artifact_startup=startups[1],
        comparison=compare_latency(rounds),
        original_nodes=node_times(original, feeds[0][0], owners_original or {}, options),
        artifact_nodes=node_times(artifact, feeds[1][0], owners_artifact or {}, options),
        runs=len(rounds),
        shapes=tuple(_shapes(batch.feeds) for batch in batches),
        batch_sizes=tuple(batch.samples for batch in batches),
        synthetic=data.synthetic,
        source=data.source,
        notes=(*data.notes, *_round_notes(len(rounds)), *machine_notes(described)),
        runtime=described,
    )


def take_rounds(
    measure: Callable[[int], Round], runs: int | None = None, progress: Progress | None = None
) -> list[Round]:
    """Measure rounds: `runs` of them, or as many as rule 6 says.

    Args:
        measure: called with the number of the round.
        runs: how many; None for rule 6.
        progress: called as ``progress(rounds done, rounds to do)``.
    """
    rounds: list[Round] = []
    begin = time.monotonic()
    most = runs or _MAX_ROUNDS
    while len(rounds) < most:
        rounds.append(measure(len(rounds)))
        if runs is None and len(rounds) >= MIN_ROUNDS:
            late = time.monotonic() - begin > _MAX_ROUNDS_S
            most = len(rounds) if late or _is_narrow(rounds) else most
        if progress is not None:
            progress(len(rounds), most)
    return rounds


def take_turns(run: Callable[[int], int], sessions: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Let the sessions take turns as rule 2 says.

    Args:
        run: runs the session of that number and returns the nanoseconds.
        sessions: how many there are.
        rng: gives the order within each turn.

    Returns:
        The nanoseconds, shape (sessions, turns), without those of the first turn.
    """

    def turn() -> list[int]:
        times = {int(which): run(int(which)) for which in rng.permutation(sessions)}
        return [times[which] for which in range(sessions)]

    turn()
    turns = [turn() for _ in range(_MIN_TURNS)]
    while not _settled(turns):
        turns.append(turn())
    return np.array(turns, np.int64).T


def summarize(nanoseconds: NDArray[np.int64], samples: int) -> Latency:
    """Return the statistics of one session's times; `samples` is what all its runs processed together."""
    milliseconds = np.asarray(nanoseconds, dtype=np.float64) / 1e6
    p50, p90, p95, p99 = (float(p) for p in np.percentile(milliseconds, (50, 90, 95, 99)))
    total = float(milliseconds.sum()) / 1e3
    throughput = samples / total if total else math.inf
    low, mean = float(milliseconds.min()), float(milliseconds.mean())
    return Latency(len(milliseconds), low, p50, p90, p95, p99, mean, throughput)


def _startup(nanoseconds: NDArray[np.int64], peak: int | None) -> Startup:
    load, first_run = np.median(nanoseconds, axis=0) / 1e6
    return Startup(float(load), float(first_run), peak)


def compare_latency(rounds: Sequence[Round]) -> Comparison:
    """Judge the rounds of the original, the artifact and the original again by rules 3 to 5."""
    a, b, again = _least(rounds)
    (center, low, high), (aa, aa_low, aa_high) = _intervals(rounds)
    noise = max(abs(aa_low), abs(aa_high))
    verdict: Verdict = "no difference"
    if abs(center) > noise and (low > 0 or high < 0):
        verdict = "faster" if center > 0 else "slower"
    ratio = math.exp(float(np.median([a, again]) - np.median(b)))
    return Comparison(verdict, ratio, math.exp(center), (math.exp(low), math.exp(high)), math.exp(aa), math.exp(noise))


def machine_notes(described: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what makes times doubtful, from the `runtime` of a report."""
    notes = []
    busy = described["others_busy_cores"]
    if busy is not None and busy > _BUSY:
        notes.append(
            f"other processes kept {busy:.1f} of {described['cores']} cores busy: times are longer than on a quiet machine"
        )
    varying = sorted({*described["governors"]} - {"performance", machine.UNKNOWN})
    if varying:
        notes.append(f"the CPU governor is {', '.join(varying)}, not performance: the clock may have changed meanwhile")
    return tuple(notes)


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
        raise UsageError(msg, note=f"got {runs} runs, {warmup} for warm-up", remedy="Give larger numbers.")
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


def _round(models: Sequence[Path], feeds: Sequence[Arrays], options: RuntimeOptions, rng: np.random.Generator) -> Round:
    """Measure one round: rules 1 and 2."""
    start = np.zeros((len(models), 2), np.int64)
    sessions: dict[int, Session] = {}

    def run(which: int) -> int:
        begin = time.perf_counter_ns()
        sessions[which].run(None, feeds[which])
        return time.perf_counter_ns() - begin

    gc.collect()
    with no_garbage_collection():
        for which in rng.permutation(len(models)):
            begin = time.perf_counter_ns()
            sessions[which] = runtime.open_session(models[which], options)
            opened = time.perf_counter_ns()
            runtime.run(sessions[which], feeds[which])  # with its checks
            start[which] = opened - begin, time.perf_counter_ns() - opened
        return Round(start, take_turns(run, len(models), rng))


def _settled(turns: Sequence[Sequence[int]]) -> bool:
    """Tell whether the turns so far are enough: rule 2."""
    if len(turns) >= _MAX_TURNS or sum(map(sum, turns)) > _MAX_TURNS_NS:
        return True
    pairs = (heapq.nsmallest(2, times) for times in zip(*turns, strict=True))
    return all(second <= (1 + _AGREEMENT) * least for least, second in pairs)


_Interval: TypeAlias = tuple[float, float, float]


def _least(rounds: Sequence[Round]) -> NDArray[np.float64]:
    """Return the log of every session's time in every round, shape (sessions, rounds)."""
    # A clock tick is the least that could have been read: 0 has no logarithm.
    times: NDArray[np.float64] = np.log(np.maximum([done.turns.min(axis=1) for done in rounds], 1)).T
    return times


def _intervals(rounds: Sequence[Round]) -> tuple[_Interval, _Interval]:
    """Return median and interval of the log ratio and of its noise: rules 3 and 4."""
    a, b, again = _least(rounds)
    return _median_interval((a + again) / 2 - b, _LEVEL), _median_interval(a - again, _NOISE_LEVEL)


def _is_narrow(rounds: Sequence[Round]) -> bool:
    return all(high - low <= _NARROW for _, low, high in _intervals(rounds))


def _median_interval(values: NDArray[np.float64], level: float) -> _Interval:
    """Return the median and the ends of its interval: infinite where no order statistics reach the level."""
    ordered, count = np.sort(values), len(values)
    outside = 0  # values left out at either end, plus one
    missed = 2 * 0.5**count
    while missed <= 1 - level:
        outside += 1
        missed += 2 * math.comb(count, outside) * 0.5**count
    low, high = (ordered[outside - 1], ordered[-outside]) if outside else (-math.inf, math.inf)
    return float(np.median(ordered)), float(low), float(high)


def _round_notes(rounds: int) -> tuple[str, ...]:
    few = f"{rounds} rounds are too few to show a difference; {MIN_ROUNDS} are the least"
    return (few,) if rounds < MIN_ROUNDS else ()


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
