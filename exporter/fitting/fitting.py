"""The fit step: a function and a form in, a table and its error out.

1. The asymptotes are found; without them, or where the form cannot follow them, an interval must be given.
2. The function is sampled where it bends, which also gives the free-knot law.
3. A piecewise polynomial is recognised and written down exactly.
4. Otherwise the form's solver runs; with a density of the inputs once more, closer where they are, and the result of smaller
   mean square error is taken.
5. The error is measured after rounding to float32, and proved where the proof is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from actx.exporter.certificate import Certificate, certify
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.fitting.asymptote import asymptote
from actx.exporter.fitting.density import CAP
from actx.exporter.fitting.exact import recognise
from actx.exporter.fitting.family import Solution
from actx.exporter.fitting.measure import Error, measure
from actx.exporter.fitting.problem import Function, Problem, require_finite, sample, symmetry_of
from actx.exporter.fitting.rounding import Rounding
from actx.exporter.fitting.sampling import FP16_MAX, Cells, cells, law

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from actx.custom_ops.spline import Spline
    from actx.exporter.fitting.density import Density
    from actx.exporter.fitting.form import Form
    from actx.exporter.fitting.problem import Tail

_LEAST_POINTS = 2048
_POINTS_PER_SEGMENT = 128
_UNSEEN = 1.25  # error found by the dense search over that on the grid: more means that the grid is too coarse
_CLOSER = 6


@dataclass(frozen=True, eq=False)
class Proof:
    """The certificate of a fit, sought when it is first asked for: most fits are made to be compared, and few are taken.

    Attributes:
        seek: finds it.
    """

    seek: Callable[[], Certificate | None]

    @cached_property
    def certificate(self) -> Certificate | None:
        """What `seek` finds."""
        return self.seek()


@dataclass(frozen=True, eq=False)
class Fit:
    """A form fitted to a function.

    Attributes:
        form: what was asked for.
        spline: the table, float32; it may have fewer segments than the form allows.
        max_error: sup |f - s| over `interval`, s with its float32 coefficients and float64 arithmetic; sampled at
            float32 numbers, all of fp16 among them; inf where a tail of s leaves that of f.
        at: where; an infinity where a tail diverges.
        core_error: max_error without what rounding the asymptotes' coefficients to float32 costs far out: a slope of
            0.01 is off by 2e-10, which at x = 65504 is 1.5e-5, though only 2e-8 of the value.
        exact: f is a piecewise polynomial and the table is f but for float32 rounding.
        interval: (-inf, inf) where the error holds for all finite fp16 inputs and the tails are asymptotes; otherwise
            the interval that was asked for.
        law: error of the asymptotic free-knot law for this function, degree and number of segments; 0 where the
            function is a piecewise polynomial of the degree; None where the form has no law.
        slope: c of hardswish's hs(c x) / c, None for other forms.
        tails: the asymptotes (left, right) of f, float64 (4,) ascending powers, or None where there is none or an
            interval was given.
        rms: root mean square of f - s over the inputs of the density; None without one.
        proof: of the error on the interval, all finite fp16 where that is all of R.
        entries: the tables of a mixture's entries, with the same knots; the rest is then of the worst of them. Empty for
            a scalar function.

    """

    form: Form
    spline: Spline
    max_error: float
    at: float
    core_error: float
    exact: bool
    interval: tuple[float, float]
    law: float | None
    slope: float | None
    tails: tuple[Tail, Tail]
    rms: float | None
    proof: Proof
    entries: tuple[Spline, ...] = ()

    @property
    def certificate(self) -> Certificate | None:
        """The proof of the error; None where f is not written in operations that can be bounded. It may take seconds."""
        return self.proof.certificate

    @property
    def tail_degrees(self) -> tuple[int | None, int | None]:
        """Degree of the asymptote on the left and on the right, None where there is none."""
        left, right = (None if t is None else int(np.flatnonzero(t).max(initial=0)) for t in self.tails)
        return left, right

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval, None where it is all of R."""
        return None if math.isinf(self.interval[1]) else self.interval

    @property
    def ratio(self) -> float | Literal["exact"] | None:
        """core_error over the law: 1 is the best that free knots can do asymptotically; inf where only the law is 0."""
        if self.law is None or self.exact:
            return None if self.law is None else "exact"
        return self.core_error / self.law if self.law > 0 else math.inf


