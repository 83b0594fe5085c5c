"""Check or profile an artifact that was made earlier, a bundle or any ONNX file, against its original."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import onnx

from actx.exporter.building import baseline
from actx.exporter.bundle import PORTABLE, read_bundle
from actx.exporter.choose import KEEP
from actx.exporter.drift import DriftReport, SiteTap, check_applies
from actx.exporter.drift import check as check_graphs
from actx.exporter.errors import ActxError, TargetUnavailable
from actx.exporter.ffn.half import halves_by_site
from actx.exporter.inspection import open_data, owners, products
from actx.exporter.latency import LatencyReport
from actx.exporter.latency import profile as profile_graphs
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.lower import SITE_METADATA
from actx.exporter.opening import best_graph
from actx.exporter.polygraphy import OutputFile
from actx.exporter.runtimes.onnxruntime import DEFAULT, RuntimeOptions
from actx.exporter.targets import TARGETS, BuildRequest, Graph, find_target
from actx.exporter.tensorrt.engine import EngineRuntime
from actx.exporter.tensorrt.options import BuildOptions
from actx.exporter.tensorrt.shapes import Profile
from actx.exporter.workspace import workspace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actx.exporter.data import Data, InputSpec
    from actx.exporter.ffn.half import Half
    from actx.exporter.lift import Site
    from actx.exporter.load import LoadedModel
    from actx.exporter.manifest import Manifest
    from actx.exporter.tensorrt.inspector import SiteLayers

Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class _Compared:
    """The loaded original and both graphs as files, with what is known of the sites."""

    loaded: LoadedModel
    original: Path
    graph: Graph
    data: Data
    taps: tuple[SiteTap, ...]
    owners_original: dict[str, str]
    owners_artifact: dict[str, str]
    manifest: Manifest | None


def check(
    model: Path | str,
    artifact: Path | str,
    *,
    data: str | None = None,
    inputs: Sequence[InputSpec] = (),
    batch_size: int | None = None,
    metric: str = "l2",
    max_drift: float | None = None,
    logits: Sequence[str] = (),
    save_outputs: Path | None = None,
    trust: bool = False,
    factory: str | None = None,
    kernels: bool | None = None,
    options: RuntimeOptions = DEFAULT,
    progress: Progress | None = None,
) -> DriftReport:
    """Measure how far an artifact's outputs are from the original's.

    Args:
        model: the original, anything that `load` reads.
        artifact: a bundle, or an ONNX file with the same inputs and outputs. Sites are looked at in bundles only.
        data: samples (see `load_data`); without it random input, marked as synthetic.
        inputs: types and dimensions that the user states.
        batch_size: samples per run.
        metric: `cosine`, `l2`, `max_abs`, `kl`, `top1`, or ``pkg.mod:callable``.
        max_drift: the budget in that metric.
        logits: names of the outputs that are logits, where the rule in `metrics` does not tell.
        save_outputs: a file for the outputs of both, as Polygraphy reads them.
        trust: whether an archive or pickle may run the code it carries, and a bundle's own library be loaded.
        factory: what makes the module for weights (see `load`).
        kernels: whether a bundle's graph of actx nodes must be taken, or must not; None for where it can (see `session`).
        options: how both are run.
        progress: called with the number of samples done and to do.

    Raises:
        ActxError, UsageError: a model or the data cannot be read or run, or they do not fit together.
    """
    with _opened(
        Path(model), Path(artifact), data, inputs, batch_size, trust=trust, factory=factory, kernels=kernels, options=options
    ) as both:  # fmt: skip
        check_applies(metric, both.loaded.model, logits)
        saved = None if save_outputs is None else OutputFile(save_outputs, "original", both.graph.path.name)
        report = check_graphs(
            both.original, both.graph.path, both.data, taps=both.taps, metric=metric, max_drift=max_drift, logits=logits,
            runtime=both.graph.runtime, original_runtime=options, observe=None if saved is None else saved.add,
            progress=progress,
        )  # fmt: skip
        if saved is not None:
            saved.write()
        return report


def profile(
    model: Path | str,
    artifact: Path | str,
    *,
    data: str | None = None,
    inputs: Sequence[InputSpec] = (),
    batch_size: int | None = None,
    runs: int | None = None,
    trust: bool = False,
    factory: str | None = None,
    kernels: bool | None = None,
    options: RuntimeOptions = DEFAULT,
    progress: Progress | None = None,
) -> LatencyReport:
    """Measure the latency of an artifact against the original's, interleaved in this process.

    Args:
        model: the original.
        artifact: a bundle, or an ONNX file.
        data: samples; without it random input, marked as synthetic.
        inputs: types and dimensions that the user states.
        batch_size: samples per run.
        runs: rounds to measure; None for as many as the verdict needs (see `latency`).
        trust: whether an archive or pickle may run the code it carries, and a bundle's own library be loaded.
        factory: what makes the module for weights (see `load`).
        kernels: whether a bundle's graph of actx nodes must be taken, or must not; None for where it can (see `session`).
        options: how both are run.
        progress: called with the number of rounds done and to do.

    Raises:
        ActxError, UsageError: a model or the data cannot be read or run, or they do not fit together.
    """
    with _opened(
        Path(model), Path(artifact), data, inputs, batch_size, trust=trust, factory=factory, kernels=kernels, options=options
    ) as both:  # fmt: skip
        if not both.graph.on_target:
            raise TargetUnavailable(
                f"the latency of {artifact} cannot be measured here",
                note=f"{both.graph.path.name} runs {both.graph.reason}",
                remedy=f"Run actx profile on the target's device, or give a graph, such as {Path(artifact) / PORTABLE}.",
            )
        if both.graph.onnx is None:
            raise ActxError(
                f"there is nothing to compare the latency of {artifact} with",
                note="how an engine by itself was built is not known, so none can be built of the original",
                remedy="Give the bundle's folder.",
            )
        with _baseline(both, options) as before:
            return profile_graphs(
                before.path, both.graph.path, both.data, runtime=both.graph.runtime, original_runtime=before.runtime,
                runs=runs, owners_original=both.owners_original, owners_artifact=both.owners_artifact, progress=progress,
            )  # fmt: skip


def _baseline(both: _Compared, options: RuntimeOptions) -> contextlib.AbstractContextManager[Graph]:
    """Give the original in the runtime and types of the artifact: of an engine, another engine with the same options."""
    manifest, request, target, quant = both.manifest, None, TARGETS["onnx"], None
    if manifest is not None and both.graph.source is not None:
        name, entry = [*manifest.engines.items()][-1]
        target, quant = find_target(name), manifest.request.quant
        request = BuildRequest(Profile.from_facts(entry.facts), BuildOptions.from_dict(entry.facts["options"]))
    return baseline(target, both.loaded.model, both.original, both.graph, quant, both.data, request, options)


@contextlib.contextmanager
def _opened(
    model: Path,
    artifact: Path,
    data: str | None,
    inputs: Sequence[InputSpec],
    batch_size: int | None,
    *,
    trust: bool,
    factory: str | None,
    kernels: bool | None,
    options: RuntimeOptions,
) -> Iterator[_Compared]:
    graph = best_graph(artifact, options, kernels=kernels, trust=trust)
    manifest = read_bundle(artifact)[1] if artifact.is_dir() else None
    loaded = load(model, inputs=inputs, trust=trust, factory=factory)
    sites = lift(loaded.model).sites
    engine = _last_engine(manifest)
    samples = open_data(loaded, data, batch_size, {} if engine is None else engine.ranges)
    if engine is not None:
        for feeds in samples:
            engine.check(feeds)
    with workspace(loaded) as original:
        owned: dict[str, str] = {}
        halves: dict[str, Half] = {}
        if graph.onnx is not None:
            proto = _read(graph.onnx)
            _check_names(loaded, proto)
            owned, halves = _marked(proto), halves_by_site(proto)
        taps = () if manifest is None else tuple(_taps(manifest, {site.name: site for site in sites}, owned, halves))
        if manifest is not None and manifest.source.sha256 != loaded.sha256:
            remark = f"{artifact.name} was made from another file than {model.name}: {manifest.source.file}"
            samples = replace(samples, notes=(*samples.notes, remark))
        if manifest is not None and ((len(manifest.graphs) > 1 and not graph.kernels) or not graph.on_target):
            samples = replace(samples, notes=(*samples.notes, f"{graph.path.name} was run, {graph.reason}"))
        yield _Compared(loaded, original, graph, samples, taps, owners(sites), products(sites) | owned, manifest)


def _last_engine(manifest: Manifest | None) -> Profile | None:
    """Return what a bundle's engine takes, the one that was built last; None where there is none."""
    if manifest is None or not manifest.engines:
        return None
    return Profile.from_facts([*manifest.engines.values()][-1].facts)


