"""Cases for the ops of domain `actx`, for the tests of every implementation of them.

A case is a node and its inputs; `Op.agrees` tells whether a result keeps the contract. `cases` lists a fixed set that meets
every shape, layout, table and special number; `op_strategies.any_case` draws others; `REFUSED` lists attributes
that no implementation may run: each is refused when the node is made, or at the latest when the inputs' types are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import ml_dtypes
import numpy as np

from actx.custom_ops import ACTIVATIONS, Spline
from actx.custom_ops.ops import OPS, Op
from actx.custom_ops.ops.op import CODES, FLOATS
from actx.custom_ops.ops.qlinear import pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = "NDArray[Any]"

# Those with kernels for GPUs.
GPU_OPS = tuple(name for name, op in OPS.items() if op.ON_GPU)
# Around the width of every vector and of the blocks of the kernels; the last has a tail after several blocks.
LENGTHS = (0, 1, 3, 15, 16, 17, 31, 33, 64, 65, 127, 1031)
SHAPES: tuple[tuple[int, ...], ...] = (
    (), *((length,) for length in LENGTHS), (3, 0, 5), (0, 4), (4, 0), (2, 3, 5), (7, 33), (2, 1, 3, 17), (2, 1, 3, 2, 19),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A node, its inputs, and a name that is unique among the cases of its op."""

    name: str
    op: Op
    inputs: tuple[Array | None, ...]

    def __str__(self) -> str:
        return f"{self.op.NAME}-{self.name}"


# --- tables ---


@cache
def gelu_table(segments: int, degree: int) -> Spline:
    """GELU, interpolated at Chebyshev points between equal knots on [-5, 5], with its own asymptotes."""
    knots = np.linspace(-5, 5, segments - 1).astype(np.float32).astype(np.float64)
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    pieces, origins = [np.zeros(degree + 1)], [0.0]
    for low, high in pairwise(knots):
        middle, reach = (low + high) / 2, (high - low) / 2
        values = ACTIVATIONS["gelu"].formula(middle + reach * nodes)
        pieces.append(np.polynomial.Polynomial.fit(reach * nodes, values, degree).convert().coef.copy())
        pieces[-1].resize(degree + 1)
        origins.append(middle)
    line = np.zeros(degree + 1)
    line[1 if degree else 0] = 1
    return Spline.of(knots, [*pieces, line], [*origins, 0.0])


@cache
def random_table(seed: int, segments: int, degree: int) -> Spline:
    """Knots anywhere, jumps at them, and tails of any degree."""
    rng = np.random.default_rng(seed)
    knots = np.unique(rng.normal(0, 3, 4 * segments).astype(np.float32))[: segments - 1]
    coefficients = rng.normal(0, 1, (segments, degree + 1)) / (1 + np.arange(degree + 1)) ** 2
    return Spline.of(knots, coefficients, rng.uniform(-2, 2, segments))


@cache
def tables() -> Mapping[str, Spline]:
    """Tables for every kernel: the fewest and the most segments of each degree, equal and unequal knots, all tails."""
    found = {
        "identity": Spline.of([], [[0, 1]]),
        "constant": Spline.of([], [[2.5]]),
        "relu": Spline.of([0], [[0, 0], [0, 1]]),
        "relu2": Spline.of([0], [[0, 0, 0], [0, 0, 1]]),
        "hardswish": Spline.of([-3, 3], [[0, 0, 0], [0, 0.5, 1 / 6], [0, 1, 0]]),
        "step": Spline.of([-0.5, 0.5], [[-1], [0], [1]]),
        "falling": Spline.of([-1, 1], [[3, -2, 0, 0], [1, 0, -1, 0.5], [0, 0, 0, -1]], [-1, 0, 1]),
        "tiny": Spline.of([-1e-40, 1e-40], [[0, 1e-40], [1e-45, 1e10], [0, 1]]),
        "huge": Spline.of([-1e38, 1e38], [[0, 1], [1e38, 1e-3], [3e38, 0]]),
    }
    for degree in range(4):
        for segments in (2, 7, 8, 9, 16, 17, 32):
            found[f"gelu_{segments}x{degree}"] = gelu_table(max(segments, 3), degree)
            found[f"random_{segments}x{degree}"] = random_table(segments + 100 * degree, segments, degree)
    for degree in (4, 8, 16):
        for segments in (1, 3, 4):
            found[f"random_{segments}x{degree}"] = random_table(segments + 100 * degree, segments, degree)
    return found


