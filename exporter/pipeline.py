"""The pipeline: load, lift, calibrate, fit, choose, lower, check, profile, and the bundle that holds the result."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from actx.exporter import bundle, runtime
from actx.exporter.calibrate import SiteStatistics, calibrate
from actx.exporter.choose import Choice, choose
from actx.exporter.comparison import owners_of, tap
from actx.exporter.drift import DriftReport, SiteTap, check, check_applies
from actx.exporter.errors import RequirementError, UsageError
from actx.exporter.inspection import open_data, owners
from actx.exporter.kernels import carry, check_architectures, choose_kernels
from actx.exporter.latency import LatencyReport, profile
from actx.exporter.lift import Site, lift
from actx.exporter.load import load
from actx.exporter.lower import Lowered, Placement, lower
from actx.exporter.manifest import (
    MANIFEST,
    CertificateEntry,
    FitEntry,
    Manifest,
    RequestEntry,
    SiteEntry,
    SourceEntry,
    StatisticsEntry,
)
from actx.exporter.metrics import check_metric
from actx.exporter.opening import Graph, choose_graph
from actx.exporter.save import save
from actx.exporter.targets import TARGETS, Target, find_target
from actx.exporter.workspace import workspace

if TYPE_CHECKING:
    from actx.exporter.data import Data, InputSpec
    from actx.exporter.fitting import Fit, Form

# Called with the name of a step, how much of it is done and how much there is to do.
Progress: TypeAlias = Callable[[str, int, int], None]

PACKAGES = ("actx", "onnx", "onnx-ir", "onnxruntime", "torch", "numpy", "scipy")


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        path: the bundle.
        manifest: what it says of itself.
        drift: the measured drift of the graph that runs here, None where it was not measured.
        portable_drift: of the portable graph, where another one runs here.
        latency: the measured latency of the graph that runs here, None where it was not measured.
    """

    path: Path
    manifest: Manifest
    drift: DriftReport | None
    portable_drift: DriftReport | None
    latency: LatencyReport | None


