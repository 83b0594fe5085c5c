"""Type a graph in float16, as a strongly typed runtime takes it: the types of the values say what computes in which type.

Every node that takes or gives float32 computes in float16, but for those that `precision` keeps in float32. Values keep their
names, and the graph's inputs and outputs their types. A Cast stands where the type changes, once per value, and is named
after what it casts.

A finite number beyond float16 must not become infinite: where it stands for "never" in a sum or a selection, and where a
mask leaves its float32, it is cut to ±`NEVER`. An infinite one stays infinite.

`onnxruntime.transformers.float16` is not used: it takes the model as one message with all weights in memory, knows no sites,
makes an epsilon of 1e-12 the smallest float16, cuts masks to what overflows once a score is added, and writes a graph that
declares one name twice where two ops that it is told to leave in float32 read one value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from actx.exporter.lift.ops import op_of
from actx.exporter.quantize.placement import add_initializer, insert_behind
from actx.exporter.quantize.precision import (
    HALF,
    SELECTIONS,
    WIDE,
    Precision,
    nodes_of_bodies,
    schema_of,
    takes_half,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# exp(s - NEVER) is 0 for any score s of float16, and a score may be added to it without overflow.
NEVER = 2.0**15


def to_half(model: ir.Model) -> ir.Model:
    """Return the model typed in float16. The given one is not changed, and weights are converted when they are read.

    A model that computes in float16 or bfloat16 already was given its types on purpose: it is returned as it is. What
    computes in float64 stays so. The types of all values must be known (see `infer_types`).
    """
    typed = model.clone()
    if not any(value.dtype in {HALF, ir.DataType.BFLOAT16} for node in typed.graph for value in node.outputs):
        _Typing(typed.graph, Precision.of(typed.graph)).apply()
    return typed


class _Typing:
    """Writes the types of a plan into its graph."""

    def __init__(self, graph: ir.Graph, plan: Precision) -> None:
        self.graph = graph
        self.plan = plan
        # A value in another type; of weights, whether numbers beyond float16 are cut.
        self.copies: dict[tuple[ir.Value, ir.DataType, bool], ir.Value] = {}
        self.wide_weights = {v for v in graph.initializers.values() if v.is_graph_output()}

    def apply(self) -> None:
        nodes = list(self.graph)
        wanted = [request for node in nodes for request in self._wanted(node)]
        self.wide_weights.update(value for _, _, value, dtype in wanted if dtype is WIDE)
        for node in nodes:
            if node not in self.plan.wide:
                self._type_outputs(node)
        for node, i, value, dtype in wanted:
            node.replace_input_with(i, self._typed(value, dtype, cut=op_of(node) in SELECTIONS))
        self._restore_outputs()

    def _wanted(self, node: ir.Node) -> Iterator[tuple[ir.Node, int, ir.Value, ir.DataType]]:
        """Yield every float32 input with the type that it is wanted in; bodies take what they capture in float32."""
        schema = None if node in self.plan.wide else schema_of(node, self.graph)
        for i, value in enumerate(node.inputs):
            if value is not None and value.dtype is WIDE:
                yield node, i, value, HALF if takes_half(schema, i) else WIDE
        for inner in nodes_of_bodies(node):
            for i, value in enumerate(inner.inputs):
                if value is not None and value.dtype is WIDE and value.graph is self.graph:
                    yield inner, i, value, WIDE

    def _type_outputs(self, node: ir.Node) -> None:
        schema = schema_of(node, self.graph)
        for i, value in enumerate(node.outputs):
            if value.dtype is WIDE and takes_half(schema, i, output=True):
                value.type = ir.TensorType(HALF)
                if op_of(node) == ("", "Cast"):
                    node.attributes["to"] = ir.AttrInt64("to", int(HALF))

    def _typed(self, value: ir.Value, dtype: ir.DataType, *, cut: bool = False) -> ir.Value:
        """Return the value in that type: itself, its weight converted, or a Cast of it."""
        weight = value.is_initializer() and not value.is_graph_input()
        if (weight and dtype is WIDE) or (not weight and value.dtype is dtype):
            return value
        numbers = self.plan.ranges.get(value)
        key = value, dtype, weight and cut and numbers is not None and numbers.too_large
        if key not in self.copies:
            self.copies[key] = self._weight(value, cut=key[2]) if weight else self._cast(value, dtype)
        return self.copies[key]

    def _weight(self, value: ir.Value, *, cut: bool) -> ir.Value:
        """Convert a weight in its place where nothing reads it in float32 or uncut, else beside it."""
        tensor = value.const_value
        assert tensor is not None
        if value not in self.wide_weights and not cut:
            value.const_value, value.type = _half_tensor(tensor, str(value.name)), ir.TensorType(HALF)
            return value
        name = f"{value.name}/actx/{'never' if cut else 'float16'}"
        return add_initializer(self.graph, _half_tensor(tensor, name, NEVER if cut else None))

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        source = value
        if dtype is HALF and value in self.plan.masks:
            source = insert_behind(self.graph, value, "Clip", f"{value.name}/actx/cut", WIDE, self._bounds())
        name = f"{value.name}/actx/{'float16' if dtype is HALF else 'float32'}"
        return insert_behind(self.graph, source, "Cast", name, dtype, to=int(dtype))

    def _bounds(self) -> list[ir.Value]:
        names = {"actx/least": -NEVER, "actx/most": NEVER}
        known = self.graph.initializers
        tensors = [ir.tensor(np.float32(number), name=name) for name, number in names.items() if name not in known]
        for tensor in tensors:
            add_initializer(self.graph, tensor)
        return [known[name] for name in names]

    def _restore_outputs(self) -> None:
        """Give every output of the graph its own type back: its name goes to the Cast."""
        for i, value in enumerate(self.graph.outputs):
            if value.dtype is HALF:
                wide = self._typed(value, WIDE)
                wide.name, value.name = value.name, f"{value.name}/actx/float16"
                self.graph.outputs[i] = wide


def _half_tensor(tensor: ir.TensorProtocol, name: str, limit: float | None = None) -> ir.TensorProtocol:
    """Return the tensor in float16, converted whenever it is read: a second copy of large weights is never held."""

    def convert() -> ir.TensorProtocol:
        array = tensor.numpy()
        if limit is not None:
            array = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
        return ir.Tensor(array.astype(np.float16), name=name)

    return ir.LazyTensor(convert, dtype=HALF, shape=ir.Shape(tensor.shape.numpy()), name=name)
