"""`solve` and `front` against all combinations."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from actx.exporter.errors import UsageError
from actx.exporter.search.solve import MAX_POINTS, ROUNDING, Option, front, predicted, saved, solve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actx.exporter.search.solve import Sites

KEEP = Option("keep", 0.0, 0.0)
# Half of both are from a few values, so that sums tie and meet budgets exactly.
DRIFTS = st.one_of(st.sampled_from([0.0, 1e-9, 1e-4, 2e-4, 1e-3, 1.0, 1e3]), st.floats(1e-9, 1e3))
SAVED = st.one_of(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), st.floats(-1.0, 10.0))
OPTIONS = st.lists(st.builds(Option, st.just("form"), SAVED, DRIFTS), max_size=3).map(lambda found: [KEEP, *found])
SITES = st.lists(OPTIONS, min_size=1, max_size=4)
POWERS = st.sampled_from([1.0, 2.0, 3.5])


def everything(sites: Sites) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(len(options)) for options in sites))


@settings(deadline=None, max_examples=150)
@given(sites=SITES, budget=st.one_of(DRIFTS, st.just(math.inf)), power=POWERS, tolerance=st.sampled_from([0.0, 0.25]))
def test_no_combination_is_better(sites: Sites, budget: float, power: float, tolerance: float) -> None:
    drifts = {choice: predicted(sites, choice, power) for choice in everything(sites)}
    # Above the budget by rounding: it may be taken or not.
    assume(not any(budget < drift <= budget * (1 + 10 * ROUNDING) for drift in drifts.values()))
    within = [choice for choice, drift in drifts.items() if drift <= budget]
    most = max(saved(sites, choice) for choice in within)
    near = [choice for choice in within if saved(sites, choice) >= most - tolerance]
    least = min(predicted(sites, choice, power) for choice in near)
    found = solve(sites, budget, power, tolerance_ms=tolerance)
    assert predicted(sites, found, power) <= budget * (1 + ROUNDING)
    assert saved(sites, found) >= most - tolerance - 1e-7
    assert predicted(sites, found, power) <= least * (1 + 1e-6)


@settings(deadline=None, max_examples=25)
@given(sites=SITES, power=POWERS)
def test_the_front_is_strictly_monotone_and_not_beaten(sites: Sites, power: float) -> None:
    points = front(sites, power)
    assert 1 <= len(points) <= MAX_POINTS
    for before, after in itertools.pairwise(points):
        assert before.saved_ms < after.saved_ms
        assert before.drift < after.drift
    choices = [(saved(sites, choice), predicted(sites, choice, power)) for choice in everything(sites)]
    assert points[0].drift == 0
    assert points[-1].saved_ms == pytest.approx(max(most for most, _ in choices), abs=1e-7)
    for point in points:
        assert (point.saved_ms, point.drift) == (
            saved(sites, point.choice),
            predicted(sites, point.choice, power),
        )
        assert not any(ms > point.saved_ms + 1e-6 and drift < point.drift * (1 - 1e-6) for ms, drift in choices)


def ladder(scale: float) -> list[Option]:
    """The forms of a site, as they usually are."""
    forms = {"relu": (1.0, 3e-2), "hardswish": (0.95, 4e-3), "pwl:8": (0.9, 6e-4), "spline:8x3": (0.7, 1e-6)}
    return [KEEP, *(Option(form, ms, scale * drift) for form, (ms, drift) in forms.items())]


def test_a_sensitive_site_gets_the_closer_form() -> None:
    sites = [ladder(1.0), ladder(1.0), ladder(100.0)]
    found = solve(sites, 6e-3, 2.0)
    assert [options[i].form for options, i in zip(sites, found, strict=True)] == [
        "hardswish",
        "hardswish",
        "spline:8x3",
    ]


def test_within_the_tolerance_the_least_drift_wins() -> None:
    sites = [ladder(1.0)] * 4
    exact, tolerant = (solve(sites, 1.0, 2.0, tolerance_ms=tolerance) for tolerance in (0.0, 0.21))
    assert [sites[0][i].form for i in exact] == ["relu"] * 4
    assert [sites[0][i].form for i in tolerant] == ["hardswish"] * 4


def test_without_a_budget_only_what_costs_nothing_is_taken() -> None:
    free = [KEEP, Option("free", 0.5, 0.0), Option("nearly", 9.0, 1e-12)]
    assert solve([free, ladder(1.0)], 0.0, 2.0) == (1, 0)


def test_what_is_not_finite_is_never_taken() -> None:
    sites = [[KEEP, Option("a", 1.0, math.inf), Option("b", 1.0, math.nan), Option("c", math.inf, 0.1)]]
    assert solve(sites, math.inf, 2.0) == (0,)
    assert [point.choice for point in front(sites, 2.0)] == [(0,)]


def test_no_sites_and_only_slower_forms() -> None:
    assert solve([], 1.0, 2.0) == ()
    assert [point.choice for point in front([], 2.0)] == [()]
    assert solve([[KEEP, Option("slow", -1.0, 0.0)]], 1.0, 2.0) == (0,)


def test_of_equal_options_the_first_is_taken_every_time() -> None:
    sites = [[KEEP, Option("a", 1.0, 0.1), Option("b", 1.0, 0.1)]] * 6
    assert {solve(sites, 0.21, 2.0) for _ in range(5)} == {solve(sites, 0.21, 2.0)}
    assert set(solve(sites, 0.21, 2.0)) <= {0, 1}


def test_drifts_that_are_predicted() -> None:
    sites = [[KEEP, Option("a", 1.0, 3e-9)], [KEEP, Option("b", 1.0, 4e-9)]]
    assert predicted(sites, (1, 1), 2.0) == pytest.approx(5e-9)
    assert predicted(sites, (1, 1), 1.0) == pytest.approx(7e-9)
    assert predicted(sites, (0, 1), 3.0) == 4e-9
    assert predicted(sites, (0, 0), 2.0) == 0


def test_a_model_of_a_hundred_sites_is_solved(capfd: pytest.CaptureFixture[str]) -> None:
    """The solver says nothing on standard output, which may hold a program's JSON."""
    sites = [ladder(10.0 ** (i % 5 - 2)) for i in range(100)]
    points = front(sites, 2.0)
    assert 10 <= len(points) <= MAX_POINTS
    assert all(saved(sites, solve(sites, point.drift, 2.0)) >= point.saved_ms - 1e-6 for point in points)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("budget", "power", "tolerance"), [(-1.0, 2.0, 0.0), (math.nan, 2.0, 0.0), (1, 0, 0), (1, 2, -1)]
)
def test_numbers_that_mean_nothing(budget: float, power: float, tolerance: float) -> None:
    with pytest.raises(UsageError, match="must not be negative"):
        solve([[KEEP]], budget, power, tolerance_ms=tolerance)


def test_the_first_option_must_keep_the_site() -> None:
    with pytest.raises(UsageError, match="the first option"):
        solve([[Option("relu", 1.0, 0.0), KEEP]], 1.0, 2.0)
