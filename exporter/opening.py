"""Open the best graph of a bundle that this machine can run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from actx.custom_ops.ops import DOMAIN
from actx.exporter.bundle import ENGINE_SUFFIX, read_bundle, verify
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.kernels import Carried, choose_kernels
from actx.exporter.runtimes.onnxruntime import DEFAULT, RuntimeOptions
from actx.exporter.targets import Files, Graph, Target, find_target
from actx.exporter.targets.tensorrt import engine_runtime
from actx.exporter.tensorrt.plan import RTX_MAGIC, read_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from actx.exporter.runtimes import base
    from actx.exporter.targets.base import Chooser
    from actx.exporter.tensorrt.engine import EngineRuntime


@dataclass(frozen=True)
class Session:
    """An open bundle.

    Attributes:
        graph: name of the file that was opened: a graph or an engine.
        reason: why this one, and in what it runs.
    """

    graph: str
    reason: str
    _session: base.Session

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run once and return the outputs by name.

        Raises:
            ActxError: the feeds do not fit the model.
        """
        return self._session.run(feeds, outputs)


def session(
    bundle: Path | str,
    options: RuntimeOptions = DEFAULT,
    *,
    kernels: bool | None = None,
    trust: bool = False,
) -> Session:
    """Open a bundle.

    Args:
        bundle: its folder.
        options: how it is run.
        kernels: whether the graph of actx nodes must be opened, or must not; None for where it can.
        trust: whether code that the bundle carries may run: the library of the kernels, which is looked at only where none is
            installed, and the runtime in a version-compatible engine.

    Raises:
        TargetUnavailable: the kernels were asked for, here or with `ACTX_LIBRARY`, and cannot be had.
        ActxError: it is no bundle, one of its files is not what the export wrote, or its graph cannot be opened.
    """
    graph = best_graph(Path(bundle), options, kernels=kernels, trust=trust)
    return Session(graph.path.name, graph.reason, graph.runtime.open(graph.path))


def best_graph(
    artifact: Path,
    options: RuntimeOptions = DEFAULT,
    *,
    kernels: bool | None = None,
    trust: bool = False,
    choose: Chooser = choose_kernels,
) -> Graph:
    """Return what to run, of a bundle or an ONNX file itself.

    1. Of a bundle it is what was made for its target, in that target's runtime, where this machine has both.
    2. Else the target's graph of standard ops in ONNX Runtime, or `model.onnx`.

    Args:
        artifact: the bundle's folder, or the file.
        options: how it is run.
        kernels: see `session`.
        trust: see `session`.
        choose: returns the kernels of the machine that runs it, which may be a device.

    Raises:
        TargetUnavailable, ActxError: as `session`.
    """
    if artifact.is_file():
        return _file(artifact, options, kernels=kernels, trust=trust, choose=choose)
    if not artifact.exists():
        raise ActxError(f"{artifact} does not exist", remedy="Give a bundle that actx export made, or an .onnx file.")
    target, files = files_of(artifact, trust=trust)
    return target.graph(replace(files, choose=choose), options, kernels)


def files_of(bundle: Path, *, trust: bool = False) -> tuple[Target, Files]:
    """Return a bundle's target, or what an engine was built for last, and its files, which are those that the export wrote.

    Raises:
        ActxError: it is no bundle, or a file has changed.
    """
    folder, manifest = read_bundle(bundle)
    verify(folder, manifest)
    carried = Carried(folder, manifest, trust)
    files = Files(
        folder,
        manifest.graphs,
        manifest.engines,
        manifest.request.quant,
        carried,
        trust,
        tuple(manifest.disabled_optimizers),
    )
    return find_target([manifest.request.target, *manifest.engines][-1]), files


def _file(file: Path, options: RuntimeOptions, *, kernels: bool | None, trust: bool, choose: Chooser) -> Graph:
    if file.suffix == ENGINE_SUFFIX:
        return Graph(file, _engine_runtime(file, options, trust=trust), "the file itself")
    needed = _needs_kernels(file)
    if needed and kernels is False:
        raise UsageError(f"{file} has actx nodes", remedy="Leave --no-kernels out: it needs the kernels.")
    found = choose(kernels, None)[0] if needed else None
    runtime = options if found is None else found.register(options)
    return Graph(file, runtime, "the file itself", kernels=found is not None)


def _engine_runtime(file: Path, options: RuntimeOptions, *, trust: bool) -> EngineRuntime:
    """Return what runs an engine of which nothing is known but its file."""
    if not trust:
        raise ActxError(
            f"{file} is not opened by itself: an engine is code, and only a bundle's manifest tells that it is whole",
            remedy="Give the bundle's folder, or --trust if you made the file or trust whoever did.",
        )
    target = "trt-rtx" if read_plan(file).magic == RTX_MAGIC else "trt"
    return engine_runtime(target, options, {}, None, trust=trust)


def _needs_kernels(file: Path) -> bool:
    """Tell whether an ONNX file has actx nodes; what is none is found out when it is opened."""
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception:  # noqa: BLE001 - the parser has no exception of its own
        return False
    return any(opset.domain == DOMAIN for opset in model.opset_import)
