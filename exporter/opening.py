"""Open the best graph of a bundle that this machine can run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actx.exporter import runtime
from actx.exporter.bundle import PORTABLE, read_bundle, verify
from actx.exporter.errors import ActxError

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


def session(bundle: Path | str, options: runtime.RuntimeOptions = runtime.DEFAULT) -> Session:
    """Open a bundle.

    Raises:
        ActxError: it is no bundle, one of its files is not what the export wrote, or its graph cannot be opened.
    """
    path, reason = best_graph(Path(bundle))
    return Session(path.name, reason, runtime.open_session(path, options))


def best_graph(artifact: Path) -> tuple[Path, str]:
    """Return the graph to run, of a bundle or an ONNX file itself, and the reason for it."""
    if artifact.is_file():
        return artifact, "the file itself"
    if not artifact.exists():
        raise ActxError(f"{artifact} does not exist", remedy="Give a bundle that actx export made, or an .onnx file.")
    folder, manifest = read_bundle(artifact)
    verify(folder, manifest)
    native = [name for role, name in manifest.graphs.items() if role != "portable"]
    reason = (
        f"{native[0]} needs kernels that this version does not have" if native else "the bundle holds this graph only"
    )
    return folder / PORTABLE, reason
