"""How far an artifact's outputs are from the original's. Everything is accumulated in float64, batch by batch.

1. `max_abs`, `mean_abs`: of the difference, over all elements.
2. `l2`: the norm of the difference over the norm of the original, over all elements; `sqnr_db` is the same as a ratio
   of powers in dB.
3. `cosine`: 1 - cosine, mean over samples; a sample is one index of the first axis, flattened.
4. `top1`, `kl`: over the last axis of outputs that look like logits, which are the float outputs of rank 2 with at
   least two columns, or those that the user names (of any rank: every row counts as a sample). `kl` is the mean of
   KL(softmax(original) || softmax(artifact)) in nats. Rows that are probabilities already are taken as they are.
   A top-1 that the original holds at equal value has not changed.
5. Integer and boolean outputs have `max_abs`, `mean_abs` and `top1`, the share of samples in which any element changed.
6. A NaN or infinity that both have at the same place, of the same sign, is no difference and left out of the sums. One
   that only one of them has makes every metric of that output infinite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actx.exporter.data import Arrays, import_callable
from actx.exporter.errors import ActxError, UsageError

Array: TypeAlias = NDArray[np.float64]

METRICS = ("cosine", "l2", "max_abs", "kl", "top1")
# Probabilities below the smallest normal float32 are rounding of zero, and log(0) would make any KL infinite.
_TINY = float(np.finfo(np.float32).tiny)
_SUM_TOLERANCE = 1e-2  # of a row of probabilities in float16 with a thousand classes


@dataclass(frozen=True)
class OutputDrift:
    """The drift of one output; None where a metric does not apply.

    Attributes:
        name: the output's name.
        elements: number of elements.
        non_finite: elements that are NaN or infinite on one side only.
        not_compared: elements that are the same NaN or infinity on both sides.
        max_abs, mean_abs, l2, sqnr_db, cosine, top1, kl: see the module's docstring.
    """

    name: str
    elements: int
    non_finite: int
    not_compared: int
    max_abs: float
    mean_abs: float
    l2: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    top1: float | None = None
    kl: float | None = None

    def value(self, metric: str) -> float | None:
        """Return the drift by one of `METRICS`, or None where it does not apply to this output."""
        drift: float | None = getattr(self, metric)
        return drift

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: null where a metric does not apply, "inf" or "-inf" where it is infinite."""
        return json_values(asdict(self))


class OutputMeter:
    """Accumulates the drift of one output over batches.

    Args:
        name: the output's name, for errors.
        logits: whether the last axis holds classes; None decides by rule 4 on the first batch.
    """

    def __init__(self, name: str, *, logits: bool | None = None) -> None:
        self._name = name
        self._logits = logits
        self._probabilities: bool | None = None
        self._integers = False
        self._elements = self._samples = self._rows = self._broken = self._left_out = 0
        self._max = self._sum = self._cosine = self._top1 = self._kl = 0.0
        self._power = PowerRatio()

    def update(self, original: NDArray[Any], artifact: NDArray[Any]) -> None:
        """Add one batch.

        Raises:
            ActxError: the two differ in shape, or one is float and the other integer.
        """
        kinds = (original.dtype.kind == "f", artifact.dtype.kind == "f")
        if original.shape != artifact.shape or kinds[0] != kinds[1]:
            note = f"original {original.dtype}{list(original.shape)}, artifact {artifact.dtype}{list(artifact.shape)}"
            msg = f"output '{self._name}' differs in shape or type"
            raise ActxError(msg, note=note, remedy="Compare such outputs with a metric of your own, pkg.mod:callable.")
        self._integers = not kinds[0]
        reference, actual, broken = comparable(original, artifact)
        error = np.abs(actual - reference)
        self._broken += broken
        self._left_out += error.size - broken - int(np.count_nonzero(np.isfinite(original) & np.isfinite(artifact)))
        self._elements += error.size
        self._samples += len(_per_sample(reference))
        self._max = max(self._max, float(error.max(initial=0.0)))
        self._sum += float(error.sum())
        if self._integers:
            changed = _per_sample(np.asarray(original != artifact))
            self._top1 += float(changed.any(axis=1).sum())
            return
        self._power.add(reference, actual)
        self._cosine += float(cosine_distance(_per_sample(reference), _per_sample(actual)).sum())
        self._update_logits(original, artifact)

    def _update_logits(self, original: NDArray[Any], artifact: NDArray[Any]) -> None:
        if self._logits is None:
            self._logits = original.ndim == 2 and original.shape[1] > 1
        if not self._logits or not original.ndim or not original.size:
            return
        rows = (original.astype(np.float64), artifact.astype(np.float64))
        reference, actual = (array.reshape(-1, array.shape[-1]) for array in rows)
        if self._probabilities is None:
            self._probabilities = _are_probabilities(reference)
        self._rows += len(reference)
        self._top1 += float(top1_changed(reference, actual).sum())
        if self._probabilities:
            reference, actual = (np.log(np.maximum(array, _TINY)) for array in (reference, actual))
        self._kl += float(kl_divergence(reference, actual).sum())

    def result(self) -> OutputDrift:
        """Return the drift over all batches so far."""
        mean = _mean(self._sum, self._elements)
        drift = OutputDrift(self._name, self._elements, self._broken, self._left_out, max_abs=self._max, mean_abs=mean)
        if self._integers:
            drift = replace(drift, top1=_mean(self._top1, self._samples))
        else:
            cosine = _mean(self._cosine, self._samples)
            drift = replace(drift, l2=self._power.relative(), sqnr_db=self._power.db(), cosine=cosine)
        if self._rows:
            drift = replace(drift, top1=_mean(self._top1, self._rows), kl=_mean(self._kl, self._rows))
        return _infinite(drift) if self._broken else drift


