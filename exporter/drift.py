"""Compare an artifact with its original: the drift of the outputs, and the noise that each site adds.

1. End to end: both models run untouched on every batch, in turn where they are large (`sessions`), and the outputs are compared
   by name (`metrics`).
2. Per site: both run once more with the values around every site as further outputs. `added` compares the site's output
   with its function at the artifact's own input, so it is the noise that this site adds; `accumulated` compares it with
   the original's output, so it holds the noise of everything before as well. Where one node of the artifact computes a
   gated site and the product that it enters, both are compared behind the product. Values that are outputs are not fused
   away: the last bits can differ from the untouched models, and only step 1 enters the drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from actx.exporter.data import Arrays, Batch, Data
from actx.exporter.errors import ActxError, IncomparableError, UsageError
from actx.exporter.metrics import (
    METRICS,
    Accuracy,
    AccuracyMeter,
    OutputDrift,
    OutputMeter,
    PowerRatio,
    UserMetric,
    check_metric,
    json_values,
    worst,
)
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.sessions import Entrant, Sessions

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.ffn.half import Half
    from actx.exporter.runtimes.base import Opener, Runner, Runtime

Progress: TypeAlias = Callable[[int, int], None]
Observer: TypeAlias = Callable[[Arrays, Arrays], None]
Function: TypeAlias = Callable[..., NDArray[np.float64]]

_SAME = "Compare a model with the bundle that was made of it."


@dataclass(frozen=True)
class SiteTap:
    """Where to look at one site in both graphs.

    Attributes:
        name: the site's name.
        function: the site's function in float64, of its input and the values of `operands`; None where it is not known.
        original_output: name of the value that the site gives in the original.
        artifact_input: name of the value that the site takes in the artifact.
        artifact_output: name of the value that it gives there.
        input_scale: the artifact's input is so many times the original's.
        output_scale: likewise the output.
        interval: where the form was fitted; None where it holds everywhere.
        multiplier: name of the value that the artifact multiplies the function with before it gives the output; None
            where it gives the function itself.
        half: where the artifact's input is a half of a packed value, which one; the output is then the product.
        operands: names of the artifact's values that the function takes beside its input: the gates of a mixture.
    """

    name: str
    function: Function | None
    original_output: str
    artifact_input: str
    artifact_output: str
    input_scale: float = 1.0
    output_scale: float = 1.0
    interval: tuple[float, float] | None = None
    multiplier: str | None = None
    operands: tuple[str, ...] = ()
    half: Half | None = None

    @property
    def artifact_values(self) -> tuple[str, ...]:
        """Names of the artifact's values that are looked at."""
        names = (self.artifact_input, self.artifact_output, *self.operands)
        return names if self.multiplier is None else (*names, self.multiplier)


@dataclass(frozen=True)
class SiteDrift:
    """The noise at one site, as signal-to-noise ratios in dB: more is better, infinite is none.

    Attributes:
        name: the site's name.
        added_db: of what the site itself adds; None, not measured, where its function is not known.
        accumulated_db: of everything up to the site's output.
        outside: share of the inputs that are outside the interval of the fit, where nothing is known of its error.
    """

    name: str
    added_db: float | None
    accumulated_db: float
    outside: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, as `OutputDrift.to_dict`."""
        return json_values(asdict(self))


@dataclass(frozen=True)
class DriftReport:
    """What was measured. True when the drift is finite and within the budget, where one was stated.

    Attributes:
        graph: file name of the artifact.
        metric: name of the metric.
        drift: a number >= 0, the worst output's; infinite where an output is NaN or infinite and the original's is not.
        worst_output: name of that output; None for a metric of the user's, which sees all outputs.
        samples: number of samples compared.
        synthetic: whether the data was random.
        source: where the data came from.
        outputs: every output with every metric that applies to it.
        sites: every site that was looked at.
        worst_site: the site that adds the most noise, or where none is known the one with the most accumulated; None
            where there is no noise.
        max_drift: the budget, or None.
        accuracy: of both models, where the data has labels that fit an output.
        notes: what was done to the data, and what limits the verdict.
        runtime: versions, machine and options of the measurement.
    """

    graph: str
    metric: str
    drift: float
    worst_output: str | None
    samples: int
    synthetic: bool
    source: str
    outputs: tuple[OutputDrift, ...]
    sites: tuple[SiteDrift, ...]
    worst_site: str | None
    max_drift: float | None
    accuracy: Accuracy | None
    notes: tuple[str, ...]
    runtime: dict[str, Any]

    def __bool__(self) -> bool:
        return math.isfinite(self.drift) and (self.max_drift is None or self.drift <= self.max_drift)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: null for what does not apply or was not measured, "inf" and "-inf" for infinities."""
        return {**json_values(asdict(self)), "within_budget": bool(self)}


