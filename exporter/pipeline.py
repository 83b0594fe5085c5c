"""The pipeline: load, lift, calibrate, fit, choose, lower, recover, check, profile, and the bundle that holds the result."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.metadata
import platform
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from actx.exporter import bundle
from actx.exporter.building import profile_for
from actx.exporter.calibrate import calibrate
from actx.exporter.checkpoint import Checkpoint
from actx.exporter.choose import choose
from actx.exporter.data import hold_out
from actx.exporter.diagnosis import diagnose
from actx.exporter.drift import DriftReport, check_applies
from actx.exporter.entries import (
    attribution_entry,
    drift_entry,
    latency_entry,
    quantization_entry,
    search_entry,
    site_entry,
)
from actx.exporter.errors import ActxError, RequirementError, TargetUnavailable, UsageError
from actx.exporter.ffn.modes import explanations, parse_mode
from actx.exporter.inspection import open_data
from actx.exporter.kernels import check_architectures, choose_kernels
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.making import (
    Job,
    Made,
    Progress,
    Steps,
    make,
    measure_drift,
    measure_latency,
    without_slow_optimizers,
)
from actx.exporter.manifest import MANIFEST, Manifest, RequestEntry, SourceEntry
from actx.exporter.metrics import check_metric
from actx.exporter.quantize.ranges import check_calibrator
from actx.exporter.remembered import Remembered
from actx.exporter.reporting import write_page
from actx.exporter.runtimes.onnxruntime import DEFAULT, RuntimeOptions
from actx.exporter.search.execute import check_executor
from actx.exporter.search.log import Log
from actx.exporter.search.search import SEARCH_DEFAULT, Found, Plan, Search, SearchOptions
from actx.exporter.search.site_latency import obstacle
from actx.exporter.search.verify import Verifier, draw_front
from actx.exporter.stages import attribute_drift, stages_of
from actx.exporter.targets import TARGETS, BuildRequest, Target, check_scheme, find_target
from actx.exporter.tensorrt.options import BuildOptions
from actx.exporter.workspace import workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from actx.exporter.attribution import Attribution
    from actx.exporter.data import InputSpec
    from actx.exporter.fitting import Form
    from actx.exporter.latency import LatencyReport
    from actx.exporter.lift import Site
    from actx.exporter.targets import Files, Graph
    from actx.exporter.tensorrt.shapes import ShapeRange

PACKAGES = ("actx", "onnx", "onnx-ir", "onnxruntime", "torch", "numpy", "scipy")
AUTO: Literal["auto"] = "auto"
# Of the budget, for a scheme that chooses precisions by other samples than those that it is judged by.
SCHEME_SHARE = 0.8
# How often a scheme is tried again with a smaller share of the budget, and the least part of a share that is tried next.
MAX_TIGHTENED = 3
_LEAST_SHARE = 0.3


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        path: the bundle.
        manifest: what it says of itself.
        drifts: the measured drift of what runs here, then of the other graphs of standard ops; empty where none was measured.
        latency: the measured latency on the target, None where it was not measured.
        attribution: of the drift to the stages of the export, None where that was not done.
    """

    path: Path
    manifest: Manifest
    drifts: tuple[DriftReport, ...]
    latency: LatencyReport | None
    attribution: Attribution | None = None

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
    calibrator: str | None = None,
    exclude: Sequence[str] = (),
    form: Form | Literal["auto"] | None = None,
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
    recover: bool = False,
    search: SearchOptions = SEARCH_DEFAULT,
    measure_drift: bool = True,
    measure_latency: bool = True,
    attribute: bool | None = None,
    runs: int | None = None,
    force: bool = False,
    trust: bool = False,
    factory: str | None = None,
    opset: int | None = None,
    require_int8_sites: bool = False,
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
        calibrator: how its ranges are found (`CALIBRATORS`); None takes ``percentile``, or with `recover` the best of several.
        exclude: regular expressions of names of nodes that the scheme leaves in floating point.
        form: for all sites. ``auto`` searches for the fastest forms within the budget, measured on the target and on the data;
            None does that too where both are given and latency can be measured, and otherwise keeps what the target runs fast
            and rewrites the rest closely.
        sites: forms for single sites, by name or pattern.
        data: samples to observe the sites on (see `load_data`), and without `held_out` drift and latency too. Without either
            these are measured on random input, marked as synthetic. A search, and recovery, hold a quarter of it out for that.
        held_out: samples for drift and latency alone.
        inputs: types and dimensions that the user states.
        batch_size: samples per run.
        metric: of the drift (see `check`).
        max_drift: the budget in that metric.
        fold: whether slopes are folded into the layers around a site.
        weighted: whether forms are fitted closer where the data is. Without data they are fitted evenly.
        ffn: of gated FFNs: ``pack`` both layers into one, ``keep`` them, or ``auto``, which packs where it measures faster.
        ffn_sites: the same for single sites, by name or pattern.
        recover: whether the layers around rewritten sites are fitted anew (see `recover`). It needs data.
        search: how forms are searched for.
        measure_drift: whether to check. A budget needs it.
        measure_latency: whether to profile.
        attribute: whether to attribute the drift to the stages of the export (see `attribution`); None for where more than one
            stage changed the graph, or the budget is missed.
        runs: rounds of the profile; None for as many as the verdict needs (see `latency`).
        force: whether a bundle at `out` may be replaced.
        trust: whether an archive or pickle may run the code it carries.
        factory: what makes the module for weights (see `load`).
        opset: of the bundle's graphs; None takes the model's.
        require_int8_sites: whether every site that a layer in int8 reads must be one node on codes.
        kernels: whether drift and latency must be those of the graph of actx nodes, or must not; None for where this machine
            has the kernels. For ``trt``: whether plugins must be measured, or must not be used; None for where they can be.
        with_kernels: architectures whose library is put into the bundle, x86_64, aarch64, and of GPUs, such as sm_87, whose
            machine code is put into the graph of ``ort-cuda``.
        shapes: ranges of named dimensions that an engine is built for; others follow from the data.
        build: options of the engine's builder.
        options: how models are run.
        progress: told of every step.

    Raises:
        DriftExceeded: the drift exceeds the budget; the bundle is then at ``OUT.rejected`` and `out` is as it was.
        NotBuilt: the bundle is complete but for what this machine cannot build or run.
        TargetUnavailable: the kernels were asked for and cannot be had, or forms were to be searched for and latency cannot be
            measured here.
        UsageError, ActxError: see the steps.
    """
    ask = _Ask(
        Path(model), Path(out), target=target, quant=quant, calibrator=calibrator, exclude=exclude, form=form,
        sites=sites or {}, data=data, held_out=held_out, inputs=inputs, batch_size=batch_size, metric=metric,
        max_drift=max_drift, fold=fold, weighted=weighted, ffn=ffn, ffn_sites=ffn_sites or {}, recover=recover,
        search=search, measure_drift=measure_drift, measure_latency=measure_latency, attribute=attribute, runs=runs,
        require_int8_sites=require_int8_sites, force=force, trust=trust, factory=factory, opset=opset, kernels=kernels,
        with_kernels=with_kernels, shapes=shapes or {}, build=build, options=options, progress=progress,
    )  # fmt: skip
    ask.check()
    with bundle.staging(ask.out) as folder, _prepared(ask) as prepared:
        made, found, notes = _chosen(ask, prepared, folder)
        made, unattributed = _attributed(ask, prepared.job, made)
        manifest = _manifest(ask, prepared, made, found, [*notes, *unattributed])
        exported = Exported(ask.out, manifest, made.drifts, made.latency, made.attribution)
        return _finish(made, exported, found, force=force, whole_sites=ask.require_int8_sites)


def plan(
    model: Path | str,
    out: Path | str,
    *,
    target: str = "ort-cpu",
    quant: str | None = None,
    sites: Mapping[str, Form] | None = None,
    data: str | None = None,
    held_out: str | None = None,
    inputs: Sequence[InputSpec] = (),
    batch_size: int | None = None,
    metric: str = "l2",
    max_drift: float | None = None,
    fold: bool = True,
    weighted: bool = True,
    recover: bool = False,
    search: SearchOptions = SEARCH_DEFAULT,
    trust: bool = False,
    factory: str | None = None,
    opset: int | None = None,
    kernels: bool | None = None,
    options: RuntimeOptions = DEFAULT,
    progress: Progress | None = None,
) -> Plan:
    """Return what a search for the forms would measure, as `export` with form ``auto`` would. Nothing is written to `out`.

    The model is loaded, and calibrated on the data.

    Raises:
        UsageError, ActxError, TargetUnavailable: as `export`.
    """
    ask = _Ask(
        Path(model), Path(out), target=target, quant=quant, form=AUTO, sites=sites or {}, data=data, held_out=held_out,
        inputs=inputs, batch_size=batch_size, metric=metric, max_drift=max_drift, fold=fold, weighted=weighted,
        recover=recover, search=search, force=True, trust=trust, factory=factory, opset=opset, kernels=kernels,
        options=options, progress=progress,
    )  # fmt: skip
    ask.check()
    with _prepared(ask) as prepared:
        assert prepared.search is not None
        return prepared.search.plan()


@dataclass(frozen=True)
class _Ask:
    """The arguments of `export`."""

    model: Path
    out: Path
    target: str
    quant: str | None
    form: Form | Literal["auto"] | None
    sites: Mapping[str, Form]
    data: str | None
    held_out: str | None
    inputs: Sequence[InputSpec]
    batch_size: int | None
    metric: str
    max_drift: float | None
    fold: bool
    weighted: bool
    recover: bool
    search: SearchOptions
    force: bool
    trust: bool
    factory: str | None
    opset: int | None
    kernels: bool | None
    options: RuntimeOptions
    progress: Progress | None
    calibrator: str | None = None
    exclude: Sequence[str] = ()
    ffn: str = "auto"
    ffn_sites: Mapping[str, str] = field(default_factory=dict)
    measure_drift: bool = True
    measure_latency: bool = True
    attribute: bool | None = None
    require_int8_sites: bool = False
    runs: int | None = None
    with_kernels: Sequence[str] = ()
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)
    build: BuildOptions | None = None

    def check(self) -> None:
        """Raise before any work where it cannot be had."""
        goal = find_target(self.target)
        check_scheme(goal, self.quant, data=self.data is not None)
        check_calibrator(self.calibrator)
        _check_engine(goal, self.shapes, self.build)
        _check_kernels(goal, self.kernels, self.with_kernels)
        check_metric(self.metric)
        if self.recover and self.data is None:
            raise UsageError("--recover needs data", note="layers are refitted on samples", remedy="Give --data.")
        if self.attribute and not self.measure_drift and self.max_drift is None:
            raise UsageError("--attribute needs the drift", note="it is not measured", remedy="Leave --no-check out.")
        if self.form == AUTO:
            self._check_search()
        if self.searches:
            check_executor(self.search.executor)
            Log(self.log)
            Checkpoint(self.checkpoint, "").check()
        bundle.check_destination(self.out, force=self.force)
        if self.max_drift is not None:
            bundle.check_destination(bundle.rejected_place(self.out), force=True)

    def _check_search(self) -> None:
        lacking = [name for name, value in (("--data", self.data), ("--max-drift", self.max_drift)) if value is None]
        if lacking:
            raise UsageError(
                f"--form auto needs {' and '.join(lacking)}",
                note="forms are chosen by the latency and drift that are measured on samples",
                remedy="Give both, or name a form.",
            )
        if not self.measure_latency or not self.measure_drift:
            raise UsageError(
                "--form auto goes by latency and drift",
                note="and one of them is not to be measured",
                remedy="Leave --no-check and --no-profile out, or name a form.",
            )
        if self.obstacle:
            goal = find_target(self.target)
            elsewhere = bool(goal.candidates) and not goal.has_engine
            raise TargetUnavailable(
                "forms cannot be chosen here: their latency is not measured",
                note=self.obstacle,
                remedy=f"{'Run the same command where the target is, or name' if elsewhere else 'Name'} a form with --form.",
            )

    @property
    def log(self) -> Path:
        """The file of the search's measurements."""
        return self.search.log or bundle.beside(self.out, ".search.jsonl")

    @property
    def checkpoint(self) -> Path:
        """The file of the calibration that a search can go on from."""
        return self.log.with_name(f"{self.log.name}.npz")

    @cached_property
    def obstacle(self) -> str:
        """Why forms cannot be searched for here; empty where they can."""
        return obstacle(find_target(self.target), self.quant, self.options, self.kernels)

    @property
    def would_search(self) -> bool:
        """Whether forms are searched for, if that can be done here."""
        measured = self.measure_latency and self.measure_drift
        given = self.data is not None and self.max_drift is not None
        return self.form == AUTO or (self.form is None and given and measured)

    @property
    def unsearched(self) -> str:
        """Say why forms are not searched for although data and a budget are given and no form is named."""
        if self.form is not None or self.data is None or self.max_drift is None:
            return ""
        return f"forms were not searched for: {self.obstacle or 'latency and drift were not both to be measured'}"

    @property
    def searches(self) -> bool:
        """Whether they are."""
        return self.would_search and not self.obstacle


