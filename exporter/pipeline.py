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

from actx.exporter import bundle
from actx.exporter.building import baseline, build_engine, profile_for, typed
from actx.exporter.calibrate import SiteStatistics, calibrate
from actx.exporter.choose import Choice, choose
from actx.exporter.comparison import halves_of, owners_of, tap
from actx.exporter.diagnosis import diagnose
from actx.exporter.drift import DriftReport, SiteTap, check, check_applies
from actx.exporter.errors import IncomparableError, RequirementError, TargetUnavailable, UsageError
from actx.exporter.ffn.measurement import Meter
from actx.exporter.ffn.modes import Decision, decide, explanations, parse_mode
from actx.exporter.inspection import open_data, owners, products
from actx.exporter.kernels import carry, check_architectures, choose_kernels
from actx.exporter.latency import LatencyReport, profile
from actx.exporter.lift import Site, lift
from actx.exporter.load import load
from actx.exporter.lower import Lowered, Placement, lower
from actx.exporter.manifest import (
    MANIFEST,
    CertificateEntry,
    EngineEntry,
    FfnEntry,
    FitEntry,
    Manifest,
    RatioEntry,
    RequestEntry,
    SiteEntry,
    SourceEntry,
    StatisticsEntry,
)
from actx.exporter.metrics import check_metric
from actx.exporter.runtimes.onnxruntime import DEFAULT, RuntimeOptions
from actx.exporter.save import save
from actx.exporter.targets import TARGETS, BuildRequest, Files, Graph, Target, check_scheme, find_target
from actx.exporter.tensorrt.options import BuildOptions
from actx.exporter.workspace import workspace

if TYPE_CHECKING:
    from actx.exporter.data import Data, InputSpec
    from actx.exporter.ffn.half import Half
    from actx.exporter.fitting import Fit, Form
    from actx.exporter.tensorrt.shapes import ShapeRange

# Called with the name of a step, how much of it is done and how much there is to do.
Progress: TypeAlias = Callable[[str, int, int], None]

