"""`spline:KxD`: K segments of degree D that may jump by up to twice the error at a knot.

1. For a given error E, segments are laid from left to right, each as far as its minimax error allows. No fit with as
   many segments and a smaller error exists, because the minimax error of a stretch grows with the stretch.
2. The smallest E at which the segments reach the right tail is found by regula falsi on log E.
3. Where f has a symmetry and K is even, one half is fitted and mirrored if that costs next to nothing: a symmetric
   table halves the work of the portable graph.
4. Functions that share their knots are laid together: a segment goes as far as the worst of them allows, and ends at every
   stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from actx.exporter.errors import ActxError
from actx.exporter.fitting.chain import Chain, Piece
from actx.exporter.fitting.family import Family, Parameter, Solution
from actx.exporter.fitting.minimax import Approximation, approximate
from actx.exporter.fitting.sampling import law
from actx.exporter.fitting.search import smallest_error
from actx.exporter.fitting.tails import last_outside, tail_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actx.exporter.fitting.form import Form
    from actx.exporter.fitting.problem import Problem, Span

Spans: TypeAlias = "tuple[Span, ...]"

_POINTS = 48  # of a segment while searching
_NARROW = 1e-6  # relative width
_SYMMETRY_MAY_COST = 1.03


def solve(problem: Problem, form: Form) -> Solution:
    """Fit the table; the symmetric one where it is as good."""
    guess = 1.3 * law(problem.cells, form.degree, form.segments)
    whole = Layout((problem.span,), form.segments, form.degree, guess)
    if problem.symmetry is None or form.segments % 2:
        return Solution(whole.fit()[0].rounded(form.degree))
    half = Layout((problem.span.right_half(),), form.segments // 2, form.degree, guess)
    mirrored = half.fit()[0].mirrored(problem.symmetry).rounded(form.degree)
    if whole.reached(problem.error(mirrored) / _SYMMETRY_MAY_COST) < 0:
        return Solution(mirrored)
    free = whole.fit()[0].rounded(form.degree)
    return Solution(free if problem.error(free) * _SYMMETRY_MAY_COST < problem.error(mirrored) else mirrored)


@dataclass(frozen=True)
class Layout:
    """Segments of one degree to be laid over spans of the same points.

    Attributes:
        spans: of the functions that share the knots; all with a left tail, or none, and so on the right.
        segments: how many, tails included.
        degree: of every segment.
        guess: about the error.
        stops: ascending indices of points that must be knots.
    """

    spans: Spans
    segments: int
    degree: int
    guess: float
    stops: tuple[int, ...] = ()

    def fit(self) -> tuple[Chain, ...]:
        """Lay the segments with the smallest error and return a chain per span.

        Raises:
            ActxError: there are too few segments for the tails and stops.
        """
        if self._inner() < max(len(self.stops) - 1, 0):
            raise ActxError(
                f"{self.segments} segments are too few",
                note="the two asymptotes take one each" + (", every kink ends one" if self.stops else ""),
                remedy="Use more segments, or give an interval: calibration data or --range.",
            )
        error = smallest_error(self.reached, max(span.scale for span in self.spans), self.guess)
        ends, _ = self._lay(error)
        stop = self._end(error)
        return tuple(_build(span, ends, stop, self.degree) for span in self.spans)

    def reached(self, error: float) -> float:
        """How far beyond the start of the right tail the segments come, in steps of u."""
        return self._lay(error)[1] - float(self.spans[0].u[self._end(error)])

    def _inner(self) -> int:
        first = self.spans[0]
        return self.segments - (first.left is not None) - (first.right is not None)

    def _start(self, error: float) -> int:
        """Last grid point that the left tails can serve."""
        return min(*(_start(span, error) for span in self.spans), *self.stops[:1], len(self.spans[0].x) - 1)

    def _end(self, error: float) -> int:
        """First grid point from which the right tails can serve."""
        return max(*(_end(span, error) for span in self.spans), *self.stops[-1:], 0)

    def _lay(self, error: float) -> tuple[list[int], float]:
        """Lay the inner segments from the left; return the indices of their ends, start included, and how far they came.

        The second result is the u of the last end, moved by the fraction of a grid step that the error has left.
        """
        u = self.spans[0].u
        last_point = len(u) - 1
        ends = [self._start(error)]
        position = float(u[ends[0]])
        for _ in range(self._inner()):
            first = _after(self.spans, ends[-1])
            if first >= last_point:
                return ends, 2.0
            limit = next((stop for stop in self.stops if stop > ends[-1]), last_point)
            last, position = _longest(self.spans, first, limit, error, self.degree)
            ends.append(last)
        return ends, position if ends[-1] < last_point else 2.0


def _start(span: Span, error: float) -> int:
    if span.left is None:
        return 0
    outside = np.flatnonzero(tail_error(span, span.left) > error)
    return max(int(outside[0]) - 1, 0) if len(outside) else len(span.x) - 1


def _end(span: Span, error: float) -> int:
    if span.right is None:
        return len(span.x) - 1
    return min(last_outside(span, error) + 1, len(span.x) - 1)


def _after(spans: Spans, end: int) -> int:
    """Return where the next segment begins: at the end of the last, but behind a jump there."""
    return end + 1 if any(end in span.breaks for span in spans) else end


def _longest(spans: Spans, first: int, stop: int, error: float, degree: int) -> tuple[int, float]:
    """Farthest end of a segment from `first`, at most `stop`, whose minimax error is within `error`."""
    u = spans[0].u
    good, bad = min(first + 1, stop), stop + 1
    good_error, guess = 0.0, first + max(2, (stop - first) // 12)
    while bad - good > 1:
        guess = min(max(guess, good + 1), bad - 1)
        found = _worst(spans, first, guess, degree, error)
        if found <= error:
            good, good_error = guess, found
        else:
            bad = guess
        stretch = (error / max(found, 1e-3 * error)) ** (1 / (degree + 1))
        step = u[guess] - u[first]
        guess = int(np.searchsorted(u, u[first] + step * min(stretch, 2.0), side="right")) - 1
        if abs(guess - good) > 0.9 * (bad - good) and bad <= stop:
            guess = (good + bad) // 2
    fraction = min((error / good_error) ** (1 / (degree + 1)) if good_error > 0 else 1.0, 1.05)
    reach = float(u[first] + (u[good] - u[first]) * fraction)
    limit = float(u[min(good + 1, stop)])
    return good, min(reach, limit)


def _worst(spans: Sequence[Span], first: int, last: int, degree: int, limit: float) -> float:
    """Return the largest minimax error of the spans, or a lower bound of it above the limit."""
    return max(_minimax(span, first, last, degree, _POINTS, limit).error for span in spans)


def _minimax(span: Span, first: int, last: int, degree: int, points: int = 0, limit: float = np.inf) -> Approximation:
    """Best polynomial on the points first..last, through f(0) if 0 belongs to them."""
    if points and last - first > points:
        chosen = np.unique(np.linspace(first, last, points).round().astype(np.intp))
    else:
        chosen = np.arange(first, last + 1)
    x, y, width = span.x[chosen], span.y[chosen], span.width[chosen]
    pinned = span.pin is not None and first <= span.pin < last
    pins = [(0.0, float(span.y[span.pin]))] if span.pin is not None and pinned else []
    if x[-1] - x[0] < _NARROW * max(abs(float(x[0])), 1e-3):
        # Coefficients of higher powers would overflow: a constant, the pinned value or the middle.
        value = pins[0][1] if pins else float(y.max() + y.min()) / 2
        return Approximation(
            float((np.abs(y - value) / width).max()), np.zeros(1), float(x[0]), float(x[-1]), ((0.0, value),)
        )
    return approximate(x, y, degree, pins, width=width, tolerance=1e-2 if points else 1e-4, limit=limit)


def _build(span: Span, ends: list[int], stop: int, degree: int) -> Chain:
    """Fit the pieces over the laid segments; the right tail takes over at `stop`."""
    while len(ends) > 1 and ends[-2] >= stop:
        ends = ends[:-1]
    ends = [*ends[:-1], stop] if len(ends) > 1 else ends
    pieces = [] if span.left is None else [Piece(span.left, 0.0, tail=True)]
    for end, last in pairwise(ends):
        found = _minimax(span, _after((span,), end), last, degree)
        origin = min((found.low, found.high), key=abs) if found.low * found.high > 0 else 0.0
        pieces.append(Piece(found.powers(origin), origin))
    knots = [span.x[i] if i not in span.breaks else span.x[i + 1] for i in ends]
    if span.left is None:
        knots = knots[1:]
    if span.right is not None:
        pieces.append(Piece(span.right, 0.0, tail=True))
    else:
        knots = knots[:-1]
    return Chain(np.array(knots, dtype=np.float64), tuple(pieces))


FAMILY = Family(
    "spline",
    (Parameter("K", 2, 32), Parameter("D", 1, 3)),
    shape=lambda p: (p[0], p[1]),
    solve=solve,
    tail_degree=lambda form: form.degree,
    has_law=True,
    continuous=False,
)