@dataclass(frozen=True)
class _Prepared:
    """What an export has before the forms are chosen.

    Attributes:
        job: what is exported.
        search: for the forms; None where they are not searched for.
        unsearched: why they are not, where they would be; else empty.
    """

    job: Job
    search: Search | None
    unsearched: str = ""


@contextlib.contextmanager
def _prepared(ask: _Ask) -> Iterator[_Prepared]:
    """Load, lift and calibrate."""
    goal = find_target(ask.target)
    modes = {name: parse_mode(text) for name, text in ask.ffn_sites.items()}
    mode = parse_mode(ask.ffn)
    steps = Steps(ask.progress)
    loaded = load(ask.model, inputs=ask.inputs, trust=ask.trust, factory=ask.factory, opset=ask.opset)
    if ask.measure_drift or ask.max_drift is not None:
        check_applies(ask.metric, loaded.model)
    lifted = lift(loaded.model)
    samples = timed = open_data(loaded, ask.data, ask.batch_size, ask.shapes)
    measured = samples
    if ask.held_out is not None:
        measured = timed = open_data(loaded, ask.held_out, ask.batch_size)
    elif ask.searches or ask.recover:
        samples, measured = hold_out(samples)
    request = None
    if goal.has_engine:
        profile = profile_for(loaded.inputs, ask.shapes, (samples, measured))
        request = BuildRequest(profile, ask.build or BuildOptions())
    with workspace(loaded) as original:
        checkpoint = Checkpoint(ask.checkpoint, loaded.sha256) if ask.searches else None
        observed = (
            calibrate(original, lifted.sites, samples, ask.options, steps("calibrate"), checkpoint) if ask.data else {}
        )
        job = Job(
            loaded, lifted.sites, original, goal, ask.quant, ask.calibrator, tuple(ask.exclude), SCHEME_SHARE, samples,
            measured, timed, observed, diagnose(lifted.sites, observed), request, ask.fold, ask.recover, mode, modes,
            ask.metric, ask.max_drift, ask.measure_latency, ask.runs, ask.kernels, ask.with_kernels, ask.options, steps,
            Remembered(replace(ask.options, spin_between_runs=False)),
        )  # fmt: skip
        if not ask.searches or ask.max_drift is None:
            yield _Prepared(job, None, ask.unsearched)
            return
        yield _Prepared(job, Search(job, ask.max_drift, ask.sites, ask.weighted, Log(ask.log), ask.search))