def export(
    model: Path | str,
    out: Path | str,
    *,
    target: str = "ort-cpu",
    form: Form | None = None,
    sites: Mapping[str, Form] | None = None,
    data: str | None = None,
    held_out: str | None = None,
    inputs: Sequence[InputSpec] = (),
    batch_size: int | None = None,
    metric: str = "l2",
    max_drift: float | None = None,
    fold: bool = True,
    weighted: bool = True,
    measure_drift: bool = True,
    measure_latency: bool = True,
    runs: int | None = None,
    force: bool = False,
    trust: bool = False,
    factory: str | None = None,
    opset: int | None = None,
    kernels: bool | None = None,
    with_kernels: Sequence[str] = (),
    options: runtime.RuntimeOptions = runtime.DEFAULT,
    progress: Progress | None = None,
) -> Exported:
    """Export a model into a bundle.

    Args:
        model: the model (see `load`).
        out: the bundle's folder.
        target: a name from `TARGETS`.
        form: for all sites; None keeps what the target runs fast and rewrites the rest closely.
        sites: forms for single sites, by name or pattern.
        data: samples to observe the sites on (see `load_data`), and without `held_out` drift and latency too. Without either
            these are measured on random input, marked as synthetic.
        held_out: samples for drift and latency alone.
        inputs: types and dimensions that the user states.
        batch_size: samples per run.
        metric: of the drift (see `check`).
        max_drift: the budget in that metric.
        fold: whether slopes are folded into the layers around a site.
        weighted: whether forms are fitted closer where the data is. Without data they are fitted evenly.
        measure_drift: whether to check. A budget needs it.
        measure_latency: whether to profile.
        runs: rounds of the profile; None for as many as the verdict needs (see `latency`).
        force: whether a bundle at `out` may be replaced.
        trust: whether an archive or pickle may run the code it carries.
        factory: what makes the module for weights (see `load`).
        opset: of the bundle's graphs; None takes the model's.
        kernels: whether drift and latency must be those of the graph of actx nodes, or must not; None for where this machine
            has the kernels.
        with_kernels: architectures whose library is put into the bundle: x86_64, aarch64.
        options: how models are run.
        progress: told of every step.

    Raises:
        DriftExceeded: the drift exceeds the budget; the bundle is then at ``OUT.rejected`` and `out` is as it was.
        TargetUnavailable: the kernels were asked for and cannot be had.
        UsageError, ActxError: see the steps.
    """
    model, out = Path(model), Path(out)
    goal = find_target(target)
    _check_kernels(goal, kernels, with_kernels)
    check_metric(metric)
    bundle.check_destination(out, force=force)
    if max_drift is not None:
        bundle.check_destination(bundle.rejected_place(out), force=True)
    steps = _Steps(progress)
    loaded = load(model, inputs=inputs, trust=trust, factory=factory, opset=opset)
    if measure_drift or max_drift is not None:
        check_applies(metric, loaded.model)
    lifted = lift(loaded.model)
    samples = open_data(loaded, data, batch_size)
    measured = samples if held_out is None else open_data(loaded, held_out, batch_size)
    request = RequestEntry(
        target=target,
        form=None if form is None else str(form),
        sites={name: str(pin) for name, pin in (sites or {}).items()},
        fold=fold,
        weighted=weighted,
        metric=metric,
        max_drift=max_drift,
        data=data,
        held_out=held_out,
    )
    with bundle.staging(out) as folder, workspace(loaded) as original:
        observed = {} if data is None else calibrate(original, lifted.sites, samples, options, steps("calibrate"))
        choices = choose(
            lifted.sites, goal, form=form, pins=sites, statistics=observed, fold=fold, weighted=weighted,
            progress=steps("fit"),
        )  # fmt: skip
        lowered = lower(loaded.model, choices, fold=fold, native=goal.native)
        graphs = _save(lowered, goal, folder)
        carry(folder, with_kernels)
        graph = choose_graph(folder, graphs, kernels if lowered.native is not None else None)
        owned = owners_of(graph.path)
        drift = portable_drift = latency = None
        if measure_drift or max_drift is not None:
            drift, portable_drift = _check(
                original, graph, measured, _taps(choices, lowered, owned), metric, max_drift, options, steps
            )
        if measure_latency:
            latency = profile(
                original, graph.path, measured, options=graph.register(options), runs=runs,
                owners_original=owners(lifted.sites), owners_artifact=owned, progress=steps("profile"),
            )  # fmt: skip
        manifest = Manifest(
            version=1,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            source=SourceEntry(file=model.name, format=loaded.format, sha256=loaded.sha256, opset=loaded.opset),
            request=request,
            versions=_versions(),
            files=bundle.digests(folder),
            graphs=graphs,
            sites=[_entry(c, p, observed.get(c.site.name)) for c, p in zip(choices, lowered.placements, strict=True)],
            drift=None if drift is None else drift.to_dict(),
            portable_drift=None if portable_drift is None else portable_drift.to_dict(),
            latency=None if latency is None else latency.to_dict(),
            notes=[
                *dict.fromkeys((*samples.notes, *(measured if drift is None else drift).notes)),
                *_notes(lifted.sites, lowered, graph, measured=drift is not None or latency is not None),
            ],
        )
        manifest.write(folder / MANIFEST)
        return _finish(folder, Exported(out, manifest, drift, portable_drift, latency), force=force)


def _check_kernels(target: Target, kernels: bool | None, with_kernels: Sequence[str]) -> None:
    """Raise before any work where kernels were asked for that cannot be had."""
    check_architectures(with_kernels)
    if target.native:
        choose_kernels(kernels)
    elif kernels or with_kernels:
        native = ", ".join(name for name, other in TARGETS.items() if other.native)
        raise UsageError(
            f"target {target.name} has no kernels",
            note=f"targets with kernels: {native}",
            remedy="Choose one of these.",
        )


class DriftExceeded(RequirementError):  # noqa: N818 - the name states the condition
    """The drift is over the budget, or no number.

    Attributes:
        exported: what was made all the same; its path is ``OUT.rejected``.
    """

    def __init__(self, exported: Exported, what: str, *, note: str, remedy: str) -> None:
        super().__init__(what, note=note, remedy=remedy)
        self.exported = exported


