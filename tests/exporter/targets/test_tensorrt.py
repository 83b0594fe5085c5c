"""Bundles for `trt` and `trt-rtx`: real engines by TensorRT-RTX, which needs no GPU to build, and none without TensorRT."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from actx.exporter import Form, InputSpec, build, check, export, measuring, profile, report, session
from actx.exporter.bundle import digests
from actx.exporter.errors import ActxError, TargetUnavailable, UsageError
from actx.exporter.manifest import LatencyEntry, Manifest
from actx.exporter.pipeline import DriftExceeded, NotBuilt
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.tensorrt.library import describe
from actx.exporter.tensorrt.options import BuildOptions
from actx.exporter.tensorrt.plan import read_plan
from actx.exporter.tensorrt.shapes import ShapeRange, parse_ranges
from actx.models.demo import CALIBRATION, demo_path
from tests.exporter.comparing.sides import latency
from tests.exporter.targets.networks import SMALL, Small, write_batches, write_small
from tests.networks import SPELLINGS, WIDTH, Graph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actx.exporter.pipeline import Exported

SCHEMES = (None, "fp16", "int8")
CAPABILITIES = ("8.6", "12.0")
RANGES = {"batch": ShapeRange(1, 8, 32), "tokens": ShapeRange(1, 16, 128)}
# Half precision rounds by 2^-11 of a value, int8 by half of 2^-7 of the largest; a few of them add up.
MOST_DRIFT = {None: 1e-5, "fp16": 8 * 2.0**-11, "int8": 8 * 2.0**-8}

no_gpu = pytest.mark.skipif(describe("trt-rtx")["gpu"] is not None, reason="there is a GPU: the engine runs")


def for_rtx(model: Path, out: Path, data: Path | None = None, **options: Any) -> Exported:
    asked: dict[str, Any] = {"target": "trt-rtx", "build": BuildOptions(compute_capabilities=CAPABILITIES), **options}
    return export(model, out, data=None if data is None else str(data), measure_latency=False, **asked)


def check_engine(exported: Exported, dims: set[str]) -> None:
    """An engine of the library for both GPUs and every dynamic dimension, whole and known to the manifest."""
    entry = exported.manifest.engines["trt-rtx"]
    content = (exported.path / entry.file).read_bytes()
    assert content[:4] == b"vtrt"
    assert len(content) == entry.facts["bytes"]
    assert entry.facts["compute_capabilities"] == list(CAPABILITIES)
    assert set(entry.facts["ranges"]) == dims
    assert entry.file in exported.manifest.files
    assert entry.facts["command"].startswith("tensorrt_rtx --onnx=model.trt-rtx.onnx")


@pytest.mark.parametrize("quant", SCHEMES)
@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name: str, quant: str | None, tmp_path: Path) -> None:
    small = SMALL[name]
    model, data = write_small(small, tmp_path)
    form = None if small.form is None else Form.parse(small.form)
    exported = for_rtx(model, tmp_path / "out", data, form=form, quant=quant, shapes=RANGES)
    check_engine(exported, {"batch", "tokens"})
    typed, portable = exported.drifts
    assert (typed.graph, portable.graph) == ("model.trt-rtx.onnx", "model.onnx")
    assert typed.drift <= portable.drift + MOST_DRIFT[quant]


@pytest.mark.parametrize("quant", SCHEMES)
def test_the_demo_network(demo_onnx: Path, quant: str | None, tmp_path: Path) -> None:
    data = demo_path(CALIBRATION)
    exported = for_rtx(demo_onnx, tmp_path / "out", data, quant=quant)
    check_engine(exported, {"batch"})
    assert exported.drifts[0].drift <= MOST_DRIFT[quant]


FLOAT8 = BuildOptions(compute_capabilities=("8.9", "12.0"))


@pytest.mark.parametrize("quant", ["fp8", "fp8-fp16"])
def test_float8(demo_onnx: Path, quant: str, tmp_path: Path) -> None:
    data = demo_path(CALIBRATION)
    exported = for_rtx(demo_onnx, tmp_path / "out", data, quant=quant, build=FLOAT8)
    assert (
        exported.manifest.engines["trt-rtx"].facts["bytes"] == (exported.path / "model.trt-rtx.engine").stat().st_size
    )
    assert exported.drifts[0].drift <= 2.0**-4  # what a number moves by at most, which averages out in sums


def test_float8_on_a_gpu_without_it(tmp_path: Path) -> None:
    model, data = write_small(SMALL["mish"], tmp_path)
    with pytest.raises(ActxError, match="fp8"):
        for_rtx(model, tmp_path / "out", data, quant="fp8")
    assert nothing_is_written(tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("quant", [pytest.param(one, marks=[pytest.mark.slow] * (one is None)) for one in SCHEMES])
def test_the_encoder(quant: str | None, encoder_dynamo_onnx: Path, encoder_data: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = write_batches(encoder_data("calibration")[:2], tmp_path / "data")
    named = [InputSpec.parse(f"{name}:int64[batch,tokens]") for name in ("input_ids", "attention_mask")]
    ranges = parse_ranges(["batch=1:8:32", "tokens=4:32:128"])
    exported = for_rtx(
        encoder_dynamo_onnx, tmp_path / "out", data, quant=quant, inputs=named, shapes=ranges, metric="cosine"
    )
    check_engine(exported, {"batch", "tokens"})
    assert exported.drifts[0].drift <= {None: 1e-6, "fp16": 1e-4, "int8": 0.05}[quant]


@pytest.mark.real
def test_the_encoder_of_opset_13_with_norms_written_out(
    encoder_legacy_onnx: Path, encoder_data: Any, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    data = write_batches(encoder_data("calibration")[:1], tmp_path / "data")
    exported = for_rtx(encoder_legacy_onnx, tmp_path / "out", data, quant="fp16", metric="cosine")
    check_engine(exported, {"batch", "tokens"})
    assert exported.drifts[0].drift <= 1e-4


# --- without TensorRT, and without a GPU ---


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A bundle for `trt` as a machine without TensorRT leaves it."""
    model, data = write_small(SMALL["mish"], tmp_path)
    with pytest.raises(NotBuilt, match="TensorRT is not installed") as caught:
        export(
            model, tmp_path / "out", target="trt", quant="fp16", data=str(data), shapes=RANGES, measure_latency=False
        )
    assert caught.value.exit_code == 4
    assert f"actx build {tmp_path / 'out'}" in caught.value.remedy
    assert caught.value.exported.drift is not None
    assert any("trtexec --onnx=model.trt.onnx" in note for note in caught.value.exported.manifest.notes)
    return tmp_path / "out"


