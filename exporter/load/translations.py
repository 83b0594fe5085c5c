"""Ops that torch's ONNX exporter does not know, as ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what `torch.onnx.export` takes as its `custom_translation_table`.

    1. The ops of domain `actx`.
    2. The product that transformers runs experts by, where transformers is imported.
    """
    import torch  # noqa: PLC0415 - slow to import

    from actx.custom_ops.torch_ops import onnx_translations  # noqa: PLC0415 - imports torch

    table = onnx_translations()
    experts = getattr(torch.ops.transformers, "grouped_mm_fallback", None)
    return table if experts is None else table | {experts.default: grouped_product}


def grouped_product(rows: Any, weights: Any, ends: Any) -> Any:
    """Emit one MatMul per group: a gather of weights, one for each row, would copy an expert for each token.

    Args:
        rows: float [M, K], sorted by group.
        weights: float [G, K, N].
        ends: integers [G], the row that each group ends before.

    Returns:
        float [M, N].
    """
    from onnxscript import opset20  # noqa: PLC0415 - slow to import

    op: Any = opset20  # typed for values, and these are symbols
    ends = op.Cast(ends, to=7)  # int64
    begin = op.Constant(value_ints=[0])
    products = []
    for group in range(weights.shape[0]):
        end = op.Gather(ends, op.Constant(value_ints=[group]), axis=0)
        weight = op.Gather(weights, op.Constant(value_int=group), axis=0)
        products.append(op.MatMul(op.Slice(rows, begin, end), weight))
        begin = end
    return op.Concat(*products, axis=0)
