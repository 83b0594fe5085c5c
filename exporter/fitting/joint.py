"""Fit several functions with the same knots: the entries of a mixture, whose tables are mixed once per token.

1. Functions that are piecewise polynomials stay exact: their knots are knots of all.
2. The others are laid together by the solver of `spline`, for one largest error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actx.exporter.errors import ActxError
from actx.exporter.fitting.chain import Chain, Piece, rounded_together
from actx.exporter.fitting.exact import recognise
from actx.exporter.fitting.family import Solution
from actx.exporter.fitting.fitting import Fit, problem_of, result_of
from actx.exporter.fitting.measure import measure
from actx.exporter.fitting.problem import resampled
from actx.exporter.fitting.sampling import law
from actx.exporter.fitting.spline import Layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actx.exporter.fitting.form import Form
    from actx.exporter.fitting.problem import Function, Problem


def fit_together(
    functions: Sequence[Function], form: Form, *, interval: tuple[float, float] | None = None
) -> tuple[Fit, ...]:
    """Fit a spline to every function, all with the same knots and origins.

    Args:
        functions: float64 array to float64 array, elementwise.
        form: ``spline:KxD``.
        interval: as in `fit`.

    Raises:
        ActxError: as in `fit`, or the form is another one.
    """
    if form.name != "spline":
        raise ActxError(
            f"{form} has no knots that the entries of a mixture could share",
            note="a mixture takes spline:KxD",
            remedy="Choose such a form, or keep the site.",
        )
    with np.errstate(all="ignore"):
        problems = [problem_of(function, form, interval, fold=False) for function in functions]
        exact = [recognise(problem, form.degree, form.segments, continuous=False) for problem in problems]
        chains = _chains(problems, exact, form)
        splines = rounded_together(chains, form.degree)
        errors = [measure(problem, spline) for problem, spline in zip(problems, splines, strict=True)]
    return tuple(
        result_of(function, problem, form, Solution(spline), error, exact=chain is not None)
        for function, problem, spline, error, chain in zip(functions, problems, splines, errors, exact, strict=True)
    )


def _chains(problems: Sequence[Problem], exact: Sequence[Chain | None], form: Form) -> list[Chain]:
    """Return a chain per function, all with the same knots."""
    kinks = np.unique(np.concatenate([np.empty(0), *(chain.knots for chain in exact if chain is not None)]))
    rough = [problem for problem, chain in zip(problems, exact, strict=True) if chain is None]
    if len(kinks) >= form.segments:
        raise ActxError(
            f"{form.segments} segments are too few",
            note=f"the entries have {len(kinks)} kinks in all",
            remedy="Use more segments, or keep the site.",
        )
    if not rough:
        return [_cut(chain, kinks) for chain in exact if chain is not None]
    x = np.unique(np.concatenate([kinks, *(problem.span.x for problem in rough)]))
    u = np.mean([np.interp(x, problem.span.x, problem.span.u) for problem in rough], axis=0)
    spans = tuple(resampled(problem, x, u) for problem in rough)
    guess = max(law(problem.cells, form.degree, form.segments) for problem in rough)
    stops = tuple(int(i) for i in np.searchsorted(x, kinks))
    laid = Layout(spans, form.segments, form.degree, 2 * guess, stops).fit()
    rest = iter(laid)
    return [next(rest) if chain is None else _cut(chain, laid[0].knots) for chain in exact]


def _cut(chain: Chain, knots: NDArray[np.float64]) -> Chain:
    """Return the same function with more knots; those of the chain are among them."""
    pieces = [chain.pieces[int(np.searchsorted(chain.knots, knot, side="right"))] for knot in knots]
    first = chain.pieces[0]
    ends = range(len(knots) + 1)
    kept = [first, *pieces]
    return Chain(knots, tuple(Piece(p.coefficients, p.origin, i in {ends[0], ends[-1]}) for i, p in enumerate(kept)))
