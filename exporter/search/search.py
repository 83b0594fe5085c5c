"""Choose the form of every site: the least latency on the target within a budget of drift, both measured.

1. What every form saves is measured first, on the target, in the part of the model around its site (`site_latency`). A form
   that saves nothing is not looked at further.
2. The drift of every form that saves something is measured alone, on a part of the calibration data (`trials`), those that save
   most first.
3. From these a choice is made (`solve`), built, and its drift measured on data that nothing was fitted on. Where that exceeds
   the budget, or leaves much of it, the prediction is scaled to what was measured, and the choice is made again, `ROUNDS` times
   at most. What is taken is the choice that saves most among those that were measured to be within the budget, and faster
   than the original as a whole.
4. Where there is none the original stays. Sites that the user pinned keep their form in every choice.
5. Every measurement is in a log, found by all that it depends on: a search that is interrupted goes on, and a repeated one
   makes the same choice.
6. After `max_time` nothing more is measured of single forms; what is known by then is chosen from.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from actx.exporter.choose import KEEP, Choice, choose, matches
from actx.exporter.data import head
from actx.exporter.errors import UsageError
from actx.exporter.inspection import owners
from actx.exporter.scratch import scratch
from actx.exporter.search import site_latency
from actx.exporter.search.execute import Executor, parse_executor, run_trials
from actx.exporter.search.log import measurement_key
from actx.exporter.search.site_latency import SiteLatency, candidates, looked_up, measure_model, measure_site
from actx.exporter.search.solve import Option, Point, front, predicted, saved, solve
from actx.exporter.search.trials import TrialResult, trial_key, write_bench

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.data import Arrays
    from actx.exporter.fitting import Form
    from actx.exporter.latency import Verdict
    from actx.exporter.lift import Site
    from actx.exporter.making import Job
    from actx.exporter.search.log import Log
    from actx.exporter.search.trials import Bench

Pair: TypeAlias = "tuple[str, Form]"

ROUNDS = 6
# The drift of several changes is (sum of drift**power)**(1/power) of each: squares add up where errors are independent.
POWERS = {"l2": 2.0}
# Choices that differ by less, in parts of the most that can be saved, are equal: the one of less drift is taken.
TOLERANCE = 0.05
# A prediction that was off is aimed at so much of the budget the next time.
AIM = 0.9


_NOTHING, _LATE = "saves nothing", "not measured: the time was over"


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        log: the file of measurements; None for one beside the bundle.
        jobs: trials at once; 0 for one per core. Latency is always measured by itself.
        executor: ``local``, or ``ray`` for a cluster.
        max_time: seconds after which no measurement of a single form begins.
        samples: of the calibration data that drift is predicted on.

    Raises:
        UsageError: a number is out of range, or there is no such executor.
    """

    log: Path | None = None
    jobs: int = 0
    executor: Executor = "local"
    max_time: float | None = None
    samples: int = 128

    def __post_init__(self) -> None:
        """Check the values."""
        parse_executor(self.executor)
        if self.jobs < 0 or self.samples < 1 or not (self.max_time is None or self.max_time >= 0):
            raise UsageError(
                "a number of the search is out of range",
                note=f"got {self.jobs} jobs, {self.samples} samples, a time of {self.max_time}",
                remedy="Jobs and time must not be negative, and there must be a sample.",
            )


SEARCH_DEFAULT = SearchOptions()


@dataclass(frozen=True)
class Outcome:
    """What was measured of a choice.

    Attributes:
        drift: the worst of the graphs that were made.
        verdict: of its latency against the original's; None where that was not measured.
        ratio: original / artifact; None likewise.
    """

    drift: float
    verdict: Verdict | None = None
    ratio: float | None = None


# Called with the form of every site and the key of the choice.
Verify: TypeAlias = Callable[[tuple[Choice, ...], str], Outcome]


@dataclass(frozen=True)
class Candidate:
    """What is known of a form at a site."""

    site: str
    form: Form
    latency: SiteLatency
    trial: TrialResult | None

    @property
    def option(self) -> Option | None:
        """What there is to choose; None where that is not known."""
        drift = None if self.trial is None else self.trial.drift
        if drift is None or self.latency.saved_ms is None:
            return None
        return Option(str(self.form), self.latency.saved_ms, drift)

    @property
    def reason(self) -> str:
        """Why it is not there to choose; empty where it is."""
        if self.latency.saved_ms is None:
            return self.latency.reason
        if self.trial is None:
            return _LATE if self.latency.saved_ms > 0 else _NOTHING
        return self.trial.reason


