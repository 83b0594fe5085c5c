"""Activations with parameters between two layers, against what ONNX Runtime makes of them: `python -m tests.benchmarks.learned`.

A feed-forward layer of width 512 and 2048, 128 tokens, one thread. For each activation three networks take turns in one
process: the graph as it is written (*decomposed*), the graph of actx nodes that an export at spline:16x3 makes of it, and
the same layer with relu. Printed are medians, and the share of the gap between the decomposed graph and relu that
is recovered. LA, which folds to one table, is compared with a layer that has one activation for its table.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from actx.exporter.choose import choose
from actx.exporter.fitting import Form
from actx.exporter.kernels import find_kernels
from actx.exporter.lift import lift
from actx.exporter.load.prepare import prepare
from actx.exporter.lower import lower
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.save import save
from actx.exporter.targets import TARGETS
from tests.benchmarks.timing import machine, medians
from tests.networks import SPELLINGS, Graph

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

WIDTH, HIDDEN, TOKENS = 512, 2048, 128
ENTRIES = ("relu", "relu2_pow", "leaky_relu", "gelu_op", "silu", "tanh")
FORM = Form.parse("spline:16x3")
WORTH = 0.7  # of the gap
TWIN = 1.03


def polynorm(g: Graph, x: str) -> str:
    """The eager formula of PolyCom: every power divided by the root of its mean square."""
    powers = [g.op("Pow", x, 3.0), g.op("Pow", x, 2.0), x]
    terms = []
    for power, weight in zip(powers, (0.3, 0.3, 0.4), strict=True):
        mean = g.reduce("ReduceMean", g.op("Pow", power, 2.0), [-1])
        terms.append(g.op("Mul", g.op("Div", power, g.op("Sqrt", g.op("Add", mean, 1e-6))), weight))
    return g.op("Add", g.op("Add", g.op("Add", terms[0], terms[1]), terms[2]), 0.1)


def moa(g: Graph, x: str) -> str:
    """Seven entries, the identity among them, and sigmoid gates from the layer's input."""
    weight = np.random.default_rng(1).standard_normal((WIDTH, 1 + len(ENTRIES))) / WIDTH**0.5
    gates = g.op("Sigmoid", g.linear("x", "gates", weight))
    total = ""
    for i, value in enumerate([x, *(SPELLINGS[name].write(g, x) for name in ENTRIES)]):
        term = g.op("Mul", g.op("Slice", gates, [i], [i + 1], [-1]), value)
        total = term if not total else g.op("Add", total, term)
    return total


def network(write: Callable[[Graph, str], str]) -> onnx.ModelProto:
    g, rng = Graph(20), np.random.default_rng(0)
    x = g.input("x", ["batch", TOKENS, WIDTH])
    hidden = g.linear(x, "up", rng.standard_normal((WIDTH, HIDDEN)) / WIDTH**0.5, rng.standard_normal(HIDDEN))
    g.scope = "ffn/"
    y = write(g, hidden)
    g.scope = ""
    g.output(g.linear(y, "down", rng.standard_normal((HIDDEN, WIDTH)) / HIDDEN**0.5), "y", 3)
    return g.model()


NETWORKS: dict[str, Callable[[Graph, str], str]] = {
    "polynorm": polynorm,
    "moa": moa,
    "rational A": SPELLINGS["rational_a"].write,
    "rational B": SPELLINGS["rational_b"].write,
    "la": SPELLINGS["learnable"].write,
}


def opened(folder: Path, name: str, proto: onnx.ModelProto, *, native: bool) -> Callable[[], Any]:
    model = ir.from_proto(proto)
    prepare(model)
    if native:
        lowered = lower(model, choose(lift(model).sites, TARGETS["ort-cpu"], form=FORM)).native
        assert lowered is not None
        model = lowered
    (folder / name).mkdir()
    save({f"{name}.onnx": model}, folder / name)
    options = RuntimeOptions(threads=1, libraries=(find_kernels().library,) if native else ())
    return options.open(folder / name / f"{name}.onnx")


def compare(name: str, batch: int, rounds: int) -> None:
    write = NETWORKS[name]
    twin = SPELLINGS["gelu_op"].write
    graphs = {
        "decomposed": (network(write), False),
        "actx": (network(write), True),
        "relu": (network(SPELLINGS["relu"].write), False),
        "twin": (network(twin), True),
    }
    feeds = {"x": np.random.default_rng(2).standard_normal((batch, TOKENS, WIDTH)).astype(np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {kind: opened(Path(folder), kind, proto, native=native) for kind, (proto, native) in graphs.items()}
        first, second = (sessions[kind].run(feeds, ["y"])["y"] for kind in ("decomposed", "actx"))
        times = medians({kind: session.timer(feeds) for kind, session in sessions.items()}, rounds=rounds)
    recovered = (times["decomposed"] - times["actx"]) / (times["decomposed"] - times["relu"])
    difference = np.linalg.norm(first - second) / np.linalg.norm(first)
    ratio = times["actx"] / times["twin"]
    met = ratio <= TWIN if name == "la" else recovered >= WORTH
    cells = [f"{times[kind]:.2f}" for kind in ("decomposed", "actx", "relu", "twin")]
    row(name, str(batch), *cells, f"{recovered:.0%}", f"{ratio:.3f}", f"{difference:.1e}", "yes" if met else "NO")


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    arguments = parser.parse_args()
    print(f"{machine()}, {TOKENS} tokens, {WIDTH} and {HIDDEN} wide, one thread, medians of {arguments.rounds}\n")
    row("activation", "batch", "decomposed ms", "actx ms", "relu ms", "gelu table ms", "gap recovered",
        "of the gelu table", "rel. l2 of the outputs", "met")  # fmt: skip
    row(*["---"] * 10)
    for name in arguments.names:
        for batch in (1, 8):
            compare(name, batch, arguments.rounds)


if __name__ == "__main__":
    main()
