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
7. Of ways to write a part of a model only the verdicts and the times are asked for (`compare_all`). Any number of artifacts
   share the rounds, each judged by itself, with both runs of the original. Rounds end once all intervals are narrow, or for
   lack of time, whatever their number; and where time is short, turns end early to leave it to the least number of rounds.
8. The time per node comes from a separate run under the runtime's own profiler (`Runtime.node_times`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from actx.exporter import machine, turns
from actx.exporter.collection import only_new_garbage
from actx.exporter.data import Arrays, Data, cast_feeds
from actx.exporter.errors import UsageError
from actx.exporter.metrics import json_values
from actx.exporter.place import Here
from actx.exporter.runtimes.onnxruntime import DEFAULT

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from actx.exporter.place import Entrant, Place
    from actx.exporter.runtimes.base import Breakdown, Runtime

Progress: TypeAlias = Callable[[int, int], None]
Opened: TypeAlias = "tuple[Path, Runtime]"
Verdict: TypeAlias = Literal["faster", "slower", "no difference"]

# Rules 4 and 5.
_LEVEL = 0.95
_NOISE_LEVEL = 0.99
MIN_ROUNDS = 8  # 2 * 0.5**8 < 1 - _NOISE_LEVEL
# Rule 2; more of it is in `turns`.
_SHARE_OF_TURNS = 0.5  # of the time of a round where that is short: the rest is for opening and the first runs
# Rule 6.
_MAX_ROUNDS = 50
_MAX_ROUNDS_S = 20.0
_NARROW = 0.02
_BUSY = 0.5  # cores that others keep busy: more makes times doubtful
_LARGEST_POOL = 8  # batches that the rounds cycle through: all are held in memory


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
class Timed:
    """What one of several artifacts takes.

    Attributes:
        comparison: with the original.
        original_ms: milliseconds of the original, median over rounds of both its sessions.
        artifact_ms: milliseconds of the artifact, median over rounds.
    """

    comparison: Comparison
    original_ms: float
    artifact_ms: float


@dataclass(frozen=True)
class RoundMinima:
    """What each model took in every round in milliseconds: the least of its turns (rule 3)."""

    original: tuple[float, ...]
    artifact: tuple[float, ...]
    original_again: tuple[float, ...]


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
        round_minima: what the verdict was judged by.
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
    round_minima: RoundMinima
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

    def only(self, artifact: int) -> Round:
        """Return what the first session, that of this number and the last took."""
        rows = [0, artifact, len(self.turns) - 1]
        return Round(self.start[rows], self.turns[rows])