class _Steps:
    """Progress of the pipeline, step by step."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def __call__(self, step: str) -> Callable[[int, int], None] | None:
        progress = self._progress
        return None if progress is None else lambda done, total: progress(step, done, total)


def _taps(choices: Sequence[Choice], lowered: Lowered, owned: Mapping[str, str]) -> list[SiteTap]:
    return [
        tap(choice.site, place.input, place.output, place.scale, choice.fit.bounds, owned)
        for choice, place in zip(choices, lowered.placements, strict=True)
        if choice.fit is not None
    ]


def _check(
    original: Path,
    graph: Graph,
    data: Data,
    taps: Sequence[SiteTap],
    metric: str,
    max_drift: float | None,
    options: runtime.RuntimeOptions,
    steps: _Steps,
) -> tuple[DriftReport, DriftReport | None]:
    """Measure the drift of the graph that runs here, and of the portable one where that is another, which others will run."""
    drift = check(
        original, graph.path, data, taps=taps, metric=metric, max_drift=max_drift, options=graph.register(options),
        progress=steps("check"),
    )  # fmt: skip
    portable = graph.path.with_name(bundle.PORTABLE)
    if portable == graph.path:
        return drift, None
    return drift, check(
        original, portable, data, metric=metric, max_drift=max_drift, options=options, progress=steps("check portable")
    )


def _finish(folder: Path, exported: Exported, *, force: bool) -> Exported:
    """Commit the bundle where it belongs: a budget holds for every graph that was checked."""
    drift = next(
        (report for report in (exported.drift, exported.portable_drift) if report is not None and not report), None
    )
    if drift is None:
        bundle.commit(folder, exported.path, force=force)
        return exported
    rejected = bundle.rejected_place(exported.path)
    bundle.commit(folder, rejected, force=True)
    budget = "the artifact gives NaN or infinity" if drift.max_drift is None else f"the budget is {drift.max_drift:g}"
    worst = f"; site {drift.worst_site} adds the most noise" if drift.worst_site else ""
    raise DriftExceeded(
        replace(exported, path=rejected),
        f"the drift is {drift.drift:.6g} ({drift.metric}{', synthetic input' if drift.synthetic else ''})",
        note=f"{budget}{worst}; measured on {drift.graph}",
        remedy=f"The bundle is at {rejected}. Choose a finer form for that site, or a larger budget.",
    )


def _save(lowered: Lowered, target: Target, folder: Path) -> dict[str, str]:
    graphs = {"portable": bundle.PORTABLE}
    models = {bundle.PORTABLE: lowered.portable}
    if lowered.native is not None:
        graphs[target.name] = bundle.native_name(target.name)
        models[graphs[target.name]] = lowered.native
    save(models, folder)
    return graphs


def _entry(choice: Choice, place: Placement, observed: SiteStatistics | None) -> SiteEntry:
    site = choice.site
    return SiteEntry(
        name=site.name,
        kind=site.kind,
        parameters={name: value.tolist() for name, value in site.parameters.items()},
        function=site.function.key,
        gated=site.gate is not None,
        shape=None if site.shape is None else list(site.shape),
        dtype=site.dtype.numpy().name,
        form=str(choice.form),
        reason=choice.reason,
        lowering=place.lowering,
        own_mathematics=place.own,
        input=place.input,
        output=place.output,
        scale=place.scale,
        fit=None if choice.fit is None else _fit_entry(choice.fit),
        statistics=None if observed is None else _statistics_entry(observed),
    )


def _statistics_entry(observed: SiteStatistics) -> StatisticsEntry:
    return StatisticsEntry(
        low=observed.low, high=observed.high, elements_per_sample=observed.elements, zeros=observed.zeros
    )


def _fit_entry(fit: Fit) -> FitEntry:
    ratio, proved = fit.ratio, fit.certificate
    return FitEntry(
        max_error=fit.max_error if math.isfinite(fit.max_error) else "inf",
        interval=fit.bounds,
        ratio_to_law=None if isinstance(ratio, float) and math.isinf(ratio) else ratio,
        slope=fit.slope,
        segments=fit.spline.segments,
        degree=fit.spline.degree,
        tails=fit.tail_degrees,
        rms_error=fit.rms,
        certificate=None if proved is None else CertificateEntry(error=proved.error, interval=proved.interval),
    )


def _notes(sites: Sequence[Site], lowered: Lowered, graph: Graph, *, measured: bool) -> list[str]:
    notes = []
    if not sites:
        notes.append("the model has no sites: it was exported unchanged")
    if measured and lowered.native is not None and graph.kernels is None:
        notes.append(f"drift and latency are those of {graph.path.name}, {graph.reason}")
    return notes


def _versions() -> dict[str, str]:
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = importlib.metadata.version(name)
    return found
