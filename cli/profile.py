"""`actx profile`."""

from __future__ import annotations

from actx.cli import options

EXAMPLE = "Example: actx profile model.pt2 out --data eval.npz --threads 1 --runs 100"


def command(
    model: options.Model,
    artifact: options.Artifact,
    data: options.DataSource = None,
    inputs: options.Inputs = None,
    factory: options.Factory = None,
    batch_size: options.BatchSize = None,
    runs: options.Runs = None,
    kernels: options.Kernels = None,
    threads: options.Threads = 0,
    cuda_graph: options.CudaGraph = True,
    transfers: options.Transfers = False,
    spin: options.Spin = True,
    device: options.Device = None,
    devices: options.Devices = None,
    trust: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Measure an artifact's latency against the original's.

    Both run in one process, in turns. The original is also measured against itself: a ratio within that noise is reported as
    no difference. With --device, both run there.
    """
    from actx.cli import printing  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter import profile  # noqa: PLC0415 - as above

    chosen = options.parse_devices(device, devices)
    asked = options.runtime_options(threads, cuda_graph=cuda_graph, transfers=transfers, spin=spin)
    specs = options.parse_inputs(inputs)
    if chosen is not None and chosen.group:
        from actx.exporter.devices.sweep import profile_all, raise_for  # noqa: PLC0415 - as above

        with printing.progress_bar() as progress:
            outcomes = profile_all(
                chosen.devices, model, artifact, data=data, inputs=specs, batch_size=batch_size, runs=runs, trust=trust,
                factory=factory, kernels=kernels, options=asked, progress=progress,
            )  # fmt: skip
        printing.print_outcomes(outcomes, printing.LATENCY_COLUMNS, printing.latency_row, json=json)
        raise_for(outcomes)
        return
    with printing.progress_bar() as progress:
        report = profile(
            model, artifact, data=data, inputs=specs, batch_size=batch_size, runs=runs, trust=trust,
            factory=factory, kernels=kernels, options=asked, device=None if chosen is None else chosen.devices[0],
            progress=lambda done, total: progress("profile", done, total),
        )  # fmt: skip
    if json:
        printing.print_json(report.to_dict())
    else:
        printing.print_latency(report)
        printing.print_notes(report.notes)
