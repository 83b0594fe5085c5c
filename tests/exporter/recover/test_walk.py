"""Parts of a model give what the whole gives, and what was computed is not computed again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from actx.exporter.data import Batch, Data
from actx.exporter.errors import ActxError
from actx.exporter.load.prepare import prepare
from actx.exporter.recover.walk import Walk
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.save import save
from tests.networks import WIDTH, Graph, feeds, many_sites

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = 6
OPTIONS = RuntimeOptions(threads=1)


def model_of(proto: Any) -> ir.Model:
    model = ir.from_proto(proto)
    prepare(model)
    return model


@pytest.fixture
def model() -> ir.Model:
    return model_of(many_sites(LAYERS))


def data(proto: Any, *seeds: int) -> Data:
    batches = [Batch(feeds(proto, 2, 3 + seed, seed), {}, 2) for seed in seeds]
    return Data("test", 2 * len(batches), False, (), lambda: iter(batches))


def inside(model: ir.Model) -> list[str]:
    """What the layers give."""
    return [str(node.outputs[0].name) for node in model.graph if node.op_type == "MatMul"]


def whole(model: ir.Model, parts: list[Data], names: list[str], folder: Path) -> list[tuple[int, dict[str, Any]]]:
    save({"whole.onnx": model}, folder)
    session = OPTIONS.open(folder / "whole.onnx", names)
    return [(i, session.run(given, names)) for i, part in enumerate(parts) for given in part]


def test_values_are_those_of_the_whole(model: ir.Model, tmp_path: Path) -> None:
    parts = [data(many_sites(LAYERS), 1, 2), data(many_sites(LAYERS), 3)]
    walk = Walk(model, parts, OPTIONS, tmp_path / "walk")
    for name in inside(model):
        walk.advance([name])
        wanted = inside(model)[inside(model).index(name) :]
        expected = whole(model, parts, wanted, tmp_path)
        for (part, found), (index, values) in zip(walk.values(wanted), expected, strict=True):
            assert part == index
            assert list(found) == wanted
            assert all(np.allclose(found[value], values[value], rtol=1e-5, atol=1e-6) for value in wanted)


def test_what_is_before_the_frontier_is_not_run_again(model: ir.Model, tmp_path: Path) -> None:
    """A weight that is changed before it has no effect any more, and the data is not read."""
    names, opened = inside(model), 0

    def count() -> Any:
        nonlocal opened
        opened += 1
        return iter([Batch(feeds(many_sites(LAYERS)), {}, 2)])

    walk = Walk(model, [Data("test", 2, False, (), count)], OPTIONS, tmp_path / "walk")
    walk.advance([names[3]])
    ((_, before),) = walk.values(names[3:])
    first = next(node for node in model.graph if node.op_type == "MatMul")
    weight = first.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    weight.const_value = ir.Tensor(2 * weight.const_value.numpy())
    ((_, after),) = walk.values(names[3:])
    assert all(np.array_equal(before[name], after[name]) for name in names[3:])
    assert opened == 1
    assert len(list((tmp_path / "walk").iterdir())) == 1


def test_a_weight_that_is_changed_behind_the_frontier_has_its_effect(model: ir.Model, tmp_path: Path) -> None:
    names = inside(model)
    walk = Walk(model, [data(many_sites(LAYERS), 1)], OPTIONS, tmp_path / "walk")
    walk.advance([names[2]])
    ((_, before),) = walk.values([names[2]])
    node = [node for node in model.graph if node.op_type == "MatMul"][2]
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value is not None
    node.inputs[1].const_value = ir.Tensor(2 * node.inputs[1].const_value.numpy())
    ((_, after),) = walk.values([names[2]])
    np.testing.assert_allclose(after[names[2]], 2 * before[names[2]], rtol=1e-6)


def test_what_is_held_is_given_as_it_is(model: ir.Model, tmp_path: Path) -> None:
    node = [node for node in model.graph if node.op_type == "MatMul"][2]
    assert node.inputs[0] is not None
    walk = Walk(model, [data(many_sites(LAYERS), 1)], OPTIONS, tmp_path / "walk")
    walk.advance([str(node.outputs[0].name)])
    ((_, values),) = walk.values([str(node.inputs[0].name)])
    assert next(iter(values.values())).shape == (2, 4, WIDTH)


def test_a_frontier_of_unknown_type_stays_where_it_was(model: ir.Model, tmp_path: Path) -> None:
    name = inside(model)[3]
    expected = whole(model, [data(many_sites(LAYERS), 1)], [name], tmp_path)[0][1][name]
    for node in model.graph:
        node.outputs[0].type = None
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    walk = Walk(model, [data(many_sites(LAYERS), 1)], OPTIONS, tmp_path / "walk")
    walk.advance([name])
    assert list((tmp_path / "walk").iterdir()) == []
    for value in (v for node in model.graph for v in node.outputs):
        value.type = ir.TensorType(ir.DataType.FLOAT)
    ((_, found),) = walk.values([name])
    np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


def test_a_model_that_does_not_take_the_data(tmp_path: Path) -> None:
    g = Graph(20)
    x = g.input("x", ["batch", WIDTH])
    g.output(g.linear(x, "layer", np.ones((WIDTH, 2))), "y", 2)
    model = model_of(g.model())
    wrong = Data("test", 2, False, (), lambda: iter([Batch({"x": np.zeros((2, 3), np.float32)}, {}, 2)]))
    walk = Walk(model, [wrong], OPTIONS, tmp_path / "walk")
    with pytest.raises(ActxError, match="the model failed to run on the data"):
        list(walk.values(inside(model)))
