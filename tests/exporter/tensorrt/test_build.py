"""Real engines, built by TensorRT-RTX without a GPU; `trt`'s path by the same library under TensorRT's name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError, TargetUnavailable, UsageError
from actx.exporter.tensorrt.build import build, runs_on, write_whole
from actx.exporter.tensorrt.device import find_gpu
from actx.exporter.tensorrt.options import BuildOptions
from actx.exporter.tensorrt.plan import read_plan
from actx.exporter.tensorrt.shapes import Profile, parse_ranges, resolve, specs_of
from tests.exporter.tensorrt.graphs import SPEC, constant, mlp, write

PROFILE = resolve([SPEC], parse_ranges(["batch=1:2:4", "seq=1:8:64"]))
HERE, _ = find_gpu()


def make(path: Path, options: BuildOptions | None = None, profile: Profile = PROFILE, **more: Any) -> dict[str, Any]:
    built = build(
        path,
        path.with_name("model.engine"),
        target="trt-rtx",
        profile=profile,
        options=options or BuildOptions(),
        **more,
    )
    assert built.engine.stat().st_size == built.facts["bytes"]
    return built.facts


def test_an_engine_with_dynamic_batch_and_sequence(tmp_path: Path) -> None:
    facts = make(mlp(tmp_path / "model.onnx", external=True))
    assert facts["library"] == "tensorrt_rtx"
    assert facts["target"] == "trt-rtx"
    assert facts["strongly_typed"] is facts["tf32"] is True
    assert specs_of(facts) == (SPEC,)
    assert facts["shapes"] == {"x": {"minimum": [1, 1, 16], "optimum": [2, 8, 16], "maximum": [4, 64, 16]}}
    assert facts["compute_capabilities"] == []
    assert json.loads(json.dumps(facts)) == facts
    plan = read_plan(tmp_path / "model.engine")
    assert plan.version == facts["version"]
    assert plan.size == facts["bytes"]
    assert not list(tmp_path.glob("*.part"))


def test_two_compute_capabilities(tmp_path: Path) -> None:
    facts = make(mlp(tmp_path / "model.onnx"), BuildOptions(compute_capabilities=("8.6", "12.0")))
    assert facts["compute_capabilities"] == ["8.6", "12.0"]
    assert runs_on(facts, "8.6")
    assert not runs_on(facts, "8.9")


def test_half_precision_and_no_tf32_make_other_engines(tmp_path: Path) -> None:
    path = mlp(tmp_path / "model.onnx")
    make(path)
    plain = (tmp_path / "model.engine").read_bytes()
    facts = make(path, BuildOptions(tf32=False))
    assert facts["tf32"] is False
    assert (tmp_path / "model.engine").read_bytes() != plain
    mlp(path, np.float16)
    make(path)
    assert (tmp_path / "model.engine").read_bytes() != plain


def test_progress_is_told(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    make(mlp(tmp_path / "model.onnx"), progress=lambda done, total: steps.append((done, total)))
    assert steps
    assert all(0 < done <= total for done, total in steps)


def test_what_is_raised_in_a_step_stops_the_build(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(mlp(tmp_path / "model.onnx"), progress=interrupt)
    assert not (tmp_path / "model.engine").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_end_is_not_lost_in_a_callback(number: signal.Signals, tmp_path: Path) -> None:
    """In a process of its own: a signal may take effect a little later than it is sent."""
    path = mlp(tmp_path / "model.onnx")
    code = f"""
import signal
from pathlib import Path
from actx.exporter.data import InputSpec
from actx.exporter.tensorrt.build import build, interrupts_held
from actx.exporter.tensorrt.shapes import resolve

def end(*_):
    raise KeyboardInterrupt

signal.signal({int(number)}, end)
try:
    with interrupts_held() as held:
        signal.raise_signal({int(number)})
        assert held == [{int(number)}]  # reached: nothing is raised before the end
except KeyboardInterrupt:
    print("held")
profile = resolve([InputSpec.parse({str(SPEC)!r})])
try:
    build(Path({str(path)!r}), Path({str(tmp_path / "model.engine")!r}), target="trt-rtx", profile=profile,
          progress=lambda *_: signal.raise_signal({int(number)}))
except KeyboardInterrupt:
    print("ended")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["held", "ended"], done.stderr
    assert not (tmp_path / "model.engine").exists()


