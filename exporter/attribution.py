"""Say which stage of an export the drift comes from, and at which sites and layers.

1. A stage is one change on the way from the source to what the target runs: `SOURCE`, torch's conversion to ONNX; `REWRITE`,
   the forms; `RECOVERY`, the layers fitted anew; `QUANTIZE`, a scheme; `ENGINE`, the runtime of the target. Each has a model,
   which is run on the same data. Only stages that changed something are there.
2. The drift of a stage is that of its model against the first one. What it adds is the drift against the model of the stage
   before: its own error, which a difference of two drifts is not, because errors of several stages partly cancel. Only
   `RECOVERY` is not meant to give what the stage before gave. What it adds is the difference of the drifts, below 0 where it
   gives back; that is taken off what the stage before costs.
3. The models are then run with the values at the cuts as outputs (see `segments`), and every segment of the original is fed
   with what a model has before it. What that model gives instead is the noise that it adds there, whatever happened before:
   its power, relative to that of the segment's output. What a stage has more of than the stage before, it adds.
4. The worst are the segments where the last model adds most. Noise below `ROUNDING_DB` is that of float32 arithmetic.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from actx.exporter.data import cast_feeds
from actx.exporter.drift import Comparison, Steps
from actx.exporter.errors import UsageError
from actx.exporter.metrics import PowerRatio, json_values
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.segments import feed, segments
from actx.exporter.sessions import Entrant, Sessions

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.data import Arrays, Data
    from actx.exporter.runtimes.base import Opener
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions
    from actx.exporter.segments import Changed, Segment

Progress: TypeAlias = Callable[[int, int], None]

SOURCE, REWRITE, RECOVERY, QUANTIZE, ENGINE = "source", "rewrite", "recovery", "quantize", "engine"
WORST = 5
# Layers of float32 reach 110 to 150 dB.
ROUNDING_DB = 100.0
_SEGMENTS = ".segments.onnx"


@dataclass(frozen=True)
class StageModel:
    """A model to run.

    Attributes:
        stage: what made it of the one before; of the first one, what it is.
        path: its file.
        runtime: what opens it. Values inside are looked at where it can show them.
        graph: the ONNX graph of it, whose values have the original's names; None where that is `path`.
        rescaled: names of values that are not the original's numbers any more, although they have its names.
    """

    stage: str
    path: Path
    runtime: Opener
    graph: Path | None = None
    rescaled: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Noise:
    """The noise at one segment, as signal-to-noise ratios in dB: more is better, infinite is none.

    Attributes:
        name: of the site, the layer or the node.
        kind: ``site``, ``layer`` or ``other``.
        node: name of its node in the graph.
        added_db: of what the model itself adds there.
        accumulated_db: of everything up to there.
    """

    name: str
    kind: str
    node: str
    added_db: float
    accumulated_db: float

    @property
    def share(self) -> float:
        """Power of what is added, relative to that of the output."""
        return float(10 ** (-self.added_db / 10))


@dataclass(frozen=True)
class Stage:
    """What one stage does.

    Attributes:
        name: of the stage.
        drift: of its model against the first one, in the metric.
        added: what it adds (2.).
        cost: the same without what the stage behind gave back, >= 0.
        places: the segments; none where the runtime does not show what is inside.
    """

    name: str
    drift: float
    added: float
    cost: float
    places: tuple[Noise, ...] = ()


@dataclass(frozen=True)
class Culprit:
    """One of the segments where most noise is added.

    Attributes:
        name, kind, node, added_db: as of `Noise`, in the last model that shows it.
        stage: the stage that costs most there.
        remedy: what to do about it.
    """

    name: str
    kind: str
    node: str
    stage: str
    added_db: float
    remedy: str = ""


@dataclass(frozen=True)
class Attribution:
    """Where the drift comes from.

    Attributes:
        metric: of the drift.
        stages: in their order.
        worst: at most `WORST` segments, the one that adds most first.
        notes: what was not measured, and why.
    """

    metric: str
    stages: tuple[Stage, ...]
    worst: tuple[Culprit, ...]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str | None:
        """Name of the stage that costs most; None where none costs anything."""
        most = max(self.stages, key=lambda stage: stage.cost, default=None)
        return None if most is None or most.cost == 0 else most.name

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `DriftReport.to_dict`."""
        return {**json_values(asdict(self)), "verdict": self.verdict}


def attribute(
    models: Sequence[StageModel],
    data: Data,
    *,
    metric: str = "l2",
    sites: Sequence[Changed] = (),
    options: RuntimeOptions = DEFAULT,
    progress: Progress | None = None,
) -> Attribution:
    """Run the models of an export's stages on data and attribute the drift, in turn where they are large (see `sessions`).

    Args:
        models: the original first, then one per stage, in their order: the same inputs and outputs, in the same order.
        data: made for the first one's inputs.
        metric: one of `METRICS`, or ``pkg.mod:callable``.
        sites: of the first model that shows its values, and what was done around them.
        options: how the segments are run.
        progress: called as ``progress(samples done, samples to do)``.

    Raises:
        UsageError: there are less than two models, or the metric applies to no output.
        ActxError: a model cannot be opened or run, or outputs differ in shape.
    """
    if len(models) < 2:
        raise UsageError("there is no stage to attribute drift to", note=f"models: {len(models)}")
    steps = Steps(progress, 2 * data.samples)
    drifts = _drifts(models, data, metric, steps)
    noises = _noises([model for model in models if model.runtime.taps], data, sites, options, steps)
    costs = _costs([added for _, added in drifts])
    stages = tuple(
        Stage(model.stage, drift, added, cost, noises.get(model.stage, ()))
        for model, (drift, added), cost in zip(models[1:], drifts, costs, strict=True)
    )
    return Attribution(metric, stages, _worst([stage for stage in stages if stage.places]))


