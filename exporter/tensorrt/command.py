"""The vendor's own command that builds the same engine: `trtexec`, or `tensorrt_rtx`.

The tools were not at hand: the flags are those of their documentation (NVIDIA, TensorRT, "Command-Line Programs"; NVIDIA,
TensorRT-RTX, "CPU-Only AOT and TensorRT-RTX Engines") and of published uses. Options whose flag was not found follow as a
comment.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.tensorrt.options import BuildOptions
    from actx.exporter.tensorrt.shapes import Profile

_LEVELS = {"ampere+": "ampere+", "same-cc": "sameComputeCapability"}
_MIB = 2**20


def command(graph: Path, engine: Path, *, target: str, profile: Profile, options: BuildOptions) -> str:
    """Return the command line, quoted for a POSIX shell.

    Args:
        graph: the ONNX file.
        engine: the file to write.
        target: `trt` or `trt-rtx`.
        profile: the shapes that the engine takes.
        options: how it is built.
    """
    shared = [f"--onnx={graph}", f"--saveEngine={engine}", *_shapes(profile), *_weights(options)]
    if target == "trt-rtx":
        words = ["tensorrt_rtx", *shared, *_rtx(options), "--skipInference"]
        unknown = {"workspace", "tf32"}
    else:
        words = ["trtexec", *shared, *_enterprise(options), "--skipInference"]
        unknown = set()
    left_out = [flag for name, flag in options.changed().items() if name in unknown]
    return shlex.join(words) + (f"  # without {', '.join(left_out)}" if left_out else "")


def _shapes(profile: Profile) -> list[str]:
    """Name inputs as the tools read them: one with a colon in single quotes."""
    dynamic = [spec.name for spec in profile.inputs if any(isinstance(dim, str) for dim in spec.dims)]
    shapes = profile.shapes()
    flags = ("--minShapes", "--optShapes", "--maxShapes")
    return [
        f"{flag}={','.join(f'{_quoted(name)}:{_dims(shapes[name][i])}' for name in dynamic)}"
        for i, flag in enumerate(flags)
        if dynamic
    ]


def _quoted(name: str) -> str:
    return f"'{name}'" if ":" in name else name


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)


def _weights(options: BuildOptions) -> list[str]:
    asked = {"--stripWeights": options.strip_weights, "--refit": options.refit}
    return [flag for flag, wanted in asked.items() if wanted]


def _rtx(options: BuildOptions) -> list[str]:
    numbers = ",".join(capability.replace(".", "") for capability in options.compute_capabilities)
    return [f"--computeCapabilities={numbers}"] if numbers else []


def _enterprise(options: BuildOptions) -> list[str]:
    words = ["--stronglyTyped", "--profilingVerbosity=detailed"]
    if options.timing_cache is not None:
        words.append(f"--timingCacheFile={options.timing_cache}")
    if options.workspace is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace / _MIB:g}")  # the tool counts in MiB
    if options.version_compatible:
        words.append("--versionCompatible")
    if options.dla_core is not None:
        words += [f"--useDLACore={options.dla_core}", "--allowGPUFallback"]
    if options.hardware_compatibility in _LEVELS:
        words.append(f"--hardwareCompatibilityLevel={_LEVELS[options.hardware_compatibility]}")
    if not options.tf32:
        words.append("--noTF32")
    if options.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={options.optimization_level}")
    return words
