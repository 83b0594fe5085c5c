"""Graphs on disk: one weights file, every tensor once, the same bytes every time."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from actx.exporter import Form
from actx.exporter.choose import choose
from actx.exporter.errors import ActxError
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.load.prepare import prepare
from actx.exporter.lower import lower
from actx.exporter.save import INLINE_BYTES, WEIGHTS, save, stored_in
from actx.exporter.targets import find_target
from tests.networks import SPELLINGS, Graph, feeds

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

WIDE = 400


def wide_network(scale: float = 1.0) -> onnx.ModelProto:
    """Two linear layers whose weights are large enough for the weights file, and a gelu."""
    graph = Graph()
    rng = np.random.default_rng(0)
    x = graph.input("x", ["batch", "tokens", 8])
    up = graph.linear(x, "up", scale * rng.standard_normal((8, WIDE)), rng.standard_normal(WIDE))
    activated = SPELLINGS["gelu_legacy"].write(graph, up)
    graph.output(graph.linear(activated, "down", rng.standard_normal((WIDE, 3))), "y", 3)
    return graph.model()


def prepared(model: onnx.ModelProto) -> ir.Model:
    graph = ir.from_proto(model)
    prepare(graph)
    return graph


def run(path: Path, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    onnx.checker.check_model(str(path), full_check=True)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def external(path: Path) -> dict[str, dict[str, str]]:
    """Location, offset and length of every tensor that is not in the graph itself."""
    model = onnx.load(path, load_external_data=False)
    return {
        t.name: {entry.key: entry.value for entry in t.external_data}
        for t in model.graph.initializer
        if t.data_location == onnx.TensorProto.EXTERNAL
    }


def test_a_graph_comes_back_as_it_was(tmp_path: Path) -> None:
    model = wide_network()
    save({"model.onnx": prepared(model)}, tmp_path)
    original = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(run(tmp_path / "model.onnx", feeds(model)), original.run(None, feeds(model))[0])


def test_small_tensors_stay_in_the_graph(tmp_path: Path) -> None:
    model = wide_network()
    save({"model.onnx": prepared(model)}, tmp_path)
    sizes = {t.name: len(numpy_helper.to_array(t).tobytes()) for t in model.graph.initializer}
    assert set(external(tmp_path / "model.onnx")) == {name for name, size in sizes.items() if size > INLINE_BYTES}
    assert {"up.weight", "up.bias", "down.weight"} == set(external(tmp_path / "model.onnx"))


@pytest.mark.parametrize("form", ["pwl:8", "hardswish"])
def test_two_graphs_share_every_tensor(tmp_path: Path, form: str) -> None:
    model = prepared(wide_network())
    sites = lift(model).sites
    lowered = lower(model, choose(sites, find_target("ort-cpu"), form=Form.parse(form)))
    assert lowered.native is not None
    save({"model.onnx": lowered.portable, "native.onnx": lowered.native}, tmp_path)
    portable, native = external(tmp_path / "model.onnx"), external(tmp_path / "native.onnx")
    assert portable == native
    assert {entry["location"] for entry in portable.values()} == {WEIGHTS}
    lengths = [int(entry["length"]) for entry in portable.values()]
    spans = sorted((int(e["offset"]), int(e["length"])) for e in portable.values())
    assert all(a + n <= b for (a, n), (b, _) in pairwise(spans))
    assert (tmp_path / WEIGHTS).stat().st_size <= sum(lengths) + 4096 * len(lengths)  # each tensor once, and padding
    assert (tmp_path / "native.onnx").stat().st_size < 4096


def test_bytes_are_the_same_twice(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        model = prepared(wide_network())
        lowered = lower(model, choose(lift(model).sites, find_target("ort-cpu"), form=Form.parse("pwl:16")))
        assert lowered.native is not None
        (tmp_path / folder).mkdir()
        save({"model.onnx": lowered.portable, "native.onnx": lowered.native}, tmp_path / folder)
    names = [file.name for file in (tmp_path / "first").iterdir()]
    assert len(names) == 3
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_a_matrix_that_lies_the_other_way_round_is_written_as_it_is_read(tmp_path: Path) -> None:
    model, turned = prepared(wide_network()), prepared(wide_network())
    for value in turned.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.Tensor(value.const_value.numpy().T.copy().T, name=value.name)
    for folder, graph in (("straight", model), ("turned", turned)):
        (tmp_path / folder).mkdir()
        save({"model.onnx": graph}, tmp_path / folder)
    for name in ("model.onnx", WEIGHTS):
        assert (tmp_path / "turned" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_later_graph_refers_to_what_is_stored(tmp_path: Path) -> None:
    model = prepared(wide_network())
    save({"model.onnx": model}, tmp_path)
    later = model.clone()
    weight = later.graph.initializers["down.weight"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(2 * weight.const_value.numpy(), name="down.weight")
    save({"later.onnx": later}, tmp_path, "later.data", stored_in(tmp_path / "model.onnx", model))
    assert (tmp_path / "later.data").stat().st_size == weight.const_value.nbytes
    places = {name: entry["location"] for name, entry in external(tmp_path / "later.onnx").items()}
    assert places == {"up.weight": WEIGHTS, "up.bias": WEIGHTS, "down.weight": "later.data"}
    expected = tmp_path / "whole"
    expected.mkdir()
    save({"later.onnx": later}, expected)
    inputs = feeds(wide_network())
    np.testing.assert_array_equal(run(tmp_path / "later.onnx", inputs), run(expected / "later.onnx", inputs))


def test_weights_that_are_already_external(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    model = wide_network()
    source = tmp_path / "source" / "model.onnx"
    onnx.save(wide_network(), source, save_as_external_data=True, location="all.bin", size_threshold=0)
    loaded = ir.load(source)
    prepare(loaded)
    (tmp_path / "out").mkdir()
    save({"model.onnx": loaded}, tmp_path / "out")
    assert set(external(tmp_path / "out" / "model.onnx")) == {"up.weight", "up.bias", "down.weight"}
    for file in (tmp_path / "source").iterdir():  # nothing may refer to it any more
        file.unlink()
    original = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result = run(tmp_path / "out" / "model.onnx", feeds(model))
    np.testing.assert_array_equal(result, original.run(None, feeds(model))[0])


def with_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Move every initializer into a Constant node, as some exporters write weights."""
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    del model.graph.initializer[:]
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("outside", [False, True])
def test_weights_in_constant_nodes_are_stored_as_any_other(tmp_path: Path, *, outside: bool) -> None:
    model = wide_network()
    source = tmp_path / "source.onnx"
    onnx.save(
        with_constants(wide_network()), source, save_as_external_data=outside, location="all.bin", size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    loaded = load(source).model
    lowered = lower(loaded, choose(lift(loaded).sites, find_target("ort-cpu"), form=Form.parse("pwl:8")))
    assert lowered.native is not None
    (tmp_path / "out").mkdir()
    save({"original.onnx": loaded, "model.onnx": lowered.portable, "native.onnx": lowered.native}, tmp_path / "out")
    stored = external(tmp_path / "out" / "model.onnx")
    assert set(stored) == {"up.weight", "up.bias", "down.weight"}
    assert stored == external(tmp_path / "out" / "native.onnx") == external(tmp_path / "out" / "original.onnx")
    assert (tmp_path / "out" / WEIGHTS).stat().st_size == sum(int(entry["length"]) for entry in stored.values())
    for file in tmp_path.glob("*.*"):  # nothing may refer to the source any more
        file.unlink()
    original = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result = run(tmp_path / "out" / "original.onnx", feeds(model))
    np.testing.assert_array_equal(result, original.run(None, feeds(model))[0])


def test_strings_stay_in_the_graph_however_many(tmp_path: Path) -> None:
    words = helper.make_tensor("words", onnx.TensorProto.STRING, [WIDE], [f"word {i}".encode() for i in range(WIDE)])
    index, word = (
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in (("index", onnx.TensorProto.INT64), ("word", onnx.TensorProto.STRING))
    )
    node = helper.make_node("Gather", ["words", "index"], ["word"])
    graph = helper.make_graph([node], "g", [index], [word], [words])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    save({"model.onnx": prepared(model)}, tmp_path)
    assert external(tmp_path / "model.onnx") == {}
    assert run(tmp_path / "model.onnx", {"index": np.array(321)}) == "word 321"


def test_models_keep_their_own_tensors(tmp_path: Path) -> None:
    model = prepared(wide_network())
    before = [value.const_value for value in model.graph.initializers.values()]
    save({"model.onnx": model}, tmp_path)
    assert all(a is v.const_value for a, v in zip(before, model.graph.initializers.values(), strict=True))


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    model = prepared(wide_network())
    twin = model.graph.initializers["down.weight"]
    tied = ir.Value(name="tied", const_value=twin.const_value, type=twin.type, shape=twin.shape)
    model.graph.register_initializer(tied)
    model.graph.append(ir.node("Identity", [tied], outputs=[ir.Value(name="copy")]))
    save({"model.onnx": model}, tmp_path)
    stored = external(tmp_path / "model.onnx")
    assert stored["tied"] == stored["down.weight"]


def _branch(name: str, value: float) -> onnx.GraphProto:
    weight = numpy_helper.from_array(np.full(WIDE, value, np.float32), "weight")
    result = helper.make_tensor_value_info(f"{name}_result", onnx.TensorProto.FLOAT, [WIDE])
    node = helper.make_node("Identity", ["weight"], [f"{name}_result"])
    return helper.make_graph([node], name, [], [result], [weight])


def test_branches_may_have_weights_of_one_name(tmp_path: Path) -> None:
    node = helper.make_node("If", ["which"], ["y"], then_branch=_branch("a", 1), else_branch=_branch("b", 2))
    which = helper.make_tensor_value_info("which", onnx.TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [WIDE])
    imports = [helper.make_opsetid("", 18)]
    model = helper.make_model(helper.make_graph([node], "g", [which], [y]), opset_imports=imports, ir_version=9)
    save({"model.onnx": ir.from_proto(model)}, tmp_path)
    for which_one, value in ((True, 1.0), (False, 2.0)):
        assert (run(tmp_path / "model.onnx", {"which": np.array(which_one)}) == value).all()


def test_no_large_tensor_still_leaves_a_weights_file(tmp_path: Path) -> None:
    save({"model.onnx": prepared(SPELLINGS["relu"].model())}, tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_size == 0


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(ActxError, match="cannot write to"):
        save({"model.onnx": prepared(wide_network())}, tmp_path / "missing")
