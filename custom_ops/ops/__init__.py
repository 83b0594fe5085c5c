"""The ops of domain `actx`: one file each, with schema, float64 reference, shape rule and accuracy contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import defs

from actx.custom_ops.ops.gated_lut import GatedLutOp
from actx.custom_ops.ops.gated_spline import GatedSplineOp
from actx.custom_ops.ops.lut import LutOp
from actx.custom_ops.ops.op import DOMAIN, OPSET, Op, TensorType
from actx.custom_ops.ops.polynorm import PolyNormOp
from actx.custom_ops.ops.qattention import QAttentionOp
from actx.custom_ops.ops.qlinear import QLinearOp, QLinearToFloatOp
from actx.custom_ops.ops.spline import SplineOp
from actx.custom_ops.ops.spline_mix import SplineMixOp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx.reference.op_run import OpRun

__all__ = ["DOMAIN", "OPS", "OPSET", "Op", "TensorType", "reference_ops", "register_schemas"]

OPS: Mapping[str, type[Op]] = {
    op.NAME: op
    for op in (
        SplineOp,
        GatedSplineOp,
        SplineMixOp,
        PolyNormOp,
        LutOp,
        GatedLutOp,
        QAttentionOp,
        QLinearOp,
        QLinearToFloatOp,
    )
}


def reference_ops() -> list[type[OpRun]]:
    """Return the ops as onnx's `ReferenceEvaluator` takes them, in its argument `new_ops`."""
    return [op.reference_op() for op in OPS.values()]


def register_schemas() -> None:
    """Make the ops known to onnx's checker and shape inference, once."""
    for op in OPS.values():
        if not defs.has(op.NAME, DOMAIN):
            defs.register_schema(op.schema())
