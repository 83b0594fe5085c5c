"""What cannot be packed, and the words that say so; a model of it is exported as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest

from actx.exporter.ffn.halves import Halves, find_halves
from actx.exporter.ffn.modes import Measured, decide, refusals
from actx.exporter.ffn.product import Products, Refusal
from actx.exporter.lift import lift
from tests.exporter.ffn.graphs import HIDDEN, NETWORKS, OUT, WIDTH, by_slices, conv, weights
from tests.exporter.lower.running import prepared, values_of
from tests.networks import SPELLINGS, Graph

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

# Writes the layers, and reads some value elsewhere too if it likes; gives the gate and the other factor.
Write: TypeAlias = "Callable[[Graph, str, np.random.Generator], tuple[str, str]]"


def model_of(write: Write, shape: tuple[int | str, ...] = ("batch", "tokens", WIDTH)) -> ir.Model:
    g, rng = Graph(20), np.random.default_rng(0)
    gate, other = write(g, g.input("x", list(shape)), rng)
    product = g.op("Mul", SPELLINGS["silu"].write(g, gate), other)
    if len(shape) == 4:
        g.output(conv_out(g, product, rng), "y", 4)
    else:
        g.output(g.op("MatMul", product, g.weight("down.weight", rng.standard_normal((HIDDEN, OUT)))), "y", len(shape))
    return prepared(g.model())


def conv_out(g: Graph, x: str, rng: np.random.Generator) -> str:
    return g.op("Conv", x, g.weight("down.weight", rng.standard_normal((OUT, HIDDEN, 1, 1))))


def linear(g: Graph, x: str, name: str, rng: np.random.Generator) -> str:
    return g.linear(x, name, *weights(rng))


def gate_is_read_elsewhere(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    gate = linear(g, x, "gate", rng)
    g.output(g.linear(gate, "aside", rng.standard_normal((HIDDEN, OUT))), "z", 3)
    return gate, linear(g, x, "up", rng)


def other_is_read_elsewhere(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    gate, other = linear(g, x, "gate", rng), linear(g, x, "up", rng)
    g.output(g.linear(other, "aside", rng.standard_normal((HIDDEN, OUT))), "z", 3)
    return gate, other


def read_before_the_bias(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    weight, bias = weights(rng)
    sums = g.linear(x, "gate", weight)
    g.output(g.linear(sums, "aside", rng.standard_normal((HIDDEN, OUT))), "z", 3)
    return g.op("Add", sums, g.weight("gate.bias", bias)), linear(g, x, "up", rng)


def other_inputs(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    return linear(g, x, "gate", rng), linear(g, g.op("Neg", x), "up", rng)


def bias_per_token(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    weight, _ = weights(rng)
    sums = g.op("MatMul", x, g.weight("gate.weight", weight))
    return g.op("Add", sums, g.weight("gate.bias", rng.standard_normal((5, HIDDEN)))), linear(g, x, "up", rng)


def sum_of_two_layers(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    return g.op("Add", linear(g, x, "gate", rng), linear(g, x, "more", rng)), linear(g, x, "up", rng)


def dynamic_weight(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    weight = g.input("weight", [WIDTH, HIDDEN])
    return linear(g, x, "gate", rng), g.op("MatMul", x, weight)


def quantized_weight(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    codes = g.constant(rng.integers(-127, 127, (WIDTH, HIDDEN)).astype(np.int8), "gate.codes")
    weight = g.op("DequantizeLinear", codes, 0.01, g.constant(np.array(0, np.int8)))
    return g.op("MatMul", x, weight), linear(g, x, "up", rng)


def quantized_gate(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    zero = g.constant(np.array(0, np.int8))
    codes = g.op("QuantizeLinear", linear(g, x, "gate", rng), 0.1, zero)
    return g.op("DequantizeLinear", codes, 0.1, zero), linear(g, x, "up", rng)


def shared_weight(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    weight, _ = weights(rng)
    gate = g.linear(x, "gate", weight)
    g.output(g.op("MatMul", g.op("Neg", x), "gate.weight"), "z", 3)
    return gate, linear(g, x, "up", rng)


def two_kinds(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    weight, bias = weights(rng)
    return g.op("Gemm", x, g.weight("gate.weight", weight), g.weight("gate.bias", bias)), linear(g, x, "up", rng)


def differing_attributes(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    (gate, _), (up, _) = weights(rng), weights(rng)
    first = g.op("Gemm", x, g.weight("gate.weight", gate), alpha=0.5)
    return first, g.op("Gemm", x, g.weight("up.weight", up))


def groups(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    weight = rng.uniform(-1, 1, (HIDDEN, WIDTH // 2, 1, 1))
    return g.op("Conv", x, g.weight("gate.weight", weight), group=2), conv(g, x, "up", rng)


def broadcast_gate(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    pooled = g.op("GlobalAveragePool", x)
    return conv(g, pooled, "gate", rng), conv(g, x, "up", rng)


def unequal_kernels(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    return conv(g, x, "gate", rng, kernel=3), conv(g, x, "up", rng)


def norm_between(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
    scale = g.weight("norm.scale", rng.uniform(0.5, 1, HIDDEN))
    gate = g.op("LayerNormalization", linear(g, x, "gate", rng), scale)
    return gate, linear(g, x, "up", rng)


THREE, TWO, FOUR = ("batch", 5, WIDTH), ("batch", WIDTH), ("batch", WIDTH, 4, 5)
REFUSED = {
    gate_is_read_elsewhere: (THREE, "the gate is read elsewhere too"),
    other_is_read_elsewhere: (THREE, "the other factor is read elsewhere too"),
    read_before_the_bias: (THREE, "the gate is read before its bias is added"),
    other_inputs: (THREE, "the two layers read different inputs"),
    bias_per_token: (THREE, "the bias of the gate has shape [5, 12], not one number for each of 12 columns"),
    sum_of_two_layers: (THREE, "the gate is the sum of two values"),
    dynamic_weight: (THREE, "the weight of the other factor is not constant"),
    quantized_weight: (THREE, "the weight of the gate is quantized"),
    quantized_gate: (THREE, "the gate comes from DequantizeLinear: it is quantized"),
    shared_weight: (THREE, "the weight of the gate is read elsewhere too"),
    two_kinds: (TWO, "the gate comes from Gemm, the other factor from MatMul"),
    differing_attributes: (TWO, "the attributes of the two layers differ: alpha"),
    groups: (FOUR, "the gate comes from a Conv of several groups"),
    broadcast_gate: (FOUR, "the other factor is the gate of this product, or not surely of the site's shape"),
    unequal_kernels: (FOUR, "the attributes of the two layers differ: kernel_shape, pads"),
    norm_between: (THREE, "the gate comes from LayerNormalization, which is no layer"),
}


def not_measured(_: object) -> Measured:
    raise AssertionError


@pytest.mark.parametrize("write", REFUSED, ids=lambda write: write.__name__)
def test_what_cannot_be_packed_is_kept_with_the_reason(write: Write) -> None:
    shape, reason = REFUSED[write]
    model = model_of(write, shape)
    sites = lift(model).sites
    site = next(site for site in sites if site.kind == "silu")
    with pytest.raises(Refusal) as caught:
        Products(model.graph, sites).find(site)
    assert caught.value.reason == reason
    for mode in ("auto", "pack"):
        (decision,) = decide(model, sites, mode, {}, not_measured)
        assert (decision.sites[0], decision.packed, decision.reason) == (site.name, False, reason)
    assert refusals(model, sites) == {site.name: reason}


def test_a_site_without_a_product_is_no_gated_ffn() -> None:
    model = prepared(SPELLINGS["silu"].model())
    sites = lift(model).sites
    assert decide(model, sites, "pack", {}, not_measured) == ()


@pytest.mark.parametrize("name", NETWORKS)
def test_where_the_factors_come_from(name: str) -> None:
    model = prepared(NETWORKS[name].model(SPELLINGS["silu"].write))
    sites = lift(model).sites
    product = Products(model.graph, sites).find(sites[0])
    assert isinstance(product.source, Halves) == NETWORKS[name].packed
    if isinstance(product.source, Halves):
        in_turn = "turn" in name or "pairs" in name
        second = "second" in name or "from the end" in name
        assert (product.source.layout, product.source.gate) == ("interleaved" if in_turn else "split", int(second))
        assert product.source.axis == (-3 if "conv" in name else -1)


PARTS = (
    by_slices((0, HIDDEN, 1), (HIDDEN - 1, 2 * HIDDEN - 1, 1)),  # they overlap
    by_slices((0, HIDDEN, 1), (0, HIDDEN, 1)),
    by_slices((0, 2 * HIDDEN, 2), (0, HIDDEN, 1)),
    by_slices((2 * HIDDEN, -2 * HIDDEN - 1, -2), (0, 2 * HIDDEN, 2)),  # backwards
    by_slices((0, 8, 1), (8, 16, 1)),  # of 24
)


@pytest.mark.parametrize("source", PARTS)
def test_parts_that_are_no_halves(source: Write) -> None:
    g = Graph(20)
    first, second = source(g, g.input("x", ["batch", "tokens", WIDTH]), np.random.default_rng(0))
    for i, value in enumerate((first, second)):
        g.output(value, f"y{i}", 3)
    values = values_of(prepared(g.model()))
    assert find_halves(values[first], values[second]) is None


def test_a_transposed_pair_is_no_pair() -> None:
    """The halves lie along the first of three sizes that only their product ties together."""
    g = Graph(20)
    x = g.input("x", ["a", "b", 2 * HIDDEN])
    stacked = g.op("Reshape", x, g.op("Concat", g.op("Shape", x, start=1, end=2), [-1, HIDDEN, 2], axis=0))
    parts = [g.op("Gather", stacked, g.constant(np.array(i)), axis=-1) for i in (0, 1)]
    for i, value in enumerate(parts):
        g.output(value, f"y{i}", 3)
    values = values_of(prepared(g.model()))
    assert find_halves(values[parts[0]], values[parts[1]]) is None


def test_a_gemm_with_a_bias_for_every_row() -> None:
    def write(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
        (gate, _), (up, bias) = weights(rng), weights(rng)
        rows = g.weight("gate.bias", rng.standard_normal((3, HIDDEN)))
        first = g.op("Gemm", x, g.weight("gate.weight", gate), rows)
        return first, g.op("Gemm", x, g.weight("up.weight", up), g.weight("up.bias", bias))

    model = model_of(write, (3, WIDTH))
    sites = lift(model).sites
    with pytest.raises(Refusal, match="the bias of the gate has shape"):
        Products(model.graph, sites).find(sites[0])
