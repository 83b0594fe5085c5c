"""Behaviour of `exporter.runtimes.openvino` on real OpenVINO: what opens, what it gives, what is refused and in which words."""

from __future__ import annotations

import json
import pickle
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError, TargetUnavailable, UsageError
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.runtimes.openvino import OpenVino, description
from tests.networks import SPELLINGS, feeds, mlp_reference

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.runtimes.base import Runtime

WIDTH = 16
WEIGHT = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
F32 = OpenVino(threads=1)
UNIT = 2.0**-24
UNIT_BF16 = 2.0**-8


def network(*nodes: onnx.NodeProto, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> Any:
    weight = numpy_helper.from_array(WEIGHT, "w")
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, [weight])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("actx", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def info(name: str, element: int = TensorProto.FLOAT, shape: Any = ("n", WIDTH)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def model(op: str = "Relu", domain: str = "") -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node(op, ["a"], ["b"], domain=domain, name="activation"),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    return network(*nodes, inputs=[info("x")], outputs=[info("y")])


def save(folder: Path, proto: onnx.ModelProto | None = None, *, external: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    proto = model() if proto is None else proto
    onnx.save(proto, path, save_as_external_data=external, location="weights.data", size_threshold=0)
    return path


def rows(count: int = 3, dtype: str = "float32") -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((count, WIDTH)).astype(dtype)}


@pytest.mark.parametrize("name", ["gelu_legacy", "silu", "mish_threshold", "quick_gelu", "softplus_stable"])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_it_computes_what_the_network_says(tmp_path: Path, name: str, precision: Any) -> None:
    proto = SPELLINGS[name].model(18)
    inputs = feeds(proto)
    expected, magnitude = mlp_reference(proto, SPELLINGS[name], inputs["x"])
    (y,) = OpenVino(threads=1, precision=precision).open(save(tmp_path, proto)).run(inputs).values()
    unit = UNIT if precision == "f32" else UNIT_BF16
    assert (np.abs(y - expected) <= 64 * unit * magnitude).all()
    if precision == "bf16" and "BF16" in description()["capabilities"]:
        assert (np.abs(y - expected) > 8 * UNIT * magnitude).any()  # it is bfloat16 that was used


@pytest.mark.parametrize("external", [False, True])
def test_further_outputs_come_after_the_graph_s_own_and_nothing_is_written(tmp_path: Path, *, external: bool) -> None:
    path = save(tmp_path / "m", external=external)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path, *tmp_path.rglob("*"))}
    session = F32.open(path, ["b", "a", "b", "x", "w", "y"])
    assert session.outputs == ("y", "b", "a", "x", "w")
    outputs = session.run(rows())
    assert list(outputs) == ["y", "b", "a", "x", "w"]
    assert np.allclose(outputs["a"], rows()["x"] @ WEIGHT, rtol=1e-5, atol=1e-5)
    assert np.array_equal(outputs["b"], np.maximum(outputs["a"], 0))
    assert np.array_equal(outputs["x"], rows()["x"])
    assert np.array_equal(outputs["w"], WEIGHT)
    assert list(session.run(rows(), ["a", "y"])) == ["a", "y"]
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path, *tmp_path.rglob("*"))}


def test_names_and_types_are_those_of_the_onnx_graph(tmp_path: Path) -> None:
    """An unused input, outputs that rename each other, an initializer as output, 64-bit integers, unnamed dimensions."""
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Relu", ["x"], ["z"]),
        helper.make_node("Identity", ["z"], ["z2"]),
        helper.make_node("Add", ["ids", "ids"], ["twice"]),
        helper.make_node("Greater", ["twice", "ids"], ["more"]),
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.DOUBLE),
    ]
    ids = [None, 4, None]
    kinds = {"twice": TensorProto.INT64, "more": TensorProto.BOOL, "wide": TensorProto.DOUBLE}
    proto = network(
        *nodes,
        inputs=[info("unused", shape=["k"]), info("ids", TensorProto.INT64, ids), info("x")],
        outputs=[
            *(info(name) for name in ("z2", "y", "z")),
            info("w", shape=[WIDTH, WIDTH]),
            *(info(name, kind, ids) for name, kind in kinds.items()),
        ],
    )
    session = F32.open(save(tmp_path, proto))
    assert session.inputs == (
        InputSpec("unused", "float32", ("k",)),
        InputSpec("ids", "int64", ("ids.0", 4, "ids.2")),
        InputSpec("x", "float32", ("n", WIDTH)),
    )
    fed = {"unused": np.zeros(2, np.float32), "ids": np.arange(8).reshape(2, 4, 1), **rows()}
    outputs = session.run(fed)
    assert session.outputs == ("z2", "y", "z", "w", *kinds)
    assert [array.dtype.name for array in outputs.values()] == ["float32"] * 4 + ["int64", "bool", "float64"]
    assert np.array_equal(outputs["y"], fed["x"])
    assert np.array_equal(outputs["z"], outputs["z2"])
    assert np.array_equal(outputs["twice"], 2 * fed["ids"])
    assert np.array_equal(outputs["more"], fed["ids"] > 0)


