"""Cost of every form as standard ops, against the op it replaces: `python -m tests.benchmarks.forms gelu`.

Sessions of ONNX Runtime take turns in one process on one thread; printed are medians and ratios of medians.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from actx.custom_ops import ACTIVATIONS, Spline
from actx.exporter import Form, fit
from actx.exporter.lower.emitter import Constants, Emitter, substitute
from actx.exporter.lower.own import STANDARD_OPS
from actx.exporter.lower.portable import emit_spline

SHAPE = (512, 3072)
FORMS = ("relu", "hardswish", "pwl:8", "pwl:16", "pwl:32", "poly:4", "poly:8", "spline:8x2")
OPSET = 20


def graph(write: str | Spline | None) -> ir.Model:
    """One op by name, a lowered spline, or a sum of hinges, the usual way to write pwl:16, where None."""
    x = ir.Value(name="x", shape=ir.Shape(SHAPE), type=ir.TensorType(ir.DataType.FLOAT))
    last = ir.Node("", "Identity", [x])
    y = last.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    body = ir.Graph([x], [y], nodes=[last], opset_imports={"": OPSET}, name="form")
    emit = Emitter(body, Constants(body), last, "site", ir.DataType.FLOAT)
    substitute(
        y,
        emit.op(write, x)
        if isinstance(write, str)
        else _hinges(emit, x)
        if write is None
        else emit_spline(emit, x, write),
    )
    body.remove(last, safe=True)
    return ir.Model(body, ir_version=10)


def _hinges(emit: Emitter, x: ir.Value) -> ir.Value:
    spline = fit(ACTIVATIONS["gelu"], Form.parse("pwl:16")).spline
    slopes = spline.coefficients[:, 1].astype(np.float64)
    y = emit.op("Mul", x, slopes[0])
    for knot, step in zip(spline.knots, np.diff(slopes), strict=True):
        y = emit.op("Add", y, emit.op("Mul", emit.op("Max", x, float(knot)), step))
    return y


def measure(models: dict[str, ir.Model], runs: int) -> dict[str, float]:
    """Return the median of every model in milliseconds."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    sessions = {name: ort.InferenceSession(ir.to_proto(m).SerializeToString(), options) for name, m in models.items()}
    x = (2 * np.random.default_rng(0).normal(size=SHAPE)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(runs):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {"x": x})
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(row)) for name, row in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("activation", nargs="?", default="gelu", choices=sorted(set(STANDARD_OPS) & set(ACTIVATIONS)))
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    name = arguments.activation
    models = {f"{name} (one op)": graph(STANDARD_OPS[name].op_type), "gelu pwl:16 as a sum of hinges": graph(None)}
    models |= {f"{name} {form}": graph(fit(ACTIVATIONS[name], Form.parse(form)).spline) for form in FORMS}
    medians = measure(models, arguments.runs)
    own = medians[f"{name} (one op)"]
    print(f"float32 {list(SHAPE)}, one thread, onnxruntime {ort.__version__}, median of {arguments.runs}")
    print("| | ops | ms | of the one op |\n|---|---|---|---|")
    for label, median in medians.items():
        print(f"| {label} | {len(list(models[label].graph))} | {median:.2f} | {median / own:.2f} |")


if __name__ == "__main__":
    main()
