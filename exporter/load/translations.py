"""Ops that torch's ONNX exporter does not know, or writes in many more nodes than they need, as ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable

_RANK = 4  # of queries, keys and values


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what `torch.onnx.export` takes as its `custom_translation_table`.

    1. The ops of domain `actx`.
    2. The product that transformers runs experts by, where transformers is imported.
    3. Attention, as a person would write it: torch's exporter swaps the axes of the keys by way of three dimensions, whose
       sizes it computes, scales both factors, and gives a query whose keys are all masked their mean where torch gives 0.
    """
    import torch  # noqa: PLC0415 - slow to import

    from actx.custom_ops.torch_ops import onnx_translations  # noqa: PLC0415 - imports torch

    table = onnx_translations() | {torch.ops.aten.scaled_dot_product_attention.default: attention}
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


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Emit softmax(scale * query @ transposed key + mask) @ value: `torch.nn.functional.scaled_dot_product_attention`.

    Float32 of four dimensions and as many heads of keys as of queries; the rest is torch's: other types overflow where the
    product is scaled after it.

    Args:
        query: [B, H, L, E].
        key: [B, H, S, E].
        value: [B, H, S, F].
        attn_mask: added to the scores, or of booleans, those that count; broadcasts to [B, H, L, S].
        dropout_p: the share of the weights that training sets to zero.
        is_causal: whether a query sees the keys up to its own place.
        scale: of the scores; None for 1 / sqrt(E).
        enable_gqa: whether there may be fewer heads of keys than of queries.

    Returns:
        [B, H, L, F].
    """
    from onnxscript import opset20  # noqa: PLC0415 - slow to import
    from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention  # noqa: PLC0415 - slow to import

    op: Any = opset20  # typed for values, and these are symbols
    size = query.shape[-1]
    chosen = attn_mask is not None and attn_mask.dtype is ir.DataType.BOOL
    floats = [each for each in (query, key, value, None if chosen else attn_mask) if each is not None]
    plain = all(each.dtype is ir.DataType.FLOAT for each in floats) and {len(each.shape) for each in floats[:3]} == {
        _RANK
    }
    grouped = enable_gqa and query.shape[1] != key.shape[1]
    if not plain or grouped or dropout_p or not isinstance(size, int) or (is_causal and attn_mask is not None):
        return aten_scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
    scores = op.Mul(scores, op.Constant(value_float=size**-0.5 if scale is None else scale))
    lowest = op.Constant(value_float=float(np.finfo(np.float32).min))
    if is_causal:
        sizes = op.Concat(op.Shape(query, start=2, end=3), op.Shape(key, start=2, end=3), axis=0)
        attn_mask = op.Trilu(op.Expand(lowest, sizes), op.Constant(value_int=1), upper=1)
    if chosen:
        none = op.Constant(value_float=0.0)
        weights = op.Softmax(op.Add(scores, op.Where(attn_mask, none, lowest)), axis=-1)
        return op.MatMul(op.Where(attn_mask, weights, none), value)
    if attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)
