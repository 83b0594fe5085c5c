"""Options of the engines that are built for a target, which `export` and `build` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actx.exporter.tensorrt.shapes import ShapeRange

Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="DIM=MIN:OPT:MAX",
        help="Sizes of a named dimension that the engine takes: batch=1:8:32. May be repeated.",
    ),
]
TimingCache = Annotated[
    Path | None, typer.Option("--timing-cache", metavar="FILE", help="Measured tactics, read and kept. trt only.")
]
Workspace = Annotated[
    str | None, typer.Option("--workspace", metavar="SIZE", help="Most memory that a layer may use: 512MiB, 2GiB.")
]
VersionCompatible = Annotated[
    bool | None,
    typer.Option("--version-compatible", help="An engine that later versions of the library run too. trt only."),
]
StripWeights = Annotated[
    bool | None,
    typer.Option("--strip-weights", help="An engine without the weights that can be refitted from the graph."),
]
Refit = Annotated[bool | None, typer.Option("--refit", help="An engine whose weights can be replaced.")]
Dla = Annotated[
    int | None,
    typer.Option("--dla", metavar="CORE", min=0, help="Run on a DLA core, on the GPU what that lacks. trt only."),
]
HardwareCompatibility = Annotated[
    str | None,
    typer.Option(
        "--hardware-compatibility", metavar="LEVEL", help="GPUs beside the one here: ampere+ or same-cc. trt only."
    ),
]
ComputeCapabilities = Annotated[
    str | None,
    typer.Option("--compute-capability", metavar="X.Y,...", help="GPUs to build for: 8.6,12.0. trt-rtx only."),
]
Tf32 = Annotated[
    bool | None,
    typer.Option("--tf32/--no-tf32", help="Whether float32 MatMuls may round to TF32 first; they may by default."),
]
BuilderLevel = Annotated[
    int | None,
    typer.Option("--builder-level", metavar="N", min=0, max=5, help="How long to search for fast kernels. trt only."),
]


def parse_shapes(texts: Sequence[str] | None) -> dict[str, ShapeRange]:
    """Read the values of --shape."""
    from actx.exporter.tensorrt.shapes import parse_ranges  # noqa: PLC0415 - the help must answer without the library

    return parse_ranges(texts or ())


def parse_build(**values: Any) -> dict[str, Any]:
    """Read the builder's options, and return those that were given."""
    from actx.exporter.tensorrt.options import parse_capabilities, parse_size  # noqa: PLC0415

    given = {name: value for name, value in values.items() if value is not None}
    if "workspace" in given:
        given["workspace"] = parse_size(given["workspace"])
    if "compute_capabilities" in given:
        given["compute_capabilities"] = parse_capabilities(given["compute_capabilities"])
    return given
