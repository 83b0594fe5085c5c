"""Make a bundle's files of chosen forms, and measure them: an export once, a search for every choice that it verifies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from actx.exporter import bundle
from actx.exporter.attribution import RECOVERY, REWRITE, Attribution
from actx.exporter.building import baseline, build_engine
from actx.exporter.drift import DriftReport, SiteTap, check
from actx.exporter.errors import IncomparableError, TargetUnavailable
from actx.exporter.ffn.measurement import Meter
from actx.exporter.ffn.modes import Decision, Mode, decide
from actx.exporter.inspection import owners, products
from actx.exporter.kernels import carry
from actx.exporter.latency import LatencyReport, compare, profile
from actx.exporter.lower import Lowered, Placement, lower
from actx.exporter.measuring import halves_of, owners_of, tap, tap_behind
from actx.exporter.plugins import Meter as PluginMeter
from actx.exporter.plugins import Plugin, with_kernels
from actx.exporter.plugins import decide as decide_plugins
from actx.exporter.quantize.fused import SiteFusion, inspect_fused, optimized_graph
from actx.exporter.quantize.source import Source, table_sites
from actx.exporter.recover import SiteRecovery, recover
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.save import save
from actx.exporter.targets import BuildRequest, Files, Graph, Target
from actx.exporter.workspace import portable

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from actx.exporter.calibrate import SiteStatistics
    from actx.exporter.choose import Choice
    from actx.exporter.data import Data
    from actx.exporter.ffn.half import Half
    from actx.exporter.lift import Site
    from actx.exporter.load import LoadedModel
    from actx.exporter.manifest import EngineEntry
    from actx.exporter.quantize.source import Quantized
    from actx.exporter.runtimes.base import Opener

_SECONDS_PER_OPTIMIZER = 8.0

# Called with the name of a step, how much of it is done and how much there is to do.
Progress: TypeAlias = Callable[[str, int, int], None]


class Steps:
    """Progress of the pipeline, step by step."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def __call__(self, step: str) -> Callable[[int, int], None] | None:
        """Return what the step reports to."""
        progress = self._progress
        return None if progress is None else lambda done, total: progress(step, done, total)


@dataclass(frozen=True)
class Job:
    """All of an export that is fixed before the forms are.

    Attributes:
        loaded: the model.
        sites: what lift found.
        original: the model as a file.
        target: what it is for.
        quant: the scheme.
        calibrator: of its ranges; None leaves it open.
        exclude: regular expressions of names of nodes that it leaves in floating point.
        scheme_share: the part of the budget by which it chooses precisions.
        samples: to calibrate on.
        measured: to measure drift on.
        timed: to measure latency on.
        observed: at every site, where there is data.
        faults: what is wrong with sites.
        request: what an engine is built for; None where the target has none.
        fold: whether slopes are folded into layers.
        recover: whether layers are refitted.
        ffn: of gated FFNs, for the whole model.
        ffn_sites: the same for single sites.
        metric: of the drift.
        max_drift: the budget.
        measure_latency: whether latency may be measured at all.
        runs: rounds of the profile.
        kernels: as of `export`.
        with_kernels: architectures whose library the bundle gets.
        options: how models are run.
        steps: told of every step.
        reference: what runs the original where others are compared with it.
    """

    loaded: LoadedModel
    sites: tuple[Site, ...]
    original: Path
    target: Target
    quant: str | None
    calibrator: str | None
    exclude: tuple[str, ...]
    scheme_share: float
    samples: Data
    measured: Data
    timed: Data
    observed: Mapping[str, SiteStatistics]
    faults: Sequence[str]
    request: BuildRequest | None
    fold: bool
    recover: bool
    ffn: Mode
    ffn_sites: Mapping[str, Mode]
    metric: str
    max_drift: float | None
    measure_latency: bool
    runs: int | None
    kernels: bool | None
    with_kernels: Sequence[str]
    options: RuntimeOptions
    steps: Steps
    reference: Opener


@dataclass(frozen=True)
class Made:
    """Files of a bundle, without its manifest.

    Attributes:
        folder: where they are.
        choices: the form of every site.
        placements: where every site is.
        recovery: what became of rewritten sites, by name; empty where nothing was to be refitted.
        ffns: what became of gated FFNs.
        plugins: what computes each site that a plugin can.
        quantized: what the scheme made of the target's graph; None where it changes none.
        files: what is in the folder.
        missing: what this machine lacks to build the engine, or to run it.
        graph: what is run here.
        fusion: what ONNX Runtime makes of the sites that became tables; none where it does not run them here.
        lowered: the graphs of every stage in floating point that changed them, by its name.
        drifts: as measured, of what runs here first; empty where that was not asked for.
        latency: as measured, or None.
        attribution: of the drift, or None.
    """

    folder: Path
    choices: tuple[Choice, ...]
    placements: tuple[Placement, ...]
    recovery: Mapping[str, SiteRecovery]
    ffns: tuple[Decision, ...]
    plugins: tuple[Plugin, ...]
    quantized: Quantized | None
    files: Files
    missing: TargetUnavailable | None
    graph: Graph
    fusion: tuple[SiteFusion, ...] = ()
    lowered: Mapping[str, Lowered] = field(default_factory=dict)
    drifts: tuple[DriftReport, ...] = ()
    latency: LatencyReport | None = None
    attribution: Attribution | None = None


