"""Build and measure the choices that a search makes, and keep the reports in its log.

1. The drift is measured first. Latency only where that is within the budget: it takes the most time.
2. What the log has of an equal choice, on equal data and the same machine, is not measured again.
3. The files of the last choice that was built are kept until the search has ended: most often it is the one that is taken.
"""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import asdict, replace
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
        value = self._value(choices, key)
        drift = max((report.drift for report in _drifts(value)), default=0.0)
        latency = _latency(value)
        if latency is None:
            return Outcome(drift)
        return Outcome(drift, latency.comparison.verdict, latency.comparison.paired_ratio)

    def final(self, found: Found) -> tuple[Made, list[str]]:
        """Return the files and reports of what a search has found, with remarks."""
        key = measurement_key("choice", []) if found.taken is None else found.taken.key
        value = self._value(found.choices, key)
        fresh = measurement_key(KIND, key, self._conditions) in self._fresh
        made = self._made
        if made is None or _forms(made.choices) != _forms(found.choices):
            made = self._make(found.choices, value)
        notes = [found.reason]
        if not fresh:
            notes.append(
                f"drift and latency of this choice were measured at {value['when']}: the log of the search has them"
            )
        return replace(made, choices=found.choices, drifts=_drifts(value), latency=_latency(value)), notes

    def _value(self, choices: tuple[Choice, ...], key: str) -> dict[str, Any]:
        """2. Return what the log has of a choice, after it was measured where needed."""
        full = measurement_key(KIND, key, self._conditions)
        value = self._log.get(full)
        if value is None:
            made = measure_drift(self._job, self._make(choices, None))
            if all(made.drifts):
                made = measure_latency(self._job, made)
            value = _to_value(made)
            self._fresh.add(full)
            about = {"target": self._job.target.name, "forms": [str(choice.form) for choice in choices]}
            self._log.put(full, KIND, about, value)
        return dict(value)

    def _make(self, choices: tuple[Choice, ...], value: dict[str, Any] | None) -> Made:
        """3."""
        if self._made is not None:
            shutil.rmtree(self._made.folder, ignore_errors=True)
        ffns = None if value is None else _FFNS.validate_python(value["ffns"])
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
        Mark(built.saved_ms, built.outcome.drift, "taken" if built is found.taken else "") for built in found.verified
    ]
    draw(found.front, marks, job.max_drift, found.original_ms, folder / FRONT, metric=job.metric)


def _forms(choices: tuple[Choice, ...]) -> list[str]:
    return [str(choice.form) for choice in choices]


_DRIFT = TypeAdapter(DriftReport)
_LATENCY = TypeAdapter(LatencyReport)
_FFNS = TypeAdapter(tuple[Decision, ...])
# What their modules import for type checkers alone.
_LATENCY.rebuild(_types_namespace={"Breakdown": Breakdown})
_FFNS.rebuild(_types_namespace={"Comparison": Comparison})


def _to_value(made: Made) -> dict[str, Any]:
    return {
        "when": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "drifts": [json_values(asdict(report)) for report in made.drifts],
        "latency": None if made.latency is None else json_values(asdict(made.latency)),
        "ffns": [json_values(asdict(decision)) for decision in made.ffns],
    }


def _drifts(value: dict[str, Any]) -> tuple[DriftReport, ...]:
    return tuple(_DRIFT.validate_python(report) for report in value["drifts"])


def _latency(value: dict[str, Any]) -> LatencyReport | None:
    return None if value["latency"] is None else _LATENCY.validate_python(value["latency"])
