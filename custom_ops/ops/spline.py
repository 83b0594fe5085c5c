"""`actx::Spline`: a piecewise polynomial of X, times U where U is given.

1. Schema: X [, U] -> Y, all of one float type and one shape; the table is held in attributes (see `Spline`).
2. Reference: float64, then rounded once to the element type.
3. Shape rule: Y has the shape of X.
4. Contract: the largest error of a kernel against the reference, as a multiple of the rounding unit of the element type
   times ``sum_j |c_j| |x - origin|^j``, which bounds what Horner's rule can lose (Higham, Accuracy and Stability of
   Numerical Algorithms, section 5.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TypeProto, defs
from onnx.reference.op_run import OpRun

from actx.custom_ops.spline import Spline

if TYPE_CHECKING:
    from numpy.typing import NDArray

DOMAIN = "actx"
OPSET = 1
OP_TYPE = "Spline"
ELEMENT_TYPES = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")
# 4. Horner's rule of degree n in a format with rounding unit u loses at most 2n u of the sum of magnitudes; the final
# rounding and the product with U add one each.
MAX_ROUNDINGS_PER_DEGREE = 2
EXTRA_ROUNDINGS = 2


def reference(x: NDArray[Any], u: NDArray[Any] | None, spline: Spline) -> NDArray[Any]:
    """Evaluate s(x), or s(x) * u, in float64 and round once to the element type of x.

    Args:
        x: any shape, float32, float16 or bfloat16.
        u: the shape of x, or None.
        spline: the table.

    Raises:
        ValueError: u has another shape than x, or a per-channel table another number of channels.
    """
    if u is not None and u.shape != x.shape:
        msg = f"actx::Spline needs X and U of one shape, got {x.shape} and {u.shape}"
        raise ValueError(msg)
    with np.errstate(over="ignore", invalid="ignore"):
        values = spline(x)
        product = values if u is None else values * u.astype(np.float64)
        return product.astype(x.dtype)


def schema() -> defs.OpSchema:
    """Return the operator schema."""
    attribute = defs.OpSchema.Attribute
    kind = defs.OpSchema.FormalParameterOption
    op = defs.OpSchema(
        OP_TYPE,
        DOMAIN,
        OPSET,
        doc="A piecewise polynomial of X, times U where U is given.",
        inputs=[
            defs.OpSchema.FormalParameter("X", "T", "input"),
            defs.OpSchema.FormalParameter("U", "T", "multiplier of the shape of X", param_option=kind.Optional),
        ],
        outputs=[defs.OpSchema.FormalParameter("Y", "T", "s(X), or s(X) * U")],
        type_constraints=[("T", list(ELEMENT_TYPES), "float types")],
        attributes=[
            attribute("degree", defs.OpSchema.AttrType.INT, "degree of the pieces", required=True),
            attribute("knots", defs.OpSchema.AttrType.FLOATS, "[C,] n - 1 ascending knots", required=True),
            attribute(
                "coefficients", defs.OpSchema.AttrType.FLOATS, "[C,] n, degree + 1 ascending powers", required=True
            ),
            attribute("origins", defs.OpSchema.AttrType.FLOATS, "[C,] n origins of the powers", required=True),
            attribute("axis", defs.OpSchema.AttrType.INT, "channel axis of a per-channel table", required=False),
            attribute("channels", defs.OpSchema.AttrType.INT, "number of channels C of such a table", required=False),
        ],
    )
    op.set_type_and_shape_inference_function(_infer_shape)
    return op


def _infer_shape(context: Any) -> None:
    input_type: TypeProto = context.get_input_type(0)
    context.set_output_type(0, input_type)


class ReferenceSpline(OpRun):
    """Runs the op in onnx's `ReferenceEvaluator`."""

    op_domain = DOMAIN

    def _run(self, x: NDArray[Any], u: NDArray[Any] | None = None, **attributes: Any) -> tuple[NDArray[Any]]:
        return (reference(x, u, Spline.from_attributes(attributes)),)


ReferenceSpline.__name__ = OP_TYPE  # the evaluator finds an op by the name of its class
