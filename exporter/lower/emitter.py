"""Write nodes into a graph in place of a region."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from actx.exporter.lift.elementwise import ELEMENTWISE

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

SITE_METADATA = "actx.site"
AXES_ARE_AN_INPUT = 18  # of ReduceMean, from this opset on
END = np.iinfo(np.int64).max  # of a slice


class Constants:
    """The constants that lowering puts into one graph: each number once, whatever the number of sites that use it."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._known: dict[tuple[ir.DataType, bytes, tuple[int, ...]], ir.Value] = {}

    def get(self, array: NDArray[Any], dtype: ir.DataType) -> ir.Value:
        """Return the initializer that holds the array."""
        key = (dtype, array.tobytes(), array.shape)
        if key not in self._known:
            name = f"actx/constant_{len(self._known)}"
            while name in self._graph.initializers:
                name += "_"
            tensor = ir.Tensor(array, dtype=dtype, name=name)
            value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=tensor.shape)
            self._graph.register_initializer(value)
            self._known[key] = value
        return self._known[key]


class Emitter:
    """Inserts nodes before a place in a graph, names them after a site and remembers the values they give.

    Attributes:
        values: names of the values that the inserted nodes give.
        dtype: element type of the constants that `constant` makes.
        fused: whether the runtime compiles a chain of elementwise ops into one loop over the data.
        marked: whether the nodes are a site's, and carry its name as `SITE_METADATA`.
    """

    def __init__(
        self,
        graph: ir.Graph,
        constants: Constants,
        before: ir.Node,
        site: str,
        dtype: ir.DataType,
        axis: int | None = None,
        *,
        fused: bool = False,
        marked: bool = True,
    ) -> None:
        self.graph = graph
        self.constants = constants
        self.before = before
        self.site = site
        self.dtype = dtype
        self.axis = axis
        self.fused = fused
        self.marked = marked
        self.values: list[ir.Value] = []

    @property
    def opset(self) -> int:
        """Version of the graph's default operator set."""
        return self.graph.opset_imports[""]

    def takes(self, op_type: str) -> bool:
        """Tell whether the graph's opset has the op for `dtype`: many take bfloat16 only late, or never."""
        try:
            schema = onnx.defs.get_schema(op_type, self.opset)
        except onnx.defs.SchemaError:
            return False
        return f"tensor({self.dtype.name.lower()})" in schema.inputs[0].types

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | ArrayLike | None,
        domain: str = "",
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Insert a node and return its output; inputs that are numbers become constants."""
        values = [v if v is None or isinstance(v, ir.Value) else self.constant(v) for v in inputs]
        name = f"{self.site}/actx/{op_type}_{len(self.values)}"
        typed = [_attribute(key, value) for key, value in attributes.items()]
        node = ir.Node(domain, op_type, values, typed, name=name)
        if self.marked:
            node.metadata_props[SITE_METADATA] = self.site
        output = node.outputs[0]
        output.name = f"{name}_output"
        data = next(v for v in values if v is not None)
        result = data.dtype if dtype is None else dtype
        output.type = data.type if result is None or result == data.dtype else ir.TensorType(result)
        output.shape = data.shape
        self.graph.insert_before(self.before, node)
        self.values.append(output)
        return output

    def part(self, axis: int | None = None) -> Emitter:
        """Return an emitter for the same place that remembers its own values alone.

        Args:
            axis: the channel axis of what it inserts, counted from the end.
        """
        name = f"{self.site}/{len(self.values)}"
        return Emitter(
            self.graph, self.constants, self.before, name, self.dtype, axis, fused=self.fused, marked=self.marked
        )

    def integers(self, *numbers: int) -> ir.Value:
        """Return an initializer of int64, as shapes and axes are."""
        return self.constants.get(np.array(numbers, np.int64), ir.DataType.INT64)

    def slice(self, x: ir.Value, axis: int, start: int, end: int = END, step: int = 1) -> ir.Value:
        """Insert ``x[start:end:step]`` along an axis."""
        part = self.op("Slice", x, *(self.integers(number) for number in (start, end, axis, step)))
        if x.shape is not None:
            dims = list(x.shape.dims)
            size = dims[axis]
            dims[axis] = len(range(size)[start:end:step]) if isinstance(size, int) else ir.SymbolicDim(None)
            part.shape = ir.Shape(dims)
        return part

    def row_mean(self, x: ir.Value) -> ir.Value:
        """Insert the mean over the last axis, which stays."""
        if self.opset >= AXES_ARE_AN_INPUT:
            mean = self.op("ReduceMean", x, self.integers(-1), keepdims=1)
        else:
            mean = self.op("ReduceMean", x, axes=[-1], keepdims=1)
        mean.shape = None if x.shape is None else ir.Shape([*x.shape.dims[:-1], 1])
        return mean

    def evaluate(self, x: ir.Value, at: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute what the last inserted node gives where x is `at`, float64 (C,), every op rounded to `dtype` as it is."""
        results = {x: self._rounded(at)}
        start = self.values.index(x) + 1 if x in self.values else 0
        for value in self.values[start:]:
            node = value.producer()
            assert node is not None
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            operands = [results[v] if v in results else _number(v) for v in node.inputs]
            results[value] = self._rounded(ELEMENTWISE[node.domain, node.op_type](attributes, *operands))
        return results[self.values[-1]]

    def _rounded(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        return numbers.astype(self.dtype.numpy()).astype(np.float64)

    def constant(self, number: ArrayLike) -> ir.Value:
        """Return an initializer: a scalar, or one number per channel, laid out along the channel axis."""
        array = np.asarray(number, dtype=self.dtype.numpy())
        if array.ndim == 1:
            assert self.axis is not None
            array = array.reshape(-1, *[1] * (-self.axis - 1))
        return self.constants.get(array, self.dtype)


def _number(value: ir.Value | None) -> NDArray[np.float64]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().reshape(-1).astype(np.float64)


def _attribute(name: str, value: Any) -> ir.Attr:
    """Type the attribute here where its type is plain: onnx_ir's own inference takes longer than the rest of a node."""
    if isinstance(value, float):
        return ir.AttrFloat32(name, float(np.float32(value)))
    if isinstance(value, int):
        return ir.AttrInt64(name, value)
    if isinstance(value, list) and not any(isinstance(number, int) for number in value[:1]):
        return ir.AttrFloat32s(name, value)
    return ir.convenience.convert_attribute(name, value)


def substitute(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old`, graph outputs included, read `new`, which takes over the name."""
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{name}/actx/replaced"
    new.name = name
    new.shape = new.shape if old.shape is None else old.shape
    new.type = new.type if old.type is None else old.type
