"""What packing a gated FFN is worth: `python -m tests.benchmarks.gated_ffn`.

x [batch, 128, 512] -> gate and up of 2048 -> product -> down, float32, the gate as spline:16x3. Written as an export for
ort-cpu writes them, ways take turns in one process on the same memory; printed are medians, and ratios of them to the first.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from actx.exporter import Form, fit
from actx.exporter.choose import KEEP, Choice
from actx.exporter.kernels import find_kernels
from actx.exporter.lift import lift
from actx.exporter.load.prepare import prepare
from actx.exporter.lower import lower
from tests.benchmarks.timing import Bound, Memory, machine, medians
from tests.networks import SPELLINGS, Graph

if TYPE_CHECKING:
    import onnx

WIDTH, HIDDEN, TOKENS = 512, 2048, 128
FORM = Form.parse("spline:16x3")
GATES = {"silu": "silu", "gelu": "gelu_legacy"}
TWO_LAYERS = "two MatMuls, Spline(X, U)"
SPLIT = "one MatMul, Split, Spline(X, U)"
GATED = "one MatMul, GatedSpline"
STRIDED = "one MatMul, two strided Slices, Spline(X, U)"
IN_TURN = "one MatMul, GatedSpline in turn"


def network(gate: str, batch: int, *, in_turn: bool) -> onnx.ModelProto:
    """Return an FFN of two layers, or of one whose columns are gate and up in turn."""
    g, rng = Graph(20), np.random.default_rng(0)
    x = g.input("x", [batch, TOKENS, WIDTH])
    gates, ups = rng.standard_normal((2, WIDTH, HIDDEN)) / np.sqrt(WIDTH)
    if in_turn:
        both = g.linear(x, "both", np.stack([gates, ups], -1).reshape(WIDTH, -1))
        first, second = (g.op("Slice", both, [start], [2 * HIDDEN], [-1], [2]) for start in (0, 1))
    else:
        first, second = g.linear(x, "gate", gates), g.linear(x, "up", ups)
    product = g.op("Mul", SPELLINGS[GATES[gate]].write(g, first), second)
    g.output(g.linear(product, "down", rng.standard_normal((HIDDEN, WIDTH)) / np.sqrt(HIDDEN)), "y", 3)
    return g.model()


def native(model: ir.Model, *, packed: bool) -> ir.Model:
    """Return the graph of actx nodes."""
    (site,) = lift(model).sites
    names = (site.name,) if packed else ()
    found = lower(model, [Choice(site, FORM, fit(site.function, FORM), "")], packed=names).native
    assert found is not None
    return found


def with_split(model: ir.Model) -> ir.Model:
    """Return the model with both layers in one, and a Split behind."""
    (site,) = lift(model).sites
    return lower(model, [Choice(site, KEEP, None, "")], packed=(site.name,)).portable


def ways(gate: str, batch: int) -> dict[str, ir.Model]:
    """Return the graphs to compare."""
    layers, in_turn = (ir.from_proto(network(gate, batch, in_turn=flag)) for flag in (False, True))
    for model in (layers, in_turn):
        prepare(model)
    return {
        TWO_LAYERS: native(layers, packed=False),
        SPLIT: native(with_split(layers), packed=False),
        GATED: native(layers, packed=True),
        STRIDED: native(in_turn, packed=False),
        IN_TURN: native(in_turn, packed=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    arguments = parser.parse_args()
    library = find_kernels().library
    print(f"{machine()}, one thread, medians of {arguments.rounds} turns")
    print("| gate | batch | way | ms | times as fast as two MatMuls |\n|---|---|---|---|---|")
    for gate in GATES:
        for batch in (1, 8):
            x = np.random.default_rng(1).standard_normal((batch, TOKENS, WIDTH)).astype(np.float32)
            memory = Memory({"x": x})
            with tempfile.TemporaryDirectory() as folder:
                runs = {
                    way: Bound(ir.to_proto(model), memory, library, 1, Path(folder))
                    for way, model in ways(gate, batch).items()
                }
                found = medians(runs, rounds=arguments.rounds)
            for way, ms in found.items():
                print(f"| {gate} | {batch} | {way} | {ms:.2f} | {found[TWO_LAYERS] / ms:.3f} |")


if __name__ == "__main__":
    main()
