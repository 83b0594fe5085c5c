"""What is compared: a bundle, its manifest, or what a verb printed as JSON, as quantities by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from actx.exporter.bundle import read_bundle, verify
from actx.exporter.comparing.condition import keyed
from actx.exporter.documents import first_fault, parse_json, read_document
from actx.exporter.errors import ActxError
from actx.exporter.manifest import DriftEntry, LatencyEntry, Manifest, Real
from actx.exporter.metrics import METRICS
from actx.exporter.reporting.summary import Summary, machine, runtime_name

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMES = ("p50", "p90", "p95", "p99", "min", "mean", "throughput", "load", "first_run", "peak_memory")
LATENCY = tuple(f"latency.{name}" for name in TIMES)
RATIO = "latency.ratio"
ORIGINAL = tuple(f"original.{name}" for name in TIMES)
DRIFT = tuple(f"drift.{metric}" for metric in METRICS)
ACCURACY = "accuracy"
SIZE = "size"
# What can be known of everything, in the order of its rows; of outputs and files there are more.
QUANTITIES = (*LATENCY, RATIO, *ORIGINAL, *DRIFT, ACCURACY, SIZE)
_NAMES_OF_JSON = "what actx profile --json, check --json, export --json or report --format json printed"


@dataclass
class Side:
    """One of the things compared, gathered from what its parts say.

    Attributes:
        name: what it is called.
        values: quantities by name, times in milliseconds and sizes in bytes; None for what was not measured.
        facts: what else is known, in words.
        forms: of every site; None where that is not known.
        noise: by the name of a quantity of the latency, logarithm of the ratio that the original reaches against itself.
        interval: of `latency.ratio`, with 95 %.
        notes: what makes the numbers doubtful.
    """

    name: str
    values: dict[str, float | None] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    forms: dict[str, str] | None = None
    noise: dict[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)

    def add_manifest(self, manifest: Manifest) -> None:
        """Take what a manifest says."""
        request, source = manifest.request, manifest.source
        self.facts |= {
            "target": request.target,
            "scheme": request.quant or "none",
            "source": f"{source.file} (sha256 {source.sha256[:12]})",
        }
        self.forms = {site.name: site.form for site in manifest.sites}
        if manifest.latency is not None:
            self.add_latency(manifest.latency)
        if manifest.drift:
            self.add_drift(manifest.drift[0])

    def add_latency(self, entry: LatencyEntry) -> None:
        """Take the latency."""
        for prefix, times, startup in (
            ("latency", entry.artifact, entry.artifact_startup),
            ("original", entry.original, entry.original_startup),
        ):
            taken = times.model_dump() | startup.model_dump()
            self.values |= {f"{prefix}.{name}": _number(taken[name]) for name in TIMES}
        first, again = entry.original.model_dump(), entry.original_again.model_dump()
        apart = {name: abs(log_ratio(_number(first[name]), _number(again[name]))) for name in TIMES if name in first}
        found = entry.comparison
        self._verdict(found.verdict, found.paired_ratio, found.interval)
        band = log_ratio(1.0, float(found.noise))
        self.noise = {f"latency.{name}": max(band, apart.get(name, 0.0)) for name in TIMES}
        self.facts |= {
            "machine": machine(entry.runtime),
            "runtime": runtime_name(entry.runtime),
            "threads": str(entry.runtime.get("threads_used", "not known")),
            "input shapes": "; ".join(dict.fromkeys(map(_shapes, entry.shapes))),
        }
        self._synthetic("latency", synthetic=entry.synthetic)
        self.notes += entry.notes

    def add_drift(self, entry: DriftEntry) -> None:
        """Take the drift of one graph."""
        for metric in METRICS:
            found = {out.name: _number(getattr(out, metric)) for out in entry.outputs}
            known = [value for value in found.values() if value is not None]
            self.values[f"drift.{metric}"] = max(known, default=None)
            if len(entry.outputs) > 1:
                self.values |= {keyed(f"drift.{metric}", name): value for name, value in found.items()}
        if entry.metric not in METRICS:
            self.values[keyed("drift", entry.metric)] = _number(entry.drift)
        if entry.accuracy is not None:
            self.values[ACCURACY] = _number(entry.accuracy.artifact)
        self.facts["data"] = f"{entry.samples} samples of {PurePath(entry.source).name}"
        self._synthetic("drift", synthetic=entry.synthetic)

    def add_summary(self, summary: Summary) -> None:
        """Take what a report says in short."""
        self.facts["target"] = summary.target
        latency, drift = summary.latency, summary.drift
        if latency is not None:
            self.values |= {
                "latency.p50": _number(latency.artifact_ms),
                "original.p50": _number(latency.original_ms),
            }
            self._verdict(latency.verdict, latency.ratio, latency.interval)
            self.noise = {"latency.p50": log_ratio(1.0, float(latency.noise))}
            self.facts["machine"] = latency.machine
            self._synthetic("latency", synthetic=latency.synthetic)
        if drift is not None:
            name = f"drift.{drift.metric}" if drift.metric in METRICS else keyed("drift", drift.metric)
            self.values[name] = _number(drift.drift)
            self._synthetic("drift", synthetic=drift.synthetic)

    def add_files(self, folder: Path, names: list[str]) -> None:
        """Take the sizes of a bundle's files; one that is not there has none."""
        sizes = {name: _size(folder / name) for name in names}
        self.values[SIZE] = sum(size for size in sizes.values() if size is not None)
        self.values |= {keyed(SIZE, name): size for name, size in sizes.items()}

    def _verdict(self, verdict: str, ratio: float, interval: tuple[Real | str, Real | str]) -> None:
        self.values[RATIO] = _number(ratio)
        self.interval = (float(interval[0]), float(interval[1]))
        self.facts["verdict on its own original"] = verdict

    def _synthetic(self, what: str, *, synthetic: bool) -> None:
        if synthetic:
            self.notes.append(f"the {what} was measured on random input (synthetic)")


