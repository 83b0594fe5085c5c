"""Every row of the kernel table, on every instruction set of this machine, against the float64 reference."""

from __future__ import annotations

import os
from itertools import product
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from actx.custom_ops import Spline, cpu
from actx.custom_ops.ops import OPS
from tests.op_cases import around_knots, gelu_table, random_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Only a machine without a compiler may lack the library; one that is there and cannot be used is an error.
if cpu.find() is None and not os.environ.get("CI"):
    pytest.skip("actx was installed without its kernels: no C++ compiler was found", allow_module_level=True)
LIBRARY = cpu.load()

INDEX_OF_ROW = ("direct", "buckets", "search")
ROWS = [
    (isa, kernel.name)
    for isa in LIBRARY.isas
    for kernel in LIBRARY.kernels(isa)
    if kernel.name.startswith(INDEX_OF_ROW)
]
# What fuses a product and a sum into one rounding gives the same bits, whatever its vectors.
FUSED = tuple(isa for isa in LIBRARY.isas if isa != "portable")
PATTERNS = np.arange(2**16, dtype=np.uint16)
HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def size_of(row: str) -> tuple[int, int]:
    """Return the most segments and the highest degree of a row, from its name."""
    _, _, size = row.rpartition("_")
    width, _, degree = size.partition("x")
    return (4, 16) if degree == "16" else (int(width), int(degree))


