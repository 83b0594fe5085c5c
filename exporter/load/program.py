"""Trace a module into a program and turn the program into an ONNX graph, both with torch's own tools."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from actx.exporter.data import synthetic_data
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.load.translations import translations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from actx.exporter.data import InputSpec

# Gelu and every newer activation is one op from here on, and all runtimes of note take it.
OPSET = 20
# Sizes of dynamic dimensions while tracing. Torch takes a dimension of 1 for static, and equal sizes for one dimension.
TRACED_BATCH, TRACED_SIZE = 2, 16
# Metadata that quotes the machine the model was written on, and is no use on another.
PRIVATE_METADATA = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node", "pkg.torch.export.ExportedProgram")


def trace(path: Path, module: nn.Module, inputs: Sequence[InputSpec]) -> ExportedProgram:
    """Trace the module in evaluation mode, with the dimensions that have names dynamic.

    Args:
        path: where the module came from, for errors.
        module: takes every input by its name.
        inputs: all that `forward` needs.

    Raises:
        UsageError: the inputs are not those of `forward`.
        ActxError: torch cannot trace the module.
    """
    import torch  # noqa: PLC0415 - slow to import, and not needed for ONNX files

    _check_signature(path, module, inputs)
    examples = next(iter(synthetic_data(inputs, _sizes(inputs))))
    dynamic = {
        spec.name: {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(spec.dims) if isinstance(dim, str)}
        for spec in inputs
    }
    feeds = {name: torch.from_numpy(array) for name, array in examples.items()}
    try:
        return torch.export.export(module.eval(), (), feeds, dynamic_shapes=dynamic)
    except Exception as error:
        raise ActxError(
            f"torch cannot trace {path}",
            note=f"{_place(module, feeds)}{_root(error)}",
            remedy="Compare --input with what the module takes, or export it yourself with torch.export.",
        ) from error


def _place(module: nn.Module, feeds: Mapping[str, Tensor]) -> str:
    """Run the module as it is, and name the innermost submodule that fails, if it does."""
    import torch  # noqa: PLC0415

    entered: list[str] = []

    def leave(*_: object) -> None:
        entered.pop()

    hooks = []
    for name, inner in module.named_modules():
        hooks.append(inner.register_forward_pre_hook(lambda *_, name=name: entered.append(name)))
        hooks.append(inner.register_forward_hook(leave))
    try:
        with torch.no_grad():
            module(**feeds)
    except Exception:  # noqa: BLE001 - whatever it raises, torch has raised before: this only tells where
        return f"in {entered[-1]}: " if entered and entered[-1] else ""
    finally:
        for hook in hooks:
            hook.remove()
    return ""


def _check_signature(path: Path, module: nn.Module, inputs: Sequence[InputSpec]) -> None:
    signature = inspect.signature(module.forward)
    try:
        signature.bind(**dict.fromkeys(spec.name for spec in inputs))
    except TypeError as error:
        raise UsageError(
            f"the inputs stated for {path} are not those of its module"
            if inputs
            else f"{path} does not say what it takes",
            note=f"{error}; it takes {', '.join(signature.parameters)}",
            remedy=f"State every input: --input '{next(iter(signature.parameters), 'x')}:float32[batch,64]', a name for each "
            "dynamic dimension.",
        ) from error


def _sizes(inputs: Sequence[InputSpec]) -> dict[str, int]:
    """Return another size for every dynamic dimension, the smallest for the batch."""
    names = dict.fromkeys(dim for spec in inputs for dim in spec.dims if isinstance(dim, str))
    batch = {spec.dims[0] for spec in inputs if spec.dims}
    return {name: TRACED_BATCH if name in batch else TRACED_SIZE + i for i, name in enumerate(names)}


def to_onnx(path: Path, program: ExportedProgram, names: Sequence[str] | None = None) -> ir.Model:
    """Convert the program.

    Args:
        path: where it came from, for errors.
        program: what to convert.
        names: of the inputs; None takes those of the program, which torch writes in lower case.

    Raises:
        ActxError: torch cannot convert it.
    """
    import torch  # noqa: PLC0415

    from actx.exporter.load.simplify import simplify  # noqa: PLC0415 - imports onnxscript

    try:
        converted = torch.onnx.export(
            program, input_names=names, dynamo=True, opset_version=OPSET, verbose=False, optimize=False,
            custom_translation_table=translations(),
        )  # fmt: skip
    except Exception as error:
        what = f"torch cannot convert {path} to ONNX"
        remedy = "Rewrite what the note names, or export to ONNX yourself."
        raise ActxError(what, note=_root(error), remedy=remedy) from error
    assert converted is not None
    model: ir.Model = converted.model
    simplify(model)
    _strip(model)
    return model


def _root(error: BaseException) -> str:
    """Return the cause at the bottom: what is above it tells how to report it to torch."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _strip(model: ir.Model) -> None:
    nodes = list(model.graph.all_nodes())
    properties = [model.metadata_props, model.graph.metadata_props]
    properties += [node.metadata_props for node in nodes]
    properties += [value.metadata_props for node in nodes for value in node.outputs]
    for table in properties:
        for key in PRIVATE_METADATA:
            table.pop(key, None)
