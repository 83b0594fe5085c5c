"""PolyNorm is one site however it was written, and what only looks like it is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from actx.custom_ops.ops import DOMAIN
from actx.custom_ops.ops.polynorm import PolyNormOp
from actx.exporter.lift import Lifted, PolyNorm, Site
from tests.exporter.lift.test_lift import lifted
from tests.networks import Graph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

TOKENS, WIDTH, HIDDEN = 3, 8, 12
WEIGHTS, BIAS, EPSILON = (0.25, -0.5, 0.75), 0.125, 1e-6
# A rounding of a constant, such as one over the row's length.
FLOAT32 = 2.0**-23


def by_division(g: Graph, z: str, epsilon: float = EPSILON) -> str:
    mean = g.reduce("ReduceMean", g.op("Pow", z, 2.0), [-1])
    return g.op("Div", z, g.op("Sqrt", g.op("Add", mean, epsilon)))


def by_reciprocal(g: Graph, z: str) -> str:
    mean = g.reduce("ReduceMean", g.op("Mul", z, z), [-1])
    return g.op("Mul", z, g.op("Reciprocal", g.op("Sqrt", g.op("Add", mean, EPSILON))))


def by_power(g: Graph, z: str) -> str:
    mean = g.op("Div", g.reduce("ReduceSum", g.op("Mul", z, z), [2]), float(HIDDEN))
    return g.op("Mul", z, g.op("Pow", g.op("Add", mean, EPSILON), -0.5))


def by_sum_of_squares(g: Graph, z: str) -> str:
    mean = g.op("Mul", g.reduce("ReduceSumSquare", z, [-1]), 1.0 / HIDDEN)
    return g.op("Div", z, g.op("Sqrt", g.op("Add", EPSILON, mean)))


def by_rms_op(g: Graph, z: str) -> str:
    scale = g.constant(np.ones(HIDDEN, np.float32))
    return g.op("RMSNormalization", z, scale, axis=-1, epsilon=EPSILON)


NORMS = (by_division, by_reciprocal, by_power, by_sum_of_squares)


def polynorm(
    g: Graph, x: str, norm: Callable[[Graph, str], str] = by_division, weights: Sequence[float] = WEIGHTS
) -> str:
    powers = [g.op("Pow", x, 3.0), g.op("Mul", x, x), x]
    terms = [g.op("Mul", norm(g, power), weight) for power, weight in zip(powers, weights, strict=True)]
    return g.op("Add", g.op("Add", g.op("Add", terms[0], terms[1]), terms[2]), BIAS)


def network(write: Callable[[Graph, str], str], opset: int = 18, dtype: type = np.float32) -> onnx.ModelProto:
    """LayerNorm-free: MatMul and bias, what is written, MatMul."""
    g, rng = Graph(opset, dtype), np.random.default_rng(0)
    x = g.input("x", ["batch", TOKENS, WIDTH])
    hidden = g.linear(x, "up", rng.standard_normal((WIDTH, HIDDEN)), rng.standard_normal(HIDDEN))
    g.scope = "ffn/"
    written = write(g, hidden)
    g.output(g.linear(written, "down", rng.standard_normal((HIDDEN, WIDTH))), "y", 3)
    return g.model()


def only(found: Lifted) -> Site:
    (site,) = found.sites
    return site


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("opset", [13, 18])
def test_every_spelling_is_one_site_with_its_parameters(norm: Callable[[Graph, str], str], opset: int) -> None:
    if norm is by_sum_of_squares and opset < 18:
        norm = by_reciprocal
    site = only(lifted(network(lambda g, x: polynorm(g, x, norm), opset)))
    assert (site.kind, site.gate, site.axis) == ("polynorm", None, None)
    expected = dict(zip(("w0", "w1", "w2", "b"), (*WEIGHTS, BIAS), strict=True))
    assert {name: float(site.parameters[name]) for name in expected} == pytest.approx(expected, rel=FLOAT32)
    assert float(site.parameters["eps"]) == np.float32(EPSILON)
    x = np.random.default_rng(1).standard_normal((2, TOKENS, HIDDEN))
    means = [(x ** (2 * power)).mean(-1, keepdims=True) + np.float32(EPSILON) for power in (3, 2, 1)]
    terms = [w * x**p / np.sqrt(m) for w, p, m in zip(WEIGHTS, (3, 2, 1), means, strict=True)]
    assert np.abs(site.evaluate(x) - (sum(terms) + BIAS)).max() <= 8 * FLOAT32


def test_it_is_found_by_the_op_of_rms_normalization() -> None:
    assert only(lifted(network(lambda g, x: polynorm(g, x, by_rms_op), 23))).kind == "polynorm"


def test_coefficients_may_be_computed_from_parameters() -> None:
    """The variant with sigmoid coefficients, a clamped bias, and one half of it all."""

    def write(g: Graph, x: str) -> str:
        weight = g.constant(np.array([0.5, -1.0, 2.0], np.float32))
        sigmoid = g.op("Sigmoid", weight)
        parts = [g.op("Gather", sigmoid, np.array(i), axis=0) for i in range(3)]
        powers = [g.op("Mul", g.op("Mul", x, x), x), g.op("Mul", x, x), x]
        terms = [g.op("Mul", part, by_division(g, power)) for part, power in zip(parts, powers, strict=True)]
        bias = g.op("Clip", g.constant(np.array([0.8], np.float32)), -0.5, 0.5)
        return g.op("Mul", g.op("Add", g.op("Add", terms[0], g.op("Add", terms[1], terms[2])), bias), 0.5)

    site = only(lifted(network(write)))
    expected = 0.5 / (1 + np.exp(-np.array([0.5, -1.0, 2.0])))
    assert [float(site.parameters[f"w{i}"]) for i in range(3)] == pytest.approx(expected.tolist(), rel=FLOAT32)
    assert float(site.parameters["b"]) == pytest.approx(0.25)


@pytest.mark.parametrize(("weights", "order"), [((0.0, 0.5, 0.25), 2), ((1.0, 0.0, 0.0), 3)])
def test_a_weight_may_be_zero(weights: tuple[float, ...], order: int) -> None:
    site = only(lifted(network(lambda g, x: polynorm(g, x, weights=weights))))
    assert isinstance(site.function, PolyNorm)
    assert site.function.weights.tolist() == pytest.approx(list(weights[-order:]), abs=FLOAT32)


def test_half_precision_around_a_computation_in_float32_is_one_site() -> None:
    def write(g: Graph, x: str) -> str:
        wide = g.op("Cast", x, to=onnx.TensorProto.FLOAT)
        g.dtype = np.dtype(np.float32)
        y = polynorm(g, wide)
        g.dtype = np.dtype(np.float16)
        return g.op("Cast", y, to=onnx.TensorProto.FLOAT16)

    site = only(lifted(network(write, dtype=np.float16)))
    assert (site.kind, site.dtype.name) == ("polynorm", "FLOAT16")
    assert site.input.startswith("Add")


def test_it_may_be_the_gate_of_a_product() -> None:
    def write(g: Graph, x: str) -> str:
        up = g.linear("x", "gate_up", np.random.default_rng(3).standard_normal((WIDTH, HIDDEN)))
        return g.op("Mul", polynorm(g, x), up)

    site = only(lifted(network(write)))
    assert site.kind == "polynorm"
    assert site.gate is not None
    assert "MatMul" in site.gate.multiplier


def test_a_node_of_the_op_is_the_site() -> None:
    def write(g: Graph, x: str) -> str:
        weights = g.constant(np.array(WEIGHTS, np.float32))
        return g.op("PolyNorm", x, weights, g.constant(np.array([BIAS], np.float32)), domain=DOMAIN, epsilon=1e-5)

    site = only(lifted(network(write)))
    assert isinstance(site.function, PolyNorm)
    assert site.function.epsilon == PolyNormOp(1e-5).epsilon
    assert site.function.weights.tolist() == list(WEIGHTS)


def _with_two_epsilons(g: Graph, x: str) -> str:
    return g.op("Add", by_division(g, g.op("Mul", x, x), 1e-3), by_division(g, x))


def _with_an_absolute_mean(g: Graph, x: str) -> str:
    """Divides by the root of the mean of |z| where PolyNorm has the mean of z^2."""

    def norm(g: Graph, z: str) -> str:
        mean = g.reduce("ReduceMean", g.op("Abs", z), [-1])
        return g.op("Div", z, g.op("Sqrt", g.op("Add", mean, EPSILON)))

    return polynorm(g, x, norm)


@pytest.mark.parametrize("write", [_with_two_epsilons, _with_an_absolute_mean])
def test_what_only_looks_like_it_is_explained(write: Callable[[Graph, str], str]) -> None:
    found = lifted(network(write))
    assert all(site.kind != "polynorm" for site in found.sites)
    assert any("more than one power of its row" in rejection.reason for rejection in found.rejections)


def test_a_part_that_is_read_elsewhere_leaves_the_graph_as_it_is() -> None:
    def write(g: Graph, x: str) -> str:
        square = g.op("Mul", x, x)
        cube = g.op("Mul", square, x)
        terms = [by_division(g, cube), by_division(g, square), by_division(g, x)]
        y = g.op("Add", g.op("Add", terms[0], terms[1]), terms[2])
        return g.op("Add", y, g.linear(terms[0], "side", np.eye(HIDDEN)))

    assert all(site.kind != "polynorm" for site in lifted(network(write)).sites)


def test_weights_of_the_op_that_are_inputs_are_explained() -> None:
    g = Graph(18)
    weights = g.input("w", [3])
    hidden = g.linear(g.input("x", ["batch", WIDTH]), "up", np.eye(WIDTH))
    y = g.op("PolyNorm", hidden, weights, g.constant(np.zeros(1, np.float32)), domain=DOMAIN)
    g.output(g.linear(y, "down", np.eye(WIDTH)), "y", 2)
    found = lifted(g.model())
    assert not found.sites
    assert [rejection.reason for rejection in found.rejections] == ["its weights are no constants"]


@pytest.mark.parametrize("norm", NORMS)
def test_a_normalisation_is_no_site(norm: Callable[[Graph, str], str]) -> None:
    def write(g: Graph, x: str) -> str:
        scale: NDArray[np.float32] = np.linspace(0.5, 2, HIDDEN, dtype=np.float32)
        return g.op("Mul", norm(g, x), g.constant(scale))

    found = lifted(network(write))
    assert not found.sites
    assert not any("power" in rejection.reason for rejection in found.rejections)


def test_a_factor_of_higher_rank_leaves_the_graph_as_it_is() -> None:
    """It makes the output one dimension longer."""

    def write(g: Graph, x: str) -> str:
        factor = g.constant(np.full((1, 1, 1, 1), 0.5, np.float32))
        return g.op("Squeeze", g.op("Mul", polynorm(g, x), factor), [0])

    (site,) = lifted(network(write)).sites
    assert (site.kind, site.output.startswith("ffn/Add")) == ("polynorm", True)


def test_a_sum_over_rows_of_unknown_length_is_no_mean() -> None:
    def norm(g: Graph, z: str) -> str:
        mean = g.op("Div", g.reduce("ReduceSum", g.op("Mul", z, z), [2]), 12.0)
        return g.op("Div", z, g.op("Sqrt", g.op("Add", mean, EPSILON)))

    g = Graph(18)
    x = g.input("x", ["batch", TOKENS, "width"])
    hidden = g.op("LpNormalization", x, axis=-1)
    g.output(polynorm(g, hidden, norm), "y", 3)
    assert all(site.kind != "polynorm" for site in lifted(g.model()).sites)
