"""What can be told of an engine without a GPU. Where there is one that TensorRT-RTX supports, it is run."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from actx.exporter.errors import ActxError, TargetUnavailable, UsageError
from actx.exporter.tensorrt.build import build, runs_on
from actx.exporter.tensorrt.device import find_gpu
from actx.exporter.tensorrt.engine import EngineRuntime
from actx.exporter.tensorrt.shapes import parse_ranges, resolve
from tests.exporter.tensorrt.graphs import SPEC, mlp

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.runtimes.base import Runtime
    from actx.exporter.tensorrt.build import Built

GPU, _ = find_gpu()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    path = mlp(tmp_path_factory.mktemp("engine") / "model.onnx")
    profile = resolve([SPEC], parse_ranges(["batch=0:2:4", "seq=1:8:64"]))
    return build(path, path.with_name("model.engine"), target="trt-rtx", profile=profile)


def runtime(built: Built, **options: Any) -> EngineRuntime:
    return EngineRuntime("trt-rtx", built.facts, built.engine.with_name("model.onnx"), **options)


def test_it_is_a_runtime_that_can_be_pickled(built: Built) -> None:
    made: Runtime = runtime(built, cuda_graph=False)
    assert pickle.loads(pickle.dumps(made)) == made
    assert made.name == "TensorRT-RTX"
    assert not made.taps
    assert made.in_turns() is made
    assert made.peak_memory(built.engine, {}) is None


def test_what_a_measurement_depends_on(built: Built) -> None:
    said = runtime(built, transfers=True).describe()
    assert said["runtime"] == "tensorrt_rtx"
    assert said["options"] == {"cuda_graph": True, "transfers": True, "spin": True}
    assert (said["gpu"] is None) == (GPU is None)


@pytest.mark.skipif(GPU is not None, reason="there is a GPU")
def test_without_a_gpu_the_machine_is_at_fault(built: Built) -> None:
    with pytest.raises(TargetUnavailable, match="an engine cannot be run without a GPU") as error:
        runtime(built).open(built.engine)
    assert error.value.note
    with pytest.raises(TargetUnavailable):
        runtime(built).node_times(built.engine, {}, {})


def test_values_inside_cannot_be_tapped(built: Built) -> None:
    with pytest.raises(ActxError, match="own outputs only"):
        runtime(built).open(built.engine, ["y"])


def test_files_that_are_not_the_engine(built: Built, tmp_path: Path) -> None:
    broken = tmp_path / "broken.engine"
    broken.write_bytes(built.engine.read_bytes()[:-1])
    with pytest.raises(ActxError, match="truncated"):
        runtime(built).open(broken)
    with pytest.raises(ActxError, match="no TensorRT engine"):
        runtime(built).open(built.engine.with_name("model.onnx"))
    with pytest.raises(ActxError, match="cannot read"):
        runtime(built).open(tmp_path / "none.engine")
    with pytest.raises(ActxError, match="is an engine of target trt-rtx"):
        EngineRuntime("trt").open(built.engine)


@pytest.mark.skipif(
    GPU is None or GPU.compute_capability not in {"8.0", "8.6", "8.9", "12.0", "12.1"}, reason="no RTX GPU"
)
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_it_gives_what_onnx_runtime_gives(built: Built, cuda_graph: bool) -> None:
    assert GPU is not None
    assert runs_on(built.facts, GPU.compute_capability)
    session = runtime(built, cuda_graph=cuda_graph).open(built.engine)
    reference = ort.InferenceSession(built.engine.with_name("model.onnx"), providers=["CPUExecutionProvider"])
    (stored,) = onnx.load(built.engine.with_name("model.onnx")).graph.initializer
    weights = onnx.numpy_helper.to_array(stored)
    assert session.inputs == (SPEC,)
    for shape in ((2, 8, 16), (4, 64, 16), (2, 8, 16), (0, 3, 16)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        assert session.timer({"x": x})() > 0
        expected = reference.run(None, {"x": x})[0]
        # TF32 rounds both factors to 10 bits of mantissa, each by 2^-11 of itself; Gelu's slope is at most 1.13.
        bound = 1.13 * 2**-10 * np.abs(x) @ np.abs(weights) + 1e-5
        assert (np.abs(session.run({"x": x})["z"] - expected) <= bound).all()
    with pytest.raises(UsageError, match="does not take shape"):
        session.run({"x": np.zeros((5, 8, 16), np.float32)})
