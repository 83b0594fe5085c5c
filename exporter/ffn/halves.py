"""Recognise two values as the two halves of one, however an exporter wrote that.

1. Each value is followed back to the elements of one axis that it holds: an output of Split, a Slice with constant ends, and,
   where a Reshape gave the halves an axis of their own, a Gather of one element there or a Squeeze of such a part.
2. The two are halves if they hold all of one axis of one value, one after the other or in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from actx.exporter.lift.ops import SPLIT, op_of, tensor_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

Layout: TypeAlias = Literal["split", "interleaved"]

SLICE, GATHER, SQUEEZE, RESHAPE = ("", "Slice"), ("", "Gather"), ("", "Squeeze"), ("", "Reshape")


@dataclass(frozen=True)
class Halves:
    """Where two values, the gate and the other half, come from.

    Attributes:
        packed: the value that holds both.
        axis: the axis of both halves, counted from the end.
        layout: one after the other, or in turn.
        gate: which of them is the gate, 0 or 1.
    """

    packed: ir.Value
    axis: int
    layout: Layout
    gate: int


@dataclass(frozen=True)
class _Part:
    """The elements `places` of an axis, counted from the end, of a value that has `size` of them there."""

    whole: ir.Value
    axis: int
    places: range
    size: int


def find_halves(gate: ir.Value, other: ir.Value) -> Halves | None:
    """Return what two values are the halves of, None where they surely are not, or not known to be."""
    first, second = _part(gate), _part(other)
    if first is None or second is None or first.whole is not second.whole or first.axis != second.axis:
        return None
    half = first.size // 2
    pairs: tuple[tuple[Layout, tuple[range, range]], ...] = (
        ("split", (range(half), range(half, 2 * half))),
        ("interleaved", (range(0, 2 * half, 2), range(1, 2 * half, 2))),
    )
    found = (first.places, second.places)
    for layout, pair in pairs:
        if half and first.size == 2 * half and found in {pair, pair[::-1]}:
            return Halves(first.whole, first.axis, layout, int(found != pair))
    return None


def _part(value: ir.Value) -> _Part | None:
    """1."""
    node = value.producer()
    if node is None:
        return None
    op = op_of(node)
    if op in {SPLIT, SLICE}:
        return _cut(value)
    if op == GATHER:
        return _stacked(_gathered(node))
    if op == SQUEEZE and node.inputs[0] is not None:
        part, axes = _cut(node.inputs[0]), _integers(node, 1)
        same = part is not None and len(part.places) == 1 and axes is not None and len(axes) == 1
        return _stacked(part) if same and part is not None and _from_end(part.whole, axes) == part.axis else None
    return None


def _cut(value: ir.Value) -> _Part | None:
    """Return what a Split or a Slice holds of its input."""
    node = value.producer()
    if node is None or op_of(node) not in {SPLIT, SLICE}:
        return None
    return _of_split(node, value.index() or 0) if op_of(node) == SPLIT else _of_slice(node)


def _of_split(node: ir.Node, index: int) -> _Part | None:
    whole = node.inputs[0]
    axis = _from_end(whole, [node.attributes.get_int("axis", 0)])
    if whole is None or axis is None:
        return None
    sizes = _integers(node, 1)
    if sizes is None:
        sizes = [_size(output, axis) or 0 for output in node.outputs]
    if not all(sizes):
        return None
    ends = [0, *accumulate(sizes)]
    return _Part(whole, axis, range(ends[index], ends[index + 1]), ends[-1])


def _of_slice(node: ir.Node) -> _Part | None:
    whole = node.inputs[0]
    starts, ends, axes, steps = (_integers(node, i) for i in range(1, 5))
    if starts is None or ends is None or len(starts) != 1 or (len(node.inputs) > 4 and steps is None):
        return None
    axis = _from_end(whole, axes)
    size = None if whole is None or axis is None else _size(whole, axis)
    if whole is None or axis is None or size is None:
        return None
    return _Part(whole, axis, range(size)[starts[0] : ends[0] : (steps or [1])[0]], size)


def _gathered(node: ir.Node) -> _Part | None:
    """Return the one element that a Gather with a scalar index takes, and so the axis that it removes."""
    whole, index = node.inputs[0], tensor_of(node.inputs[1])
    axis = _from_end(whole, [node.attributes.get_int("axis", 0)])
    if whole is None or index is None or axis is None or len(index.shape) > 0:
        return None
    size, place = _size(whole, axis), int(index.numpy())
    return None if size is None else _Part(whole, axis, range(size)[place : place + 1 or None], size)


def _stacked(part: _Part | None) -> _Part | None:
    """Follow one of two elements of an axis that a Reshape made of another back to that one."""
    node = None if part is None else part.whole.producer()
    if part is None or node is None or op_of(node) != RESHAPE or part.size != 2 or len(part.places) != 1:
        return None
    whole, after = node.inputs[0], part.whole.shape
    if whole is None or whole.shape is None or after is None or len(after) != len(whole.shape) + 1:
        return None
    index, place = len(after) + part.axis, part.places[0]
    for axis, width in ((index - 1, index - 1), (index, index + 1)):  # interleaved, split
        half = after[width] if 0 <= width < len(after) else None
        if not isinstance(half, int) or whole.shape[axis] != 2 * half:
            continue
        if not _agree([*whole.shape[:axis], *whole.shape[axis + 1 :]], [*after[:axis], *after[axis + 2 :]]):
            continue
        places = range(place, 2 * half, 2) if width < index else range(place * half, (place + 1) * half)
        return _Part(whole, axis - len(whole.shape), places, 2 * half)
    return None


def _agree(before: Sequence[int | ir.SymbolicDim], after: Sequence[int | ir.SymbolicDim]) -> bool:
    """Tell whether sizes are pairwise equal, given that their products are: then one of them need not be known."""
    pairs = [
        (p, q) for p, q in zip(before, after, strict=True) if p != q or (not isinstance(p, int) and p.value is None)
    ]
    return len(pairs) <= 1 and not any(isinstance(p, int) and isinstance(q, int) for p, q in pairs)


def _integers(node: ir.Node, index: int) -> list[int] | None:
    """Return a constant input, None where it is missing or not constant."""
    tensor = tensor_of(node.inputs[index]) if len(node.inputs) > index else None
    return None if tensor is None else [int(number) for number in np.atleast_1d(tensor.numpy())]


def _from_end(value: ir.Value | None, axes: Sequence[int] | None) -> int | None:
    """Count the one axis from the end; None where there are others or the rank is needed and not known."""
    if value is None or axes is None or len(axes) != 1:
        return None
    (axis,) = axes
    if axis < 0:
        return axis
    return None if value.shape is None else axis - len(value.shape)


def _size(value: ir.Value, axis: int) -> int | None:
    size = None if value.shape is None or len(value.shape) < -axis else value.shape[axis]
    return size if isinstance(size, int) else None
