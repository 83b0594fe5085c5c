"""Options that several verbs share, and how their texts become values of the library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actx.exporter.data import InputSpec
    from actx.exporter.devices.config import Chosen
    from actx.exporter.fitting import Form
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions
    from actx.exporter.search.search import SearchOptions

FORMS = (
    "keep",
    "relu",
    "hardswish",
    "pwl:8",
    "pwl:16",
    "pwl:32",
    "poly:4",
    "poly:8",
    "spline:16x2",
    "spline:16x3",
    "spline:32x3",
    "polynorm",
)
AUTO = "auto"
EXECUTORS = ("local", "ray")
TARGETS = ("ort-cpu", "openvino", "ort-cuda", "trt", "trt-rtx", "onnx")
SCHEMES = ("fp16", "bf16", "int8", "int8-fp16", "int8-bf16", "fp8", "fp8-fp16", "int8-dynamic", "int4")
CALIBRATORS = ("minmax", "percentile", "entropy", "mse")
FFN = ("auto", "pack", "keep")
METRICS = ("l2", "cosine", "max_abs", "kl", "top1")


def complete_form(incomplete: str) -> list[str]:
    """Complete the value of --form."""
    return [form for form in FORMS if form.startswith(incomplete)]


def complete_export_form(incomplete: str) -> list[str]:
    """Complete the value of --form of a verb that searches."""
    return [form for form in (AUTO, *FORMS) if form.startswith(incomplete)]


def complete_executor(incomplete: str) -> list[str]:
    """Complete the value of --executor."""
    return [name for name in EXECUTORS if name.startswith(incomplete)]


def complete_ffn(incomplete: str) -> list[str]:
    """Complete the value of --ffn."""
    return [mode for mode in FFN if mode.startswith(incomplete)]


def complete_target(incomplete: str) -> list[str]:
    """Complete the value of --target."""
    return [target for target in TARGETS if target.startswith(incomplete)]


def complete_scheme(incomplete: str) -> list[str]:
    """Complete the value of --quant."""
    return [scheme for scheme in SCHEMES if scheme.startswith(incomplete)]


def complete_calibrator(incomplete: str) -> list[str]:
    """Complete the value of --calibrator."""
    return [name for name in CALIBRATORS if name.startswith(incomplete)]


def complete_metric(incomplete: str) -> list[str]:
    """Complete the value of --metric."""
    return [metric for metric in METRICS if metric.startswith(incomplete)]


Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="ONNX, a torch.export archive, a torch.save file, safetensors, or a Hugging Face folder.",
    ),
]
Artifact = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="A bundle, an ONNX file, or with --trust an engine.")
]
DataSource = Annotated[
    str | None,
    typer.Option(
        "--data",
        "-d",
        metavar="SOURCE",
        help="Samples: an .npz file, a folder of them, Polygraphy's .json, or pkg.mod:callable. Without it: random input.",
    ),
]
HeldOut = Annotated[
    str | None,
    typer.Option(
        "--held-out", metavar="SOURCE", help="Samples to measure drift and latency on. Without it: those of --data."
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input", metavar="SPEC", help="Type and dimensions of an input: ids:int64[batch,seq]. May be repeated."
    ),
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", metavar="N", min=1, help="Samples per run.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Load archives, pickles and a bundle's library even if they can run code.")
]
Kernels = Annotated[
    bool | None,
    typer.Option(
        "--kernels/--no-kernels",
        help="Run the graph of actx nodes, or model.onnx. Without either: the first, where this machine has the kernels.",
    ),
]
Factory = Annotated[
    str | None,
    typer.Option("--model", metavar="pkg.mod:factory", help="What makes the module for a source that is weights only."),
]
Activations = Annotated[
    str | None,
    typer.Option("--activations", metavar="pkg.mod", help="A module that registers names of your own activations."),
]
Threads = Annotated[
    int, typer.Option("--threads", metavar="N", min=0, help="Threads of the runtime, 0 for one per core.")
]
CudaGraph = Annotated[
    bool, typer.Option("--cuda-graph/--no-cuda-graph", help="Time an engine as one CUDA graph, or kernel by kernel.")
]
Transfers = Annotated[
    bool, typer.Option("--transfers/--no-transfers", help="Time an engine's copies to the GPU and back too.")
]
Spin = Annotated[bool, typer.Option("--spin/--no-spin", help="Wait for a GPU by asking again and again, or asleep.")]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Run on a device, over ssh: ssh://[USER@]HOST[:PORT], or a device or a group of devices.toml.",
    ),
]
Devices = Annotated[
    Path | None,
    typer.Option("--devices", metavar="FILE", help="What names the devices and groups. Default: devices.toml here."),
]
Runs = Annotated[
    int | None,
    typer.Option(
        "--runs", metavar="N", min=1, help="Rounds to measure latency over. Default: until the ratio is known to 1 %."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Metric = Annotated[
    str,
    typer.Option(
        "--metric",
        metavar="NAME",
        autocompletion=complete_metric,
        help="Of the drift: l2, cosine, max_abs, kl, top1 or pkg.mod:callable.",
    ),
]
MaxDrift = Annotated[
    float | None, typer.Option("--max-drift", metavar="X", min=0, help="Exit with 3 if the drift is larger.")
]
FormText = Annotated[
    str | None,
    typer.Option(
        "--form",
        metavar="FORM",
        autocompletion=complete_form,
        help="Of every site: keep, relu, hardswish, pwl:K, poly:N, spline:KxD, polynorm. Without it: what suits the target.",
    ),
]
ExportForm = Annotated[
    str | None,
    typer.Option(
        "--form",
        metavar="FORM",
        autocompletion=complete_export_form,
        help="Of every site: keep, relu, hardswish, pwl:K, poly:N, spline:KxD, polynorm. Or auto, the default with --data and "
        "--max-drift: the fastest within that, measured. Without it otherwise: what suits the target.",
    ),
]
Recover = Annotated[
    bool, typer.Option("--recover", help="Fit the layers around rewritten sites anew on --data, without training.")
]
Calibrator = Annotated[
    str | None,
    typer.Option(
        "--calibrator",
        metavar="NAME",
        autocompletion=complete_calibrator,
        help="minmax, percentile, entropy or mse: how --quant int8 finds ranges. Default: percentile; with --recover the best.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="REGEX", help="Layers, by the name of their node, that --quant leaves. May be repeated."
    ),
]
RequireInt8Sites = Annotated[
    bool,
    typer.Option(
        "--require-int8-sites", help="Exit with 3 unless every site that an int8 layer reads is one node on codes."
    ),
]
Log = Annotated[
    Path | None,
    typer.Option("--log", metavar="FILE", help="Measurements of the search, to go on from. Default: OUT.search.jsonl."),
]
Jobs = Annotated[
    int,
    typer.Option("--jobs", metavar="N", min=0, help="Drifts of single forms to measure at once, 0 for one per core."),
]
ExecutorName = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="NAME",
        autocompletion=complete_executor,
        help="Where these run: local, or ray for the cluster at RAY_ADDRESS.",
    ),
]
MaxTime = Annotated[
    float | None,
    typer.Option("--max-time", metavar="S", min=0, help="Seconds after which the search measures no further form."),
]
SearchSamples = Annotated[
    int,
    typer.Option(
        "--search-samples", metavar="N", min=1, help="Samples of --data that the drift of a form is measured on."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what the search would measure, and how long it would take.")
]


Ffn = Annotated[
    list[str] | None,
    typer.Option(
        "--ffn",
        metavar="[NAME=]MODE",
        autocompletion=complete_ffn,
        help="Of gated FFNs: pack both layers into one, keep them, or auto: as measured. 'layers.0.*=keep' for single ones.",
    ),
]


def parse_inputs(texts: Sequence[str] | None) -> list[InputSpec]:
    """Read the values of --input."""
    from actx.exporter.data import InputSpec  # noqa: PLC0415 - the help must answer without the library

    return [InputSpec.parse(text) for text in texts or ()]


def parse_devices(device: str | None, file: Path | None) -> Chosen | None:
    """Read the values of --device and --devices."""
    from actx.exporter.devices.config import find_devices  # noqa: PLC0415
    from actx.exporter.errors import UsageError  # noqa: PLC0415

    if device is None and file is not None:
        raise UsageError("--devices names devices and no --device is given", remedy="Say which one with --device.")
    return None if device is None else find_devices(device, file)


def register_activations(module: str | None) -> None:
    """Import what the value of --activations names."""
    if module is not None:
        from actx.exporter.data import import_activations  # noqa: PLC0415

        import_activations(module)


def parse_form(text: str | None) -> Form | None:
    """Read the value of --form."""
    from actx.exporter.fitting import Form  # noqa: PLC0415

    return None if text is None else Form.parse(text)


def search_options(log: Path | None, jobs: int, executor: str, max_time: float | None, samples: int) -> SearchOptions:
    """Return how forms are searched for."""
    from actx.exporter.search.execute import parse_executor  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter.search.search import SearchOptions  # noqa: PLC0415

    return SearchOptions(log, jobs, parse_executor(executor), max_time, samples)


def runtime_options(
    threads: int, *, cuda_graph: bool = True, transfers: bool = False, spin: bool = True
) -> RuntimeOptions:
    """Return how models are run."""
    from actx.exporter.runtimes.base import EngineOptions  # noqa: PLC0415
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions  # noqa: PLC0415

    return RuntimeOptions(threads=threads, engine=EngineOptions(cuda_graph, transfers, spin))
