"""Geometry of the charts: paths in the coordinates of an SVG. Labels are text of the page, which every width can read.

Coordinates are whole numbers with y downwards; a path is written by differences, which is short: 2,000 sites are to stay small.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from actx.exporter.manifest import CurveEntry, RoundMinimaEntry, SearchEntry, SiteEntry, TimesEntry

WIDTH, HEIGHT, ERROR_HEIGHT, ROUNDS_HEIGHT = 1152, 400, 140, 120
_EDGE = 12  # left free above and below curves
# Interquartile ranges from the upper quartile: what is beyond is far out (Tukey, Exploratory Data Analysis, 1977).
_FENCE = 3.0
_LEAST_FOR_QUARTILES = 4


@dataclass(frozen=True)
class SiteChart:
    """A site's picture.

    Attributes:
        x, y: what the ends of the axes are.
        zero: where x = 0 and y = 0 are; None outside.
        source, form, error, histogram: paths; empty where there is none.
        largest: the largest error that is drawn, at the upper edge of its panel.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    zero: tuple[int | None, int | None]
    source: str
    form: str
    error: str
    histogram: str
    largest: float


@dataclass(frozen=True)
class FrontChart:
    """What a search found, as a picture of milliseconds and drift on a logarithmic axis.

    Attributes:
        x, y: what the ends of the axes are.
        front: path of the predicted front, in steps.
        points: its points.
        verified: those that were built, and whether each was taken.
        budget: height of the budget.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    front: str
    points: list[tuple[int, int]]
    verified: list[tuple[int, int, bool]]
    budget: int


@dataclass(frozen=True)
class RoundsChart:
    """What the sessions of one model took in every round, the first round on top.

    Attributes:
        dots: path of one dot per round.
        middle: where the median is.
        median: milliseconds.
    """

    dots: str
    middle: int
    median: float


@dataclass(frozen=True)
class LatencyChart:
    """The rounds of the original, the artifact and the original again, over one axis of milliseconds.

    Attributes:
        x: what the ends of the axis are.
        rounds: by the name of the model.
        beyond: how many dots lie beyond the right end, and are drawn there.
    """

    x: tuple[float, float]
    rounds: dict[str, RoundsChart]
    beyond: int


def site_chart(site: SiteEntry) -> SiteChart | None:
    """Return the picture of a site's function, form, error and inputs; None where there is nothing to draw."""
    curve = site.curve
    known = [] if curve is None else [value for value in curve.source if value is not None]
    if curve is None or not known:
        return None
    form = _form(curve)
    values = [*known, *(value for value in form if value is not None)]
    low, high = min(values), max(values)
    largest = max((abs(error) for error in curve.error or () if error is not None), default=0.0)
    return SiteChart(
        x=curve.interval,
        y=(low, high),
        zero=(_inside(0.0, curve.interval, WIDTH), _inside(0.0, (high, low), HEIGHT, _EDGE)),
        source=_path(_heights(curve.source, high, low, HEIGHT)),
        form=_path(_heights(form, high, low, HEIGHT)),
        error=_path(_heights(curve.error or (), largest, -largest, ERROR_HEIGHT)) if largest else "",
        histogram=_histogram(site, curve),
        largest=largest,
    )


def _form(curve: CurveEntry) -> list[float | None]:
    pairs = zip(curve.source, curve.error or (), strict=curve.error is not None)
    return [None if f is None or error is None else f + error for f, error in pairs]


def _heights(values: Sequence[float | None], top: float, bottom: float, height: int) -> list[tuple[int, int] | None]:
    step = WIDTH / max(len(values) - 1, 1)
    return [
        None if value is None else (round(i * step), _place(value, top, bottom, height, _EDGE))
        for i, value in enumerate(values)
    ]


def _place(value: float, start: float, end: float, length: int, edge: int = 0) -> int:
    """Return where a value lies between two others that are `edge` inside the ends of an axis."""
    share = (value - start) / (end - start) if end != start else 0.5
    return round(edge + share * (length - 2 * edge))


def _inside(value: float, ends: tuple[float, float], length: int, edge: int = 0) -> int | None:
    return _place(value, *ends, length, edge) if min(ends) < value < max(ends) else None


def _path(points: Iterable[tuple[int, int] | None]) -> str:
    """Return the path through points, by differences; it is broken where one is missing."""
    parts: list[str] = []
    before: tuple[int, int] | None = None
    for point in points:
        if point is not None:
            parts.append(
                f"M{point[0]} {point[1]}" if before is None else f"l{point[0] - before[0]} {point[1] - before[1]}"
            )
        before = point
    return "".join(parts)


