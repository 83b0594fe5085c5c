"""A sum of gated functions of one input is one site, whatever sums it up and wherever the gates come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from actx.custom_ops.activations import ACTIVATIONS
from actx.exporter.lift import IDENTITY, Lifted, Mixture, Site
from tests.exporter.lift.test_lift import lifted
from tests.networks import SPELLINGS, Graph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

TOKENS, WIDTH, HIDDEN = 3, 8, 12
ENTRIES = ("identity", "relu", "relu2", "gelu", "silu", "tanh")
WRITTEN = {"relu": "relu", "relu2": "relu2_pow", "gelu": "gelu_legacy", "silu": "silu", "tanh": "tanh"}
# Sums of six products in float64, of functions whose constants are float32.
ROUNDINGS = 1e-6


def entry(g: Graph, x: str, name: str) -> str:
    return x if name == "identity" else SPELLINGS[WRITTEN[name]].write(g, x)


def entries_of(g: Graph, x: str) -> list[str]:
    return [entry(g, x, name) for name in ENTRIES]


def projected(g: Graph, function: str = "Sigmoid") -> str:
    """Gates [batch, tokens, entries] from the layer's input."""
    weight = np.random.default_rng(5).standard_normal((WIDTH, len(ENTRIES)))
    scores = g.linear("x", "gates", weight)
    return g.op(function, scores, axis=-1) if function == "Softmax" else g.op(function, scores)


def column(g: Graph, gates: str, i: int) -> str:
    return g.op("Slice", gates, [i], [i + 1], [-1])


def by_loop(g: Graph, x: str, gates: str) -> str:
    total = ""
    for i, value in enumerate(entries_of(g, x)):
        term = g.op("Mul", column(g, gates, i), value)
        total = term if not total else g.op("Add", total, term)
    return total


def by_split(g: Graph, x: str, gates: str) -> str:
    """As Python's sum over unbind: it begins with zero."""
    parts = g.ops("Split", len(ENTRIES), gates, np.ones(len(ENTRIES), np.int64), axis=2)
    total = g.op("Add", 0.0, g.op("Mul", entry(g, x, ENTRIES[0]), parts[0]))
    for part, name in zip(parts[1:], ENTRIES[1:], strict=True):
        total = g.op("Add", total, g.op("Mul", entry(g, x, name), part))
    return total


def by_gather(g: Graph, x: str, gates: str) -> str:
    terms = []
    for i, value in enumerate(entries_of(g, x)):
        gate = g.op("Unsqueeze", g.op("Gather", gates, np.array(i), axis=-1), [-1])
        terms.append(g.op("Mul", value, gate))
    return g.op("Sum", *terms)


def stacked(g: Graph, x: str, axis: int) -> str:
    return g.op("Concat", *(g.op("Unsqueeze", value, [axis]) for value in entries_of(g, x)), axis=axis)


def by_stack(g: Graph, x: str, gates: str) -> str:
    return g.op("ReduceSum", g.op("Mul", stacked(g, x, -1), g.op("Unsqueeze", gates, [-2])), [-1], keepdims=0)


def by_stack_before_the_channels(g: Graph, x: str, gates: str) -> str:
    return g.op("ReduceSum", g.op("Mul", g.op("Unsqueeze", gates, [-1]), stacked(g, x, -2)), [2], keepdims=0)


def by_matmul(g: Graph, x: str, gates: str) -> str:
    return g.op("Squeeze", g.op("MatMul", stacked(g, x, -1), g.op("Unsqueeze", gates, [-1])), [-1])


def by_einsum(g: Graph, x: str, gates: str) -> str:
    return g.op("Einsum", stacked(g, x, -1), gates, equation="bthe,bte->bth")


WAYS = (by_loop, by_split, by_gather, by_stack, by_stack_before_the_channels, by_matmul, by_einsum)


