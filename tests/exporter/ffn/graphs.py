"""Gated FFNs in every layout that packing knows, and what comes near to one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from tests.networks import RANGE, Array, Graph

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    from numpy.typing import DTypeLike

    from tests.networks import Write

WIDTH, HIDDEN, OUT = 8, 12, 6
END = np.iinfo(np.int64).max
# Writes what gives the gate and the other half, from x.
Source: TypeAlias = "Callable[[Graph, str, np.random.Generator], tuple[str, str]]"


@dataclass(frozen=True)
class Network:
    """A gated FFN.

    Attributes:
        source: writes the layers before the two factors.
        shape: of x; channels come second where there are four dimensions.
        layers: types of the ops that compute what both factors are read from, once they are packed.
        packed: whether they are packed in the source.
    """

    source: Source
    shape: tuple[int | str, ...]
    layers: tuple[str, ...]
    packed: bool

    def model(self, write: Write, h: Write | None = None, dtype: DTypeLike = np.float32) -> onnx.ModelProto:
        """Build the network with an activation and, where one is given, a function of the other half."""
        g, rng = Graph(20, dtype), np.random.default_rng(0)
        x = g.input("x", list(self.shape))
        gate, other = self.source(g, x, rng)
        product = g.op("Mul", write(g, gate), other if h is None else h(g, other))
        if len(self.shape) == 4:
            y = g.op("Conv", product, g.weight("down.weight", rng.standard_normal((OUT, HIDDEN, 1, 1))))
        else:
            y = g.op("MatMul", product, g.weight("down.weight", rng.standard_normal((HIDDEN, OUT))))
        g.output(y, "y", len(self.shape))
        return g.model()

    def feeds(self, dtype: DTypeLike = np.float32) -> dict[str, Array]:
        """Return an input in [-1, 1]."""
        shape = [size if isinstance(size, int) else 3 for size in self.shape]
        return {"x": np.random.default_rng(1).uniform(-1, 1, shape).astype(dtype)}


def weights(rng: np.random.Generator, hidden: int = HIDDEN) -> tuple[Array, Array]:
    """Weight [WIDTH, hidden] and bias that map inputs in [-1, 1] to values in [-RANGE, RANGE]."""
    weight = rng.uniform(-1, 1, (WIDTH, hidden))
    return (RANGE - 1) * weight / np.abs(weight).sum(axis=0), rng.uniform(-1, 1, hidden)


def two_matmuls(gate_bias: bool = True, other_bias: bool = True) -> Source:
    def write(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
        (gate, b), (up, c) = weights(rng), weights(rng)
        first = g.linear(x, "gate", gate, b if gate_bias else None)
        return first, g.linear(x, "up", up, c if other_bias else None)

    return write


def two_gemms(bias: tuple[bool, bool] = (True, True), **attributes: Any) -> Source:
    def write(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
        def gemm(name: str, with_bias: bool) -> str:
            weight, b = weights(rng)
            operands = [x, g.weight(f"{name}.weight", weight.T if attributes.get("transB") else weight)]
            return g.op("Gemm", *operands, *([g.weight(f"{name}.bias", b)] if with_bias else []), **attributes)

        return gemm("gate", bias[0]), gemm("up", bias[1])

    return write


def two_convs(bias: tuple[bool, bool] = (True, True), kernel: int = 1) -> Source:
    def write(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
        return conv(g, x, "gate", rng, bias=bias[0], kernel=kernel), conv(g, x, "up", rng, bias=bias[1], kernel=kernel)

    return write


def conv(
    g: Graph, x: str, name: str, rng: np.random.Generator, *, bias: bool = True, kernel: int = 1, hidden: int = HIDDEN
) -> str:
    weight, b = weights(rng, hidden)
    spread = np.repeat(np.repeat(weight.T[:, :, None, None], kernel, 2), kernel, 3) / kernel**2
    operands = [x, g.weight(f"{name}.weight", spread), *([g.weight(f"{name}.bias", b)] if bias else [])]
    return g.op("Conv", *operands, kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4)


def _packed(g: Graph, x: str, rng: np.random.Generator) -> str:
    return g.linear(x, "both", *weights(rng, 2 * HIDDEN))


def by_split(*, gate: int = 0, sizes: bool = True) -> Source:
    def write(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
        both = _packed(g, x, rng)
        operands, number = ([both, [HIDDEN, HIDDEN]], {}) if sizes else ([both], {"num_outputs": 2})
        halves = g.ops("Split", 2, *operands, axis=2, **number)
        return halves[gate], halves[1 - gate]

    return write


def by_slices(first: tuple[int, int, int], second: tuple[int, int, int], axis: int = -1) -> Source:
    """Start, end and step of the gate and of the other half."""

    def write(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
        both = _packed(g, x, rng)
        gate, other = (g.op("Slice", both, [start], [end], [axis], [step]) for start, end, step in (first, second))
        return gate, other

    return write


def by_reshape(shape: list[int], axis: int, *, gate: int = 0, how: str = "gather") -> Source:
    """An axis of 2 that the halves lie along, and one element of it each."""

    def write(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
        stacked = g.op("Reshape", _packed(g, x, rng), [0, 0, *shape])
        if how == "gather":
            halves = [g.op("Gather", stacked, g.constant(np.array(i)), axis=axis) for i in (0, 1 if gate else -1)]
        elif how == "split":
            halves = [g.op("Squeeze", half, [axis]) for half in g.ops("Split", 2, stacked, [1, 1], axis=axis)]
        else:
            parts = (g.op("Slice", stacked, [i], [i + 1], [axis], [1]) for i in (0, 1))
            halves = [g.op("Squeeze", part, [axis]) for part in parts]
        return halves[gate], halves[1 - gate]

    return write


def conv_by(how: str) -> Source:
    """Halves of a Conv's channels."""

    def write(g: Graph, x: str, rng: np.random.Generator) -> tuple[str, str]:
        both = conv(g, x, "both", rng, hidden=2 * HIDDEN)
        if how == "split":
            gate, other = g.ops("Split", 2, both, [HIDDEN, HIDDEN], axis=1)
            return gate, other
        if how == "slices":
            return g.op("Slice", both, [0], [END], [1], [2]), g.op("Slice", both, [1], [END], [1], [2])
        stacked = g.op("Reshape", both, [0, HIDDEN, 2, 4, 5] if how == "interleaved" else [0, 2, HIDDEN, 4, 5])
        axis = 2 if how == "interleaved" else 1
        second, first = (g.op("Gather", stacked, g.constant(np.array(i)), axis=axis) for i in (1, 0))
        return first, second

    return write


