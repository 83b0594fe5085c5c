"""The CPU kernels against ONNX Runtime's own: `python -m tests.benchmarks.kernels [SECTION ...]`.

Everything that is compared takes turns in one process; printed are medians and ratios of medians, as Markdown tables.

1. `runtime`: float32 [512, 3072], one thread, and the ratio on two. For each function, ONNX Runtime's fastest graph of those
   listed in `CASES`, standard ops and its own, against one actx node. The largest difference of their outputs is printed, so
   that it is seen that both compute the same.
2. `copies`: the same for 64 MB, against a memory copy of the bytes that are read and written.
3. `sizes`: from a thousand to a hundred million elements, nanoseconds per element.
4. `calls`: what a node costs at one element, against Relu.
5. `isas`: the table of 1 for every instruction set of this machine.
6. `rows`: every row of the kernel table that runs a spline, from numpy.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from actx.custom_ops import ACTIVATIONS, Spline, cpu
from actx.custom_ops.spline import MAX_DEGREE
from actx.exporter import Form, fit
from actx.exporter.choose import DEFAULT_ERROR
from actx.exporter.kernels import find_kernels
from actx.exporter.lower.emitter import Constants, Emitter, substitute
from actx.exporter.lower.portable import emit_spline
from actx.exporter.targets.ort_cpu import OrtCpu
from tests.benchmarks.timing import Bound, Memory, machine, medians
from tests.networks import Graph

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

Arrays: TypeAlias = dict[str, "NDArray[Any]"]
Write: TypeAlias = Callable[[Graph, str], str]

ROWS, WIDTH = 512, 3072
OPSET = 20
CHAIN = 1000  # nodes
MICROSOFT = "com.microsoft"
ACTX = "actx"
SPREAD = 3.0  # standard deviation of the inputs
CALLS = (
    10  # one after another, before the next has its turn: the input is in the caches, as where a layer just wrote it
)


@dataclass(frozen=True)
class Case:
    """A function, the graphs in which ONNX Runtime can compute it, and the actx node.

    Attributes:
        name: of the function.
        runtime: how ONNX Runtime computes it, by spelling.
        native: the actx node.
        target: how many times as fast the node is to be as the fastest of them.
        inputs: arrays by name, made for a shape.
    """

    name: str
    runtime: Mapping[str, onnx.ModelProto]
    native: onnx.ModelProto
    target: float | None
    inputs: Callable[[tuple[int, int]], Arrays]


# --- graphs ---


def model(
    write: Callable[..., str], inputs: Mapping[str, list[int | None]], dtypes: Mapping[str, Any] | None = None
) -> onnx.ModelProto:
    """Return the model that `write` writes of inputs of these shapes; ``None`` is any size."""
    graph = Graph(OPSET)
    kinds = dtypes or {}
    names = [
        graph.input(name, [f"{name}{i}" if size is None else size for i, size in enumerate(shape)], kinds.get(name))
        for name, shape in inputs.items()
    ]
    rank = len(next(iter(inputs.values())))
    graph.output(write(graph, *names), "y", rank, kinds.get("y"))
    return graph.model()


def unary_model(write: Write) -> onnx.ModelProto:
    return model(write, {"x": [None, None]})


def spline_node(spline: Spline) -> Callable[..., str]:
    return lambda g, *inputs: g.op("Spline", *inputs, domain=ACTX, **spline.attributes())


@cache
def default_spline(name: str) -> Spline:
    """Return what an export without --form rewrites an activation to."""
    fits = (fit(ACTIVATIONS[name], form) for form in OrtCpu.forms)
    return next(found for found in fits if found.core_error <= DEFAULT_ERROR).spline


def lowered(spline: Spline) -> onnx.ModelProto:
    """Return the graph of standard ops that an export writes for a table."""
    x = ir.Value(name="x", shape=ir.Shape((None, None)), type=ir.TensorType(ir.DataType.FLOAT))
    last = ir.Node("", "Identity", [x])
    y = last.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    body = ir.Graph([x], [y], nodes=[last], opset_imports={"": OPSET}, name="form")
    emit = Emitter(body, Constants(body), last, "site", ir.DataType.FLOAT)
    substitute(y, emit_spline(emit, x, spline))
    body.remove(last, safe=True)
    return ir.to_proto(ir.Model(body, ir_version=10))


def hinges(spline: Spline) -> Write:
    """Write a continuous piecewise linear function as it usually is, a sum of hinges."""
    slopes = spline.coefficients[:, 1].astype(np.float64)
    at_first = float(spline(spline.knots[:1])[0]) - slopes[0] * float(spline.knots[0])

    def write(g: Graph, x: str) -> str:
        y = g.op("Add", g.op("Mul", x, float(slopes[0])), at_first)
        for knot, step in zip(spline.knots, np.diff(slopes), strict=True):
            y = g.op("Add", y, g.op("Mul", g.op("Relu", g.op("Sub", x, float(knot))), float(step)))
        return y

    return write


def gelu_by_erf(g: Graph, x: str) -> str:
    return g.op("Mul", g.op("Mul", x, g.op("Add", g.op("Erf", g.op("Div", x, float(np.sqrt(2)))), 1.0)), 0.5)


def silu(g: Graph, x: str) -> str:
    return g.op("Mul", x, g.op("Sigmoid", x))


def quick_gelu(alpha: float) -> Write:
    return lambda g, x: g.op("QuickGelu", x, domain=MICROSOFT, alpha=alpha)


def op(op_type: str, domain: str = "", **attributes: Any) -> Write:
    return lambda g, x: g.op(op_type, x, domain=domain, **attributes)


def mish_by_softplus(g: Graph, x: str) -> str:
    return g.op("Mul", x, g.op("Tanh", g.op("Softplus", x)))


def mish_by_exp(g: Graph, x: str) -> str:
    """x n / (n + 2) with n = e^x (e^x + 2), by hand: no exporter writes it, and no runtime finds it."""
    e = g.op("Exp", g.op("Min", x, 20.0))
    n = g.op("Mul", e, g.op("Add", e, 2.0))
    return g.op("Mul", x, g.op("Div", n, g.op("Add", n, 2.0)))


def polynorm_by_means(g: Graph, x: str, w: str, b: str) -> str:
    """The definition in standard ops."""
    square = g.op("Mul", x, x)
    weights = g.ops("Split", 3, w, [1, 1, 1])
    terms = []
    for weight, power in zip(weights, (g.op("Mul", square, x), square, x), strict=True):
        mean = g.reduce("ReduceMean", g.op("Mul", power, power), [-1])
        scale = g.op("Reciprocal", g.op("Sqrt", g.op("Add", mean, 1e-6)))
        terms.append(g.op("Mul", power, g.op("Mul", scale, weight)))
    return g.op("Add", g.op("Add", g.op("Add", terms[0], terms[1]), terms[2]), b)


def polynorm_by_norms(g: Graph, x: str, w: str, b: str) -> str:
    """With the runtime's own fused normalisation."""
    square = g.op("Mul", x, x)
    weights = g.ops("Split", 3, w, [1, 1, 1])
    ones = g.constant(np.ones(WIDTH, np.float32))
    terms = [
        g.op("SimplifiedLayerNormalization", power, g.op("Mul", ones, weight), axis=-1, epsilon=1e-6)
        for weight, power in zip(weights, (g.op("Mul", square, x), square, x), strict=True)
    ]
    return g.op("Add", g.op("Add", g.op("Add", terms[0], terms[1]), terms[2]), b)


