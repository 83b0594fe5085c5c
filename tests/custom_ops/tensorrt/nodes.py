"""One node for each way in which a kernel takes its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import ml_dtypes
import numpy as np

from actx.custom_ops.ops import OPS, TensorType
from tests.op_cases import channel_table, gelu_table

if TYPE_CHECKING:
    from actx.custom_ops.ops import Op

Node: TypeAlias = "tuple[Op, list[TensorType | None]]"

FLOAT, HALF, BRAIN, CODE = (np.dtype(name) for name in (np.float32, np.float16, ml_dtypes.bfloat16, np.int8))


def types(dtype: np.dtype[Any], *shapes: tuple[Any, ...] | None) -> list[TensorType | None]:
    return [None if shape is None else TensorType(dtype, shape) for shape in shapes]


def nodes() -> dict[str, Node]:
    """Nodes whose first size is the name "n", by name."""
    table, x = gelu_table(16, 3), ("n", 48)
    return {
        "spline": (OPS["Spline"](table), types(HALF, x, None)),
        "unknown-width": (OPS["Spline"](table), types(FLOAT, ("n", None), None)),
        "product": (OPS["Spline"](table), types(BRAIN, x, x)),
        "channels": (OPS["Spline"](channel_table(1, 48, 1)), types(FLOAT, x, None)),
        "planes": (OPS["Spline"](channel_table(1, 6, 1)), types(FLOAT, ("n", 6, 8), None)),
        "gated": (OPS["GatedSpline"](table), types(HALF, ("n", 96))),
        "pairs": (OPS["GatedSpline"](table, None, -1, "interleaved"), types(HALF, ("n", 96))),
        "outer": (OPS["GatedSpline"](table, None, 1), types(HALF, ("n", 4, 24))),
        "mix": (OPS["SplineMix"]((table,) * 3), types(HALF, x, ("n", 3), None)),
        "mix-product": (OPS["SplineMix"]((table,) * 3), types(HALF, x, ("n", 3), x)),
        "polynorm": (OPS["PolyNorm"](), types(FLOAT, x, (3,), (1,), None)),
        "polynorm-product": (OPS["PolyNorm"](), types(FLOAT, x, (3,), (1,), x)),
        "lut": (OPS["Lut"](tuple(range(-128, 128))), types(CODE, x)),
        "gated-lut": (OPS["GatedLut"]((0.5,) * 256), types(CODE, x, x)),
    }


def sized(inputs: list[TensorType | None], rows: int, cols: int = 48) -> list[TensorType | None]:
    """Return types with numbers for the sizes that were left open."""
    sizes = {"n": rows, None: cols}
    return [t and TensorType(t.dtype, tuple(sizes.get(size, size) for size in t.shape or ())) for t in inputs]