def make(
    job: Job,
    choices: tuple[Choice, ...],
    folder: Path,
    *,
    ffns: tuple[Decision, ...] | None = None,
    plugins: tuple[Plugin, ...] | None = None,
) -> Made:
    """Write the files of a bundle into an empty folder.

    Args:
        job: what is exported.
        choices: the form of every site.
        folder: it exists.
        ffns: what is to become of gated FFNs, where that is known already.
        plugins: what is to compute sites, where that is known already.

    Raises:
        UsageError, ActxError: as `export`.
    """
    loaded, goal, steps = job.loaded, job.target, job.steps
    if ffns is None:
        meter = Meter(
            loaded.model, job.original, choices, goal, job.quant, job.timed, job.fold, job.kernels, job.options,
            wanted=job.measure_latency,
        )  # fmt: skip
        ffns = decide(loaded.model, job.sites, job.ffn, job.ffn_sites, meter)
    packed = {decision.sites[0] for decision in ffns if decision.packed}
    if plugins is None:
        plugins = decide_plugins(choices, PluginMeter(job, packed)) if goal.has_plugins else ()
    taken = {plugin.site for plugin in plugins if plugin.taken}
    lowered = lower(loaded.model, choices, fold=job.fold, native=goal.native, packed=packed, plugins=taken)
    floats = {REWRITE: lowered} if packed or any(choice.rewritten for choice in choices) else {}
    recovery: dict[str, SiteRecovery] = {}
    if job.recover:
        recovered = recover(
            lowered, choices, portable(loaded.model), job.samples, metric=job.metric, options=job.options,
            progress=steps("recover"),
        )  # fmt: skip
        lowered, recovery = recovered.lowered, {entry.site: entry for entry in recovered.sites}
        if any(entry.layers or entry.moved for entry in recovered.sites):
            floats[RECOVERY] = lowered
    source = _source(job, choices, lowered)
    quantized = None if job.quant is None else goal.quantize(job.quant, source)
    graphs = _save(job, lowered, None if quantized is None else quantized.model, _plugin_graph(job, source), folder)
    carry(folder, [name for name in job.with_kernels if name not in goal.gpu_architectures])
    engines, missing = _build(goal, folder, graphs, job.request, steps("build"))
    files = Files(folder, graphs, engines, job.quant)
    graph = goal.graph(files, job.options, job.kernels if goal.name in graphs and goal.has_kernels else None)
    fusion = _fusion(quantized, graph)
    return Made(
        folder, choices, lowered.placements, recovery, ffns, plugins, quantized, files, missing, graph, fusion, floats
    )


def _fusion(quantized: Quantized | None, graph: Graph) -> tuple[SiteFusion, ...]:
    """Look at what ONNX Runtime makes of the tables, where it runs them here."""
    if quantized is None or not quantized.tables or not graph.kernels or not isinstance(graph.runtime, RuntimeOptions):
        return ()
    return inspect_fused(graph.path, list(quantized.tables), graph.runtime)


def measure_drift(job: Job, made: Made) -> Made:
    """Measure the drift of what runs here, then of the other graphs of standard ops."""
    path = made.graph.onnx or made.graph.path
    taps = _taps(made, owners_of(path), halves_of(path))
    compared = [made.graph, *_others(made.files, job.target, made.graph, job.options)]
    drifts = tuple(
        _check(job, one, taps, "check" if one is made.graph else f"check {one.path.name}") for one in compared
    )
    return replace(made, drifts=drifts)