PACKAGES = ("actx", "onnx", "onnx-ir", "onnxruntime", "torch", "numpy", "scipy")


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        path: the bundle.
        manifest: what it says of itself.
        drifts: the measured drift of what runs here, then of the other graphs of standard ops; empty where none was measured.
        latency: the measured latency on the target, None where it was not measured.
    """

    path: Path
    manifest: Manifest
    drifts: tuple[DriftReport, ...]
    latency: LatencyReport | None

    @property
    def drift(self) -> DriftReport | None:
        """The drift of what runs here, None where it was not measured."""
        return self.drifts[0] if self.drifts else None


def export(
    model: Path | str,
    out: Path | str,
    *,
    target: str = "ort-cpu",
    quant: str | None = None,
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
    ffn: str = "auto",
    ffn_sites: Mapping[str, str] | None = None,
    measure_drift: bool = True,
    measure_latency: bool = True,
    runs: int | None = None,
    force: bool = False,
    trust: bool = False,
    factory: str | None = None,
    opset: int | None = None,
    kernels: bool | None = None,
    with_kernels: Sequence[str] = (),
    shapes: Mapping[str, ShapeRange] | None = None,
    build: BuildOptions | None = None,
    options: RuntimeOptions = DEFAULT,
    progress: Progress | None = None,
) -> Exported:
    """Export a model into a bundle.

    Args:
        model: the model (see `load`).
        out: the bundle's folder.
        target: a name from `TARGETS`.
        quant: one of the target's schemes; None keeps the source's types.
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
        ffn: of gated FFNs: ``pack`` both layers into one, ``keep`` them, or ``auto``, which packs where it measures faster.
        ffn_sites: the same for single sites, by name or pattern.
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
        shapes: ranges of named dimensions that an engine is built for; others follow from the data.
        build: options of the engine's builder.
        options: how models are run.
        progress: told of every step.

    Raises:
        DriftExceeded: the drift exceeds the budget; the bundle is then at ``OUT.rejected`` and `out` is as it was.
        NotBuilt: the bundle is complete but for what this machine cannot build or run.
        TargetUnavailable: the kernels were asked for and cannot be had.
        UsageError, ActxError: see the steps.
    """
    model, out = Path(model), Path(out)
    goal = find_target(target)
    check_scheme(goal, quant, data=data is not None)
    _check_engine(goal, shapes, build)
    _check_kernels(goal, kernels, with_kernels)
    check_metric(metric)
    mode, modes = parse_mode(ffn), {name: parse_mode(text) for name, text in (ffn_sites or {}).items()}
    bundle.check_destination(out, force=force)
    if max_drift is not None:
        bundle.check_destination(bundle.rejected_place(out), force=True)
    steps = _Steps(progress)
    loaded = load(model, inputs=inputs, trust=trust, factory=factory, opset=opset)
    if measure_drift or max_drift is not None:
        check_applies(metric, loaded.model)
    lifted = lift(loaded.model)
    samples = open_data(loaded, data, batch_size, shapes)
    measured = samples if held_out is None else open_data(loaded, held_out, batch_size)
    to_build = None
    if goal.has_engine:
        to_build = BuildRequest(profile_for(loaded.inputs, shapes or {}, (samples, measured)), build or BuildOptions())
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
        quant=quant,
        shapes={} if to_build is None else {dim: str(sizes) for dim, sizes in to_build.profile.ranges.items()},
        build={} if to_build is None else to_build.options.to_dict(),
        ffn=mode,
        ffn_sites=dict(modes),
    )
    with bundle.staging(out) as folder, workspace(loaded) as original:
        observed = {} if data is None else calibrate(original, lifted.sites, samples, options, steps("calibrate"))
        choices = choose(
            lifted.sites, goal, form=form, pins=sites, statistics=observed, fold=fold, weighted=weighted,
            progress=steps("fit"),
        )  # fmt: skip
        meter = Meter(
            loaded.model, original, choices, goal, quant, measured, fold, kernels, options, wanted=measure_latency
        )
        ffns = decide(loaded.model, lifted.sites, mode, modes, meter)
        packed = {decision.sites[0] for decision in ffns if decision.packed}
        lowered = lower(loaded.model, choices, fold=fold, native=goal.native, packed=packed)
        graphs = _save(lowered, goal, quant, samples, folder, options, steps("quantize"))
        carry(folder, with_kernels)
        engines, missing = _build(goal, folder, graphs, to_build, steps("build"))
        files = Files(folder, graphs, engines, quant)
        graph = goal.graph(files, options, kernels if goal.name in graphs else None)
        owned = owners_of(graph.onnx or graph.path)
        faults = diagnose(lifted.sites, observed)
        drifts: tuple[DriftReport, ...] = ()
        if measure_drift or max_drift is not None:
            compared = [graph, *_others(files, goal, graph, options)]
            taps = _taps(choices, lowered, owned, halves_of(graph.onnx or graph.path))
            drifts = tuple(
                _check(
                    original, one, measured, taps, metric, max_drift, options, steps,
                    "check" if one is graph else f"check {one.path.name}", faults,
                )
                for one in compared
            )  # fmt: skip
        latency = None
        if measure_latency and graph.on_target:
            with baseline(goal, loaded.model, original, graph, quant, samples, to_build, options) as before:
                latency = profile(
                    before.path, graph.path, measured, runtime=graph.runtime, original_runtime=before.runtime, runs=runs,
                    owners_original=owners(lifted.sites), owners_artifact=products(lifted.sites) | owned,
                    progress=steps("profile"),
                )  # fmt: skip
        manifest = Manifest(
            version=2,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            source=SourceEntry(file=model.name, format=loaded.format, sha256=loaded.sha256, opset=loaded.opset),
            request=request,
            versions=_versions() | dict(goal.abilities().versions),
            files=bundle.digests(folder),
            graphs=graphs,
            engines=engines,
            sites=[
                _entry(c, p, observed.get(c.site.name), ffns) for c, p in zip(choices, lowered.placements, strict=True)
            ],
            drift=[report.to_dict() for report in drifts],
            latency=None if latency is None else latency.to_dict(),
            notes=[
                *dict.fromkeys((*samples.notes, *(drifts[0] if drifts else measured).notes)),
                *(() if to_build is None else to_build.profile.notes),
                *faults,
                *explanations(ffns),
                *_without_actx(goal, folder, graphs, to_build, missing),
                *goal.remarks(loaded.inputs, rewritten=any(choice.rewritten for choice in choices)),
                *_notes(lifted.sites, goal, files, graph, measured=bool(drifts) or latency is not None),
            ],
        )
        manifest.write(folder / MANIFEST)
        return _finish(folder, Exported(out, manifest, drifts, latency), missing, force=force)


def _check_engine(target: Target, shapes: Mapping[str, ShapeRange] | None, build: BuildOptions | None) -> None:
    """Raise before any work where an engine was described and the target has none."""
    if target.has_engine:
        target.check_options(build or BuildOptions())
    elif shapes or build not in {None, BuildOptions()}:
        with_engine = ", ".join(name for name, other in TARGETS.items() if other.has_engine)
        raise UsageError(
            f"no engine is built for target {target.name}",
            note=f"--shape and the builder's options are for {with_engine}",
            remedy="Leave them out, or choose one of these targets.",
        )


def _check_kernels(target: Target, kernels: bool | None, with_kernels: Sequence[str]) -> None:
    """Raise before any work where kernels were asked for that cannot be had."""
    check_architectures(with_kernels)
    if target.has_kernels:
        choose_kernels(kernels)
    elif kernels or with_kernels:
        with_them = ", ".join(name for name, other in TARGETS.items() if other.has_kernels)
        raise UsageError(
            f"target {target.name} has no kernels",
            note=f"targets with kernels: {with_them}",
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


class NotBuilt(TargetUnavailable):
    """The bundle was written, but this machine lacks what its target needs: the engine is not built, or nothing was measured.

    Attributes:
        exported: what was made.
    """

    def __init__(self, exported: Exported, missing: TargetUnavailable, todo: str) -> None:
        what = f"{exported.path} is written, but {missing.what}"
        super().__init__(what, note=missing.note, remedy=f"{missing.remedy} {todo}".strip())
        self.exported = exported


class _Steps:
    """Progress of the pipeline, step by step."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def __call__(self, step: str) -> Callable[[int, int], None] | None:
        progress = self._progress
        return None if progress is None else lambda done, total: progress(step, done, total)