def test_a_graph_is_refused_before_the_library_is_looked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [helper.make_node("Gelu", ["x"], ["z"], "g", domain="com.acme")], [])
    with pytest.raises(ActxError, match="TensorRT does not have 'g'"):
        build(path, tmp_path / "model.engine", target="trt", profile=PROFILE)


def test_shapes_that_are_too_large(tmp_path: Path) -> None:
    with pytest.raises(ActxError, match="cannot build an engine") as error:
        make(mlp(tmp_path / "model.onnx"), profile=resolve([SPEC], parse_ranges(["batch=100000000", "seq=100000"])))
    assert "volume" in error.value.note
    assert "--shape" in error.value.remedy


def test_turing_takes_half_precision(tmp_path: Path) -> None:
    profile = resolve([InputSpec("x", "float16", SPEC.dims)])
    make(mlp(tmp_path / "model.onnx", np.float16), BuildOptions(compute_capabilities=("7.5",)), profile)


def test_int8_with_a_scale_per_channel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights, scales = rng.integers(-127, 127, (16, 32)).astype("i1"), rng.random(32).astype("f4")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "zero"], ["dx"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["dw"], name="dq_weights", axis=1),
        helper.make_node("MatMul", ["dx", "dw"], ["z"], name="mm"),
    ]
    numbers = {"s": np.float32(0.1), "zero": np.int8(0), "w": weights, "ws": scales}
    path = write(tmp_path / "model.onnx", nodes, [constant(name, value) for name, value in numbers.items()])
    make(path, BuildOptions(compute_capabilities=("8.6", "12.0")))


def test_a_stripped_engine(tmp_path: Path) -> None:
    """Of weights that no matrix product uses: for those the library compiles on the device, and needs one."""
    nodes = [helper.make_node("Add", ["x", "w"], ["z"], name="add")]
    path = write(tmp_path / "model.onnx", nodes, [constant("w", np.ones(16, "f4"))])
    assert make(path, BuildOptions(strip_weights=True))["options"]["strip_weights"]


@pytest.mark.skipif(HERE is not None, reason="there is a GPU")
@pytest.mark.parametrize("options", [BuildOptions(strip_weights=True), BuildOptions(refit=True)])
def test_matrix_weights_cannot_be_replaceable_without_a_gpu(tmp_path: Path, options: BuildOptions) -> None:
    with pytest.raises(TargetUnavailable, match="needs a GPU to build an engine whose weights can be replaced"):
        make(mlp(tmp_path / "model.onnx"), options)
    assert not (tmp_path / "model.engine").exists()


def test_version_compatible_is_not_for_this_library(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="target trt-rtx has no --version-compatible"):
        make(mlp(tmp_path / "model.onnx"), BuildOptions(version_compatible=True))


def test_an_unknown_compute_capability(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot build for compute capability 9\.0") as error:
        make(mlp(tmp_path / "model.onnx"), BuildOptions(compute_capabilities=("9.0",)))
    assert "8.6" in error.value.note


def test_what_the_builder_says_is_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ActxError, match="cannot build an engine") as error:
        make(mlp(tmp_path / "model.onnx"), BuildOptions(workspace=2**20))
    assert "workspace" in error.value.note
    assert "--workspace" in error.value.remedy
    with pytest.raises(ActxError, match="cannot build an engine") as error:
        make(mlp(tmp_path / "model.onnx"), BuildOptions(compute_capabilities=("7.5",)))
    assert "Turing" in error.value.note
    assert "7.5" in error.value.remedy


def test_a_static_model_needs_no_ranges(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [helper.make_node("Relu", ["x"], ["z"], name="r")], dims=(2, 3))
    spec = InputSpec("x", "float32", (2, 3))
    assert make(path, profile=resolve([spec]))["shapes"]["x"]["maximum"] == [2, 3]


def test_the_profile_must_fit_the_model(tmp_path: Path) -> None:
    path = mlp(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="no shape for input 'x'"):
        make(path, profile=resolve([InputSpec("y", "float32", ("batch", 16))]))
    for dims in (("batch", 16), ("batch", "seq", 17)):
        with pytest.raises(UsageError, match="other dimensions of input 'x'") as error:
            make(path, profile=resolve([InputSpec("x", "float32", dims)]))
        assert "the model has [-1, -1, 16]" in error.value.note