def test_runs_do_not_disturb_each_other(tmp_path: Path) -> None:
    session = F32.open(save(tmp_path))
    first = session.run(rows(2))["y"]
    kept = first.copy()
    run = session.timer(rows(5))
    assert run() > 0
    assert session.run(rows(4))["y"].shape == (4, WIDTH)
    assert run() > 0
    assert np.array_equal(first, kept)
    frozen = rows(2)
    frozen["x"].flags.writeable = False
    assert np.array_equal(session.run(frozen)["y"], kept)
    strided = {"x": np.asfortranarray(rows(2)["x"])}
    assert np.array_equal(session.run(strided)["y"], kept)


# --- errors ---


@pytest.mark.parametrize("content", [b"", b"hello world, no model", b"\x00" * 1000])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ActxError, match="is not an ONNX model"):
        F32.open(tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ActxError, match="does not exist"):
        F32.open(tmp_path / "absent.onnx")
    with pytest.raises(ActxError, match="is no file"):
        F32.open(tmp_path)


def test_missing_and_short_external_data(tmp_path: Path) -> None:
    path = save(tmp_path, external=True)
    data = tmp_path / "weights.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ActxError, match=r"external data .* missing or incomplete"):
        F32.open(path)
    data.unlink()
    with pytest.raises(ActxError, match=r"external data .* missing or incomplete"):
        F32.open(path)


@pytest.mark.parametrize(("op", "domain", "named"), [("Foo", "", "'Foo'"), ("Spline", "actx", "'actx:Spline'")])
def test_op_that_openvino_lacks_is_named_with_its_node(tmp_path: Path, op: str, domain: str, named: str) -> None:
    with pytest.raises(ActxError, match=f"uses the op {named}") as caught:
        F32.open(save(tmp_path, model(op, domain)))
    assert caught.value.note == "node activation"


def test_unknown_values_are_refused(tmp_path: Path) -> None:
    invalid = model()
    invalid.graph.node[1].input[0] = "unconnected"
    with pytest.raises(ActxError, match="cannot open") as caught:
        F32.open(save(tmp_path / "i", invalid))
    assert "unconnected" in caught.value.note
    assert "src/" not in str(caught.value)
    with pytest.raises(ActxError, match="no value named 'nowhere'"):
        F32.open(save(tmp_path / "m"), outputs=["a", "nowhere"])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({}, "input 'x' is missing"),
        ({"z": rows()["x"]}, "input 'x' is missing"),
        ({**rows(), "z": rows()["x"]}, "'z' is no input"),
        ({"x": rows()["x"][:, :3]}, "input 'x' does not fit"),
        ({"x": rows()["x"][None]}, "input 'x' does not fit"),
        (rows(dtype="float64"), "input 'x' does not fit"),
    ],
)
def test_wrong_feeds_are_explained(tmp_path: Path, wrong: dict[str, Any], reason: str) -> None:
    session = F32.open(save(tmp_path))
    with pytest.raises(ActxError, match="failed to run") as caught:
        session.run(wrong)
    assert caught.value.note.startswith(reason)
    assert f"x:float32[n,{WIDTH}]" in caught.value.note
    with pytest.raises(ActxError, match="failed to run"):
        session.timer(wrong)
    with pytest.raises(ActxError, match="'nowhere' is no output"):
        session.run(rows(), ["nowhere"])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_node_that_fails_is_explained(tmp_path: Path, threads: int) -> None:
    """OpenVINO takes the slopes of the last axis for those of the second."""
    prelu = helper.make_node("PRelu", ["x", "slope"], ["y"])
    shape = ["batch", "tokens", 4]
    proto = network(prelu, inputs=[info("x", shape=shape)], outputs=[info("y", shape=shape)])
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "slope"))
    session = OpenVino(threads=threads).open(save(tmp_path, proto))
    wrong = {"x": np.zeros((2, 5, 4), np.float32)}
    for run in (session.run, session.timer):
        with pytest.raises(ActxError, match="failed to run") as caught:
            run(wrong)
        assert "PRelu" in caught.value.note


