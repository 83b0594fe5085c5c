"""Small networks that the tests share: every way an activation is written in ONNX, and what must not be taken for one.

`SPELLINGS`, `SURROUNDINGS` and `NOT_SITES` map a name to a builder, so that a test of lift or lower covers all of them:

    @pytest.mark.parametrize("name", SPELLINGS)
    def test_lifts(name: str) -> None:
        model = SPELLINGS[name].model(opset=18)

Every network is MatMul (+ bias) -> activation -> MatMul over x [batch, tokens, WIDTH]; its weights are named
`up.weight`, `up.bias`, `gate.weight`, `gate.bias` and `down.weight`, so that a test can compute what it should return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy.special import erf, expit, ndtr

from actx.custom_ops.activations import ACTIVATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = "NDArray[Any]"
Constant: TypeAlias = "float | int | list[int] | Array"
Write: TypeAlias = "Callable[[Graph, str], str]"
Gate: TypeAlias = Literal["matmul", "split", "split_gate_second", "interleaved"]

WIDTH, HIDDEN, OUT = 8, 12, 6
OPSETS = tuple(range(13, 26))
UNNAMED = "scalar"
# Weights keep the inputs of the activation within this range for inputs within [-1, 1].
RANGE = 6.0


# --- embeddings ---


def mean_embedding(last_hidden_state: Array, attention_mask: Array) -> Array:
    """Mean over the tokens that the mask keeps: [batch, tokens, width], [batch, tokens] -> float64 [batch, width]."""
    mask = np.asarray(attention_mask, dtype=np.float64)[..., None]
    return (np.asarray(last_hidden_state, dtype=np.float64) * mask).sum(axis=1) / mask.sum(axis=1)


def cosine(a: Array, b: Array) -> Array:
    """Cosine of the rows of two arrays [batch, width]: float64 [batch]."""
    return (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


# --- a writer of graphs ---


class Graph:
    """Collects nodes, constants, inputs and outputs; every value gets a new name.

    Args:
        opset: version of the standard domain.
        dtype: float type of the constants given as Python floats.
        share: whether equal scalar constants are one initializer, as exporters that fold duplicates make them.
    """

    def __init__(self, opset: int = 18, dtype: DTypeLike = np.float32, *, share: bool = False) -> None:
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.scope = ""
        self._share = share
        self._shared: dict[float, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._domains: set[str] = set()

    def input(self, name: str, shape: list[int | str], dtype: DTypeLike | None = None) -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, rank: int, dtype: DTypeLike | None = None) -> None:
        self.op("Identity", value, into=name)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        self._outputs.append(helper.make_tensor_value_info(name, kind, [f"{name}_{i}" for i in range(rank)]))

    def constant(self, value: Constant, name: str = "") -> str:
        """Add an initializer: floats in the graph's type, integers as int64, arrays in their own type."""
        if self._share and isinstance(value, float) and value in self._shared:
            return self._shared[value]
        array = np.asarray(value, dtype=self.dtype if isinstance(value, float) else None)
        name = name or f"{self.scope}constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        if self._share and isinstance(value, float):
            self._shared[value] = name
        return name

    def weight(self, name: str, value: Array) -> str:
        return self.constant(np.asarray(value, dtype=self.dtype), name)

    def op(self, op_type: str, *inputs: str | Constant, into: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        return self.ops(op_type, 1, *inputs, into=into, domain=domain, **attributes)[0]

    def ops(
        self, op_type: str, outputs: int, *inputs: str | Constant, into: str = "", domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node and return the names of its outputs."""
        node = f"{self.scope}{op_type}_{len(self._nodes)}"
        names = [into] if into else [f"{node}_output_{i}" for i in range(outputs)]
        values = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        self._nodes.append(helper.make_node(op_type, values, names, node, domain=domain or None, **attributes))
        self._domains.add(domain)
        return names

    def linear(self, x: str, name: str, weight: Array, bias: Array | None = None) -> str:
        """x @ weight + bias, the way exporters write nn.Linear over more than two dimensions."""
        product = self.op("MatMul", x, self.weight(f"{name}.weight", weight))
        return product if bias is None else self.op("Add", product, self.weight(f"{name}.bias", bias))

    def reduce(self, op_type: str, x: str, axes: list[int]) -> str:
        """A reduction that keeps its dimensions; the axes became an input at opset 18, for ReduceSum at 13."""
        if self.opset >= 18 or op_type == "ReduceSum":
            return self.op(op_type, x, axes, keepdims=1)
        return self.op(op_type, x, axes=axes, keepdims=1)

    def scale(self, x: str, factor: float) -> str:
        return self.op("Mul", x, factor)

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, "network", self._inputs, self._outputs, self._constants)
        others = sorted(self._domains - {""})
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in others)]
        ir_version = max(8, helper.find_min_ir_version_for(imports[:1]))
        return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


# --- one activation between two linear layers ---


def onnx_mlp(
    activation: Write, opset: int = 18, dtype: DTypeLike = np.float32, *, gated: Gate | None = None, seed: int = 0
) -> onnx.ModelProto:
    """Build x -> linear -> activation [-> times a second projection] -> linear -> y.

    Args:
        activation: writes the activation's nodes and returns the name of their result.
        opset: version of the standard domain.
        dtype: float32 or float16, of x, y and the weights.
        gated: None, or where the other factor comes from: a MatMul of its own, the second half of a packed one, the
            first half of it (the gate second, as nn.GLU has it), or its odd columns.
        seed: of the weights.
    """
    graph = Graph(opset, dtype)
    x = graph.input("x", ["batch", "tokens", WIDTH])
    rng = np.random.default_rng(seed)
    hidden = _gated(graph, x, activation, gated, rng) if gated else activation(graph, _linear(graph, x, "up", rng))
    graph.output(graph.linear(hidden, "down", rng.standard_normal((HIDDEN, OUT))), "y", 3)
    return graph.model()


def _weights(rng: np.random.Generator) -> tuple[Array, Array]:
    """Weight and bias that map inputs in [-1, 1] to values in [-RANGE, RANGE]."""
    weight = rng.uniform(-1, 1, (WIDTH, HIDDEN))
    return (RANGE - 1) * weight / np.abs(weight).sum(axis=0), rng.uniform(-1, 1, HIDDEN)


def _linear(graph: Graph, x: str, name: str, rng: np.random.Generator) -> str:
    return graph.linear(x, name, *_weights(rng))


def _gated(graph: Graph, x: str, activation: Write, gated: Gate, rng: np.random.Generator) -> str:
    if gated == "matmul":
        gate = _linear(graph, x, "gate", rng)
        return graph.op("Mul", activation(graph, gate), _linear(graph, x, "up", rng))
    gate, up = _packed(graph, x, gated, rng)
    return graph.op("Mul", up, activation(graph, gate))


def _packed(graph: Graph, x: str, gated: Gate, rng: np.random.Generator) -> tuple[str, str]:
    """The gate and the other factor out of one MatMul named `up`."""
    (gate_weight, gate_bias), (up_weight, up_bias) = _weights(rng), _weights(rng)
    weight, bias = np.stack([gate_weight, up_weight]), np.stack([gate_bias, up_bias])
    if gated == "interleaved":
        packed = graph.linear(x, "up", weight.transpose(1, 2, 0).reshape(WIDTH, -1), bias.T.reshape(-1))
        even, odd = (graph.op("Slice", packed, [start], [2 * HIDDEN], [-1], [2]) for start in (0, 1))
        return even, odd
    order = [1, 0] if gated == "split_gate_second" else [0, 1]
    packed = graph.linear(x, "up", np.concatenate(list(weight[order]), axis=1), bias[order].reshape(-1))
    halves = graph.ops("Split", 2, packed, [HIDDEN, HIDDEN], axis=-1)
    return halves[order[0]], halves[order[1]]


def mlp_reference(
    model: onnx.ModelProto, formula: Callable[[Array], Array], x: Array, gated: Gate | None = None
) -> tuple[Array, Array]:
    """Return y of an `onnx_mlp` in float64 with its stored weights, and the magnitudes that rounding scales with."""
    w = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    up = x.astype(np.float64) @ w["up.weight"] + w["up.bias"]
    if gated is None:
        hidden = formula(up)
    elif gated == "matmul":
        hidden = formula(x.astype(np.float64) @ w["gate.weight"] + w["gate.bias"]) * up
    elif gated == "interleaved":
        hidden = formula(up[..., 0::2]) * up[..., 1::2]
    else:
        first, second = np.split(up, 2, axis=-1)
        hidden = formula(second) * first if gated == "split_gate_second" else formula(first) * second
    return hidden @ w["down.weight"], (1 + RANGE + np.abs(hidden)) @ np.abs(w["down.weight"])


# --- the spellings ---


@dataclass(frozen=True)
class Spelling:
    """One way to write one activation.

    Attributes:
        write: writes the nodes.
        kind: the catalogue's name of the function, `prelu` for leaky_relu with a slope per channel, or `scalar` where
            the catalogue has no name.
        parameters: what the catalogue's formula takes after x; an array [HIDDEN] where it differs per channel.
        formula: f in float64 where the catalogue has none.
        since: the first opset that has the ops.
        until: the last opset at which ONNX Runtime runs them.
        dtypes: the float types that the spelling exists in.
    """

    write: Write
    kind: str
    parameters: tuple[float | Array, ...] = ()
    formula: Callable[[Array], Array] | None = None
    since: int = 13
    until: int = OPSETS[-1]
    dtypes: tuple[str, ...] = ("float32", "float16")

    @property
    def opsets(self) -> tuple[int, ...]:
        """Every opset that the spelling can be built for."""
        return tuple(opset for opset in OPSETS if self.since <= opset <= self.until)

    def __call__(self, x: Array) -> Array:
        """Evaluate f in float64; the last dimension of x is the channels."""
        return self.formula(x) if self.formula else ACTIVATIONS[self.kind].formula(x, *self.parameters)

    def model(self, opset: int = 18, dtype: DTypeLike | None = None, *, gated: Gate | None = None) -> onnx.ModelProto:
        """Build the network at this opset, or at the nearest one that has the spelling."""
        return onnx_mlp(self.write, min(max(opset, self.since), self.until), dtype or self.dtypes[0], gated=gated)


def unary(op_type: str, **attributes: Any) -> Write:
    """A single node."""
    return lambda g, x: g.op(op_type, x, **attributes)


def chain(*steps: tuple[str, Constant] | str) -> Write:
    """Nodes in a row, each with the result before it first and, where given, a constant second."""

    def write(g: Graph, x: str) -> str:
        for step in steps:
            x = g.op(step, x) if isinstance(step, str) else g.op(step[0], x, step[1])
        return x

    return write


def times_x(inner: Write, *, x_first: bool = True) -> Write:
    """x * inner(x)."""

    def write(g: Graph, x: str) -> str:
        value = inner(g, x)
        return g.op("Mul", x, value) if x_first else g.op("Mul", value, x)

    return write


def after(first: Write, second: Write) -> Write:
    """second(first(x))."""
    return lambda g, x: second(g, first(g, x))


def _gelu_legacy(g: Graph, x: str) -> str:
    # torch.onnx's legacy exporter, and dynamo at opset 18
    phi = g.op("Add", g.op("Erf", g.op("Div", x, 1.4142135381698608)), 1.0)
    return g.op("Mul", g.op("Mul", x, phi), 0.5)


def _gelu_half_first(g: Graph, x: str) -> str:
    half = g.op("Mul", 0.5, x)
    return g.op("Mul", half, g.op("Add", 1.0, g.op("Erf", g.op("Mul", x, 0.7071067811865476))))


def _gelu_half_inside(g: Graph, x: str) -> str:
    phi = chain(("Div", 2**0.5), "Erf", ("Mul", 0.5), ("Add", 0.5))(g, x)
    return g.op("Mul", phi, x)


def _gelu_minus_tail(g: Graph, x: str) -> str:
    tail = g.op("Sub", 1.0, g.op("Erf", g.op("Div", x, g.op("Sqrt", 2.0))))
    return g.op("Sub", x, g.op("Mul", x, g.op("Div", tail, 2.0)))


def _gelu_erf_of_negative(g: Graph, x: str) -> str:
    lower = chain("Neg", ("Mul", 0.5**0.5), "Erf")(g, x)
    return g.op("Mul", g.op("Mul", x, 0.5), g.op("Sub", 1.0, lower))


def _gelu_in_float32(g: Graph, x: str) -> str:
    wide = g.op("Cast", x, to=TensorProto.FLOAT)
    scaled = g.op("Erf", g.op("Div", wide, np.float32(2**0.5)))
    phi = g.op("Mul", g.op("Add", scaled, np.float32(1)), np.float32(0.5))
    return g.op("Cast", g.op("Mul", wide, phi), to=helper.np_dtype_to_tensor_dtype(g.dtype))


def _tanh_gelu_tail(g: Graph, x: str, inner: str) -> str:
    tanh = g.op("Tanh", g.op("Mul", inner, 0.7978845608028654))
    return g.op("Mul", g.op("Mul", x, 0.5), g.op("Add", tanh, 1.0))


def _gelu_new(g: Graph, x: str) -> str:
    # transformers' NewGELUActivation
    return _tanh_gelu_tail(g, x, g.op("Add", x, g.op("Mul", g.op("Pow", x, 3.0), 0.044715)))


def _gelu_tanh_products(g: Graph, x: str) -> str:
    cube = g.op("Mul", x, g.op("Mul", x, x))
    return _tanh_gelu_tail(g, x, g.op("Add", g.op("Mul", 0.044715, cube), x))


def _gelu_fast(g: Graph, x: str) -> str:
    # transformers' FastGELUActivation: the polynomial factored
    inner = g.op("Mul", g.op("Mul", x, 0.7978845608), g.op("Add", g.op("Mul", g.op("Mul", x, 0.044715), x), 1.0))
    return g.op("Mul", g.op("Mul", x, 0.5), g.op("Add", 1.0, g.op("Tanh", inner)))


def _gelu_tanh_by_sigmoid(g: Graph, x: str) -> str:
    inner = g.op("Add", x, g.op("Mul", g.op("Pow", x, 3.0), 0.044715))
    return g.op("Mul", x, g.op("Sigmoid", g.op("Mul", inner, 1.5957691216057308)))


def _sigmoid_by_exp(g: Graph, x: str) -> str:
    return g.op("Reciprocal", g.op("Add", g.op("Exp", g.op("Neg", x)), 1.0))


def _silu_by_division(g: Graph, x: str) -> str:
    return g.op("Div", x, g.op("Add", 1.0, g.op("Exp", g.op("Neg", x))))


def _softplus_threshold(g: Graph, x: str) -> str:
    # torch's nn.Softplus: the identity above the threshold
    return g.op("Where", g.op("Greater", x, 20.0), x, g.op("Softplus", x))


def _softplus_by_exp(g: Graph, x: str) -> str:
    return g.op("Log", g.op("Add", g.op("Exp", x), 1.0))


def _softplus_stable(g: Graph, x: str) -> str:
    tail = g.op("Log", g.op("Add", g.op("Exp", g.op("Neg", g.op("Abs", x))), 1.0))
    return g.op("Add", g.op("Max", x, 0.0), tail)


def _mish_by_exp(g: Graph, x: str) -> str:
    # tanh(log(1 + e^x)) = w / (w + 2) with w = e^x (e^x + 2)
    e = g.op("Exp", x)
    w = g.op("Mul", e, g.op("Add", e, 2.0))
    return g.op("Mul", x, g.op("Div", w, g.op("Add", w, 2.0)))


def _square(inner: Write) -> Write:
    def write(g: Graph, x: str) -> str:
        value = inner(g, x)
        return g.op("Mul", value, value)

    return write


def _relu_by_abs(g: Graph, x: str) -> str:
    return g.op("Mul", g.op("Add", x, g.op("Abs", x)), 0.5)


def _where_positive(negative: Write) -> Write:
    return lambda g, x: g.op("Where", g.op("Greater", x, 0.0), x, negative(g, x))


def _clip(low: float | None, high: float | None) -> Write:
    def write(g: Graph, x: str) -> str:
        bounds = ["" if bound is None else bound for bound in (low, high)]
        return g.op("Clip", x, *(bounds if high is not None else bounds[:1]))

    return write


def _hard_sigmoid_clip(g: Graph, x: str) -> str:
    return g.op("Div", _clip(0.0, 6.0)(g, g.op("Add", x, 3.0)), 6.0)


def _hardswish_mobilenet(g: Graph, x: str) -> str:
    # torchvision before nn.Hardswish: x * relu6(x + 3) / 6
    return g.op("Div", g.op("Mul", x, _clip(0.0, 6.0)(g, g.op("Add", x, 3.0))), 6.0)


def _swish(beta: Constant) -> Write:
    return lambda g, x: g.op("Mul", x, g.op("Sigmoid", g.op("Mul", _typed(g, beta), x)))


def _typed(g: Graph, value: Constant) -> Constant:
    return value.astype(g.dtype) if isinstance(value, np.ndarray) else value


def _prelu(slope: Constant) -> Write:
    return lambda g, x: g.op("PRelu", x, _typed(g, slope))


def _prelu_by_relu(slope: Array) -> Write:
    def write(g: Graph, x: str) -> str:
        negative = g.op("Mul", _typed(g, -slope), g.op("Relu", g.op("Neg", x)))
        return g.op("Add", g.op("Relu", x), negative)

    return write


def _prelu_formula(x: Array) -> Array:
    return np.where(x > 0, x, _SLOPES.astype(np.float64) * x)


def _expm1(g: Graph, x: str) -> str:
    return g.op("Sub", g.op("Exp", x), 1.0)


def _celu_by_exp(alpha: float) -> Write:
    def write(g: Graph, x: str) -> str:
        lower = g.scale(_expm1(g, g.op("Div", x, alpha)), alpha)
        return g.op("Add", g.op("Max", x, 0.0), g.op("Min", lower, 0.0))

    return write


def _tanh_by_sigmoid(g: Graph, x: str) -> str:
    return g.op("Sub", g.op("Mul", g.op("Sigmoid", g.op("Mul", x, 2.0)), 2.0), 1.0)


def _polyrelu_powers(g: Graph, x: str) -> str:
    # arXiv 2411.03884: weight[0] is the cube's
    u = g.op("Relu", x)
    terms = [g.scale(g.op("Pow", u, float(power)), weight) for power, weight in ((3, 0.25), (2, -0.5), (1, 0.75))]
    return g.op("Add", g.op("Sum", *terms), 0.125)


def _polyrelu_horner(g: Graph, x: str) -> str:
    u = g.op("Relu", x)
    value = g.op("Add", g.op("Mul", u, 0.25), -0.5)
    return g.op("Add", g.op("Mul", g.op("Add", g.op("Mul", value, u), 0.75), u), 0.125)


def _xielu(g: Graph, x: str) -> str:
    # arXiv 2411.13010 as transformers writes it, with ap = 0.7, an = 0.9, b = 0.5
    positive = g.op("Add", g.scale(g.op("Mul", x, x), 0.7), g.scale(x, 0.5))
    curve = g.op("Sub", _expm1(g, g.op("Min", x, -1e-6)), x)
    negative = g.op("Add", g.scale(curve, 0.9), g.scale(x, 0.5))
    return g.op("Where", g.op("Greater", x, 0.0), positive, negative)


# The PAU of arXiv 1907.06732, degrees 5 and 4: coefficients of a Leaky ReLU fit.
_P = (0.02996348, 0.61690165, 2.37539147, 3.06608078, 1.52474449, 0.25281987)
_Q = (1.19160814, 4.40811795, 0.91111034, 0.34885983)


_P_C, _Q_C = (0.02, 0.61, 2.4, 3.1, 1.5, 0.25), (0.3, -1.2, 4.4, 0.9, 0.35)
_ONE: Mapping[str, float] = {"a": 1.0, "b": 1.0, "c": 0.1}
Version: TypeAlias = Literal["a", "b", "c"]


def _rational(version: Version) -> Write:
    """P / Q in powers, with Q = 1 + sum |b_i x^i|, 1 + |sum b_i x^i|, or 0.1 + |sum b_i x^i| with a b_0."""
    p, q = (_P_C, _Q_C) if version == "c" else (_P, (0.0, *_Q))

    def write(g: Graph, x: str) -> str:
        powers = [x, *(g.op("Pow", x, float(i)) for i in range(2, 6))]
        above = g.op("Add", g.op("Sum", *(g.scale(v, c) for v, c in zip(powers, p[1:], strict=True))), p[0])
        terms = [g.scale(v, c) for v, c in zip(powers, q[1:], strict=False)]
        if version == "a":
            below = g.op("Sum", *(g.op("Abs", term) for term in terms))
        else:
            total = g.op("Sum", *terms)
            below = g.op("Abs", g.op("Add", total, q[0]) if version == "c" else total)
        return g.op("Div", above, g.op("Add", below, _ONE[version]))

    return write


def _horner(g: Graph, x: str, coefficients: Sequence[float]) -> str:
    *lower, lead = coefficients
    value = g.op("Add", g.scale(x, lead), lower[-1])
    for coefficient in reversed(lower[:-1]):
        value = g.op("Add", g.op("Mul", value, x), coefficient)
    return value


def _rational_horner(version: Version) -> Write:
    """The same by Horner's rule, |x| as max(x, -x), with a reciprocal for the division."""
    p, q = (_P_C, _Q_C) if version == "c" else (_P, (0.0, *_Q))

    def write(g: Graph, x: str) -> str:
        inner = g.op("Max", x, g.op("Neg", x)) if version == "a" else x
        below = _horner(g, inner, (q[0] + 1.0, *q[1:]) if version == "a" else q)
        if version != "a":
            below = g.op("Add", _ONE[version], g.op("Abs", below))
        return g.op("Mul", _horner(g, x, p), g.op("Reciprocal", below))

    return write


def _in_float32(write: Write) -> Write:
    """Compute in float32 between two casts, whatever the graph's type."""

    def wide(g: Graph, x: str) -> str:
        own, g.dtype = g.dtype, np.dtype(np.float32)
        y = write(g, g.op("Cast", x, to=TensorProto.FLOAT))
        g.dtype = own
        return g.op("Cast", y, to=helper.np_dtype_to_tensor_dtype(own))

    return wide


_APL_SLOPES, _APL_HINGES = (-0.125, 0.25), (-0.5, 1.0)


def _apl(clamp: Write) -> Write:
    """max(0, x) + sum_s a_s max(0, b_s - x) (arXiv 1412.6830), max(0, x) written in one way or another."""

    def write(g: Graph, x: str) -> str:
        hinges = zip(_APL_SLOPES, _APL_HINGES, strict=True)
        terms = [g.scale(clamp(g, g.op("Sub", hinge, x)), slope) for slope, hinge in hinges]
        return g.op("Sum", clamp(g, x), *terms)

    return write


def _apl_branches(g: Graph, x: str) -> str:
    """The same as the line that holds on each of its pieces."""
    lines = [g.scale(x, -0.125), g.op("Add", g.scale(x, -0.25), 0.25), g.op("Add", g.scale(x, 0.75), 0.25), x]
    value = g.op("Add", lines[0], 0.3125)
    for knot, line in zip((-0.5, 0.0, 1.0), lines[1:], strict=True):
        value = g.op("Where", g.op("Less", x, knot), value, line)
    return value


def _apl_per_channel(g: Graph, x: str) -> str:
    hinge = g.op("Relu", g.op("Sub", _BETAS.astype(g.dtype), x))
    return g.op("Add", g.op("Relu", x), g.op("Mul", hinge, _SLOPES.astype(g.dtype)))


def _acon_c(p1: Constant, p2: Constant, beta: float) -> Write:
    """(p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x (arXiv 2009.04759)."""

    def write(g: Graph, x: str) -> str:
        difference = g.op("Sub", _typed(g, p1), _typed(g, p2))
        scaled = g.op("Mul", difference, x)
        return g.op("Add", g.op("Mul", scaled, g.op("Sigmoid", g.scale(scaled, beta))), g.op("Mul", _typed(g, p2), x))

    return write


def _acon_c_by_exp(g: Graph, x: str) -> str:
    # p1 = 1.25, p2 = 0.25, beta = 0.5: a mean of p1 x and p2 x, weighted by 1 and e^-(x / 2)
    weight = g.op("Exp", g.scale(x, -0.5))
    mean = g.op("Add", g.scale(x, 1.25), g.op("Mul", g.scale(x, 0.25), weight))
    return g.op("Div", mean, g.op("Add", weight, 1.0))


def _learnable(g: Graph, x: str) -> str:
    # arXiv 2605.26647: a sum of known activations with scalar weights
    gelu, silu = _gelu_legacy(g, x), times_x(unary("Sigmoid"))(g, x)
    weighted = zip((0.5, 0.75, -0.25, 0.3), (gelu, silu, g.op("Tanh", x), x), strict=True)
    return g.op("Sum", *(g.scale(value, weight) for weight, value in weighted))


def _learnable_in_place(g: Graph, x: str) -> str:
    """The same, each term added to what is there, with the halves of gelu taken together."""
    total = g.scale(x, 0.3)
    total = g.op("Add", total, g.op("Mul", g.scale(x, 0.25), g.op("Add", g.op("Erf", g.scale(x, 0.5**0.5)), 1.0)))
    total = g.op("Sub", total, g.scale(g.op("Tanh", x), 0.25))
    return g.op("Add", total, g.op("Div", g.scale(x, 0.75), g.op("Add", g.op("Exp", g.op("Neg", x)), 1.0)))


def _learnable_formula(x: Array) -> Array:
    return 0.5 * x * ndtr(x) + 0.75 * x * expit(x) - 0.25 * np.tanh(x) + 0.3 * x


def _snake(g: Graph, x: str) -> str:
    # arXiv 2006.08195: x + sin(a x)^2 / a with a = 2
    return g.op("Add", x, g.op("Div", g.op("Pow", g.op("Sin", g.op("Mul", x, 2.0)), 2.0), 2.0))


def _serf(g: Graph, x: str) -> str:
    # arXiv 2108.09598
    return g.op("Mul", x, g.op("Erf", g.op("Softplus", x)))


def _clamped_silu(g: Graph, x: str) -> str:
    # the gate of gpt-oss: x' = min(x, 7), x' sigmoid(1.702 x')
    clamped = _clip(None, 3.0)(g, x)
    return g.op("Mul", clamped, g.op("Sigmoid", g.op("Mul", clamped, 1.702)))


def _clamped_silu_formula(x: Array) -> Array:
    return np.minimum(x, 3) * expit(1.702 * np.minimum(x, 3))


def _laplace(g: Graph, x: str) -> str:
    # transformers' LaplaceActivation
    inner = g.op("Div", g.op("Sub", x, 0.707107), 0.282095 * 2**0.5)
    return g.op("Mul", g.op("Add", g.op("Erf", inner), 1.0), 0.5)


_CHANNELS = np.arange(HIDDEN)
_SLOPES = np.asarray(0.05 + 0.03 * _CHANNELS, dtype=np.float16)
_BETAS = np.asarray(0.5 + 0.125 * _CHANNELS, dtype=np.float16)
_DYT_SCALE = np.asarray(1.0 - 0.0625 * _CHANNELS, dtype=np.float16)
_SIGMOID: Write = unary("Sigmoid")

SPELLINGS: Mapping[str, Spelling] = {
    "gelu_legacy": Spelling(_gelu_legacy, "gelu"),
    "gelu_half_first": Spelling(_gelu_half_first, "gelu"),
    "gelu_half_inside": Spelling(_gelu_half_inside, "gelu"),
    "gelu_minus_tail": Spelling(_gelu_minus_tail, "gelu"),
    "gelu_erf_of_negative": Spelling(_gelu_erf_of_negative, "gelu"),
    "gelu_in_float32": Spelling(_gelu_in_float32, "gelu", dtypes=("float16", "float32")),
    "gelu_op": Spelling(unary("Gelu"), "gelu", since=20),
    "gelu_microsoft": Spelling(unary("Gelu", domain="com.microsoft"), "gelu", dtypes=("float32",)),
    "gelu_new": Spelling(_gelu_new, "gelu_tanh"),
    "gelu_tanh_products": Spelling(_gelu_tanh_products, "gelu_tanh"),
    "gelu_fast": Spelling(_gelu_fast, "gelu_tanh"),
    "gelu_tanh_by_sigmoid": Spelling(_gelu_tanh_by_sigmoid, "gelu_tanh"),
    "gelu_tanh_op": Spelling(unary("Gelu", approximate="tanh"), "gelu_tanh", since=20),
    "gelu_10": Spelling(after(_gelu_legacy, _clip(-10.0, 10.0)), "gelu_10"),
    "quick_gelu": Spelling(times_x(chain(("Mul", 1.702), "Sigmoid")), "quick_gelu"),
    "quick_gelu_constant_first": Spelling(_swish(1.702), "quick_gelu"),
    "quick_gelu_microsoft": Spelling(
        unary("QuickGelu", domain="com.microsoft", alpha=1.702), "quick_gelu", dtypes=("float32",)
    ),
    "silu": Spelling(times_x(_SIGMOID), "silu"),
    "silu_x_second": Spelling(times_x(_SIGMOID, x_first=False), "silu"),
    "silu_by_division": Spelling(_silu_by_division, "silu"),
    "silu_by_exp": Spelling(times_x(_sigmoid_by_exp), "silu"),
    # ONNX Runtime 1.31 has no kernel for Swish in a model of opset 25.
    "silu_op": Spelling(unary("Swish"), "silu", since=24, until=24),
    "swish_beta": Spelling(_swish(1.5), "swish", (1.5,)),
    "swish_beta_op": Spelling(unary("Swish", alpha=1.5), "swish", (1.5,), since=24, until=24),
    "swish_beta_per_channel": Spelling(_swish(_BETAS), "swish", (_BETAS.astype(np.float64),)),
    "mish_decomposed": Spelling(times_x(chain("Softplus", "Tanh")), "mish"),
    "mish_threshold": Spelling(times_x(after(_softplus_threshold, unary("Tanh"))), "mish"),
    "mish_log_exp": Spelling(times_x(after(_softplus_by_exp, unary("Tanh")), x_first=False), "mish"),
    "mish_by_exp": Spelling(_mish_by_exp, "mish", dtypes=("float32",)),
    "mish_op": Spelling(unary("Mish"), "mish", since=18),
    "relu": Spelling(unary("Relu"), "relu"),
    "relu_max": Spelling(chain(("Max", 0.0)), "relu"),
    "relu_clip": Spelling(_clip(0.0, None), "relu"),
    "relu_where": Spelling(_where_positive(chain(("Mul", 0.0))), "relu"),
    "relu_by_abs": Spelling(_relu_by_abs, "relu"),
    "relu2_pow": Spelling(chain("Relu", ("Pow", 2.0)), "relu2"),
    "relu2_integer_exponent": Spelling(chain("Relu", ("Pow", 2)), "relu2"),
    "relu2_mul": Spelling(_square(unary("Relu")), "relu2"),
    "relu2_max_mul": Spelling(_square(chain(("Max", 0.0))), "relu2"),
    "relu6_clip": Spelling(_clip(0.0, 6.0), "relu6"),
    "relu6_min_max": Spelling(chain(("Max", 0.0), ("Min", 6.0)), "relu6"),
    "relu6_relu_min": Spelling(chain("Relu", ("Min", 6.0)), "relu6"),
    "hardtanh": Spelling(_clip(-1.0, 1.0), "hardtanh", (-1.0, 1.0)),
    "hardtanh_min_max": Spelling(chain(("Min", 2.0), ("Max", -0.5)), "hardtanh", (-0.5, 2.0)),
    "leaky_relu": Spelling(unary("LeakyRelu", alpha=0.125), "leaky_relu", (0.125,)),
    "leaky_relu_max": Spelling(lambda g, x: g.op("Max", x, g.op("Mul", x, 0.125)), "leaky_relu", (0.125,)),
    "leaky_relu_where": Spelling(_where_positive(chain(("Mul", 0.125))), "leaky_relu", (0.125,)),
    "prelu_scalar": Spelling(_prelu(0.25), "leaky_relu", (0.25,)),
    "prelu_per_channel": Spelling(_prelu(_SLOPES), "prelu", formula=_prelu_formula),
    "prelu_by_relu": Spelling(_prelu_by_relu(_SLOPES), "prelu", formula=_prelu_formula),
    "elu": Spelling(unary("Elu", alpha=0.75), "elu", (0.75,)),
    "elu_where": Spelling(_where_positive(_expm1), "elu", (1.0,)),
    "celu": Spelling(unary("Celu", alpha=0.5), "celu", (0.5,), dtypes=("float32",)),
    "celu_by_exp": Spelling(_celu_by_exp(0.5), "celu", (0.5,)),
    "selu": Spelling(unary("Selu"), "selu"),
    "softplus": Spelling(unary("Softplus"), "softplus"),
    "softplus_threshold": Spelling(_softplus_threshold, "softplus"),
    "softplus_by_exp": Spelling(_softplus_by_exp, "softplus"),
    "softplus_stable": Spelling(_softplus_stable, "softplus"),
    "sqrt_softplus": Spelling(chain("Softplus", "Sqrt"), "sqrt_softplus"),
    "softsign": Spelling(unary("Softsign"), "softsign"),
    "softsign_div": Spelling(lambda g, x: g.op("Div", x, g.op("Add", g.op("Abs", x), 1.0)), "softsign"),
    "sigmoid": Spelling(_SIGMOID, "sigmoid"),
    "sigmoid_by_exp": Spelling(_sigmoid_by_exp, "sigmoid"),
    "sigmoid_by_tanh": Spelling(chain(("Mul", 0.5), "Tanh", ("Mul", 0.5), ("Add", 0.5)), "sigmoid"),
    "logsigmoid": Spelling(chain("Sigmoid", "Log"), "logsigmoid"),
    "logsigmoid_softplus": Spelling(chain("Neg", "Softplus", "Neg"), "logsigmoid"),
    "tanh": Spelling(unary("Tanh"), "tanh"),
    "tanh_by_sigmoid": Spelling(_tanh_by_sigmoid, "tanh"),
    "tanhshrink": Spelling(lambda g, x: g.op("Sub", x, g.op("Tanh", x)), "tanhshrink"),
    "hard_sigmoid": Spelling(unary("HardSigmoid", alpha=1 / 6, beta=0.5), "hard_sigmoid"),
    "hard_sigmoid_clip": Spelling(_hard_sigmoid_clip, "hard_sigmoid"),
    "hardswish_op": Spelling(unary("HardSwish"), "hardswish", since=14),
    "hardswish_hard_sigmoid": Spelling(times_x(unary("HardSigmoid", alpha=1 / 6, beta=0.5)), "hardswish"),
    "hardswish_mobilenet": Spelling(_hardswish_mobilenet, "hardswish"),
    "hardswish_clip": Spelling(times_x(_hard_sigmoid_clip), "hardswish"),
    "laplace": Spelling(_laplace, "laplace"),
    "erf": Spelling(unary("Erf"), "erf"),
    "exp": Spelling(unary("Exp"), "exp"),
    "polyrelu_powers": Spelling(_polyrelu_powers, "polyrelu", (0.25, -0.5, 0.75, 0.125)),
    "polyrelu_horner": Spelling(_polyrelu_horner, "polyrelu", (0.25, -0.5, 0.75, 0.125)),
    "xielu": Spelling(_xielu, "xielu", (0.7, 0.9, 0.5)),
    "rational_a": Spelling(_rational("a"), "rational_a", (*_P, *_Q)),
    "rational_a_horner": Spelling(_rational_horner("a"), "rational_a", (*_P, *_Q)),
    "rational_b": Spelling(_rational("b"), "rational_b", (*_P, *_Q)),
    "rational_b_horner": Spelling(_rational_horner("b"), "rational_b", (*_P, *_Q)),
    "rational_b_in_float32": Spelling(_in_float32(_rational("b")), "rational_b", (*_P, *_Q)),
    "rational_c": Spelling(_rational("c"), "rational_c", (*_P_C, *_Q_C)),
    "rational_c_horner": Spelling(_rational_horner("c"), "rational_c", (*_P_C, *_Q_C)),
    "apl": Spelling(_apl(unary("Relu")), "apl", (*_APL_SLOPES, *_APL_HINGES)),
    "apl_max": Spelling(_apl(chain(("Max", 0.0))), "apl", (*_APL_SLOPES, *_APL_HINGES)),
    "apl_branches": Spelling(_apl_branches, "apl", (*_APL_SLOPES, *_APL_HINGES)),
    "apl_per_channel": Spelling(
        _apl_per_channel,
        "apl",
        (_SLOPES.astype(np.float64), _BETAS.astype(np.float64)),
        formula=lambda x: np.maximum(x, 0) + _SLOPES.astype(np.float64) * np.maximum(_BETAS - x, 0),
    ),
    "acon_c": Spelling(_acon_c(1.25, 0.25, 0.5), "acon_c", (1.25, 0.25, 0.5)),
    "acon_c_by_exp": Spelling(_acon_c_by_exp, "acon_c", (1.25, 0.25, 0.5), dtypes=("float32",)),
    "acon_c_per_channel": Spelling(
        _acon_c(_BETAS, _SLOPES, 1.5),
        "acon_c",
        (_BETAS.astype(np.float64), _SLOPES.astype(np.float64), np.full(HIDDEN, 1.5)),
    ),
    "dyt": Spelling(
        lambda g, x: g.op("Mul", g.op("Tanh", g.op("Mul", x, 0.5)), _DYT_SCALE.astype(g.dtype)),
        "dyt",
        (0.5,),
        formula=lambda x: _DYT_SCALE.astype(np.float64) * np.tanh(0.5 * x),
    ),
    "dyt_by_sigmoid": Spelling(chain("Sigmoid", ("Mul", 2.0), ("Sub", 1.0)), "dyt", (0.5,)),
    "derf": Spelling(chain(("Mul", 0.5), ("Add", 0.25), "Erf"), "derf", (0.5, 0.25)),
    "derf_by_division": Spelling(chain(("Add", 0.5), ("Div", 2.0), "Erf"), "derf", (0.5, 0.25)),
    "learnable": Spelling(_learnable, "la", (0.3, 0.5, 0.75, -0.25), formula=_learnable_formula),
    "learnable_in_place": Spelling(_learnable_in_place, "la", (0.3, 0.5, 0.75, -0.25), formula=_learnable_formula),
    "snake": Spelling(_snake, UNNAMED, formula=lambda x: x + np.sin(2 * x) ** 2 / 2),
    "serf": Spelling(_serf, UNNAMED, formula=lambda x: x * erf(np.logaddexp(0, x))),
    "clamped_silu": Spelling(_clamped_silu, UNNAMED, formula=_clamped_silu_formula),
}


# --- a deep network ---


def many_sites(n: int, opset: int = 18) -> onnx.ModelProto:
    """Build a chain of n activations between MatMuls of width 8: gelu, silu, mish and gated silu in turn.

    All layers share the initializers of their scalar constants, as exporters that fold duplicates make them.
    """
    graph = Graph(opset, share=True)
    value = graph.input("x", ["batch", "tokens", WIDTH])
    rng = np.random.default_rng(n)
    for layer in range(n):
        graph.scope = f"/layers.{layer}/"
        value = _layer(graph, value, layer, rng)
    graph.scope = ""
    graph.output(graph.linear(value, "head", rng.standard_normal((WIDTH, OUT))), "y", 3)
    return graph.model()


MANY_SITES_KINDS = ("gelu", "silu", "mish", "silu")
_SILU, _MISH = times_x(_SIGMOID), times_x(chain("Softplus", "Tanh"))
_MANY_SITES: tuple[Write, ...] = (_gelu_legacy, _SILU, _MISH, _SILU)


def _layer(graph: Graph, x: str, layer: int, rng: np.random.Generator) -> str:
    """One linear layer and its activation; every fourth is gated. An orthogonal weight keeps the values in range."""

    def linear(name: str) -> str:
        weight = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
        return graph.linear(x, f"layers.{layer}.{name}", 0.5 * weight, rng.uniform(-0.5, 0.5, WIDTH))

    activated = _MANY_SITES[layer % 4](graph, linear("gate" if layer % 4 == 3 else "up"))
    return graph.op("Mul", activated, linear("up")) if layer % 4 == 3 else activated


# --- the same activation in other surroundings ---


@dataclass(frozen=True)
class Surroundings:
    """A graph whose sites are plain but whose nodes around them are not the usual MatMul, Add.

    Attributes:
        build: makes the model for an opset.
        kinds: the sites, in the order of the graph.
        gated: whether each is the gate of a product.
    """

    build: Callable[[int], onnx.ModelProto]
    kinds: tuple[str, ...]
    gated: tuple[bool, ...] = (False,)


def _network(write: Write) -> Callable[[int], onnx.ModelProto]:
    """A network whose `write` maps x [batch, tokens, WIDTH] to its result [batch, tokens, OUT]."""

    def build(opset: int) -> onnx.ModelProto:
        g = Graph(opset)
        g.output(write(g, g.input("x", ["batch", "tokens", WIDTH])), "y", 3)
        return g.model()

    return build


def _up(g: Graph, x: str, name: str = "up") -> str:
    return _linear(g, x, name, np.random.default_rng(sum(name.encode())))


def _down(g: Graph, x: str, name: str = "down") -> str:
    weight = np.random.default_rng(sum(name.encode())).standard_normal((HIDDEN, OUT))
    return g.linear(x, name, weight)


def _of_gemm(g: Graph, x: str) -> str:
    rows = g.op("Reshape", x, [-1, WIDTH])
    weight, bias = _weights(np.random.default_rng(6))
    hidden = g.op("Gemm", rows, g.weight("up.weight", weight.T), g.weight("up.bias", bias), transB=1)
    return g.op("Reshape", _down(g, _gelu_legacy(g, hidden)), g.op("Concat", g.op("Shape", x, end=2), [OUT], axis=0))


def _behind_reshape(g: Graph, x: str) -> str:
    heads = g.op("Reshape", _up(g, x), [0, 0, 3, HIDDEN // 3])
    return _down(g, g.op("Reshape", _gelu_legacy(g, heads), [0, 0, HIDDEN]))


def _behind_norm(g: Graph, x: str) -> str:
    normed = g.op(
        "LayerNormalization", _up(g, x), g.weight("scale", np.ones(HIDDEN)), g.weight("shift", np.ones(HIDDEN))
    )
    return _down(g, _gelu_legacy(g, normed))


def _used_twice(g: Graph, x: str) -> str:
    hidden = _gelu_legacy(g, _up(g, x))
    return g.op("Add", _down(g, hidden), _down(g, hidden, "other"))


def _input_used_twice(g: Graph, x: str) -> str:
    up = _up(g, x)
    return g.op("Add", _down(g, _gelu_legacy(g, up)), _down(g, up, "other"))


def _ends_the_graph(g: Graph, x: str) -> str:
    return g.op("Sigmoid", _down(g, _up(g, x)))


def _two_in_series(g: Graph, x: str) -> str:
    return _down(g, g.op("Tanh", _gelu_legacy(g, _up(g, x))))


def _two_of_one_input(g: Graph, x: str) -> str:
    # A product of two functions of one value is a function of that value, and no gated FFN.
    up = _up(g, x)
    return _down(g, g.op("Mul", _gelu_legacy(g, up), g.op("Tanh", up)))


def _two_linears_of_one_activation(g: Graph, x: str) -> str:
    return g.op("Add", _down(g, _gelu_legacy(g, _up(g, x))), _down(g, _gelu_legacy(g, _up(g, x, "second")), "other"))


def _bilinear_sum(g: Graph, x: str) -> str:
    # tanh(x V) * sigmoid(x W), as WaveNet: both factors are functions
    return _down(g, g.op("Mul", g.op("Tanh", _up(g, x)), g.op("Sigmoid", _up(g, x, "gate"))))


def _residual(g: Graph, x: str) -> str:
    up = _up(g, x)
    return _down(g, g.op("Add", up, _gelu_legacy(g, _up(g, x, "inner"))))


def _computed_constants(g: Graph, x: str) -> str:
    # The root of two and the half come out of nodes over constants, as unfolded exports leave them.
    up = _up(g, x)
    root = g.op("Cast", g.op("Sqrt", np.float64(2.0)), to=TensorProto.FLOAT)
    phi = g.op("Add", g.op("Erf", g.op("Div", up, root)), g.op("Reshape", 1.0, [1, 1, 1]))
    half = g.op("ConstantOfShape", [1], value=numpy_helper.from_array(np.array([0.5], dtype=np.float32)))
    return _down(g, g.op("Mul", g.op("Mul", up, phi), half))


def _of_conv(channels: Write) -> Callable[[int], onnx.ModelProto]:
    """Conv, BatchNormalization, activation, Conv over [batch, WIDTH, 6, 6]."""

    def build(opset: int) -> onnx.ModelProto:
        g = Graph(opset)
        rng = np.random.default_rng(7)
        x = g.input("x", ["batch", WIDTH, 6, 6])
        up = g.op("Conv", x, g.weight("up.weight", rng.standard_normal((HIDDEN, WIDTH, 3, 3)) / 8), pads=[1, 1, 1, 1])
        rows = (np.ones(HIDDEN), np.zeros(HIDDEN), np.zeros(HIDDEN), np.linspace(0.5, 2, HIDDEN))
        statistics = [g.weight(f"norm.{i}", row) for i, row in enumerate(rows)]
        hidden = channels(g, g.op("BatchNormalization", up, *statistics))
        g.output(g.op("Conv", hidden, g.weight("down.weight", rng.standard_normal((OUT, HIDDEN, 1, 1)))), "y", 4)
        return g.model()

    return build


def _constants_as_nodes(opset: int) -> onnx.ModelProto:
    """The scalar constants are Constant nodes, as the legacy exporter writes them, and no node has a name."""
    model = onnx_mlp(_gelu_legacy, opset)
    graph = model.graph
    scalars = [t for t in graph.initializer if not t.dims]
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in scalars] + list(graph.node)
    for tensor in scalars:
        graph.initializer.remove(tensor)
    del graph.node[:]
    graph.node.extend(nodes)
    for node in graph.node:
        node.name = ""
    return model


def _weights_as_inputs(opset: int) -> onnx.ModelProto:
    """Every initializer is also a graph input, with a default that the caller may override, as in models of IR 3."""
    model = onnx_mlp(_gelu_legacy, opset)
    declared = (helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer)
    model.graph.input.extend(declared)
    return model


SURROUNDINGS: Mapping[str, Surroundings] = {
    "gemm": Surroundings(_network(_of_gemm), ("gelu",)),
    "conv": Surroundings(_of_conv(_gelu_legacy), ("gelu",)),
    "conv_prelu": Surroundings(_of_conv(_prelu(_SLOPES[:, None, None])), ("prelu",)),
    "reshape": Surroundings(_network(_behind_reshape), ("gelu",)),
    "norm": Surroundings(_network(_behind_norm), ("gelu",)),
    "output_used_twice": Surroundings(_network(_used_twice), ("gelu",)),
    "input_used_twice": Surroundings(_network(_input_used_twice), ("gelu",)),
    "graph_output": Surroundings(_network(_ends_the_graph), ("sigmoid",)),
    "two_in_series": Surroundings(_network(_two_in_series), (UNNAMED,)),
    "two_of_one_input": Surroundings(_network(_two_of_one_input), (UNNAMED,)),
    "two_branches": Surroundings(_network(_two_linears_of_one_activation), ("gelu", "gelu"), (False, False)),
    "wavenet": Surroundings(_network(_bilinear_sum), ("tanh", "sigmoid"), (True, False)),
    "residual": Surroundings(_network(_residual), ("gelu",)),
    "computed_constants": Surroundings(_network(_computed_constants), ("gelu",)),
    "constants_as_nodes": Surroundings(_constants_as_nodes, ("gelu",)),
    "weights_as_inputs": Surroundings(_weights_as_inputs, ("gelu",)),
}


# --- what is not a site ---


@dataclass(frozen=True)
class NotSite:
    """A graph with nonlinear elementwise nodes that are no activation.

    Attributes:
        build: makes the model for an opset.
        why: what disqualifies the region.
        kinds: the plain activations that the same graph has nevertheless; none of them is one factor of a gated FFN.
        forbidden: op types of which no node may be part of a site.
    """

    build: Callable[[int], onnx.ModelProto]
    why: str
    kinds: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()


def _between_linears(write: Write) -> Callable[[int], onnx.ModelProto]:
    return lambda opset: onnx_mlp(write, opset)


def _layer_norm(g: Graph, x: str) -> str:
    # torch.onnx's legacy exporter below opset 17
    centred = g.op("Sub", x, g.reduce("ReduceMean", x, [-1]))
    variance = g.reduce("ReduceMean", g.op("Pow", centred, 2.0), [-1])
    normed = g.op("Div", centred, g.op("Sqrt", g.op("Add", variance, 1e-12)))
    scaled = g.op("Mul", normed, g.weight("norm.weight", np.linspace(0.5, 1.5, HIDDEN)))
    return g.op("Add", scaled, g.weight("norm.bias", np.linspace(-1, 1, HIDDEN)))


def _rms(g: Graph, x: str) -> str:
    mean = g.reduce("ReduceMean", g.op("Pow", x, 2.0), [-1])
    return g.op("Mul", x, g.op("Reciprocal", g.op("Sqrt", g.op("Add", mean, 1e-6))))


def _rms_norm(g: Graph, x: str) -> str:
    return g.op("Mul", g.weight("norm.weight", np.linspace(0.5, 1.5, HIDDEN)), _rms(g, x))


def _l2_norm(g: Graph, x: str) -> str:
    length = g.op("Sqrt", g.reduce("ReduceSum", g.op("Mul", x, x), [-1]))
    return g.op("Div", x, g.op("Max", length, 1e-12))


def _heads(g: Graph, x: str) -> str:
    """[batch, tokens, HIDDEN] -> [batch, 2, tokens, HIDDEN / 2]."""
    return g.op("Transpose", g.op("Reshape", x, [0, 0, 2, HIDDEN // 2]), perm=[0, 2, 1, 3])


def _merge(g: Graph, x: str) -> str:
    return g.op("Reshape", g.op("Transpose", x, perm=[0, 2, 1, 3]), [0, 0, HIDDEN])


def _scores(g: Graph, q: str, k: str) -> str:
    return g.op("Div", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), (HIDDEN / 2) ** 0.5)


def _attention(opset: int, between: Write, of_heads: Write | None = None) -> onnx.ModelProto:
    """An attention layer: `between` maps scores to probabilities, `of_heads` is applied to queries and keys."""
    g = Graph(opset)
    x = g.input("x", ["batch", "tokens", WIDTH])
    rng = np.random.default_rng(1)
    q, k, v = (_heads(g, _linear(g, x, name, rng)) for name in ("q", "k", "v"))
    if of_heads is not None:
        q, k = of_heads(g, q), of_heads(g, k)
    mixed = g.op("MatMul", between(g, _scores(g, q, k)), v)
    g.output(g.linear(_merge(g, mixed), "down", rng.standard_normal((HIDDEN, OUT))), "y", 3)
    return g.model()


def _attending(between: Write, of_heads: Write | None = None) -> Callable[[int], onnx.ModelProto]:
    return lambda opset: _attention(opset, between, of_heads)


def _softmax(g: Graph, x: str) -> str:
    return g.op("Softmax", x, axis=-1)


def _softmax_decomposed(g: Graph, x: str) -> str:
    e = g.op("Exp", g.op("Sub", x, g.reduce("ReduceMax", x, [-1])))
    return g.op("Div", e, g.reduce("ReduceSum", e, [-1]))


def _softmax_unshifted(g: Graph, x: str) -> str:
    e = g.op("Exp", x)
    return g.op("Div", e, g.reduce("ReduceSum", e, [-1]))


def _softcap(g: Graph, x: str) -> str:
    # Gemma 2: the logits of attention are held within 30
    return _softmax(g, g.scale(g.op("Tanh", g.op("Div", x, 30.0)), 30.0))


def _masked_softmax(g: Graph, x: str) -> str:
    # (1 - mask) * lowest, broadcast over heads and queries
    mask = g.op("Cast", g.input("attention_mask", ["batch", "tokens"], np.int64), to=TensorProto.FLOAT)
    wide = g.op("Unsqueeze", g.op("Sub", 1.0, mask), [1, 2])
    return _softmax(g, g.op("Add", x, g.op("Mul", wide, float(np.finfo(np.float32).min))))


def _masked_where(g: Graph, x: str) -> str:
    mask = g.op("Cast", g.input("attention_mask", ["batch", "tokens"], np.int64), to=TensorProto.BOOL)
    probabilities = _softmax(g, g.op("Where", g.op("Unsqueeze", mask, [1, 2]), x, float("-inf")))
    return g.op("Where", g.op("IsNaN", probabilities), 0.0, probabilities)


def _qk_norm(g: Graph, x: str) -> str:
    return g.op("Mul", _rms(g, x), g.weight(f"norm.{x}", np.linspace(0.5, 1.5, HIDDEN // 2)))


def _rotary(opset: int) -> onnx.ModelProto:
    g = Graph(opset)
    positions = g.op("Cast", g.input("position_ids", ["batch", "tokens"], np.int64), to=TensorProto.FLOAT)
    frequencies = 10000.0 ** -(np.arange(HIDDEN // 4)[None] / (HIDDEN / 4))
    # As exporters write it: the angles are a MatMul with a constant, so that Cos and Sin do follow a linear op.
    half = g.op("MatMul", g.op("Unsqueeze", positions, [-1]), g.weight("inv_freq", frequencies))
    angles = g.op("Unsqueeze", g.op("Concat", half, half, axis=-1), [1])
    cos, sin = g.op("Cos", angles), g.op("Sin", angles)
    x = g.input("x", ["batch", "tokens", WIDTH])
    rng = np.random.default_rng(2)
    q, k, v = (_heads(g, _linear(g, x, name, rng)) for name in ("q", "k", "v"))
    q, k = (_rotate(g, value, cos, sin) for value in (q, k))
    mixed = g.op("MatMul", _softmax(g, _scores(g, q, k)), v)
    g.output(g.linear(_merge(g, mixed), "down", rng.standard_normal((HIDDEN, OUT))), "y", 3)
    return g.model()


def _rotate(g: Graph, x: str, cos: str, sin: str) -> str:
    first, second = g.ops("Split", 2, x, [HIDDEN // 4, HIDDEN // 4], axis=-1)
    turned = g.op("Concat", g.op("Neg", second), first, axis=-1)
    return g.op("Add", g.op("Mul", x, cos), g.op("Mul", turned, sin))


def _affine(g: Graph, x: str) -> str:
    return g.op("Neg", g.op("Div", g.op("Sub", g.op("Mul", x, 3.0), 1.0), 2.0))


def _affine_in_disguise(g: Graph, x: str) -> str:
    # relu(x) - relu(-x) = x
    return g.op("Sub", g.op("Relu", x), g.op("Relu", g.op("Neg", x)))


def _fp16_clamp(opset: int) -> onnx.ModelProto:
    # T5's guard of the residual stream: min(max(x, -64504), 64504), then RMSNorm
    g = Graph(opset, np.float16)
    x = g.input("x", ["batch", "tokens", HIDDEN])
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((HIDDEN, HIDDEN)) / HIDDEN
    clamped = g.op("Clip", g.op("Add", x, g.linear(x, "up", weight)), -64504.0, 64504.0)
    wide = g.op("Cast", clamped, to=TensorProto.FLOAT)
    mean = g.reduce("ReduceMean", g.op("Pow", wide, np.float32(2)), [-1])
    normed = g.op("Mul", wide, g.op("Reciprocal", g.op("Sqrt", g.op("Add", mean, np.float32(1e-6)))))
    narrow = g.op("Mul", g.op("Cast", normed, to=TensorProto.FLOAT16), g.weight("norm.weight", np.ones(HIDDEN)))
    g.output(g.linear(narrow, "down", rng.standard_normal((HIDDEN, OUT))), "y", 3)
    return g.model()


def _squeeze_excite(opset: int) -> onnx.ModelProto:
    """x [batch, WIDTH, height, width] times a gate [batch, WIDTH, 1, 1] computed from its mean."""
    g = Graph(opset)
    x = g.input("x", ["batch", WIDTH, 4, 4])
    rng = np.random.default_rng(4)

    def conv(value: str, name: str, out: int, channels: int) -> str:
        weight = g.weight(f"{name}.weight", rng.standard_normal((out, channels, 1, 1)) / channels)
        return g.op("Conv", value, weight, g.weight(f"{name}.bias", rng.uniform(-1, 1, out)))

    features = conv(x, "up", WIDTH, WIDTH)
    squeezed = g.op("Relu", conv(g.op("GlobalAveragePool", features), "reduce", 4, WIDTH))
    gate = g.op("Sigmoid", conv(squeezed, "expand", WIDTH, 4))
    g.output(conv(g.op("Mul", gate, features), "down", OUT, WIDTH), "y", 4)
    return g.model()


def _timestep(opset: int) -> onnx.ModelProto:
    """The conditioning of a diffusion model: silu over one row per image, whose linear layer scales the tokens."""
    g = Graph(opset)
    x, timestep = g.input("x", ["batch", "tokens", WIDTH]), g.input("timestep", ["batch"], np.float32)
    frequencies = np.exp(-np.log(10000.0) * np.arange(WIDTH // 2) / (WIDTH // 2))[None]
    angles = g.op("Mul", g.op("Unsqueeze", timestep, [-1]), g.weight("frequencies", frequencies))
    embedding = g.op("Concat", g.op("Sin", angles), g.op("Cos", angles), axis=-1)
    rng = np.random.default_rng(5)
    condition = times_x(_SIGMOID)(g, _linear(g, embedding, "embed", rng))
    modulation = g.op("Unsqueeze", g.linear(condition, "modulate", rng.standard_normal((HIDDEN, 2 * HIDDEN)) / 4), [1])
    scale, shift = g.ops("Split", 2, modulation, [HIDDEN, HIDDEN], axis=-1)
    hidden = _linear(g, x, "up", rng)
    modulated = g.op("Add", g.op("Mul", hidden, g.op("Add", scale, 1.0)), shift)
    g.output(g.linear(modulated, "down", rng.standard_normal((HIDDEN, OUT))), "y", 3)
    return g.model()


_NORM_OPS = ("Pow", "Sqrt", "Reciprocal")

NOT_SITES: Mapping[str, NotSite] = {
    "layer_norm": NotSite(_between_linears(_layer_norm), "inside a normalisation", forbidden=("Pow", "Sqrt", "Div")),
    "rms_norm": NotSite(_between_linears(_rms_norm), "inside a normalisation", forbidden=_NORM_OPS),
    "l2_norm": NotSite(_between_linears(_l2_norm), "inside a normalisation", forbidden=("Sqrt", "Max", "Div")),
    "qk_norm": NotSite(_attending(_softmax, _qk_norm), "a normalisation of heads", forbidden=_NORM_OPS),
    "rotary": NotSite(_rotary, "angles of positions, not of features", forbidden=("Cos", "Sin")),
    "attention_mask": NotSite(_attending(_masked_softmax), "arithmetic of a mask", forbidden=("Sub",)),
    "attention_mask_where": NotSite(_attending(_masked_where), "a mask by selection", forbidden=("Where", "IsNaN")),
    "softmax": NotSite(_attending(_softmax_decomposed), "reaches a reduction of itself", forbidden=("Exp",)),
    "softmax_unshifted": NotSite(_attending(_softmax_unshifted), "reaches a reduction of itself", forbidden=("Exp",)),
    "softcap": NotSite(_attending(_softcap), "its output is softmax's input", forbidden=("Tanh",)),
    "affine": NotSite(_between_linears(_affine), "affine"),
    "affine_in_disguise": NotSite(_between_linears(_affine_in_disguise), "affine"),
    "fp16_clamp": NotSite(_fp16_clamp, "a guard against overflow before a normalisation", forbidden=("Clip",)),
    "squeeze_excite": NotSite(_squeeze_excite, "the gate's shape differs from the product's", ("relu", "sigmoid")),
    "timestep": NotSite(
        _timestep, "angles of a timestep; the product is a modulation, not a gate", ("silu",), forbidden=("Cos", "Sin")
    ),
}


def feeds(model: onnx.ModelProto, batch: int = 2, tokens: int = 5, seed: int = 0) -> dict[str, Array]:
    """Return inputs for a network of this file: floats in [-1, 1], ones and zeros for a mask, positions ascending."""
    rng = np.random.default_rng(seed)
    sizes = {"batch": batch, "tokens": tokens}
    defaults = {tensor.name for tensor in model.graph.initializer}
    inputs: dict[str, Array] = {}
    for value in (value for value in model.graph.input if value.name not in defaults):
        tensor = value.type.tensor_type
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in tensor.shape.dim]
        if value.name == "position_ids":
            inputs[value.name] = np.broadcast_to(np.arange(tokens), shape).astype(np.int64)
        elif value.name == "attention_mask":
            inputs[value.name] = (np.arange(tokens) < rng.integers(1, tokens + 1, (batch, 1))).astype(np.int64)
        else:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            inputs[value.name] = rng.uniform(-1, 1, shape).astype(dtype)
    return inputs
