"""Tables that rows are gathered from, such as embeddings, in 8 bits: they cost a lookup, and no sum averages their errors.

1. They are the constant float32 matrices of at least 16 rows and columns that a Gather takes rows of.
2. ``blocks`` is ``com.microsoft::GatherBlockQuantized`` (ONNX Runtime's contributed operators), with a scale for each 32
   numbers of a row. ``dequantize`` is DequantizeLinear of the table, with a scale per row, in front of the Gather: a compiler
   moves it behind.
3. A table that several nodes look up in is stored once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from actx.exporter.lift.ops import MICROSOFT, op_of, tensor_of
from actx.exporter.quantize.blocks import Blocks, encode
from actx.exporter.quantize.placement import add_initializer
from actx.exporter.quantize.products import is_matrix, matrix_of, name_of, replace_node

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

LookupStyle: TypeAlias = Literal["blocks", "dequantize"]

BITS = 8
BLOCK = 32
SMALLEST = 16  # rows and columns
SETTINGS = {"bits": BITS, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}


def find_lookups(graph: ir.Graph, exclude: Collection[str] = ()) -> list[ir.Node]:
    """Return the nodes that gather rows of a table (1) and are not left out by name."""
    return [node for node in graph if _is_lookup(node) and name_of(node) not in exclude]


def table_of(lookup: ir.Node) -> ir.Value:
    """Return what a node looks up in."""
    value = lookup.inputs[0]
    assert value is not None
    return value


def table_blocks(matrix: NDArray[np.float32]) -> Blocks:
    """Return the codes of a table (2).

    Raises:
        ActxError: a number is not finite.
    """
    return encode(matrix, BLOCK, bits=BITS, symmetric=True)


@dataclass
class Lookups:
    """Writes lookups into one graph.

    Attributes:
        graph: changed in place; what nothing reads any more is left in it.
        style: how (2).
        tables: what is read in the place of each table.
    """

    graph: ir.Graph
    style: LookupStyle
    tables: dict[ir.Value, list[ir.Value]] = field(default_factory=dict)

    def write(self, lookup: ir.Node) -> None:
        """Write one.

        Raises:
            ActxError: a number of its table is not finite.
        """
        table = table_of(lookup)
        if table not in self.tables:
            self.tables[table] = self._codes(table) if self.style == "blocks" else [self._dequantized(table)]
        first, *scales = self.tables[table]
        if not scales:
            lookup.replace_input_with(0, first)
            return
        inner = [first, lookup.inputs[1], *scales]
        node = ir.node("GatherBlockQuantized", inner, SETTINGS, domain=MICROSOFT, name=name_of(lookup))
        replace_node(self.graph, lookup, [node])

    def _codes(self, table: ir.Value) -> list[ir.Value]:
        blocks = table_blocks(matrix_of(table))
        codes = blocks.codes.reshape(len(blocks.codes), -1)[:, : blocks.columns]
        self.graph.opset_imports.setdefault(MICROSOFT, 1)
        return self._constants(table, codes, blocks.scales)

    def _dequantized(self, table: ir.Value) -> ir.Value:
        matrix = matrix_of(table)
        blocks = encode(matrix, matrix.shape[1], bits=BITS, symmetric=True)
        codes = (blocks.codes[:, 0].astype(np.int16) - 2 ** (BITS - 1)).astype(np.int8)
        inner = self._constants(table, codes, blocks.scales[:, 0])
        node = ir.node("DequantizeLinear", inner, {"axis": 0}, name=f"{table.name}/actx/table/dequantized")
        value = node.outputs[0]
        value.name, value.type, value.shape = node.name, table.type, table.shape
        self.graph.insert_before(self.graph[0], node)
        return value

    def _constants(
        self, table: ir.Value, codes: NDArray[np.uint8 | np.int8], scales: NDArray[np.float32]
    ) -> list[ir.Value]:
        arrays = {"codes": codes, "scales": scales}
        return [
            add_initializer(self.graph, ir.tensor(np.ascontiguousarray(array), name=f"{table.name}/actx/table/{word}"))
            for word, array in arrays.items()
        ]


def _is_lookup(node: ir.Node) -> bool:
    if op_of(node) != ("", "Gather") or node.attributes.get_int("axis", 0) != 0:
        return False
    table = tensor_of(node.inputs[0])
    return table is not None and is_matrix(node.inputs[0]) and min(table.shape.numpy()) >= SMALLEST