def network(
    write: Callable[[Graph, str], str], dtype: type = np.float32, inputs: Sequence[tuple[str, type]] = ()
) -> onnx.ModelProto:
    g, rng = Graph(20, dtype), np.random.default_rng(0)
    x = g.input("x", ["batch", TOKENS, WIDTH])
    for name, kind in inputs:
        g.input(name, ["batch", TOKENS], kind)
    hidden = g.linear(x, "up", rng.standard_normal((WIDTH, HIDDEN)), rng.standard_normal(HIDDEN))
    g.scope = "ffn/"
    g.output(g.linear(write(g, hidden), "down", rng.standard_normal((HIDDEN, WIDTH))), "y", 3)
    return g.model()


def mixture_of(found: Lifted) -> Site:
    (site,) = (site for site in found.sites if site.kind == "moa")
    return site


def expected(x: NDArray[np.float64], gates: NDArray[np.float64]) -> NDArray[np.float64]:
    values = [x if name == "identity" else ACTIVATIONS[name](x) for name in ENTRIES]
    return np.asarray(sum(gates[..., i : i + 1] * value for i, value in enumerate(values)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gate", ["Sigmoid", "Softmax", "Tanh"])
def test_every_way_to_sum_up_is_one_site(way: Callable[[Graph, str, str], str], gate: str) -> None:
    found = lifted(network(lambda g, x: way(g, x, projected(g, gate))))
    site = mixture_of(found)
    assert site.entries == tuple(IDENTITY if name == "identity" else name for name in ENTRIES)
    assert [column.index for column in site.columns] == list(range(len(ENTRIES)))
    assert len(site.operands) == 1
    assert not [s.kind for s in found.sites if s is not site and s.input == site.input]
    rng = np.random.default_rng(1)
    x, gates = 3 * rng.standard_normal((2, TOKENS, HIDDEN)), rng.standard_normal((2, TOKENS, len(ENTRIES)))
    assert np.abs(site.evaluate(x, gates) - expected(x, gates)).max() <= ROUNDINGS * np.abs(expected(x, gates)).max()


def test_gates_may_be_looked_up_by_the_type_of_the_token() -> None:
    def write(g: Graph, x: str) -> str:
        table = g.weight("types", np.random.default_rng(2).standard_normal((4, len(ENTRIES))))
        return by_loop(g, x, g.op("Sigmoid", g.op("Gather", table, "kind", axis=0)))

    found = lifted(network(write, inputs=[("kind", np.int64)]))
    (gates,) = mixture_of(found).operands
    assert "Sigmoid" in gates
    assert [site.kind for site in found.sites] == ["moa"]


def test_gates_may_be_those_of_the_position() -> None:
    """They have no batch dimension."""

    def write(g: Graph, x: str) -> str:
        table = g.weight("positions", np.random.default_rng(2).standard_normal((TOKENS, len(ENTRIES))))
        return by_loop(g, x, g.op("Add", table, g.op("Mul", g.op("ReduceMax", "kind", [0, 1], keepdims=0), 0.0)))

    found = lifted(network(write, inputs=[("kind", np.float32)]))
    assert mixture_of(found).entries[0] == IDENTITY


def test_half_precision_with_casts_is_one_site() -> None:
    def write(g: Graph, x: str) -> str:
        wide = g.op("Cast", x, to=onnx.TensorProto.FLOAT)
        gates = g.op("Cast", projected(g), to=onnx.TensorProto.FLOAT)
        g.dtype = np.dtype(np.float32)
        y = by_stack(g, wide, gates)
        g.dtype = np.dtype(np.float16)
        return g.op("Cast", y, to=onnx.TensorProto.FLOAT16)

    site = mixture_of(lifted(network(write, np.float16)))
    assert site.dtype.name == "FLOAT16"
    assert site.input.startswith("Add")


def test_both_sides_of_a_product_may_be_mixtures() -> None:
    def write(g: Graph, x: str) -> str:
        other = g.linear("x", "other", np.random.default_rng(4).standard_normal((WIDTH, HIDDEN)))
        return g.op("Mul", by_loop(g, x, projected(g)), by_stack(g, other, projected(g, "Softmax")))

    sites = [site for site in lifted(network(write)).sites if site.kind == "moa"]
    assert len(sites) == 2
    assert [site.gate is None for site in sites].count(True) == 1


@pytest.mark.parametrize("way", [by_stack, by_matmul])
def test_numbers_for_gates_make_one_scalar_function(way: Callable[[Graph, str, str], str]) -> None:
    """LA, however it is summed up, is one function: its stack of entries is no mixture."""
    numbers = np.array([0.5, -1.0, 0.25, 2.0, 0.125, 1.5], np.float32)

    def write(g: Graph, x: str) -> str:
        gates = g.constant(numbers)
        if way is by_matmul:
            return g.op("MatMul", stacked(g, x, -1), gates)
        return g.op("ReduceSum", g.op("Mul", stacked(g, x, -1), gates), [-1], keepdims=0)

    (site,) = lifted(network(write)).sites
    assert not isinstance(site.function, Mixture)
    x = np.linspace(-6, 6, 97)
    y = expected(x[:, None], np.broadcast_to(numbers, (97, len(ENTRIES))))[:, 0]
    assert np.abs(site.evaluate(x) - y).max() <= ROUNDINGS * np.abs(y).max()


def _two_inputs(g: Graph, x: str) -> str:
    gates, other = projected(g), g.linear("x", "other", np.ones((WIDTH, HIDDEN)))
    return g.op(
        "Add", g.op("Mul", column(g, gates, 0), g.op("Relu", x)), g.op("Mul", column(g, gates, 1), g.op("Tanh", other))
    )


def _without_a_gate(g: Graph, x: str) -> str:
    gates = projected(g)
    return g.op("Add", g.op("Mul", column(g, gates, 0), g.op("Relu", x)), g.op("Tanh", x))


def _product_of_gates(g: Graph, x: str) -> str:
    gates = projected(g)
    first = g.op("Mul", column(g, gates, 0), g.op("Relu", x))
    return g.op("Mul", first, g.op("Mul", column(g, gates, 1), g.op("Tanh", x)))


@pytest.mark.parametrize("write", [_two_inputs, _without_a_gate, _product_of_gates])
def test_what_is_no_mixture_leaves_its_parts_to_be_sites(write: Callable[[Graph, str], str]) -> None:
    found = lifted(network(write))
    assert all(site.kind != "moa" for site in found.sites)
    assert "relu" in {site.kind for site in found.sites}


def test_a_sum_that_is_read_half_way_is_explained() -> None:
    def write(g: Graph, x: str) -> str:
        gates = projected(g)
        term = g.op("Mul", column(g, gates, 0), g.op("Relu", x))
        both = g.op("Add", term, g.op("Mul", column(g, gates, 1), g.op("Tanh", x)))
        return g.op("Add", both, g.linear(term, "side", np.eye(HIDDEN)))

    found = lifted(network(write))
    assert all(site.kind != "moa" for site in found.sites)
    assert any("read elsewhere" in rejection.reason for rejection in found.rejections)


def test_gates_that_make_the_input_wider_are_no_mixture() -> None:
    """As of learned queries: what comes out has another shape than x."""
    g, rng = Graph(20), np.random.default_rng(0)
    x = g.input("x", ["batch", TOKENS, WIDTH])
    query = g.linear(g.input("query", [1, TOKENS, WIDTH]), "up", rng.standard_normal((WIDTH, HIDDEN)))
    g.output(g.linear(by_loop(g, query, projected(g)), "down", rng.standard_normal((HIDDEN, WIDTH))), "y", 3)
    assert x == "x"
    assert all(site.kind != "moa" for site in lifted(g.model()).sites)


def test_lines_alone_are_no_site() -> None:
    """A scale and a shift per token: nothing of it is nonlinear."""

    def write(g: Graph, x: str) -> str:
        gates = projected(g)
        return g.op("Add", g.op("Mul", column(g, gates, 0), x), column(g, gates, 1))

    assert all(site.kind != "moa" for site in lifted(network(write)).sites)
