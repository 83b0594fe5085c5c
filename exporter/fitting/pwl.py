"""`pwl:K`: a continuous piecewise-linear function of K segments, its linear tails counted.

1. A fit with error E is a path in the tube f - E w <= y <= f + E w, w = 1 where no density widens it. The path with
   fewest links is found greedily (Imai and Iri 1987, Suri 1986): a link goes as far as it can, and the next one leaves
   it anywhere between its last touch of the tube and its exit, where it in turn gets farthest.
2. The tube has width zero at x = 0, so that s(0) = f(0), and the first and last links are the asymptotes.
3. The smallest E with at most K links is found by bisection.
4. Where f has a symmetry and K is even, one half is fitted and mirrored if that costs little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actx.exporter.errors import ActxError
from actx.exporter.fitting.chain import Chain, Piece
from actx.exporter.fitting.family import Family, Parameter, Solution
from actx.exporter.fitting.sampling import law
from actx.exporter.fitting.search import smallest_error
from actx.exporter.fitting.tails import last_outside, tail_error, tail_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.custom_ops.spline import Spline
    from actx.exporter.fitting.form import Form
    from actx.exporter.fitting.problem import Problem, Span

_LEAVES = 17  # points tried at which a link may leave the one before
_REFINEMENTS = 2
_CHUNK = 256  # grid points looked ahead at first
_SYMMETRY_MAY_COST = 1.03
_JUMP_WIDTH = 1e-6  # stretch around a jump in which the path must suit both sides, so that it is not torn
_SLACK = 1e-13  # rounding of slopes, relative


@dataclass(frozen=True)
class _Link:
    """A line y = value + slope (x - at), and the stretch [touch, exit] in which the next link may leave it."""

    at: float
    value: float
    slope: float
    touch: float
    exit: float

    def __call__(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.value + self.slope * (x - self.at)


@dataclass(frozen=True)
class _Reach:
    """How far lines from one leaving point come: the best slope, where it last touches, and where it exits."""

    slope: float
    touch: float
    exit: float


def solve(problem: Problem, form: Form) -> Solution:
    """Fit the table; the symmetric one where it is as good."""
    guess = 1.2 * law(problem.cells, 1, form.segments)
    if problem.symmetry is None or form.segments % 2:
        return Solution(_whole(problem, form, guess))
    half = _fit(problem.span.right_half(), form.segments // 2, guess)
    if half is None:
        return Solution(_whole(problem, form, guess))
    mirrored = half.mirrored(problem.symmetry).rounded(1)
    if _path(problem.span, problem.error(mirrored) / _SYMMETRY_MAY_COST, form.segments) is None:
        return Solution(mirrored)
    return Solution(_whole(problem, form, guess))


def _whole(problem: Problem, form: Form, guess: float) -> Spline:
    chain = _fit(problem.span, form.segments, guess)
    if chain is None:
        raise ActxError(
            f"{form.segments} segments cannot follow the function",
            note="a continuous piecewise-linear fit must join the asymptotes",
            remedy="Use more segments, or give an interval: calibration data or --range.",
        )
    return chain.rounded(1)


def _fit(span: Span, segments: int, guess: float) -> Chain | None:
    def reached(error: float) -> float:
        return -1.0 if _path(span, error, segments) is None else 1.0

    error = smallest_error(reached, span.scale, guess)
    path = _path(span, error, segments)
    return None if path is None else _chain(span, path)


def _path(span: Span, error: float, limit: int) -> list[_Link] | None:
    """Links of a path in the tube from the left end to the right one, or None where it takes more than `limit`."""
    lower, upper = span.y - error * span.width, span.y + error * span.width
    if span.pin is not None:
        lower[span.pin] = upper[span.pin] = span.y[span.pin]
    for i in span.breaks:  # nothing continuous follows a jump: the path is on both sides' tubes there
        near = slice(*np.searchsorted(span.x, [span.x[i] - _JUMP_WIDTH, span.x[i + 1] + _JUMP_WIDTH]))
        lower[near], upper[near] = lower[near].max(), upper[near].min()
    if (lower > upper).any():
        return None
    stop = last_outside(span, error) + 1 if span.right is not None else len(span.x)
    if span.left is not None:
        links = [_left_tail(span, error)]
        x, y = _leaves(links[0])
    else:
        links = []
        y = np.array([span.y[0]]) if span.pin == 0 else np.linspace(lower[0], upper[0], _LEAVES)
        x = np.full(len(y), span.x[0])
    while len(links) + (span.right is not None) < limit:
        link, closes = _next_link(span, lower, upper, stop, x, y)
        for _ in range(0 if closes else _REFINEMENTS):
            if len(x) < 3 or closes:
                break
            x, y = _around(link, x, y, links)
            better, closes = _next_link(span, lower, upper, stop, x, y)
            link = better if closes or better.exit >= link.exit else link
        links.append(link)
        if closes:
            return [*links, _tail_link(span.right)] if span.right is not None else links
        if link.exit >= span.x[-1]:
            return None
        x, y = _leaves(link)
    return None


def _left_tail(span: Span, error: float) -> _Link:
    assert span.left is not None
    gap = tail_error(span, span.left) - error
    outside = np.flatnonzero(gap > 0)
    if len(outside) == 0:
        exit_ = float(span.x[-1])
    else:
        i = max(int(outside[0]), 1)
        exit_ = float(
            span.x[i - 1] + (span.x[i] - span.x[i - 1]) * min(max(-gap[i - 1] / (gap[i] - gap[i - 1]), 0.0), 1.0)
        )
    # A link that leaves the tail far from its exit gains nothing: look over the stretch that one segment deserves.
    back = float(np.interp(np.interp(exit_, span.x, span.u) - 0.05, span.u, span.x))
    return _Link(0.0, float(span.left[0]), float(span.left[1]), min(back, exit_), exit_)


def _tail_link(tail: NDArray[np.float64]) -> _Link:
    return _Link(0.0, float(tail[0]), float(tail[1]), -np.inf, np.inf)


def _leaves(link: _Link) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of a link at which the next one may leave it, denser towards the exit."""
    x = link.exit - (link.exit - link.touch) * np.linspace(0, 1, _LEAVES) ** 2
    x[-1] = link.touch  # exactly: it may be the pin at 0
    return x, link(x)