def _chosen(ask: _Ask, prepared: _Prepared, folder: Path) -> tuple[Made, Found | None, list[str]]:
    """Choose the forms, make the bundle's files in a folder and measure them; with remarks."""
    job, search = prepared.job, prepared.search
    if search is not None:
        verifier = Verifier(job, search.log, folder, search.latency_bench.conditions)
        found = search.run(verifier)
        made, notes = verifier.final(found)
        return made, found, notes
    forms = choose(
        job.sites, job.target, form=None if ask.form == AUTO else ask.form, pins=ask.sites, statistics=job.observed,
        fold=job.fold, weighted=ask.weighted, progress=job.steps("fit"),
    )  # fmt: skip
    made = make(job, forms, bundle.subfolder(folder))
    if ask.measure_drift or ask.max_drift is not None:
        made = measure_drift(job, made)
        made = _within_budget(job, made, folder)
    if ask.measure_latency:
        made = measure_latency(job, without_slow_optimizers(job, made))
    return made, None, [prepared.unsearched] if prepared.unsearched else []


def _within_budget(job: Job, made: Made, folder: Path) -> Made:
    """Make it again, with less of the budget for the scheme, while layers of it are left whose precision could be finer.

    Where that does not end within the budget, the least drift is kept.
    """
    for _ in range(MAX_TIGHTENED):
        drift = made.drifts[0].drift
        entry = made.quantized
        if job.max_drift is None or drift <= job.max_drift or entry is None or all(entry.layers.values()):
            return made
        job = replace(job, scheme_share=job.scheme_share * max(_LEAST_SHARE, 0.9 * job.max_drift / drift))
        again = measure_drift(
            job, make(job, made.choices, bundle.subfolder(folder), ffns=made.ffns, plugins=made.plugins)
        )
        made = min(made, again, key=lambda one: one.drifts[0].drift)
    return made


