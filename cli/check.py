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
    device: options.Device = None,
    devices: options.Devices = None,
    trust: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Measure how far an artifact's outputs are from the original's.

    For a bundle, also at which site the drift arises. With --device, both run there.
    """
    from actx.cli import printing  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter import check  # noqa: PLC0415 - as above
    from actx.exporter.errors import RequirementError  # noqa: PLC0415 - as above

    chosen, specs, asked = (
        options.parse_devices(device, devices),
        options.parse_inputs(inputs),
        options.runtime_options(threads),
    )
    if chosen is not None and chosen.group:
        from actx.exporter.devices.sweep import check_all, raise_for  # noqa: PLC0415 - as above
        from actx.exporter.errors import UsageError  # noqa: PLC0415 - as above

        if save_outputs is not None:
            raise UsageError("--save-outputs keeps the outputs of one device", remedy="Name one of the group.")
        with printing.progress_bar() as progress:
            outcomes = check_all(
                chosen.devices, model, artifact, data=data, inputs=specs, batch_size=batch_size, metric=metric,
                max_drift=max_drift, logits=logits or (), trust=trust, factory=factory, kernels=kernels, options=asked,
                progress=progress,
            )  # fmt: skip
        printing.print_outcomes(outcomes, printing.DRIFT_COLUMNS, printing.drift_row, json=json)
        raise_for(outcomes)
        return
    with printing.progress_bar() as progress:
        report = check(
            model, artifact, data=data, inputs=specs, batch_size=batch_size, metric=metric,
            max_drift=max_drift, logits=logits or (), save_outputs=save_outputs, trust=trust, factory=factory, kernels=kernels,
            options=asked, device=None if chosen is None else chosen.devices[0],
            progress=lambda done, total: progress("check", done, total),
        )  # fmt: skip
    if json:
        printing.print_json(report.to_dict())
    else:
        printing.print_drift(report)
        printing.print_notes(report.notes)
    if not report:
        raise RequirementError(
            f"the drift is over the budget of {report.max_drift:g}",
            note=f"{report.graph} has {report.drift:.6g} ({report.metric})",
            remedy="Export with a finer form, or look at the sites with the most noise.",
        )
