"""float16 in the graph: which nodes compute in it, what stays, and how far the numbers move.

Bounds follow from the format: a number that is stored in float16 moves by at most `UNIT` of itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from actx.exporter import Form
from actx.exporter.choose import choose
from actx.exporter.lift import lift
from actx.exporter.lower import SITE_METADATA, lower
from actx.exporter.quantize import quantize
from actx.exporter.targets import TARGETS
from tests.exporter.lower.running import in_reference, prepared
from tests.exporter.quantize.graphs import UNIT, lowered, outputs, relative_l2, store
from tests.networks import NOT_SITES, SPELLINGS, SURROUNDINGS, WIDTH, Gate, Graph, feeds, mlp_reference

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
# Between x and y eight values are stored in a row, and none of these functions is steeper than 1.2.
ROUNDINGS = 8
FUNCTIONS = ("gelu_op", "gelu_legacy", "silu", "mish_op", "hardswish_op", "prelu_per_channel", "elu_where")


def half(source: Any, folder: Path, form: str = "keep") -> ir.Model:
    return quantize(lowered(source, folder, form), "fp16")


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    (node,) = (node for node in model.graph if node.op_type == op_type)
    return node


def casts(model: ir.Model) -> list[str]:
    return [str(node.outputs[0].name) for node in model.graph if node.op_type == "Cast"]


def network(opset: int = 20) -> Graph:
    graph = Graph(opset)
    graph.input("x", ["batch", WIDTH])
    return graph


def finish(graph: Graph, value: str, rank: int = 2) -> ir.Model:
    graph.output(value, "y", rank)
    model: ir.Model = ir.from_proto(graph.model())
    return model


def ran(model: ir.Model, folder: Path, x: NDArray[Any]) -> NDArray[Any]:
    return outputs(model, folder, [{"x": x.astype(np.float32)}])[0]["y"]


@pytest.mark.parametrize("form", ["keep", "pwl:16", "spline:4x3"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers_stay_within_the_roundings_on_the_way(name: str, form: str, tmp_path: Path) -> None:
    proto = SPELLINGS[name].model(20)
    x = feeds(proto, batch=8, tokens=16)
    plain = lowered(proto, tmp_path, form)
    before = outputs(plain, tmp_path, [x])[0]["y"]
    after = outputs(quantize(plain, "fp16"), tmp_path, [x])[0]["y"]
    _, magnitudes = mlp_reference(proto, SPELLINGS[name], x["x"])
    assert (np.abs(after - before) <= ROUNDINGS * UNIT * magnitudes).all()


@pytest.mark.parametrize("gated", ["matmul", "split_gate_second", "interleaved"])
def test_a_gated_activation(gated: Gate, tmp_path: Path) -> None:
    proto = SPELLINGS["silu"].model(20, gated=gated)
    plain = lowered(proto, tmp_path)
    x = [feeds(proto, batch=8, tokens=16)]
    typed = quantize(plain, "fp16")
    assert relative_l2(outputs(typed, tmp_path, x), outputs(plain, tmp_path, x), "y") <= ROUNDINGS * UNIT
    products = [n for n in typed.graph if n.op_type == "Mul" and SITE_METADATA not in n.metadata_props]
    assert [node.outputs[0].dtype for node in products] == [FLOAT16]


@pytest.mark.parametrize("name", [*SURROUNDINGS, *NOT_SITES])
def test_norms_masks_rotary_positions_and_reductions(name: str, tmp_path: Path) -> None:
    proto = {**SURROUNDINGS, **NOT_SITES}[name].build(20)
    plain = lowered(proto, tmp_path)
    x = [feeds(proto)]
    after, before = outputs(quantize(plain, "fp16"), tmp_path, x), outputs(plain, tmp_path, x)
    for output in before[0]:
        assert relative_l2(after, before, output) <= ROUNDINGS * UNIT


def test_names_types_and_metadata_stay(tmp_path: Path) -> None:
    plain = lowered(SPELLINGS["gelu_legacy"].model(18), tmp_path, "pwl:16")
    typed = quantize(plain, "fp16")
    names = [{str(value.name) for node in model.graph for value in node.outputs} for model in (plain, typed)]
    assert names[0] <= names[1]
    assert [(v.name, v.dtype) for v in (*typed.graph.inputs, *typed.graph.outputs)] == [("x", FLOAT), ("y", FLOAT)]
    marks = [[n.metadata_props.get(SITE_METADATA) for n in m.graph if n.op_type != "Cast"] for m in (plain, typed)]
    assert marks[0] == marks[1]
    nodes = [node.name for node in typed.graph]
    assert len(set(nodes)) == len(nodes)


def test_the_given_model_is_not_changed(tmp_path: Path) -> None:
    plain = lowered(SPELLINGS["silu"].model(18), tmp_path)
    before = ir.to_proto(plain).SerializeToString(deterministic=True)
    quantize(plain, "fp16")
    assert ir.to_proto(plain).SerializeToString(deterministic=True) == before


def test_a_site_of_one_op_is_float16_and_one_of_several_is_float32_between_two_casts(tmp_path: Path) -> None:
    assert node_of(half(SPELLINGS["gelu_op"].model(20), tmp_path), "Gelu").outputs[0].dtype is FLOAT16
    typed = half(SPELLINGS["silu"].model(20), tmp_path)
    site = [node for node in typed.graph if SITE_METADATA in node.metadata_props]
    assert {node.outputs[0].dtype for node in site} == {FLOAT}
    inside = [name for name in casts(typed) if name.endswith(("/actx/float32", "/actx/float16")) and name[0] != "x"]
    assert len(inside) == 2
    assert casts(typed)[0] == "x/actx/float16"
    assert casts(typed)[-1] == "y"


def test_an_actx_node_computes_in_float16() -> None:
    """Its kernel computes in float32 within, whatever it reads."""
    proto = SPELLINGS["gelu_legacy"].model(18, gated="matmul")
    model = prepared(proto)
    sites = lift(model).sites
    choices = choose(sites, TARGETS["trt"], form=Form.parse("pwl:16"))
    mixed = lower(model, choices, native=None, plugins=[site.name for site in sites])
    assert mixed.native is not None
    typed = quantize(mixed.native, "fp16")
    node = node_of(typed, "Spline")
    assert [value and value.dtype for value in (*node.inputs, *node.outputs)] == [FLOAT16] * 3
    assert len(casts(typed)) == 2  # of the graph's input and output
    inputs = feeds(proto)
    (expected,), (found,) = (in_reference(graph, inputs) for graph in (mixed.native, typed))
    assert np.linalg.norm(found - expected) <= ROUNDINGS * UNIT * np.linalg.norm(expected)


def test_weights_become_float16_only_when_they_are_read(tmp_path: Path) -> None:
    typed = half(SPELLINGS["gelu_op"].model(20), tmp_path)
    weights = [v.const_value for name, v in typed.graph.initializers.items() if "weight" in name]
    assert all(isinstance(tensor, ir.LazyTensor) and tensor.dtype is FLOAT16 for tensor in weights)
    assert not any(tensor.cache for tensor in weights if isinstance(tensor, ir.LazyTensor))


def test_a_value_is_cast_once(tmp_path: Path) -> None:
    graph = network()
    value = graph.op("MatMul", "x", np.eye(WIDTH, dtype=np.float32))
    total = graph.op("Add", graph.op("Exp", value), graph.op("Sqrt", graph.op("Abs", value)))
    typed = quantize(finish(graph, total), "fp16")
    assert len(casts(typed)) == len(set(casts(typed))) == len({n.inputs[0] for n in typed.graph if n.op_type == "Cast"})


def test_a_norm_of_rows_that_are_equal_keeps_its_epsilon(tmp_path: Path) -> None:
    graph = network()
    centred = graph.op("Sub", "x", graph.reduce("ReduceMean", "x", [-1]))
    variance = graph.reduce("ReduceMean", graph.op("Mul", centred, centred), [-1])
    root = graph.op("Sqrt", graph.op("Add", variance, 1e-12))
    typed = quantize(finish(graph, graph.op("Div", centred, root)), "fp16")
    assert (ran(typed, tmp_path, np.ones((2, WIDTH))) == 0).all()
    narrow = {node.op_type for node in typed.graph if node.outputs[0].dtype is FLOAT16}
    assert narrow <= {"Identity", "Cast"}


def test_a_norm_by_its_largest_keeps_its_floor(tmp_path: Path) -> None:
    graph = network()
    length = graph.reduce("ReduceL2", "x", [-1])
    typed = quantize(finish(graph, graph.op("Div", "x", graph.op("Max", length, 1e-12))), "fp16")
    assert (ran(typed, tmp_path, np.zeros((2, WIDTH))) == 0).all()


@pytest.mark.parametrize("masked", ["one", "all"])
@pytest.mark.parametrize("how", ["product", "selection", "fill"])
def test_a_mask_of_the_least_float32_stays_finite(how: str, masked: str, tmp_path: Path) -> None:
    least = float(np.finfo(np.float32).min)
    graph = network()
    mask = graph.input("mask", ["batch", WIDTH], np.int64)
    scores = graph.op("MatMul", "x", np.eye(WIDTH, dtype=np.float32))
    if how == "fill":
        scores = graph.op("Where", graph.op("Cast", mask, to=TensorProto.BOOL), scores, least)
    elif how == "selection":
        scores = graph.op("Add", scores, graph.op("Where", graph.op("Cast", mask, to=TensorProto.BOOL), 0.0, least))
    else:
        kept = graph.op("Cast", mask, to=TensorProto.FLOAT)
        scores = graph.op("Add", scores, graph.op("Mul", graph.op("Sub", 1.0, kept), least))
    model = finish(graph, graph.op("Softmax", scores, axis=-1))
    given = np.ones((1, WIDTH), np.int64)
    given[0, 0 if masked == "one" else slice(None)] = 0
    x = [{"x": np.linspace(-40, 40, WIDTH, dtype=np.float32)[None], "mask": given}]
    after, before = outputs(quantize(model, "fp16"), tmp_path, x)[0]["y"], outputs(model, tmp_path, x)[0]["y"]
    assert np.isfinite(after).all()
    if masked == "one":
        assert after[0, 0] == 0
        assert np.abs(after - before).max() <= 40 * UNIT  # exp of a score that moves by UNIT of itself


def test_a_mask_over_a_sum_stays_finite(tmp_path: Path) -> None:
    graph = network()
    total = graph.reduce("ReduceSum", "x", [-1])
    typed = quantize(finish(graph, graph.op("Where", graph.op("Less", total, 0.0), -3e38, total)), "fp16")
    assert np.isfinite(ran(typed, tmp_path, -np.ones((1, WIDTH)))).all()


def test_a_source_with_pairs_is_typed_between_them(tmp_path: Path) -> None:
    proto = SPELLINGS["gelu_op"].model(20)
    batches = [feeds(proto)]
    pairs = quantize(lowered(proto, tmp_path), "int8", batches=batches)
    typed = quantize(pairs, "fp16")
    assert node_of(typed, "Gelu").outputs[0].dtype is FLOAT16
    # A number may be rounded across the border between two of the 127 steps, in four tensors.
    assert relative_l2(outputs(typed, tmp_path, batches), outputs(pairs, tmp_path, batches), "y") <= 4 / 127


def test_infinite_masks_stay_infinite(tmp_path: Path) -> None:
    graph = network()
    scores = graph.op("Where", graph.op("Greater", "x", 0.0), "x", -np.inf)
    typed = quantize(finish(graph, graph.op("Exp", scores)), "fp16")
    assert (ran(typed, tmp_path, -np.ones((1, WIDTH))) == 0).all()
    assert any(np.isneginf(v.const_value.numpy()).all() for v in typed.graph.initializers.values() if v.const_value)


def test_angles_of_large_positions_are_exact(tmp_path: Path) -> None:
    graph = Graph(20)
    position = graph.input("position", ["batch", 1], np.int64)
    angle = graph.op("Mul", graph.op("Cast", position, to=TensorProto.FLOAT), np.linspace(0.1, 1, 4, dtype=np.float32))
    graph.output(graph.op("MatMul", graph.op("Sin", angle), np.eye(4, dtype=np.float32)), "y", 2)
    model: ir.Model = ir.from_proto(graph.model())
    x = [{"position": np.array([[30001]])}]
    before = outputs(model, tmp_path, x)[0]["y"]
    assert np.abs(outputs(quantize(model, "fp16"), tmp_path, x)[0]["y"] - before).max() <= 2 * UNIT


def test_angles_of_a_float_input_are_exact(tmp_path: Path) -> None:
    graph = network()
    typed = quantize(finish(graph, graph.op("Sin", graph.op("Mul", "x", 0.5))), "fp16")
    x = np.full((1, WIDTH), 3000.3, np.float32)
    assert np.abs(ran(typed, tmp_path, x) - np.sin(x * np.float32(0.5))).max() <= UNIT


@pytest.mark.parametrize("factor", [1e-8, 1e8])
def test_factors_beyond_float16_are_applied_in_float32(factor: float, tmp_path: Path) -> None:
    graph = network()
    value = graph.op("Div", graph.op("Mul", "x", factor), factor)
    typed = quantize(finish(graph, value), "fp16")
    x = np.linspace(-1, 1, WIDTH)[None]
    assert np.abs(ran(typed, tmp_path, x) - x).max() <= 2 * UNIT


def test_a_weight_read_in_both_types_is_there_in_both(tmp_path: Path) -> None:
    graph = network()
    weight = graph.weight("table", np.eye(WIDTH))
    value = graph.op("Add", graph.op("MatMul", "x", weight), graph.op("Exp", weight))
    graph.op("Identity", weight)
    typed = quantize(finish(graph, value), "fp16")
    assert typed.graph.initializers["table"].dtype is FLOAT
    assert typed.graph.initializers["table/actx/float16"].dtype is FLOAT16
    store(typed, tmp_path)


def test_bodies_of_control_flow_read_float32(tmp_path: Path) -> None:
    graph = network()
    value = graph.op("MatMul", "x", np.eye(WIDTH, dtype=np.float32))
    body = helper.make_graph(
        [helper.make_node("Neg", [value], ["negated"])], "body", [], [helper.make_empty_tensor_value_info("negated")]
    )
    condition = graph.op("Greater", graph.reduce("ReduceSum", value, [0, 1]), 0.0)
    chosen = graph.op("If", graph.op("Squeeze", condition), then_branch=body, else_branch=body)
    typed = quantize(finish(graph, chosen), "fp16")
    x = np.linspace(-1, 1, WIDTH)[None]
    assert np.abs(ran(typed, tmp_path, x) + x).max() <= 4 * UNIT


def test_a_source_with_types_of_its_own_keeps_them(tmp_path: Path) -> None:
    plain = lowered(SPELLINGS["gelu_in_float32"].model(18, np.float16), tmp_path)
    typed = quantize(plain, "fp16")
    assert ir.to_proto(typed).graph == ir.to_proto(plain).graph


def test_float64_parts_stay(tmp_path: Path) -> None:
    graph = network()
    wide = graph.op("Mul", graph.op("Cast", "x", to=TensorProto.DOUBLE), np.array(3.0))
    typed = quantize(
        finish(
            graph, graph.op("MatMul", graph.op("Cast", wide, to=TensorProto.FLOAT), np.eye(WIDTH, dtype=np.float32))
        ),
        "fp16",
    )
    x = np.linspace(-1, 1, WIDTH)[None]
    assert np.abs(ran(typed, tmp_path, x) - 3 * x).max() <= 4 * UNIT * 3


def test_a_parameter_that_an_op_takes_in_float32_alone_stays(tmp_path: Path) -> None:
    graph = Graph(20)
    x = graph.input("x", ["batch", 1, 4, 4])
    graph.output(graph.op("Resize", x, "", np.array([1, 1, 2, 2], np.float32), mode="nearest"), "y", 4)
    typed = quantize(ir.from_proto(graph.model()), "fp16")
    assert node_of(typed, "Resize").inputs[2].dtype is FLOAT  # type: ignore[union-attr]
    assert ran(typed, tmp_path, np.ones((1, 1, 4, 4))).shape == (1, 1, 8, 8)
