"""What a bundle comes to, in the few facts that every format of the report begins with."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actx.exporter.manifest import BreakdownEntry, LatencyEntry, Manifest

WORST = 5
_RUNTIMES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT-RTX",
}
_SHOWN_OPERATIONS = 12


@dataclass(frozen=True)
class LatencySummary:
    """The verdict on the latency.

    Attributes:
        verdict: ``faster``, ``slower`` or ``no difference``.
        ratio: how many times as fast as the original.
        interval: of the ratio, with 95 %.
        noise: ratio that the original reaches against itself.
        original_ms, artifact_ms: medians.
        original_share, artifact_share: of all sites; None where the runtime does not show them.
        machine: what it was measured on.
        device: the same, with what ran it.
        synthetic: whether on random input.
    """

    verdict: str
    ratio: float
    interval: tuple[float | str, float | str]
    noise: float | str
    original_ms: float
    artifact_ms: float
    original_share: float | None
    artifact_share: float | None
    machine: str
    device: str
    synthetic: bool


@dataclass(frozen=True)
class DriftSummary:
    """The drift of what runs on the machine of the export.

    Attributes:
        drift: the worst output's, in the metric.
        metric: its name.
        budget: None where there was none.
        within_budget: whether every graph that was measured is.
        graph: the file that was run.
        samples: how many.
        synthetic: whether they were random.
    """

    drift: float | str
    metric: str
    budget: float | None
    within_budget: bool
    graph: str
    samples: int
    synthetic: bool


@dataclass(frozen=True)
class Worst:
    """A place that adds much noise.

    Attributes:
        name: of the site or layer.
        added_db: signal-to-noise ratio of what it adds itself.
        stage, remedy: the stage that adds most of it, and what to do; empty where that was not attributed.
    """

    name: str
    added_db: float | str
    stage: str
    remedy: str


@dataclass(frozen=True)
class Summary:
    """What a bundle comes to.

    Attributes:
        bundle: its folder's name.
        source: the model's file.
        target: what it was exported for.
        created: when, in UTC.
        sites: how many there are.
        rewritten: how many of them are not kept.
        forms: how many sites have each form.
        latency: None where it was not measured.
        drift: None where it was not measured.
        worst: where most noise is added, at most five.
        notes: the manifest's, and those of both measurements.
    """

    bundle: str
    source: str
    target: str
    created: str
    sites: int
    rewritten: int
    forms: dict[str, int]
    latency: LatencySummary | None
    drift: DriftSummary | None
    worst: tuple[Worst, ...]
    notes: tuple[str, ...]

    @property
    def synthetic(self) -> bool:
        """Whether anything was measured on random input."""
        return any(part is not None and part.synthetic for part in (self.latency, self.drift))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: null for what was not measured."""
        return {**asdict(self), "synthetic": self.synthetic}


class Operation(NamedTuple):
    """Shares of the latency that nodes of one kind have before and after; `site` tells whether they compute sites."""

    name: str
    before: float
    after: float
    site: bool = False


def summarize(bundle: str, manifest: Manifest) -> Summary:
    """Return what a manifest comes to; `bundle` is the name of its folder."""
    forms = Counter(site.form for site in manifest.sites)
    measured = [report.notes for report in (manifest.latency, *manifest.drift[:1]) if report is not None]
    return Summary(
        bundle=bundle,
        source=manifest.source.file,
        target=manifest.request.target,
        created=manifest.created,
        sites=len(manifest.sites),
        rewritten=len(manifest.sites) - forms["keep"],
        forms=dict(forms.most_common()),
        latency=None if manifest.latency is None else _latency(manifest.latency),
        drift=_drift(manifest) if manifest.drift else None,
        worst=_worst(manifest),
        notes=tuple(dict.fromkeys([*manifest.notes, *(note for notes in measured for note in notes)])),
    )


def operations(manifest: Manifest) -> list[Operation]:
    """Return where the latency goes: the sites, then the op types that take most, then all others."""
    if manifest.latency is None:
        return []
    before, after = map(_shares, (manifest.latency.original_nodes, manifest.latency.artifact_nodes))
    names = sorted({*before, *after} - {""}, key=lambda name: -max(before[name], after[name]))
    rows = [Operation("all sites", before[""], after[""], site=True)] if before[""] or after[""] else []
    rows += [Operation(name, before[name], after[name]) for name in names[:_SHOWN_OPERATIONS]]
    rest = names[_SHOWN_OPERATIONS:]
    if rest:
        rows.append(Operation("all others", sum(before[name] for name in rest), sum(after[name] for name in rest)))
    return rows


def _shares(nodes: BreakdownEntry) -> defaultdict[str, float]:
    """Return the share of every op type outside of sites, and of all sites under the empty name."""
    shares: defaultdict[str, float] = defaultdict(float)
    for node in nodes.nodes:
        shares["" if node.site else node.op_type] += node.share or 0.0
    return shares


def _latency(report: LatencyEntry) -> LatencySummary:
    found = report.comparison
    return LatencySummary(
        verdict=found.verdict,
        ratio=found.paired_ratio,
        interval=found.interval,
        noise=found.noise,
        original_ms=report.original.p50,
        artifact_ms=report.artifact.p50,
        original_share=report.original_nodes.activation_share,
        artifact_share=report.artifact_nodes.activation_share,
        machine=machine(report.runtime),
        device=_device(report.runtime),
        synthetic=report.synthetic,
    )


def machine(runtime: Mapping[str, Any]) -> str:
    """Return the GPU, or the CPU with the number of its cores, that a measurement's `runtime` names."""
    gpu = runtime.get("gpu")
    if gpu:
        return str(gpu.get("name", "GPU") if isinstance(gpu, dict) else gpu)
    return f"{runtime.get('cpu', 'not known')}, {runtime.get('cores', '?')} cores"


def runtime_name(runtime: Mapping[str, Any]) -> str:
    """Return the name of the library that a measurement's `runtime` names."""
    name = str(runtime.get("runtime", "not known"))
    return _RUNTIMES.get(name, name)


def _device(runtime: Mapping[str, Any]) -> str:
    threads = runtime.get("threads_used")
    of = "" if runtime.get("gpu") or not threads else f", {threads} thread{'' if threads == 1 else 's'}"
    return f"{machine(runtime)}{of}, {runtime_name(runtime)}"


def _drift(manifest: Manifest) -> DriftSummary:
    first = manifest.drift[0]
    return DriftSummary(
        drift=first.drift,
        metric=first.metric,
        budget=first.max_drift,
        within_budget=all(report.within_budget for report in manifest.drift),
        graph=first.graph,
        samples=first.samples,
        synthetic=first.synthetic,
    )


def _worst(manifest: Manifest) -> tuple[Worst, ...]:
    """Return the culprits of the attribution; without one, the sites that add most noise."""
    if manifest.attribution is not None:
        return tuple(Worst(one.name, one.added_db, one.stage, one.remedy) for one in manifest.attribution.worst)
    sites = manifest.drift[0].sites if manifest.drift else []
    known = [(site.added_db, site.name) for site in sites if site.added_db is not None and site.added_db != "inf"]
    return tuple(Worst(name, added, "", "") for added, name in sorted(known, key=lambda one: float(one[0]))[:WORST])
