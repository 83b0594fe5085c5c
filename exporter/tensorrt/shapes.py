"""The sizes that an engine is built for: an optimization profile, from ranges of the dynamic dimensions.

1. A range that the user states holds.
2. A dimension without one takes its sizes from the data, where there is some: 1, the most common, the largest.
3. Otherwise a first axis is 1:8:32 and any other 1:128:512.

What was assumed is said in `Profile.notes`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from actx.exporter.data import InputSpec
from actx.exporter.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

GRAMMAR = "NAME=MIN:OPT:MAX, such as batch=1:8:32, or NAME=SIZE"
_LARGEST = 2**31 - 1  # the libraries take no larger dimension
_RANGE = re.compile(r"(?P<name>[^=]+)=(?P<sizes>\d{1,18}(?::\d{1,18}:\d{1,18})?)")


@dataclass(frozen=True)
class ShapeRange:
    """Sizes of one dimension.

    Attributes:
        minimum: the least that the engine takes; 0 for empty arrays.
        optimum: the one that its kernels are chosen for.
        maximum: the largest that it takes.

    Raises:
        UsageError: they are not in this order, or the optimum is not positive.
    """

    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        """Check the order."""
        if not 0 <= self.minimum <= self.optimum <= self.maximum <= _LARGEST or self.optimum < 1:
            raise UsageError(
                f"'{self}' is no range of sizes",
                note=f"expected MIN <= OPT <= MAX, with OPT at least 1 and MAX at most {_LARGEST}",
                remedy="Put the numbers in order.",
            )

    def __str__(self) -> str:
        return f"{self.minimum}:{self.optimum}:{self.maximum}"


DEFAULT_FIRST = ShapeRange(1, 8, 32)
DEFAULT_OTHER = ShapeRange(1, 128, 512)


def parse_range(text: str) -> tuple[str, ShapeRange]:
    """Read the name of a dimension and its range, such as ``batch=1:8:32``; ``batch=8`` allows that size alone.

    Raises:
        UsageError: the text does not follow the grammar, or the sizes are not in order.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is no range of a dimension", note=f"expected {GRAMMAR}", remedy="Write it so.")
    sizes = [int(size) for size in match["sizes"].split(":")]
    return match["name"].strip(), ShapeRange(*(sizes if len(sizes) == 3 else sizes * 3))


def parse_ranges(texts: Iterable[str]) -> dict[str, ShapeRange]:
    """Read several ranges.

    Raises:
        UsageError: see `parse_range`; or a dimension has two.
    """
    found: dict[str, ShapeRange] = {}
    for name, sizes in map(parse_range, texts):
        if name in found:
            raise UsageError(
                f"dimension '{name}' has two ranges", note=f"{found[name]} and {sizes}", remedy="Give one."
            )
        found[name] = sizes
    return found