def _taps(
    choices: Sequence[Choice], lowered: Lowered, owned: Mapping[str, str], halves: Mapping[str, Half]
) -> list[SiteTap]:
    return [
        tap(choice.site, place.input, place.output, place.scale, choice.interval, owned, halves)
        for choice, place in zip(choices, lowered.placements, strict=True)
        if choice.rewritten
    ]


def _check(
    original: Path,
    graph: Graph,
    data: Data,
    taps: Sequence[SiteTap],
    metric: str,
    max_drift: float | None,
    options: RuntimeOptions,
    steps: _Steps,
    label: str,
    faults: Sequence[str],
) -> DriftReport:
    """Measure the drift of a graph, or of an engine; at the sites of the target's own graph."""
    at_sites = taps if graph.on_target or graph.path.name != bundle.PORTABLE else ()
    try:
        return check(
            original, graph.path, data, taps=at_sites, metric=metric, max_drift=max_drift, runtime=graph.runtime,
            original_runtime=options, progress=steps(label),
        )  # fmt: skip
    except IncomparableError as error:
        raise IncomparableError(error.what, note="; ".join([error.note, *faults[:1]]), remedy=error.remedy) from error


def _others(files: Files, target: Target, graph: Graph, options: RuntimeOptions) -> list[Graph]:
    """Return the other graphs of standard ops, which run in ONNX Runtime: that of an engine, and the portable one."""
    names = [files.graphs[target.name]] if target.name in files.engines else []
    paths = [files.folder / name for name in (*names, bundle.PORTABLE)]
    return [Graph(path, options, "in ONNX Runtime", on_target=False) for path in paths if path != graph.path]


def _build(
    target: Target,
    folder: Path,
    graphs: Mapping[str, str],
    request: BuildRequest | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, EngineEntry], TargetUnavailable | None]:
    """Build the engine of a target that has one; what this machine lacks for that is returned."""
    try:
        if request is None:
            target.require()
            return {}, None
        return {target.name: build_engine(target, folder, graphs[target.name], request, progress)}, None
    except TargetUnavailable as missing:
        return {}, missing


