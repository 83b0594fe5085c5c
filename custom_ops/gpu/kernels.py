"""The Triton kernels of the ops of domain `actx`. They know nothing of ops: `launch.plan` says which one an op takes, and how.

1. Every kernel sees its data as rows of columns. A program computes a tile of ROWS x COLS elements; the grid has one dimension,
   cdiv(rows, ROWS) * cdiv(cols, COLS), the columns first. Offsets of rows and tiles are 64-bit, within a tile 32-bit; they are
   added to a pointer in this order, so that a thread keeps a 64-bit address per row and not one per element.
2. All arithmetic is in float32; a result is rounded once, to the element type.
3. A segment is found in one of three ways (`SEARCH`); counted for bfloat16, degree 3, per element in the code for sm_90:
   `select`, up to 4 segments: knots and coefficients are scalars, a compare and degree + 2 selects per knot, no look-up;
   `buckets`: a product with a power of two and a sum leave the number of the bucket in the low bits, the bucket holds at most
   one knot: 6 look-ups and 28 instructions, whatever the number of segments;
   `count`, where buckets do not part the knots and for tables per channel: a compare and a sum per knot, and 5 look-ups.
   A copy at 3 TB/s leaves an H100 about 40 instructions and 10 look-ups for an element of 2 bytes, an H200 about 27 and 7.
4. The argument of all powers but the last is clamped to the knots, and where a factor is zero that of the last one as well: an
   infinity meets the slope of a linear tail alone, and 0 * inf does not arise. `CURVED` (a tail of degree 2 or more) asks
   the same of every power.
"""

import triton
import triton.language as tl

from actx.custom_ops.gpu import exact
from actx.custom_ops.gpu.tables import BUCKETS, HEADER, ROUNDER

