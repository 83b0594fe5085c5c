"""`actx build`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from actx.cli import engine, options

if TYPE_CHECKING:
    from actx.exporter.building import Built

EXAMPLE = "Example: actx build out --shape batch=1:8:32 --timing-cache trt.cache"


def command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle that was exported for trt or trt-rtx.")],
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="NAME",
            autocompletion=options.complete_target,
            help="What to build for; the bundle's own target without it.",
        ),
    ] = None,
    shape: engine.Shapes = None,
    compute_capability: engine.ComputeCapabilities = None,
    timing_cache: engine.TimingCache = None,
    workspace: engine.Workspace = None,
    version_compatible: engine.VersionCompatible = None,
    strip_weights: engine.StripWeights = None,
    refit: engine.Refit = None,
    dla: engine.Dla = None,
    hardware_compatibility: engine.HardwareCompatibility = None,
    tf32: engine.Tf32 = None,
    builder_level: engine.BuilderLevel = None,
    json: options.Json = False,
) -> None:
    """Build the engine of a bundle from the typed graph in it.

    For what the export's machine could not build: run it on the device. What no option says is as the export was asked to.
    """  # fmt: skip
    from actx.cli import printing  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter import build  # noqa: PLC0415

    with printing.progress_bar() as progress:
        built = build(
            bundle, target=target, shapes=engine.parse_shapes(shape) or None,
            options=engine.parse_build(
                compute_capabilities=compute_capability, timing_cache=timing_cache, workspace=workspace,
                version_compatible=version_compatible, strip_weights=strip_weights, refit=refit, dla_core=dla,
                hardware_compatibility=hardware_compatibility, tf32=tf32, optimization_level=builder_level,
            ),
            progress=lambda done, total: progress("build", done, total),
        )  # fmt: skip
    if json:
        printing.print_json({"bundle": str(built.path), "target": built.target, **built.engine.model_dump(mode="json")})
    else:
        print_built(built)


def print_built(built: Built) -> None:
    """Print what a build made."""
    from actx.cli import printing  # noqa: PLC0415

    printing.print_engine(built.engine)
    printing.print_line(f"bundle: {built.path}")
