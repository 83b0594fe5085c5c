"""Write nodes into a graph in place of a region."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

SITE_METADATA = "actx.site"


class Emitter:
    """Inserts nodes before a place in a graph, names them after a site and remembers the values they give.

    Attributes:
        values: names of the values that the inserted nodes give.
        dtype: element type of the constants that `constant` makes.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node, site: str, dtype: ir.DataType, axis: int | None = None) -> None:
        self.graph = graph
        self.before = before
        self.site = site
        self.dtype = dtype
        self.axis = axis
        self.values: list[ir.Value] = []
        self._constants: dict[tuple[bytes, tuple[int, ...]], ir.Value] = {}

    @property
    def opset(self) -> int:
        """Version of the graph's default operator set."""
        return self.graph.opset_imports[""]

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | ArrayLike | None,
        domain: str = "",
        dtype: ir.DataType | None = None,
        **attributes: Any,  # noqa: ANN401 - whatever the op takes
    ) -> ir.Value:
        """Insert a node and return its output; inputs that are numbers become constants."""
        values = [v if v is None or isinstance(v, ir.Value) else self.constant(v) for v in inputs]
        name = f"{self.site}/actx/{op_type}_{len(self.values)}"
        node = ir.node(op_type, values, attributes, domain=domain, name=name, metadata_props={SITE_METADATA: self.site})
        output = node.outputs[0]
        output.name = f"{name}_output"
        data = next(v for v in values if v is not None)
        result = dtype or data.dtype
        output.type = None if result is None else ir.TensorType(result)
        output.shape = data.shape
        self.graph.insert_before(self.before, node)
        self.values.append(output)
        return output

    def constant(self, number: ArrayLike) -> ir.Value:
        """Return an initializer: a scalar, or one number per channel, laid out along the channel axis."""
        array = np.asarray(number, dtype=self.dtype.numpy())
        if array.ndim == 1:
            assert self.axis is not None
            array = array.reshape(-1, *[1] * (-self.axis - 1))
        key = (array.tobytes(), array.shape)
        if key not in self._constants:
            value = ir.Value(name=f"{self.site}/actx/constant_{len(self._constants)}", const_value=ir.tensor(array))
            value.const_value.name = value.name
            value.type, value.shape = ir.TensorType(self.dtype), ir.Shape(array.shape)
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]


def substitute(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old`, graph outputs included, read `new`, which takes over the name."""
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{name}/actx/replaced"
    new.name = name
    new.shape = old.shape if new.shape is None else new.shape
    new.type = old.type if new.type is None else new.type
