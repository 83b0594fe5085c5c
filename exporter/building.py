"""Build the engine of a bundle's target: as a step of the export, or later, on the device, from the graph in the bundle."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from actx.exporter.bundle import check_destination, commit, engine_name, graph_name, read_bundle, staging, verify
from actx.exporter.bundle import digests as digests_of
from actx.exporter.errors import UsageError
from actx.exporter.load.inputs import input_specs
from actx.exporter.manifest import MANIFEST, EngineEntry, Manifest
from actx.exporter.quantize import quantize
from actx.exporter.reporting import write_page
from actx.exporter.save import save
from actx.exporter.scratch import scratch
from actx.exporter.targets import TARGETS, BuildRequest, Files, Graph, Target, find_target
from actx.exporter.tensorrt.options import BuildOptions
from actx.exporter.tensorrt.shapes import Profile, parse_ranges, resolve, sizes_seen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from actx.exporter.data import Data, InputSpec
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions
    from actx.exporter.targets.base import Progress
    from actx.exporter.tensorrt.shapes import ShapeRange


@dataclass(frozen=True)
class Built:
    """What a build made.

    Attributes:
        path: the bundle.
        target: what for.
        engine: the file in it, and its facts.
    """

    path: Path
    target: str
    engine: EngineEntry


def build(
    bundle: Path | str,
    *,
    target: str | None = None,
    shapes: Mapping[str, ShapeRange] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build the engine of a bundle from the typed graph in it, and put it there.

    The rest of the bundle stays as it is, but for what was measured on an engine that is replaced.

    Args:
        bundle: its folder.
        target: what to build for, where that is not the bundle's own: one that takes the same typed graph.
        shapes: ranges of named dimensions, by name; those of the export hold for the others.
        options: of the builder, by name (see `BuildOptions`); those of the export hold for the others.
        progress: called with the number of steps of the builder done and to do.

    Raises:
        UsageError: the target has no engines, or shapes or options are not for it.
        TargetUnavailable: its library, or what that needs, is not here.
        ActxError: it is no bundle, a file of it has changed, the library refuses the graph, or the disk is full.
    """
    given, manifest = read_bundle(Path(bundle))
    folder = given.resolve()  # of a link to a bundle, the bundle is replaced
    check_destination(folder, force=True)
    verify(folder, manifest)
    asked = manifest.request
    goal = find_target(target or asked.target)
    name = _typed_graph(folder, manifest, goal)
    goal.require()
    ranges = parse_ranges(f"{dim}={sizes}" for dim, sizes in asked.shapes.items()) | dict(shapes or {})
    own = goal.name == asked.target
    base = BuildOptions.from_dict(asked.build)
    chosen = BuildOptions.from_dict({**(base if own else base.of(goal.name)).to_dict(), **(options or {})})
    goal.check_options(chosen)
    with staging(folder) as place:
        _link(folder, place, manifest)
        profile = resolve(input_specs(ir.load(place / name)), ranges)
        entry = build_engine(goal, place, name, BuildRequest(profile, chosen), progress)
        made = _updated(manifest, goal.name, entry, shapes or {}).model_copy(
            update={
                "request": asked.model_copy(update=_request(profile, chosen)) if own else asked,
                "files": digests_of(place),
            }
        )
        made.write(place / MANIFEST)
        write_page(place, folder.name, made)
        commit(place, folder, force=True)
    return Built(given, goal.name, entry)


def build_engine(
    target: Target, folder: Path, graph: str, request: BuildRequest, progress: Progress | None = None
) -> EngineEntry:
    """Build the engine of a graph in a bundle's folder.

    Raises:
        UsageError, TargetUnavailable, ActxError: as `build`.
    """
    file = engine_name(target.name)
    return EngineEntry(file=file, facts=target.build(folder / graph, folder / file, request, progress))


