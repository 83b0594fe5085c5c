"""Write graphs that share one weights file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

WEIGHTS = "weights.data"
# Smaller tensors stay in the graph: shapes and scalars, which shape inference has to see.
INLINE_BYTES = 1024


def save(graphs: Mapping[str, ir.Model], folder: Path, weights: str = WEIGHTS) -> None:
    """Write models that share tensors, each tensor once.

    Args:
        graphs: model by file name.
        folder: an existing folder.
        weights: name of the external-data file of all of them. It is written even where no tensor is large enough.

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
    try:
        (folder / weights).touch()
        external = ir.external_data.convert_tensors_to_external(list(large.values()), folder, weights)
        stored = dict(zip(large, external, strict=True))
        for name, model in graphs.items():
            _save_graph(model, folder / name, stored)
    except OSError as error:
        raise ActxError(
            f"cannot write to {folder}", note=str(error), remedy="Check the free space and permissions."
        ) from error


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
