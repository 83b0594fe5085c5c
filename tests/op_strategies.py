"""Cases for the ops of domain `actx` as hypothesis draws them: rank up to 5, zero sizes, any axis, type and table."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from actx.custom_ops.ops import OPS
from actx.custom_ops.ops.op import CODES
from tests.op_cases import (
    Case,
    channel_table,
    codes,
    linear_inputs,
    mixable,
    numbers,
    random_table,
    special_numbers,
    types_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from actx.custom_ops import Spline
    from actx.custom_ops.ops import Op
    from tests.op_cases import Array


def any_table(draw: st.DrawFn, axis: int | None = None, channels: int | None = None) -> Spline:
    """Draw a table of any size that a spline may have."""
    seed = draw(st.integers(0, 2**16))
    high = draw(st.booleans())
    segments, degree = draw(st.integers(1, 4 if high else 32)), draw(st.integers(0, 16 if high else 3))
    if axis is None or channels is None:
        return random_table(seed, segments, degree)
    return channel_table(seed, channels, axis, segments, degree)


def any_array(draw: st.DrawFn, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Draw an array that may hold any special number."""
    seed = draw(st.integers(0, 2**16))
    if dtype in CODES:
        return codes(seed, shape, dtype)
    return numbers(seed, shape, dtype, special_numbers(dtype) if draw(st.booleans()) else None)


@st.composite
def any_case(draw: st.DrawFn, op_type: str) -> Case:
    """Return a node of the op with its inputs."""
    dtype = draw(st.sampled_from(types_of(op_type)))
    least = 0 if op_type in {"Spline", "Lut", "GatedLut"} else 1
    shape = draw(st.lists(st.integers(0, 5), min_size=least, max_size=4))
    shape += [draw(st.integers(0, 70))] if len(shape) < 5 and draw(st.booleans()) else []
    array = partial(any_array, draw, dtype=dtype)
    op, others = _ANY[op_type](draw, shape, array)
    whole = list(shape)
    if op_type == "GatedSpline":
        whole[op.axis] *= 2  # type: ignore[attr-defined]
    if op_type == "QAttention":
        keys, *_ = others
        assert keys is not None
        whole = [keys.shape[0], shape[-1], keys.shape[2]]
    return Case("any", op, (array(whole), *others))


def _maybe(draw: st.DrawFn, make: Callable[[], Array]) -> Array | None:
    return make() if draw(st.booleans()) else None


def _axis(draw: st.DrawFn, shape: Sequence[int]) -> int | None:
    places = [axis for axis in range(-len(shape), len(shape)) if 0 < shape[axis] <= 8]
    return draw(st.none() | st.sampled_from(places)) if places else None


def _any_spline(draw: st.DrawFn, shape: Sequence[int], array: Any) -> tuple[Op, tuple[Array | None, ...]]:
    axis = _axis(draw, shape)
    table = any_table(draw, axis, None if axis is None else shape[axis])
    return OPS["Spline"](table), (_maybe(draw, lambda: array(shape)),)


def _any_gated_spline(draw: st.DrawFn, shape: Sequence[int], array: Any) -> tuple[Op, tuple[Array | None, ...]]:
    axis = _axis(draw, shape)
    table = any_table(draw, axis, None if axis is None else shape[axis])
    other = any_table(draw) if draw(st.booleans()) else None
    layout, gate = draw(st.sampled_from(("split", "interleaved"))), draw(st.integers(0, 1))
    return OPS["GatedSpline"](table, other, -1 if axis is None else axis, layout, gate), ()


def _any_spline_mix(draw: st.DrawFn, shape: Sequence[int], array: Any) -> tuple[Op, tuple[Array | None, ...]]:
    entries = draw(st.integers(1, 8))
    high = draw(st.booleans())
    tables_ = mixable(entries, draw(st.integers(1, 4 if high else 32)), draw(st.integers(0, 16 if high else 3)))
    return OPS["SplineMix"](tables_), (array([*shape[:-1], entries]), _maybe(draw, lambda: array(shape)))