def without_slow_optimizers(job: Job, made: Made) -> Made:
    """Leave out each optimizer of ONNX Runtime that wrote an op into the graph and makes it slower beyond noise."""
    runtime, feeds = made.graph.runtime, next(iter(job.timed))
    if not made.graph.kernels or not isinstance(runtime, RuntimeOptions) or not job.target.optimizers:
        return made
    written = {(node.domain, node.op_type) for node in optimized_graph(made.graph.path, runtime).node}
    for name, ops in job.target.optimizers.items():
        if written.isdisjoint(ops) or name in runtime.disabled_optimizers:
            continue
        without = replace(runtime, disabled_optimizers=(*runtime.disabled_optimizers, name))
        pair = made.graph.path, made.graph.path
        found = compare(*pair, feeds, runtime=without, original_runtime=runtime, seconds=_SECONDS_PER_OPTIMIZER)
        runtime = without if found.verdict == "faster" else runtime
    left = tuple(name for name in runtime.disabled_optimizers if name not in job.options.disabled_optimizers)
    files = replace(made.files, disabled_optimizers=left)
    return replace(made, graph=replace(made.graph, runtime=runtime), files=files)


def measure_latency(job: Job, made: Made) -> Made:
    """Measure the latency of what runs here, where that is the target's."""
    graph = made.graph
    if not graph.on_target:
        return made
    owned = owners_of(graph.onnx or graph.path)
    with baseline(
        job.target, job.loaded.model, job.original, graph, job.quant, job.samples, job.request, job.options
    ) as before:
        latency = profile(
            before.path, graph.path, job.timed, runtime=graph.runtime, original_runtime=before.runtime, runs=job.runs,
            owners_original=owners(job.sites), owners_artifact=products(job.sites) | owned,
            progress=job.steps("profile"),
        )  # fmt: skip
    return replace(made, latency=latency)


def _taps(made: Made, owned: Mapping[str, str], halves: Mapping[str, Half]) -> list[SiteTap]:
    taps = []
    for choice, place in zip(made.choices, made.placements, strict=True):
        name = choice.site.name
        refitted = made.recovery[name].layers if name in made.recovery else ()
        if made.quantized is not None and name in made.quantized.tables:
            taps.append(tap_behind(choice.site, made.quantized.tables[name]))
        elif refitted:
            taps.append(tap_behind(choice.site, refitted[0]))
        elif choice.rewritten:
            taps.append(tap(choice.site, place.input, place.output, place.scale, choice.interval, owned, halves))
    return taps


def _check(job: Job, graph: Graph, taps: Sequence[SiteTap], label: str) -> DriftReport:
    """Measure the drift of a graph, or of an engine; at the sites of the target's own graph."""
    at_sites = taps if graph.on_target or graph.path.name != bundle.PORTABLE else ()
    try:
        return check(
            job.original, graph.path, job.measured, taps=at_sites, metric=job.metric, max_drift=job.max_drift,
            runtime=graph.runtime, original_runtime=job.reference, progress=job.steps(label),
        )  # fmt: skip
    except IncomparableError as error:
        note = "; ".join([error.note, *job.faults[:1]])
        raise IncomparableError(error.what, note=note, remedy=error.remedy) from error


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
        graph = graphs.get(bundle.PLUGINS, graphs[target.name])
        return {target.name: build_engine(target, folder, graph, request, progress)}, None
    except TargetUnavailable as missing:
        return {}, missing


def _source(job: Job, choices: tuple[Choice, ...], lowered: Lowered) -> Source:
    budget = None if job.max_drift is None else job.scheme_share * job.max_drift
    return Source(
        lowered, table_sites(choices, lowered), job.samples, job.original, job.metric, budget, job.recover,
        job.calibrator, job.exclude, job.options, tuple(job.with_kernels), job.steps("quantize"),
    )  # fmt: skip


def _plugin_graph(job: Job, source: Source) -> ir.Model | None:
    """Return what an engine with plugins is built from; None where none was chosen."""
    model = source.lowered.native
    if model is None or not job.target.has_plugins:
        return None
    if job.quant is None:
        return model
    lowered = replace(source.lowered, portable=model)
    typed = job.target.quantize(job.quant, replace(source, lowered=lowered, options=with_kernels(job.options)))
    assert typed is not None
    return typed.model


def _save(
    job: Job, lowered: Lowered, quantized: ir.Model | None, plugins: ir.Model | None, folder: Path
) -> dict[str, str]:
    target = job.target
    graphs = {"portable": bundle.PORTABLE}
    models = {bundle.PORTABLE: lowered.portable}
    own = lowered.portable if target.has_engine else lowered.native
    if quantized is not None:
        own = quantized
    if own is not None:
        gpus = [name for name in job.with_kernels if name in target.gpu_architectures]
        graphs[target.name] = bundle.graph_name(target.name)
        models[graphs[target.name]] = target.compile(own, gpus)
    if plugins is not None:
        graphs[bundle.PLUGINS] = bundle.graph_name(f"{target.name}.{bundle.PLUGINS}")
        models[graphs[bundle.PLUGINS]] = target.compile(plugins, ())
    save(models, folder)
    job.loaded.weights.drop()
    return graphs