@dataclass(frozen=True)
class Verified:
    """A choice that was built.

    Attributes:
        choices: the form of every site.
        key: what it is found by in the log.
        saved_ms, drift: as predicted.
        outcome: as measured.
    """

    choices: tuple[Choice, ...]
    key: str
    saved_ms: float
    drift: float
    outcome: Outcome


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        choices: the form of every site.
        taken: the choice as it was built and measured; None where the original stays.
        reason: why this one, in words.
        original_ms: one inference of the original on the target.
        share: of all sites in that; None where it could not be measured.
        candidates: every form that was looked at.
        front: what can be had, as predicted, the forms in the order of the sites.
        verified: every choice that was built.
        in_the_way: sites that were pinned and whose drift is more than the budget, those with the most first.
        samples: that drift was predicted on.
        sites: of every site, the forms that there were to choose.
    """

    choices: tuple[Choice, ...]
    taken: Verified | None
    reason: str
    original_ms: float
    share: float | None
    candidates: tuple[Candidate, ...]
    front: tuple[Point, ...]
    verified: tuple[Verified, ...]
    in_the_way: tuple[str, ...] = ()
    samples: int = 0
    sites: tuple[tuple[str, ...], ...] = ()

    def points(self) -> Iterator[tuple[Point, tuple[str, ...]]]:
        """Yield the points of the front with the form of every site."""
        for point in self.front:
            yield point, tuple(forms[i] for forms, i in zip(self.sites, point.choice, strict=True))


@dataclass(frozen=True)
class Plan:
    """What a search would do.

    Attributes:
        latencies: single forms whose latency is not in the log, each for all sites of one structure.
        trials: pairs of a site and a form whose drift may have to be measured; fewer where a form turns out to save nothing.
        known: what of both kinds is in the log, counted for every site.
        seconds: about how long that takes at most; verifying choices comes on top.
    """

    latencies: int
    trials: int
    known: int
    seconds: float


@dataclass(frozen=True)
class Search:
    """The search for one export.

    Attributes:
        job: what is exported, for a target whose latency can be measured here (see `site_latency.obstacle`).
        budget: largest drift.
        pins: forms of single sites, by name or pattern.
        weighted: whether forms are fitted closer where the data is.
        log: of measurements.
        options: how to search.
    """

    job: Job
    budget: float
    pins: Mapping[str, Form]
    weighted: bool
    log: Log
    options: SearchOptions = SEARCH_DEFAULT
    _begin: float = field(default_factory=time.monotonic)

    def run(self, verify: Verify) -> Found:
        """Search.

        Args:
            verify: builds a choice and measures it.

        Raises:
            ActxError: a model cannot be run, or the log not be written.
        """
        whole = measure_model(self.latency_bench)
        assert whole.milliseconds is not None
        share = self._share()
        latencies = self._latencies()
        with scratch() as folder:
            bench = self._trial_bench(folder)
            tried = self._trials(bench, latencies)
            keys = {pair: trial_key(bench, *pair) for pair in latencies}
        known = tuple(Candidate(*pair, latency, tried.get(pair)) for pair, latency in latencies.items())
        return _Choosing(self, known, keys, whole.milliseconds, share).run(verify)

    def plan(self) -> Plan:
        """Return what a search would measure, without measuring it."""
        latencies = {
            (site.name, form): latency
            for site in self.sites
            for form, latency in looked_up(self.latency_bench, site, self._forms(site)).items()
        }
        new = {latency for latency in latencies.values() if isinstance(latency, str)}
        pinned = {site.name for site in self.job.sites if self.pinned(site) is not None}
        pairs = [
            pair
            for pair, latency in latencies.items()
            if isinstance(latency, str) or (latency.saved_ms or 0) > 0 or pair[0] in pinned
        ]
        with scratch() as folder:
            begin = time.monotonic()
            bench = self._trial_bench(folder)
            one = 2 * (time.monotonic() - begin)
            missing = [p for p in pairs if self.log.get(trial_key(bench, *p), TrialResult.from_dict) is None]
        known = sum(not isinstance(latency, str) for latency in latencies.values()) + len(pairs) - len(missing)
        seconds = len(new) * self.latency_bench.seconds + len(missing) * one / self._jobs
        return Plan(len(new), len(missing), known, seconds)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, those first whose measurements promise most: not run fast by the target as they are, and large."""
        observed = self.job.observed

        def promise(site: Site) -> tuple[bool, float]:
            elements = observed[site.name].elements if site.name in observed else 0.0
            return site.kind in self.job.target.fast, -elements

        return tuple(sorted(self.job.sites, key=promise))

    @cached_property
    def latency_bench(self) -> site_latency.Bench:
        """What latency is measured on."""
        job = self.job
        return site_latency.Bench(
            job.loaded.model, job.original, job.sites, job.target, self._batch, self.log, job.quant, job.fold,
            job.kernels, job.options,
        )  # fmt: skip

    @property
    def _batch(self) -> Arrays:
        return next(iter(self.job.timed))

    @property
    def _jobs(self) -> int:
        return self.options.jobs or len(os.sched_getaffinity(0))

    @property
    def _late(self) -> bool:
        return self.options.max_time is not None and time.monotonic() - self._begin > self.options.max_time

    def pinned(self, site: Site) -> Form | None:
        """Return the form that the user pinned a site to."""
        found = [form for pattern, form in self.pins.items() if matches(site, pattern)]
        return found[-1] if found else None

    def fit(self, site: Site, form: Form) -> Choice:
        """Fit one form.

        Raises:
            ActxError: it cannot be had.
        """
        (choice,) = choose(
            [site], self.job.target, pins={site.name: form}, statistics=self.job.observed, fold=self.job.fold,
            weighted=self.weighted,
        )  # fmt: skip
        return choice

    def _forms(self, site: Site) -> tuple[Form, ...]:
        pinned = self.pinned(site)
        if pinned is None:
            return candidates(self.job.target, site)
        return () if pinned == KEEP else (pinned,)

    def _latencies(self) -> dict[Pair, SiteLatency]:
        """1."""
        found: dict[Pair, SiteLatency] = {}
        progress = self.job.steps("measure forms")
        sites = self.sites
        for done, site in enumerate(sites):
            forms = self._forms(site)
            known = looked_up(self.latency_bench, site, forms)
            if self._late and any(isinstance(latency, str) for latency in known.values()):
                measured = tuple(SiteLatency(form, None, None, _LATE) for form in forms)
            else:
                measured = measure_site(self.latency_bench, site, forms, self.fit)
            found.update({(site.name, latency.form): latency for latency in measured})
            if progress is not None:
                progress(done + 1, len(sites))
        return found

    def _trial_bench(self, folder: Path) -> Bench:
        job = self.job
        samples = head(job.samples, self.options.samples)
        return write_bench(
            folder, job.loaded, job.sites, job.observed, samples, metric=job.metric, fold=job.fold,
            weighted=self.weighted, recover=job.recover, options=job.options,
        )  # fmt: skip

    def _trials(self, bench: Bench, latencies: Mapping[Pair, SiteLatency]) -> dict[Pair, TrialResult]:
        """2."""
        pinned = {site.name for site in self.job.sites if self.pinned(site) is not None}
        pairs = [pair for pair, latency in latencies.items() if pair[0] in pinned or (latency.saved_ms or 0) > 0]
        pairs.sort(key=lambda pair: -(latencies[pair].saved_ms or 0))
        limit = self.options.max_time
        deadline = None if limit is None else self._begin + limit
        return run_trials(
            bench, pairs, self.log, jobs=self._jobs, executor=self.options.executor, deadline=deadline,
            progress=self.job.steps("measure drift"),
        )  # fmt: skip

    def _share(self) -> float | None:
        """Return the share of all sites in the original's latency on the target."""
        bench = self.latency_bench
        shapes = {name: list(array.shape) for name, array in bench.batch.items()}
        key = measurement_key("activation share", self.job.loaded.sha256, shapes, bench.conditions)
        known = self.log.get(key, lambda value: [None if value["share"] is None else float(value["share"])])
        if known is not None:
            return known[0]
        times = bench.graph.runtime.node_times(self.job.original, bench.batch, owners(self.job.sites))
        about = {"target": self.job.target.name}
        self.log.put(key, "activation share", about, {"share": times.activation_share})
        return times.activation_share


