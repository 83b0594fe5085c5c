"""What stands at a site of a rewritten module. Nothing of it is in a state dict.

1. A rewritten site runs the standard ops of `lower.portable`, and so computes what `model.onnx` computes.
2. A kept site runs the ops that it had. It is a module all the same, so that it has its name in the next export.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from actx.custom_ops.spline import MAX_DEGREE
from actx.exporter.load.program import OPSET
from actx.exporter.lower.emitter import Constants, Emitter
from actx.exporter.lower.portable import emit_spline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import fx

    from actx.custom_ops import Spline
    from actx.exporter.fitting import Form

# An op, its operands (an index of an earlier value, where 0 is x, a number, or one per channel), its attributes.
Step: TypeAlias = "tuple[str, tuple[int | float | Tensor, ...], dict[str, float]]"


def _leaky_relu(x: Tensor, alpha: float = -1.0) -> Tensor:
    return functional.leaky_relu(x, alpha)


# The ops that `lower.portable` uses for float32, at this opset. At zero, which padding and zeroed weights give, each has the
# derivative from the left, so that their sum has it too.
_OPS: Mapping[str, Callable[..., Tensor]] = {
    "Abs": _leaky_relu,
    "Add": torch.add,
    "Clip": torch.clamp,
    "GreaterOrEqual": torch.ge,
    "HardSwish": functional.hardswish,
    "IsNaN": torch.isnan,
    "LeakyRelu": _leaky_relu,
    "Less": torch.lt,
    "Max": lambda x, bound: torch.clamp(x, min=bound),
    "Min": lambda x, bound: torch.clamp(x, max=bound),
    "Mul": torch.mul,
    "PRelu": lambda x, slope: torch.where(x > 0, x, slope * x),
    "Relu": torch.relu,
    "Sub": torch.sub,
    "Where": torch.where,
}


class PiecewisePolynomial(nn.Module):
    """s(x), elementwise and differentiable in x. The coefficients are fixed.

    Attributes:
        form: the form that was fitted.
        spline: the table.
    """

    def __init__(self, form: Form, spline: Spline) -> None:
        super().__init__()
        self.form = form
        self.spline = spline
        self._unit = _unit(spline)
        self._steps = _steps(spline.scaled(self._unit, 1.0))

    def extra_repr(self) -> str:
        """Return the form and the size of its table."""
        return f"{self.form}: {self.spline.segments} segments of degree {self.spline.degree}"

    def forward(self, x: Tensor) -> Tensor:
        """Return s(x), of the shape and type of x; half precision is computed in float32, as `lower.portable` does it."""
        half = x.dtype in (torch.float16, torch.bfloat16)
        wide = x.float() if half else x
        values = [wide if self._unit == 1 else wide / self._unit]
        for op_type, operands, attributes in self._steps:
            inputs = [values[o] if isinstance(o, int) else _beside(o, x) for o in operands]
            values.append(_OPS[op_type](*inputs, **attributes))
        return values[-1].to(x.dtype) if half else values[-1]


def _beside(constant: float | Tensor, x: Tensor) -> float | Tensor:
    """Return the constant where x is. It is no buffer, because it must stay float32 in a module of half precision."""
    return constant.to(x.device) if isinstance(constant, Tensor) and constant.device != x.device else constant


def _unit(spline: Spline) -> float:
    """Return what to measure x in, a power of two, so that Horner's rule of a high degree runs on numbers of about 1.

    Torch's converter to ONNX drops summands of 1e-8, and those of degree 16 may be multiplied by millions afterwards.
    """
    return 1.0 if spline.degree <= MAX_DEGREE else float(2.0 ** np.ceil(np.log2(np.abs(spline.knots).max())))


def _steps(spline: Spline) -> tuple[Step, ...]:
    """Lower the table."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    end = ir.node("Identity", [x])
    graph = ir.Graph([x], end.outputs, nodes=[end], opset_imports={"": OPSET})
    emit = Emitter(graph, Constants(graph), end, "s", ir.DataType.FLOAT, spline.axis)
    emit_spline(emit, x, spline)
    index = {value: i for i, value in enumerate((x, *emit.values))}
    return tuple(_step(node, index) for value in emit.values if (node := value.producer()) is not None)


def _step(node: ir.Node, index: Mapping[ir.Value, int]) -> Step:
    operands = tuple(index[v] if v in index else _constant(v) for v in node.inputs if v is not None)
    return node.op_type, operands, {name: attribute.as_float() for name, attribute in node.attributes.items()}


def _constant(value: ir.Value) -> float | Tensor:
    assert value.const_value is not None
    array = value.const_value.numpy()
    return torch.tensor(array) if array.ndim else float(array)


class Kept(nn.Module):
    """The ops of a kept site.

    Attributes:
        reason: why it is kept.
    """

    def __init__(self, body: fx.GraphModule, reason: str) -> None:
        super().__init__()
        self.reason = reason
        self._body = (body,)  # a submodule would put one more level into the names of its ops

    def extra_repr(self) -> str:
        """Return the reason."""
        return self.reason

    def forward(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Run the ops on the site's input and the parameters that they take."""
        y: Tensor = self._body[0].forward(x, *parameters)
        return y