def fit(
    function: Function,
    form: Form,
    *,
    interval: tuple[float, float] | None = None,
    fold: bool = True,
    density: Density | None = None,
) -> Fit:
    """Fit a form to a scalar function.

    Args:
        function: float64 array to float64 array, elementwise. It may have kinks and jumps.
        form: anything but ``keep`` and ``polynorm``.
        interval: where the fit must hold. None: all of R, for which f needs polynomial asymptotes of a degree (at
            most 3) that the form can follow.
        fold: hardswish may use a slope; otherwise it is the standard op.
        density: of the inputs. The fit is then closer where they are, at a largest error of at most `density.CAP` times
            that of the fit without it.

    Raises:
        UsageError: the form has no freedom to fit, or the interval is not one.
        ActxError: f is not finite somewhere in the interval, or has no asymptotes and no interval is given, or the
            form has too few segments for them.

    """
    family = form.family
    if family.solve is None:
        raise UsageError(
            f"{form} cannot be fitted", note="it leaves the mathematics as it is", remedy="Choose another form."
        )
    with np.errstate(all="ignore"):
        problem = problem_of(function, form, interval, fold=fold)
        exact = None if family.fixed else _exactly(problem, form)
        solution, error = _solved(problem, form) if exact is None else (exact, measure(problem, exact.spline))
        rms = None if density is None else _rms(problem, solution, density)
        if density is not None and rms:
            weighted, weighted_error = _solved(_weighted(problem, form, density), form)
            weighted_rms = _rms(problem, weighted, density)
            if weighted_rms < rms and weighted_error.core <= CAP * error.core:
                solution, error, rms = weighted, weighted_error, weighted_rms
    return result_of(function, problem, form, solution, error, exact=exact is not None, rms=rms)


def result_of(
    function: Function,
    problem: Problem,
    form: Form,
    solution: Solution,
    error: Error,
    *,
    exact: bool,
    rms: float | None = None,
) -> Fit:
    """Return the fit that a solution is."""
    return Fit(
        form=form,
        spline=solution.spline,
        max_error=error.largest,
        at=error.at,
        core_error=error.core,
        exact=exact,
        interval=(problem.low, problem.high) if problem.bounded else (-math.inf, math.inf),
        law=_law(problem, form, exact=exact),
        slope=solution.slope,
        tails=(problem.span.left, problem.span.right),
        rms=rms,
        proof=Proof(partial(_certificate, function, solution.spline, (problem.low, problem.high), error.largest)),
    )


def exact_table(function: Function, form: Form) -> Spline | None:
    """Return a function as a table of a form, where it is one on all of R but for float32 rounding; None elsewhere."""
    try:
        with np.errstate(all="ignore"):
            found = _exactly(problem_of(function, form, None, fold=False), form)
    except ActxError:
        return None
    return None if found is None else found.spline


def _certificate(
    function: Function, spline: Spline, interval: tuple[float, float], expected: float
) -> Certificate | None:
    return None if math.isinf(expected) else certify(function, spline, interval, expected=expected)


def _rms(problem: Problem, solution: Solution, density: Density) -> float:
    return density.rms(problem.function(density.places) - solution.spline(density.places))


def _law(problem: Problem, form: Form, *, exact: bool) -> float | None:
    if not form.family.has_law:
        return None
    return 0.0 if exact else law(problem.cells, form.degree, form.segments)