@cache
def channel_table(seed: int, channels: int, axis: int, segments: int = 5, degree: int = 3) -> Spline:
    """Another random table for each channel."""
    rows = [random_table(seed + i, segments, degree) for i in range(channels)]
    parts = ("knots", "coefficients", "origins")
    return Spline(*(np.stack([getattr(row, part) for row in rows]) for part in parts), axis)


# --- inputs ---


def special_numbers(dtype: DTypeLike) -> Array:
    """Zeros, subnormal numbers, ones, the largest numbers, infinities and NaN, both signs."""
    info = ml_dtypes.finfo(np.dtype(dtype))
    sizes = [
        0.0,
        info.smallest_subnormal,
        3 * float(info.smallest_subnormal),
        info.smallest_normal,
        1e-3,
        0.5,
        1,
        3,
        100,
    ]
    sizes += [info.max, np.inf, np.nan]
    positive = np.array([float(size) for size in sizes])
    return np.concatenate([positive, -positive]).astype(dtype)


def around_knots(spline: Spline, dtype: DTypeLike) -> Array:
    """Every knot, rounded to the type, and its neighbours."""
    with np.errstate(over="ignore"):
        knots = spline.knots.reshape(-1).astype(dtype)
    up, down = (np.array(np.inf * sign, dtype) for sign in (1, -1))
    return np.concatenate([knots, np.nextafter(knots, up), np.nextafter(knots, down)])