def test_without_tensorrt_the_typed_graph_is_left(left: Path) -> None:
    manifest = json.loads((left / "manifest.json").read_text())
    assert sorted(manifest["files"]) == ["model.onnx", "model.trt.onnx", "weights.data"]
    assert manifest["engines"] == {}
    assert manifest["request"]["shapes"] == {"batch": "1:8:32", "tokens": "1:16:128"}
    types = {t.data_type for t in onnx.load(left / "model.trt.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    onnx.checker.check_model(left / "model.trt.onnx")


def test_build_without_tensorrt(left: Path) -> None:
    before = {file.name: file.read_bytes() for file in left.iterdir()}
    with pytest.raises(TargetUnavailable, match="TensorRT is not installed") as caught:
        build(left)
    assert "JetPack" in caught.value.remedy
    assert {file.name: file.read_bytes() for file in left.iterdir()} == before


@no_gpu
def test_the_typed_graph_builds_through_the_other_library(left: Path) -> None:
    built = build(left, target="trt-rtx", options={"compute_capabilities": ("8.9",)})
    assert built.engine.facts["ranges"] == {"batch": "1:8:32", "tokens": "1:16:128"}
    opened = session(left)
    assert (opened.graph, opened.reason) == (
        "model.trt.onnx",
        "in ONNX Runtime: the engine cannot be run without a GPU",
    )
    x = np.ones((2, 3, WIDTH), np.float32)
    assert np.isfinite(opened.run({"x": x})["y"]).all()


OPTIONS = BuildOptions(compute_capabilities=("8.6",), workspace=2**30, tf32=False)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A bundle with an engine that was asked for with options, and one dimension without a range."""
    model, data = write_small(Small("relu", None), tmp_path)
    return for_rtx(model, tmp_path / "out", data, shapes={"tokens": ShapeRange(1, 16, 128)}, build=OPTIONS).path


def test_a_build_keeps_what_the_export_was_asked_for(asked: Path) -> None:
    assert any(note.startswith("dimension 'batch' is ") for note in Manifest.read(asked / "manifest.json").notes)
    ranges = parse_ranges(["batch=1:2:16"])
    facts = build(asked, shapes=ranges, options={"compute_capabilities": ("8.9",), "tf32": True}).engine.facts
    assert facts["options"] == BuildOptions(compute_capabilities=("8.9",), workspace=2**30).to_dict()
    assert facts["ranges"] == {"batch": "1:2:16", "tokens": "1:16:128"}
    manifest = Manifest.read(asked / "manifest.json")
    assert not any(note.startswith("dimension ") for note in manifest.notes)  # nothing is assumed any more
    assert build(asked).engine.facts["options"] == facts["options"]


def test_what_was_measured_on_an_engine_goes_with_it(asked: Path) -> None:
    """As where a GPU was: reports of the engine first, and of its latency; and an engine of the other library."""
    manifest = Manifest.read(asked / "manifest.json")
    entry = manifest.engines["trt-rtx"]
    both = {"trt-rtx": entry, "trt": entry.model_copy(update={"file": "model.trt.engine"})}
    drift = manifest.drift[0].model_copy(update={"graph": entry.file})
    timed = LatencyEntry.model_validate(latency(2.0, graph=entry.file))
    shutil.copy(asked / entry.file, asked / "model.trt.engine")
    files = {name: sha256 for name, sha256 in digests(asked).items() if name not in {"manifest.json", "report.html"}}
    manifest.model_copy(
        update={"engines": both, "drift": [drift, *manifest.drift], "latency": timed, "files": files}
    ).write(asked / "manifest.json")
    build(asked)
    made = Manifest.read(asked / "manifest.json")
    assert [drift.graph for drift in made.drift] == ["model.trt-rtx.onnx", "model.onnx"]
    assert made.latency is None
    assert list(made.engines) == ["trt", "trt-rtx"]  # the last that was built is the one to run
    page = (asked / "report.html").read_text(encoding="utf-8")
    assert page == report(asked)
    for engine in made.engines.values():
        assert f"<bdi>{engine.file}</bdi>" in page
        assert (
            f"<dt><bdi>compute_capabilities</bdi></dt><dd><bdi>{', '.join(engine.facts['compute_capabilities'])}</bdi>"
            in page
        )


def test_a_build_through_a_link_replaces_the_bundle(asked: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(asked)
    assert build(tmp_path / "current").path == tmp_path / "current"
    assert (tmp_path / "current").is_symlink()
    assert session(tmp_path / "current").graph == "model.trt-rtx.onnx"


def test_what_cannot_be_replaced_is_told_before_the_build(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (asked / "trt.cache").write_text("mine")
    with pytest.raises(UsageError, match=r"trt\.cache"):
        build(asked, shapes=parse_ranges(["nonsense=1:2:3"]))
    (asked / "trt.cache").unlink()
    monkeypatch.chdir(asked)
    with pytest.raises(UsageError, match="is the current folder"):
        build(".")


def test_build_with_a_library_of_that_name(left: Path, tmp_path: Path) -> None:
    """TensorRT-RTX under the other's name: the same API, so the builder of `trt` runs to the end."""
    (tmp_path / "alias").mkdir()
    (tmp_path / "alias" / "tensorrt.py").write_text(
        "from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__ as _rtx\n__version__ = f'11.{_rtx}'\n"
    )
    code = f"import sys; from actx.cli.main import run; sys.argv = ['actx', 'build', {str(left)!r}, '--json']; sys.exit(run())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "alias")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)
    assert (entry["target"], entry["file"]) == ("trt", "model.trt.engine")
    assert entry["facts"]["command"].startswith(
        "trtexec --onnx=model.trt.onnx --saveEngine=../model.trt.engine --minShapes="
    )
    manifest = json.loads((left / "manifest.json").read_text())
    assert manifest["engines"]["trt"]["facts"] == entry["facts"]
    assert "model.trt.engine" in manifest["files"]


@no_gpu
def test_latency_is_not_measured_without_a_gpu(tmp_path: Path) -> None:
    model, data = write_small(SMALL["mish"], tmp_path)
    exported = export(model, tmp_path / "out", target="trt-rtx", data=str(data))
    assert exported.latency is None
    assert any(note.endswith("latency on trt-rtx was not measured") for note in exported.manifest.notes)
    with pytest.raises(TargetUnavailable, match="cannot be measured here") as caught:
        profile(model, exported.path)
    assert "without a GPU" in caught.value.note
    report = check(model, exported.path, data=str(data))
    assert report.graph == "model.trt-rtx.onnx"


def test_a_missed_budget_names_the_scheme_where_the_forms_are_within_it(tmp_path: Path) -> None:
    model, data = write_small(SMALL["16-segment pwl"], tmp_path)
    with pytest.raises(DriftExceeded) as caught:
        for_rtx(model, tmp_path / "out", data, form=Form.parse("pwl:16"), quant="int8", max_drift=0.005)
    typed, portable = caught.value.exported.drifts
    assert portable.drift < 0.005 < typed.drift
    assert "the rest is the scheme int8" in caught.value.note
    assert "finer scheme" in caught.value.remedy


@no_gpu
def test_data_that_the_engine_does_not_take_is_refused_where_the_typed_graph_runs_too(tmp_path: Path) -> None:
    model, data = write_small(SMALL["mish"], tmp_path)
    exported = for_rtx(model, tmp_path / "out", data)
    np.savez(tmp_path / "large.npz", x=np.zeros((40, 5, WIDTH), np.float32))
    with pytest.raises(UsageError, match="does not take 40 for dimension 'batch'"):
        check(model, exported.path, data=str(tmp_path / "large.npz"), batch_size=40)


# --- what is refused ---


def unsupported(folder: Path) -> Path:
    """A model with a node that ONNX Runtime has and TensorRT has not."""
    graph = Graph(18)
    hidden = graph.linear(graph.input("x", ["batch", 4, 4]), "up", np.eye(4))
    graph.scope = "head/"
    graph.output(graph.op("Det", graph.op("Tanh", hidden)), "y", 1)
    proto = graph.model()
    next(node for node in proto.graph.node if node.op_type == "Det").name = "head/volume"
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def test_what_the_device_would_refuse_is_refused_without_tensorrt(tmp_path: Path) -> None:
    """A bundle that no device can finish must not be left as if it could."""
    graph = Graph(18)
    graph.output(graph.op("Tanh", graph.linear(graph.input("x", ["batch", 4]), "up", np.eye(4))), "y", 4)
    wide = graph.model()
    wide.graph.node.append(onnx.helper.make_node("Cast", ["y"], ["z"], name="wide", to=onnx.TensorProto.DOUBLE))
    wide.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.DOUBLE, ["batch", 4]))
    onnx.save(wide, tmp_path / "model.onnx")
    with pytest.raises(ActxError, match="float64, which TensorRT does not have") as caught:
        export(tmp_path / "model.onnx", tmp_path / "out", target="trt", measure_latency=False)
    assert caught.value.exit_code == 2
    assert nothing_is_written(tmp_path)