def _attributed(ask: _Ask, job: Job, made: Made) -> tuple[Made, list[str]]:
    """Attribute the drift where that was asked for, or tells something; with remarks."""
    asked = ask.attribute
    telling = len(stages_of(job, made)) > 1 or not all(made.drifts)
    if not made.drifts or not (telling if asked is None else asked):
        return made, []
    try:
        found = attribute_drift(job, made)
    except ActxError as error:
        if asked:
            raise
        return made, [f"the drift was not attributed to stages: {error.what}: {error.note}"]
    return replace(made, attribution=found), list(found.notes if found else ())


def _manifest(ask: _Ask, prepared: _Prepared, made: Made, found: Found | None, notes: Sequence[str]) -> Manifest:
    job, files, request = prepared.job, made.files, prepared.job.request
    measured = bool(made.drifts) or made.latency is not None
    if found is not None:
        draw_front(found, job, made.folder)
    return Manifest(
        version=2,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        source=SourceEntry(
            file=ask.model.name, format=job.loaded.format, sha256=job.loaded.sha256, opset=job.loaded.opset
        ),
        request=_request(ask, job, searched=found is not None),
        versions=_versions() | dict(job.target.abilities().versions),
        files=bundle.digests(made.folder),
        graphs=dict(files.graphs),
        disabled_optimizers=list(files.disabled_optimizers),
        engines=dict(files.engines),
        sites=[
            site_entry(c, p, job.observed.get(c.site.name), made.ffns, made.plugins, made.recovery.get(c.site.name))
            for c, p in zip(made.choices, made.placements, strict=True)
        ],
        drift=[drift_entry(report) for report in made.drifts],
        latency=None if made.latency is None else latency_entry(made.latency),
        notes=[
            *dict.fromkeys((*job.samples.notes, *(made.drifts[0] if made.drifts else job.measured).notes)),
            *(() if request is None else request.profile.notes),
            *job.faults,
            *notes,
            *explanations(made.ffns),
            *_without_actx(job.target, made.folder, files.graphs, request, made.missing),
            *job.target.remarks(job.loaded.inputs, rewritten=any(choice.rewritten for choice in made.choices)),
            *_notes(job.sites, job.target, files, made.graph, measured=measured),
        ],
        search=None if found is None else search_entry(found, job),
        quantization=None if made.quantized is None else quantization_entry(made.quantized, made.fusion),
        attribution=None if made.attribution is None else attribution_entry(made.attribution),
    )


