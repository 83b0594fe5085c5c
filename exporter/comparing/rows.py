"""The rows of a comparison: every quantity of every side, and whether it became worse or better.

1. Less is better, but of the ratio to the original, the samples per second and the accuracy.
2. A change of at most 1 % is none. One of the latency must exceed what the original shows against itself in that quantity,
   in both measurements together; as it stands, and beyond what the original's changed by from one measurement to the other.
3. The ratio to the original changed where the 95 % intervals of both do not meet.
4. What was measured on other machines, on inputs of other shapes or on other data is not judged, nor is the original itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from actx.exporter.comparing.side import ACCURACY, ORIGINAL, QUANTITIES, RATIO, SIZE, log_ratio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from actx.exporter.comparing.side import Side

Status: TypeAlias = Literal["worse", "better", "same", "not judged"]

_SAME = math.log(1.01)
_MORE_IS_BETTER = frozenset({RATIO, "latency.throughput", ACCURACY})
_LEFT_OUT = frozenset(ORIGINAL) - {"original.p50"}  # of the rows; conditions know them
# Facts that a kind of quantity cannot be judged without.
_DEPENDS = {
    "latency": ("machine", "input shapes"),
    "original": ("machine", "input shapes"),
    "drift": ("data",),
    "accuracy": ("data",),
}
_OF_THE_ORIGINAL = ("source", "target", "scheme")


@dataclass(frozen=True)
class Change:
    """How one side's quantity differs from the base's.

    Attributes:
        ratio: to the base's; None where one was not measured or the base's is 0 and this one's is not.
        status: see the module's docstring.
        reason: why it was not judged; else empty.
    """

    ratio: float | None
    status: Status
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One quantity of every side, the base first, and the changes of the others."""

    quantity: str
    unit: str
    values: tuple[float | None, ...]
    changes: tuple[Change, ...]

    @property
    def rank(self) -> int:
        """Where it stands: what became worse anywhere, then what became better, then the rest."""
        statuses = {change.status for change in self.changes}
        return 0 if "worse" in statuses else 1 if "better" in statuses else 2


def rows_of(sides: Sequence[Side]) -> tuple[Row, ...]:
    """Return the quantities that any side has, regressions first."""
    base, *others = sides
    rows = [
        Row(
            name,
            unit(name),
            tuple(side.values.get(name) for side in sides),
            tuple(_change(name, base, other) for other in others),
        )
        for name in names_of(sides)
        if name not in _LEFT_OUT and any(side.values.get(name) is not None for side in sides)
    ]
    return tuple(sorted(rows, key=lambda row: row.rank))


def names_of(sides: Sequence[Side]) -> list[str]:
    """Return the names of all quantities, in their order; those of outputs and files behind their kind."""
    kinds = {name: i for i, name in enumerate(QUANTITIES)}
    found = dict.fromkeys([*QUANTITIES, *(name for side in sides for name in side.values)])
    return sorted(found, key=lambda name: kinds.get(name.partition("[")[0], len(kinds)))


def unit(name: str) -> str:
    """Return what a quantity is measured in; empty for a number."""
    kind, _, rest = name.partition("[")[0].partition(".")
    if kind == SIZE or rest == "peak_memory":
        return "bytes"
    if rest == "throughput":
        return "samples/s"
    return "ms" if kind in {"latency", "original"} and name != RATIO else ""


def differing_forms(sides: Sequence[Side]) -> dict[str, tuple[str | None, ...]]:
    """Return the forms of the sites where sides have different ones; None where a side has no such site, or tells none."""
    known = [side.forms for side in sides if side.forms is not None]
    sites = dict.fromkeys(site for forms in known for site in forms)
    return {
        site: tuple(None if side.forms is None else side.forms.get(site) for side in sides)
        for site in sites
        if len({forms.get(site) for forms in known}) > 1
    }


def facts_of(sides: Sequence[Side]) -> dict[str, tuple[str | None, ...]]:
    """Return what the sides say in words: target, scheme and verdict, and what else they do not agree in."""
    found = {name: tuple(side.facts.get(name) for side in sides) for name in _ordered(sides)}
    always = {"target", "scheme", "verdict on its own original"}
    return {name: values for name, values in found.items() if name in always or len({*values} - {None}) > 1}


def _ordered(sides: Iterable[Side]) -> Iterator[str]:
    yield from dict.fromkeys(name for side in sides for name in side.facts)


def _change(name: str, base: Side, other: Side) -> Change:
    before, after = base.values.get(name), other.values.get(name)
    if before is None or after is None:
        return Change(None, "not judged", "not measured")
    ratio = 1.0 if before == after else after / before if before and math.isfinite(before) else None
    kind = name.partition("[")[0].partition(".")[0]
    obstacle = next((fact for fact in _DEPENDS.get(kind, ()) if _contradict(fact, base, other)), "")
    if obstacle:
        return Change(ratio, "not judged", f"other {obstacle}")
    if kind == "original":
        return Change(ratio, "not judged")
    if not _differs(name, base, other):
        return Change(ratio, "same")
    return Change(ratio, "better" if (after > before) == (name in _MORE_IS_BETTER) else "worse")


def _contradict(fact: str, base: Side, other: Side) -> bool:
    ours, theirs = base.facts.get(fact), other.facts.get(fact)
    return ours is not None and theirs is not None and ours != theirs


def _differs(name: str, base: Side, other: Side) -> bool:
    if name == RATIO and base.interval is not None and other.interval is not None:
        return base.interval[1] < other.interval[0] or other.interval[1] < base.interval[0]
    change = _log_ratio(name, base, other)
    if not name.startswith("latency."):
        return abs(change) > _SAME
    of_original = 0.0
    if not any(_contradict(fact, base, other) for fact in _OF_THE_ORIGINAL):
        of_original = _log_ratio(name.replace("latency.", "original."), base, other)
    noise = max(_SAME, base.noise.get(name, 0.0) + other.noise.get(name, 0.0))
    ends = sorted((change, change - of_original))
    return ends[0] > noise or ends[1] < -noise


def _log_ratio(name: str, base: Side, other: Side) -> float:
    return log_ratio(base.values.get(name), other.values.get(name))
