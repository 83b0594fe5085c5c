"""The GPU kernels on a CPU: Triton's interpreter, in a process of its own.

Triton decides on its first import whether kernels are interpreted, and torch imports it at will. The interpreter truncates to
bfloat16 where a GPU rounds, and loses its subnormal numbers: both conversions are replaced by exact ones. Matrix products it
takes of the bits of bfloat16: they get float32.
"""

# ruff: noqa: PLC0415 - Triton may be absent, and is told how to run kernels before its first import
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from actx.custom_ops.ops import OPS, TensorType
from tests.custom_ops.gpu.worker import Worker, answer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from actx.custom_ops import Spline
    from actx.custom_ops.gpu.tables import Search


class Interpreter(Worker):
    """Runs ops as `Library` and `Process` of the CPU kernels do."""

    isas = ("interpreter",)

    def __init__(self) -> None:
        super().__init__(__name__, environment={"TRITON_INTERPRET": "1"})

    def run(
        self,
        op_type: str,
        attributes: Mapping[str, Any],
        inputs: Sequence[NDArray[Any] | None],
        *,
        isa: str | None = None,
    ) -> NDArray[Any]:
        return self.call(run_op, op_type, attributes, inputs)


def serve() -> None:
    _prepare()
    answer(globals())


def _prepare() -> None:
    np.seterr(all="ignore")  # kernels overflow as they should
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float
    bfloat16 = np.dtype(ml_dtypes.bfloat16)

    def exact(x: NDArray[Any], source: Any, target: Any, rounding: Any) -> NDArray[Any]:
        if (source, target) == (tl.bfloat16, tl.float32):
            return np.asarray(x).view(bfloat16).astype(np.float32).view(np.uint32)
        if (source, target) == (tl.float32, tl.bfloat16):
            return np.asarray(x).view(np.float32).astype(bfloat16).view(np.uint16)
        return convert(x, source, target, rounding)

    def wide(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        data = exact(operand.data, tl.bfloat16, tl.float32, None).view(np.float32)
        return interpreter.TensorHandle(data, tl.float32)

    def dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return of_equal_types(self, wide(a), wide(b), *others)

    interpreter._convert_float = exact
    of_equal_types = interpreter.InterpreterBuilder.create_dot
    interpreter.InterpreterBuilder.create_dot = dot


# --- what the process runs ---


def run_op(op_type: str, attributes: Mapping[str, Any], inputs: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
    from actx.custom_ops.gpu.run import run

    op = OPS[op_type].from_attributes(attributes)
    types = [None if given is None else TensorType.of(given) for given in inputs]
    result = op.output(types)
    assert result.shape is not None
    return array(run(op, types, [None if given is None else tensor(given) for given in inputs], poisoned(result)))


def run_spline(spline: Spline, search: Search, x: NDArray[Any]) -> NDArray[Any]:
    """Evaluate a table with a way to find segments."""
    import torch

    from actx.custom_ops.gpu.launch import activation, grid
    from actx.custom_ops.gpu.run import launch
    from actx.custom_ops.gpu.tables import pack

    table = pack(spline, x.dtype, search)
    kernel, result = activation(table.constexprs(), cols=x.size), poisoned(TensorType.of(x))
    given = tensor(x)
    launch(kernel, grid(kernel, 1, x.size), [given, given, result, torch.from_numpy(table.numbers), 1, x.size, 1])
    return array(result)


def run_exact(function: str, layout: str, x: NDArray[Any], u: NDArray[Any]) -> NDArray[Any]:
    """Evaluate one of the functions of the GPU, of vectors or of the halves of rows."""
    import torch

    from actx.custom_ops.gpu.launch import exact, grid
    from actx.custom_ops.gpu.run import launch

    rows, cols = (1, x.size) if layout != "halves" else (len(x), x.shape[1] // 2)
    kernel = exact(function, layout, cols=cols)
    result = poisoned(TensorType(x.dtype, (rows, cols)))
    arguments = [tensor(x), tensor(u), result, torch.zeros(1), rows, cols, 1]
    launch(kernel, grid(kernel, rows, cols), arguments)
    return array(result)


def run_gate_up(spline: Spline, x: NDArray[Any], w: NDArray[Any]) -> NDArray[Any]:
    """Compute a gated product of two matrix products."""
    import torch

    from actx.custom_ops.gpu.launch import gate_up, grid
    from actx.custom_ops.gpu.run import launch
    from actx.custom_ops.gpu.tables import pack

    table = pack(spline, np.dtype(np.float32))
    kernel, sizes = gate_up(table.constexprs()), (len(x), w.shape[1] // 2)
    result = poisoned(TensorType(x.dtype, sizes))
    arguments = [tensor(x), tensor(w), result, torch.from_numpy(table.numbers), *sizes, len(w)]
    launch(kernel, grid(kernel, *sizes), arguments)
    return array(result)


def tensor(given: NDArray[Any]) -> Any:
    import torch

    copy = np.array(given)
    return (
        torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
        if given.dtype == ml_dtypes.bfloat16
        else torch.from_numpy(copy)
    )


def array(given: Any) -> NDArray[Any]:
    import torch

    plain = given.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if given.dtype is torch.bfloat16 else given.numpy()
    return np.asarray(plain)


def poisoned(kind: TensorType) -> Any:
    """A result no element of which is right before it is written."""
    assert kind.shape is not None
    return tensor(
        np.full(kind.shape, 77 if kind.dtype.kind in "iu" else 7.7e4 if kind.dtype == np.float32 else 6e4, kind.dtype)
    )
