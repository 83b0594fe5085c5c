"""The ops as ``torch.ops.actx.*``: importing this module registers them, and `onnx_translations` exports them as single nodes.

1. An op's signature is that of its schema: the inputs by position, their names in lower case, the attributes by keyword.
2. On CPU tensors the native library runs it; where that was not built, or cannot be used here, the float64 reference does.
   On CUDA tensors a Triton kernel does (see `gpu.run`).
3. Fake tensors get their type and shape from the op's own rule, so torch.compile and torch.export trace through it.
4. The ops of floats have a gradient with respect to every tensor: of a spline it is the spline of the derivatives, at a knot
   that of the segment to the right. Those of codes have none, as tensors of integers do not.
5. An ONNX export translates each call to the one node of the same name.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import ml_dtypes
import numpy as np
import torch

from actx.custom_ops import cpu, gpu
from actx.custom_ops.ops import DOMAIN, OPS, OPSET, Op, TensorType, register_schemas
from actx.custom_ops.ops.gated_spline import GatedSplineOp
from actx.custom_ops.ops.op import AttributeKind, attribute_value
from actx.custom_ops.ops.polynorm import PolyNormOp
from actx.custom_ops.ops.spline import SplineOp
from actx.custom_ops.ops.spline_mix import SplineMixOp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from actx.custom_ops import Spline

__all__ = ["onnx_translations"]

Tensors: TypeAlias = "tuple[torch.Tensor | None, ...]"
Gradients: TypeAlias = "tuple[torch.Tensor | None, ...]"

_DTYPES: Mapping[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.int8: np.dtype(np.int8),
    torch.uint8: np.dtype(np.uint8),
    torch.int32: np.dtype(np.int32),
}
_TORCH_DTYPES = {dtype: torch_dtype for torch_dtype, dtype in _DTYPES.items()}
_NODES = 1024  # whose attributes were checked, and whose tables are on a device
_KINDS = {
    AttributeKind.INT: "int",
    AttributeKind.STRING: "str",
    AttributeKind.FLOAT: "float",
    AttributeKind.INTS: "int[]",
    AttributeKind.FLOATS: "float[]",
}


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what ``torch.onnx.export(..., dynamo=True)`` takes as its `custom_translation_table`."""
    register_schemas()
    return {getattr(torch.ops.actx, op.TORCH_NAME).default: _translation(op) for op in OPS.values()}


# --- 1. ---


def _signature(op: type[Op]) -> str:
    tensors = [f"Tensor{'? ' if p.optional else ' '}{p.name.lower()}{'=None' if p.optional else ''}" for p in op.INPUTS]
    attributes = []
    for attribute in op.ATTRIBUTES:
        kind, default = _KINDS[attribute.type], attribute_value(attribute.default_value)
        if attribute.required:
            attributes.append(f"{kind} {attribute.name}")
        elif default is None:
            attributes.append(f"{kind}? {attribute.name}=None")
        else:
            quoted = f'"{default}"' if isinstance(default, str) else default
            attributes.append(f"{kind} {attribute.name}={quoted}")
    keywords = ["*", *attributes] if attributes else []
    return f"({', '.join([*tensors, *keywords])}) -> Tensor"


def _inputs(op: type[Op], tensors: Tensors) -> Tensors:
    """Return the tensors of all inputs: None for those at the end that were left out."""
    return (*tensors, *[None] * (len(op.INPUTS) - len(tensors)))


# --- 2. ---


@cache
def _library() -> cpu.Library | None:
    """Return the native library, None where none was built; one that is there and cannot be used is an error."""
    return None if cpu.find() is None else cpu.load()


def _kernel(op: type[Op]) -> Callable[..., torch.Tensor]:
    def run(*tensors: torch.Tensor | None, **attributes: Any) -> torch.Tensor:
        node, library = op.from_attributes(attributes), _library()
        arrays = [None if tensor is None else _to_numpy(op, tensor) for tensor in _inputs(op, tensors)]
        if library is None:
            return _from_numpy(node.reference(arrays))
        return _from_numpy(library.run(op.NAME, node.attributes(), arrays))

    return run


def _gpu_kernel(op: type[Op]) -> Callable[..., torch.Tensor]:
    @lru_cache(_NODES)
    def node_of(frozen: tuple[tuple[str, Any], ...]) -> Op:
        return op.from_attributes(dict(frozen))

    def run_on_gpu(*tensors: torch.Tensor | None, **attributes: Any) -> torch.Tensor:
        gpu.require_triton()
        from actx.custom_ops.gpu.run import run  # noqa: PLC0415 - Triton is optional

        node, inputs = node_of(_frozen(attributes)), _inputs(op, tensors)
        types = _types(op, inputs)
        output = node.output(types)
        assert inputs[0] is not None
        assert output.shape is not None
        return run(node, types, inputs, inputs[0].new_empty(output.shape, dtype=_TORCH_DTYPES[output.dtype]))

    return run_on_gpu


def _frozen(attributes: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in attributes.items())


def _types(op: type[Op], tensors: Tensors) -> list[TensorType | None]:
    return [None if t is None else TensorType(_dtype(op, t), tuple(t.shape)) for t in tensors]


def _to_numpy(op: type[Op], tensor: torch.Tensor) -> NDArray[Any]:
    dtype = _dtype(op, tensor)
    dense = tensor.detach().contiguous()
    return dense.view(torch.int16).numpy().view(dtype) if tensor.dtype is torch.bfloat16 else dense.numpy()


def _from_numpy(array: NDArray[Any]) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _dtype(op: type[Op], tensor: torch.Tensor) -> np.dtype[Any]:
    if tensor.dtype not in _DTYPES:
        msg = f"actx::{op.NAME} takes no tensors of {tensor.dtype}; the ops have {', '.join(map(str, _DTYPES))}"
        raise ValueError(msg)
    return _DTYPES[tensor.dtype]