def _finish(folder: Path, exported: Exported, missing: TargetUnavailable | None, *, force: bool) -> Exported:
    """Commit the bundle where it belongs: a budget holds for every graph that was checked."""
    drift = next((report for report in exported.drifts if not report), None)
    if drift is None:
        bundle.commit(folder, exported.path, force=force)
        if missing is not None:
            raise NotBuilt(exported, missing, _todo(exported)) from missing
        return exported
    rejected = bundle.rejected_place(exported.path)
    bundle.commit(folder, rejected, force=True)
    budget = "the artifact gives NaN or infinity" if drift.max_drift is None else f"the budget is {drift.max_drift:g}"
    portable = exported.drifts[-1]
    quant = exported.manifest.request.quant
    if quant is not None and portable:  # the forms alone are within the budget
        worst = f"; the forms alone drift by {portable.drift:.3g}, the rest is the scheme {quant}"
        remedy = "Choose a finer scheme, or a larger budget."
    else:
        worst = f"; site {drift.worst_site} adds the most noise" if drift.worst_site else ""
        remedy = "Choose a finer form for that site, or a larger budget."
    raise DriftExceeded(
        replace(exported, path=rejected),
        f"the drift is {drift.drift:.6g} ({drift.metric}{', synthetic input' if drift.synthetic else ''})",
        note=f"{budget}{worst}; measured on {drift.graph}",
        remedy=f"The bundle is at {rejected}. {remedy}",
    )


def _todo(exported: Exported) -> str:
    """Say what is left to do on the device."""
    if TARGETS[exported.manifest.request.target].has_engine:
        return f"On the device, actx build {exported.path} makes the engine of what is in it."
    return f"Nothing was measured on the target: run actx check and actx profile MODEL {exported.path} where it is."


def _save(
    lowered: Lowered,
    target: Target,
    quant: str | None,
    data: Data,
    folder: Path,
    options: RuntimeOptions,
    progress: Callable[[int, int], None] | None,
) -> dict[str, str]:
    graphs = {"portable": bundle.PORTABLE}
    models = {bundle.PORTABLE: lowered.portable}
    own = lowered.native
    if target.has_engine:
        own = typed(lowered.portable, quant, data, options, progress)
    if own is not None:
        graphs[target.name] = bundle.graph_name(target.name)
        models[graphs[target.name]] = own
    save(models, folder)
    return graphs


def _entry(choice: Choice, place: Placement, observed: SiteStatistics | None, ffns: Sequence[Decision]) -> SiteEntry:
    site = choice.site
    ffn = next((decision for decision in ffns if site.name in decision.sites), None)
    return SiteEntry(
        name=site.name,
        kind=site.kind,
        entries=list(site.entries),
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
        ffn=None if ffn is None else _ffn_entry(ffn),
    )


def _ffn_entry(decision: Decision) -> FfnEntry:
    found = decision.measured
    return FfnEntry(
        mode=decision.mode,
        packed=decision.packed,
        reason=decision.reason,
        latency=None
        if found is None
        else RatioEntry(verdict=found.verdict, ratio=found.paired_ratio, interval=found.interval),
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


def _without_actx(
    target: Target,
    folder: Path,
    graphs: Mapping[str, str],
    request: BuildRequest | None,
    missing: TargetUnavailable | None,
) -> list[str]:
    """Say how an engine that is not built can be built without actx."""
    if request is None or missing is None:
        return []
    command = target.command(folder / graphs[target.name], request)
    return [f"on a device without actx, the library's own tool builds the engine in the bundle's folder: {command}"]


def _notes(sites: Sequence[Site], target: Target, files: Files, graph: Graph, *, measured: bool) -> list[str]:
    notes = []
    if not sites:
        notes.append("the model has no sites: it was exported unchanged")
    if measured and target.name in files.graphs and (target.has_kernels and not graph.kernels):
        notes.append(f"drift and latency are those of {graph.path.name}, {graph.reason}")
    if not graph.on_target:
        drift = f"drift was measured on {graph.path.name} {graph.reason}; " if measured else ""
        notes.append(f"{drift}latency on {target.name} was not measured")
    return notes


def _versions() -> dict[str, str]:
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = importlib.metadata.version(name)
    return found