class PowerRatio:
    """Accumulates the power of a reference and of what is added to it."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0
        self._broken = False

    def add(self, reference: NDArray[Any], actual: NDArray[Any]) -> None:
        """Add one batch; places where only one of the two is finite make the ratio infinite."""
        expected, got, broken = comparable(reference, actual)
        self._signal += float(np.square(expected).sum())
        self._noise += float(np.square(got - expected).sum())
        self._broken |= bool(broken)

    def relative(self) -> float:
        """Return the norm of the noise over the norm of the signal; 0 over 0 is 0."""
        if self._broken or (self._noise and not self._signal):
            return math.inf
        return math.sqrt(self._noise / self._signal) if self._noise else 0.0

    def db(self) -> float:
        """Return the signal-to-noise ratio in dB; infinite where there is no noise."""
        relative = self.relative()
        return -20 * math.log10(relative) if relative else math.inf


class UserMetric:
    """A metric of the user's own, ``pkg.mod:callable``.

    It is called once per batch as ``callable(original, artifact, batch)`` with three dicts of arrays: the outputs of
    both models, and the inputs together with the extras of the data (labels). It returns the drift of the batch as a
    number, and 0 for equal outputs. The drift of the data is the mean over samples; where that is negative (the
    artifact is better, as a task's accuracy can be), the drift is 0.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._function = import_callable(name, "metric")
        self._sum, self._samples = 0.0, 0

    def update(self, original: Arrays, artifact: Arrays, batch: Arrays, samples: int) -> None:
        """Add one batch.

        Raises:
            ActxError: the callable raises, or returns no number.
        """
        try:
            value = float(self._function(original, artifact, batch))
        except Exception as error:
            msg = f"metric '{self._name}' failed"
            raise ActxError(
                msg,
                note=f"{type(error).__name__}: {error}",
                remedy="Mend the function; ACTX_DEBUG=1 shows where it fails.",
            ) from error
        if math.isnan(value):
            msg = f"metric '{self._name}' returned NaN"
            raise ActxError(msg, remedy="Return a number for every batch, 0 for equal outputs.")
        self._sum += value * samples
        self._samples += samples

    def result(self) -> float:
        """Return the drift over all batches so far."""
        return max(0.0, _mean(self._sum, self._samples))


@dataclass(frozen=True)
class Accuracy:
    """Share of labels that the top-1 of an output hits.

    Attributes:
        output: the output's name.
        labels: number of labels counted; those that are no class are not.
        original, artifact: the two shares.
    """

    output: str
    labels: int
    original: float
    artifact: float


class AccuracyMeter:
    """Accumulates accuracy where the data has labels that fit an output: one label per row of the last axis."""

    def __init__(self, candidates: Sequence[str] = ()) -> None:
        self._candidates = tuple(candidates)
        self._output = ""
        self._unused = ""
        self._labels = self._original = self._artifact = 0

    def update(self, original: Arrays, artifact: Arrays, extras: Mapping[str, NDArray[Any]]) -> None:
        """Add one batch; a batch without labels, or with labels that fit no output, adds nothing."""
        labels = extras.get("label", extras.get("labels"))
        if labels is None:
            return
        if labels.dtype.kind not in "iub":
            self._unused = f"they are {labels.dtype}, not integers"
            return
        self._output = self._output or self._find(original, labels)
        name = self._output
        if not name or original[name].shape[:-1] != labels.shape or artifact[name].shape != original[name].shape:
            self._unused = (
                f"no float output of rank 2, or named as logits, has rows of their shape {list(labels.shape)}"
            )
            return
        classes = original[name].shape[-1]
        if (labels >= classes).any():
            self._unused = f"{int((labels >= classes).sum())} are beyond the {classes} classes of {name}"
        counted = (labels >= 0) & (labels < classes)
        self._labels += int(counted.sum())
        self._original += int((original[name].argmax(axis=-1) == labels)[counted].sum())
        self._artifact += int((artifact[name].argmax(axis=-1) == labels)[counted].sum())

    def _find(self, outputs: Arrays, labels: NDArray[Any]) -> str:
        def fits(name: str, array: NDArray[Any]) -> bool:
            wanted = name in self._candidates if self._candidates else array.ndim == 2
            return wanted and array.dtype.kind == "f" and array.shape[-1:] > (1,) and array.shape[:-1] == labels.shape

        return next((name for name, array in outputs.items() if fits(name, array)), "")

    @property
    def note(self) -> str:
        """Why labels of the data were left out; empty where none were."""
        return f"labels were not counted: {self._unused}" if self._unused else ""

    def result(self) -> Accuracy | None:
        """Return both accuracies, or None where no labels were counted."""
        if not self._labels:
            return None
        return Accuracy(self._output, self._labels, self._original / self._labels, self._artifact / self._labels)


def check_metric(metric: str) -> None:
    """Check that a metric is one of `METRICS` or has the form ``pkg.mod:callable``.

    Raises:
        UsageError: it is neither.
    """
    if metric not in METRICS and ":" not in metric:
        msg = f"unknown metric '{metric}'"
        raise UsageError(
            msg,
            note=f"available: {', '.join(METRICS)}, or your own pkg.mod:callable",
            remedy="Choose one of these, or give your own.",
        )


def worst(outputs: Sequence[OutputDrift], metric: str) -> tuple[str, float]:
    """Return the output with the largest drift, and the drift.

    Raises:
        UsageError: the metric applies to none of the outputs.
    """
    drifts = [(drift.name, value) for drift in outputs if (value := drift.value(metric)) is not None]
    if not drifts:
        applying = [name for name in METRICS if any(drift.value(name) is not None for drift in outputs)]
        note = f"outputs: {', '.join(drift.name for drift in outputs)}; metrics that apply: {', '.join(applying)}"
        remedy = "Take one of these, or name the outputs that are logits (actx check --logits)."
        msg = f"metric '{metric}' applies to none of the outputs"
        raise UsageError(msg, note=note, remedy=remedy)
    return max(drifts, key=lambda item: math.inf if math.isnan(item[1]) else item[1])


def comparable(original: NDArray[Any], artifact: NDArray[Any]) -> tuple[Array, Array, int]:
    """Return both in float64 with 0 wherever either is not finite, and the number of places where that differs."""
    reference, actual = original.astype(np.float64), artifact.astype(np.float64)
    finite = np.isfinite(reference) & np.isfinite(actual)
    if finite.all():
        return reference, actual, 0
    same = (reference == actual) | (np.isnan(reference) & np.isnan(actual))
    return np.where(finite, reference, 0.0), np.where(finite, actual, 0.0), int((~finite & ~same).sum())


def cosine_distance(a: Array, b: Array) -> Array:
    """Return 1 - cosine of every row: half the squared distance of the directions, which is exact near 0.

    Two zero rows have distance 0, a zero row and another one 1.
    """
    directions = []
    for rows in (a, b):
        scale = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
        scaled = rows / np.where(scale > 0, scale, 1.0)
        norm = np.linalg.norm(scaled, axis=1, keepdims=True)
        directions.append(scaled / np.where(norm > 0, norm, 1.0))
    empty = [~rows.any(axis=1) for rows in (a, b)]
    distance = np.square(directions[0] - directions[1]).sum(axis=1) / 2
    return np.where(empty[0] != empty[1], 1.0, distance)


def top1_changed(original: Array, artifact: Array) -> NDArray[np.bool_]:
    """Tell for every row whether the artifact's top-1 is one that the original ranks lower than its own."""
    chosen = np.take_along_axis(original, artifact.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.asarray(chosen < original.max(axis=1))


def kl_divergence(original: Array, artifact: Array) -> Array:
    """Return KL(softmax(original) || softmax(artifact)) of every row, in nats.

    Classes at -inf in both have probability 0. Rows with NaN or +inf, or with -inf only, give 0.
    """
    usable = [np.isfinite(rows.max(axis=1)) for rows in (original, artifact)]
    keep = usable[0] & usable[1]
    log_p, log_q = (_log_softmax(np.where(keep[:, None], rows, 0.0)) for rows in (original, artifact))
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    return np.where(keep, np.maximum(terms.sum(axis=1), 0.0), 0.0)


def json_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace infinities, which JSON does not have, by "inf" and "-inf", and NaN by null, at any depth."""
    return {name: _json_value(value) for name, value in values.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return json_values(value)
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def _log_softmax(rows: Array) -> Array:
    shifted = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _are_probabilities(rows: Array) -> bool:
    return bool(((rows >= 0) & (rows <= 1)).all() and (np.abs(rows.sum(axis=1) - 1) < _SUM_TOLERANCE).all())


def _per_sample(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(len(array), math.prod(array.shape[1:])) if array.ndim else array.reshape(1, 1)


def _infinite(drift: OutputDrift) -> OutputDrift:
    def unless_none(value: float | None, infinity: float = math.inf) -> float | None:
        return None if value is None else infinity

    return replace(
        drift,
        max_abs=math.inf,
        mean_abs=math.inf,
        l2=unless_none(drift.l2),
        sqnr_db=unless_none(drift.sqnr_db, -math.inf),
        cosine=unless_none(drift.cosine),
        top1=unless_none(drift.top1),
        kl=unless_none(drift.kl),
    )


def _mean(total: float, count: int) -> float:
    return total / count if count else 0.0