def profile_for(inputs: tuple[InputSpec, ...], shapes: Mapping[str, ShapeRange], data: Sequence[Data]) -> Profile:
    """Return the shapes that an engine is to take: those asked for, and for the others what is in the data.

    Raises:
        UsageError: there is no such dimension, or a range does not cover the data.
    """
    real = [samples for samples in data if not samples.synthetic]
    profile = resolve(inputs, shapes, sizes_seen(inputs, (feeds for samples in real for feeds in samples)))
    for feeds in (feeds for samples in data for feeds in samples):
        profile.check(feeds)
    return profile


@contextlib.contextmanager
def baseline(
    target: Target,
    model: ir.Model,
    original: Path,
    artifact: Graph,
    quant: str | None,
    data: Data,
    request: BuildRequest | None,
    options: RuntimeOptions,
) -> Iterator[Graph]:
    """Give the original as the target runs it, to measure the latency of an artifact against it: in the same runtime and types.

    Args:
        target: what the artifact was made for.
        model: the original.
        original: it as a file.
        artifact: what is measured.
        quant: the scheme of the artifact.
        data: to calibrate the same scheme on.
        request: what the artifact's engine was built for; None where the target has none.
        options: how it is run.
    """
    if request is None:
        yield Graph(original, artifact.runtime, "the original")
        return
    with scratch() as folder:
        batches = None if data.synthetic else iter(data)
        typed = model if quant is None else quantize(model, quant, batches=batches, options=options)
        save({graph_name(target.name): typed}, folder)
        yield engine_of(target, folder, request, options)


def engine_of(target: Target, folder: Path, request: BuildRequest, options: RuntimeOptions) -> Graph:
    """Build the engine of a folder that holds the target's graph and nothing else, and return what the target runs of it.

    Raises:
        UsageError, TargetUnavailable, ActxError: as `build`.
    """
    name = graph_name(target.name)
    entry = build_engine(target, folder, name, request)
    return target.graph(Files(folder, {target.name: name}, {target.name: entry}), options, None)


def _typed_graph(folder: Path, manifest: Manifest, target: Target) -> str:
    """Return the name of the graph to build from."""
    if not target.has_engine:
        with_engine = ", ".join(name for name, other in TARGETS.items() if other.has_engine)
        raise UsageError(
            f"nothing is built for {target.name}: its graph is run as it is",
            note=f"targets with engines: {with_engine}",
            remedy="Export for one of these.",
        )
    own = TARGETS.get(manifest.request.target)
    if own is None or not own.has_engine:
        raise UsageError(
            f"{folder} has no typed graph",
            note=f"it was exported for {manifest.request.target}",
            remedy=f"Export the model with --target {target.name}.",
        )
    return manifest.graphs[own.name]


def _updated(manifest: Manifest, target: str, entry: EngineEntry, stated: Iterable[str]) -> Manifest:
    """Return a manifest with an engine, the last one, and without what was measured or assumed of the one it replaces."""
    latency = manifest.latency
    assumed = tuple(f"dimension '{dim}' is " for dim in stated)
    return manifest.model_copy(
        update={
            "engines": {name: other for name, other in manifest.engines.items() if name != target} | {target: entry},
            "drift": [report for report in manifest.drift if report.graph != entry.file],
            "latency": None if latency is None or latency.graph == entry.file else latency,
            "notes": [note for note in manifest.notes if not note.startswith(assumed)],
        }
    )


def _request(profile: Profile, options: BuildOptions) -> dict[str, object]:
    return {"shapes": {dim: str(sizes) for dim, sizes in profile.ranges.items()}, "build": options.to_dict()}


def _link(folder: Path, place: Path, manifest: Manifest) -> None:
    """Give a staging folder the files of a bundle, without a second copy where the file system can."""
    for name in manifest.files:
        if not (folder / name).exists():
            continue  # a library that this device does not need
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            os.link(folder / name, place / name)
            continue
        shutil.copyfile(folder / name, place / name)
