"""Which sites an engine computes by a plugin: the decision, the graphs that are compared, and what a bundle says of it."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from actx.custom_ops.ops import DOMAIN
from actx.exporter import Form, export, plugins, report, session
from actx.exporter.choose import KEEP, Choice, choose
from actx.exporter.errors import ActxError, TargetUnavailable, UsageError
from actx.exporter.ffn.modes import Measured
from actx.exporter.latency import Comparison
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.manifest import EngineEntry, PluginEntry, RatioEntry
from actx.exporter.pipeline import NotBuilt
from actx.exporter.plugins import LAYERS, PLUGIN, Plugin, Task, compare_apart, decide
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.targets import TARGETS, BuildRequest, tensorrt
from actx.exporter.targets.base import Files
from actx.exporter.targets.tensorrt import Trt
from actx.exporter.tensorrt import device
from actx.exporter.tensorrt.build import build as build_engine
from actx.exporter.tensorrt.network import check_graph
from actx.exporter.tensorrt.options import BuildOptions
from actx.exporter.tensorrt.plan import read_plan
from actx.exporter.tensorrt.shapes import ShapeRange, resolve
from tests.exporter.targets.networks import SMALL, write_small
from tests.networks import MANY_SITES_KINDS, many_sites

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.pipeline import Exported

pytest.importorskip("triton", reason="actx was installed without the extra gpu")

FASTER = Comparison("faster", 1.3, 1.25, (1.2, 1.3), 1.0, 1.02)
SLOWER = replace(FASTER, verdict="slower", ratio=0.8, paired_ratio=0.8, interval=(0.7, 0.9))
SAME = replace(FASTER, verdict="no difference", ratio=1.0, paired_ratio=1.0, interval=(0.99, 1.01))
RANGES = {"batch": ShapeRange(1, 8, 32), "tokens": ShapeRange(1, 16, 128)}
SPLINE = Form.parse("spline:16x3")
OWN, WITH_PLUGINS = "model.trt.onnx", "model.trt.plugins.onnx"


def for_trt(model: Path, out: Path, data: Path | None = None, **options: Any) -> Exported:
    """Export where TensorRT is not: the bundle is complete but for the engine."""
    asked: dict[str, Any] = {"measure_drift": False, "shapes": RANGES, **options}
    with pytest.raises(NotBuilt, match="TensorRT is not installed") as caught:
        export(model, out, target="trt", data=None if data is None else str(data), **asked)
    return caught.value.exported


def kernels_of(graph: Path) -> list[str]:
    return [node.op_type for node in onnx.load(graph, load_external_data=False).graph.node if node.domain == DOMAIN]


# --- the decision ---


@pytest.mark.parametrize(
    ("measured", "taken", "reason"),
    [
        (Measured(FASTER), True, "a plugin is measured to be faster"),
        (Measured(SLOWER), False, "a plugin is measured to be slower"),
        (Measured(SAME), False, "a plugin is measured no difference"),
        (Measured(None, "there is no GPU"), False, "not measured: there is no GPU"),
    ],
)
def test_a_plugin_is_taken_where_it_is_measured_to_be_faster(
    measured: Measured, taken: bool, reason: str, tmp_path: Path
) -> None:
    model, _ = write_small(SMALL["mish"], tmp_path)
    (site,) = lift(load(model).model).sites
    (choice,) = choose([site], TARGETS["trt"], form=SPLINE)
    assert decide([choice], lambda _: measured) == (Plugin(site.name, taken, reason, measured.comparison),)
    assert decide([Choice(site, KEEP, None, "")], lambda _: measured) == ()


# --- what is compared ---


class Compared:
    """Stands in for the process with the engines: keeps the tasks, and gives one result."""

    def __init__(self, result: Comparison = FASTER) -> None:
        self.result = result
        self.graphs: list[dict[str, onnx.ModelProto]] = []
        self.requests: list[BuildRequest] = []

    def __call__(self, task: Task) -> Comparison:
        assert pickle.loads(pickle.dumps(task)).target == "trt"  # it is sent to a process
        names = (LAYERS, PLUGIN)
        places = {name: task.folder / name / OWN for name in names}
        assert [bool(check_graph(places[name], "TensorRT", takes_plugins=True)) for name in names] == [False, True]
        self.graphs.append({name: onnx.load(place) for name, place in places.items()})
        self.requests.append(task.request)
        engine = task.folder / "layers.engine"
        profile = task.request.profile
        build_engine(places[LAYERS], engine, target="trt-rtx", profile=profile, options=BuildOptions())
        assert read_plan(engine).size
        return self.result


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Compared:
    """As where TensorRT, Triton and an Orin are; but for TensorRT itself."""
    compared = Compared()
    monkeypatch.setattr(Trt, "require_plugins", lambda _: 87)
    monkeypatch.setattr(plugins, "compare_apart", compared)
    return compared


@pytest.mark.parametrize("quant", [None, "fp16", "int8"])
@pytest.mark.parametrize("name", ["16-segment pwl", "gated silu"])
def test_both_ways_are_engines_of_the_part_in_the_types_of_the_scheme(
    name: str, quant: str | None, tmp_path: Path, on_a_gpu: Compared
) -> None:
    model, data = write_small(SMALL[name], tmp_path)
    for_trt(model, tmp_path / "out", data, form=SPLINE, quant=quant)
    (graphs,), (request,) = on_a_gpu.graphs, on_a_gpu.requests
    gated = SMALL[name].gated is not None
    assert [n.op_type for n in graphs[PLUGIN].graph.node if n.domain == DOMAIN] == ["Kernel3" if gated else "Kernel2"]
    linear = [[n.op_type for n in graph.graph.node].count("MatMul") for graph in graphs.values()]
    assert linear == [3 if gated else 2] * 2
    for graph in graphs.values():
        halves = any(t.data_type == onnx.TensorProto.FLOAT16 for t in graph.graph.initializer)
        codes = any(n.op_type == "QuantizeLinear" for n in graph.graph.node)
        assert (halves, codes) == (quant == "fp16", quant == "int8")
    assert request.profile.ranges == RANGES  # those of the whole model


def test_sites_of_one_structure_are_measured_once(tmp_path: Path, on_a_gpu: Compared) -> None:
    onnx.save(many_sites(8), tmp_path / "model.onnx")
    exported = for_trt(tmp_path / "model.onnx", tmp_path / "out", form=SPLINE)
    assert len(exported.manifest.sites) == 8
    assert len(on_a_gpu.graphs) == len(MANY_SITES_KINDS) + 1  # the layer behind the last one is of another width


def test_a_part_that_is_no_engine_keeps_the_layers(
    tmp_path: Path, on_a_gpu: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(task: Task) -> Comparison:
        raise ActxError("TensorRT 10.12 cannot build an engine", note="plugin: out of memory")

    monkeypatch.setattr(plugins, "compare_apart", refuse)
    model, data = write_small(SMALL["mish"], tmp_path)
    exported = for_trt(model, tmp_path / "out", data, form=SPLINE)
    entry = exported.manifest.sites[0].plugin
    assert entry is not None
    assert (entry.taken, entry.latency) == (False, None)
    assert entry.reason == "not measured: TensorRT 10.12 cannot build an engine: plugin: out of memory"
    assert WITH_PLUGINS not in exported.manifest.files


def test_engines_are_compared_in_a_process_of_its_own(tmp_path: Path) -> None:
    """It says what it lacks here, which is TensorRT."""
    model, data = write_small(SMALL["mish"], tmp_path)
    exported = for_trt(model, tmp_path / "out", data)
    for name in (LAYERS, PLUGIN):
        (tmp_path / name).symlink_to(exported.path)
    profile = BuildRequest(resolve(load(model).inputs, RANGES), BuildOptions())
    with pytest.raises(ActxError, match="cannot be measured in a process of its own") as caught:
        compare_apart(Task(tmp_path, "trt", profile, {}, DEFAULT, 1.0))
    assert caught.value.note == "TensorRT is not installed"


# --- the bundle ---


def test_the_engine_is_built_of_a_graph_with_plugins(
    tmp_path: Path, on_a_gpu: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    def refuse(self: Trt, graph: Path, *_: Any) -> Any:
        built.append(graph)
        raise TargetUnavailable("TensorRT is not installed")

    monkeypatch.setattr(Trt, "build", refuse)
    model, data = write_small(SMALL["gated silu"], tmp_path)
    exported = for_trt(model, tmp_path / "out", data, form=SPLINE, quant="fp16", measure_drift=True)
    assert [graph.name for graph in built] == [WITH_PLUGINS]
    manifest = exported.manifest
    assert manifest.graphs == {"portable": "model.onnx", "trt": OWN, "plugins": WITH_PLUGINS}
    assert kernels_of(exported.path / WITH_PLUGINS) == ["Kernel3"]
    assert kernels_of(exported.path / OWN) == []
    assert manifest.sites[0].plugin == PluginEntry(
        taken=True,
        reason="a plugin is measured to be faster",
        latency=RatioEntry(verdict="faster", ratio=1.25, interval=(1.2, 1.3)),
    )
    # What runs here is the typed graph, whose drift is measured.
    assert [drift.graph for drift in manifest.drift] == [OWN, "model.onnx"]
    assert session(exported.path).graph == OWN
    assert "a plugin is measured to be faster" in report(exported.path)


def test_where_no_plugin_is_faster_the_bundle_has_none(tmp_path: Path, on_a_gpu: Compared) -> None:
    on_a_gpu.result = SLOWER
    model, data = write_small(SMALL["mish"], tmp_path)
    exported = for_trt(model, tmp_path / "out", data, form=SPLINE)
    assert set(exported.manifest.graphs.values()) == {"model.onnx", OWN}
    entry = exported.manifest.sites[0].plugin
    assert entry is not None
    assert (entry.taken, entry.reason) == (False, "a plugin is measured to be slower")


def test_without_a_gpu_the_layers_stay_and_the_bundle_says_why(tmp_path: Path) -> None:
    model, data = write_small(SMALL["mish"], tmp_path)
    left = [
        for_trt(model, tmp_path / f"out{kernels}", data, form=SPLINE, quant="fp16", kernels=kernels)
        for kernels in (None, False)
    ]
    reasons = [exported.manifest.sites[0].plugin for exported in left]
    assert [entry and (entry.taken, entry.reason) for entry in reasons] == [
        (False, "not measured: TensorRT is not installed"), (False, "not measured: no kernels were to be used"),
    ]  # fmt: skip
    first, second = (exported.manifest.files for exported in left)
    assert first == second
    assert WITH_PLUGINS not in first


def test_a_kept_site_has_no_plugin(tmp_path: Path) -> None:
    model, data = write_small(SMALL["mish"], tmp_path)
    assert for_trt(model, tmp_path / "out", data).manifest.sites[0].plugin is None


# --- what is refused ---


def test_plugins_that_were_asked_for_need_tensorrt(tmp_path: Path) -> None:
    model, _ = write_small(SMALL["mish"], tmp_path)
    with pytest.raises(TargetUnavailable, match="TensorRT is not installed") as caught:
        export(model, tmp_path / "out", target="trt", form=SPLINE, kernels=True)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="target trt has no kernels"):
        export(model, tmp_path / "out", target="trt", with_kernels=("aarch64",))


def test_plugins_need_a_gpu_that_there_are_kernels_for_and_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "find", lambda _: None)
    monkeypatch.setattr(device, "find_gpu", lambda: (None, "there is no NVIDIA driver"))
    with pytest.raises(TargetUnavailable, match="plugins cannot be measured without a GPU") as caught:
        TARGETS["trt"].require_plugins()
    assert caught.value.note == "there is no NVIDIA driver"
    monkeypatch.setattr(device, "find_gpu", lambda: (device.Gpu("Pascal", "6.1", "12.0", None), ""))
    with pytest.raises(TargetUnavailable, match=r"no plugins for compute capability 6\.1") as caught:
        TARGETS["trt"].require_plugins()
    assert "8.7" in caught.value.note
    monkeypatch.setattr(device, "find_gpu", lambda: (device.Gpu("Orin", "8.7", "12.6", None), ""))
    assert TARGETS["trt"].require_plugins() == 87
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TargetUnavailable, match="plugins cannot be compiled here"):
        TARGETS["trt"].require_plugins()


def test_a_graph_with_plugins_is_for_tensorrt_alone(tmp_path: Path, on_a_gpu: Compared) -> None:
    model, data = write_small(SMALL["mish"], tmp_path)
    graph = for_trt(model, tmp_path / "out", data, form=SPLINE).path / WITH_PLUGINS
    with pytest.raises(ActxError, match=r"TensorRT-RTX has no kernel for 'Mish_2/actx/Spline_0' \(Kernel2\)"):
        check_graph(graph, "TensorRT-RTX")


def test_a_manifest_cannot_name_a_graph_outside_of_its_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def runtime(*arguments: Any, **_: Any) -> Any:
        opened.append(arguments[3])
        return DEFAULT

    monkeypatch.setattr(tensorrt, "engine_runtime", runtime)
    graphs = {"trt": "model.trt.onnx", "plugins": "model.trt.plugins.onnx"}
    for stated in ("../../secret.onnx", "/etc/passwd", ["model.trt.onnx"], None, "model.trt.plugins.onnx"):
        engine = EngineEntry(file="model.trt.engine", facts={"graph": stated})
        TARGETS["trt"].graph(Files(tmp_path, graphs, {"trt": engine}), DEFAULT, None)
    assert [path.name for path in opened] == [*["model.trt.onnx"] * 4, "model.trt.plugins.onnx"]
    assert {path.parent for path in opened} == {tmp_path}