def test_random_input_is_of_sizes_that_the_engine_takes(tmp_path: Path) -> None:
    model, _ = write_small(Small("relu", None), tmp_path)
    exported = for_rtx(model, tmp_path / "out", shapes=parse_ranges(["batch=4:8:16", "tokens=32:64:64"]))
    report = check(model, exported.path)
    assert report.samples == 4


def test_the_baseline_of_an_engine_is_built_as_the_engine_was(tmp_path: Path) -> None:
    """Whatever the dimensions are called in the original, and not as the bundle's own target was asked for."""
    model, data = write_small(Small("relu", None), tmp_path)
    named = [InputSpec.parse(f"x:float32[rows,columns,{WIDTH}]")]
    exported = for_rtx(model, tmp_path / "out", data, inputs=named, shapes=parse_ranges(["rows=1:4:16"]))
    with (
        measuring.opened(exported.path, DEFAULT, None, kernels=None, trust=False) as place,
        measuring.prepared(model, exported.path, str(data), (), None, trust=False, factory=None) as pair,
    ):
        engine = replace(place, graph=replace(place.graph, source=place.graph.path))
        with measuring._baseline(pair, engine) as before:
            assert read_plan(before.path.parent / "model.trt-rtx.engine").size


def test_the_latency_of_an_engine_by_itself(tmp_path: Path) -> None:
    model, data = write_small(Small("relu", None), tmp_path)
    exported = for_rtx(model, tmp_path / "out", data)
    with pytest.raises(ActxError, match="nothing to compare"):
        profile(model, exported.path / "model.trt-rtx.engine", data=str(data), trust=True)