_BUCKETS = tl.constexpr(BUCKETS)
_HEADER = tl.constexpr(HEADER)
_ROUNDER = tl.constexpr(ROUNDER)
_ALL = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def tile(cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """1. Return the rows of this program, int64 [ROWS, 1], its first column, int64, and how many columns it has."""
    across = (cols - 1) // COLS + 1
    program = tl.program_id(0)
    row = (program // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    start = (program % across).to(tl.int64) * COLS
    return row, start, tl.minimum(cols - start, COLS).to(tl.int32)


# --- one piecewise polynomial ---


@triton.jit
def entry(source, row: tl.constexpr, segment, stride, SEGMENTS: tl.constexpr):
    """Look up row `row` of a table for each segment: of a pointer, or of a tensor of the rows of coefficients."""
    if source.dtype.is_ptr():
        found = tl.load(source + (row * SEGMENTS + segment) * stride)
    else:
        found = tl.gather(source, (row - 2) * SEGMENTS + segment, 0)
    return found


@triton.jit
def bucket_of(v, table, PACKED: tl.constexpr, DEGREE: tl.constexpr, SEGMENTS: tl.constexpr):
    """Return the segment of v, which is between the bounds of the table.

    PACKED: the knot is rounded up to the 16-bit type that v has, and the number of knots below is in the bits that are free.
    """
    header = table + (DEGREE + 3) * SEGMENTS
    bucket = (v * tl.load(header + 2) + _ROUNDER).to(tl.int32, bitcast=True) & (_BUCKETS - 1)
    word = tl.load(header + _HEADER + bucket).to(tl.int32, bitcast=True)
    below = word & 31
    knot = (word & -32).to(tl.float32, bitcast=True) if PACKED else tl.load(table + below)
    return below + (v >= knot).to(tl.int32)


@triton.jit
def count_of(v, table, stride, SEGMENTS: tl.constexpr):
    """Return the number of knots that are not above v."""
    segment = (v >= tl.load(table)).to(tl.int32)
    for k in tl.static_range(1, SEGMENTS - 1):
        segment += (v >= tl.load(table + k * stride)).to(tl.int32)
    return segment


@triton.jit
def selected(v, table, row: tl.constexpr, stride, SEGMENTS: tl.constexpr):
    """Return the entry of a row for the segment of each v by running selection."""
    found = tl.broadcast_to(tl.load(table + row * SEGMENTS * stride), v.shape)
    for k in tl.static_range(1, SEGMENTS):
        found = tl.where(v >= tl.load(table + (k - 1) * stride), tl.load(table + (row * SEGMENTS + k) * stride), found)
    return found


@triton.jit
def coefficient(v, table, source, row: tl.constexpr, segment, stride, SEARCH: tl.constexpr, SEGMENTS: tl.constexpr):
    """Return the entry of a row, as the way of the search has it."""
    if SEARCH == "select":
        found = selected(v, table, row, stride, SEGMENTS)
    else:
        found = entry(source, row, segment, stride, SEGMENTS)
    return found


@triton.jit
def spline(
    v, table, source, stride, SEARCH: tl.constexpr, DEGREE: tl.constexpr, SEGMENTS: tl.constexpr, CURVED: tl.constexpr,
    ORIGINS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """3, 4. Return s(v) in float32.

    Args:
        v: float32.
        table: pointers to the table of each element, as `tables.pack` lays it out.
        source: where the coefficients are: `table`, or a tensor of them (`spline_mix`).
        stride: how far apart the entries of a table are.
    """
    header = table + (DEGREE + 3) * SEGMENTS * stride
    inner = tl.clamp(v, tl.load(header), tl.load(header + stride), propagate_nan=_ALL)
    if SEARCH == "buckets":
        segment = bucket_of(inner, table, PACKED, DEGREE, SEGMENTS)
    elif SEARCH == "count":
        segment = count_of(v, table, stride, SEGMENTS)
    else:
        segment = 0
    bounded, whole = inner, v
    if ORIGINS:
        origin = coefficient(v, table, table, 1, segment, stride, SEARCH, SEGMENTS)
        bounded, whole = inner - origin, v - origin
    total = coefficient(v, table, source, 2 + DEGREE, segment, stride, SEARCH, SEGMENTS)
    for power in tl.static_range(1, DEGREE + 1):
        argument = bounded
        if CURVED or power == DEGREE:
            argument = tl.where(total == 0, bounded, whole)
        c = coefficient(v, table, source, 2 + DEGREE - power, segment, stride, SEARCH, SEGMENTS)
        total = tl.fma(total, argument, c)
    return total


@triton.jit
def function(
    v, table, stride, FUNCTION: tl.constexpr, SEARCH: tl.constexpr, DEGREE: tl.constexpr, SEGMENTS: tl.constexpr,
    CURVED: tl.constexpr, ORIGINS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Return the function of v that FUNCTION names: the table's, the identity, or one of `exact`."""
    if FUNCTION == "spline":
        y = spline(v, table, table, stride, SEARCH, DEGREE, SEGMENTS, CURVED, ORIGINS, PACKED)
    else:
        y = exact.evaluate(v, FUNCTION)
    return y


# --- kernels ---


@triton.jit
def activation(
    x, u, y, table, rows, cols, channels,
    FUNCTION: tl.constexpr, SEARCH: tl.constexpr, DEGREE: tl.constexpr, SEGMENTS: tl.constexpr, CURVED: tl.constexpr,
    ORIGINS: tl.constexpr, OTHER: tl.constexpr, OTHER_SEARCH: tl.constexpr, OTHER_DEGREE: tl.constexpr,
    OTHER_SEGMENTS: tl.constexpr, OTHER_CURVED: tl.constexpr, OTHER_ORIGINS: tl.constexpr, OTHER_SIZE: tl.constexpr,
    LAYOUT: tl.constexpr, GATE: tl.constexpr, CHANNEL: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Y = f(gate) [* h(other)] of [rows, cols].

    LAYOUT: where gate and other are.
        `alone`: X is the gate, there is no other. `apart`: the other is U.
        `halves`: a row of X is `cols` elements of one and then of the other. `planes`: the same, `channels` rows at a time.
        `pairs`: they take turns in X.
    GATE: which half is the gate.
    CHANNEL: `one` table for all, or one for each `row` or `column`, of which there are `channels` before they repeat.
    OTHER, OTHER_*: of h, whose table, of OTHER_SIZE numbers, comes first.
    """
    row, start, left = tile(cols, ROWS, COLS)
    here = tl.arange(0, COLS)[None, :]
    there = (row < rows) & (here < left)
    at = row * cols + start
    if LAYOUT == "pairs":
        both = tl.arange(0, 2 * COLS)[None, :]
        loaded = tl.load(x + at * 2 + both, (row < rows) & (both < 2 * left), other=0.0)
        first, second = tl.split(tl.reshape(loaded, (ROWS, COLS, 2)))
        gate, other = (second, first) if GATE else (first, second)
    elif LAYOUT == "halves" or LAYOUT == "planes":
        group = channels if LAYOUT == "planes" else 1
        first = (row + row // group * group) * cols + start
        half = group * cols
        gate = tl.load(x + (first + GATE * half) + here, there, other=0.0)
        other = tl.load(x + (first + (1 - GATE) * half) + here, there, other=0.0)
    else:
        gate = tl.load(x + at + here, there, other=0.0)
        other = tl.load(u + at + here, there, other=0.0) if LAYOUT == "apart" else gate
    packed: tl.constexpr = x.dtype.element_ty.primitive_bitwidth == 16
    channel = (row % channels).to(tl.int32) if CHANNEL == "row" else tl.minimum(start + here, cols - 1).to(tl.int32)
    tables = table + OTHER_SIZE if CHANNEL == "one" else table + OTHER_SIZE + channel
    stride = 1 if CHANNEL == "one" else channels
    value = function(gate.to(tl.float32), tables, stride, FUNCTION, SEARCH, DEGREE, SEGMENTS, CURVED, ORIGINS, packed)
    if LAYOUT != "alone":
        value *= function(
            other.to(tl.float32), table, 1, OTHER, OTHER_SEARCH, OTHER_DEGREE, OTHER_SEGMENTS, OTHER_CURVED,
            OTHER_ORIGINS, packed,
        )  # fmt: skip
    tl.store(y + at + here, value.to(y.dtype.element_ty), there)


@triton.jit
def gate_up(
    x, w, y, table, rows, cols, inner,
    FUNCTION: tl.constexpr, SEARCH: tl.constexpr, DEGREE: tl.constexpr, SEGMENTS: tl.constexpr, CURVED: tl.constexpr,
    ORIGINS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Y = f(X W_gate) * (X W_up) of [rows, cols], with X [rows, inner] and W [inner, 2 cols], whose first half is the gate's.

    Both products are summed in float32, and f is evaluated on the sums: neither is rounded or stored. So the table is one for
    float32, whatever the type of X.
    """
    row, start, left = tile(cols, ROWS, COLS)
    here = tl.arange(0, COLS)[None, :]
    gate = tl.zeros([ROWS, COLS], tl.float32)
    up = tl.zeros([ROWS, COLS], tl.float32)
    for begin in range(0, inner, INNER):
        depth = begin + tl.arange(0, INNER)
        part = tl.load(x + row * inner + depth[None, :], (row < rows) & (depth[None, :] < inner), other=0.0)
        at = depth[:, None].to(tl.int64) * 2 * cols + start + here
        there = (depth[:, None] < inner) & (here < left)
        gate = tl.dot(part, tl.load(w + at, there, other=0.0), gate)
        up = tl.dot(part, tl.load(w + at + cols, there, other=0.0), up)
    value = up * function(gate, table, 1, FUNCTION, SEARCH, DEGREE, SEGMENTS, CURVED, ORIGINS, False)
    tl.store(y + (row * cols + start) + here, value.to(y.dtype.element_ty), (row < rows) & (here < left))


@triton.jit
def spline_mix(
    x, g, u, y, table, rows, cols,
    ENTRIES: tl.constexpr, SEARCH: tl.constexpr, DEGREE: tl.constexpr, SEGMENTS: tl.constexpr, CURVED: tl.constexpr,
    ORIGINS: tl.constexpr, SIZE: tl.constexpr, PLACES: tl.constexpr, FACTOR: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Y = sum_e G[row, e] s_e(X) [* U] of [rows, cols], with G [rows, ENTRIES].

    A program computes a part of one row. Its mixed coefficients are one tensor, in shared memory for the look-ups; they cost
    ENTRIES products per thread. In front of the entries' coefficients the table has SIZE numbers: the first entry, packed.
    """
    across = (cols - 1) // COLS + 1
    row = (tl.program_id(0) // across).to(tl.int64)
    start = (tl.program_id(0) % across).to(tl.int64) * COLS
    here = tl.arange(0, COLS)
    there = here < tl.minimum(cols - start, COLS).to(tl.int32)
    at = row * cols + start
    place = tl.arange(0, PLACES)
    inside = place < (DEGREE + 1) * SEGMENTS
    mixed = tl.zeros_like(place).to(tl.float32)
    for e in tl.static_range(ENTRIES):
        weight = tl.load(g + row * ENTRIES + e).to(tl.float32)
        mixed += weight * tl.load(table + SIZE + e * (DEGREE + 1) * SEGMENTS + place, inside, other=0.0)
    v = tl.load(x + at + here, there, other=0.0).to(tl.float32)
    packed: tl.constexpr = x.dtype.element_ty.primitive_bitwidth == 16
    value = spline(v, table, mixed, 1, SEARCH, DEGREE, SEGMENTS, CURVED, ORIGINS, packed)
    if FACTOR:
        value *= tl.load(u + at + here, there, other=0.0).to(tl.float32)
    tl.store(y + at + here, value.to(y.dtype.element_ty), there)


@triton.jit
def add_moments(sums, v, ORDER: tl.constexpr):
    """Add v^2, v^4, ... to the sums, of which there is one for each power."""
    square = v * v
    power = square
    added = ()
    for k in tl.static_range(ORDER):
        added = added + (sums[k] + power,)
        power *= square
    return added


@triton.jit
def polynomial(v, sums, w, b, cols, epsilon, ORDER: tl.constexpr):
    """Return the polynomial of a row, from the sums of its even powers, by Horner's rule."""
    total = tl.zeros_like(v)
    for i in tl.static_range(ORDER):
        mean = sums[ORDER - 1 - i] / cols + epsilon
        total = (total + tl.load(w + i).to(tl.float32) * (1.0 / tl.sqrt_rn(mean))) * v
    return total + tl.load(b).to(tl.float32)


@triton.jit
def polynorm(
    x, w, b, u, y, table, rows, cols,
    ORDER: tl.constexpr, FACTOR: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Y = sum_i W[i] N(X^(ORDER - i)) + B [* U] along the rows of [rows, cols]; epsilon is the one number of the table.

    WHOLE: a row fits into COLS and is read once. Otherwise it is read twice, the second time from the L2 cache where it fits.
    """
    epsilon = tl.load(table)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    here = tl.arange(0, COLS)[None, :]
    sums = ()
    for _ in tl.static_range(ORDER):
        sums = sums + (tl.zeros([ROWS, COLS], tl.float32),)
    if WHOLE:
        there = (row < rows) & (here < cols)
        at = row * cols
        v = tl.load(x + at + here, there, other=0.0).to(tl.float32)
        sums = totals(add_moments(sums, v, ORDER), ORDER)
        value = polynomial(v, sums, w, b, cols, epsilon, ORDER)
        if FACTOR:
            value *= tl.load(u + at + here, there, other=0.0).to(tl.float32)
        tl.store(y + at + here, value.to(y.dtype.element_ty), there)
    else:
        for start in range(0, cols, COLS):
            there = (row < rows) & (start + here < cols)
            sums = add_moments(sums, tl.load(x + (row * cols + start) + here, there, other=0.0).to(tl.float32), ORDER)
        sums = totals(sums, ORDER)
        for start in range(0, cols, COLS):
            there = (row < rows) & (start + here < cols)
            at = row * cols + start
            value = polynomial(
                tl.load(x + at + here, there, other=0.0).to(tl.float32), sums, w, b, cols, epsilon, ORDER
            )
            if FACTOR:
                value *= tl.load(u + at + here, there, other=0.0).to(tl.float32)
            tl.store(y + at + here, value.to(y.dtype.element_ty), there)


@triton.jit
def totals(sums, ORDER: tl.constexpr):
    """Return the sums over the columns, [ROWS, 1] each."""
    found = ()
    for k in tl.static_range(ORDER):
        found = found + (tl.sum(sums[k], 1, keep_dims=True),)
    return found


@triton.jit
def lut(x, y, table, rows, cols, channels, CHANNEL: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Y = table[X] of 8-bit codes, by their bits; CHANNEL as in `activation`, each channel's 256 entries together."""
    row, start, left = tile(cols, ROWS, COLS)
    here = tl.arange(0, COLS)[None, :]
    there = (row < rows) & (here < left)
    at = row * cols + start
    code = tl.load(x + at + here, there, other=0).to(tl.uint8, bitcast=True).to(tl.int32)
    if CHANNEL == "row":
        code += (row % channels).to(tl.int32) * 256
    elif CHANNEL == "column":
        code += tl.minimum(start + here, cols - 1).to(tl.int32) * 256
    tl.store(y + at + here, tl.load(table + code), there)


@triton.jit
def gated_lut(x, u, y, table, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Y = saturate(round_half_even(table[X] * (U - u_zero_point)) + y_zero_point) of 8-bit codes.

    Behind the 256 entries, by the bits of a code: u_zero_point, y_zero_point, and between what the product is clamped. What is
    clamped to whole numbers first rounds to the same, and is small enough for a sum to round it.
    """
    row, start, left = tile(cols, ROWS, COLS)
    here = tl.arange(0, COLS)[None, :]
    there = (row < rows) & (here < left)
    at = row * cols + start
    code = tl.load(x + at + here, there, other=0).to(tl.uint8, bitcast=True).to(tl.int32)
    factor = tl.load(u + at + here, there, other=0).to(tl.float32) - tl.load(table + 256)
    product = tl.clamp(tl.load(table + code) * factor, tl.load(table + 258), tl.load(table + 259))
    whole = (product + _ROUNDER).to(tl.int32, bitcast=True)  # its low bits
    tl.store(y + at + here, (whole + tl.load(table + 257).to(tl.int32)).to(y.dtype.element_ty), there)
