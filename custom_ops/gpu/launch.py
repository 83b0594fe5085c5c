"""How an op is launched: the one description that torch, the compiler ahead of time, a plugin and a C++ launcher share.

1. `specialise` chooses a kernel for a node and its element types. Of the sizes only two choices depend: the tile, one of a few
   by the number of columns, and whether rows start at multiples of 16 bytes. `compilation` says what is compiled where sizes
   need not be known.
2. `split` says which of the output's dimensions are rows, columns and channels; the integer arguments are their products, which
   `view` gives. Sizes may be symbols.
3. The grid is cdiv(rows, tile rows) * cdiv(cols, tile columns).
4. A kernel takes the inputs whose places `Kernel.inputs` has, the result, the table, then the integers. An input that is absent
   it does not read: the first stands in for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from actx.custom_ops.gpu.tables import Search, Table, pack, rows_of_coefficients
from actx.custom_ops.ops.gated_lut import GatedLutOp
from actx.custom_ops.ops.gated_spline import GatedSplineOp
from actx.custom_ops.ops.lut import CODE_COUNT, LutOp
from actx.custom_ops.ops.op import is_known
from actx.custom_ops.ops.polynorm import PolyNormOp
from actx.custom_ops.ops.spline import SplineOp
from actx.custom_ops.ops.spline_mix import SplineMixOp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from actx.custom_ops.ops import Op, TensorType

# A size, or what stands for one while shapes are not known: anything with products, sums and floor division.
Size: TypeAlias = Any
Types: TypeAlias = "Sequence[TensorType | None]"

TILE = 2048  # elements of a program, 16 per thread: one access of 16 bytes for codes, two for 16-bit types
WARPS = 4
_COLUMNS = (16, 64, 256, 1024)  # of the tiles of rows; where all is one row, a tile is a part of it
MOST_SELECTED = 64  # coefficients in registers besides 16 elements
MIX_TILE = 4096
LONGEST_ROW = 16384  # of PolyNorm, in registers: a row of 32768 would spill
PIECE = 8192  # of a longer one
# Of `gate_up`: rows, columns, and how many products are summed at a time. Twice the columns would spill registers.
PRODUCT_TILE = (128, 32, 32)
_NO_TABLE = {"SEARCH": "select", "DEGREE": 1, "SEGMENTS": 1, "CURVED": False, "ORIGINS": False}
# Rows of a number of columns that this divides start at multiples of 16 bytes; Triton's compiler knows no other number.
ALIGNMENT = 16


@dataclass(frozen=True)
class Kernel:
    """A specialised kernel.

    Attributes:
        name: of the function in `kernels`.
        constexprs: what it is compiled for, by parameter.
        warps: warps of a program.
        inputs: places of the op's inputs that its tensor parameters take, in order.
        tile: rows and columns of a program; None for all columns.
        integers: names of its integer parameters, in order.
    """

    name: str
    constexprs: Mapping[str, Any]
    warps: int
    inputs: tuple[int, ...]
    tile: tuple[int, int | None]
    integers: tuple[str, ...] = ("rows", "cols")


@dataclass(frozen=True)
class Launch:
    """A launch.

    Attributes:
        kernel: what is launched.
        table: float32, or codes of the output's type; the same for all launches of a node with these element types.
        integers: the values of the kernel's integer parameters.
        grid: number of programs, 0 where the output is empty.
        aligned: whether rows start at multiples of 16 bytes if the tensors do.
    """

    kernel: Kernel
    table: NDArray[Any]
    integers: tuple[Size, ...]
    grid: Size
    aligned: bool


@dataclass(frozen=True)
class Compilation:
    """What is compiled for a node.

    Attributes:
        kernel: what is launched; where the number of columns is not known, the one for wide rows.
        table: as of a `Launch`.
        pointers: element types of the inputs that the kernel takes, the result and the table, in order.
        aligned: whether rows start at multiples of 16 bytes if the tensors do; None where that is not known.
    """

    kernel: Kernel
    table: NDArray[Any]
    pointers: tuple[np.dtype[Any], ...]
    aligned: bool | None


def plan(op: Op, inputs: Types) -> Launch:
    """Return the launch of a node for these types and sizes.

    Args:
        op: the node.
        inputs: types and shapes, in the order of the op; None for an input that is absent.

    Raises:
        ValueError: types or shapes do not fit.
    """
    op.output(inputs)
    sizes = view(op, inputs)
    kernel, table = specialise(op, inputs, cols=sizes[1])
    return Launch(kernel, table, sizes[: len(kernel.integers)], grid(kernel, *sizes[:2]), sizes[1] % ALIGNMENT == 0)


def grid(kernel: Kernel, rows: Size, cols: Size) -> Size:
    """3."""
    tall, wide = kernel.tile
    down = (rows + (tall - 1)) // tall
    return down if wide is None else down * ((cols + (wide - 1)) // wide)


# --- 1. ---


def compilation(op: Op, inputs: Types) -> Compilation:
    """Return what is compiled for a node for these types, and sizes as far as they are known.

    Raises:
        ValueError: types or shapes do not fit, or what `specialise` needs of the shapes is not known.
    """
    output, weights = op.output(inputs), inputs[1] if isinstance(op, PolyNormOp) else None
    if output.shape is None or inputs[0] is None or inputs[0].shape is None:
        msg = f"actx::{op.NAME} is compiled for a GPU, and the rank of its input {op.INPUTS[0].name} is not known"
        raise ValueError(msg)
    if weights is not None and not (weights.shape and is_known(weights.shape[0])):
        msg = f"actx::{op.NAME} is compiled for a GPU, and the number of its weights is not known"
        raise ValueError(msg)
    columns = output.shape[split(op, inputs)[0] :]
    static = all(map(is_known, columns))
    known = math.prod(size for size in columns if is_known(size))
    kernel, table = specialise(op, inputs, known if static else None)
    taken = [inputs[place] for place in kernel.inputs]
    pointers = (*(one.dtype for one in taken if one is not None), output.dtype, table.dtype)
    aligned = known % ALIGNMENT == 0
    return Compilation(kernel, table, pointers, aligned if aligned or static else None)


def specialise(op: Op, inputs: Types, cols: int | None = None) -> tuple[Kernel, NDArray[Any]]:
    """Return the kernel and the table of a node.

    Args:
        op: the node.
        inputs: element types; of the shapes what `view` needs to be known: the rank, and the number of weights of PolyNorm.
        cols: the number of columns, None where it is not known: then the kernel for wide rows, which is right for all.
    """
    return _specialise(op, inputs, cols)


@singledispatch
def _specialise(op: Op, inputs: Types, cols: int | None) -> tuple[Kernel, NDArray[Any]]:
    msg = f"no kernel for actx::{op.NAME}"
    raise NotImplementedError(msg)


@_specialise.register(SplineOp)
def _(op: SplineOp, inputs: Types, cols: int | None) -> tuple[Kernel, NDArray[Any]]:
    table = pack(op.spline, _dtype(inputs))
    layout = "alone" if inputs[1] is None else "apart"
    by = "one" if op.spline.axis is None else _channels_along(_shape(inputs), op.spline.axis)
    return activation(table.constexprs(), layout=layout, channel=by, cols=cols), table.numbers


@_specialise.register(GatedSplineOp)
def _(op: GatedSplineOp, inputs: Types, cols: int | None) -> tuple[Kernel, NDArray[Any]]:
    shape, dtype = _shape(inputs), _dtype(inputs)
    table = pack(op.spline, dtype)
    other = None if op.other is None else pack(op.other, dtype)
    layout, by = _halves(op, shape)
    kernel = activation(table.constexprs(), other=other, layout=layout, channel=by, gate=op.gate, cols=cols)
    return kernel, table.numbers if other is None else np.concatenate([other.numbers, table.numbers])


@_specialise.register(SplineMixOp)
def _(op: SplineMixOp, inputs: Types, cols: int | None) -> tuple[Kernel, NDArray[Any]]:
    dtype, first = _dtype(inputs), op.entries[0]
    table = pack(first, dtype)
    if table.search == "select":  # which reads coefficients one by one
        table = pack(first, dtype, "count")
    curved = any(pack(entry, dtype, table.search).curved for entry in op.entries)
    rows = [rows_of_coefficients(entry, table.segments, table.degree).reshape(-1) for entry in op.entries]
    wide = _power_of_two(MIX_TILE if cols is None else cols, 256, MIX_TILE)
    constexprs = {
        **replace(table, curved=curved).constexprs(), "ENTRIES": len(op.entries), "SIZE": len(table.numbers),
        "PLACES": _power_of_two((table.degree + 1) * table.segments, 2, 2**10),
        "FACTOR": inputs[2] is not None, "COLS": wide,
    }  # fmt: skip
    kernel = Kernel("spline_mix", constexprs, max(wide // 512, 1), (0, 1, 2 if inputs[2] else 0), (1, wide))
    return kernel, np.concatenate([table.numbers, *rows])


@_specialise.register(PolyNormOp)
def _(op: PolyNormOp, inputs: Types, cols: int | None) -> tuple[Kernel, NDArray[Any]]:
    assert inputs[1] is not None
    assert inputs[1].shape is not None
    whole = cols is not None and cols <= LONGEST_ROW
    wide = _power_of_two(cols, 64, LONGEST_ROW) if cols is not None and whole else PIECE
    tall = max(TILE // 2 // wide, 1)
    constexprs = {
        "ORDER": inputs[1].shape[0], "FACTOR": inputs[3] is not None, "WHOLE": whole, "ROWS": tall, "COLS": wide,
    }  # fmt: skip
    warps = min(max(wide // 1024, WARPS), 32)
    return Kernel("polynorm", constexprs, warps, (0, 1, 2, 3 if inputs[3] else 0), (tall, None)), np.array(
        [op.epsilon], np.float32
    )


@_specialise.register(LutOp)
def _(op: LutOp, inputs: Types, cols: int | None) -> tuple[Kernel, NDArray[Any]]:
    by = "one" if op.axis is None else _channels_along(_shape(inputs), op.axis)
    tall, wide = _tile(cols, flat=by == "one")
    constexprs = {"CHANNEL": by, "ROWS": tall, "COLS": wide}
    kernel = Kernel("lut", constexprs, WARPS, (0,), (tall, wide), ("rows", "cols", "channels"))
    table = np.array(op.table).reshape(-1, CODE_COUNT).astype(op.output(inputs).dtype)
    return kernel, _by_bits(table, _dtype(inputs)).reshape(-1)


@_specialise.register(GatedLutOp)
def _(op: GatedLutOp, inputs: Types, cols: int | None) -> tuple[Kernel, NDArray[Any]]:
    tall, wide = _tile(cols, flat=True)
    info, zero = np.iinfo(op.output(inputs).dtype), op.y_zero_point
    behind = [op.u_zero_point, zero, info.min - zero, info.max - zero]
    table = _by_bits(np.array(op.table, np.float32), _dtype(inputs))
    kernel = Kernel("gated_lut", {"ROWS": tall, "COLS": wide}, WARPS, (0, 1), (tall, wide))
    return kernel, np.concatenate([table, np.array(behind, np.float32)])


def activation(
    constexprs: Mapping[str, Any], *, function: str = "spline", other: Table | None = None, layout: str = "alone",
    channel: str = "one", gate: int = 0, cols: int | None = None,
) -> Kernel:  # fmt: skip
    """Return the kernel `activation` for the constexprs of a table."""
    tall, wide = _tile(cols, flat=channel == "one" and layout in {"alone", "apart", "pairs"})
    of_other = other.constexprs("OTHER_") if other else {f"OTHER_{name}": value for name, value in _NO_TABLE.items()}
    choice = {
        "FUNCTION": function, **(constexprs or _NO_TABLE), "OTHER": "spline" if other else "identity", **of_other,
        "OTHER_SIZE": 0 if other is None else len(other.numbers), "LAYOUT": layout, "GATE": gate, "CHANNEL": channel,
        "ROWS": tall, "COLS": wide,
    }  # fmt: skip
    inputs = (0, 1 if layout == "apart" else 0)
    # Coefficients that are selected from stay in registers: where they are many, a thread has half as many elements.
    many = choice["SEARCH"] == "select" and choice["SEGMENTS"] * (choice["DEGREE"] + 1) > MOST_SELECTED
    return Kernel(
        "activation", choice, 2 * WARPS if many else WARPS, inputs, (tall, wide), ("rows", "cols", "channels")
    )


# The functions of `exact.py`, and how far from its definition one may be, times 1 + |x|.
EXACT = ("gelu", "gelu_tanh", "silu", "tanh", "mish")
MAX_ERROR = 1e-6


def exact(function: str, layout: str = "alone", gate: int = 0, cols: int | None = None) -> Kernel:
    """Return the kernel `activation` for a function of `exact.py`, one of `EXACT`."""
    return activation({}, function=function, layout=layout, gate=gate, cols=cols)


def gate_up(constexprs: Mapping[str, Any], *, function: str = "spline") -> Kernel:
    """Return the kernel `gate_up` for the constexprs of a table for float32, or for a function of `exact.py`.

    No op has it. It is for compute capability 8.0 and later: on 7.5 Triton has no matrix instructions.
    """
    tall, wide, deep = PRODUCT_TILE
    choice = {"FUNCTION": function, **(constexprs or _NO_TABLE), "ROWS": tall, "COLS": wide, "INNER": deep}
    return Kernel("gate_up", choice, 2 * WARPS, (0, 1), (tall, wide), ("rows", "cols", "inner"))


def _tile(cols: int | None, *, flat: bool) -> tuple[int, int]:
    fitting = next((width for width in _COLUMNS if cols is not None and cols <= width), _COLUMNS[-1])
    wide = TILE if flat else fitting
    return TILE // wide, wide


def _power_of_two(size: int, least: int, most: int) -> int:
    return int(min(max(2 ** (size - 1).bit_length(), least), most)) if size > 0 else least


def _by_bits(table: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Order entries for ascending codes by the codes' bits: those of int8 begin with 0 to 127."""
    return np.roll(table, CODE_COUNT // 2, axis=-1) if dtype == np.int8 else table


def _channels_along(shape: Sequence[Size], axis: int) -> str:
    return "column" if axis % len(shape) == len(shape) - 1 else "row"


def _halves(op: GatedSplineOp, shape: Sequence[Size]) -> tuple[str, str]:
    """Return the layout and what a channel is."""
    last = op.axis % len(shape) == len(shape) - 1
    by = "one" if op.spline.axis is None else "column" if last else "row"
    if op.layout == "interleaved":
        return ("pairs" if last else "halves"), by
    return ("planes" if by == "row" else "halves"), by


# --- 2. ---


def view(op: Op, inputs: Types) -> tuple[Size, Size, Size]:
    """Return rows, columns and channels."""
    shape = op.output(inputs).shape
    assert shape is not None
    rows, axis = split(op, inputs)
    return math.prod(shape[:rows]), math.prod(shape[rows:]), 1 if axis is None else shape[axis]


@singledispatch
def split(op: Op, inputs: Types) -> tuple[int, int | None]:
    """Return how many of the output's dimensions are rows, the others being columns, and which is channels, None for none.

    Both count from the end where they are negative. Of the shapes only the first input's rank counts, and that only where a
    table is per channel or halves are taken.
    """
    del op, inputs
    return 0, None


@split.register(SplineOp)
@split.register(LutOp)
def _(op: SplineOp | LutOp, inputs: Types) -> tuple[int, int | None]:
    axis = op.axis if isinstance(op, LutOp) else op.spline.axis
    if axis is None:
        return 0, None
    rank = len(_shape(inputs))
    place = axis % rank
    return place if _channels_along(_shape(inputs), axis) == "column" else place + 1, place


@split.register(GatedSplineOp)
def _(op: GatedSplineOp, inputs: Types) -> tuple[int, int | None]:
    shape = _shape(inputs)
    place = op.axis % len(shape)
    layout, by = _halves(op, shape)
    if by == "row" or (layout == "halves" and op.layout == "interleaved"):
        return place + 1, place
    return 0 if layout == "pairs" and by == "one" else place, place


@split.register(SplineMixOp)
@split.register(PolyNormOp)
def _(op: SplineMixOp | PolyNormOp, inputs: Types) -> tuple[int, int | None]:
    del op, inputs
    return -1, None


def _shape(inputs: Types) -> Sequence[Size]:
    first = inputs[0]
    assert first is not None
    assert first.shape is not None
    return first.shape


def _dtype(inputs: Types) -> np.dtype[Any]:
    first = inputs[0]
    assert first is not None
    return first.dtype


__all__ = [
    "Compilation", "Kernel", "Launch", "Search", "activation", "compilation", "exact", "gate_up", "grid", "plan", "specialise",
    "split", "view",
]  # fmt: skip