def nothing_is_written(folder: Path) -> bool:
    return not any(file.name == "out" or file.name.startswith(".out") for file in folder.iterdir())


def test_a_node_that_the_library_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ActxError, match="head/volume") as caught:
        for_rtx(unsupported(tmp_path), tmp_path / "out")
    assert "Det" in str(caught.value)
    assert caught.value.exit_code == 1
    assert nothing_is_written(tmp_path)


@pytest.mark.parametrize("ranges", [["batch=1:2:4"], ["tokens=8:16:32"]])
def test_a_profile_that_does_not_cover_the_data(ranges: list[str], tmp_path: Path) -> None:
    model, data = write_small(SMALL["mish"], tmp_path)
    with pytest.raises(UsageError, match="does not take") as caught:
        for_rtx(model, tmp_path / "out", data, shapes=parse_ranges(ranges))
    assert ranges[0].partition("=")[0] in caught.value.what
    assert nothing_is_written(tmp_path)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"quant": "fp4"}, "no scheme 'fp4'"),
        ({"build": BuildOptions(dla_core=0)}, "--dla"),
        ({"build": BuildOptions(compute_capabilities=("9.0",))}, "9.0"),
        ({"shapes": parse_ranges(["height=1:2:3"])}, "height"),
        ({"kernels": True}, "no kernels"),
        ({"target": "ort-cpu", "build": BuildOptions(refit=True)}, "no engine is built for target ort-cpu"),
        ({"target": "onnx", "build": None, "quant": "fp16"}, "no scheme 'fp16'"),
    ],
)
def test_what_the_target_does_not_have(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    model, data = write_small(SMALL["mish"], tmp_path)
    with pytest.raises(UsageError, match=match):
        for_rtx(model, tmp_path / "out", data, **options)
    assert nothing_is_written(tmp_path)


def test_a_type_that_the_library_lacks(tmp_path: Path) -> None:
    onnx.save(SPELLINGS["silu"].model(20, np.float64), tmp_path / "model.onnx")
    for target in ("trt-rtx", "trt"):
        with pytest.raises(UsageError, match="float64, which TensorRT") as caught:
            for_rtx(tmp_path / "model.onnx", tmp_path / "out", target=target, build=BuildOptions())
        assert "float32" in caught.value.remedy
        assert caught.value.exit_code == 2
        assert nothing_is_written(tmp_path)


def test_int8_without_data(tmp_path: Path) -> None:
    model, _ = write_small(SMALL["mish"], tmp_path)
    with pytest.raises(UsageError, match="int8 needs data"):
        for_rtx(model, tmp_path / "out", quant="int8")
    assert nothing_is_written(tmp_path)


def test_a_full_disk_during_the_build(demo_onnx: Path, tmp_path: Path) -> None:
    """The engine is the largest file of the bundle: a limit between the others and it."""
    code = f"""
import resource, signal, sys
from actx.cli.main import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
sys.argv = ["actx", "export", {str(demo_onnx)!r}, "--target", "trt-rtx", "--no-profile", "-o", {str(tmp_path / "out")!r}]
sys.exit(run())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("Error: cannot write")
    assert len(done.stderr.splitlines()) <= 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_an_engine_that_is_not_the_bundles(damage: str, tmp_path: Path, built: Callable[[], Path]) -> None:
    folder = built()
    engine = folder / "model.trt-rtx.engine"
    engine.write_bytes(engine.read_bytes()[:-100] if damage == "truncated" else b"vtrt" + bytes(1000))
    for use in (session, build):
        with pytest.raises(ActxError, match="is not the file that the export wrote"):
            use(folder)


@pytest.fixture
def built(tmp_path: Path) -> Callable[[], Path]:
    def make() -> Path:
        model, data = write_small(Small("relu", None), tmp_path)
        return for_rtx(model, tmp_path / "out", data).path

    return make


def test_what_has_no_engine_is_not_built(tmp_path: Path) -> None:
    model, _ = write_small(SMALL["mish"], tmp_path)
    exported = export(model, tmp_path / "out", measure_latency=False, form=Form.parse("pwl:8"))
    with pytest.raises(UsageError, match="nothing is built for ort-cpu"):
        build(exported.path)
    with pytest.raises(UsageError, match="has no typed graph"):
        build(exported.path, target="trt-rtx")
