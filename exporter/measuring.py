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
from actx.exporter.devices.config import Device, find_device
from actx.exporter.devices.link import connect
from actx.exporter.devices.remote import Depot, RemotePlace, RemoteRuntime, device_graph
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
    from actx.exporter.runtimes.base import Runtime
    from actx.exporter.tensorrt.inspector import SiteLayers

Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Prepared:
    """What is compared, wherever it runs.

    Attributes:
        loaded: the original.
        original: it as a file.
        artifact: a bundle, or an ONNX file.
        manifest: of a bundle.
        data: samples.
        sites: of the original.
    """

    loaded: LoadedModel
    original: Path
    artifact: Path
    manifest: Manifest | None
    data: Data
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Opened:
    """What runs it.

    Attributes:
        graph: of the artifact, with its runtime.
        original: what the original is run in.
        options: how both are run.
        depot: what has been sent to the device; None on this machine.
    """

    graph: Graph
    original: Runtime
    options: RuntimeOptions
    depot: Depot | None = None


@dataclass(frozen=True)
class _Compared:
    """The data, with remarks on the graph that was opened, and where the sites are in it."""

    data: Data
    taps: tuple[SiteTap, ...]
    owners: dict[str, str]


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
    device: Device | str | None = None,
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
        device: where both are run, over ssh: an address, a name in `devices.toml`, or a `Device`; None for this machine.
        progress: called with the number of samples done and to do.

    Raises:
        ActxError, UsageError: a model or the data cannot be read or run, or they do not fit together.
    """
    with (
        opened(Path(artifact), options, device, kernels=kernels, trust=trust) as place,
        prepared(Path(model), Path(artifact), data, inputs, batch_size, trust=trust, factory=factory) as pair,
    ):
        return check_there(pair, place, metric, max_drift, logits, save_outputs, progress)


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
    device: Device | str | None = None,
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
        device: where both are run, over ssh: an address, a name in `devices.toml`, or a `Device`; None for this machine.
        progress: called with the number of rounds done and to do.

    Raises:
        ActxError, UsageError: a model or the data cannot be read or run, or they do not fit together.
    """
    with (
        opened(Path(artifact), options, device, kernels=kernels, trust=trust) as place,
        prepared(Path(model), Path(artifact), data, inputs, batch_size, trust=trust, factory=factory) as pair,
    ):
        return profile_there(pair, place, runs, progress)


def check_there(
    pair: Prepared,
    place: Opened,
    metric: str,
    max_drift: float | None,
    logits: Sequence[str],
    save_outputs: Path | None,
    progress: Progress | None,
) -> DriftReport:
    """Measure the drift of what was prepared where it was opened (see `check`)."""
    both = _compared(pair, place.graph)
    check_applies(metric, pair.loaded.model, logits)
    saved = None if save_outputs is None else OutputFile(save_outputs, "original", place.graph.path.name)
    report = check_graphs(
        pair.original, place.graph.path, both.data, taps=both.taps, metric=metric, max_drift=max_drift, logits=logits,
        runtime=place.graph.runtime, original_runtime=place.original, observe=None if saved is None else saved.add,
        progress=progress,
    )  # fmt: skip
    if saved is not None:
        saved.write()
    return report


def profile_there(pair: Prepared, place: Opened, runs: int | None, progress: Progress | None) -> LatencyReport:
    """Measure the latency of what was prepared where it was opened (see `profile`)."""
    both, graph = _compared(pair, place.graph), place.graph
    if not graph.on_target:
        raise TargetUnavailable(
            f"the latency of {pair.artifact} cannot be measured here",
            note=f"{graph.path.name} runs {graph.reason}",
            remedy=f"Run actx profile on the target's device, or give a graph, such as {pair.artifact / PORTABLE}.",
        )
    if graph.onnx is None:
        raise ActxError(
            f"there is nothing to compare the latency of {pair.artifact} with",
            note="how an engine by itself was built is not known, so none can be built of the original",
            remedy="Give the bundle's folder.",
        )
    with _baseline(pair, place) as before:
        return profile_graphs(
            before.path, graph.path, both.data, runtime=graph.runtime, original_runtime=before.runtime,
            place=None if place.depot is None else RemotePlace(place.depot), runs=runs,
            owners_original=owners(pair.sites), owners_artifact=both.owners, progress=progress,
        )  # fmt: skip


