"""Cost of every form in OpenVINO, by the way it is written: `python -m tests.benchmarks.openvino_forms [SECTION ...]`.

Models take turns in one process; printed are medians in ms, with the cost of a Relu in the same place taken off in brackets.

1. `alone`: float32 [512, 3072] and nothing else.
2. `between`: 1024 rows, between a MatMul from 384 to 1536 with its bias and one back, with the number of rows known.
3. `dynamic`: the same where the number of rows is not known: then OpenVINO fuses no chain into one loop.

The ways: `fused` is what `lower` writes for OpenVINO, `portable` what it writes to model.onnx.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from actx.custom_ops import ACTIVATIONS
from actx.exporter import Form, fit
from actx.exporter.errors import ActxError
from actx.exporter.lower.emitter import Constants, Emitter, substitute
from actx.exporter.lower.own import STANDARD_OPS
from actx.exporter.lower.portable import emit_spline
from actx.exporter.runtimes.openvino import PRECISIONS, OpenVino, description
from tests.benchmarks.encoder_kernels import row
from tests.benchmarks.timing import machine, medians

if TYPE_CHECKING:
    from collections.abc import Callable

Write: TypeAlias = "Callable[[Emitter, ir.Value], ir.Value]"

FLOAT = ir.TensorType(ir.DataType.FLOAT)
ROWS, WIDTH, HIDDEN = 1024, 384, 1536
KINDS = ("gelu", "gelu_tanh", "mish", "hardswish", "sigmoid", "tanh", "softplus", "elu", "selu", "softsign")
FORMS = (
    "poly:6",
    "poly:8",
    "poly:12",
    "poly:16",
    "pwl:8",
    "pwl:16",
    "pwl:32",
    "spline:8x3",
    "spline:16x3",
    "spline:24x3",
)
OPSET = 20
CALLS = 3


def own(kind: str) -> Write:
    attributes = {"alpha": 1.0} if kind == "elu" else STANDARD_OPS[kind].attributes({})
    return lambda emit, x: emit.op(STANDARD_OPS[kind].op_type, x, **attributes)


def silu(emit: Emitter, x: ir.Value) -> ir.Value:
    return emit.op("Mul", x, emit.op("Sigmoid", x))


def form(kind: str, name: str) -> Write:
    spline = fit(ACTIVATIONS[kind], Form.parse(name)).spline
    return lambda emit, x: emit_spline(emit, x, spline)


def hinges(emit: Emitter, x: ir.Value) -> ir.Value:
    """The usual way to write a piecewise linear function."""
    spline = fit(ACTIVATIONS["gelu"], Form.parse("pwl:16")).spline
    slopes = spline.coefficients[:, 1].astype(np.float64)
    y = emit.op("Mul", x, slopes[0])
    for knot, step in zip(spline.knots, np.diff(slopes), strict=True):
        y = emit.op("Add", y, emit.op("Mul", emit.op("Max", x, float(knot)), step))
    return y


def estrin(emit: Emitter, x: ir.Value) -> ir.Value:
    """Degree 8 on a clipped input, with half the depth of Horner's rule."""
    powers = [emit.op("Clip", x, -3.0, 3.0)]
    terms = [emit.op("Add", emit.op("Mul", powers[0], 0.1 * i), 0.2) for i in range(1, 5)]
    while len(terms) > 1:
        powers.append(emit.op("Mul", powers[-1], powers[-1]))
        pairs = zip(terms[::2], terms[1::2], strict=True)
        terms = [emit.op("Add", emit.op("Mul", high, powers[-1]), low) for low, high in pairs]
    return emit.op("Add", emit.op("Mul", emit.op("Mul", powers[-1], powers[-1]), 0.3), terms[0])


def horner(emit: Emitter, x: ir.Value) -> ir.Value:
    """The same degree by Horner's rule."""
    t = emit.op("Clip", x, -3.0, 3.0)
    y = emit.op("Mul", t, 0.3)
    for power in range(8):
        y = emit.op("Add", y, 0.1 * power + 0.1)
        y = y if power == 7 else emit.op("Mul", y, t)
    return y


