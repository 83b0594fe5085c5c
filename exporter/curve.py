"""What a site's function, its form and its inputs look like: samples of them for the manifest.

1. The curve is over the observed range widened as for a fit, else over the interval of the fit, else over [-8, 8].
2. Of a function per channel it is that of the first channel; mixtures and row-wise sites are no functions of one number.
3. Numbers have as many digits as a picture needs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from actx.exporter.lift import ScalarFunction
from actx.exporter.manifest import CurveEntry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.exporter.calibrate import SiteStatistics
    from actx.exporter.choose import Choice

POINTS, BINS = 97, 48
_UNOBSERVED = (-8.0, 8.0)
_DIGITS, _ERROR_DIGITS = 5, 3


def curve_entry(choice: Choice, observed: SiteStatistics | None) -> CurveEntry | None:
    """Return f and s - f at `POINTS` places; None for what is no function of one number (2.)."""
    function, found = choice.site.function, choice.fit
    if not isinstance(function, ScalarFunction):
        return None
    spline = None if found is None else found.spline
    if function.channels is not None:
        function, spline = function.channel(0), None if spline is None else spline.channel(0)
    interval = _UNOBSERVED if choice.interval is None else choice.interval
    if observed is not None and not observed.empty:
        interval = observed.interval
    x = np.linspace(*interval, POINTS)
    with np.errstate(all="ignore"):
        f = np.asarray(function(x), dtype=np.float64)
        error = None if spline is None else _rounded(spline(x) - f, _ERROR_DIGITS)
    return CurveEntry(interval=interval, source=_rounded(f, _DIGITS), error=error)


def histogram(observed: SiteStatistics) -> list[float]:
    """Return the share of the inputs in each of `BINS` equal parts of the observed range; empty where that is one point."""
    if observed.density is None or observed.low == observed.high:
        return []
    shares = observed.density.shares(np.linspace(observed.low, observed.high, BINS + 1))
    return [float(f"{share:.{_ERROR_DIGITS}g}") for share in shares]


def _rounded(values: NDArray[np.float64], digits: int) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]
