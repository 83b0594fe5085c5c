"""`spline:KxD`: K segments of degree D that may jump by up to twice the error at a knot.

1. For a given error E, segments are laid from left to right, each as far as its minimax error allows. No fit with as
   many segments and a smaller error exists, because the minimax error of a stretch grows with the stretch.
2. The smallest E at which the segments reach the right tail is found by regula falsi on log E.
3. Where f has a symmetry and K is even, one half is fitted and mirrored if that costs next to nothing: a symmetric
   table halves the work of the portable graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from actx.exporter.errors import ActxError
from actx.exporter.fitting.chain import Chain, Piece
from actx.exporter.fitting.family import Family, Parameter, Solution
from actx.exporter.fitting.minimax import Approximation, approximate
from actx.exporter.fitting.sampling import law
from actx.exporter.fitting.search import smallest_error
from actx.exporter.fitting.tails import last_outside, tail_error

if TYPE_CHECKING:
    from actx.exporter.fitting.form import Form
    from actx.exporter.fitting.problem import Problem, Span

_POINTS = 48  # of a segment while searching
_NARROW = 1e-6  # relative width
_SYMMETRY_MAY_COST = 1.03


def solve(problem: Problem, form: Form) -> Solution:
    """Fit the table; the symmetric one where it is as good."""
    guess = 1.3 * law(problem.cells, form.degree, form.segments)
    whole = _Layout(problem.span, form.segments, form.degree, guess)
    if problem.symmetry is None or form.segments % 2:
        return Solution(whole.fit().rounded(form.degree))
    half = _Layout(problem.span.right_half(), form.segments // 2, form.degree, guess)
    mirrored = half.fit().mirrored(problem.symmetry).rounded(form.degree)
    if whole.reached(problem.error(mirrored) / _SYMMETRY_MAY_COST) < 0:
        return Solution(mirrored)
    free = whole.fit().rounded(form.degree)
    return Solution(free if problem.error(free) * _SYMMETRY_MAY_COST < problem.error(mirrored) else mirrored)


@dataclass(frozen=True)
class _Layout:
    """Segments of one degree to be laid over a span."""

    span: Span
    segments: int
    degree: int
    guess: float

    def fit(self) -> Chain:
        """Lay the segments with the smallest error."""
        if self._inner() < 0:
            raise ActxError(
                f"{self.segments} segments are too few",
                note="the two asymptotes take one each",
                remedy="Use more segments, or give an interval: calibration data or --range.",
            )
        error = smallest_error(self.reached, self.span.scale, self.guess)
        ends, _ = _lay(self.span, error, self._inner(), self.degree)
        return _build(self.span, ends, _end(self.span, error), self.degree)

    def reached(self, error: float) -> float:
        """How far beyond the start of the right tail the segments come, in steps of u."""
        return _lay(self.span, error, self._inner(), self.degree)[1] - float(self.span.u[_end(self.span, error)])

    def _inner(self) -> int:
        return self.segments - (self.span.left is not None) - (self.span.right is not None)


def _start(span: Span, error: float) -> int:
    """Last grid point that the left tail can serve."""
    if span.left is None:
        return 0
    outside = np.flatnonzero(tail_error(span, span.left) > error)
    return max(int(outside[0]) - 1, 0) if len(outside) else len(span.x) - 1


def _end(span: Span, error: float) -> int:
    """First grid point from which the right tail can serve."""
    if span.right is None:
        return len(span.x) - 1
    return min(last_outside(span, error) + 1, len(span.x) - 1)


def _lay(span: Span, error: float, count: int, degree: int) -> tuple[list[int], float]:
    """Lay `count` segments from the left; return the indices of their ends, start included, and how far they came.

    The second result is the u of the last end, moved by the fraction of a grid step that the error has left.
    """
    ends = [_start(span, error)]
    position = float(span.u[ends[0]])
    for _ in range(count):
        first = _after(span, ends[-1])
        if first >= len(span.x) - 1:
            return ends, 2.0
        last, position = _longest(span, first, error, degree)
        ends.append(last)
    return ends, position if ends[-1] < len(span.x) - 1 else 2.0


def _after(span: Span, end: int) -> int:
    """Return where the next segment begins: at the end of the last, but behind a jump there."""
    return end + 1 if end in span.breaks else end


def _longest(span: Span, first: int, error: float, degree: int) -> tuple[int, float]:
    """Farthest end of a segment from `first` whose minimax error is within `error`."""
    stop = len(span.x) - 1
    good, bad = min(first + 1, stop), stop + 1
    good_error, guess = 0.0, first + max(2, (stop - first) // 12)
    while bad - good > 1:
        guess = min(max(guess, good + 1), bad - 1)
        found = _minimax(span, first, guess, degree, _POINTS).error
        if found <= error:
            good, good_error = guess, found
        else:
            bad = guess
        stretch = (error / max(found, 1e-3 * error)) ** (1 / (degree + 1))
        step = span.u[guess] - span.u[first]
        guess = int(np.searchsorted(span.u, span.u[first] + step * min(stretch, 2.0), side="right")) - 1
        if abs(guess - good) > 0.9 * (bad - good) and bad <= stop:
            guess = (good + bad) // 2
    fraction = min((error / good_error) ** (1 / (degree + 1)) if good_error > 0 else 1.0, 1.05)
    reach = float(span.u[first] + (span.u[good] - span.u[first]) * fraction)
    limit = float(span.u[min(good + 1, stop)])
    return good, min(reach, limit)


def _minimax(span: Span, first: int, last: int, degree: int, points: int = 0) -> Approximation:
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
    return approximate(x, y, degree, pins, width=width, tolerance=1e-2 if points else 1e-4)


def _build(span: Span, ends: list[int], stop: int, degree: int) -> Chain:
    """Fit the pieces over the laid segments; the right tail takes over at `stop`."""
    while len(ends) > 1 and ends[-2] >= stop:
        ends = ends[:-1]
    ends = [*ends[:-1], stop] if len(ends) > 1 else ends
    pieces = [] if span.left is None else [Piece(span.left, 0.0, tail=True)]
    for end, last in pairwise(ends):
        found = _minimax(span, _after(span, end), last, degree)
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