# --- 3. ---


def _fake(op: type[Op]) -> Callable[..., torch.Tensor]:
    def infer(*tensors: torch.Tensor | None, **attributes: Any) -> torch.Tensor:
        inputs = _inputs(op, tensors)
        output = op.from_attributes(attributes).output(_types(op, inputs))
        assert inputs[0] is not None
        assert output.shape is not None
        return inputs[0].new_empty(output.shape, dtype=_TORCH_DTYPES[output.dtype])

    return infer


# --- 4. ---


def _spline(x: torch.Tensor, spline: Spline) -> torch.Tensor:
    result: torch.Tensor = torch.ops.actx.spline(x, **spline.attributes())
    return result


def _times(first: torch.Tensor, u: torch.Tensor | None) -> torch.Tensor:
    return first if u is None else first * u


def _spline_gradients(op: SplineOp, gradient: torch.Tensor, x: torch.Tensor, u: torch.Tensor | None) -> Gradients:
    of_u = None if u is None else gradient * _spline(x, op.spline)
    return _times(gradient, u) * _spline(x, op.spline.derivative()), of_u


def _gated_spline_gradients(op: GatedSplineOp, gradient: torch.Tensor, x: torch.Tensor) -> Gradients:
    axis = op.axis % x.dim()
    width = x.shape[axis] // 2
    split = op.layout == "split"
    by_half = x.unflatten(axis, (2, width) if split else (width, 2))  # type: ignore[no-untyped-call]
    place = axis if split else axis + 1
    gate, other = (by_half.select(place, half) for half in (op.gate, 1 - op.gate))
    factor = other if op.other is None else _spline(other, op.other)
    of_gate = gradient * factor * _spline(gate, op.spline.derivative())
    of_other = gradient * _spline(gate, op.spline)
    if op.other is not None:
        of_other = of_other * _spline(other, op.other.derivative())
    halves = [of_other, of_gate] if op.gate else [of_gate, of_other]
    return (torch.stack(halves, place).flatten(axis, axis + 1),)


def _spline_mix_gradients(
    op: SplineMixOp, gradient: torch.Tensor, x: torch.Tensor, g: torch.Tensor, u: torch.Tensor | None
) -> Gradients:
    slopes = SplineMixOp(tuple(entry.derivative() for entry in op.entries))
    upstream = _times(gradient, u)
    of_g = torch.stack([(upstream * _spline(x, entry)).sum(-1) for entry in op.entries], -1)
    of_u = None if u is None else gradient * torch.ops.actx.spline_mix(x, g, **op.attributes())
    return upstream * torch.ops.actx.spline_mix(x, g, **slopes.attributes()), of_g, of_u


def _polynorm_gradients(
    op: PolyNormOp, gradient: torch.Tensor, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, u: torch.Tensor | None
) -> Gradients:
    """Differentiate in float32: N(z) = z r with r = 1 / sqrt(mean(z^2) + epsilon) gives dN q = r (q - N mean(N q))."""
    dtype, x, w = x.dtype, x.float(), w.float()
    upstream = _times(gradient, u).float()
    of_x, of_w, total = torch.zeros_like(x), [], torch.zeros_like(x)
    for i, power in enumerate(range(len(w), 0, -1)):
        z = x**power
        root = torch.rsqrt((z * z).mean(-1, keepdim=True) + op.epsilon)
        normalised, q = z * root, upstream * w[i]
        of_x = of_x + power * x ** (power - 1) * root * (q - normalised * (normalised * q).mean(-1, keepdim=True))
        of_w.append((upstream * normalised).sum())
        total = total + w[i] * normalised
    of_u = None if u is None else (gradient.float() * (total + b.float())).to(dtype)
    return of_x.to(dtype), torch.stack(of_w).to(dtype), upstream.sum().reshape(1).to(dtype), of_u


_GRADIENTS: Mapping[type[Op], Callable[..., Gradients]] = {
    SplineOp: _spline_gradients,
    GatedSplineOp: _gated_spline_gradients,
    SplineMixOp: _spline_mix_gradients,
    PolyNormOp: _polynorm_gradients,
}


def _differentiate(op: type[Op], registered: Any) -> None:
    def remember(ctx: Any, inputs: Tensors, keyword_only_inputs: Mapping[str, Any], output: torch.Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)
        ctx.node = op.from_attributes(keyword_only_inputs)

    def backward(ctx: Any, gradient: torch.Tensor) -> Gradients:
        return _GRADIENTS[op](ctx.node, gradient, *ctx.saved_tensors)

    registered.register_autograd(backward, setup_context=remember)


# --- 5. ---


def _translation(op: type[Op]) -> Callable[..., Any]:
    from onnxscript.values import Opset  # noqa: PLC0415 - slow to import, and only needed for an export

    emit = getattr(Opset(DOMAIN, OPSET), op.NAME)

    def translate(*values: Any, **attributes: Any) -> Any:
        return emit(*values, **{name: value for name, value in attributes.items() if value is not None})

    return translate


def _register(ops: Sequence[type[Op]]) -> None:
    for op in ops:
        registered = torch.library.custom_op(
            f"{DOMAIN}::{op.TORCH_NAME}", _kernel(op), mutates_args=(), device_types="cpu", schema=_signature(op)
        )
        if op.ON_GPU:
            registered.register_kernel("cuda")(_gpu_kernel(op))
        registered.register_fake(_fake(op))
        if op in _GRADIENTS:
            _differentiate(op, registered)


_register(list(OPS.values()))