def numbers(seed: int, shape: Sequence[int], dtype: DTypeLike, special: Array | None = None) -> Array:
    """Normal numbers of scale 3; where `special` is given, some of them instead, at random places."""
    rng = np.random.default_rng(seed)
    found = rng.normal(0, 3, tuple(shape)).astype(dtype)
    if special is not None and found.size:
        places = rng.permutation(found.size)[: max(1, min(len(special), found.size // 2))]
        found.reshape(-1)[places] = rng.permutation(special)[: len(places)]
    return np.asarray(found)


def codes(seed: int, shape: Sequence[int], dtype: DTypeLike) -> Array:
    """Codes of an 8-bit type, evenly."""
    info = np.iinfo(np.dtype(dtype))
    return np.random.default_rng(seed).integers(info.min, info.max + 1, tuple(shape)).astype(dtype)


# --- the cases of each op ---


def _spline(dtype: np.dtype[Any]) -> Iterator[Case]:
    make = OPS["Spline"]
    specials = special_numbers(dtype)
    for name, table in tables().items():
        special = np.concatenate([specials, around_knots(table, dtype)])
        x = np.concatenate([special, numbers(1, (301,), dtype)])
        yield Case(f"{name}-{dtype}", make(table), (x, None))
        yield Case(f"{name}-{dtype}-gated", make(table), (x, numbers(2, x.shape, dtype, specials)))
    table = gelu_table(16, 3)
    for shape in SHAPES:
        for gated in (False, True):
            u = numbers(3, shape, dtype) if gated else None
            yield Case(f"{shape}-{dtype}{'-gated' * gated}", make(table), (numbers(4, shape, dtype), u))
        for axis in range(-len(shape), len(shape)):
            if 0 < shape[axis] <= 65:
                x, u = (numbers(seed, shape, dtype, specials) for seed in (5, 6))
                per_channel = channel_table(7, shape[axis], axis)
                yield Case(f"{shape}-{dtype}-axis{axis}", make(per_channel), (x, None))
                yield Case(f"{shape}-{dtype}-axis{axis}-gated", make(per_channel), (x, u))


def _gated_spline(dtype: np.dtype[Any]) -> Iterator[Case]:
    make, specials, seeds = OPS["GatedSpline"], special_numbers(dtype), count()
    for name, table in tables().items():
        x = numbers(next(seeds), (3, 2 * 97), dtype, np.concatenate([specials, around_knots(table, dtype)]))
        yield Case(f"{name}-{dtype}", make(table), (x,))
    clamp = Spline.of([-7, 7], [[-6, 0], [1, 1], [8, 0]])
    for shape in SHAPES:
        for axis in range(-len(shape), len(shape)):
            whole = list(shape)
            whole[axis] *= 2
            x = numbers(next(seeds), whole, dtype, specials)
            for layout in ("split", "interleaved"):
                for gate, other in ((0, None), (1, clamp)):
                    name = f"{shape}-{dtype}-axis{axis}-{layout}-gate{gate}"
                    yield Case(name, make(gelu_table(16, 3), other, axis, layout, gate), (x,))
                if 0 < shape[axis] <= 33:
                    name = f"{shape}-{dtype}-axis{axis}-{layout}-channels"
                    yield Case(name, make(channel_table(8, shape[axis], axis), None, axis, layout), (x,))


def mixable(entries: int, segments: int, degree: int) -> tuple[Spline, ...]:
    """Entries with the knots and origins of one random table."""
    first, *others = (random_table(segments + 50 * i, segments, degree) for i in range(entries))
    return (first, *(Spline(first.knots, other.coefficients, first.origins) for other in others))


def _spline_mix(dtype: np.dtype[Any]) -> Iterator[Case]:
    make, specials, seeds = OPS["SplineMix"], special_numbers(dtype), count()
    for entries in (1, 2, 4, 7):
        for segments, degree in ((1, 0), (2, 1), (8, 2), (16, 3), (17, 3), (32, 3), (4, 16)):
            op = make(mixable(entries, segments, degree))
            x = numbers(next(seeds), (5, 67), dtype, specials)
            g = numbers(next(seeds), (5, entries), dtype)
            yield Case(f"{entries}of{segments}x{degree}-{dtype}", op, (x, g, None))
            g = numbers(next(seeds), (5, entries), dtype, specials)
            yield Case(f"{entries}of{segments}x{degree}-{dtype}-special", op, (x, g, numbers(9, x.shape, dtype)))
    for shape in SHAPES:
        if shape:
            x, u = (numbers(next(seeds), shape, dtype) for _ in range(2))
            g = numbers(next(seeds), (*shape[:-1], 4), dtype)
            op = make(mixable(4, 16, 3))
            yield Case(f"{shape}-{dtype}", op, (x, g, None))
            yield Case(f"{shape}-{dtype}-gated", op, (x, g, u))


def _polynorm(dtype: np.dtype[Any]) -> Iterator[Case]:
    make, specials, seeds = OPS["PolyNorm"], special_numbers(dtype), count()
    for order in range(1, 5):
        w = np.linspace(-0.5, 1, order).astype(dtype)
        b = np.array([0.25], dtype)
        for shape in SHAPES:
            if shape:
                x, u = (numbers(next(seeds), shape, dtype) for _ in range(2))
                yield Case(f"{order}-{shape}-{dtype}", make(), (x, w, b, None))
                yield Case(f"{order}-{shape}-{dtype}-gated", make(), (x, w, b, u))
        for special in specials:
            x = numbers(next(seeds), (3, 70), dtype)
            x[1, 5] = special
            yield Case(f"{order}-{special!r}-{next(seeds)}-{dtype}", make(1e-3), (x, w, b, None))
    x = numbers(next(seeds), (3, 70), dtype)
    yield Case(
        f"overflow-{dtype}",
        make(1e-12),
        (x, np.array([ml_dtypes.finfo(dtype).max], dtype), np.array([np.inf], dtype), None),
    )
    yield Case(f"zeros-{dtype}", make(), (np.zeros((2, 33), dtype), np.ones(3, dtype), np.zeros(1, dtype), None))


def _lut(dtype: np.dtype[Any]) -> Iterator[Case]:
    make, everything = OPS["Lut"], np.arange(256).astype(np.uint8).view(dtype)
    for to, target in ((None, dtype), (2, np.uint8), (3, np.int8)):
        table = tuple(codes(1, (256,), target).tolist())
        yield Case(f"all-{dtype}-to{to}", make(table, to), (everything,))
        for shape in SHAPES:
            yield Case(f"{shape}-{dtype}-to{to}", make(table, to), (codes(2, shape, dtype),))
    for shape in SHAPES:
        for axis in range(-len(shape), len(shape)):
            if 0 < shape[axis] <= 65:
                table = tuple(codes(3, (shape[axis] * 256,), dtype).tolist())
                yield Case(f"{shape}-{dtype}-axis{axis}", make(table, None, axis), (codes(4, shape, dtype),))


def _gated_lut(dtype: np.dtype[Any]) -> Iterator[Case]:
    make = OPS["GatedLut"]
    everything = np.arange(256).astype(np.uint8)
    x, all_u = (np.ascontiguousarray(half) for half in np.broadcast_arrays(everything[:, None], everything))
    halves = np.arange(-128, 128) / 2  # products that are half way between two codes
    for table in (halves, np.random.default_rng(5).normal(0, 0.02, 256), np.full(256, 3e38), np.zeros(256)):
        numbers_ = tuple(table.astype(np.float32).tolist())
        for u_type in CODES:
            for u_zero, y_zero, to in ((0, 0, None), (5, 17, 2), (100, -128, 3)):
                name = f"{table[0]:.3g}-{dtype}-{u_type}-{u_zero}-{y_zero}-to{to}"
                yield Case(name, make(numbers_, u_zero, y_zero, to), (x.view(dtype), all_u.view(u_type)))
    for shape in SHAPES:
        u = codes(6, shape, np.int8)
        yield Case(f"{shape}-{dtype}", make(tuple(halves.tolist())), (codes(7, shape, dtype), u))


def linear_inputs(seed: int, rows: Sequence[int], inputs: int, outputs: int, weights: str) -> tuple[Array, ...]:
    """X, W, B and S of a layer of codes: weights that are "narrow", any, or the "largest" with codes that let sums overflow."""
    rng = np.random.default_rng(seed)
    x = codes(seed, (*rows, inputs), np.uint8)
    matrix = rng.integers(*{"narrow": (-32, 33), "any": (-128, 128), "largest": (126, 128)}[weights], (inputs, outputs))
    if weights == "narrow":
        matrix[::4] *= rng.integers(1, 4, matrix[::4].shape)  # up to 96 + 32 in a four
        matrix[1::4] = 0
        matrix[2::4] = 0
    bias = rng.integers(-(2**12), 2**12, outputs)
    if weights == "largest":
        x[...] = 255
        matrix *= rng.choice([-1, 1], outputs)
        bias[::2] = 2**31 - 1
    scales = rng.choice([0.5, 1e-2, 3e-4, 1e-9], outputs)
    return x, pack(matrix.astype(np.int8)), bias.astype(np.int32), scales.astype(np.float32)


def _linear_shapes() -> Iterator[tuple[str, tuple[Array, ...]]]:
    seeds = count()
    for weights in ("narrow", "any", "largest"):
        for inputs in (0, 1, 3, 4, 7, 8, 9, 64, 130):
            for outputs in (0, 1, 5, 16, 17, 40):
                yield f"{weights}-{inputs}-{outputs}", linear_inputs(next(seeds), (5,), inputs, outputs, weights)
        for rows in ((), (0,), (1,), (3,), (4,), (13,), (2, 3, 5), (0, 4), (2, 1, 2, 3)):
            yield f"{weights}-{rows}", linear_inputs(next(seeds), rows, 24, 33, weights)
        # More than the rows that a kernel takes at once, and than it keeps in the cache, with inputs left over.
        yield f"{weights}-many", linear_inputs(next(seeds), (137,), 13, 33, weights)
    x, w, b, _ = linear_inputs(next(seeds), (4,), 24, 33, "narrow")
    special = np.resize(special_numbers(np.float32), 33)
    yield "special", (x, w, b, special)


def _qlinear(dtype: np.dtype[Any]) -> Iterator[Case]:
    make = OPS["QLinear"]
    table = tuple(codes(1, (256,), dtype).tolist())
    for name, inputs in _linear_shapes():
        yield Case(f"{name}-{dtype}", make(100), inputs)
        yield Case(f"{name}-{dtype}-table", make(255, table), inputs)


def _qlinear_to_float(dtype: np.dtype[Any]) -> Iterator[Case]:
    return (Case(f"{name}-{dtype}", OPS["QLinearToFloat"](), inputs) for name, inputs in _linear_shapes())


def attention_inputs(
    seed: int, sizes: Sequence[int], mask: Sequence[int] | None = None, specials: Sequence[float] = ()
) -> tuple[Array | None, ...]:
    """Q, K, V and M: `sizes` are those of batch, queries, keys, and the columns of Q and V."""
    batch, queries, keys, width, values = sizes
    shapes = ((batch, queries, width), (batch, keys, width), (batch, keys, values))
    added = (
        None if mask is None else numbers(seed, mask, np.dtype(np.float32), np.float32(specials) if specials else None)
    )
    return (*(codes(seed + i, shape, np.uint8) for i, shape in enumerate(shapes)), added)


def _qattention(dtype: np.dtype[Any]) -> Iterator[Case]:
    make, seeds = OPS["QAttention"], count(step=3)
    for queries, keys in ((1, 1), (3, 7), (8, 16), (9, 17), (5, 0), (0, 5), (13, 130)):
        for size, values in ((1, 1), (2, 16), (7, 17), (32, 33), (0, 3), (3, 0)):
            inputs = attention_inputs(next(seeds), (2, queries, keys, 3 * size, 3 * values))
            yield Case(f"{queries}-{keys}-{size}-{values}-{dtype}", make(3, 1e-3, 1.5, 120, 130, 117, 128), inputs)
    everything = [-np.inf, np.inf, np.nan, -3.4e38, 3.4e38, 0.0]
    for mask in ((), (1,), (9,), (5, 9), (5, 1), (2, 1, 9), (4, 2, 5, 9), (4, 1, 1, 9), (1, 2, 1, 1), (4, 2, 5, 1)):
        for name, specials in {"finite": (), "special": everything, "masked": [-np.inf], "nan": [np.nan]}.items():
            inputs = attention_inputs(next(seeds), (4, 5, 9, 8, 6), mask, specials)
            yield Case(f"{mask}-{name}-{dtype}", make(2, -3e-4, 0.7, 0, 255, 3, 9), inputs)
    # More than are added at a time.
    yield Case(f"long-{dtype}", make(1, 1e-5, 30.0, 0, 0, 128, 7), attention_inputs(next(seeds), (1, 2, 40_001, 2, 3)))
    inputs = attention_inputs(next(seeds), (1, 9, 40, 8, 6))
    for scale in (0.0, 1.0, 1e-9, -1e30, 2e38):
        yield Case(f"scale {scale}-{dtype}", make(2, float(scale), 1.0, 100, 100, 100, 100), inputs)
        yield Case(f"output scale {scale}-{dtype}", make(2, 1e-3, float(scale), 100, 100, 100, 100), inputs)


_MAKERS: Mapping[str, tuple[Callable[[np.dtype[Any]], Iterator[Case]], tuple[np.dtype[Any], ...]]] = {
    "Spline": (_spline, FLOATS),
    "GatedSpline": (_gated_spline, FLOATS),
    "SplineMix": (_spline_mix, FLOATS),
    "PolyNorm": (_polynorm, FLOATS),
    "Lut": (_lut, CODES),
    "GatedLut": (_gated_lut, CODES),
    "QAttention": (_qattention, CODES[1:]),
    "QLinear": (_qlinear, CODES[1:]),
    "QLinearToFloat": (_qlinear_to_float, CODES[1:]),
}


def cases(op_type: str) -> Iterator[Case]:
    """Yield the cases of an op, all element types."""
    maker, dtypes = _MAKERS[op_type]
    for dtype in dtypes:
        yield from maker(dtype)


def types_of(op_type: str) -> tuple[np.dtype[Any], ...]:
    """Return the element types that an op's first input may have."""
    return _MAKERS[op_type][1]


# --- what must be refused ---

_TABLE: Mapping[str, Any] = {"degree": 1, "knots": [0.0], "coefficients": [0.0, 0.0, 0.0, 1.0], "origins": [0.0, 0.0]}
_CODES = list(range(-128, 128))
_BROKEN_TABLES: tuple[Mapping[str, Any], ...] = (
    *({**_TABLE, name: None} for name in _TABLE),
    {**_TABLE, "degree": 2},
    {**_TABLE, "degree": -1},
    {**_TABLE, "knots": [0.0, 1.0]},
    {**_TABLE, "knots": [float("nan")]},
    {**_TABLE, "coefficients": [0.0, 0.0, 0.0, float("inf")]},
    {**_TABLE, "origins": [0.0]},
    {"degree": 0, "knots": [1.0, 0.0], "coefficients": [0.0] * 3, "origins": [0.0] * 3},
    {"degree": 0, "knots": [float(i) for i in range(32)], "coefficients": [0.0] * 33, "origins": [0.0] * 33},
    {"degree": 17, "knots": [], "coefficients": [0.0] * 18, "origins": [0.0]},
)
# Attributes that do not fit together or are out of range; what is None is absent.
REFUSED: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "Spline": (
        *_BROKEN_TABLES,
        {**_TABLE, "axis": 0},
        {**_TABLE, "axis": 0, "channels": 2},
        {**_TABLE, "axis": 0, "channels": 0},
    ),
    "GatedSpline": (
        *_BROKEN_TABLES,
        {**_TABLE, "layout": "packed"},
        {**_TABLE, "gate": 2},
        {**_TABLE, "gate": -1},
        {**_TABLE, "channels": 3},
        {**_TABLE, "other_degree": 1},
        {**_TABLE, **{f"other_{name}": value for name, value in _TABLE.items()}, "other_knots": [0.0, 1.0]},
    ),
    "SplineMix": (
        *({**table, "entries": 1} for table in _BROKEN_TABLES),
        _TABLE,
        {**_TABLE, "entries": 0},
        {**_TABLE, "entries": 3},
    ),
    "PolyNorm": ({"epsilon": 0.0}, {"epsilon": -1e-6}, {"epsilon": float("nan")}, {"epsilon": float("inf")}),
    "Lut": (
        {},
        {"table": _CODES[:-1]},
        {"table": _CODES, "to": 1},
        {"table": _CODES, "to": 2},
        {"table": [0] * 255 + [256]},
        {"table": _CODES, "axis": 0},
        {"table": _CODES, "axis": 0, "channels": 2},
    ),
    "GatedLut": (
        {},
        {"table": [0.5] * 255},
        {"table": [0.5] * 255 + [float("inf")]},
        {"table": [0.5] * 256, "to": 6},
        {"table": [0.5] * 256, "u_zero_point": 256},
        {"table": [0.5] * 256, "y_zero_point": -129},
        {"table": [0.5] * 256, "y_zero_point": -1, "to": 2},
    ),
    "QAttention": (
        {},
        {"heads": 0},
        {"heads": -1},
        *({"heads": 1, f"{name}_zero_point": value} for name in "qkvy" for value in (-1, 256)),
        *({"heads": 1, name: value} for name in ("scale", "output_scale") for value in (float("inf"), float("nan"), 3e38)),
    ),
    "QLinear": (
        {"zero_point": -1},
        {"zero_point": 256},
        {"table": [0] * 255},
        {"table": [0] * 255 + [256]},
        {"table": [-1] * 256},
    ),
    "QLinearToFloat": (),
}  # fmt: skip
