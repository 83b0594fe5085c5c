"""`actx check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from actx.cli import options

EXAMPLE = "Example: actx check model.pt2 out --data eval.npz --metric cosine --max-drift 0.001"


def command(
    model: options.Model,
    artifact: options.Artifact,
    data: options.DataSource = None,
    inputs: options.Inputs = None,
    factory: options.Factory = None,
    batch_size: options.BatchSize = None,
    metric: options.Metric = "l2",
    max_drift: options.MaxDrift = None,
    logits: Annotated[
        list[str] | None, typer.Option("--logits", metavar="NAME", help="An output that holds logits. May be repeated.")
    ] = None,
    save_outputs: Annotated[
        Path | None,
        typer.Option(
            "--save-outputs", metavar="FILE", help="Keep the outputs of both, for polygraphy run --load-outputs."
        ),
    ] = None,
    kernels: options.Kernels = None,
    threads: options.Threads = 0,
    trust: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Measure how far an artifact's outputs are from the original's.

    For a bundle, also at which site the drift arises.
    """
    from actx.cli import printing  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter import check  # noqa: PLC0415

    with printing.progress_bar() as progress:
        report = check(
            model, artifact, data=data, inputs=options.parse_inputs(inputs), batch_size=batch_size, metric=metric,
            max_drift=max_drift, logits=logits or (), save_outputs=save_outputs, trust=trust, factory=factory, kernels=kernels,
            options=options.runtime_options(threads),
            progress=lambda done, total: progress("check", done, total),
        )  # fmt: skip
    if json:
        printing.print_json(report.to_dict())
    else:
        printing.print_drift(report)
        printing.print_notes(report.notes)
    if not report:
        raise typer.Exit(3)