def profile(
    original: Path,
    artifact: Path,
    data: Data,
    *,
    runtime: Runtime = DEFAULT,
    original_runtime: Runtime | None = None,
    place: Place | None = None,
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
        runtime: what both are run in, as it is where sessions take turns.
        original_runtime: the same for the original, where that has another graph to name its nodes by.
        place: where rounds are measured; None for this process.
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
    runtimes = [turned.in_turns() for turned in (original_runtime or runtime, runtime)]
    watched = place or Here(gpu=runtime.on_gpu)
    batches = list(islice(data.batches(), _LARGEST_POOL))
    pair = (original, artifact)
    inputs = [runtime.open(model).inputs for runtime, model in zip(runtimes, pair, strict=True)]
    feeds = [[cast_feeds(batch.feeds, specs) for batch in batches] for specs in inputs]
    rng = np.random.default_rng(seed)

    def entrants(index: int) -> list[Entrant]:
        batch = [rows[index % len(rows)] for rows in feeds]
        return list(zip(pair, runtimes, batch, strict=True))

    def measure(index: int) -> Round:
        first, second = entrants(index)
        return _round(watched, (first, second, first), rng)

    with only_new_garbage():
        rounds = take_rounds(measure, runs, progress)
    described = runtimes[1].describe() | watched.describe(*entrants(0))
    samples = sum(batches[i % len(batches)].samples * done.turns.shape[1] for i, done in enumerate(rounds))
    first, second, again = (summarize(row, samples) for row in np.concatenate([done.turns for done in rounds], axis=1))
    starts = np.stack([done.start for done in rounds])
    peaks = [runtimes[i].peak_memory(model, feeds[i][0]) for i, model in enumerate(pair)]
    startups = [_startup(starts[:, i], peak) for i, peak in enumerate(peaks)]
    return LatencyReport(
        graph=artifact.name,
        original=first,
        artifact=second,
        original_again=again,
        original_startup=startups[0],
        artifact_startup=startups[1],
        comparison=compare_latency(rounds),
        original_nodes=runtimes[0].node_times(original, feeds[0][0], owners_original or {}),
        artifact_nodes=runtimes[1].node_times(artifact, feeds[1][0], owners_artifact or {}),
        runs=len(rounds),
        round_minima=RoundMinima(*map(tuple, _minima(rounds).tolist())),
        shapes=tuple(_shapes(batch.feeds) for batch in batches),
        batch_sizes=tuple(batch.samples for batch in batches),
        synthetic=data.synthetic,
        source=data.source,
        notes=(*data.notes, *_round_notes(len(rounds)), *machine_notes(described)),
        runtime=described,
    )


def compare(
    original: Path,
    artifact: Path,
    feeds: Arrays,
    *,
    runtime: Runtime,
    original_runtime: Runtime,
    seconds: float,
    seed: int = 0,
) -> Comparison:
    """Compare two models: `compare_all` of one artifact, for the verdict alone."""
    pair = (original, original_runtime), [(artifact, runtime)]
    return compare_all(*pair, feeds, seconds=seconds, seed=seed)[0].comparison


def compare_all(
    original: Opened,
    artifacts: Sequence[Opened],
    feeds: Arrays,
    *,
    seconds: float,
    seed: int = 0,
) -> list[Timed]:
    """Compare several models with one as `profile` does, on one batch and in the same rounds.

    Args:
        original: the model before, and what it is run in.
        artifacts: the models after, likewise.
        feeds: one array per input; cast to the types that each takes.
        seconds: no round begins after them (rule 7).
        seed: of the order within rounds.

    Returns:
        One entry per artifact. With less than `MIN_ROUNDS` rounds the noise is infinite.

    Raises:
        ActxError: a model cannot be opened or run.
    """
    models = [model for model, _ in (original, *artifacts)]
    runtimes = [runtime.in_turns() for _, runtime in (original, *artifacts)]
    entrants = [
        (model, runtime, cast_feeds(feeds, runtime.open(model).inputs))
        for model, runtime in zip(models, runtimes, strict=True)
    ]
    here = Here()
    rng = np.random.default_rng(seed)
    most = min(turns.MAX_TURNS_NS, int(1e9 * seconds * _SHARE_OF_TURNS / MIN_ROUNDS))

    def measure(_: int) -> Round:
        return _round(here, (*entrants, entrants[0]), rng, most)

    with only_new_garbage():
        rounds = take_rounds(measure, seconds=seconds)
    return [_timed([done.only(artifact) for done in rounds]) for artifact in range(1, len(models))]


def time_model(model: Path, feeds: Arrays, *, runtime: Runtime, seconds: float) -> Latency:
    """Measure one model on one batch, in as many rounds as a verdict needs at least.

    Args:
        model: the file.
        feeds: one array per input, of the types that it takes; their first axis runs over samples.
        runtime: what it is run in.
        seconds: no round begins after them.

    Raises:
        ActxError: it cannot be opened or run.
    """
    entrants, here = [(model, runtime.in_turns(), feeds)], Here()
    rng = np.random.default_rng(0)
    most = min(turns.MAX_TURNS_NS, int(1e9 * seconds * _SHARE_OF_TURNS / MIN_ROUNDS))
    with only_new_garbage():
        rounds = take_rounds(lambda _: _round(here, entrants, rng, most), MIN_ROUNDS, seconds=seconds)
    times = np.concatenate([done.turns[0] for done in rounds])
    samples = max((len(array) for array in feeds.values() if array.ndim), default=1)
    return summarize(times, samples * len(times))


def _timed(rounds: Sequence[Round]) -> Timed:
    """Judge the rounds of the original, one artifact and the original again."""
    a, b, again = _minima(rounds)
    return Timed(compare_latency(rounds), float(np.median([a, again])), float(np.median(b)))


def _minima(rounds: Sequence[Round]) -> NDArray[np.float64]:
    """Return the milliseconds of every session in every round, shape (sessions, rounds)."""
    return np.array([done.turns.min(axis=1) for done in rounds]).T / 1e6


def take_rounds(
    measure: Callable[[int], Round],
    runs: int | None = None,
    progress: Progress | None = None,
    seconds: float | None = None,
) -> list[Round]:
    """Measure rounds: `runs` of them, or as many as rule 6 says.

    Args:
        measure: called with the number of the round.
        runs: how many; None for rule 6.
        progress: called as ``progress(rounds done, rounds to do)``.
        seconds: after which none begins (rule 7); None for no such limit.
    """
    rounds: list[Round] = []
    begin = time.monotonic()
    most = runs or _MAX_ROUNDS
    while len(rounds) < most:
        rounds.append(measure(len(rounds)))
        if runs is None and len(rounds) >= MIN_ROUNDS:
            late = time.monotonic() - begin > _MAX_ROUNDS_S
            most = len(rounds) if late or _is_narrow(rounds) else most
        if seconds is not None and time.monotonic() - begin > seconds:
            most = len(rounds)
        if progress is not None:
            progress(len(rounds), most)
    return rounds


def take_turns(
    run: Callable[[int], int], sessions: int, rng: np.random.Generator, most: int = turns.MAX_TURNS_NS
) -> NDArray[np.int64]:
    """Let the sessions take turns as rule 2 says.

    Args:
        run: runs the session of that number and returns the nanoseconds.
        sessions: how many there are.
        rng: gives the order within each turn.
        most: nanoseconds after which no turn begins but the least number of them.

    Returns:
        The nanoseconds, shape (sessions, turns), without those of the first turn.
    """
    return np.array(turns.take_turns(run, _orders(sessions, rng), most), np.int64).T


def _orders(sessions: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Draw orders of sessions, one whenever one is needed."""
    while True:
        yield rng.permutation(sessions).tolist()


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
    if described.get("throttled"):
        notes.append(
            "the device held its clock down meanwhile: times are longer than on one that is cool and well supplied"
        )
    return tuple(notes)


def _round(
    place: Place, entrants: Sequence[Entrant], rng: np.random.Generator, most: int = turns.MAX_TURNS_NS
) -> Round:
    """Measure one round: rules 1 and 2."""
    start, taken = place.take_round(entrants, _orders(len(entrants), rng), most)
    return Round(np.array(start, np.int64), np.array(taken, np.int64).T)


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
    """Tell whether all artifacts' intervals are."""
    artifacts = range(1, len(rounds[0].turns) - 1)
    intervals = (_intervals([done.only(artifact) for done in rounds]) for artifact in artifacts)
    return all(high - low <= _NARROW for pair in intervals for _, low, high in pair)


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
