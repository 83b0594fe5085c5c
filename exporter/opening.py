"""Open the best graph of a bundle that this machine can run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from actx.custom_ops.ops import DOMAIN
from actx.exporter import runtime
from actx.exporter.bundle import PORTABLE, read_bundle, verify
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.kernels import Carried, Kernels, choose_kernels
from actx.exporter.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Session:
    """An open bundle.

    Attributes:
        graph: file name of the graph that was opened.
        reason: why this one.
    """

    graph: str
    reason: str
    _session: runtime.Session

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run once and return the outputs by name.

        Raises:
            ActxError: the feeds do not fit the model.
        """
        return runtime.run(self._session, feeds, outputs)


@dataclass(frozen=True)
class Graph:
    """The graph to run.

    Attributes:
        path: the ONNX file.
        kernels: what it needs beside ONNX Runtime; None where it needs nothing.
        reason: why this one.
    """

    path: Path
    kernels: Kernels | None
    reason: str

    def register(self, options: runtime.RuntimeOptions) -> runtime.RuntimeOptions:
        """Return options of a session that can open it."""
        return options if self.kernels is None else self.kernels.register(options)


def session(
    bundle: Path | str,
    options: runtime.RuntimeOptions = runtime.DEFAULT,
    *,
    kernels: bool | None = None,
    trust: bool = False,
) -> Session:
    """Open a bundle.

    Args:
        bundle: its folder.
        options: how it is run.
        kernels: whether the graph of actx nodes must be opened, or must not; None for where it can.
        trust: whether the library that the bundle carries may be loaded, which runs code of whoever made the bundle. It is
            looked at only where none is installed.

    Raises:
        TargetUnavailable: the kernels were asked for, here or with `ACTX_LIBRARY`, and cannot be had.
        ActxError: it is no bundle, one of its files is not what the export wrote, or its graph cannot be opened.
    """
    graph = best_graph(Path(bundle), kernels=kernels, trust=trust)
    return Session(graph.path.name, graph.reason, runtime.open_session(graph.path, graph.register(options)))


def best_graph(artifact: Path, *, kernels: bool | None = None, trust: bool = False) -> Graph:
    """Return the graph to run, of a bundle or an ONNX file itself.

    Raises:
        TargetUnavailable, ActxError: as `session`.
    """
    if artifact.is_file():
        needed = _needs_kernels(artifact)
        if needed and kernels is False:
            raise UsageError(f"{artifact} has actx nodes", remedy="Leave --no-kernels out: it needs the kernels.")
        return Graph(artifact, choose_kernels(kernels)[0] if needed else None, "the file itself")
    if not artifact.exists():
        raise ActxError(f"{artifact} does not exist", remedy="Give a bundle that actx export made, or an .onnx file.")
    folder, manifest = read_bundle(artifact)
    verify(folder, manifest)
    return choose_graph(folder, manifest.graphs, kernels, Carried(folder, manifest, trust))


def choose_graph(
    folder: Path, graphs: Mapping[str, str], kernels: bool | None, carried: Carried | None = None
) -> Graph:
    """Return the graph to run, of a bundle's.

    Args:
        folder: the bundle's.
        graphs: file names by role, as in its manifest.
        kernels: as for `session`.
        carried: the libraries that the bundle carries.

    Raises:
        TargetUnavailable: the kernels were asked for and cannot be had.
        UsageError: they were asked for and the bundle has no graph for them.
    """
    portable = folder / PORTABLE
    native = next((graphs[name] for name, target in TARGETS.items() if target.native and name in graphs), None)
    if native is None:
        if kernels:
            note = f"its graphs: {', '.join(graphs.values())}"
            remedy = "Leave --kernels out: no site was rewritten, or the target has no kernels."
            raise UsageError(f"{folder} has no graph of actx nodes", note=note, remedy=remedy)
        return Graph(portable, None, "the bundle holds this graph only")
    found, missing = choose_kernels(kernels, carried)
    if found is None:
        return Graph(portable, None, f"not {native}: {missing}")
    return Graph(folder / native, found, f"with {found.origin}")


def _needs_kernels(file: Path) -> bool:
    """Tell whether an ONNX file has actx nodes; what is none is found out when it is opened."""
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception:  # noqa: BLE001 - the parser has no exception of its own
        return False
    return any(opset.domain == DOMAIN for opset in model.opset_import)
