"""Constants of elementwise ops that cannot belong to the values they are applied to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actx.exporter.errors import ActxError
from actx.exporter.lift.elementwise import ELEMENTWISE
from actx.exporter.lift.naming import site_names
from actx.exporter.lift.ops import op_of, tensor_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir


def check_parameters(model: ir.Model) -> None:
    """Check that constants fit the values beside them: a slope per channel has as many numbers as there are channels.

    Raises:
        ActxError: one has another number, or none at all.
    """
    for node in model.graph:
        if op_of(node) not in ELEMENTWISE:
            continue
        values = [v for v in node.inputs if v is not None and tensor_of(v) is None]
        for constant in (v for v in node.inputs if v is not None and tensor_of(v) is not None):
            if constant.shape is not None and 0 in constant.shape.dims:
                raise _misfit(node, constant, "it has no elements")
            for value in values:
                axis = _clash(constant, value)
                if axis is not None:
                    raise _misfit(node, constant, f"{_shape(constant)} does not fit {_shape(value)} on axis {axis}")


def _clash(constant: ir.Value, value: ir.Value) -> int | None:
    """Return the last axis, counted from the end, on which the two cannot be broadcast."""
    if constant.shape is None or value.shape is None:
        return None
    pairs = zip(_reversed(constant.shape), _reversed(value.shape), strict=False)
    clashes = (
        -i
        for i, (a, b) in enumerate(pairs, 1)
        if isinstance(a, int) and isinstance(b, int) and a != b and 1 not in {a, b}
    )
    return next(clashes, None)


def _reversed(shape: ir.Shape) -> Iterable[int | ir.SymbolicDim]:
    return reversed(shape.dims)


def _shape(value: ir.Value) -> str:
    assert value.shape is not None
    return "[" + ", ".join(str(d) for d in value.shape.dims) + "]"


def _misfit(node: ir.Node, constant: ir.Value, note: str) -> ActxError:
    (place,) = site_names([[node]])
    return ActxError(
        f"a parameter of {place} does not fit its input",
        note=f"{constant.name}, the constant of {node.op_type}: {note}",
        remedy="Give it one number, or one for each channel.",
    )
