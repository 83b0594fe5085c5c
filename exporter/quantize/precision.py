"""Decide which nodes of a graph keep computing in float32 when the others compute in float16.

1. What has no float16 in its operator's schema, is of another domain than ONNX's own or actx, or holds a graph in an attribute.
2. Reductions that add up, cumulative sums, and normalisations whose statistics the standard does not keep in float32 (those
   that it does have an attribute `stash_type`); what is summed by nothing but a reduction, and what is computed from its
   result alone: of a normalisation that is written out, all but the scale and the bias at its end.
3. Functions that leave the range of float16, or map its rounding to a large error: Pow, Exp, Log, Sqrt, Reciprocal, and
   angles, with what leads to an angle elementwise.
4. What is computed elementwise from integers and constants alone: positions and masks.
5. A node with a constant that float16 does not hold: an epsilon, a weight beyond 65504.
6. A site of several nodes. A compiler of pointwise kernels fuses them with the Casts around into one kernel.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from actx.custom_ops.ops import DOMAIN, register_schemas
from actx.exporter.lift.elementwise import ELEMENTWISE
from actx.exporter.lift.ops import LAYOUT, op_of, standard, tensor_of
from actx.exporter.lower.emitter import SITE_METADATA

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from actx.exporter.lift.ops import Op

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_normal)

WIDE, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

REDUCTIONS = standard(
    "ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd",
    "GlobalAveragePool", "CumSum",
)  # fmt: skip
# Their statistics are sums over many elements.
STATISTICS = standard(
    "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "LpNormalization",
    "MeanVarianceNormalization",
)  # fmt: skip
ANGLES = standard("Sin", "Cos", "Tan")
WIDE_RANGE = ANGLES | standard("Pow", "Exp", "Log", "Sqrt", "Reciprocal")
MOVES = LAYOUT | standard(
    "Concat", "Expand", "Gather", "GatherElements", "GatherND", "Pad", "Slice", "Split", "Tile", "Trilu",
)  # fmt: skip
POINTWISE = frozenset(ELEMENTWISE) | MOVES
# A constant so large that float16 does not hold it means "never" here.
SELECTIONS = standard("Add", "Sub", "Sum", "Where", "Max", "Min", "Clip")
# The input by whose elements, or their roots, the op divides or scales: here each counts, and not only the largest.
DIVISORS: Mapping[Op, int] = {
    ("", "Div"): 1, ("", "QuantizeLinear"): 1, ("", "DequantizeLinear"): 1, ("", "BatchNormalization"): 4,
}  # fmt: skip


class Numbers:
    """What numbers a float32 constant holds, looked at once."""

    def __init__(self, tensor: ir.TensorProtocol) -> None:
        array = tensor.numpy()
        ends = [0.0] if array.size == 0 else [float(array.min()), float(array.max())]
        if not np.isfinite(ends).all():
            array = array[np.isfinite(array)]
            ends = [0.0] if array.size == 0 else [float(array.min()), float(array.max())]
        self.largest = max(map(abs, ends))
        self._array = array

    @property
    def too_large(self) -> bool:
        """Whether a finite one of them is beyond float16."""
        return self.largest > LARGEST

    @property
    def too_small(self) -> bool:
        """Whether all of it, but zeros, is smaller than float16 holds in full precision."""
        return 0 < self.largest < SMALLEST

    @property
    def partly_too_small(self) -> bool:
        """Whether one of them, but zeros, is smaller than float16 holds in full precision."""
        size = np.abs(self._array)
        return bool(((size > 0) & (size < SMALLEST)).any())


@dataclass
class Precision:
    """Which nodes compute in float32.

    Attributes:
        graph: what is typed.
        wide: the nodes that compute in float32.
        angular: the nodes that lead to angles alone (3).
        exact: values computed from integers and constants alone (4).
        masks: float32 values that hold finite numbers beyond float16, which stand for "never".
        reduced: values computed from the results of reductions and from tiny constants (2, 5).
    """

    graph: ir.Graph
    wide: set[ir.Node] = field(default_factory=set)
    angular: set[ir.Node] = field(default_factory=set)
    exact: set[ir.Value] = field(default_factory=set)
    masks: set[ir.Value] = field(default_factory=set)
    reduced: set[ir.Value] = field(default_factory=set)
    ranges: dict[ir.Value, Numbers] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: ir.Graph) -> Precision:
        """Decide for every node of a graph, which is not changed."""
        plan = cls(graph)
        counts = Counter(node.metadata_props.get(SITE_METADATA) for node in graph)
        for node in graph:
            site = node.metadata_props.get(SITE_METADATA)
            if (site is not None and counts[site] > 1) or plan._needs_float32(node):
                plan.wide.add(node)
        for node in reversed(graph):
            if plan._feeds_wide(node):
                plan.wide.add(node)
        for node in graph:
            plan._follow(node)
        return plan

    def range_of(self, value: ir.Value) -> Numbers | None:
        """Return the numbers of a float32 constant, None for any other value."""
        tensor = tensor_of(value)
        if tensor is None or value.dtype is not WIDE:
            return None
        if value not in self.ranges:
            self.ranges[value] = Numbers(tensor)
        return self.ranges[value]

    def _constants(self, node: ir.Node) -> list[Numbers]:
        found = (self.range_of(value) for value in node.inputs if value is not None)
        return [numbers for numbers in found if numbers is not None]

    def _variables(self, node: ir.Node) -> list[ir.Value]:
        return [v for v in _floats(node.inputs) if tensor_of(v) is None]

    def _needs_float32(self, node: ir.Node) -> bool:
        """1, 2, 3, 5: what the node itself says."""
        op = op_of(node)
        schema = schema_of(node, self.graph)
        if schema is None or any(True for _ in nodes_of_bodies(node)):
            return True
        if op in REDUCTIONS or op in WIDE_RANGE or (op in STATISTICS and "stash_type" not in schema.attributes):
            return True
        divisor = node.inputs[DIVISORS[op]] if op in DIVISORS else None
        scales = None if divisor is None else self.range_of(divisor)
        if scales is not None and scales.partly_too_small:
            return True
        constants = self._constants(node)
        if any(numbers.too_large for numbers in constants) and op not in SELECTIONS:
            return True
        return op in POINTWISE and any(numbers.too_small for numbers in constants)

    def _feeds_wide(self, node: ir.Node) -> bool:
        """2, 3: what only a reduction sums, or only leads to an angle; asked in reverse order."""
        if op_of(node) not in POINTWISE or SITE_METADATA in node.metadata_props or not _floats(node.outputs):
            return False
        readers = node.outputs[0].consumers()
        if not readers or node.outputs[0].is_graph_output():
            return False
        if all(op_of(reader) in ANGLES or reader in self.angular for reader in readers):
            self.angular.add(node)
            return True
        return all(op_of(reader) in REDUCTIONS for reader in readers)

    def _follow(self, node: ir.Node) -> None:
        """Carry on what a value is made of, in topological order."""
        outputs = _floats(node.outputs)
        variables = self._variables(node)
        if not outputs:
            if any(self._is_wide(value) for value in variables):
                self.wide.add(node)
            return
        constants = self._constants(node)
        op = op_of(node)
        pointwise = op in POINTWISE and SITE_METADATA not in node.metadata_props
        if self._is_exact(node, variables, constants):
            self.wide.add(node)
            self.exact.update(outputs)
        elif op in REDUCTIONS or (pointwise and any(numbers.too_small for numbers in constants)):
            self.reduced.update(outputs)
        elif pointwise and any(value in self.reduced for value in variables):
            self.wide.add(node)
            if all(value in self.reduced or value in self.exact for value in variables):
                self.reduced.update(outputs)
        large = any(numbers.too_large for numbers in constants) and (op in SELECTIONS or outputs[0] in self.exact)
        if pointwise and node in self.wide and (large or any(value in self.masks for value in variables)):
            self.masks.update(outputs)

    def _is_exact(self, node: ir.Node, variables: list[ir.Value], constants: list[Numbers]) -> bool:
        """4. A part of a weight, or a row that is looked up in one, is none of these."""
        op = op_of(node)
        if variables:
            return op in POINTWISE and all(value in self.exact for value in variables)
        moved = op in MOVES or op == ("", "DequantizeLinear")
        return not (moved and constants and not any(numbers.too_large for numbers in constants))

    def _is_wide(self, value: ir.Value) -> bool:
        """Tell whether the value is stored in float32."""
        node = value.producer()
        if node is None or node in self.wide:
            return True
        return not takes_half(schema_of(node, self.graph), node.outputs.index(value), output=True)


def _floats(values: Iterable[ir.Value | None]) -> list[ir.Value]:
    return [value for value in values if value is not None and value.dtype is WIDE]


def nodes_of_bodies(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes of the graphs that the node has in its attributes, at any depth."""
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif attribute.type is ir.AttributeType.GRAPHS:
            for body in attribute.as_graphs():
                yield from body.all_nodes()


def schema_of(node: ir.Node, graph: ir.Graph) -> onnx.defs.OpSchema | None:
    """Return the schema of an op of ONNX's own domain or of actx, None for any other."""
    domain, op_type = op_of(node)
    if domain not in {"", DOMAIN}:
        return None
    register_schemas()
    version = graph.opset_imports.get(domain, 0)
    return onnx.defs.get_schema(op_type, version, domain) if onnx.defs.has(op_type, version, domain) else None


def takes_half(schema: onnx.defs.OpSchema | None, index: int, *, output: bool = False) -> bool:
    """Tell whether the input, or output, at an index may be float16."""
    formals = [] if schema is None else schema.outputs if output else schema.inputs
    return bool(formals) and "tensor(float16)" in formals[min(index, len(formals) - 1)].types
