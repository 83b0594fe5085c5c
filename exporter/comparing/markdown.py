"""A comparison as text: the cells of its tables, and all of it as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actx.exporter.reporting import words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from actx.exporter.comparing import Compared, Outcome
    from actx.exporter.comparing.rows import Change, Row

_MOST_SITES = 50  # of a comment, which may be long but not endless
_LARGE = 10.0  # from where a change is said as a factor
_UNITS: dict[str, Callable[[float | None], str]] = {
    "ms": lambda value: words.NOT_MEASURED if value is None else f"{words.milliseconds(value)} ms",
    "bytes": words.size,
}


def value_cells(row: Row) -> list[str]:
    """Return the values of a row, the base's first."""
    return [_UNITS.get(row.unit, words.number)(value) for value in row.values]


def change_cell(change: Change) -> str:
    """Return a change in words; nothing where something was not measured."""
    if change.reason == words.NOT_MEASURED:
        return ""
    said = (
        f" ({change.reason})" if change.reason else f" {change.status}" if change.status in {"worse", "better"} else ""
    )
    if change.ratio is None:
        return said.strip()
    factor = change.ratio >= _LARGE
    return f"{f'× {change.ratio:.3g}' if factor else f'{100 * (change.ratio - 1):+.1f} %'}{said}"


def cells(row: Row) -> list[str]:
    """Return the cells behind a row's name: the base's value, then value and change of every other side."""
    first, *values = value_cells(row)
    pairs = zip(values, map(change_cell, row.changes), strict=True)
    return [first, *(cell for pair in pairs for cell in pair)]


def outcome_line(outcome: Outcome) -> str:
    """Say what a condition came to."""
    numbers = f"{words.number(outcome.value, 6)} against {words.number(outcome.bound, 6)}"
    return f"{'holds' if outcome.holds else 'does not hold'} for {outcome.side}: {numbers}"


def markdown(compared: Compared) -> str:
    """Return the comparison as GitHub Flavored Markdown, in which names are text."""
    return "\n".join(_lines(compared)) + "\n"


def _lines(compared: Compared) -> Iterator[str]:
    base, *others = compared.names
    yield f"### {', '.join(map(words.code, others))} against {words.code(base)}"
    if compared.outcomes:
        yield ""
        yield from (
            f"- {'**fails**' if one.holds else 'passes'}: {words.code(one.condition)} {words.plain(outcome_line(one))}"
            for one in compared.outcomes
        )
    names = [words.code(name) for name in compared.names]
    if compared.facts:
        yield from _table(["", *names], ([words.plain(n), *map(_fact, v)] for n, v in compared.facts.items()))
    if compared.rows:
        heads = [names[0], *(head for name in names[1:] for head in (name, "change"))]
        marked = ([words.code(row.quantity), *map(_emphasized, cells(row))] for row in compared.rows)
        yield from _table(["quantity", *heads], marked, right=True)
    sites = list(compared.forms.items())
    if sites:
        shown = sites[:_MOST_SITES]
        yield from _table(["site", *names], ([words.code(s), *(_form(form) for form in f)] for s, f in shown))
        if len(shown) < len(sites):
            yield f"\n{len(sites) - len(shown)} more sites have different forms."
    if compared.notes:
        yield ""
        yield from (f"- {words.plain(note)}" for note in compared.notes)


def _table(heads: Sequence[str], rows: Iterator[list[str]], *, right: bool = False) -> Iterator[str]:
    yield ""
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{('---:|' if right else '---|') * (len(heads) - 1)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _fact(value: str | None) -> str:
    return words.plain("not known" if value is None else value)


def _form(form: str | None) -> str:
    return "" if form is None else words.code(form)


def _emphasized(cell: str) -> str:
    return f"**{cell}**" if cell.endswith(" worse") else cell
