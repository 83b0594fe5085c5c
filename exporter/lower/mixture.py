"""Write mixtures: the gates as one tensor for `actx::SplineMix`, or the sum of the entries as standard ops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from actx.exporter.lower.portable import emit_spline

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actx.custom_ops import Spline
    from actx.exporter.lift import Column, Site
    from actx.exporter.lower.emitter import Emitter

_SHAPE_HAS_AN_END = 15  # from this opset on


def emit_mixture(emit: Emitter, values: Mapping[str, ir.Value], site: Site, entries: Sequence[Spline]) -> ir.Value:
    """Insert the sum of the entries times their gates."""
    x = values[site.input]
    total: ir.Value | None = None
    for column, entry in zip(site.columns, entries, strict=True):
        part = emit.part()
        term = emit.op("Mul", emit_spline(part, x, entry), _column(emit, values, column))
        emit.values += part.values
        total = term if total is None else emit.op("Add", total, term)
    assert total is not None
    return total


def emit_gates(emit: Emitter, values: Mapping[str, ir.Value], site: Site) -> tuple[list[int], ir.Value]:
    """Insert what makes one tensor [..., E] of the gates, with the leading dimensions of the site's input.

    Returns:
        The order of the entries that the tensor's columns are for, and the tensor.
    """
    indices = [column.index for column in site.columns]
    order, source = list(range(len(indices))), values[site.columns[0].value]
    if len(site.operands) == 1 and source.shape is not None and sorted(indices) == list(range(_last(source))):
        order, gates = sorted(order, key=indices.__getitem__), source
    else:
        gates = emit.op("Concat", *(_column(emit, values, column) for column in site.columns), axis=-1)
        gates.shape = None if source.shape is None else ir.Shape([*source.shape.dims[:-1], len(indices)])
    return order, _expanded(emit, gates, values[site.input])


def _column(emit: Emitter, values: Mapping[str, ir.Value], column: Column) -> ir.Value:
    source = values[column.value]
    if source.shape is not None and _last(source) == 1:
        return source
    return emit.slice(source, -1, column.index, column.index + 1)


def _last(value: ir.Value) -> int:
    assert value.shape is not None
    size = value.shape[-1]
    assert isinstance(size, int)
    return size


def _expanded(emit: Emitter, gates: ir.Value, x: ir.Value) -> ir.Value:
    """Repeat gates that tokens share, unless the leading dimensions surely are those of x."""
    if gates.shape is not None and x.shape is not None and _are_equal(gates.shape[:-1], x.shape[:-1]):
        return gates
    if emit.opset >= _SHAPE_HAS_AN_END:
        lead = emit.op("Shape", x, dtype=ir.DataType.INT64, end=-1)
    else:
        whole = emit.op("Shape", x, dtype=ir.DataType.INT64)
        lead = emit.slice(whole, 0, 0, -1)
    lead.shape = None if x.shape is None else ir.Shape([len(x.shape) - 1])
    width = 1 if gates.shape is None else _last(gates)
    shape = emit.op("Concat", lead, emit.integers(width), axis=0)
    shape.shape = None if x.shape is None else ir.Shape([len(x.shape)])
    repeated = emit.op("Expand", gates, shape)
    repeated.shape = None if x.shape is None else ir.Shape([*x.shape.dims[:-1], width])
    return repeated


def _are_equal(first: Sequence[int | ir.SymbolicDim], second: Sequence[int | ir.SymbolicDim]) -> bool:
    """Tell whether the dimensions surely are equal; a symbolic one without a name is unlike any other."""
    return len(first) == len(second) and all(
        p == q and (isinstance(p, int) or p.value is not None) for p, q in zip(first, second, strict=True)
    )
