"""What is sure of dimensions: sizes, and names that stand for one size each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def equal_dims(a: ir.Value, b: ir.Value) -> bool:
    """Tell whether two values surely have equal dimensions; of a symbolic one its name must be known."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(equal_dim(p, q) for p, q in zip(a.shape, b.shape, strict=True))


def equal_dim(p: int | ir.SymbolicDim, q: int | ir.SymbolicDim) -> bool:
    """Tell whether two dimensions surely are equal; a symbolic one without a name is unlike any other."""
    return p == q and (isinstance(p, int) or p.value is not None)
