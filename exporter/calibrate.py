"""Observe every site on data: what arrives there, and what leaves as exact zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from actx.exporter.fitting import Density
from actx.exporter.runtimes.onnxruntime import DEFAULT

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from actx.exporter.data import Data
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


def calibrate(
    model: Path,
    sites: Sequence[Site],
    data: Data,
    runtime: Runtime = DEFAULT,
    progress: Progress | None = None,
) -> Mapping[str, SiteStatistics]:
    """Run the model on all the data and return the statistics per site name. One batch is held at a time.

    Raises:
        ActxError: the model cannot be run on the data.
    """
    if not sites:
        return {}
    names = list(dict.fromkeys(name for site in sites for name in (site.input, site.output)))
    session = runtime.open(model, names)
    meters = {site.name: _Meter() for site in sites}
    done = 0
    for batch in data.batches():
        values = session.run(batch.feeds, names)
        for site in sites:
            meters[site.name].update(values[site.input], values[site.output])
        done += batch.samples
        if progress is not None:
            progress(done, data.samples)
    return {name: meter.result(data.samples) for name, meter in meters.items()}
