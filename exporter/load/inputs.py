"""Input types, static sizes and named dynamic axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BATCH = "batch"


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """Return name, numpy type and dimensions of the inputs; an axis without a name gets one from its input and place."""
    return tuple(_spec(value) for value in _real_inputs(model))


def _real_inputs(model: ir.Model) -> list[ir.Value]:
    """Return the inputs that a caller must feed: not those with a default among the initializers."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _spec(value: ir.Value) -> InputSpec:
    if value.dtype in {None, ir.DataType.UNDEFINED} or value.shape is None or value.name is None:
        raise ActxError(
            f"the model does not say the type or rank of its input {value.name!r}",
            remedy=f"State it: --input '{value.name}:float32[batch,64]'.",
        )
    assert value.dtype is not None
    dims = tuple(d if isinstance(d, int) else (d.value or f"{value.name}_{i}") for i, d in enumerate(value.shape))
    return InputSpec(value.name, np.dtype(value.dtype.numpy()).name, dims)


def name_batch(model: ir.Model) -> None:
    """Call the first axis of the first input `batch` where the exporter gave it a number of its own."""
    for value in _real_inputs(model)[:1]:
        first = value.shape[0] if value.shape is not None and len(value.shape) else None
        symbol = first.value if isinstance(first, ir.SymbolicDim) else None
        if symbol is not None and symbol[:1] == "s" and symbol[1:].isdigit():
            _rename(model, {symbol: BATCH})


def apply_specs(model: ir.Model, specs: Sequence[InputSpec]) -> None:
    """Give the model's inputs the types and dimensions that the user states.

    Raises:
        UsageError: no such input, another type or rank, or another static size.
    """
    known = {value.name: value for value in _real_inputs(model)}
    renamed: dict[str, str] = {}
    for spec in specs:
        value = known.get(spec.name)
        if value is None:
            raise UsageError(
                f"the model has no input {spec.name!r}",
                note=f"it has {', '.join(map(str, known))}",
                remedy="Name one of these.",
            )
        _check(value, spec)
        for old, new in zip(value.shape or (), spec.dims, strict=value.shape is not None):
            if isinstance(old, ir.SymbolicDim) and old.value is not None and isinstance(new, str):
                renamed[old.value] = new
        if value.dtype is None:
            value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(spec.dtype)))
        value.shape = ir.Shape(spec.dims)
    _rename(model, renamed)


def _check(value: ir.Value, spec: InputSpec) -> None:
    if value.dtype is not None and np.dtype(value.dtype.numpy()) != np.dtype(spec.dtype):
        raise UsageError(
            f"input {spec.name!r} is {np.dtype(value.dtype.numpy()).name}, not {spec.dtype}",
            note=f"--input states {spec}",
            remedy="State the model's own type.",
        )
    if value.shape is None:
        return
    fits = len(value.shape) == len(spec.dims) and all(
        not isinstance(old, int) or old == new for old, new in zip(value.shape, spec.dims, strict=False)
    )
    if not fits:
        raise UsageError(
            f"input {spec.name!r} has the shape {value.shape}, not [{', '.join(map(str, spec.dims))}]",
            note=f"--input states {spec}",
            remedy="State the model's own sizes; a dimension with a name takes any.",
        )


def _rename(model: ir.Model, names: Mapping[str, str]) -> None:
    """Rename symbolic dimensions throughout the graph."""
    if not names:
        return
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in values:
        if value.shape is None or not any(isinstance(d, ir.SymbolicDim) and d.value in names for d in value.shape):
            continue
        value.shape = ir.Shape([d if isinstance(d, int) else names.get(str(d.value), d.value) for d in value.shape])