def read_side(path: Path, name: str) -> Side:
    """Read a bundle, or a file of JSON, and call it by a name.

    Raises:
        ActxError: it is neither, or a file of the bundle is missing or not the one that was written.
    """
    side = Side(name)
    try:
        if path.is_dir():
            folder, manifest = read_bundle(path)
            verify(folder, manifest)
            side.add_manifest(manifest)
            side.add_files(folder, list(manifest.files))
        else:
            _read_json(path, side)
    except OSError as error:
        raise ActxError(f"cannot read {path}", note=str(error.strerror), remedy="Name a bundle, or a file.") from error
    return side


def _read_json(path: Path, side: Side) -> None:
    content = _content(path)
    try:
        if {"sites", "request"} <= content.keys():
            side.add_manifest(Manifest.parse({name: v for name, v in content.items() if name != "bundle"}, path))
        elif "comparison" in content:
            side.add_latency(LatencyEntry.model_validate(content))
        elif "outputs" in content:
            side.add_drift(DriftEntry.model_validate(content))
        elif "rewritten" in content:
            side.add_summary(TypeAdapter(Summary).validate_python(content))
        else:
            raise _unknown(path, "it has none of their fields")
    except ValidationError as error:
        raise _unknown(path, first_fault(error)) from error
    except ValueError as error:
        raise _unknown(path, str(error)) from error


def _content(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_document(path))
    except ValueError as error:
        raise _unknown(path, f"it is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise _unknown(path, "it holds no object")
    return content


def _unknown(path: Path, why: str) -> ActxError:
    return ActxError(f"{path} cannot be compared", note=why, remedy=f"Give a bundle, or {_NAMES_OF_JSON}.")


def log_ratio(before: float | None, after: float | None) -> float:
    """Return the logarithm of after / before, which is infinite where only one is 0 or infinite; 0 where one is not known."""
    if before is None or after is None or before == after:
        return 0.0
    if min(before, after) <= 0 or math.isinf(max(before, after)):
        return math.copysign(math.inf, after - before)
    return math.log(after / before)


def _number(value: float | str | None) -> float | None:
    """Return a number, which an infinity is too; None for what was not measured or is none."""
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:  # of an integer
        number = math.inf
    return None if math.isnan(number) else number


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _shapes(shapes: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
