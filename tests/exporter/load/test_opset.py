"""A graph that was converted to another opset computes the same and has the same sites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnxruntime import InferenceSession, SessionOptions

from actx.exporter import Form, export, session
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.lift import lift
from actx.exporter.load import LoadedModel, load
from actx.models.demo import CALIBRATION, demo_path
from tests.networks import OPSETS, SPELLINGS, Graph, feeds

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MAX_ABS = 1e-5


def run(model: ir.Model | Path, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = SessionOptions()
    options.log_severity_level = 3
    content = str(model) if not isinstance(model, ir.Model) else ir.to_proto(model).SerializeToString()
    outputs: list[NDArray[Any]] = InferenceSession(content, options).run(None, feeds)
    return outputs


def check(original: LoadedModel, converted: LoadedModel, feeds: dict[str, NDArray[Any]], opset: int) -> None:
    """Structure, numbers and validity."""
    assert converted.opset == opset
    assert converted.inputs == original.inputs
    assert [s.kind for s in lift(converted.model).sites] == [s.kind for s in lift(original.model).sites]
    for a, b in zip(run(original.model, feeds), run(converted.model, feeds), strict=True):
        assert np.abs(a - b).max() <= MAX_ABS
    onnx.checker.check_model(ir.to_proto(converted.model))


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize(("before", "after"), [(13, 25), (22, 13)])
def test_every_spelling(name: str, before: int, after: int, tmp_path: Path) -> None:
    spelling, file = SPELLINGS[name], tmp_path / "model.onnx"
    proto = spelling.model(before, "float32")
    onnx.save(proto, file)
    original, converted = load(file), load(file, opset=after)
    if spelling.since <= after <= spelling.until:
        check(original, converted, feeds(proto), after)
    else:  # ONNX Runtime does not run the op at both opsets
        assert [s.kind for s in lift(converted.model).sites] == [s.kind for s in lift(original.model).sites]


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_of_the_demonstration_network(opset: int, demo_onnx: Path, tmp_path: Path) -> None:
    """The bundle of every opset has the sites and outputs of the model's own."""
    with np.load(demo_path(CALIBRATION)) as arrays:
        images = {"image": arrays["image"][:8]}
    done = export(
        demo_onnx,
        tmp_path / "out",
        form=Form.parse("keep"),
        opset=opset,
        measure_drift=False,
        measure_latency=False,
    )
    assert done.manifest.source.opset == opset
    original = load(demo_onnx)
    assert [(s.name, s.kind) for s in done.manifest.sites] == [(s.name, s.kind) for s in lift(original.model).sites]
    (expected,) = run(original.model, images)
    (found,) = session(tmp_path / "out").run(images).values()
    assert np.abs(found - expected).max() <= MAX_ABS
    again = load(tmp_path / "out" / "model.onnx")  # and as a source
    assert again.opset == opset
    used = {value.name for node in again.model.graph for value in node.inputs if value is not None}
    assert set(again.model.graph.initializers) <= used
    assert [s.kind for s in lift(again.model).sites] == ["gelu"] * 3


@pytest.mark.parametrize("opset", [12, 26, 0, -1])
def test_opsets_out_of_range(opset: int, tmp_path: Path) -> None:
    onnx.save(SPELLINGS["relu"].model(18), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="cannot be written") as caught:
        load(tmp_path / "model.onnx", opset=opset)
    assert "13 to 25" in caught.value.note


def branching(op_type: str, opset: int) -> onnx.ModelProto:
    """x [n, 4] -> If(c): op(x) or -x."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, ["x"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name, op in (("then", op_type), ("else", "Neg"))
    }
    graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], **branches)], "g", [x, c], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_bodies_whose_ops_are_written_alike_are_converted(tmp_path: Path) -> None:
    onnx.save(branching("Relu", 20), tmp_path / "model.onnx")
    original, converted = load(tmp_path / "model.onnx"), load(tmp_path / "model.onnx", opset=13)
    for choice in (True, False):
        x = np.random.default_rng(0).uniform(-1, 1, (3, 4)).astype(np.float32)
        check(original, converted, {"x": x, "c": np.array(choice)}, 13)


def test_an_op_in_a_body_that_is_written_otherwise_is_named(tmp_path: Path) -> None:
    onnx.save(branching("Gelu", 20), tmp_path / "model.onnx")
    with pytest.raises(ActxError, match="cannot be converted from opset 20 to 18") as caught:
        load(tmp_path / "model.onnx", opset=18)
    assert "Gelu" in caught.value.note
    assert "--opset" in caught.value.remedy


def test_a_type_that_the_opset_does_not_have_is_named(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.INT32, ["n", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), tmp_path / "m")
    with pytest.raises(ActxError, match="cannot be converted") as caught:
        load(tmp_path / "m", opset=13)
    assert "Relu" in caught.value.note


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("before", [17, 20])
def test_layer_norms_are_written_as_exporters_do(dtype: str, before: int, tmp_path: Path) -> None:
    """With a mean far from zero: a variance as a difference of means of squares would lose all digits in float32."""
    graph = Graph(before, dtype)
    x = graph.input("x", ["batch", "tokens", 8])
    rng = np.random.default_rng(0)
    scale, bias = (graph.weight(name, rng.standard_normal(8)) for name in ("scale", "bias"))
    norm = graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-6)
    graph.output(graph.linear(norm, "down", rng.standard_normal((8, 3))), "y", 3)
    onnx.save(graph.model(), tmp_path / "model.onnx")
    original, converted = load(tmp_path / "model.onnx"), load(tmp_path / "model.onnx", opset=13)
    assert lift(converted.model).sites == ()
    feed = {"x": (rng.standard_normal((2, 5, 8)) + 30).astype(dtype)}
    (expected,), (found,) = run(original.model, feed), run(converted.model, feed)
    assert np.abs(found - expected).max() <= (1e-3 if dtype == "float32" else 0.1)
    onnx.checker.check_model(ir.to_proto(converted.model), full_check=True)