def test_an_output_that_numpy_has_no_type_for_is_refused(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)
    proto = network(cast, inputs=[info("x")], outputs=[info("y", TensorProto.BFLOAT16)])
    with pytest.raises(ActxError, match="'y' is no numeric tensor"):
        F32.open(save(tmp_path, proto)).run(rows())


def test_options_are_checked() -> None:
    wrong: dict[str, Any]
    for wrong in ({"threads": -1}, {"precision": "f8"}):
        with pytest.raises(UsageError):
            OpenVino(**wrong)


def test_a_missing_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(TargetUnavailable, match=r"pip install 'actx\[openvino\]'"):
        F32.open(save(tmp_path))
    with pytest.raises(TargetUnavailable):
        description()


# --- measuring ---


def test_node_times_belong_to_the_sites(tmp_path: Path) -> None:
    """Static shapes: OpenVINO fuses the ops of each site with what is around them, and none into a matrix product."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Abs", ["a"], ["b"], name="first"),
        helper.make_node("Mul", ["b", "a"], ["c"]),
        helper.make_node("Sub", ["c", "b"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["e"]),
        helper.make_node("Softmax", ["e"], ["f"], name="norm"),
        helper.make_node("Mul", ["f", "f"], ["g"]),
        helper.make_node("Add", ["g", "f"], ["y"], name="second"),
    ]
    shape = [2048, WIDTH]
    proto = network(*nodes, inputs=[info("x", shape=shape)], outputs=[info("y", shape=shape)])
    owners = {**dict.fromkeys("bcd", "one"), **dict.fromkeys("gy", "two"), "gone": "three"}
    times = F32.node_times(save(tmp_path, proto), rows(2048), owners)
    assert times.shapes == {"x": (2048, WIDTH)}
    assert sum(node.share for node in times.nodes if node.share is not None) == pytest.approx(1)
    assert times.sites["one"] is not None
    assert times.sites["one"] > 0
    assert times.sites["two"] is not None
    assert times.sites["three"] is None
    kinds = {node.name: (node.op_type, node.site) for node in times.nodes}
    assert kinds["norm"] == ("Softmax", None)
    assert all(site is None for kind, site in kinds.values() if kind == "FullyConnected")
    assert "Subgraph" in {kind for kind, site in kinds.values() if site == "one"}


def test_an_activation_within_a_matrix_product_is_not_measured(tmp_path: Path) -> None:
    times = F32.node_times(save(tmp_path, model("Gelu")), rows(64), {"b": "gelu"})
    fused = [node.op_type for node in times.nodes if node.site == "gelu"]
    assert times.sites["gelu"] is None if not fused else fused == ["Eltwise"]


def test_memory_is_that_of_a_fresh_process(tmp_path: Path) -> None:
    path = save(tmp_path)
    assert pickle.loads(pickle.dumps(F32)) == F32
    peak = F32.peak_memory(path, rows())
    assert peak is None or 0 < peak < 2**30
    assert DEFAULT.peak_memory(path, rows()) != 0
    with pytest.raises(ActxError, match="cannot be measured"):
        F32.peak_memory(tmp_path / "absent.onnx", rows())


def test_description_is_json_and_says_what_ran() -> None:
    described = json.loads(json.dumps(F32.describe(), allow_nan=False))
    for key in ("openvino", "device_name", "capabilities", "cpu", "cores", "governors", "options"):
        assert key in described
    assert (described["threads_used"], described["precision_used"]) == (1, "f32")
    default = OpenVino(precision="default")
    assert default.describe()["precision_used"] == description()["default_precision"]


def test_it_is_a_runtime() -> None:
    contract: Runtime = F32
    assert (contract.name, contract.taps, contract.in_turns()) == ("OpenVINO CPU", True, F32)