def _taps(
    manifest: Manifest, sites: Mapping[str, Site], owned: Mapping[str, str], halves: Mapping[str, Half]
) -> Iterator[SiteTap]:
    for entry in manifest.sites:
        site = sites.get(entry.name)
        if site is None or entry.form == str(KEEP) or site.function.key != entry.function:
            continue
        if entry.recovery is not None and entry.recovery.layers:
            yield tap_behind(site, entry.recovery.layers[0])
        else:
            interval = None if entry.fit is None else entry.fit.interval
            yield tap(site, entry.input, entry.output, entry.scale, interval, owned, halves)


def tap(
    site: Site,
    artifact_input: str,
    artifact_output: str,
    scale: float,
    interval: tuple[float, float] | None,
    owned: Mapping[str, str],
    halves: Mapping[str, Half],
) -> SiteTap:
    """Return where to look at a site in the original and in an artifact, and where its form was fitted.

    Args:
        site: of the original.
        artifact_input: name of the value that it takes in the artifact.
        artifact_output: name of the value that it gives there, if that is not the product of a gated site.
        scale: both are so many times the original's.
        interval: where the form was fitted.
        owned: the site of every value that the artifact computes for one (see `owners_of`).
        halves: where the artifact's sites are that read a half of a packed value (see `halves_of`).
    """
    gate, half = site.gate, halves.get(site.name)
    if half is not None:
        return SiteTap(
            site.name, site.evaluate, half.product, half.packed, half.product, scale, scale, interval, half=half
        )
    if gate is None or owned.get(gate.product) != site.name:
        outputs, multiplier = (site.output, artifact_output), None
    else:
        outputs, multiplier = (gate.product, gate.product), gate.multiplier
    before, after = outputs
    return SiteTap(
        site.name, site.evaluate, before, artifact_input, after, scale, scale, interval, multiplier, site.operands
    )  # fmt: skip


