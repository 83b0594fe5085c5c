"""Say in words what is wrong with the function of a site, before a runtime turns it into NaN in silence.

1. A constant of it is not a number.
2. With data: it is not finite somewhere in the range that was observed, or its outputs were not.
3. Without: it has a pole between finite values, and nothing says whether inputs come there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actx.exporter.errors import ActxError
from actx.exporter.fitting.sampling import FP16_MAX
from actx.exporter.lift.function import Constant, ScalarFunction
from actx.exporter.poles import find_pole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from actx.exporter.calibrate import SiteStatistics
    from actx.exporter.lift import Site

# Of a function per channel, as many distinct ones are looked at as are fitted one by one.
MAX_CHANNELS = 64


def diagnose(sites: Sequence[Site], statistics: Mapping[str, SiteStatistics] | None = None) -> tuple[str, ...]:
    """Return a note for every site that has something wrong with it.

    Args:
        sites: what lift found.
        statistics: what was observed on the user's data, by site name; None or without the site where there is none.
    """
    found = ((site, _complaint(site, (statistics or {}).get(site.name))) for site in sites)
    return tuple(f"site {site.name} {complaint}" for site, complaint in found if complaint)


def require_bounded(function: ScalarFunction, interval: tuple[float, float] | None) -> None:
    """Raise an error where f, of one channel, has a pole or a constant that is not a number: no table can follow it.

    Args:
        function: f.
        interval: where it is to be fitted; None for all finite fp16.

    Raises:
        ActxError: it has one.
    """
    if _has_nan(function):
        raise ActxError(
            "the function has a constant that is not a number", remedy="Look for NaN in the model's weights."
        )
    low, high = interval or (-FP16_MAX, FP16_MAX)
    pole = find_pole(function, low, high, domain=False)
    if pole is not None:
        raise ActxError(
            f"the function is not finite near x = {pole:.6g}",
            note=f"it must be finite on all of [{low:.6g}, {high:.6g}] to be fitted",
            remedy="Give data on which it is finite." if interval is None else "Keep the site: --site NAME=keep.",
        )


def _complaint(site: Site, observed: SiteStatistics | None) -> str | None:
    function = site.function
    if not isinstance(function, ScalarFunction):  # of a row: it is built of bounded parts
        return None
    if _has_nan(function):  # 1.
        return "has a constant that is not a number"
    if observed is None:  # 3.
        pole = _first_pole(function, -FP16_MAX, FP16_MAX, domain=False)
        unknown = "without --data nothing says whether inputs come there"
        return None if pole is None else f"is not finite near x = {pole:.6g}; {unknown}"
    pole = _first_pole(function, observed.low, observed.high, domain=True)  # 2.
    if pole is not None:
        return f"is not finite near x = {pole:.6g}, inside the observed range {observed.low:.6g} .. {observed.high:.6g}"
    if observed.undefined:
        return f"gave {observed.undefined} outputs that are not finite, of finite inputs"
    return None


def _has_nan(function: ScalarFunction) -> bool:
    constants = (operand for step in function.steps for operand in step.operands if isinstance(operand, Constant))
    attributes = (value for step in function.steps for value in step.attributes.values() if isinstance(value, float))
    return any(np.isnan(c.values).any() for c in constants if c.values.dtype != bool) or any(map(np.isnan, attributes))


def _first_pole(function: ScalarFunction, low: float, high: float, *, domain: bool) -> float | None:
    poles = (find_pole(channel, low, high, domain=domain) for channel in _channels(function))
    return next((pole for pole in poles if pole is not None), None)


def _channels(function: ScalarFunction) -> Iterator[ScalarFunction]:
    if function.channels is None:
        yield function
        return
    distinct: dict[str, ScalarFunction] = {}
    for index in range(function.channels):
        channel = function.channel(index)
        distinct.setdefault(channel.key, channel)
        if len(distinct) == MAX_CHANNELS:
            break
    yield from distinct.values()
