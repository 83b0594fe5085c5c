"""Choose one option per site: the most milliseconds within a budget of drift.

1. The drift of several changes is predicted from that of each alone: (sum of drift**power)**(1/power).
2. The milliseconds add up, and the most of them within the budget is a multiple-choice knapsack: a mixed-integer linear program
   with one binary per option, of which each site takes one (Sinha and Zoltners, The Multiple-Choice Knapsack Problem,
   Operations Research 27, 1979).
3. Times are noisy, and what the noise alone favours must not cost accuracy: of the choices within a tolerance of the most
   milliseconds, a second program takes the one of least predicted drift.
4. An option that is not finite, or no better in either respect than another of its site, is left out.
5. The solver's tolerances are absolute, and drifts lie between 1e-9 and 1e3: each row is scaled to its own limit. What the
   solver still lets through beyond `ROUNDING` is excluded by a lower limit.
6. HiGHS 1.12 prints a line for its own developers whatever it is told, and standard output may hold a program's JSON: the file
   that standard output is goes nowhere meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from actx.exporter.errors import ActxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Of a limit, relative: sums that differ by less are the same.
ROUNDING = 1e-9
MAX_POINTS = 30
# The solver's tolerances are about 1e-6: rows of this size make them 1e-10 of the limit.
_SIZE = 1e4
_MAX_ATTEMPTS = 32
_STDOUT = 1


@dataclass(frozen=True)
class Option:
    """What may become of one site.

    Attributes:
        form: what it is called.
        saved_ms: milliseconds that it saves per inference; below 0 where it takes more.
        drift: of the model's outputs with this one change, in the metric of the budget.
    """

    form: str
    saved_ms: float
    drift: float


Sites: TypeAlias = Sequence[Sequence[Option]]


@dataclass(frozen=True)
class Point:
    """A choice that no other beats in both respects.

    Attributes:
        saved_ms: milliseconds that it saves per inference.
        drift: predicted.
        choice: the index of the option of every site.
    """

    saved_ms: float
    drift: float
    choice: tuple[int, ...]


def predicted(sites: Sites, choice: Sequence[int], power: float) -> float:
    """Return the drift that a choice is predicted to have: 1."""
    drifts = [options[i].drift for options, i in zip(sites, choice, strict=True)]
    largest = max(drifts, default=0.0)
    if largest == 0 or math.isinf(largest):
        return largest
    return float(largest * math.fsum((drift / largest) ** power for drift in drifts) ** (1 / power))


def saved(sites: Sites, choice: Sequence[int]) -> float:
    """Return the milliseconds that a choice saves."""
    return math.fsum(options[i].saved_ms for options, i in zip(sites, choice, strict=True))


def solve(sites: Sites, budget: float, power: float, *, tolerance_ms: float = 0.0) -> tuple[int, ...]:
    """Return the index of the option of every site. Equal arguments give equal choices.

    Args:
        sites: the options of every site; the first is to keep it, which saves and costs nothing.
        budget: largest predicted drift.
        power: of 1, above 0; 1 adds drifts up, 2 takes them for independent.
        tolerance_ms: of 3.

    Raises:
        UsageError: the budget or the tolerance is negative or no number, the power is not above 0, or a first option is not to
            keep the site.
        ActxError: the solver gives up.
    """
    _check(sites, budget, power, tolerance_ms)
    program = _Program.of(sites, budget)
    drifts = program.powers(budget or 1.0, power)
    best = program.least(-program.saved, drifts, 1.0)
    needed = saved(sites, program.choice(best)) - tolerance_ms
    while True:  # again while that gains much: the solver's tolerance is of the size of what it starts from
        before = predicted(sites, program.choice(best), power)
        if before == 0:
            return program.choice(best)
        drifts = program.powers(before, power)
        better = program.least(drifts, -program.saved, -needed)
        after = predicted(sites, program.choice(better), power)
        if after < before:
            best = better
        if after > before / 2:
            return program.choice(best)


def front(sites: Sites, power: float, *, tolerance_ms: float = 0.0) -> tuple[Point, ...]:
    """Return what can be had under budgets from 0 to infinity: at most `MAX_POINTS` points, strictly monotone in both respects.

    The first saves what costs nothing, the last saves the most there is.

    Args:
        sites: see `solve`.
        power: see `solve`.
        tolerance_ms: see `solve`.

    Raises:
        UsageError, ActxError: see `solve`.
    """

    def at(budget: float) -> Point:
        choice = solve(sites, budget, power, tolerance_ms=tolerance_ms)
        return Point(saved(sites, choice), predicted(sites, choice, power), choice)

    points = [at(math.inf)]
    last = at(0.0)
    least = min((o.drift for options in sites for o in options if o.drift > 0), default=0.0)
    step = (least / points[0].drift) ** (1 / (MAX_POINTS - 2)) if points[0].drift > least > 0 else 1.0
    while points[-1].drift > least:
        points.append(at(points[-1].drift * min(step, 1 - 1e-6)))
    ordered = sorted([last, *points], key=lambda point: (point.drift, -point.saved_ms))
    most = accumulate((point.saved_ms for point in ordered), max, initial=-math.inf)
    return tuple(point for point, before in zip(ordered, most, strict=False) if point.saved_ms > before)


def _check(sites: Sites, budget: float, power: float, tolerance_ms: float) -> None:
    if not budget >= 0 or not tolerance_ms >= 0 or not power > 0:
        raise UsageError(
            "the budget and the tolerance must not be negative, and the power must be above 0",
            note=f"got a budget of {budget}, a tolerance of {tolerance_ms} ms and a power of {power}",
        )
    if any(not options or options[0].saved_ms != 0 or options[0].drift != 0 for options in sites):
        raise UsageError("the first option of every site must be to keep it", note="which saves and costs nothing")


@dataclass(frozen=True)
class _Program:
    """The binaries of the options that are left.

    Attributes:
        places: site and index of each.
        saved: milliseconds of each.
        drift: of each.
        one_each: of every site one: shape (sites, options).
    """

    places: tuple[tuple[int, int], ...]
    saved: NDArray[np.float64]
    drift: NDArray[np.float64]
    one_each: NDArray[np.float64]

    @classmethod
    def of(cls, sites: Sites, budget: float) -> _Program:
        places = [
            (site, i) for site, options in enumerate(sites) for i in _useful(options) if options[i].drift <= budget
        ]
        options = [sites[site][i] for site, i in places]
        one_each = np.array([[float(site == row) for site, _ in places] for row in range(len(sites))])
        return cls(
            tuple(places),
            np.array([option.saved_ms for option in options]),
            np.array([option.drift for option in options]),
            one_each,
        )

    def powers(self, unit: float, power: float) -> NDArray[np.float64]:
        """Return the drifts' powers; a choice whose sum is 1 has a drift of one unit."""
        with np.errstate(over="ignore"):
            return np.minimum((self.drift / unit) ** power, 2.0)  # more than 1 is too much, however much

    def choice(self, taken: NDArray[np.bool_]) -> tuple[int, ...]:
        return tuple(i for (_, i), chosen in zip(self.places, taken, strict=True) if chosen)

    def least(self, cost: NDArray[np.float64], row: NDArray[np.float64], limit: float) -> NDArray[np.bool_]:
        """Return the options of least cost among those whose row sums up to the limit at most: 5."""
        if not len(self.places):
            return np.zeros(0, np.bool_)
        unit = max(abs(limit), float(np.abs(row).max())) or 1.0
        within = limit + ROUNDING * unit
        bound, margin = limit + ROUNDING / 2 * unit, ROUNDING  # what meets the limit exactly may be rounded
        for _ in range(_MAX_ATTEMPTS):
            taken = self._solved(_scaled(cost), row / unit * _SIZE, bound / unit * _SIZE)
            total = math.fsum(row[taken])
            if total <= within:
                return taken
            bound, margin = min(bound, total) - margin * unit, 2 * margin
        raise ActxError("the solver does not keep to the budget", note=f"after {_MAX_ATTEMPTS} attempts")

    def _solved(self, cost: NDArray[np.float64], row: NDArray[np.float64], limit: float) -> NDArray[np.bool_]:
        constraints = [LinearConstraint(self.one_each, 1, 1), LinearConstraint(row[None], -np.inf, limit)]
        integrality = np.ones(len(cost), np.int64)
        with _silent():
            found = milp(
                cost,
                integrality=integrality,
                bounds=Bounds(0, 1),
                constraints=constraints,
                options={"mip_rel_gap": 0.0},
            )
        if found.x is None:
            raise ActxError("the solver finds no choice", note=str(found.message))
        return np.asarray(found.x) > 0.5


def _scaled(row: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = float(np.abs(row).max())
    return row / largest * _SIZE if largest else row


def _useful(options: Sequence[Option]) -> list[int]:
    """4. Return the indices of those that may be chosen."""
    finite = [i for i, o in enumerate(options) if math.isfinite(o.saved_ms) and math.isfinite(o.drift) and o.drift >= 0]
    return [i for i in finite if not any(_beats(options, other, i) for other in finite)]


def _beats(options: Sequence[Option], one: int, other: int) -> bool:
    """Tell whether one option is as good in both respects and better in one, or equal and named first."""
    a, b = options[one], options[other]
    if (a.saved_ms, a.drift) == (b.saved_ms, b.drift):
        return one < other
    return a.saved_ms >= b.saved_ms and a.drift <= b.drift


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """6."""
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # it is closed
        yield
        return
    sys.stdout.flush()
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), _STDOUT)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what the C library still holds
        os.dup2(kept, _STDOUT)
        os.close(kept)