def test_an_input_of_sizes_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])
    sizes = helper.make_tensor_value_info("sizes", onnx.TensorProto.INT64, [2])
    result = helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)
    nodes = [helper.make_node("Reshape", ["x", "sizes"], ["z"], name="r")]
    graph = helper.make_graph(nodes, "g", [value, sizes], [result])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "model.onnx"
    )
    specs = [InputSpec("x", "float32", ("n",)), InputSpec("sizes", "int64", (2,))]
    with pytest.raises(ActxError, match="values of input 'sizes' are sizes"):
        make(tmp_path / "model.onnx", profile=resolve(specs))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"old")
    limit = textwrap.dedent(f"""
        import resource, signal
        from pathlib import Path
        from actx.exporter.errors import ActxError
        from actx.exporter.tensorrt.build import write_whole
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_whole(Path({str(tmp_path / "engine")!r}), memoryview(bytes(5000)))
        except ActxError as error:
            print(error)
    """)
    printed = subprocess.run([sys.executable, "-c", limit], capture_output=True, text=True, check=True).stdout
    assert "cannot write" in printed
    assert "5000 bytes" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert (tmp_path / "engine").read_bytes() == b"old"
    with pytest.raises(ActxError, match="cannot write"):
        write_whole(tmp_path / "nowhere" / "engine", memoryview(b"x"))


def test_where_an_engine_runs() -> None:
    def facts(target: str, level: str = "none", gpu: str | None = None, asked: tuple[str, ...] = ()) -> dict[str, Any]:
        return {
            "target": target,
            "options": {"hardware_compatibility": level},
            "compute_capabilities": list(asked),
            "gpu": gpu and {"name": "GPU", "compute_capability": gpu},
        }

    assert runs_on(facts("trt-rtx"), "12.1")
    assert not runs_on(facts("trt-rtx"), "7.5")
    assert runs_on(facts("trt-rtx", asked=("7.5",)), "7.5")
    assert runs_on(facts("trt", gpu="8.7"), "8.7")
    assert not runs_on(facts("trt", gpu="8.7"), "8.6")
    assert runs_on(facts("trt", "ampere+", "8.7"), "11.0")
    assert not runs_on(facts("trt", "ampere+", "8.7"), "7.5")


def as_tensorrt(folder: Path, version: str, code: str) -> str:
    """Run code where `tensorrt` is the RTX library that says it is of that version."""
    (folder / "tensorrt.py").write_text(f"from tensorrt_rtx import *\n__version__ = {version!r}\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(Path.cwd())])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False, env=environment, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_path_of_trt(tmp_path: Path) -> None:
    """The timing cache, the levels and the flags that TensorRT alone has; the RTX library takes them and does nothing."""
    mlp(tmp_path / "model.onnx")
    code = """
        import json
        from pathlib import Path
        from actx.exporter.errors import ActxError
        from actx.exporter.tensorrt.build import build
        from actx.exporter.tensorrt.options import BuildOptions
        from actx.exporter.tensorrt.shapes import parse_ranges, resolve
        from tests.exporter.tensorrt.graphs import SPEC

        def make(**options):
            profile = resolve([SPEC], parse_ranges(["batch=1:2:4", "seq=1:8:64"]))
            try:
                built = build(Path("model.onnx"), Path("e"), target="trt", profile=profile, options=BuildOptions(**options))
            except ActxError as error:
                return [type(error).__name__, error.what]
            return built.facts
        cache = Path("timing.cache")
        print(json.dumps([
            make(timing_cache=cache, hardware_compatibility="ampere+", optimization_level=2),
            make(timing_cache=cache),
            make(dla_core=0),
            cache.exists(),
        ]))
    """
    first, again, dla, cached = json.loads(as_tensorrt(tmp_path, "10.12.0.36", code).splitlines()[-1])
    assert first["library"] == "tensorrt"
    assert first["version"] == "10.12.0.36"
    assert first["options"]["hardware_compatibility"] == "ampere+"
    assert again["bytes"] > 0
    assert dla == ["TargetUnavailable", "there is no DLA core 0"]
    assert cached


def test_an_old_tensorrt_is_refused(tmp_path: Path) -> None:
    code = """
        from actx.exporter.errors import TargetUnavailable
        from actx.exporter.tensorrt.library import find
        try:
            find("trt")
        except TargetUnavailable as error:
            print(error)
    """
    printed = as_tensorrt(tmp_path, "10.3.0", code)
    assert "TensorRT is too old" in printed
    assert "found 10.3.0, the least that will do is 10.12" in printed
    assert "JetPack" in printed
