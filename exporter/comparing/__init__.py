"""Several bundles, or what verbs printed of them, side by side: what became worse, what became better, what is the same.

Nothing is run. What was not measured stays that, and numbers that do not stand beside each other are not judged (see `rows`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actx.exporter.comparing.condition import parse_condition
from actx.exporter.comparing.markdown import markdown
from actx.exporter.comparing.rows import Row, differing_forms, facts_of, names_of, rows_of
from actx.exporter.comparing.side import read_side
from actx.exporter.errors import UsageError
from actx.exporter.metrics import json_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from actx.exporter.comparing.condition import Condition
    from actx.exporter.comparing.side import Side


@dataclass(frozen=True)
class Outcome:
    """What a condition says of one side.

    Attributes:
        condition: as it was written.
        side: the side's name.
        value: its quantity.
        bound: what that was compared with.
        holds: whether the condition does.
    """

    condition: str
    side: str
    value: float
    bound: float
    holds: bool


@dataclass(frozen=True)
class Compared:
    """Sides beside each other. True where no condition holds.

    Attributes:
        names: of the sides, the base first: those of files and folders, whole paths where two have one name.
        facts: by name, what the sides say in words: target, scheme and verdict, and what else they do not agree in.
        rows: every quantity that any of them has, regressions first.
        forms: by site, where they have different ones.
        outcomes: of every condition, on every side but the base.
        notes: what makes numbers doubtful.
    """

    names: tuple[str, ...]
    facts: dict[str, tuple[str | None, ...]]
    rows: tuple[Row, ...]
    forms: dict[str, tuple[str | None, ...]]
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.held

    @property
    def held(self) -> tuple[Outcome, ...]:
        """The outcomes of conditions that hold."""
        return tuple(outcome for outcome in self.outcomes if outcome.holds)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: null for what was not measured, "inf" for infinity."""
        return json_values(asdict(self)) | {"passed": bool(self)}

    def to_markdown(self) -> str:
        """Return a comment for a pull request."""
        return markdown(self)


def compare(base: Path | str, *others: Path | str, fail_if: Sequence[str] = ()) -> Compared:
    """Compare bundles with a base, by what their manifests say.

    Args:
        base: a bundle, or a file: a manifest, or what `actx profile --json`, `check --json`, `export --json` or
            `report --format json` printed.
        others: at least one more.
        fail_if: conditions on each of them, such as ``latency.p50 > 1.05 * base`` (see `condition`).

    Returns:
        What differs; it is false where a condition holds.

    Raises:
        UsageError: there is nothing to compare with, or a condition is none or names an unknown quantity.
        ActxError: something cannot be read, or a condition is about what was not measured.
    """
    if not others:
        raise UsageError("one thing alone cannot be compared", note=f"got {base}", remedy="Give at least two.")
    conditions = [parse_condition(text) for text in fail_if]
    paths = [Path(path) for path in (base, *others)]
    sides = [read_side(path, name) for path, name in zip(paths, _short(paths), strict=True)]
    return Compared(
        names=tuple(side.name for side in sides),
        facts=facts_of(sides),
        rows=rows_of(sides),
        forms=differing_forms(sides),
        outcomes=tuple(_outcomes(conditions, sides)),
        notes=tuple(_notes(sides)),
    )


def _short(paths: Sequence[Path]) -> list[str]:
    names = [path.name for path in paths]
    return names if all(names) and len(set(names)) == len(names) else [str(path) for path in paths]


def _outcomes(conditions: Sequence[Condition], sides: Sequence[Side]) -> Iterator[Outcome]:
    known = names_of(sides)
    base, *others = sides
    for condition in conditions:
        for side in others:
            holds, value, bound = condition.holds(side.values, base.values, known)
            yield Outcome(condition.text, side.name, value, bound, holds)


def _notes(sides: Sequence[Side]) -> Iterator[str]:
    for fact, what in (
        ("machine", "latency was measured on different machines"),
        ("source", "they are of different models"),
    ):
        if len({side.facts[fact] for side in sides if fact in side.facts}) > 1:
            yield f"{what}: {'; '.join(f'{side.facts[fact]} ({side.name})' for side in sides if fact in side.facts)}"
    yield from (f"{note} ({side.name})" for side in sides for note in dict.fromkeys(side.notes))
