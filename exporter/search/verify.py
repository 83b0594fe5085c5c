"""Build and measure the choices that a search makes, and keep the reports in its log.

1. The drift is measured first. Latency only where that is within the budget: it takes the most time.
2. What the log has of an equal choice, on equal data and the same machine, is not measured again.
3. The files of the last choice that was built are kept until the search has ended: most often it is the one that is taken.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from actx.exporter import bundle
from actx.exporter.data import digest
from actx.exporter.drift import DriftReport
from actx.exporter.ffn.modes import Decision
from actx.exporter.latency import Comparison, LatencyReport
from actx.exporter.making import make, measure_drift, measure_latency
from actx.exporter.metrics import json_values
from actx.exporter.runtimes.base import Breakdown
from actx.exporter.search.drawing import Verified as Mark
from actx.exporter.search.drawing import draw
from actx.exporter.search.log import measurement_key
from actx.exporter.search.search import Found, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from actx.exporter.choose import Choice
    from actx.exporter.making import Job, Made
    from actx.exporter.search.log import Log

KIND = "verified choice"
FRONT = "front.svg"


@dataclass(frozen=True)
class _Reports:
    """What was measured of a choice.

    Attributes:
        when: in UTC.
        drifts, latency: the reports.
        ffns: what became of gated FFNs, which goes by what is measured too.
    """

    when: str
    drifts: tuple[DriftReport, ...]
    latency: LatencyReport | None
    ffns: tuple[Decision, ...]


class Verifier:
    """Verifies the choices of one search.

    Args:
        job: what is exported.
        log: of the search.
        folder: for files.
        conditions: what latency depends on besides the model, as JSON values.
    """

    def __init__(self, job: Job, log: Log, folder: Path, conditions: Mapping[str, Any]) -> None:
        self._job, self._log, self._folder = job, log, folder
        self._made: Made | None = None
        self._fresh: set[str] = set()
        self._conditions = [*self._describe(), dict(conditions)]

    def __call__(self, choices: tuple[Choice, ...], key: str) -> Outcome:
        """Build a choice and measure it."""
        reports = self._reports(choices, key)
        drift = max((report.drift for report in reports.drifts), default=0.0)
        if reports.latency is None:
            return Outcome(drift)
        return Outcome(drift, reports.latency.comparison.verdict, reports.latency.comparison.paired_ratio)

    def final(self, found: Found) -> tuple[Made, list[str]]:
        """Return the files and reports of what a search has found, with remarks."""
        key = measurement_key("choice", []) if found.taken is None else found.taken.key
        reports = self._reports(found.choices, key)
        made = self._made
        if made is None or _forms(made.choices) != _forms(found.choices):
            made = self._make(found.choices, reports.ffns)
        notes = [found.reason]
        if reports.when not in self._fresh:
            notes.append(f"drift and latency were measured on {reports.when[:19]} UTC and taken from the search's log")
        return replace(made, choices=found.choices, drifts=reports.drifts, latency=reports.latency), notes

    def _reports(self, choices: tuple[Choice, ...], key: str) -> _Reports:
        """2. Return what the log has of a choice, after it was measured where needed."""
        full = measurement_key(KIND, key, self._conditions)
        known = self._log.get(full, _REPORTS.validate_python)
        if known is not None:
            return known
        made = measure_drift(self._job, self._make(choices))
        if all(made.drifts):
            made = measure_latency(self._job, made)
        when = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
        self._fresh.add(when)
        reports = _Reports(when, made.drifts, made.latency, made.ffns)
        about = {"target": self._job.target.name, "forms": [str(choice.form) for choice in choices]}
        self._log.put(full, KIND, about, json_values(asdict(reports)))
        return reports

    def _make(self, choices: tuple[Choice, ...], ffns: tuple[Decision, ...] | None = None) -> Made:
        """3."""
        if self._made is not None:
            shutil.rmtree(self._made.folder, ignore_errors=True)
        self._made = make(self._job, choices, bundle.subfolder(self._folder), ffns=ffns)
        return self._made

    def _describe(self) -> list[Any]:
        """Return what a measurement depends on besides the choice, as JSON values."""
        job = self._job
        data = [
            digest({**batch.extras, **batch.feeds}) for part in (job.measured, job.timed) for batch in part.batches()
        ]
        graph = {"ffn": job.ffn, "ffn_sites": dict(job.ffn_sites), "recover": job.recover, "fold": job.fold}
        asked = {"metric": job.metric, "budget": job.max_drift, "runs": job.runs, "kernels": job.kernels}
        recovered = [digest(batch.feeds) for batch in job.samples.batches()] if job.recover else []
        return [job.loaded.sha256, job.loaded.opset, data, recovered, graph, asked]


def draw_front(found: Found, job: Job, folder: Path) -> None:
    """Draw what can be had, and what was built."""
    assert job.max_drift is not None
    marks = [
        Mark(built.saved_ms, built.outcome.drift, _summary(built.choices) if built is found.taken else "")
        for built in found.verified
    ]
    draw(found.front, marks, job.max_drift, found.original_ms, folder / FRONT, metric=f"drift ({job.metric})")


def _summary(choices: tuple[Choice, ...]) -> str:
    return ", ".join(f"{number} {form}" for form, number in Counter(_forms(choices)).most_common())


def _forms(choices: tuple[Choice, ...]) -> list[str]:
    return [str(choice.form) for choice in choices]


_REPORTS = TypeAdapter(_Reports)
# Their modules import some of these for type checkers alone.
_REPORTS.rebuild(_types_namespace={kind.__name__: kind for kind in (Breakdown, Comparison, Decision, DriftReport)})