def _quiet(function: Function) -> Function:
    def evaluate(x: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(all="ignore"):
            return np.asarray(function(x), dtype=np.float64)

    return evaluate


def problem_of(function: Function, form: Form, interval: tuple[float, float] | None, *, fold: bool) -> Problem:
    """Sample the function and find its asymptotes; see `fit` for arguments and errors."""
    function = _quiet(function)
    low, high = (-FP16_MAX, FP16_MAX) if interval is None else _checked(interval)
    rounding = Rounding.of(function, low, high)
    left, right = (None, None) if interval is not None else _asymptotes(function, form, rounding)
    degree = min(form.degree, 3)
    parts = _cells(function, low, high, degree, rounding)
    span = sample(function, parts, _points(form), left, right)
    symmetry = symmetry_of(function, low, high)
    return Problem(function, low, high, interval is not None, span, symmetry, parts, fold)


def _weighted(problem: Problem, form: Form, density: Density) -> Problem:
    both = density if problem.symmetry is None else density + density.mirrored()
    return replace(problem, span=problem.span.weighted(both, form.degree), density=both)


def _solved(problem: Problem, form: Form) -> tuple[Solution, Error]:
    """Run the solver, on a finer grid too where something lies between the points of the first."""
    family = form.family
    assert family.solve is not None
    solution = family.solve(problem, form)
    error = measure(problem, solution.spline)
    on_grid = np.abs(problem.span.y - solution.spline(problem.span.x)).max()
    if family.fixed or error.core <= _UNSEEN * on_grid:
        return solution, error
    closer = _closer(problem, form)
    again = family.solve(closer, form)
    error_again = measure(closer, again.spline)
    return (again, error_again) if error_again.core < error.core else (solution, error)


def _points(form: Form) -> int:
    return max(_LEAST_POINTS, _POINTS_PER_SEGMENT * form.segments)


def _closer(problem: Problem, form: Form) -> Problem:
    span = sample(problem.function, problem.cells, _CLOSER * _points(form), problem.span.left, problem.span.right)
    return replace(problem, span=span if problem.density is None else span.weighted(problem.density, form.degree))


def _cells(function: Function, low: float, high: float, degree: int, rounding: Rounding) -> Cells:
    x = np.linspace(low, high, 257)
    require_finite(x, function(x))
    return cells(function, low, high, degree, rounding)


def _checked(interval: tuple[float, float]) -> tuple[float, float]:
    low, high = (float(end) for end in interval)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"[{low:g}, {high:g}] is not an interval to fit on",
            note="both ends must be finite and the first below the second",
            remedy="Leave it out to fit on all of R.",
        )
    return low, high


def _asymptotes(function: Function, form: Form, rounding: Rounding) -> tuple[Tail, Tail]:
    ends = function(np.array([-FP16_MAX, FP16_MAX]))
    tails = [asymptote(function, side, rounding) for side in (-1.0, 1.0)]
    allowed = max(form.family.tail_degree(form), 0)
    for side, tail, value in zip(("left", "right"), tails, ends, strict=True):
        degree = -1 if tail is None else int(np.flatnonzero(np.append(1.0, tail))[-1]) - 1
        if tail is None or (degree > allowed and not _piecewise(form, degree)):
            what = f"f is {value} at the end of fp16" if not np.isfinite(value) else "it has no polynomial asymptote"
            note = what if tail is None else f"its asymptote has degree {degree}, {form} follows at most {allowed}"
            raise ActxError(
                f"{form} cannot hold on all of R: the function's {side} tail is out of reach",
                note=note,
                remedy="Give an interval: calibration data or --range.",
            )
    return tails[0], tails[1]


def _piecewise(form: Form, degree: int) -> bool:
    """Tell whether the form may still be exact with tails that bend."""
    return form.name == "poly" and degree <= form.degree


def _exactly(problem: Problem, form: Form) -> Solution | None:
    chain = recognise(problem, form.degree, form.segments, continuous=form.family.continuous)
    return None if chain is None else Solution(chain.rounded(max(form.degree, 1)))