def check(
    original: Path,
    artifact: Path,
    data: Data,
    *,
    taps: Sequence[SiteTap] = (),
    metric: str = "l2",
    max_drift: float | None = None,
    logits: Sequence[str] = (),
    runtime: Runtime = DEFAULT,
    original_runtime: Opener = DEFAULT,
    observe: Observer | None = None,
    progress: Progress | None = None,
) -> DriftReport:
    """Measure the drift of an artifact on data.

    Neither model is modified and nothing is written. One batch of outputs is held, of large models some (see `sessions`).

    Args:
        original: the model before, an ONNX file in float32.
        artifact: the model after, with the same outputs in the same order, and inputs of the same names.
        data: made for the original's inputs; cast to the artifact's where these differ (float16).
        taps: sites to look at, in the order to report them; none where the runtime cannot show what is inside.
        metric: one of `METRICS`, or ``pkg.mod:callable`` (see `UserMetric`).
        max_drift: the budget.
        logits: names of the outputs that are logits; without any, the rule in `metrics` tells.
        runtime: what the artifact is run in.
        original_runtime: what the original is run in.
        observe: called with the outputs of both models on every batch.
        progress: called as ``progress(samples done, samples to do)``.

    Raises:
        UsageError: the metric is unknown or applies to no output, the budget is negative, a logits name is no output.
        ActxError: a model cannot be opened or run, the outputs differ in name or shape, a tapped value does not exist.
    """
    check_metric(metric)
    if max_drift is not None and not (math.isfinite(max_drift) and max_drift >= 0):
        msg = "the drift budget must be a finite number >= 0"
        raise UsageError(msg, note=f"got {max_drift}", remedy="Give a number of at least 0.")
    taps = taps if runtime.taps else ()
    steps = Steps(progress, data.samples * (2 if taps else 1))
    pair = Sessions([Entrant(original, original_runtime), Entrant(artifact, runtime)])
    names = _common_outputs(original, pair[1])
    if unknown := [name for name in logits if name not in names]:
        msg = f"'{unknown[0]}' is no output of the models"
        raise UsageError(msg, note=f"outputs: {', '.join(names)}", remedy="Name one of these.")
    comparison = Comparison(names, metric, tuple(logits))
    for batch, (before, after) in pair.run(data):
        comparison.update(before, after, batch)
        if observe is not None:
            observe(before, after)
        steps.add(batch.samples)
    comparison.require_numbers()
    worst_output, drift = comparison.drift()
    del pair  # models may be large: the tapped ones take their place
    tapped = _tapped(taps, names, Entrant(original, original_runtime), Entrant(artifact, runtime))
    sites = _measure_sites(tapped, data, taps, steps) if taps else ()
    return DriftReport(
        graph=artifact.name,
        metric=metric,
        drift=drift,
        worst_output=worst_output,
        samples=data.samples,
        synthetic=data.synthetic,
        source=data.source,
        outputs=comparison.outputs(),
        sites=sites,
        worst_site=_worst_site(sites),
        max_drift=max_drift,
        accuracy=comparison.accuracy.result(),
        notes=(*data.notes, *comparison.notes(judged=max_drift is not None and data.synthetic), *_outside(sites)),
        runtime=runtime.describe(),
    )