def _any_polynorm(draw: st.DrawFn, shape: Sequence[int], array: Any) -> tuple[Op, tuple[Array | None, ...]]:
    epsilon = draw(st.sampled_from((1e-12, 1e-6, 1e-2)))
    op = OPS["PolyNorm"].from_attributes({"epsilon": epsilon})
    return op, (array([draw(st.integers(1, 4))]), array([1]), _maybe(draw, lambda: array(shape)))


def _any_lut(draw: st.DrawFn, shape: Sequence[int], array: Any) -> tuple[Op, tuple[Array | None, ...]]:
    axis, to = _axis(draw, shape), draw(st.sampled_from((2, 3)))
    size = 256 * (1 if axis is None else shape[axis])
    table = codes(draw(st.integers(0, 2**16)), (size,), np.uint8 if to == 2 else np.int8)
    return OPS["Lut"](tuple(table.tolist()), to, axis), ()


def _any_gated_lut(draw: st.DrawFn, shape: Sequence[int], array: Any) -> tuple[Op, tuple[Array | None, ...]]:
    to, u_type = draw(st.sampled_from((2, 3))), draw(st.sampled_from(CODES))
    scale = draw(st.sampled_from((1e-3, 0.05, 1.0, 1e30)))
    table = np.random.default_rng(draw(st.integers(0, 2**16))).normal(0, scale, 256).astype(np.float32)
    u_zero, y_zero = draw(st.integers(0, 127)), draw(st.integers(0, 127))
    u = codes(draw(st.integers(0, 2**16)), shape, u_type)
    return OPS["GatedLut"](tuple(table.tolist()), u_zero, y_zero, to), (u,)


def _any_linear(draw: st.DrawFn, shape: Sequence[int]) -> tuple[Array | None, ...]:
    weights = draw(st.sampled_from(("narrow", "any", "largest")))
    seed, outputs = draw(st.integers(0, 2**16)), draw(st.integers(0, 40))
    _, *others = linear_inputs(seed, shape[:-1], shape[-1], outputs, weights)
    return tuple(others)


def _any_qlinear(draw: st.DrawFn, shape: Sequence[int], array: Any) -> tuple[Op, tuple[Array | None, ...]]:
    del array
    table = draw(st.none() | st.integers(0, 2**16).map(lambda seed: tuple(codes(seed, (256,), np.uint8).tolist())))
    return OPS["QLinear"](draw(st.integers(0, 255)), table), _any_linear(draw, shape)


def _any_qlinear_to_float(draw: st.DrawFn, shape: Sequence[int], array: Any) -> tuple[Op, tuple[Array | None, ...]]:
    del array
    return OPS["QLinearToFloat"](), _any_linear(draw, shape)


def _any_qattention(draw: st.DrawFn, shape: Sequence[int], array: Any) -> tuple[Op, tuple[Array | None, ...]]:
    """Of as many queries as the last axis has elements."""
    heads, batch, keys = draw(st.integers(1, 3)), draw(st.integers(0, 3)), draw(st.integers(0, 40))
    size, values = draw(st.integers(0, 9)), draw(st.integers(0, 20))
    scores = (batch, heads, shape[-1], keys)
    mask = None
    if draw(st.booleans()):
        places = range(draw(st.integers(0, 4)), 4)
        mask = any_array(draw, [scores[i] if draw(st.booleans()) else 1 for i in places], np.dtype(np.float32))
    factors = (draw(st.sampled_from((1e-4, 0.02, -1.0))), draw(st.sampled_from((0.3, 2.0, -1e-3))))
    zero_points = [draw(st.integers(0, 255)) for _ in range(4)]
    op = OPS["QAttention"](heads, *factors, *zero_points)
    return op, (array([batch, keys, heads * size]), array([batch, keys, heads * values]), mask)


_ANY: Mapping[str, Callable[..., tuple[Op, tuple[Array | None, ...]]]] = {
    "Spline": _any_spline,
    "GatedSpline": _any_gated_spline,
    "SplineMix": _any_spline_mix,
    "PolyNorm": _any_polynorm,
    "Lut": _any_lut,
    "GatedLut": _any_gated_lut,
    "QAttention": _any_qattention,
    "QLinear": _any_qlinear,
    "QLinearToFloat": _any_qlinear_to_float,
}
