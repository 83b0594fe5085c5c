"""Write numbers that a graph computes of sizes it knows, or copies, as the numbers they are.

Exporters compute the halves of a tensor, or the ones that a sum begins with, of the shape of a value, known or not.

1. Dimensions that are known, taken out of a Shape by Gather or Slice, and arithmetic of integers on these.
2. The parts of a constant that Split gives.
3. A fill of the shape of one value, computed or stored, beside an operand of that shape in an elementwise op: it is a number
   there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from actx.exporter.lift.dims import equal_dims
from actx.exporter.lift.elementwise import ELEMENTWISE, MAX_CONSTANT
from actx.exporter.lift.ops import SPLIT, op_of
from actx.exporter.lift.regions import constant_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHAPE, _GATHER, _SLICE = ("", "Shape"), ("", "Gather"), ("", "Slice")
_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}
_FILLS = {("", "Expand"), ("", "ConstantOfShape")}


def fold_numbers(model: ir.Model) -> bool:
    """Fold in place, types and shapes inferred, and tell whether anything was: shapes are then to be inferred again."""
    folding = _Folding(model.graph)
    for node in list(model.graph):
        folding.fold(node)
    if folding.folded:
        RemoveUnusedNodesPass()(model)
    return folding.folded


class _Folding:
    def __init__(self, graph: ir.Graph) -> None:
        self.folded = False
        self._graph = graph
        self._known: dict[ir.Value, NDArray[Any] | None] = {}
        self._dims: dict[ir.Value, list[int | None]] = {}  # of what a Shape gives

    def fold(self, node: ir.Node) -> None:
        """Fold one node; those before it are folded."""
        op = op_of(node)
        if not node.outputs or not node.inputs or node.inputs[0] is None:
            return
        if op == _SHAPE:
            self._shape(node)
        elif op == SPLIT:
            self._split(node)
        elif op in _FILLS:
            self._fill(node)
        elif node.inputs[0] in self._dims:
            self._part_of_a_shape(node)
        elif op in ELEMENTWISE and node.outputs[0].dtype not in _INTEGERS:
            self._stored_fill(node)
        elif node.outputs[0].dtype in _INTEGERS:
            self._replace(node.outputs[0], constant_of(node.outputs[0], self._known))

    def _shape(self, node: ir.Node) -> None:
        """1."""
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        if source.shape is None:
            return
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(source.shape))
        dims = [dim if isinstance(dim, int) else None for dim in source.shape[start:end]]
        self._dims[output] = dims
        self._known_dims(output, dims)

    def _part_of_a_shape(self, node: ir.Node) -> None:
        """1."""
        dims, output = self._dims[node.inputs[0]], node.outputs[0]  # type: ignore[index]
        given = [None if v is None else constant_of(v, self._known) for v in node.inputs[1:]]
        if any(array is None for array in given):
            return
        places = [int(array.reshape(-1)[0]) for array in given if array is not None and array.size == 1]
        if op_of(node) == _GATHER and len(places) == 1 and -len(dims) <= places[0] < len(dims):
            picked = dims[places[0]]
            if picked is not None and given[0] is not None:
                self._replace(output, np.full(given[0].shape, picked, np.int64))
        elif op_of(node) == _SLICE and len(places) == len(given) and (len(places) < 4 or places[3] == 1):
            self._known_dims(output, dims[places[0] : places[1]])

    def _known_dims(self, value: ir.Value, dims: list[int | None]) -> None:
        self._dims[value] = dims
        if all(dim is not None for dim in dims):
            self._replace(value, np.array(dims, np.int64))

    def _split(self, node: ir.Node) -> None:
        """2."""
        array = constant_of(node.inputs[0], self._known)  # type: ignore[arg-type]
        sizes = (
            constant_of(node.inputs[1], self._known) if len(node.inputs) > 1 and node.inputs[1] is not None else None
        )
        if array is None or (len(node.inputs) > 1 and sizes is None):
            return
        places = len(node.outputs) if sizes is None else np.cumsum(sizes.reshape(-1))[:-1]
        try:
            parts = np.split(array, places, node.attributes.get_int("axis", 0))
        except ValueError:  # parts of unequal size, or an axis that is not there: the runtime will say so
            return
        for output, part in zip(node.outputs, parts, strict=False):
            self._replace(output, part)

    def _fill(self, node: ir.Node) -> None:
        """3."""
        output = node.outputs[0]
        shape = node.inputs[1 if op_of(node) == ("", "Expand") else 0]
        maker = None if shape is None else shape.producer()
        number = self._number(node)
        if number is None or maker is None or not _is_whole_shape(maker):
            return
        like = maker.inputs[0]
        source = node.inputs[0] if op_of(node) == ("", "Expand") else None
        rank = 0 if source is None or source.shape is None else len(source.shape)
        if like is None or like.shape is None or rank > len(like.shape):  # the fill has a dimension more than the shape
            return
        for use in list(output.uses()):
            others = [v for i, v in enumerate(use.node.inputs) if v is not None and i != use.idx]
            same = [v for v in others if v is like or equal_dims(v, like)]
            if op_of(use.node) in ELEMENTWISE and same and output not in others:
                use.node.replace_input_with(use.idx, self._initializer(output, number))
                self.folded = True

    def _stored_fill(self, node: ir.Node) -> None:
        """3."""
        for i, value in enumerate(node.inputs):
            array = None if value is None else constant_of(value, self._known)
            if value is None or array is None or array.size < 2 or not bool((array == array.reshape(-1)[0]).all()):
                continue
            others = (v for v in node.inputs if v is not None and constant_of(v, self._known) is None)
            if any(v.shape is not None and tuple(v.shape.dims) == array.shape for v in others):
                node.replace_input_with(i, self._initializer(value, array.reshape(-1)[0].reshape(())))
                self.folded = True

    def _number(self, node: ir.Node) -> NDArray[Any] | None:
        if op_of(node) == ("", "ConstantOfShape"):
            value = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.float32(0)
            return np.asarray(value).reshape(())
        array = constant_of(node.inputs[0], self._known)  # type: ignore[arg-type]
        return array.reshape(()) if array is not None and array.size == 1 else None

    def _replace(self, value: ir.Value, array: NDArray[Any] | None) -> None:
        if array is None or value.is_graph_output() or array.size > MAX_CONSTANT or not value.uses():
            return
        new = self._initializer(value, array)
        self._known[new] = array
        value.replace_all_uses_with(new)
        self.folded = True

    def _initializer(self, value: ir.Value, array: NDArray[Any]) -> ir.Value:
        name = f"{value.name}/number"
        while name in self._graph.initializers:
            name += "_"
        tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), dtype=value.dtype, name=name)
        new = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        self._graph.register_initializer(new)
        return new


def _is_whole_shape(node: ir.Node) -> bool:
    return op_of(node) == _SHAPE and node.attributes.get_int("start", 0) == 0 and "end" not in node.attributes