def _drifts(models: Sequence[StageModel], data: Data, metric: str, steps: Steps) -> list[tuple[float, float]]:
    """2: return the drift of every stage, and what it adds."""
    sessions = Sessions([Entrant(model.path, model.runtime) for model in models])
    first, own = ([Comparison(sessions[0].outputs, metric) for _ in models[1:]] for _ in range(2))
    for batch, given in sessions.run(data):
        for (before, after), total, added in zip(pairwise(given), first, own, strict=True):
            total.update(given[0], after, batch)
            added.update(before, after, batch)
        steps.add(batch.samples)
    drifts = [comparison.drift()[1] for comparison in first]
    against = [comparison.drift()[1] for comparison in own]
    return [
        (drift, _difference(drift, before) if model.stage == RECOVERY else added)
        for model, drift, before, added in zip(models[1:], drifts, [0.0, *drifts[:-1]], against, strict=True)
    ]


def _difference(after: float, before: float) -> float:
    return 0.0 if after == before else after - before  # of two infinities too


def _costs(added: Sequence[float]) -> list[float]:
    """2: take what a stage gave back off the one before."""
    left = list(added)
    for index in range(len(left) - 1, 0, -1):
        if left[index] < 0:
            left[index - 1] = max(0.0, left[index - 1] + left[index]) if math.isfinite(left[index]) else 0.0
    return [max(0.0, value) for value in left]


def _noises(
    models: Sequence[StageModel], data: Data, sites: Sequence[Changed], options: RuntimeOptions, steps: Steps
) -> dict[str, tuple[Noise, ...]]:
    """3."""
    if len(models) < 2:
        return {}
    original, *changed = models
    model = ir.load(original.path)
    held = set.intersection(*(_values(stage.graph or stage.path) - stage.rescaled for stage in changed))
    parts = segments(model, sites, held)
    names = [part.output for part in parts]
    with _beside(original.path, feed(model, parts)) as path:
        sessions = Sessions([*(_tapped(stage, names) for stage in models), Entrant(path, options)])
        meters = {stage.stage: [_Meter(part) for part in parts] for stage in changed}
        for batch, (before, *given) in sessions.run(data, len(models)):
            for stage, values in zip(changed, given, strict=True):
                fed = {part.fed: values[part.output] / values[part.output].dtype.type(part.scale) for part in parts}
                expected = sessions[len(models)].run(cast_feeds({**batch.feeds, **fed}, sessions[len(models)].inputs))
                for meter in meters[stage.stage]:
                    meter.update(before, expected, values)
            steps.add(batch.samples)
    return {name: tuple(meter.result() for meter in found) for name, found in meters.items()}


@contextlib.contextmanager
def _beside(original: Path, part: ir.Model) -> Iterator[Path]:
    """Give a part of the original as a file, over the same weights."""
    path = original.with_name(_SEGMENTS)
    try:
        ir.save(part, path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _values(graph: Path) -> set[str]:
    """Return the names of the values that a graph computes in floating point, as far as it tells the types."""
    kinds = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, None)
    return {str(value.name) for node in ir.load(graph).graph for value in node.outputs if value.dtype in kinds}


def _tapped(model: StageModel, names: Sequence[str]) -> Entrant:
    """Return a model with further outputs: what is one already must not be listed twice."""
    own = {str(value.name) for value in ir.load(model.graph or model.path).graph.outputs}
    return Entrant(model.path, model.runtime, tuple(name for name in names if name not in own), tuple(names))


class _Meter:
    """Accumulates the noise at one segment."""

    def __init__(self, part: Segment) -> None:
        self._part = part
        self._added, self._accumulated = PowerRatio(), PowerRatio()

    def update(self, before: Arrays, expected: Arrays, given: Arrays) -> None:
        """Add a batch: what the original has, what it would give in the model's place, and what that gives."""
        name, scale = self._part.output, self._part.scale
        self._accumulated.add(before[name].astype(np.float64) * scale, given[name])
        self._added.add(expected[name].astype(np.float64) * scale, given[name])

    def result(self) -> Noise:
        return Noise(self._part.name, self._part.kind, self._part.node, self._added.db(), self._accumulated.db())


def _worst(stages: Sequence[Stage]) -> tuple[Culprit, ...]:
    """4."""
    found = []
    for places in zip(*(stage.places for stage in stages), strict=True):
        shares = [0.0, *(place.share for place in places)]
        costs = _costs([_difference(after, before) for before, after in pairwise(shares)])
        stage = stages[costs.index(max(costs))].name
        last = places[-1]
        found.append(Culprit(last.name, last.kind, last.node, stage, last.added_db))
    ranked = sorted(found, key=lambda culprit: culprit.added_db)
    named = {culprit.name: culprit for culprit in reversed(ranked) if culprit.added_db < ROUNDING_DB}
    return tuple(sorted(named.values(), key=lambda culprit: culprit.added_db)[:WORST])