@dataclass
class _Choosing:
    """3 and 4.

    Attributes:
        search: for which.
        candidates: what is known.
        keys: of every site and form, by what its fit depends on.
        original_ms: one inference of the original.
        share: of the sites in that.
    """

    search: Search
    candidates: tuple[Candidate, ...]
    keys: Mapping[Pair, str]
    original_ms: float
    share: float | None

    def __post_init__(self) -> None:
        """Put what is known in the order of the sites, to keep first; of a pinned site there is only the pin."""
        job, search = self.search.job, self.search
        self.power = POWERS.get(job.metric, 1.0)
        self.forms: list[list[Form]] = []
        self.options: list[list[Option]] = []
        self.fixed: list[Option] = []
        for site in job.sites:
            known = [(c.form, c.option) for c in self.candidates if c.site == site.name and c.option is not None]
            pin = search.pinned(site)
            if pin is not None:
                self.fixed += [option for _, option in known if option is not None]
                known = []
            self.forms.append([pin or KEEP, *(form for form, _ in known)])
            kept = Option(str(self.forms[-1][0]), 0.0, 0.0)
            self.options.append([kept, *(option for _, option in known if option is not None)])

    @property
    def tolerance(self) -> float:
        """Milliseconds that make no difference."""
        return TOLERANCE * sum(max(option.saved_ms for option in options) for options in self.options)

    def run(self, verify: Verify) -> Found:
        verified: dict[tuple[int, ...], Verified] = {}
        limit = self.search.budget
        pins_only = (0,) * len(self.options)
        for _ in range(ROUNDS):
            pick = solve(self.options, self._left(limit), self.power, tolerance_ms=self.tolerance)
            if pick in verified or pick == pins_only:
                break
            verified[pick] = self._verified(pick, verify)
            outcome, drift = verified[pick].outcome, verified[pick].drift
            wanted = self._rescaled(drift, outcome.drift)
            if outcome.drift <= self.search.budget and wanted <= limit:
                break
            limit = wanted
        accepted = [v for v in verified.values() if self._is_good(v)]
        if not accepted and any(form != KEEP for form, *_ in self.forms):  # the pins have to be there
            verified[pins_only] = self._verified(pins_only, verify)
            accepted = [verified[pins_only]]
        taken = max(accepted, key=lambda v: (v.saved_ms, -v.outcome.drift), default=None)
        original = (Choice(site, KEEP, None, "kept: no choice is better as a whole") for site in self.search.job.sites)
        choices = (
            tuple(original if verified else map(self._keep, self.search.job.sites)) if taken is None else taken.choices
        )
        return Found(
            choices, taken, self._reason(taken, list(verified.values())), self.original_ms, self.share, self.candidates,
            self._front(), tuple(verified.values()), self._in_the_way(taken),
            min(self.search.options.samples, self.search.job.samples.samples),
            tuple(tuple(map(str, forms)) for forms in self.forms),
        )  # fmt: skip

    def _left(self, limit: float) -> float:
        """Return what the pinned sites leave of a limit."""
        left = limit**self.power - math.fsum(option.drift**self.power for option in self.fixed)
        return float(max(left, 0.0) ** (1 / self.power))

    def _rescaled(self, drift: float, measured: float) -> float:
        """Return the predicted drift at which a choice would be measured to be just within the budget."""
        if not math.isfinite(measured):
            return drift / 10
        return AIM * drift * self.search.budget / measured if measured > 0 else math.inf

    def _is_good(self, verified: Verified) -> bool:
        within = verified.outcome.drift <= self.search.budget
        return within and verified.outcome.verdict == "faster"

    def _choices(self, pick: Sequence[int]) -> tuple[Choice, ...]:
        choices = []
        for site, forms, options, i in zip(self.search.job.sites, self.forms, self.options, pick, strict=True):
            if forms[i] == KEEP:
                choices.append(self._keep(site))
                continue
            choice = self.search.fit(site, forms[i])
            reason = (
                "pinned" if i == 0 else f"saves {options[i].saved_ms:.3g} ms, drifts by {options[i].drift:.2g} alone"
            )
            choices.append(replace(choice, reason=reason))
        return tuple(choices)

    def _keep(self, site: Site) -> Choice:
        if self.search.pinned(site) is not None:
            return Choice(site, KEEP, None, "pinned")
        known = [candidate for candidate in self.candidates if candidate.site == site.name]
        if any(candidate.option is not None for candidate in known):
            return Choice(site, KEEP, None, "kept: what its forms save is not worth their drift")
        if not known or any(candidate.reason == _NOTHING for candidate in known):
            return Choice(site, KEEP, None, f"kept: no form is faster on {self.search.job.target.name}")
        return Choice(site, KEEP, None, f"kept: {known[0].reason}")

    def _verified(self, pick: Sequence[int], verify: Verify) -> Verified:
        choices = self._choices(pick)
        pairs = [(choice.site.name, choice.form) for choice in choices if choice.rewritten]
        key = measurement_key("choice", [self.keys[pair] for pair in pairs])
        point = Point(saved(self.options, pick), predicted(self.options, pick, self.power), tuple(pick))
        point = self._with_pins(point)
        return Verified(choices, key, point.saved_ms, point.drift, verify(choices, key))

    def _front(self) -> tuple[Point, ...]:
        points = front(self.options, self.power, tolerance_ms=self.tolerance)
        return tuple(self._with_pins(point) for point in points)

    def _with_pins(self, point: Point) -> Point:
        """Add what the pinned sites save and cost."""
        pins = [*self.fixed, Option("", point.saved_ms, point.drift)]
        one_each = [[option] for option in pins]
        every = (0,) * len(pins)
        return Point(saved(one_each, every), predicted(one_each, every, self.power), point.choice)

    def _in_the_way(self, taken: Verified | None) -> tuple[str, ...]:
        budget = self.search.budget
        if taken is None or taken.outcome.drift <= budget:
            return ()
        pinned = {site.name for site in self.search.job.sites if self.search.pinned(site) is not None}
        known = {c.site: c.option.drift for c in self.candidates if c.site in pinned and c.option is not None}
        ordered = sorted(known, key=lambda name: -known[name])
        return tuple(f"{name} ({known[name]:.3g} alone)" for name in ordered if known[name] > 0)

    def _reason(self, taken: Verified | None, verified: Sequence[Verified]) -> str:
        budget, job = self.search.budget, self.search.job
        if taken is not None:
            rewritten = sum(choice.rewritten for choice in taken.choices)
            text = f"{rewritten} of {len(taken.choices)} sites are rewritten: drift {taken.outcome.drift:.3g}"
            limit = "within" if taken.outcome.drift <= budget else "over"
            ratio = "" if taken.outcome.ratio is None else f", {taken.outcome.ratio:.3f} times as fast"
            return f"{text}, {limit} the budget of {budget:g}{ratio}{self._unknown()}"
        share = self._amdahl() + self._unknown()
        if not any(len(options) > 1 for options in self.options):
            return f"no form is measured to be faster on {job.target.name}: the original stays{share}"
        if not verified:
            return f"no form that is faster is within the budget of {budget:g}: the original stays{share}"
        best = max(verified, key=lambda v: v.saved_ms)
        if best.outcome.drift > budget:
            return f"no choice that was built is within the budget of {budget:g}: the original stays{share}"
        return f"no choice is measured to be faster as a whole: the original stays{share}"

    def _unknown(self) -> str:
        """Say what the time was too short for."""
        late = sum(candidate.reason == _LATE for candidate in self.candidates)
        return f"; {late} of {len(self.candidates)} forms were {_LATE}" if late else ""

    def _amdahl(self) -> str:
        """Say what could be gained at best (Amdahl's law)."""
        if self.share is None:
            return "; what share of its latency its sites take was not measured"
        if not 0 <= self.share < 1:
            return ""
        bound = 1 / (1 - self.share)
        return f"; its sites take {self.share:.1%} of its latency: without any it would be {bound:.3f} times as fast"
