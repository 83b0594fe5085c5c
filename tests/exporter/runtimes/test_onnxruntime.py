"""Behaviour of `exporter.runtimes.onnxruntime` on real sessions: what opens, what is refused and in which words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.runtimes.onnxruntime import RuntimeOptions

if TYPE_CHECKING:
    from pathlib import Path

WEIGHT = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)


def model(op: str = "Relu", domain: str = "", element: int = TensorProto.FLOAT, opset: int = 20) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node(op, ["a"], ["b"], domain=domain),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    weight = numpy_helper.from_array(WEIGHT.astype(helper.tensor_dtype_to_np_dtype(element)), "w")
    values = [helper.make_tensor_value_info(name, element, ["n", 16]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("actx", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def save(folder: Path, proto: onnx.ModelProto | None = None, *, external: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    proto = model() if proto is None else proto
    onnx.save(proto, path, save_as_external_data=external, location="weights.data", size_threshold=0)
    return path


def feeds(rows: int = 2, dtype: str = "float32") -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((rows, 16)).astype(dtype)}


def snapshot(folder: Path) -> dict[str, int]:
    """Times of modification; a folder's changes with every file made or removed in it, which holds for root as well."""
    return {str(path): path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


@pytest.mark.parametrize("external", [False, True])
def test_further_outputs_come_after_the_graph_s_own_and_nothing_is_written(tmp_path: Path, *, external: bool) -> None:
    path = save(tmp_path / "m", external=external)
    before = snapshot(tmp_path)
    outputs = RuntimeOptions().open(path, ["b", "a", "b"]).run(feeds())
    assert list(outputs) == ["y", "b", "a"]
    expected = feeds()["x"] @ WEIGHT
    assert np.allclose(outputs["a"], expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(outputs["b"], np.maximum(outputs["a"], 0))
    assert snapshot(tmp_path) == before


def test_inputs_and_initializers_can_be_further_outputs(tmp_path: Path) -> None:
    outputs = RuntimeOptions().open(save(tmp_path), ["x", "w"]).run(feeds())
    assert np.array_equal(outputs["x"], feeds()["x"])
    assert np.array_equal(outputs["w"], WEIGHT)


def test_model_opens_through_a_relative_path_and_a_link_to_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "real", external=True)
    (tmp_path / "linked").symlink_to(path.parent, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    for name in ("real/model.onnx", "linked/model.onnx"):
        relative = path.relative_to(path.parent.parent).with_name("model.onnx").parent.parent / name
        assert set(RuntimeOptions().open(relative, ["a"]).run(feeds())) == {"y", "a"}


def test_float16_and_several_shapes(tmp_path: Path) -> None:
    session = RuntimeOptions().open(save(tmp_path, model(element=TensorProto.FLOAT16)))
    for rows in (1, 3, 7):
        assert session.run(feeds(rows, "float16"))["y"].shape == (rows, 16)
        assert session.run(feeds(rows, "float16"))["y"].dtype == np.float16
    assert session.inputs == (InputSpec("x", "float16", ("n", 16)),)


def test_unnamed_dynamic_dimensions_get_names_of_their_own(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, [None, 4, None]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert RuntimeOptions().open(save(tmp_path, proto)).inputs == (InputSpec("x", "int64", ("x.0", 4, "x.2")),)


@pytest.mark.parametrize("content", [b"", b"hello world, no model", b"\x00" * 1000])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ActxError, match="is not an ONNX model"):
        RuntimeOptions().open(tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


def test_truncated_model_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path)
    path.write_bytes(path.read_bytes()[:700])
    for outputs in ((), ("a",)):
        with pytest.raises(ActxError):
            RuntimeOptions().open(path, outputs)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ActxError, match="does not exist"):
        RuntimeOptions().open(tmp_path / "absent.onnx")
    with pytest.raises(ActxError, match="is no file"):
        RuntimeOptions().open(tmp_path)


@pytest.mark.parametrize("outputs", [(), ("a",)])
def test_missing_and_short_external_data(tmp_path: Path, outputs: tuple[str, ...]) -> None:
    path = save(tmp_path, external=True)
    data = tmp_path / "weights.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ActxError, match=r"external data .* missing or incomplete"):
        RuntimeOptions().open(path, outputs)
    data.unlink()
    with pytest.raises(ActxError, match=r"external data .* missing or incomplete"):
        RuntimeOptions().open(path, outputs)


@pytest.mark.parametrize(
    ("proto", "op"),
    [(model("Foo"), "'Foo'"), (model("Foo", "actx"), "'actx:Foo'"), (model(element=TensorProto.BFLOAT16), "'MatMul'")],
)
def test_op_that_the_runtime_lacks_is_named(tmp_path: Path, proto: onnx.ModelProto, op: str) -> None:
    with pytest.raises(ActxError, match=f"uses the op {op}"):
        RuntimeOptions().open(save(tmp_path, proto))


def test_newer_opset_and_unknown_value(tmp_path: Path) -> None:
    with pytest.raises(ActxError, match="newer runtime") as caught:
        RuntimeOptions().open(save(tmp_path / "m", model(opset=999)))
    assert "/onnxruntime_src" not in str(caught.value)
    invalid = model()
    invalid.graph.node[1].input[0] = "unconnected"
    with pytest.raises(ActxError, match="cannot open") as caught:
        RuntimeOptions().open(save(tmp_path / "i", invalid))
    assert caught.value.note.startswith("Invalid model. Node input 'unconnected'")
    with pytest.raises(ActxError, match="no value named 'nowhere'"):
        RuntimeOptions().open(save(tmp_path / "m"), ["a", "nowhere"])


@pytest.mark.parametrize(
    "wrong",
    [{}, {"z": feeds()["x"]}, {"x": feeds()["x"][:, :3]}, feeds(dtype="float64"), {**feeds(), "z": feeds()["x"]}],
)
def test_wrong_feeds_are_explained(tmp_path: Path, wrong: dict[str, Any]) -> None:
    session = RuntimeOptions().open(save(tmp_path))
    with pytest.raises(ActxError, match="failed to run") as caught:
        session.run(wrong)
    assert "x:tensor(float)" in caught.value.note
    with pytest.raises(ActxError, match="failed to run"):
        session.run(feeds(), ["nowhere"])


def test_failing_node_and_text_outputs_are_explained(tmp_path: Path) -> None:
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])
    gather = helper.make_node("Gather", ["w", "ids"], ["y"])
    graph = helper.make_graph([gather], "g", [ids], [y], [numpy_helper.from_array(WEIGHT, "w")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ActxError, match="failed to run"):
        RuntimeOptions().open(save(tmp_path / "g", proto)).run({"ids": np.array([16])})
    text = helper.make_tensor_value_info("y", TensorProto.STRING, ["n"])
    cast = helper.make_node("Cast", ["ids"], ["y"], to=TensorProto.STRING)
    proto = helper.make_model(
        helper.make_graph([cast], "g", [ids], [text]), opset_imports=proto.opset_import, ir_version=10
    )
    with pytest.raises(ActxError, match="no numeric tensor"):
        RuntimeOptions().open(save(tmp_path / "t", proto)).run({"ids": np.array([16])})


def test_options_are_checked_and_libraries_that_do_not_load_are_named(tmp_path: Path) -> None:
    for wrong in ({"threads": -1}, {"optimization": "most"}):
        with pytest.raises(UsageError):
            RuntimeOptions(**wrong)
    path = save(tmp_path)
    with pytest.raises(ActxError, match=r"absent.so"):
        RuntimeOptions(libraries=(tmp_path / "absent.so",)).open(path)


@pytest.mark.parametrize("optimization", ["none", "basic", "extended", "all"])
def test_optimizations_keep_the_result(tmp_path: Path, optimization: str) -> None:
    options = RuntimeOptions(threads=1, optimization=optimization, disabled_optimizers=("MatMulAddFusion",))
    outputs = options.open(save(tmp_path)).run(feeds())
    assert np.allclose(outputs["y"], np.maximum(feeds()["x"] @ WEIGHT, 0) @ WEIGHT, rtol=1e-5, atol=1e-4)


def test_description_is_json_and_says_what_ran() -> None:
    text = json.dumps(RuntimeOptions(threads=1).describe(), allow_nan=False)
    for key in ("onnxruntime", "cpu", "cores", "threads_used", "options"):
        assert key in json.loads(text)
    assert json.loads(text)["threads_used"] == 1