def _around(
    link: _Link, x: NDArray[np.float64], y: NDArray[np.float64], links: list[_Link]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Leaving points between the neighbours of the best one."""
    # On an interval the first link leaves a vertical line, so there it is y that varies.
    axis = x if x[0] != x[-1] else y
    best = int(np.flatnonzero((x == link.at) & (y == link.value))[0])
    low, high = axis[max(best - 1, 0)], axis[min(best + 1, len(axis) - 1)]
    fine = np.append(np.linspace(low, high, 9), axis[best])
    fine.sort()
    if axis is y:
        return np.full(len(fine), x[0]), fine
    return fine, links[-1](fine)


def _next_link(
    span: Span,
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    stop: int,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
) -> tuple[_Link, bool]:
    """Find the link from one of the leaving points (x, y) that gets farthest; True where it ends the path."""
    first = int(np.searchsorted(span.x, x.min(), side="right"))
    size = _CHUNK
    while True:
        part = slice(first, min(first + size, len(span.x)))
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = _cones(span.x[part], lower[part], upper[part], x, y)
        open_ = low <= high + _SLACK * np.maximum(np.abs(low), np.abs(high))
        count = np.where(open_.all(axis=1), open_.shape[1], np.argmin(open_, axis=1))
        if part.stop == len(span.x) or count.max() < open_.shape[1]:
            break
        size *= 2
    closing = _closing(span, first, stop, low, high, open_, x, y)
    if closing is not None:
        return closing, True
    reaches = [
        _reach(span, lower, upper, first, int(n), lo, hi, a, b)
        for n, lo, hi, a, b in zip(count, low, high, x, y, strict=True)
    ]
    best = int(np.argmax([r.exit for r in reaches]))
    chosen = reaches[best]
    return _Link(float(x[best]), float(y[best]), chosen.slope, chosen.touch, chosen.exit), False


def _cones(
    grid: NDArray[np.float64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds of the slopes from each (x, y) that stay in the tube up to each grid point; shape (leaves, points)."""
    step = grid - x[:, None]
    behind = step <= 0
    low = np.where(behind, -np.inf, (lower - y[:, None]) / step)
    high = np.where(behind, np.inf, (upper - y[:, None]) / step)
    return np.maximum.accumulate(low, axis=1), np.minimum.accumulate(high, axis=1)


def _closing(
    span: Span,
    first: int,
    stop: int,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    open_: NDArray[np.bool_],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
) -> _Link | None:
    """Find a link that ends the path: it meets the right tail inside the tube, or comes to the end of the interval."""
    if span.right is None:
        rows = np.flatnonzero(open_.all(axis=1))
        if first + open_.shape[1] < len(span.x) or len(rows) == 0:
            return None
        row = int(rows[np.argmax((high - low)[rows, -1])])
        slope = float((low[row, -1] + high[row, -1]) / 2)
        return _Link(float(x[row]), float(y[row]), slope, float(x[row]), np.inf)
    start = max(stop - first, 0)
    grid = span.x[first + start : first + low.shape[1]]
    if len(grid) == 0:
        return None
    step = grid - x[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = (tail_value(span.right, grid) - y[:, None]) / step
    slack = _SLACK * np.abs(slopes)
    meets = (slopes >= low[:, start:] - slack) & (slopes <= high[:, start:] + slack) & (step > 0) & open_[:, start:]
    if not meets.any():
        return None
    row, column = (int(i) for i in np.unravel_index(int(np.argmax(meets)), meets.shape))
    return _Link(float(x[row]), float(y[row]), float(slopes[row, column]), float(x[row]), float(grid[column]))


def _reach(
    span: Span,
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    first: int,
    count: int,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    x: float,
    y: float,
) -> _Reach:
    """Find the farthest link from (x, y), whose cone of slopes closes after `count` points."""
    if count == 0:
        return _Reach(0.0, x, x)
    last = first + count - 1
    if last == len(span.x) - 1:
        return _Reach(float((low[-1] + high[-1]) / 2), x, float(span.x[-1]))
    # The cone closes because the next bound lies beyond the opposite side of the cone: that side is the slope.
    falls = low[count] > high[count - 1]
    slope = float(high[count - 1] if falls else low[count - 1])
    cone = high if falls else low
    touch = max(float(span.x[first + int(np.argmax(cone[:count] == slope))]), x)
    bound = lower if falls else upper
    gaps = [abs(float(bound[i] - y - slope * (span.x[i] - x))) for i in (last, last + 1)]
    share = gaps[0] / (gaps[0] + gaps[1]) if gaps[0] + gaps[1] > 0 else 1.0
    exit_ = float(span.x[last] + share * (span.x[last + 1] - span.x[last]))
    return _Reach(slope, min(touch, exit_), exit_)


def _chain(span: Span, links: list[_Link]) -> Chain:
    """Lines through the float32 knots, so that rounding does not tear the path."""
    knots = [link.at for link in links[1:]]
    if span.right is not None:
        knots[-1] = links[-2].exit
    knots = [float(np.float32(knot)) for knot in knots]
    values = [_value(span, links, i, knot) for i, knot in enumerate(knots)]
    pieces = []
    for i, link in enumerate(links):
        if i == 0 and span.left is not None:
            pieces.append(Piece(span.left[:2], tail=True))
        elif i == len(links) - 1 and span.right is not None:
            pieces.append(Piece(span.right[:2], tail=True))
        else:
            pieces.append(_line(span, link, _ends(span, link, knots, values, i)))
    return Chain(np.array(knots), tuple(pieces))


def _value(span: Span, links: list[_Link], i: int, knot: float) -> float:
    """Height of the path at knot i, between links i and i + 1."""
    if i == 0 and span.left is not None:
        return float(tail_value(span.left, np.array(knot)))
    if i == len(links) - 2 and span.right is not None:
        return float(tail_value(span.right, np.array(knot)))
    if knot == 0 and span.pin is not None:
        return float(span.y[span.pin])
    return float(links[i](np.array(knot)))


def _ends(
    span: Span, link: _Link, knots: list[float], values: list[float], i: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Two points of link i: its knots, or one knot and a point of the line itself at an end of the interval."""
    outer = [float(span.x[0]), float(span.x[-1])]
    left = (knots[i - 1], values[i - 1]) if i > 0 else (outer[0], float(link(np.array(outer[0]))))
    right = (knots[i], values[i]) if i < len(knots) else (outer[1], float(link(np.array(outer[1]))))
    return left, right


def _line(span: Span, link: _Link, ends: tuple[tuple[float, float], tuple[float, float]]) -> Piece:
    (x0, y0), (x1, y1) = ends
    slope = (y1 - y0) / (x1 - x0) if x1 > x0 else link.slope
    offset = y0 - slope * x0
    if span.pin is not None and x0 <= 0 <= x1:
        offset = float(span.y[span.pin])
    return Piece(np.array([offset, slope]))


FAMILY = Family(
    "pwl", (Parameter("K", 2, 32),), shape=lambda p: (p[0], 1), solve=solve, tail_degree=lambda _: 1, has_law=True
)