def dyadic_table(seed: int, segments: int, degree: int) -> Spline:
    """Knots at multiples of 1/4, some left out, with jumps."""
    table = random_table(seed, segments, degree)
    places = np.delete(np.arange(segments), segments // 2)[: segments - 1]
    return Spline(((places - segments // 3) / 4).astype(np.float32), table.coefficients, table.origins)


def tables_for(row: str) -> list[Spline]:
    """Return tables that the row takes: the largest that it has room for, and smaller ones."""
    segments, degree = size_of(row)
    make = {
        "direct": lambda n: dyadic_table(n, n, degree),
        "buckets": lambda n: gelu_table(n, degree),
        "search": lambda n: random_table(n, n, degree),
    }[row.split("_", maxsplit=1)[0]]
    fewer = segments - 1 if row.startswith("direct") else segments  # the buckets outside its knots take two entries
    return [make(n) for n in (fewer, max(fewer // 2, 3))]


def run(isa: str, row: str, table: Spline, x: NDArray[Any]) -> NDArray[Any]:
    operator = LIBRARY.create("Spline", table.attributes(), isa=isa, kernel=row)
    assert operator.kernel == row
    return operator.run([x, None])


def float32_sample(table: Spline) -> NDArray[np.float32]:
    """Every 2^14th pattern, which meets all exponents and NaN and infinities, and the knots with their neighbours."""
    patterns = np.arange(0, 2**32, 2**14, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return np.concatenate([patterns, around_knots(table, np.float32), np.linspace(-9, 9, 4099, dtype=np.float32)])


@pytest.mark.parametrize(("isa", "row"), ROWS)
def test_row_keeps_the_contract_on_float32(isa: str, row: str) -> None:
    for table in tables_for(row):
        x = float32_sample(table)
        assert OPS["Spline"](table).agrees(run(isa, row, table, x), [x, None]).all()


@pytest.mark.parametrize(("isa", "row"), ROWS)
def test_row_keeps_the_contract_on_every_half_precision_number(isa: str, row: str) -> None:
    table = tables_for(row)[0]
    for dtype in HALVES:
        x = PATTERNS.view(dtype)
        assert OPS["Spline"](table).agrees(run(isa, row, table, x), [x, None]).all(), dtype


@pytest.mark.parametrize("row", sorted({row for _, row in ROWS}))
def test_instruction_sets_give_the_same_bits(row: str) -> None:
    isas = [isa for isa in FUSED if (isa, row) in ROWS]
    for table in tables_for(row):
        x = float32_sample(table)
        results = [run(isa, row, table, x) for isa in isas]
        for result in results[1:]:
            assert np.array_equal(result, results[0], equal_nan=True)


@pytest.mark.parametrize("isa", LIBRARY.isas)
def test_every_row_of_an_index_gives_the_same_bits(isa: str) -> None:
    """How a segment is found does not change the result."""
    table = dyadic_table(3, 7, 3)
    x = float32_sample(table)
    rows = [row for name, row in ROWS if name == isa and size_of(row) in {(8, 3), (16, 3), (32, 3)}]
    results = [run(isa, row, table, x) for row in rows]
    assert len({row.split("_")[0] for row in rows}) >= 2
    for result in results[1:]:
        assert np.array_equal(result, results[0], equal_nan=True)


def test_the_cheapest_row_that_fits_is_taken() -> None:
    best = LIBRARY.isas[0]

    def chosen(table: Spline) -> str:
        return LIBRARY.create("Spline", table.attributes(), isa=best).kernel

    assert chosen(Spline.of([0], [[0, 0], [0, 1]])) == "direct_8x1"
    assert chosen(Spline.of([-3, 3], [[0, 0, 0], [0, 0.5, 1 / 6], [0, 1, 0]])) == "direct_8x2"
    assert chosen(random_table(1, 4, 16)) == "search_8x16"
    assert chosen(Spline.of([-1e30, 0.1, 1e30], [[0, 0], [0, 1], [1, 2], [3, 4]])) == "search_8x1"


@pytest.mark.parametrize(("isa", "row"), [(LIBRARY.isas[0], "direct_8x1"), (LIBRARY.isas[0], "search_8x3")])
def test_a_row_that_does_not_fit_is_refused(isa: str, row: str) -> None:
    with pytest.raises(ValueError, match=f"{row}.*does not take a table of 16 segments"):
        LIBRARY.create("Spline", gelu_table(16, 3).attributes(), isa=isa, kernel=row)


def test_one_float32_number_in_256_on_the_best_instruction_set() -> None:
    """2^24 numbers; `python -m tests.exhaustive` takes them all."""
    table = gelu_table(24, 3)
    operator, op = LIBRARY.create("Spline", table.attributes()), OPS["Spline"](table)
    for first in range(0, 2**32, 2**28):
        patterns = np.arange(first + first // 2**28 * 17, first + 2**28, 2**8, dtype=np.uint64)
        x = patterns.astype(np.uint32).view(np.float32)
        assert op.agrees(operator.run([x, None]), [x, None]).all()


@pytest.mark.parametrize(("isa", "dtypes"), [*product(LIBRARY.isas, [(np.uint8, np.int8), (np.int8, np.uint8)])])
def test_lut_looks_up_all_codes(isa: str, dtypes: tuple[type, type]) -> None:
    source, target = (np.iinfo(dtype) for dtype in dtypes)
    table = np.random.default_rng(0).permutation(np.arange(target.min, target.max + 1))
    x = np.tile(np.arange(source.min, source.max + 1).astype(dtypes[0]), 5)[3:]
    attributes = {"table": table.tolist(), "to": 2 if dtypes[1] is np.uint8 else 3}
    y = LIBRARY.run("Lut", attributes, [x], isa=isa)
    assert y.dtype == dtypes[1]
    assert np.array_equal(y, table[x.astype(int) - source.min].astype(dtypes[1]))


def test_more_than_2_to_the_31_elements() -> None:
    """The input is never written, so it takes no memory of its own."""
    x = np.zeros(2**31 + 70_001, np.uint8)
    x[-3:] = (7, 8, 9)
    y = LIBRARY.run("Lut", {"table": [(i + 1) % 256 for i in range(256)]}, [x])
    assert y.shape == x.shape
    assert y[-5:].tolist() == [1, 1, 8, 9, 10]
    assert (y[2**31 - 100 : 2**31 + 100] == 1).all()