@dataclass(frozen=True)
class Profile:
    """What shapes an engine takes.

    Attributes:
        inputs: the model's.
        ranges: of every dynamic dimension, by name.
        notes: what was assumed, for the user.
    """

    inputs: tuple[InputSpec, ...]
    ranges: Mapping[str, ShapeRange]
    notes: tuple[str, ...] = ()

    def shapes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """Return the least, the optimal and the largest shape of every input."""
        return {
            spec.name: (self._shape(spec, "minimum"), self._shape(spec, "optimum"), self._shape(spec, "maximum"))
            for spec in self.inputs
        }

    def check(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Check that arrays are of shapes that the engine takes.

        Raises:
            UsageError: a size is outside its range, a static one is another, or there are more or fewer dimensions.
        """
        for spec in self.inputs:
            shape = feeds[spec.name].shape
            if len(shape) != len(spec.dims):
                what = f"input '{spec.name}' has {len(shape)} dimensions"
                raise UsageError(what, note=f"the engine takes {spec}", remedy="Give data of that shape.")
            for axis, (dim, size) in enumerate(zip(spec.dims, shape, strict=True)):
                allowed = ShapeRange(dim, dim, dim) if isinstance(dim, int) else self.ranges[dim]
                if not allowed.minimum <= size <= allowed.maximum:
                    raise UsageError(
                        f"the engine does not take {size} for dimension '{dim}'",
                        note=f"input '{spec.name}', axis {axis}; it was built for {allowed}",
                        remedy=f"Build it with --shape {dim}=MIN:OPT:MAX that holds {size}, or feed others (--batch-size).",
                    )

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Profile:
        """Return the profile of an engine from what its build said (`build.Built.facts`)."""
        ranges = parse_ranges(f"{name}={sizes}" for name, sizes in facts["ranges"].items())
        return cls(specs_of(facts), ranges)

    def to_dict(self) -> dict[str, Any]:
        """Return the inputs, the ranges and the shapes of every input as JSON values.

        An input is its fields, not its text: exporters call dimensions what that grammar does not take, such as
        ``past_sequence_length + 1``.
        """
        names = ("minimum", "optimum", "maximum")
        shapes = {name: dict(zip(names, map(list, three), strict=True)) for name, three in self.shapes().items()}
        inputs = [{**asdict(spec), "dims": list(spec.dims)} for spec in self.inputs]
        return {"inputs": inputs, "ranges": {name: str(sizes) for name, sizes in self.ranges.items()}, "shapes": shapes}

    def _shape(self, spec: InputSpec, which: str) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else int(getattr(self.ranges[dim], which)) for dim in spec.dims)


def specs_of(facts: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    """Return an engine's inputs from what its build said; none where that is not known."""
    return tuple(InputSpec(spec["name"], spec["dtype"], tuple(spec["dims"])) for spec in facts.get("inputs", ()))


def sizes_seen(inputs: Sequence[InputSpec], data: Iterable[Mapping[str, NDArray[Any]]]) -> dict[str, Counter[int]]:
    """Count the sizes of every dynamic dimension over batches of data, one per batch."""
    seen: dict[str, Counter[int]] = {}
    for feeds in data:
        sizes = {
            dim: size
            for spec in inputs
            for dim, size in zip(spec.dims, feeds[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }
        for dim, size in sizes.items():
            seen.setdefault(dim, Counter())[size] += 1
    return seen


def resolve(
    inputs: Sequence[InputSpec],
    ranges: Mapping[str, ShapeRange] | None = None,
    seen: Mapping[str, Counter[int]] | None = None,
) -> Profile:
    """Return the profile of a model's inputs.

    Args:
        inputs: the model's.
        ranges: those that the user states, by the name of the dimension.
        seen: sizes in the data (`sizes_seen`).

    Raises:
        UsageError: a range is for a dimension that the model does not have.
    """
    stated, seen = ranges or {}, seen or {}
    dims: dict[str, int] = {}
    for spec in inputs:
        for axis, dim in enumerate(spec.dims):
            if isinstance(dim, str):
                dims.setdefault(dim, axis)
    if unknown := [name for name in stated if name not in dims]:
        listed = ", ".join(str(spec) for spec in inputs)
        raise UsageError(
            f"the model has no dynamic dimension '{unknown[0]}'",
            note=f"dynamic dimensions: {', '.join(dims) or 'none'}; inputs: {listed}",
            remedy="Name one of these; --input names them otherwise. A size that the model fixes cannot be changed here.",
        )
    found = {dim: stated.get(dim) or _assumed(axis, seen.get(dim)) for dim, axis in dims.items()}
    notes = tuple(_note(dim, sizes, seen.get(dim)) for dim, sizes in found.items() if dim not in stated)
    return Profile(tuple(inputs), found, notes)


def _note(dim: str, sizes: ShapeRange, seen: Counter[int] | None) -> str:
    why = "as the batches of the data have it" if seen else "by default"
    return f"dimension '{dim}' is {sizes}, {why}; --shape {dim}=MIN:OPT:MAX states another range"


def _assumed(axis: int, seen: Counter[int] | None) -> ShapeRange:
    if not seen:
        return DEFAULT_OTHER if axis else DEFAULT_FIRST
    common = max(seen, key=lambda size: (seen[size], size))
    return ShapeRange(min(1, common), max(common, 1), max(*seen, 1))