def check_applies(metric: str, model: ir.Model, logits: Sequence[str] = ()) -> None:
    """Check before any work that a metric applies to an output, as far as the graph tells their types and ranks.

    Args:
        metric: one of `METRICS`; a metric of the user's own sees all outputs and always applies.
        model: the original.
        logits: as in `check`.

    Raises:
        UsageError: it applies to none.
    """
    if metric not in METRICS:
        return
    drifts = []
    for value in model.graph.outputs:
        if value.name is None or value.dtype is None or value.shape is None or value.dtype.numpy().kind not in "fiub":
            return
        meter = OutputMeter(value.name, logits=(value.name in logits) if logits else None)
        zeros = np.zeros([min(dim, 2) if isinstance(dim, int) else 2 for dim in value.shape], value.dtype.numpy())
        meter.update(zeros, zeros)
        drifts.append(meter.result())
    worst(drifts, metric)


def _common_outputs(original: Path, artifact: Runner) -> list[str]:
    """Return the names of the outputs, which are both models', as the inputs are. The original is not opened for them."""
    graph = ir.load(original).graph
    fed = (
        value for value in graph.inputs if value.name not in graph.initializers
    )  # old files list constants as inputs
    ours = [str(value.name) for value in fed], [str(value.name) for value in graph.outputs]
    theirs = [spec.name for spec in artifact.inputs], list(artifact.outputs)
    for word, first, second in (
        ("takes other inputs", sorted(ours[0]), sorted(theirs[0])),
        ("has other outputs", ours[1], theirs[1]),
    ):
        if first != second:
            order = ", or in another order" if word.endswith("outputs") else ""
            note = f"original {', '.join(first)}; artifact {', '.join(second)}"
            raise ActxError(f"the artifact {word} than the original{order}", note=note, remedy=_SAME)
    return ours[1]


class Comparison:
    """Accumulates every metric over the batches.

    Args:
        names: of the outputs.
        metric: one of `METRICS`, or ``pkg.mod:callable``.
        logits: names of the outputs that are logits; without any, the rule in `metrics` tells.

    Raises:
        ActxError: the user's metric cannot be imported.
    """

    def __init__(self, names: Sequence[str], metric: str, logits: tuple[str, ...] = ()) -> None:
        self._metric = metric
        self._user = None if metric in METRICS else UserMetric(metric)
        self._meters = {name: OutputMeter(name, logits=(name in logits) if logits else None) for name in names}
        self.accuracy = AccuracyMeter(logits)

    def update(self, original: Arrays, artifact: Arrays, batch: Batch) -> None:
        """Add the outputs of both models on one batch.

        Raises:
            ActxError: two outputs differ in shape or type, or the user's metric fails.
        """
        if self._user is not None:
            self._user.update(original, artifact, {**batch.extras, **batch.feeds}, batch.samples)
        for name, meter in list(self._meters.items()):
            if self._user is not None and original[name].shape != artifact[name].shape:
                del self._meters[name]  # the user's metric compares what we cannot, such as detections
                continue
            meter.update(original[name], artifact[name])
        self.accuracy.update(original, artifact, batch.extras)

    def outputs(self) -> tuple[OutputDrift, ...]:
        """Return the drift of every output that could be compared."""
        return tuple(meter.result() for meter in self._meters.values())

    def notes(self, *, judged: bool) -> list[str]:
        """Return remarks; `judged` where a budget was applied to random input."""
        remarks = [self.accuracy.note] if self.accuracy.note else []
        remarks += [
            f"{out.not_compared} of {out.elements} elements of {out.name} are NaN or infinite in both models: not compared"
            for out in self.outputs()
            if out.not_compared
        ]
        if judged:
            remarks.append("the budget was judged on random input: give --data to judge it on yours")
        return remarks

    def require_numbers(self) -> None:
        """Check that there is something to compare.

        Raises:
            IncomparableError: both models give NaN or infinity everywhere.
        """
        outputs = [out for out in self.outputs() if out.elements]
        if outputs and all(out.not_compared == out.elements for out in outputs):
            raise IncomparableError(
                "the outputs are NaN or infinite everywhere, in both models",
                note=f"{', '.join(out.name for out in outputs)}: nothing can be compared",
                remedy="Look for NaN in the model's weights, and give --data that it accepts.",
            )

    def drift(self) -> tuple[str | None, float]:
        """Return the worst output, None for a metric of the user's, and the drift.

        Raises:
            UsageError: the metric applies to none of the outputs.
        """
        outputs = self.outputs()
        if self._user is None:
            return worst(outputs, self._metric)
        broken = [drift.name for drift in outputs if drift.non_finite]
        return (broken[0], math.inf) if broken else (None, self._user.result())