# The entries of the mixtures, in the order in which they are added.
ENTRIES: dict[str, Write] = {
    "gelu": op("Gelu"),
    "silu": silu,
    "tanh": op("Tanh"),
    "relu2": lambda g, x: g.op("Mul", g.op("Relu", x), g.op("Relu", x)),
    "relu": op("Relu"),
    "leaky_relu": op("LeakyRelu", alpha=0.01),
    "id": op("Identity"),
}
FORMULAS = {"id": lambda x: x, "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x)}


def mixture(count: int) -> Callable[[Graph, str, str], str]:
    """Write a mixture in standard ops: each entry times its gate."""

    def write(g: Graph, x: str, gates: str) -> str:
        parts = g.ops("Split", count, gates, [1] * count, axis=-1)
        terms = [
            g.op("Mul", entry(g, x), gate) for entry, gate in zip(list(ENTRIES.values())[:count], parts, strict=True)
        ]
        y = terms[0]
        for term in terms[1:]:
            y = g.op("Add", y, term)
        return y

    return write


def mixture_node(count: int) -> Callable[[Graph, str, str], str]:
    """Write the SplineMix node: 32 segments of equal width on [-8, 8], cubic Hermite interpolants, linear or square tails."""
    knots = np.linspace(-8, 8, 31)
    tables = [_interpolated(FORMULAS.get(name) or ACTIVATIONS[name], knots) for name in list(ENTRIES)[:count]]
    origins = np.concatenate([[0.0], (knots[:-1] + knots[1:]) / 2, [0.0]])
    attributes = {
        "entries": count,
        "degree": 3,
        "knots": knots.astype(np.float32).tolist(),
        "coefficients": np.concatenate(tables).astype(np.float32).reshape(-1).tolist(),
        "origins": origins.astype(np.float32).tolist(),
    }
    return lambda g, x, gates: g.op("SplineMix", x, gates, domain=ACTX, **attributes)


def _interpolated(f: Callable[[Any], Any], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ascending coefficients about each segment's middle; the tails are fitted a little beyond the last knots."""
    rows = []
    for low, high in itertools.pairwise(knots):
        at = (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(4) + 0.5) / 4)
        rows.append(np.polynomial.polynomial.polyfit(at - (low + high) / 2, f(at), 3))
    left, right = np.linspace(-20, -8, 9), np.linspace(8, 20, 9)
    tails = [np.append(np.polynomial.polynomial.polyfit(at, f(at), 2), 0.0) for at in (left, right)]
    return np.stack([tails[0], *rows, tails[1]])


def quantized(write: Write) -> Write:
    """Write DequantizeLinear, the activation, QuantizeLinear, uint8."""

    def body(g: Graph, x: str) -> str:
        zero = g.constant(np.uint8(128))
        return g.op("QuantizeLinear", write(g, g.op("DequantizeLinear", x, 0.05, zero)), 0.05, zero)

    return body


def lut_node(g: Graph, x: str) -> str:
    codes = np.arange(256)
    values = ACTIVATIONS["gelu"]((codes - 128.0) * np.float64(np.float32(0.05)))
    table = np.clip(np.rint(values / np.float64(np.float32(0.05))) + 128, 0, 255).astype(np.int64)
    return g.op("Lut", x, domain=ACTX, table=table.tolist())


# --- inputs ---


def normal(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return (SPREAD * np.random.default_rng(seed).standard_normal(shape, np.float32)).astype(np.float32)


def one(shape: tuple[int, int]) -> Arrays:
    return {"x": normal(shape)}


def two(shape: tuple[int, int]) -> Arrays:
    return {"x": normal(shape), "u": normal(shape, 1)}


def packed(shape: tuple[int, int]) -> Arrays:
    return {"x": normal((shape[0], 2 * shape[1]))}


def gated_by(count: int) -> Callable[[tuple[int, int]], Arrays]:
    return lambda shape: {"x": normal(shape), "g": np.abs(normal((shape[0], count), 1)) / 8}


def normed(shape: tuple[int, int]) -> Arrays:
    return {"x": normal(shape), "w": np.full(3, 1 / 3, np.float32), "b": np.full(1, 0.1, np.float32)}


def codes(shape: tuple[int, int]) -> Arrays:
    return {"x": np.random.default_rng(0).integers(0, 256, shape, np.uint8)}


# --- what is compared ---


def scalar(name: str, target: float | None, **spellings: Write) -> Case:
    """Return an activation as it is and as the spline that an export without --form takes."""
    runtime = {spelling: unary_model(write) for spelling, write in spellings.items()}
    spline = default_spline(name)
    return Case(f"{name} ({spline.segments}x{spline.degree})", runtime, unary_model(spline_node(spline)), target, one)


def cases() -> Iterator[Case]:
    """Give everything that is compared with ONNX Runtime; those with a target first."""
    yield scalar(
        "gelu", 2.5, Gelu=op("Gelu"), MicrosoftGelu=op("Gelu", MICROSOFT), Erf=gelu_by_erf,
        BiasGelu=lambda g, x: g.op("BiasGelu", x, g.constant(np.zeros(WIDTH, np.float32)), domain=MICROSOFT),
    )  # fmt: skip
    yield scalar("mish", 40, Mish=op("Mish"), Softplus=mish_by_softplus)
    yield scalar("hardswish", 2, HardSwish=op("HardSwish"), HardSigmoid=lambda g, x: g.op(
        "Mul", x, g.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)))  # fmt: skip
    yield scalar("silu", 1, Sigmoid=silu, QuickGelu=quick_gelu(1.0))
    pwl = fit(ACTIVATIONS["gelu"], Form.parse("pwl:16")).spline
    for name, graph, target in (
        ("gelu as pwl:16, sum of hinges", unary_model(hinges(pwl)), 40),
        ("gelu as pwl:16, as model.onnx has it", lowered(pwl), None),
    ):
        yield Case(name, {"graph": graph}, unary_model(spline_node(pwl)), target, one)
    row = {"x": [None, WIDTH], "w": [3], "b": [1]}
    ways = {"means": model(polynorm_by_means, row), "SimplifiedLayerNormalization": model(polynorm_by_norms, row)}
    yield Case("polynorm", ways, model(lambda g, *v: g.op("PolyNorm", *v, domain=ACTX), row), 12, normed)
    yield from _gated_cases()
    for count, target in ((4, 8), (7, None)):
        shapes = {"x": [None, None], "g": [None, count]}
        exact = {"each entry times its gate": model(mixture(count), shapes)}
        yield Case(f"moa of {count}", exact, model(mixture_node(count), shapes), target, gated_by(count))
    eight = {"x": np.uint8, "y": np.uint8}
    shape = {"x": [None, None]}
    dequantized = {"DQ-Gelu-Q": model(quantized(op("Gelu")), shape, eight)}
    yield Case("uint8 gelu", dequantized, model(lut_node, shape, eight), 15, codes)
    yield from _further_cases()


def _gated_cases() -> Iterator[Case]:
    pair, table = {"x": [None, None], "u": [None, None]}, default_spline("silu")

    def halves(g: Graph, x: str) -> str:
        gate, up = g.ops("Split", 2, x, axis=-1, num_outputs=2)
        return g.op("Mul", silu(g, gate), up)

    apart = {"Sigmoid": model(lambda g, x, u: g.op("Mul", silu(g, x), u), pair),
             "QuickGelu": model(lambda g, x, u: g.op("Mul", quick_gelu(1.0)(g, x), u), pair)}  # fmt: skip
    yield Case("swiglu", apart, model(spline_node(table), pair), 1.6, two)
    node = model(lambda g, x: g.op("GatedSpline", x, domain=ACTX, **table.attributes()), {"x": [None, None]})
    yield Case("swiglu of packed halves", {"Split": unary_model(halves)}, node, 1.6, packed)


def _further_cases() -> Iterator[Case]:
    """Give the other activations that ONNX Runtime has an op for: what a target calls fast is read off them."""
    by_hand = {"Exp, Min, Mul, Div": unary_model(mish_by_exp)}
    yield Case("mish, rewritten by hand", by_hand, unary_model(spline_node(default_spline("mish"))), None, one)
    yield scalar("gelu_tanh", None, Gelu=op("Gelu", approximate="tanh"), FastGelu=op("FastGelu", MICROSOFT))
    yield scalar("quick_gelu", None, QuickGelu=quick_gelu(1.702))
    for name, write in (
        ("relu", op("Relu")), ("relu6", lambda g, x: g.op("Clip", x, 0.0, 6.0)), ("relu2", ENTRIES["relu2"]),
        ("sigmoid", op("Sigmoid")), ("tanh", op("Tanh")), ("hard_sigmoid", op("HardSigmoid", alpha=1 / 6, beta=0.5)),
        ("leaky_relu", op("LeakyRelu", alpha=0.01)), ("hardtanh", lambda g, x: g.op("Clip", x, -1.0, 1.0)),
        ("softplus", op("Softplus")),
    ):  # fmt: skip
        yield scalar(name, None, own=write)


# --- measuring ---


class Bench:
    """Opens sessions with the kernels of this machine."""

    def __init__(self, rounds: int, folder: Path) -> None:
        self.rounds = rounds
        self._folder = folder
        self._library = find_kernels().library

    def open(self, proto: onnx.ModelProto, memory: Memory, threads: int = 1) -> Bound:
        return Bound(proto, memory, self._library, threads, self._folder)

    def compare(self, case: Case, shape: tuple[int, int], threads: int) -> tuple[dict[str, float], float]:
        """Return the medians by spelling and of `ACTX`, and the largest difference of the outputs."""
        memory = Memory(case.inputs(shape))
        bound = {name: self.open(proto, memory, threads) for name, proto in {**case.runtime, ACTX: case.native}.items()}
        results = {name: run.result().astype(np.float64) for name, run in bound.items()}
        differences = [np.abs(results[ACTX] - results[name]).max() for name in case.runtime]
        return medians(bound, rounds=self.rounds, calls=CALLS), float(max(differences))


def table(title: str, columns: list[str], rows: Iterator[list[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def against_runtime(bench: Bench) -> None:
    """1."""

    def rows() -> Iterator[list[str]]:
        for case in cases():
            times, difference = bench.compare(case, (ROWS, WIDTH), 1)
            both, _ = bench.compare(case, (ROWS, WIDTH), 2)
            ours, ours_both = times.pop(ACTX), both.pop(ACTX)
            best = min(times, key=times.__getitem__)
            ratio = times[best] / ours
            verdict = "-" if case.target is None else "yes" if ratio >= case.target else "NO"
            goal = "-" if case.target is None else f"{case.target:g}"
            yield [
                case.name, best, f"{times[best]:.3f}", f"{ours:.3f}", f"{ratio:.2f}", goal, verdict,
                f"{min(both.values()) / ours_both:.2f}", f"{difference:.1e}",
            ]  # fmt: skip

    columns = ["function", "ONNX Runtime's fastest", "ms", "actx ms", "ratio", "at least", "met", "ratio on 2 threads",
               "largest difference"]  # fmt: skip
    table(f"Against ONNX Runtime, [{ROWS}, {WIDTH}], one thread", columns, rows())
    more_entries(bench)


def more_entries(bench: Bench) -> None:
    """1, for a mixture of more entries."""
    runs = {}
    for count in (4, 7):
        shapes = {"x": [None, None], "g": [None, count]}
        runs[f"{count}"] = bench.open(model(mixture_node(count), shapes), Memory(gated_by(count)((ROWS, WIDTH))))
    times = medians(runs, rounds=bench.rounds, calls=CALLS)
    ratio = times["7"] / times["4"]
    row = [f"{times['4']:.3f}", f"{times['7']:.3f}", f"{ratio:.2f}", "yes" if ratio <= 1.15 else "NO"]
    table("moa, one thread", ["4 entries ms", "7 entries ms", "ratio", "at most 1.15"], iter([row]))


def against_copies(bench: Bench) -> None:
    """2."""
    shape = (16 * 2**20 // 4096, 4096)

    def rows() -> Iterator[list[str]]:
        for case in cases():
            if case.inputs not in {one, two, codes}:
                continue
            feeds = case.inputs(shape)
            ours = bench.open(case.native, Memory(feeds))
            output = ours.result()
            read = sum(array.nbytes for array in feeds.values())
            source, target = (
                np.ones((read + output.nbytes) // 2, np.uint8),
                np.ones((read + output.nbytes) // 2, np.uint8),
            )
            times = medians({"copy": lambda s=source, t=target: np.copyto(t, s), ACTX: ours}, rounds=bench.rounds)  # type: ignore[misc]
            ratio = times[ACTX] / times["copy"]
            size = f"{(read + output.nbytes) / 2**20:.0f}"
            yield [case.name, size, f"{times['copy']:.2f}", f"{times[ACTX]:.2f}", f"{ratio:.2f}",
                   "yes" if ratio <= 1.3 else "NO"]  # fmt: skip

    columns = ["function", "MiB read and written", "copy ms", "actx ms", "ratio", "at most 1.3"]
    table("Against a memory copy of the same bytes, 16 Mi elements, one thread", columns, rows())


def over_sizes(bench: Bench) -> None:
    """3."""
    node = unary_model(spline_node(default_spline("gelu")))

    def rows() -> Iterator[list[str]]:
        for exponent in range(3, 9):
            elements = 10**exponent
            run = bench.open(node, Memory({"x": normal((1, elements))}))
            calls = max(1, 10**6 // elements)
            milliseconds = medians({ACTX: run}, rounds=max(5, bench.rounds // (1 + elements // 10**7)), calls=calls)[
                ACTX
            ]
            yield [f"1e{exponent}", f"{milliseconds:.4f}", f"{1e6 * milliseconds / elements:.3f}"]

    table("gelu over sizes, one thread", ["elements", "ms", "ns per element"], rows())


def one_call(bench: Bench) -> None:
    """4."""
    memory = Memory({"x": normal((1, 1))})
    nodes = {"Relu": op("Relu"), ACTX: spline_node(default_spline("gelu"))}
    chains = {name: bench.open(unary_model(_chain(node)), memory) for name, node in nodes.items()}
    times = {name: 1e6 * time / CHAIN for name, time in medians(chains, rounds=4 * bench.rounds).items()}
    ratio = times[ACTX] / times["Relu"]
    row = [f"{times['Relu']:.0f}", f"{times[ACTX]:.0f}", f"{ratio:.2f}", "yes" if ratio <= 1.5 else "NO"]
    table(f"A node on one element, in a chain of {CHAIN}", ["Relu ns", "actx ns", "ratio", "at most 1.5"], iter([row]))


def _chain(node: Write) -> Write:
    """Repeat a node, so that its own cost shows and not that of starting a run."""

    def write(g: Graph, x: str) -> str:
        for _ in range(CHAIN):
            x = node(g, x)
        return x

    return write


def over_isas(bench: Bench) -> None:
    """5."""
    isas = cpu.load().isas

    def rows() -> Iterator[list[str]]:
        for case in cases():
            memory = Memory(case.inputs((ROWS, WIDTH)))
            runs = {name: bench.open(proto, memory) for name, proto in case.runtime.items()}
            for isa in isas:
                with _variable("ACTX_ISA", isa):
                    runs[isa] = bench.open(case.native, memory)
            times = medians(runs, rounds=bench.rounds, calls=CALLS)
            best = min(times[name] for name in case.runtime)
            ours = (f"{times[isa]:.3f} ({best / times[isa]:.2f})" for isa in isas)
            yield [case.name, f"{best:.3f}", *ours]

    columns = ["function", "ONNX Runtime", *isas]
    table(f"By instruction set, [{ROWS}, {WIDTH}], one thread: ms, and how many times as fast", columns, rows())


def over_rows(bench: Bench) -> None:
    """6."""
    library = cpu.load()
    x = normal((ROWS, WIDTH))
    output = np.empty_like(x)

    def rows() -> Iterator[list[str]]:
        yield ["-", "copy", f"{medians({'copy': lambda: np.copyto(output, x)}, rounds=bench.rounds)['copy']:.3f}"]
        for isa in library.isas:
            for kernel, op_type in library.kernels(isa):
                operator = _operator(library, op_type, isa, kernel)
                if operator is None:
                    continue
                milliseconds = medians({ACTX: lambda o=operator: o.run([x])}, rounds=bench.rounds)[ACTX]  # type: ignore[misc]
                yield [isa, kernel, f"{milliseconds:.3f}"]

    table(f"Rows of the kernel table from numpy, [{ROWS}, {WIDTH}], one thread", ["isa", "row", "ms"], rows())


def _operator(library: cpu.Library, op_type: str, isa: str, kernel: str) -> cpu.Operator | None:
    """Return the operator that a row runs, with as large a table as it takes; None where it is no row of splines."""
    shape = kernel.rpartition("_")[2].split("x")
    if op_type != "Spline" or len(shape) != 2:
        return None
    width, degree = (int(number) for number in shape)
    segments = 4 if degree > MAX_DEGREE else width
    for knots in (_dyadic(segments), _even(segments * 2 // 3), _uneven(segments)):
        coefficients = np.random.default_rng(0).normal(size=(len(knots) + 1, degree + 1))
        with contextlib.suppress(ValueError):
            return library.create("Spline", Spline.of(knots, coefficients).attributes(), isa=isa, kernel=kernel)
    return None


def _dyadic(segments: int) -> NDArray[np.float64]:
    return (np.arange(segments - 1) - segments // 2) / 2


def _even(segments: int) -> NDArray[np.float64]:
    return np.linspace(-4, 4, segments - 1)


def _uneven(segments: int) -> NDArray[np.float64]:
    grid = np.linspace(-1, 1, segments - 1)
    return 4 * grid * np.abs(grid)


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "runtime": against_runtime,
    "copies": against_copies,
    "sizes": over_sizes,
    "calls": one_call,
    "isas": over_isas,
    "rows": over_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all without any")
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    print(f"{machine()}, actx kernels {' '.join(cpu.load().isas)}, medians of {arguments.rounds}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.rounds, Path(folder))
        for name in arguments.sections or SECTIONS:
            SECTIONS[name](bench)


if __name__ == "__main__":
    main()