def _baseline(pair: Prepared, place: Opened) -> contextlib.AbstractContextManager[Graph]:
    """Give the original in the runtime and types of the artifact: of an engine, another engine with the same options."""
    manifest, request, target, quant = pair.manifest, None, TARGETS["onnx"], None
    if manifest is not None and place.graph.source is not None:
        name, entry = [*manifest.engines.items()][-1]
        target, quant = find_target(name), manifest.request.quant
        request = BuildRequest(Profile.from_facts(entry.facts), BuildOptions.from_dict(entry.facts["options"]))
    return baseline(
        target, pair.loaded.model, pair.original, place.graph, quant, pair.data, request, place.options
    )  # fmt: skip


@contextlib.contextmanager
def opened(
    artifact: Path, options: RuntimeOptions, device: Device | str | None, *, kernels: bool | None, trust: bool
) -> Iterator[Opened]:
    """Give what runs an artifact, and the original, on this machine or a device.

    Args:
        artifact: a bundle, or an ONNX file.
        options: how both are run.
        device: see `check`.
        kernels: see `check`.
        trust: see `check`.

    Raises:
        ActxError, UsageError: it cannot be opened, or there is no connection to the device.
    """
    if device is None:
        yield Opened(best_graph(artifact, options, kernels=kernels, trust=trust), options, options)
        return
    with connect(find_device(device)) as link:
        depot = Depot(link)
        graph = device_graph(depot, artifact, options, kernels=kernels, trust=trust)
        yield Opened(graph, RemoteRuntime(depot, options), options, depot)


@contextlib.contextmanager
def prepared(
    model: Path,
    artifact: Path,
    data: str | None,
    inputs: Sequence[InputSpec],
    batch_size: int | None,
    *,
    trust: bool,
    factory: str | None,
) -> Iterator[Prepared]:
    """Give the loaded original as a file, its sites and the data, for any number of comparisons (see `check`)."""
    manifest = read_bundle(artifact)[1] if artifact.is_dir() else None
    loaded = load(model, inputs=inputs, trust=trust, factory=factory)
    engine = _last_engine(manifest)
    samples = open_data(loaded, data, batch_size, {} if engine is None else engine.ranges)
    if engine is not None:
        for feeds in samples:
            engine.check(feeds)
    if manifest is not None and manifest.source.sha256 != loaded.sha256:
        remark = f"{artifact.name} was made from another file than {model.name}: {manifest.source.file}"
        samples = replace(samples, notes=(*samples.notes, remark))
    with workspace(loaded) as original:
        yield Prepared(loaded, original, artifact, manifest, samples, tuple(lift(loaded.model).sites))


def _compared(pair: Prepared, graph: Graph) -> _Compared:
    """Find the sites of the original in a graph."""
    owned: dict[str, str] = {}
    halves: dict[str, Half] = {}
    if graph.onnx is not None:
        proto = _read(graph.onnx)
        _check_names(pair.loaded, proto)
        owned, halves = _marked(proto), halves_by_site(proto)
    manifest, samples, sites = pair.manifest, pair.data, {site.name: site for site in pair.sites}
    taps = () if manifest is None else tuple(_taps(manifest, sites, owned, halves, tables=graph.kernels))
    if manifest is not None and ((len(manifest.graphs) > 1 and not graph.kernels) or not graph.on_target):
        samples = replace(samples, notes=(*samples.notes, f"{graph.path.name} was run, {graph.reason}"))
    return _Compared(samples, taps, products(pair.sites) | owned)


def _last_engine(manifest: Manifest | None) -> Profile | None:
    """Return what a bundle's engine takes, the one that was built last; None where there is none."""
    if manifest is None or not manifest.engines:
        return None
    return Profile.from_facts([*manifest.engines.values()][-1].facts)


def _taps(
    manifest: Manifest, sites: Mapping[str, Site], owned: Mapping[str, str], halves: Mapping[str, Half], *, tables: bool
) -> Iterator[SiteTap]:
    """Yield the taps of a bundle's graph; with `tables`, of that whose sites became tables where a scheme made them."""
    behind = manifest.quantization.tables if tables and manifest.quantization is not None else {}
    for entry in manifest.sites:
        site = sites.get(entry.name)
        if site is None or site.function.key != entry.function:
            continue
        if entry.name in behind:
            yield tap_behind(site, behind[entry.name])
        elif entry.form == str(KEEP):
            continue
        elif entry.recovery is not None and entry.recovery.layers:
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
