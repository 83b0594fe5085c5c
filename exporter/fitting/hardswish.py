"""`hardswish`: s(x) = hs(c x) / c with hs(y) = y clip(y/6 + 1/2, 0, 1), the ONNX HardSwish, and c fitted.

The slope c costs nothing at run time: it is folded into the linear layers before and after. Without folding c = 1.
One parameter cannot follow a function everywhere, so c minimises the mean square error, not the largest: what a network's
next layer sums up is noise over many elements. For gelu c = 1.805 (largest error 0.080) leaves the embeddings of a real
sentence encoder at a mean cosine of 0.982, the minimax c = 1.67 (0.065) at 0.970. The mean is over the inputs where their
density is known.
hs(c x) / c is x clip(c x / 6 + 1/2, 0, 1): a parabola x/2 + c/6 x^2 between the knots -3/c and 3/c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actx.custom_ops.spline import Spline
from actx.exporter.fitting.family import Family, Solution

if TYPE_CHECKING:
    from actx.exporter.fitting.form import Form
    from actx.exporter.fitting.problem import Problem

_OCTAVES = 14.0  # slopes from 2^-14 to 2^14 are searched
_COARSE = 113
_ROUNDS = 12
_FINE = 9


def solve(problem: Problem, form: Form) -> Solution:  # noqa: ARG001 - every solver has this signature
    """Fit the slope c by repeated scans, each between the neighbours of the best of the last."""
    if not problem.fold:
        return Solution(_table(1.0), 1.0)
    low, high, count = -_OCTAVES, _OCTAVES, _COARSE
    best, least = 0.0, _error(problem, 1.0)
    for _ in range(_ROUNDS):
        exponents = np.linspace(low, high, count)
        errors = [_error(problem, float(np.exp2(e))) for e in exponents]
        if min(errors) < least:
            best, least = float(exponents[int(np.argmin(errors))]), min(errors)
        step = (high - low) / (count - 1)
        low, high, count = best - step, best + step, _FINE
    slope = float(np.exp2(best))
    # A rounder slope is preferred where it is as good: hardswish itself has c = 1 exactly.
    short = float(f"{slope:.4g}")
    slope = short if _error(problem, short) <= least * (1 + 1e-6) else slope
    return Solution(_table(slope), slope)


def _error(problem: Problem, slope: float) -> float:
    """Return the root mean square error: over the line, or over the inputs."""
    density = problem.density
    x = problem.span.x if density is None else density.places
    y = problem.span.y if density is None else problem.function(x)
    error = y - x * np.clip(slope * x / 6 + 0.5, 0, 1)
    return float(np.trapezoid(np.square(error), x)) if density is None else density.rms(error)


def _table(slope: float) -> Spline:
    return Spline.of([-3 / slope, 3 / slope], [[0.0, 0.0, 0.0], [0.0, 0.5, slope / 6], [0.0, 1.0, 0.0]])


FAMILY = Family("hardswish", (), shape=lambda _: (3, 2), solve=solve, tail_degree=lambda _: 3, fixed=True)
