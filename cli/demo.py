"""`actx demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from actx.cli import options
from actx.cli.export import reported

EXAMPLE = "Example: actx demo"

MODEL = "digits_vit.pt2"
DATA, HELD_OUT = "calibration.npz", "evaluation.npz"


def command(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="The bundle's folder; a bundle there is replaced.")
    ] = Path("actx-demo"),
    form: options.FormText = "hardswish",
    runs: options.Runs = None,
    threads: options.Threads = 1,
    json: options.Json = False,
) -> None:
    """Export the trained model that comes with actx.

    It is a vision transformer for handwritten digits; its bundle is checked and profiled on digits that it was not trained on.
    """
    from actx.cli import printing  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter import export  # noqa: PLC0415
    from actx.models.demo import demo_path  # noqa: PLC0415

    if not json:
        printing.print_line(
            f"The model that comes with actx, a vision transformer for handwritten digits, with {form}:"
        )
    with reported(json=json) as done, printing.progress_bar() as progress:
        done.exported = export(
            demo_path(MODEL), out, form=options.parse_form(form), data=str(demo_path(DATA)),
            held_out=str(demo_path(HELD_OUT)), metric="top1", force=True, runs=runs,
            options=options.runtime_options(threads), progress=progress,
        )  # fmt: skip
    if not json:
        printing.print_line("Next, with a model of yours: actx inspect MODEL")