@dataclass
class Steps:
    """Counts samples for the progress callback."""

    report: Progress | None
    total: int
    done: int = 0

    def add(self, samples: int) -> None:
        """Report that so many more are done."""
        self.done += samples
        if self.report is not None:
            self.report(self.done, self.total)


def _tapped(taps: Sequence[SiteTap], outputs: Sequence[str], original: Entrant, artifact: Entrant) -> Sessions:
    """Return both models with the values around the sites as outputs; what is one already must not be listed twice."""
    ours = tuple(dict.fromkeys(tap.original_output for tap in taps))
    theirs = tuple(dict.fromkeys(name for tap in taps for name in tap.artifact_values))
    return Sessions(
        [
            replace(entrant, further=tuple(name for name in values if name not in outputs), values=values)
            for entrant, values in ((original, ours), (artifact, theirs))
        ]
    )


def _measure_sites(pair: Sessions, data: Data, taps: Sequence[SiteTap], steps: Steps) -> tuple[SiteDrift, ...]:
    """Step 2."""
    meters = [_SiteMeter(tap) for tap in taps]
    for batch, (before, after) in pair.run(data):
        for meter in meters:
            meter.update(before, after)
        steps.add(batch.samples)
    return tuple(meter.result() for meter in meters)


class _SiteMeter:
    """Accumulates the noise at one site."""

    def __init__(self, tap: SiteTap) -> None:
        self._tap = tap
        self._added, self._accumulated = PowerRatio(), PowerRatio()
        self._elements = self._outside = 0

    def update(self, before: Arrays, after: Arrays) -> None:
        tap = self._tap
        expected, given, got = before[tap.original_output], after[tap.artifact_input], after[tap.artifact_output]
        if any(array.dtype.kind != "f" for array in (expected, given, got)) or expected.shape != got.shape:
            listed = ", ".join(f"{array.dtype}{list(array.shape)}" for array in (expected, given, got))
            msg = f"site '{tap.name}' cannot be compared"
            raise ActxError(msg, note=f"original output, artifact input and output: {listed}", remedy=_SAME)
        if tap.half is not None:
            given, factor = tap.half.of(given)
        else:
            factor = np.ones(()) if tap.multiplier is None else after[tap.multiplier].astype(np.float64)
        x = given.astype(np.float64) / tap.input_scale
        self._accumulated.add(expected.astype(np.float64) * tap.output_scale, got)
        self._elements += x.size
        if tap.interval is not None:
            low, high = tap.interval
            self._outside += x.size - int(np.count_nonzero((x >= low) & (x <= high)))
        if tap.function is not None:
            with np.errstate(all="ignore"):
                operands = (after[name].astype(np.float64) for name in tap.operands)
                self._added.add(tap.function(x, *operands) * factor * tap.output_scale, got)

    def result(self) -> SiteDrift:
        added = self._added.db() if self._tap.function else None
        return SiteDrift(self._tap.name, added, self._accumulated.db(), self._outside / max(self._elements, 1))


def _outside(sites: Sequence[SiteDrift]) -> list[str]:
    """Return a remark where inputs were not where the forms were fitted."""
    left = [site for site in sites if site.outside > 0]
    if not left:
        return []
    most = max(left, key=lambda site: site.outside)
    where = f"{len(left)} site{'s' if len(left) > 1 else ''}, {most.outside:.2%} of them at {most.name}"
    return [f"inputs are outside the interval of the fit at {where}: calibrate on data like this"]


def _worst_site(sites: Sequence[SiteDrift]) -> str | None:
    known = [(site.added_db, site.name) for site in sites if site.added_db is not None]
    ratio, name = min(known or [(site.accumulated_db, site.name) for site in sites], default=(math.inf, None))
    return name if ratio < math.inf else None
