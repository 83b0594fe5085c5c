"""Observe every site on data: what arrives there, and what leaves as exact zero.

1. One pass, one batch at a time. Smallest and largest input are exact.
2. With a checkpoint the state is written every so often, and at the end. A later pass over the same batches only reads and
   compares those that were seen, and goes on behind them; all counts are integers, so that the result is the same.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from actx.exporter.data import digest
from actx.exporter.fitting import Density
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.search.log import measurement_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from actx.exporter.checkpoint import Checkpoint
    from actx.exporter.data import Arrays, Batch, Data
    from actx.exporter.lift import Site
    from actx.exporter.runtimes.base import Runtime

Progress: TypeAlias = Callable[[int, int], None]

# The interval of a fit that has no asymptotes to rely on: the observed range, and a quarter more.
MARGIN = 1.25


@dataclass(frozen=True)
class SiteStatistics:
    """What was observed at one site.

    Attributes:
        low, high: smallest and largest finite input.
        elements: elements per sample, mean over the data.
        zeros: share of exact zeros among the outputs.
        density: how often finite inputs are where; None where there are none.
        undefined: outputs that are not finite where the input is.
    """

    low: float
    high: float
    elements: float
    zeros: float
    density: Density | None = None
    undefined: int = 0

    @property
    def empty(self) -> bool:
        """Whether no finite input was observed."""
        return self.density is None

    @property
    def interval(self) -> tuple[float, float]:
        """The observed range widened by `MARGIN` about its centre; never empty."""
        centre = (self.high + self.low) / 2
        half = max((self.high - self.low) / 2 * MARGIN, 1e-3 * max(1.0, abs(centre)))
        return centre - half, centre + half


class _Meter:
    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.elements = self.zeros = self.undefined = 0
        self.density = Density()

    def update(self, inputs: NDArray[np.generic], outputs: NDArray[np.generic]) -> None:
        known = np.isfinite(inputs)
        self.undefined += int(np.count_nonzero(known & ~np.isfinite(outputs)))
        finite = inputs[known]
        if finite.size:
            self.low = min(self.low, float(finite.min()))
            self.high = max(self.high, float(finite.max()))
            self.density += Density.of(finite)
        self.elements += outputs.size
        self.zeros += outputs.size - int(np.count_nonzero(outputs))

    def result(self, samples: int) -> SiteStatistics:
        empty = not self.low <= self.high
        low, high, density = (0.0, 0.0, None) if empty else (self.low, self.high, self.density)
        zeros = self.zeros / max(self.elements, 1)
        return SiteStatistics(low, high, self.elements / samples, zeros, density, self.undefined)


class _Pass:
    """What was observed so far, and on what."""

    def __init__(self, names: Sequence[str]) -> None:
        self.meters = {name: _Meter() for name in names}
        self.batches = self.samples = 0
        self.seen = ""

    def saw(self, batch: Batch) -> None:
        self.batches += 1
        self.samples += batch.samples
        self.seen = _seen(self.seen, batch)

    def to_arrays(self) -> Arrays:
        meters = self.meters.values()
        return {
            "progress": np.array([self.batches, self.samples]),
            "seen": np.array(self.seen),
            "ranges": np.array([[m.low, m.high] for m in meters]),
            "counts": np.array([[m.elements, m.zeros, m.undefined] for m in meters]),
            "densities": np.array([m.density.counts for m in meters]),
        }

    @classmethod
    def of(cls, names: Sequence[str], arrays: Arrays) -> _Pass:
        found = cls(names)
        found.batches, found.samples = arrays["progress"].tolist()
        found.seen = str(arrays["seen"])
        for i, meter in enumerate(found.meters.values()):
            meter.low, meter.high = arrays["ranges"][i].tolist()
            meter.elements, meter.zeros, meter.undefined = arrays["counts"][i].tolist()
            meter.density = Density(arrays["densities"][i])
        return found


def _seen(before: str, batch: Batch) -> str:
    """Return the digest of the batches so far and this one."""
    return hashlib.sha256((before + digest(batch.feeds)).encode()).hexdigest()


def calibrate(
    model: Path,
    sites: Sequence[Site],
    data: Data,
    runtime: Runtime = DEFAULT,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> Mapping[str, SiteStatistics]:
    """Run the model on all the data and return the statistics per site name. One batch is held at a time.

    Args:
        model: the ONNX file.
        sites: what lift found in it.
        data: made for its inputs.
        runtime: what runs it; the values at the sites must be there to be looked at.
        progress: called with the number of samples done and to do.
        checkpoint: where the pass is kept, so that an interrupted one goes on and a complete one is not repeated.

    Raises:
        ActxError: the model cannot be run on the data, or the checkpoint not be written.
    """
    if not sites:
        return {}
    names = list(dict.fromkeys(name for site in sites for name in (site.input, site.output)))
    session = runtime.open(model, names)
    key = "" if checkpoint is None else _key(checkpoint, sites, runtime)
    done, batches = _begin(sites, data, None if checkpoint is None else checkpoint.load(key))
    saved = time.monotonic()
    if progress is not None and done.samples:
        progress(done.samples, data.samples)
    for batch in batches:
        values = session.run(batch.feeds, names)
        for site in sites:
            done.meters[site.name].update(values[site.input], values[site.output])
        done.saw(batch)
        if progress is not None:
            progress(done.samples, data.samples)
        if checkpoint is not None and time.monotonic() - saved >= checkpoint.seconds:
            checkpoint.save(key, done.to_arrays())
            saved = time.monotonic()
    if checkpoint is not None:
        checkpoint.save(key, done.to_arrays())
    return {name: meter.result(data.samples) for name, meter in done.meters.items()}


def _key(checkpoint: Checkpoint, sites: Sequence[Site], runtime: Runtime) -> str:
    """Return what a pass depends on besides the batches."""
    places = [[site.name, site.input, site.output] for site in sites]
    return measurement_key("calibration", checkpoint.model, places, runtime.name, version("actx"))


def _begin(sites: Sequence[Site], data: Data, saved: Arrays | None) -> tuple[_Pass, Iterator[Batch]]:
    """2. Return the pass as it is to go on, and the batches that are left."""
    names = [site.name for site in sites]
    if saved is not None:
        found, batches, seen = _Pass.of(names, saved), data.batches(), ""
        for batch in islice(batches, found.batches):
            seen = _seen(seen, batch)
        if seen == found.seen:
            return found, batches
    return _Pass(names), data.batches()