def cases() -> dict[str, tuple[Write, bool]]:
    """Return how each is written, and whether for a runtime that fuses."""
    found: dict[str, tuple[Write, bool]] = {"relu": (own("relu"), False), "silu: own": (silu, False)}
    found |= {f"{kind}: own": (own(kind), False) for kind in KINDS}
    found |= {"degree 8, Horner": (horner, True), "degree 8, Estrin": (estrin, True), "pwl:16, hinges": (hinges, True)}
    for name in FORMS:
        found |= {f"gelu {name}, {way}": (form("gelu", name), way == "fused") for way in ("fused", "portable")}
    found |= {f"selu {name}, fused": (form("selu", name), True) for name in ("poly:12", "pwl:16")}
    for name in ("poly:12", "poly:16", "pwl:16"):
        found |= {f"mish {name}, {way}": (form("mish", name), way == "fused") for way in ("fused", "portable")}
    return found


def value(name: str, shape: tuple[int | str, ...]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=FLOAT)


def weight(name: str, shape: tuple[int, ...]) -> ir.Value:
    numbers = np.random.default_rng(len(name)).normal(0, 2 / shape[0] ** 0.5, shape).astype(np.float32)
    return ir.Value(name=name, const_value=ir.Tensor(numbers, name=name), type=FLOAT, shape=ir.Shape(shape))


def graph(write: Write, section: str, *, fused: bool) -> ir.Model:
    """Return a model of one activation, and of the linear layers around it."""
    rows: int | str = "rows" if section == "dynamic" else ROWS
    x = value("x", (512, 3072) if section == "alone" else (rows, WIDTH))
    up, bias, down = weight("up", (WIDTH, HIDDEN)), weight("bias", (1, HIDDEN)), weight("down_", (HIDDEN, WIDTH))
    nodes: list[ir.Node] = []

    def node(op: str, *inputs: ir.Value, shape: ir.Shape) -> ir.Value:
        nodes.append(ir.Node("", op, inputs, name=f"{op}_{len(nodes)}"))
        out = nodes[-1].outputs[0]
        out.name, out.type, out.shape = f"v{len(nodes)}", FLOAT, shape
        return out

    inner, weights = x, []
    if section != "alone":
        wide = ir.Shape((rows, HIDDEN))
        inner, weights = node("Add", node("MatMul", x, up, shape=wide), bias, shape=wide), [up, bias, down]
    assert inner.shape is not None
    y = node("Identity", inner, shape=inner.shape)
    last = nodes[-1]
    out = y if section == "alone" else node("MatMul", y, down, shape=ir.Shape((rows, WIDTH)))
    body = ir.Graph([x], [out], nodes=nodes, initializers=weights, opset_imports={"": OPSET}, name="form")
    emit = Emitter(body, Constants(body), last, "site", ir.DataType.FLOAT, fused=fused)
    substitute(y, write(emit, inner))
    body.remove(last, safe=True)
    return ir.Model(body, ir_version=10)


def measure(section: str, runtime: OpenVino, rounds: int) -> dict[str, float | None]:
    """Return the median of each case in ms; None where OpenVINO cannot compile it."""
    shape = (512, 3072) if section == "alone" else (ROWS, WIDTH)
    feeds = {"x": (2 * np.random.default_rng(0).normal(size=shape)).astype(np.float32)}
    runs: dict[str, Callable[[], object]] = {}
    found: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (write, fused) in cases().items():
            file = Path(folder) / "model.onnx"
            ir.save(graph(write, section, fused=fused), file)
            found[name] = None
            try:
                runs[name] = runtime.open(file).timer(feeds)
            except ActxError as error:
                print(f"<!-- {section}, {name}: {error.what.replace(folder, '')} -->")
    return found | medians(runs, rounds=rounds, calls=CALLS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=["alone", "between", "dynamic"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=PRECISIONS, default="f32")
    arguments = parser.parse_args()
    runtime = OpenVino(arguments.threads, arguments.precision)
    print(f"{machine()}, OpenVINO {description()['openvino']}, {arguments.precision}, threads {arguments.threads}, "
          f"medians of {arguments.rounds} turns of {CALLS} calls\n")  # fmt: skip
    tables = {section: measure(section, runtime, arguments.rounds) for section in arguments.sections}
    row("", *tables)
    row(*["---"] * (1 + len(tables)))
    for name in cases():
        row(name, *(_cell(times[name], times["relu"]) for times in tables.values()))


def _cell(ms: float | None, relu: float | None) -> str:
    return "cannot be compiled" if ms is None or relu is None else f"{ms:.2f} ({ms - relu:+.2f})"


if __name__ == "__main__":
    main()
