"""Types of all values, without which no value can be given another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import ShapeInferencePass

from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir


def infer_types(model: ir.Model) -> None:
    """Infer, in place, the types that a graph lacks.

    Raises:
        ActxError: the type of a value is not known and cannot be inferred.
    """
    if not any(_untyped(model)):
        return
    ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for value in _untyped(model):
        node = value.producer()
        assert node is not None
        raise ActxError(
            f"the type of {value.name} is not known",
            note=f"{node.op_type} {node.name} gives it, and type inference stops there",
            remedy="Export the model with the types of its values.",
        )


def _untyped(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the values without a type, but the outputs that a node leaves out."""
    return (v for node in model.graph for v in node.outputs if v.type is None and (v.name or v.consumers()))
