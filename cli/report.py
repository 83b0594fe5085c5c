"""`actx report`."""

from __future__ import annotations

import sys
from json import loads
from pathlib import Path
from typing import Annotated

import typer

from actx.cli import options

EXAMPLE = "Example: actx report out -o report.html"
FORMATS = ("html", "md", "json")


def complete_format(incomplete: str) -> list[str]:
    """Complete the value of --format."""
    return [name for name in FORMATS if name.startswith(incomplete)]


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="What an export wrote.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The file to write. Without it: a page goes to BUNDLE.report.html, beside the bundle, the rest to stdout.",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            autocompletion=complete_format,
            help="html, a page that opens offline; md, a short comment for a pull request; json.",
        ),
    ] = "html",
    json: options.Json = False,
) -> None:
    """Make one page of what a bundle's manifest says.

    It has the verdict, where latency and drift come from, every site's curve, and the commands to repeat it. Nothing is run.
    """
    from actx.cli import printing  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter import report  # noqa: PLC0415
    from actx.exporter.bundle import beside  # noqa: PLC0415

    if out is None and form == "html":
        out = beside(bundle, ".report.html")
    text = report(bundle, out, format=form)  # type: ignore[arg-type]  # checked there
    if json:
        printing.print_json({"file": None if out is None else str(out), **loads(report(bundle, format="json"))})
    elif out is None:
        sys.stdout.write(text)
    else:
        printing.print_line(f"report: {out}")
