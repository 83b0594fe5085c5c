"""`actx compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actx.cli import options

if TYPE_CHECKING:
    from actx.exporter.comparing import Compared

EXAMPLE = "Example: actx compare main.bundle out --fail-if 'latency.p50 > 1.05 * base'"
FORMATS = ("table", "md", "json")


def complete_format(incomplete: str) -> list[str]:
    """Complete the value of --format."""
    return [name for name in FORMATS if name.startswith(incomplete)]


def command(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE",
            help="A bundle, or a file that profile, check or export --json or report --format json printed.",
        ),
    ],
    others: Annotated[list[Path], typer.Argument(metavar="OTHER", help="What is compared with it, likewise.")],
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            metavar="CONDITION",
            help="Exit with 3 where it holds for an OTHER: a quantity, an operator, and arithmetic of numbers, quantities "
            "and base. May be repeated.",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            autocompletion=complete_format,
            help="table; md, a comment for a pull request; json.",
        ),
    ] = "table",
    json: options.Json = False,
) -> None:
    """Compare bundles side by side, regressions first.

    Nothing is run. The first is the base; numbers of other machines, inputs or data are marked, and not judged.
    """
    from actx.cli import printing  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter import compare  # noqa: PLC0415 - as above
    from actx.exporter.errors import RequirementError, UsageError  # noqa: PLC0415 - as above

    if form not in FORMATS:
        remedy, note = "Choose one of these.", f"there are {', '.join(FORMATS)}"
        raise UsageError(f"no comparison has the format {form!r}", note=note, remedy=remedy)
    compared = compare(base, *others, fail_if=fail_if or ())
    if json or form == "json":
        printing.print_json(compared.to_dict())
    elif form == "md":
        sys.stdout.write(compared.to_markdown())
    else:
        _print(compared)
    if compared.held:
        held = dict.fromkeys(one.condition for one in compared.held)
        note = "; ".join(
            f"{one.condition}: {one.value:.6g} against {one.bound:.6g} ({one.side})" for one in compared.held
        )
        raise RequirementError(
            f"{len(held)} of {printing.count(len(fail_if or ()), 'condition')} of --fail-if hold{'s' * (len(held) == 1)}",
            note=note,
            remedy="Look at what became worse, or state another condition.",
        )


def _print(compared: Compared) -> None:
    from actx.cli import printing  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter.comparing.markdown import cells, outcome_line  # noqa: PLC0415 - as above

    base, *others = compared.names
    if compared.facts:
        rows = [[name, *(value or "not known" for value in values)] for name, values in compared.facts.items()]
        printing.print_table(f"{', '.join(others)} against {base}", ("", *compared.names), rows)
        printing.print_line("")
    heads = (base, *(head for name in others for head in (name, "change")))
    printing.print_table(
        "What was measured", ("quantity", *heads), [[row.quantity, *cells(row)] for row in compared.rows]
    )
    if compared.forms:
        printing.print_line("")
        rows = [[site, *(form or "-" for form in forms)] for site, forms in compared.forms.items()]
        printing.print_table("Sites with different forms", ("site", *compared.names), rows)
    for outcome in compared.outcomes:
        printing.print_line(f"{outcome.condition} {outcome_line(outcome)}")
    printing.print_notes(compared.notes)
