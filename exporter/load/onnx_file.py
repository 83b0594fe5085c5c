"""Read an ONNX file and the external data beside it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from collections.abc import Iterator


def read_onnx(path: Path) -> ir.Model:
    """Read the graph; external data stays in its files and is mapped when it is used.

    Raises:
        ActxError: the file is no ONNX model, is truncated, holds sparse tensors, or its external data is missing, too
            short or elsewhere.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
        _refuse_sparse(path, proto)
        _name_default_domain(proto)
        model = ir.from_proto(proto)
        tensors = list(_tensors(model))
    except ActxError:
        raise
    except Exception as error:
        raise _not_onnx(path, str(error)) from error
    if not model.opset_imports or (not list(model.graph) and not model.graph.outputs):
        raise _not_onnx(path, "it holds no graph")
    if not all(value.name for value in (*proto.graph.input, *proto.graph.output)):
        raise _not_onnx(path, "an input or output of its graph has no name")
    for name, tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(path, name, tensor)
            tensor.base_dir = path.parent
        elif not _is_complete(tensor):
            raise _damaged(path, f"{name} claims to be {tensor.dtype} {tensor.shape}, and its data is not")
    return model


def data_files(model: ir.Model) -> list[Path]:
    """Return the files that hold the external data of a model, by their paths from its folder in order."""
    return sorted({Path(tensor.path) for _, tensor in _tensors(model) if isinstance(tensor, ir.ExternalTensor)})


def _refuse_sparse(path: Path, proto: onnx.ModelProto) -> None:
    names = [name for graph in (proto.graph, *proto.functions) for name in _sparse(graph)]
    if names:
        raise ActxError(
            f"{path} holds sparse tensors, which actx does not read",
            note=f"{len(names)}, the first is {names[0]}",
            remedy="Export the model with dense weights.",
        )


def _sparse(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[str]:
    if isinstance(graph, onnx.GraphProto):
        yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS):
                yield node.name or node.op_type
            for inner in (attribute.g, *attribute.graphs):
                yield from _sparse(inner)


def _name_default_domain(proto: onnx.ModelProto) -> None:
    """ONNX lets the default domain be called "ai.onnx": for nodes onnx_ir writes "", for the imports it does not."""
    for imports in (proto.opset_import, *(function.opset_import for function in proto.functions)):
        for entry in imports:
            entry.domain = "" if entry.domain == "ai.onnx" else entry.domain


def _not_onnx(path: Path, note: str) -> ActxError:
    return ActxError(
        f"{path} is not a model that actx can read",
        note=f"neither a torch.export archive nor ONNX: {note or 'unreadable'}",
        remedy="It may be truncated or of another kind: give an .onnx file or a torch.export archive.",
    )


def _tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for graph in _graphs(model):
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type is ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield f"{attribute.name} of node {node.name}", attribute.as_tensor()


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield from model.graphs()
    for function in model.functions.values():
        yield from (function.graph, *function.graph.subgraphs())


def _is_complete(tensor: ir.TensorProtocol) -> bool:
    try:
        if tensor.dtype is ir.DataType.STRING:
            return tensor.numpy().size == tensor.size
        return len(tensor.tobytes()) == tensor.nbytes
    except Exception:  # noqa: BLE001 - whatever onnx_ir raises of a type, a shape and data that are not of one tensor
        return False


def _damaged(path: Path, note: str) -> ActxError:
    return ActxError(f"{path} is damaged", note=note, remedy="Copy or export it again.")


def _check_external(path: Path, name: str, tensor: ir.ExternalTensor) -> None:
    location = PurePosixPath(str(tensor.location))
    if location.is_absolute() or ".." in location.parts:
        raise ActxError(
            f"{path} keeps {name} outside its own folder",
            note=f"external data at {location}",
            remedy="Move the data beside the model and save the model with relative locations.",
        )
    file = path.parent / location
    try:
        inside = file.resolve().is_relative_to(path.parent.resolve())
        there = file.stat().st_size if file.is_file() else None
        offset, size = tensor.offset or 0, tensor.nbytes
        np.dtype(tensor.dtype.numpy())
    except (OSError, ValueError, RuntimeError, TypeError, OverflowError) as error:  # a name or a type that cannot be
        raise _damaged(path, f"{name}, external data at {location}: {error}") from error
    if not inside:
        raise ActxError(
            f"{path} keeps {name} outside its own folder", note=f"{location} is a link", remedy="Copy the data there."
        )
    if offset < 0 or min(tensor.shape.numpy(), default=0) < 0:
        raise _damaged(
            path, f"{name}, external data at {location}, has the offset {offset} and the shape {tensor.shape}"
        )
    needed = offset + max(size, tensor.length or 0)
    if there is None or there < needed:
        got = "no such file" if there is None else f"{there} bytes"
        raise ActxError(
            f"the external data of {path} is missing or truncated",
            note=f"{name} needs {needed} bytes of {location}, got {got}",
            remedy="Copy the data file again and keep it beside the model.",
        )