def _histogram(site: SiteEntry, curve: CurveEntry) -> str:
    """Return the outline of the histogram, half as high as the picture."""
    observed = site.statistics
    shares = [] if observed is None else observed.histogram
    if observed is None or not any(shares):
        return ""
    left, right = (_place(end, *curve.interval, WIDTH) for end in (observed.low, observed.high))
    edges = [round(left + i * (right - left) / len(shares)) for i in range(len(shares) + 1)]
    heights = [round(HEIGHT * (1 - share / max(shares) / 2)) for share in shares]
    bars = "".join(f"V{height}H{edge}" for height, edge in zip(heights, edges[1:], strict=True))
    return f"M{left} {HEIGHT}{bars}V{HEIGHT}Z"


def front_chart(search: SearchEntry) -> FrontChart:
    """Return the picture of a search: with a budget between two points of the front, the choice is the lower one."""
    verified = [
        (search.original_ms - one.predicted_saved_ms, float(one.drift), one.taken)
        for one in search.verified
        if one.drift != "inf"
    ]
    front = sorted((search.original_ms - point.saved_ms, point.drift) for point in search.front)[::-1]
    drifts = [search.budget, *(drift for _, drift in front), *(drift for _, drift, _ in verified)]
    above = [drift for drift in drifts if drift > 0] or [1.0]
    y = (max(above) * 2, min(above) / 2)  # a drift of 0, which has no logarithm, is at the lower end
    times = [*(ms for ms, _ in front), *(ms for ms, _, _ in verified), search.original_ms]
    margin = 0.04 * (max(times) - min(times)) or 0.01 * max(times)
    x = (min(times) - margin, max(times) + margin)

    top, bottom = (math.log10(end) for end in y)

    def place(ms: float, drift: float) -> tuple[int, int]:
        return _place(ms, *x, WIDTH), _place(math.log10(max(drift, y[1])), top, bottom, HEIGHT)

    points = [place(*point) for point in front]
    steps = "".join(f"{'HV'[i]}{point[i]}" for point in points[1:] for i in (0, 1))
    return FrontChart(
        x=x,
        y=y,
        front=f"M{points[0][0]} {points[0][1]}{steps}" if points else "",
        points=points,
        verified=[(*place(ms, drift), taken) for ms, drift, taken in verified],
        budget=place(search.original_ms, search.budget)[1],
    )


def latency_chart(minima: RoundMinimaEntry) -> LatencyChart:
    """Return the picture of what every round took; a few that took far longer do not push the others together."""
    rounds = {
        "original": minima.original,
        "artifact": minima.artifact,
        "original again": minima.original_again,
    }
    times = [time for row in rounds.values() for time in row]
    high = min(max(times), max(map(_fence, rounds.values())))
    margin = 0.02 * (high - min(times))
    x = (min(times) - margin, high + margin)
    return LatencyChart(
        x=x,
        rounds={name: _rounds(row, x) for name, row in rounds.items()},
        beyond=sum(time > x[1] for time in times),
    )


def _fence(times: Sequence[float]) -> float:
    """Return the time beyond which one is far out."""
    if len(times) < _LEAST_FOR_QUARTILES:
        return max(times)
    lower, middle, upper = statistics.quantiles(times, n=4)
    return upper + _FENCE * max(upper - lower, 0.01 * middle)


def _rounds(times: Sequence[float], x: tuple[float, float]) -> RoundsChart:
    places = [_place(min(time, x[1]), *x, WIDTH) for time in times]
    heights = [round(_EDGE + i * (ROUNDS_HEIGHT - 2 * _EDGE) / max(len(times) - 1, 1)) for i in range(len(times))]
    median = statistics.median(times)
    dots = "".join(f"M{place} {height}h0" for place, height in zip(places, heights, strict=True))
    return RoundsChart(dots, _place(min(median, x[1]), *x, WIDTH), median)


def spread(row: TimesEntry, longest: float) -> dict[str, float]:
    """Return where percentiles of a latency lie on a line of 100 that ends at the longest."""
    times = {"min": row.min, "p50": row.p50, "p90": row.p90, "p99": row.p99}
    return {name: round(100 * time / longest, 2) if longest else 0.0 for name, time in times.items()}


CHARTS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (site_chart, front_chart, latency_chart, spread)
}
