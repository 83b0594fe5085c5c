"""Attention whose products have codes becomes one `actx::QAttention`, so that nothing of [queries, keys] is stored.

What is replaced, in the graph that `static` wrote: Q, K and V as codes [B, S, heads * size] that Reshape and Transpose make
[B, heads, S, size] of, K with its last two axes swapped; the product of Q and K, a mask added to it or not, the softmax of its
last axis, the product with V; Transpose and Reshape back to [B, S, heads * size], and the QuantizeLinear that alone reads it.
What differs in any of this stays as it is. The op needs no scale for what the softmax gives. Before that, a mask that puts the
least number in the place of scores (`add_masks`) is written as one that is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from actx.custom_ops.ops import DOMAIN, OPSET
from actx.custom_ops.ops.qattention import LARGEST_FACTOR, QAttentionOp
from actx.exporter.lift.ops import op_of, tensor_of
from actx.exporter.linear import ADD, MATMUL
from actx.exporter.lower.emitter import Constants, Emitter, substitute

if TYPE_CHECKING:
    from collections.abc import Iterable

    from actx.exporter.lift.ops import Op

    Dim: TypeAlias = int | ir.SymbolicDim

SOFTMAX, WHERE = ("", "Softmax"), ("", "Where")
_QUANTIZE, _DEQUANTIZE = ("", "QuantizeLinear"), ("", "DequantizeLinear")
_RESHAPE, _TRANSPOSE = ("", "Reshape"), ("", "Transpose")
_HEADS_FIRST, _KEYS_LAST = [0, 2, 1, 3], [0, 2, 3, 1]
_RANK, _SPLIT_RANK = 3, 4  # of values, and of their heads
_HIDDEN = -1e30  # scores of it or less have no weight beside any others


@dataclass(frozen=True)
class _Operand:
    """Q, K or V: its codes [B, rows, heads * size], and what they stand for."""

    rows: ir.Value
    heads: int
    scale: float
    zero_point: int


def fuse_attention(model: ir.Model, constants: Constants) -> None:
    """Replace what there is, in place; values need types and shapes."""
    for node in [node for node in model.graph if op_of(node) == SOFTMAX]:
        _fuse(model.graph, node, constants)
    RemoveUnusedNodesPass()(model)


def add_masks(model: ir.Model) -> None:
    """Write each Where of scores and a number that has no weight as a sum, in place; values need types and shapes."""
    constants = Constants(model.graph)
    for node in [node for node in model.graph if op_of(node) == WHERE]:
        condition, kept, number = node.inputs
        places = [kept, number]
        hidden = [tensor_of(value) for value in places]
        lowest = [
            tensor is not None and tensor.size == 1 and float(tensor.numpy().item()) <= _HIDDEN for tensor in hidden
        ]
        readers = node.outputs[0].consumers()
        if sum(lowest) != 1 or condition is None or {op_of(reader) for reader in readers} != {SOFTMAX}:
            continue
        scores = places[lowest.index(False)]
        if scores is None or not _equal(scores.shape, node.outputs[0].shape) or scores.dtype is not ir.DataType.FLOAT:
            continue
        emit = Emitter(model.graph, constants, node, f"{node.name}/mask", ir.DataType.FLOAT, marked=False)
        mask = emit.op(
            "Where",
            condition,
            *(value if low else 0.0 for value, low in zip(places, lowest, strict=True)),
            dtype=ir.DataType.FLOAT,
        )
        substitute(node.outputs[0], emit.op("Add", scores, mask))
    RemoveUnusedNodesPass()(model)


def _fuse(graph: ir.Graph, softmax: ir.Node, constants: Constants) -> None:
    (scores,) = softmax.inputs
    if scores is None or softmax.attributes.get_int("axis", default=-1) not in {-1, _SPLIT_RANK - 1}:
        return
    product, mask = _masked(scores)
    path = _path(softmax, _QUANTIZE, _DEQUANTIZE, MATMUL, _TRANSPOSE, _RESHAPE, _QUANTIZE)
    first = _made_by(product, MATMUL)
    if first is None or path is None:
        return
    (_, weights, second, turning, rows, quantize), y = path, _pair(path[-1])
    factors = zip([*first.inputs, second.inputs[1]], (_HEADS_FIRST, _KEYS_LAST, _HEADS_FIRST), strict=True)
    q, k, v = (_operand(value, axes) for value, axes in factors)
    back = _heads(rows.outputs[0], turning.outputs[0])
    if q is None or k is None or v is None or y is None or {q.heads, k.heads, v.heads} != {back}:
        return
    if second.inputs[0] is not weights.outputs[0] or _axes(turning) != _HEADS_FIRST:
        return
    scale, output_scale = float(np.float32(q.scale * k.scale)), float(np.float32(v.scale / y[0]))
    if max(scale, output_scale) > LARGEST_FACTOR:
        return
    op = QAttentionOp(q.heads, scale, output_scale, q.zero_point, k.zero_point, v.zero_point, y[1])
    emit = Emitter(graph, constants, quantize, str(softmax.name), ir.DataType.FLOAT, marked=False)
    given = [q.rows, k.rows, v.rows, *([] if mask is None else [mask])]
    codes = emit.op(op.NAME, *given, domain=DOMAIN, dtype=ir.DataType.UINT8, **op.attributes())
    codes.shape = rows.outputs[0].shape
    graph.opset_imports[DOMAIN] = OPSET
    quantize.outputs[0].replace_all_uses_with(codes)


def _masked(scores: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """Return the product in scores, and the mask that is added to it and does not make it larger."""
    adding = _made_by(scores, ADD)
    if adding is not None:
        for product, mask in (adding.inputs, reversed(adding.inputs)):
            same = product is not None and _equal(product.shape, scores.shape) and _made_by(product, MATMUL) is not None
            if same and product is not None and mask is not None and mask.dtype is ir.DataType.FLOAT:
                return product, mask
    return scores, None


def _operand(value: ir.Value | None, order: list[int]) -> _Operand | None:
    node = None if value is None else _made_by(value, _DEQUANTIZE)
    pair = None if node is None else _pair(node)
    codes = None if node is None else node.inputs[0]
    if pair is None or codes is None or codes.dtype is not ir.DataType.UINT8:
        return None
    axes = list(range(_SPLIT_RANK))
    while (turning := _made_by(codes, _TRANSPOSE)) is not None and (source := turning.inputs[0]) is not None:
        axes, codes = [_axes(turning)[axis] for axis in axes], source
    splitting = _made_by(codes, _RESHAPE)
    rows = None if splitting is None else splitting.inputs[0]
    heads = None if rows is None else _heads(rows, codes)
    return _Operand(rows, heads, *pair) if rows is not None and heads is not None and axes == order else None


def _heads(rows: ir.Value, split: ir.Value) -> int | None:
    """Return H where values are surely of [B, R, H * size] and [B, R, H, size]."""
    if rows.shape is None or split.shape is None or (len(rows.shape), len(split.shape)) != (_RANK, _SPLIT_RANK):
        return None
    width, (heads, size) = rows.shape[-1], split.shape[-2:]
    if not (isinstance(width, int) and isinstance(heads, int) and isinstance(size, int)) or heads * size != width:
        return None
    return heads if _equal(rows.shape[:-1], split.shape[:-2]) else None


def _pair(node: ir.Node) -> tuple[float, int] | None:
    """Return the scale and the zero point of Q/DQ with one of each, and codes of uint8."""
    scale, zero_point = (tensor_of(value) for value in node.inputs[1:3]) if len(node.inputs) == 3 else (None, None)
    if scale is None or zero_point is None or scale.size != 1 or zero_point.dtype is not ir.DataType.UINT8:
        return None
    return float(scale.numpy().item()), int(zero_point.numpy().item())


def _axes(turning: ir.Node) -> list[int]:
    return list(turning.attributes.get_ints("perm", default=(3, 2, 1, 0)))


def _made_by(value: ir.Value, op: Op) -> ir.Node | None:
    node = value.producer()
    return node if node is not None and op_of(node) == op else None


def _path(node: ir.Node, *ops: Op) -> list[ir.Node] | None:
    """Return the nodes of these ops of which each alone reads what the one before gives."""
    found: list[ir.Node] = []
    for op in ops:
        (output,) = node.outputs
        readers = [use.node for use in output.uses()]
        if len(readers) != 1 or output.is_graph_output() or op_of(readers[0]) != op:
            return None
        (node,) = readers
        found.append(node)
    return found


def _equal(one: Iterable[Dim] | None, other: Iterable[Dim] | None) -> bool:
    """Tell whether shapes are surely the same."""
    if one is None or other is None:
        return False
    known = [dim if isinstance(dim, int) else dim.value for dim in one]
    return None not in known and known == [dim if isinstance(dim, int) else dim.value for dim in other]