def _request(ask: _Ask, job: Job, *, searched: bool) -> RequestEntry:
    form = AUTO if searched else None if ask.form is None else str(ask.form)
    return RequestEntry(
        target=ask.target,
        form=form,
        sites={name: str(pin) for name, pin in ask.sites.items()},
        fold=ask.fold,
        weighted=ask.weighted,
        metric=ask.metric,
        max_drift=ask.max_drift,
        data=ask.data,
        held_out=ask.held_out,
        quant=ask.quant,
        calibrator=ask.calibrator,
        exclude=list(ask.exclude),
        shapes={} if job.request is None else {dim: str(sizes) for dim, sizes in job.request.profile.ranges.items()},
        build={} if job.request is None else job.request.options.to_dict(),
        ffn=job.ffn,
        ffn_sites=dict(job.ffn_sites),
        recover=ask.recover,
        require_int8_sites=ask.require_int8_sites,
    )


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
    check_architectures(with_kernels, target.gpu_architectures)
    if target.has_kernels:
        choose_kernels(kernels)
    elif target.has_plugins and not with_kernels:
        if kernels:
            target.require_plugins()
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


class SitesNotInt8(DriftExceeded):
    """Sites between layers in int8 are not one node on codes, and that was required."""


class NotBuilt(TargetUnavailable):
    """The bundle was written, but this machine lacks what its target needs: the engine is not built, or nothing was measured.

    Attributes:
        exported: what was made.
    """

    def __init__(self, exported: Exported, missing: TargetUnavailable, todo: str) -> None:
        what = f"{exported.path} is written, but {missing.what}"
        super().__init__(what, note=missing.note, remedy=f"{missing.remedy} {todo}".strip())
        self.exported = exported


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
    if files.disabled_optimizers:
        names = ", ".join(files.disabled_optimizers)
        notes.append(
            f"it is faster without ONNX Runtime's {names}: open it with disabled_optimizers in your own program too"
        )
    if not graph.on_target:
        drift = f"drift was measured on {graph.path.name} {graph.reason}; " if measured else ""
        notes.append(f"{drift}latency on {target.name} was not measured")
    return notes