THREE, TWO, FOUR = ("batch", "tokens", WIDTH), ("batch", WIDTH), ("batch", WIDTH, 4, 5)
WITH_BIAS = ("MatMul", "Add")

NETWORKS = {
    "matmuls": Network(two_matmuls(), THREE, WITH_BIAS, packed=False),
    "matmuls without bias": Network(two_matmuls(False, False), THREE, ("MatMul",), packed=False),
    "matmuls, bias of the gate": Network(two_matmuls(True, False), THREE, WITH_BIAS, packed=False),
    "matmuls, bias of the other": Network(two_matmuls(False, True), THREE, WITH_BIAS, packed=False),
    "gemms": Network(two_gemms(), TWO, ("Gemm",), packed=False),
    "gemms, transposed and scaled": Network(two_gemms(transB=1, alpha=0.5, beta=2.0), TWO, ("Gemm",), packed=False),
    "gemms, one bias": Network(two_gemms((False, True)), TWO, ("Gemm",), packed=False),
    "convs": Network(two_convs(), FOUR, ("Conv",), packed=False),
    "convs, one bias": Network(two_convs((True, False)), FOUR, ("Conv",), packed=False),
    "convs of 3 by 3": Network(two_convs(kernel=3), FOUR, ("Conv",), packed=False),
    "split": Network(by_split(), THREE, WITH_BIAS, packed=True),
    "split, gate second": Network(by_split(gate=1), THREE, WITH_BIAS, packed=True),
    "split without sizes": Network(by_split(sizes=False), THREE, WITH_BIAS, packed=True),
    "slices": Network(by_slices((0, HIDDEN, 1), (HIDDEN, END, 1)), THREE, WITH_BIAS, packed=True),
    "slices from the end": Network(by_slices((-HIDDEN, END, 1), (0, -HIDDEN, 1), 2), THREE, WITH_BIAS, packed=True),
    "in turn": Network(by_slices((0, END, 2), (1, END, 2)), THREE, WITH_BIAS, packed=True),
    "in turn, gate second": Network(by_slices((1, 2 * HIDDEN, 2), (0, 2 * HIDDEN, 2)), THREE, WITH_BIAS, packed=True),
    "pairs": Network(by_reshape([HIDDEN, 2], -1), THREE, WITH_BIAS, packed=True),
    "pairs, gate second": Network(by_reshape([HIDDEN, 2], 3, gate=1), THREE, WITH_BIAS, packed=True),
    "pairs by split": Network(by_reshape([HIDDEN, 2], 3, how="split"), THREE, WITH_BIAS, packed=True),
    "pairs by slices": Network(by_reshape([HIDDEN, 2], -1, how="slice"), THREE, WITH_BIAS, packed=True),
    "stacked": Network(by_reshape([2, HIDDEN], -2), THREE, WITH_BIAS, packed=True),
    "stacked, gate second": Network(by_reshape([2, HIDDEN], 2, gate=1, how="split"), THREE, WITH_BIAS, packed=True),
    "conv split": Network(conv_by("split"), FOUR, ("Conv",), packed=True),
    "conv in turn": Network(conv_by("slices"), FOUR, ("Conv",), packed=True),
    "conv pairs": Network(conv_by("interleaved"), FOUR, ("Conv",), packed=True),
    "conv stacked": Network(conv_by("stacked"), FOUR, ("Conv",), packed=True),
}  # fmt: skip
