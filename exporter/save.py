"""Write graphs that share one weights file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from actx.exporter.errors import ActxError
from actx.exporter.machine import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

WEIGHTS = "weights.data"
# Smaller tensors stay in the graph: shapes and scalars, which shape inference has to see.
INLINE_BYTES = 1024


def save(
    graphs: Mapping[str, ir.Model],
    folder: Path,
    weights: str = WEIGHTS,
    stored: Mapping[int, ir.ExternalTensor] | None = None,
) -> None:
    """Write models that share tensors, each tensor once.

    Args:
        graphs: model by file name.
        folder: an existing folder.
        weights: name of the external-data file of all of them. It is written even where no tensor is large enough.
        stored: tensors that are in a file of that folder already, by the identity of the graphs' own (see `stored_in`).

    Raises:
        ActxError: the folder cannot be written to, or the disk is full.
    """
    large: dict[int, ir.TensorProtocol] = {}  # by identity: branches of an If may have weights of one name
    for model in graphs.values():
        for value in _initializers(model):
            tensor = value.const_value
            assert tensor is not None
            if tensor.nbytes > INLINE_BYTES and tensor.dtype is not ir.DataType.STRING:  # strings cannot be external
                large[id(tensor)] = tensor
    found: dict[int, ir.TensorProtocol] = {key: place for key, place in (stored or {}).items() if key in large}
    written = {key: _in_rows(tensor) for key, tensor in large.items() if key not in found}
    try:
        (folder / weights).touch()
        external = ir.external_data.convert_tensors_to_external(
            list(written.values()), folder, weights, max_workers=len(usable_cores())
        )
        found |= dict(zip(written, external, strict=True))
        for name, model in graphs.items():
            _save_graph(model, folder / name, found)
    except OSError as error:
        raise ActxError(
            f"cannot write to {folder}", note=str(error), remedy="Check the free space and permissions."
        ) from error


def stored_in(path: Path, model: ir.Model) -> dict[int, ir.ExternalTensor]:
    """Return where the tensors of a model are that was saved at a path, as `save` takes them for other graphs there."""
    saved = ir.load(path).graph.initializers
    found = ((value.const_value, saved[name].const_value) for name, value in model.graph.initializers.items())
    return {id(own): tensor for own, tensor in found if isinstance(tensor, ir.ExternalTensor)}


def _in_rows(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor whose numbers are put in order at once when it is written: one by one takes ten times as long."""
    if not isinstance(tensor, (ir.Tensor, ir.LazyTensor)):
        return tensor

    def rows() -> ir.TensorProtocol:
        found = tensor.raw() if isinstance(tensor, ir.LazyTensor) else tensor
        if not (isinstance(found, ir.Tensor) and isinstance(found.raw, np.ndarray)) or found.raw.flags.c_contiguous:
            return found
        return ir.Tensor(np.ascontiguousarray(found.raw), dtype=found.dtype, shape=found.shape)

    return ir.LazyTensor(rows, tensor.dtype, ir.Shape(tensor.shape), name=tensor.name)


def _save_graph(model: ir.Model, path: Path, stored: Mapping[int, ir.TensorProtocol]) -> None:
    """Save with references to the stored tensors, and give the model its own tensors back."""
    own = [(value, value.const_value) for value in _initializers(model)]
    try:
        for value, tensor in own:
            value.const_value = stored.get(id(tensor)) or _in_memory(tensor)
        ir.save(model, path)
    finally:
        for value, tensor in own:
            value.const_value = tensor


def _in_memory(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    """Small tensors of a source with external data move into the graph."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.external_data.convert_tensors_from_external([tensor])[0]


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from (value for value in graph.initializers.values() if value.const_value is not None)
