"""Run a model on data part by part, in the order of the graph, so that little is computed twice.

1. What is known before some values is the frontier: all that is read by the nodes that lead from these values on, and is not
   computed by them. It is held in files, one per batch, and the next part begins there.
2. Where a value of the frontier has no known type, a part cannot begin there: the old frontier stays, and more is run.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from actx.exporter.errors import ActxError
from actx.exporter.lift.ops import tensor_of
from actx.exporter.part import take_part
from actx.exporter.save import save

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from actx.exporter.data import Arrays, Data
    from actx.exporter.runtimes.base import Session
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions

_PART = "part.onnx"
_NO_TENSORS = (ir.DataType.UNDEFINED, ir.DataType.STRING)


class Walk:
    """One model on several parts of data.

    Args:
        model: the graph may be changed on the way, behind the frontier.
        data: the parts of the data.
        options: how the model is run.
        folder: for files; it is made.
    """

    def __init__(self, model: ir.Model, data: Sequence[Data], options: RuntimeOptions, folder: Path) -> None:
        self._model, self._data, self._options, self._folder = model, data, options, folder
        self._held: Path | None = None
        self._names: tuple[str, ...] = ()
        folder.mkdir()

    def advance(self, values: Collection[str]) -> None:
        """1: hold what is known before any of the named values, in the place of what was held.

        Raises:
            ActxError: the model cannot be run on the data, or the folder not be written.
        """
        frontier = _frontier(self._model.graph, values)
        if not frontier or not all(_is_known(value) for value in frontier):
            return  # 2.
        names = tuple(str(value.name) for value in frontier)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        for index, (part, found) in enumerate(self.values(names)):
            _write(folder / f"{index:08}-{part}.npz", found)
        if self._held is not None:
            shutil.rmtree(self._held)
        self._held, self._names = folder, names

    def values(self, names: Iterable[str]) -> Iterator[tuple[int, Arrays]]:
        """Yield for each batch the number of its part of the data, and the named values, which are not before the frontier.

        Raises:
            ActxError: the model cannot be run on the data.
        """
        wanted = tuple(dict.fromkeys(names))
        inside = [name for name in wanted if name not in self._names]
        with self._part(inside) as session:
            for part, held in self._batches():
                found = {} if session is None else session.run({spec.name: held[spec.name] for spec in session.inputs})
                yield part, {name: found[name] if name in found else held[name] for name in wanted}

    def _batches(self) -> Iterator[tuple[int, Arrays]]:
        """Yield what is held."""
        if self._held is None:
            yield from ((part, feeds) for part, data in enumerate(self._data) for feeds in data)
            return
        for file in sorted(self._held.iterdir()):
            with np.load(file, allow_pickle=False) as archive:
                arrays = [archive[name] for name in archive.files]
            yield int(file.stem.partition("-")[2]), dict(zip(self._names, arrays, strict=True))

    @contextlib.contextmanager
    def _part(self, outputs: Sequence[str]) -> Iterator[Session | None]:
        """Open what leads from what is held to some values; None where none are asked for."""
        if not outputs:
            yield None
            return
        graph = self._model.graph
        defaults = [str(value.name) for value in graph.inputs if value.is_initializer()]
        begin = self._names if self._held is not None else [str(value.name) for value in graph.inputs]
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            save({_PART: take_part(self._model, list(dict.fromkeys([*begin, *defaults])), outputs)}, Path(place))
            yield self._options.open(Path(place) / _PART)


def _frontier(graph: ir.Graph, names: Collection[str]) -> list[ir.Value]:
    """1."""
    late: set[ir.Value] = set()
    frontier: dict[ir.Value, None] = {}
    for node in graph:
        reads = list(_reads(node))
        if not late.isdisjoint(reads) or any(value.name in names for value in node.outputs):
            late.update(node.outputs)
            frontier.update(dict.fromkeys(value for value in reads if value not in late))
    return [value for value in frontier if tensor_of(value) is None and not value.is_initializer()]


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Yield what a node reads of its graph, also within its bodies."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        bodies: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            bodies = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies = attribute.as_graphs()
        for inner in (inner for body in bodies for inner in ir.traversal.RecursiveGraphIterator(body)):
            yield from (value for value in inner.inputs if value is not None and value.graph is node.graph)


def _is_known(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.type.dtype not in _NO_TENSORS


def _write(file: Path, arrays: Arrays) -> None:
    try:
        np.savez(file, *arrays.values(), allow_pickle=False)
    except OSError as error:
        what = f"cannot write to {file.parent}"
        raise ActxError(what, note=str(error), remedy="Check the free space and permissions.") from error