def _finish(made: Made, exported: Exported, found: Found | None, *, force: bool, whole_sites: bool) -> Exported:
    """Commit the bundle where it belongs: a budget holds for every graph that was checked."""
    drift = next((report for report in exported.drifts if not report), None)
    if drift is None and whole_sites and (islands := _islands(made)):
        rejected = bundle.rejected_place(exported.path)
        _commit(made, exported, rejected, force=True)
        raise SitesNotInt8(
            replace(exported, path=rejected),
            f"{len(islands)} of the quantized sites are no tables of codes",
            note="; ".join(f"{name}: {why}" for name, why in list(islands.items())[:3]),
            remedy=f"The bundle is at {rejected}. Exclude the layers behind these sites, or leave the requirement out.",
        )
    if drift is None:
        _commit(made, exported, exported.path, force=force)
        if made.missing is not None:
            raise NotBuilt(exported, made.missing, _todo(exported)) from made.missing
        return exported
    rejected = bundle.rejected_place(exported.path)
    _commit(made, exported, rejected, force=True)
    budget = "the artifact gives NaN or infinity" if drift.max_drift is None else f"the budget is {drift.max_drift:g}"
    portable = exported.drifts[-1]
    quant = exported.manifest.request.quant
    if quant is not None and portable:  # the forms alone are within the budget
        worst = f"; the forms alone drift by {portable.drift:.3g}, the rest is the scheme {quant}"
        remedy = "Choose a finer scheme, or a larger budget."
    else:
        worst = f"; site {drift.worst_site} adds the most noise" if drift.worst_site else ""
        remedy = "Choose a finer form for that site, or a larger budget."
        if found is not None and found.in_the_way:
            worst = f"; in the way are {_listed(found.in_the_way)}"
            remedy = "Leave these sites to the search, or choose a larger budget."
    raise DriftExceeded(
        replace(exported, path=rejected),
        f"the drift is {drift.drift:.6g} ({drift.metric}{', synthetic input' if drift.synthetic else ''})",
        note=f"{budget}{worst}; measured on {drift.graph}",
        remedy=f"The bundle is at {rejected}. {remedy}",
    )


def _commit(made: Made, exported: Exported, place: Path, *, force: bool) -> None:
    """Write what the bundle says of itself, and put it in its place."""
    exported.manifest.write(made.folder / MANIFEST)
    write_page(made.folder, place.resolve().name, exported.manifest)
    bundle.commit(made.folder, place, force=force)


def _islands(made: Made) -> dict[str, str]:
    """Return the sites that layers in int8 read and that are not one node on codes, and why not."""
    if made.quantized is None:
        return {}
    unseen = (
        {} if made.fusion else dict.fromkeys(made.quantized.tables, "ONNX Runtime with our kernels does not run here")
    )
    return {**made.quantized.open, **unseen, **{site.site: str(site) for site in made.fusion if not site.whole}}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _todo(exported: Exported) -> str:
    """Say what is left to do on the device."""
    if TARGETS[exported.manifest.request.target].has_engine:
        return f"On the device, actx build {exported.path} makes the engine of what is in it."
    return f"Nothing was measured on the target: run actx check and actx profile MODEL {exported.path} where it is."


def _versions() -> dict[str, str]:
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = importlib.metadata.version(name)
    return found
