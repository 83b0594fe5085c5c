"""The ops of domain `actx`: one file each, with schema, float64 reference, shape rule and accuracy contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import defs

from actx.custom_ops.ops import spline

if TYPE_CHECKING:
    from onnx.reference.op_run import OpRun

DOMAIN = spline.DOMAIN
OPSET = spline.OPSET

OPS = (spline,)


def reference_ops() -> list[type[OpRun]]:
    """Return the ops as onnx's `ReferenceEvaluator` takes them, in its argument `new_ops`."""
    return [op.ReferenceSpline for op in OPS]


def register_schemas() -> None:
    """Make the ops known to onnx's checker and shape inference, once."""
    for op in OPS:
        if not defs.has(op.OP_TYPE, DOMAIN):
            defs.register_schema(op.schema())