def tap_behind(site: Site, layer: str) -> SiteTap:
    """Return where to look at a site whose layers were refitted: at what the first of them gives, in both graphs."""
    return SiteTap(site.name, None, layer, layer, layer)


def owners_of(graph: Path) -> dict[str, str]:
    """Return the site of every value that an exported graph computes for one."""
    return _marked(_read(graph))


def halves_of(graph: Path) -> dict[str, Half]:
    """Return where the sites of an exported graph are that read a half of a packed value."""
    return halves_by_site(_read(graph))


def site_layers(graph: Graph) -> dict[str, SiteLayers]:
    """Return which layers of an engine compute each site, and in which types; nothing of a graph.

    Raises:
        ActxError: the engine cannot be opened.
    """
    if graph.source is None or not isinstance(graph.runtime, EngineRuntime):
        return {}
    return graph.runtime.sites(graph.path, owners_of(graph.source))


def _read(graph: Path) -> onnx.ModelProto:
    try:
        return onnx.load(graph, load_external_data=False)
    except Exception as error:
        raise ActxError(f"{graph} is not an ONNX model", note=str(error), remedy="Export the model again.") from error


def _check_names(loaded: LoadedModel, artifact: onnx.ModelProto) -> None:
    """Raise where an artifact has other inputs or outputs: it is of another model."""
    held = {tensor.name for tensor in artifact.graph.initializer}
    inputs = sorted(spec.name for spec in loaded.inputs), sorted({v.name for v in artifact.graph.input} - held)
    outputs = [str(value.name) for value in loaded.model.graph.outputs], [v.name for v in artifact.graph.output]
    for kind, (ours, theirs) in (("inputs", inputs), ("outputs", outputs)):
        if ours != theirs:
            raise ActxError(
                f"the artifact has other {kind} than the original, or in another order",
                note=f"original {', '.join(ours)}; artifact {', '.join(theirs)}",
                remedy="Give the model that it was exported from.",
            )


def _marked(model: onnx.ModelProto) -> dict[str, str]:
    """Return the site by value: lower marks the nodes."""
    return {
        value: prop.value
        for node in model.graph.node
        for prop in node.metadata_props
        if prop.key == SITE_METADATA
        for value in node.output
    }
