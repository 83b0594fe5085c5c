"""Regions of graphs that were made to break the growing: random ones, long ones, ones whose values escape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from actx.exporter.lift import Site, lift
from actx.exporter.load.prepare import prepare
from tests.exporter.lift.test_lift import assert_regions_are_closed
from tests.networks import HIDDEN, OUT, WIDTH, Graph, feeds, onnx_mlp

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNARY = ("Tanh", "Sigmoid", "Relu", "Abs", "Neg", "Softsign", "Softplus", "Erf", "Identity")
BINARY = ("Add", "Sub", "Max", "Min")
# Of 1 + |f|: every op of a random graph rounds once in float32, and none of them amplifies by more than 2.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Node:
    """One node of a random graph: its operands count backwards from the newest value; `number` is a constant operand."""

    op_type: str
    first: int
    second: int
    number: float | None
    escapes: bool


nodes = st.builds(
    Node,
    st.sampled_from((*UNARY, *BINARY, *BINARY, "Mul", "Where")),
    st.integers(0, 5),
    st.integers(0, 5),
    st.none() | st.sampled_from((-1.5, -0.5, 0.25, 0.75, 2.0)),
    st.integers(0, 9).map(lambda n: n == 0),
)


def write(g: Graph, up: str, described: list[Node], channels: bool) -> tuple[str, list[str]]:
    """Write the graph so that every value is used, and return its result and the values to be read elsewhere."""
    values, unused, escaping = [up], {up}, []
    for i, node in enumerate(described):
        first = values[-1 - node.first % len(values)]
        second: Any = values[-1 - node.second % len(values)]
        if node.number is not None:
            wide = np.linspace(0.5, 1.5, HIDDEN) * node.number
            second = wide.astype(np.float32) if channels and i % 3 == 0 else node.number
        if node.op_type in UNARY:
            value = g.op(node.op_type, first)
            second = first
        elif node.op_type == "Where":
            value = g.op("Where", g.op("Greater", first, 0.25), first, second)
        elif node.op_type == "Mul":
            value = g.op("Softsign", g.op("Mul", first, second))
        else:
            value = g.op(node.op_type, first, second)
        values.append(value)
        unused = (unused - {v for v in (first, second) if isinstance(v, str)}) | {value}
        if node.escapes:
            escaping.append(value)
    rest = sorted(unused - {values[-1]})
    return g.op("Sum", values[-1], *rest) if rest else values[-1], escaping


def network(described: list[Node], channels: bool, opset: int) -> onnx.ModelProto:
    g = Graph(opset)
    rng = np.random.default_rng(len(described))
    x = g.input("x", ["batch", "tokens", WIDTH])
    up = g.linear(x, "up", rng.uniform(-1, 1, (WIDTH, HIDDEN)), rng.uniform(-1, 1, HIDDEN))
    result, escaping = write(g, up, described, channels)
    down = g.linear(result, "down", rng.standard_normal((HIDDEN, OUT)))
    for i, value in enumerate(dict.fromkeys(escaping)):
        if i % 2:
            g.output(value, f"escaped_{i}", 3)
        else:
            down = g.op("Add", down, g.linear(value, f"other.{i}", rng.standard_normal((HIDDEN, OUT))))
    g.output(down, "y", 3)
    return g.model()


def with_outputs(model: ir.Model, names: list[str]) -> onnx.ModelProto:
    proto: onnx.ModelProto = ir.to_proto(model)
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return proto


def assert_evaluates_as_the_graph(model: ir.Model, sites: tuple[Site, ...], inputs: dict[str, NDArray[Any]]) -> None:
    names = list(dict.fromkeys(name for site in sites for name in (site.input, site.output)))
    results = dict(zip(names, ReferenceEvaluator(with_outputs(model, names)).run(names, inputs), strict=True))
    for site in sites:
        expected = results[site.output].astype(np.float64)
        error = np.abs(site.evaluate(results[site.input].astype(np.float64)) - expected) / (1 + np.abs(expected))
        assert error.max() <= TOLERANCE


@settings(max_examples=300, deadline=None)
@given(st.lists(nodes, min_size=1, max_size=14), st.booleans(), st.integers(13, 25))
def test_random_graphs(described: list[Node], channels: bool, opset: int) -> None:
    proto = network(described, channels, opset)
    model = ir.from_proto(proto)
    prepare(model)
    sites = lift(model).sites
    assert_regions_are_closed(model, sites)
    if sites:
        assert_evaluates_as_the_graph(model, sites, feeds(proto))
    if not channels and not any(node.escapes for node in described):
        assert len(sites) <= 1  # all of it is one function of one value


@settings(max_examples=100, deadline=None)
@given(st.lists(nodes, min_size=2, max_size=14))
def test_a_random_graph_without_escapes_is_one_site_from_layer_to_layer(described: list[Node]) -> None:
    plain = [Node(n.op_type, n.first, n.second, n.number, escapes=False) for n in described]
    plain.append(Node("Tanh", 0, 0, None, escapes=False))
    plain.append(Node("Add", 0, 1, None, escapes=False))
    model = ir.from_proto(network(plain, False, 18))
    prepare(model)
    sites = lift(model).sites
    before = next(node for node in model.graph if node.op_type == "Add").outputs[0]
    after = next(node for node in model.graph if node.op_type == "MatMul" and node.inputs[1].name == "down.weight")  # type: ignore[union-attr]
    for site in sites:  # none where the function is affine after all
        assert (site.input, site.output) == (before.name, after.inputs[0].name)  # type: ignore[union-attr]


def _sites(model: onnx.ModelProto) -> tuple[Site, ...]:
    prepared = ir.from_proto(model)
    prepare(prepared)
    found = lift(prepared).sites
    assert_regions_are_closed(prepared, found)
    return found


@pytest.mark.parametrize("length", [1500, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_long_chain_is_one_site(length: int) -> None:
    def tanhs(g: Graph, x: str) -> str:
        for _ in range(length):
            x = g.op("Tanh", x)
        return x

    (site,) = _sites(onnx_mlp(tanhs))
    assert len(site.values) == length


def test_deeply_nested_sharing_is_one_site() -> None:
    def ladder(g: Graph, x: str) -> str:
        y = x
        for _ in range(700):
            y = g.op("Add", g.op("Mul", y, 0.5), g.op("Tanh", g.op("Sub", y, x)))
        return y

    (site,) = _sites(onnx_mlp(ladder))
    assert len(site.values) == 2800


def test_a_value_read_by_another_layer_ends_a_region() -> None:
    def write(g: Graph, x: str) -> str:
        inner = g.op("Relu", g.op("Abs", x))
        escaped = g.linear(inner, "side", np.ones((HIDDEN, HIDDEN)))
        return g.op("Add", g.op("Mul", g.op("Tanh", inner), 2.0), escaped)

    (site,) = _sites(onnx_mlp(write))  # what follows is a function of an activation, not of a layer
    assert [value.split("_")[0] for value in site.values] == ["Abs", "Relu"]


def test_a_region_whose_result_two_ops_read() -> None:
    def write(g: Graph, x: str) -> str:
        activated = g.op("Mul", g.op("Sigmoid", x), x)
        return g.op("Concat", activated, g.op("Softmax", activated), axis=-1)

    graph = Graph()
    x = graph.input("x", ["batch", "tokens", WIDTH])
    both = write(graph, graph.linear(x, "up", np.ones((WIDTH, HIDDEN))))
    graph.output(graph.linear(both, "down", np.ones((2 * HIDDEN, OUT))), "y", 3)
    (site,) = _sites(graph.model())
    assert site.kind == "silu"
    assert site.gate is None


def test_a_graph_output_inside_a_region_ends_it() -> None:
    graph = Graph()
    x = graph.input("x", ["batch", "tokens", WIDTH])
    inner = graph.op("Relu", graph.linear(x, "up", np.ones((WIDTH, HIDDEN))))
    graph.output(inner, "inner", 3)
    graph.output(graph.linear(graph.op("Tanh", inner), "down", np.ones((HIDDEN, OUT))), "y", 3)
    assert [site.kind for site in _sites(graph.model())] == ["relu"]


def test_two_consumers_of_two_halves_of_a_region() -> None:
    def write(g: Graph, x: str) -> str:
        shared = g.op("Exp", g.op("Neg", g.op("Abs", x)))
        left, right = g.op("Tanh", shared), g.op("Sqrt", shared)
        return g.op("Add", left, g.linear(right, "side", np.ones((HIDDEN, HIDDEN))))

    (site,) = _sites(onnx_mlp(write))
    assert [value.split("_")[0] for value in site.values] == ["Abs", "Neg", "Exp"]


def test_dead_values_are_in_no_region() -> None:
    graph = onnx_mlp(lambda g, x: g.op("Tanh", x))
    graph.graph.node.append(helper.make_node("Relu", [graph.graph.node[0].output[0]], ["dead"], "dead"))
    assert [site.kind for site in _sites(graph)] == ["tanh"]
