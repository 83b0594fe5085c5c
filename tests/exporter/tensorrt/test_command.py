from __future__ import annotations

import shlex
from pathlib import Path

from actx.exporter.data import InputSpec
from actx.exporter.tensorrt.command import command
from actx.exporter.tensorrt.options import BuildOptions
from actx.exporter.tensorrt.shapes import ShapeRange, resolve

GRAPH, ENGINE = Path("my model.onnx"), Path("model.engine")
PROFILE = resolve(
    [InputSpec("ids:0", "int64", ("batch", 128)), InputSpec("table", "float32", (4, 4))],
    {"batch": ShapeRange(1, 8, 32)},
)


def test_trtexec() -> None:
    options = BuildOptions(
        timing_cache=Path("t.cache"),
        workspace=3 * 2**29,
        version_compatible=True,
        strip_weights=True,
        refit=True,
        dla_core=0,
        hardware_compatibility="same-cc",
        tf32=False,
        optimization_level=5,
    )
    assert shlex.split(command(GRAPH, ENGINE, target="trt", profile=PROFILE, options=options)) == [
        "trtexec",
        "--onnx=my model.onnx",
        "--saveEngine=model.engine",
        "--minShapes='ids:0':1x128",
        "--optShapes='ids:0':8x128",
        "--maxShapes='ids:0':32x128",
        "--stripWeights",
        "--refit",
        "--stronglyTyped",
        "--profilingVerbosity=detailed",
        "--timingCacheFile=t.cache",
        "--memPoolSize=workspace:1536",
        "--versionCompatible",
        "--useDLACore=0",
        "--allowGPUFallback",
        "--hardwareCompatibilityLevel=sameComputeCapability",
        "--noTF32",
        "--builderOptimizationLevel=5",
        "--skipInference",
    ]


def test_tensorrt_rtx() -> None:
    options = BuildOptions(compute_capabilities=("8.6", "12.0"), tf32=False, workspace=2**30)
    line = command(GRAPH, ENGINE, target="trt-rtx", profile=PROFILE, options=options)
    words = shlex.split(line, comments=True)
    assert words[0] == "tensorrt_rtx"
    assert words[-2:] == ["--computeCapabilities=86,120", "--skipInference"]
    assert line.endswith("  # without --workspace, --no-tf32")


def test_a_static_model_has_no_shapes() -> None:
    profile = resolve([InputSpec("x", "float32", (1, 2))])
    line = command(Path("m.onnx"), ENGINE, target="trt", profile=profile, options=BuildOptions())
    assert "Shapes" not in line
    assert "#" not in line
