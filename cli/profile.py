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
    trust: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Measure an artifact's latency against the original's.

    Both run in one process, in turns. The original is also measured against itself: a ratio within that noise is reported as
    no difference.
    """
    from actx.cli import printing  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter import profile  # noqa: PLC0415

    asked = options.runtime_options(threads, cuda_graph=cuda_graph, transfers=transfers, spin=spin)
    with printing.progress_bar() as progress:
        report = profile(
            model, artifact, data=data, inputs=options.parse_inputs(inputs), batch_size=batch_size, runs=runs, trust=trust,
            factory=factory, kernels=kernels, options=asked,
            progress=lambda done, total: progress("profile", done, total),
        )  # fmt: skip
    if json:
        printing.print_json(report.to_dict())
    else:
        printing.print_latency(report)
        printing.print_notes(report.notes)
