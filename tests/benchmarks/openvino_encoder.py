"""A trained sentence encoder in OpenVINO with its activations as forms: `python -m tests.benchmarks.openvino_encoder`.

all-MiniLM-L6-v2 with its gelu, and with mish and silu in its place, batch 8, sequence 128, one thread, float32. The model as
it is and the graphs that `lower` writes for OpenVINO take turns in one process; printed are medians and their ratios. A graph
with Relu in the place of the activation bounds what can be gained. OpenVINO fuses chains of ops only where it knows the
shapes: `--dynamic` leaves batch and sequence unknown.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from actx.exporter import Form
from actx.exporter.choose import choose
from actx.exporter.errors import ActxError
from actx.exporter.lift import lift
from actx.exporter.lower import lower
from actx.exporter.runtimes.openvino import OpenVino, Precision, description
from actx.exporter.save import save
from actx.exporter.targets.openvino import OpenVino as Target
from tests.benchmarks.encoder_kernels import BATCH, TOKENS, encoder, feeds, row
from tests.benchmarks.timing import machine, medians

if TYPE_CHECKING:
    from collections.abc import Callable

ACTIVATIONS = ("gelu", "mish", "silu", "selu")
FORMS = ("poly:8", "poly:12", "pwl:16", "hardswish")
ORIGINAL, BOUND = "as it is", "relu"


def variants(activation: str, forms: list[str], *, dynamic: bool) -> dict[str, ir.Model]:
    """Return what is compared, by name."""
    model = written(activation)
    found = {ORIGINAL: model, BOUND: encoder("Relu")}
    for form in forms:
        choices = choose(lift(model).sites, Target(), form=Form.parse(form))
        native = lower(model, choices, native="standard").native
        assert native is not None
        found[form] = native
    if not dynamic:
        for value in (value for model in found.values() for value in model.graph.inputs):
            value.shape = ir.Shape((BATCH, TOKENS))
    return found


def written(activation: str) -> ir.Model:
    """Return the encoder with an activation of this name, silu as exporters write it: a product with a sigmoid."""
    if activation != "silu":
        return encoder(activation.capitalize())
    model = encoder("Sigmoid")
    for node in [node for node in model.graph if node.op_type == "Sigmoid"]:
        (x,), (y,) = node.inputs, node.outputs
        product = ir.Node("", "Mul", [x, y], name=f"{node.name}/product")
        product.outputs[0].name, product.outputs[0].type, product.outputs[0].shape = (
            f"{y.name}/product",
            y.type,
            y.shape,
        )
        y.replace_all_uses_with(product.outputs[0])
        product.replace_input_with(1, y)
        model.graph.insert_after(node, product)
    return model


def compare(activation: str, forms: list[str], runtime: OpenVino, rounds: int, *, dynamic: bool) -> None:
    """Print a row for each form."""
    with tempfile.TemporaryDirectory() as folder:
        models = {
            name.replace(":", "-") + ".onnx": model
            for name, model in variants(activation, forms, dynamic=dynamic).items()
        }
        save(models, Path(folder))
        runs: dict[str, Callable[[], object]] = {}
        results = {}
        for file in models:
            name = file.removesuffix(".onnx").replace("-", ":")
            try:
                session = runtime.open(Path(folder) / file)
            except ActxError as error:
                row(activation, name, str(error.what), "", "")
                continue
            given = feeds([spec.name for spec in session.inputs])
            results[name] = np.concatenate([value.ravel() for value in session.run(given).values()])
            runs[name] = session.timer(given)
        times = medians(runs, rounds=rounds)
    for name, ms in times.items():
        difference = np.abs(results[name] - results[ORIGINAL]).max()
        row(activation, name, f"{ms:.1f}", f"{times[ORIGINAL] / ms:.3f}", f"{difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--dynamic", action="store_true")
    parser.add_argument("--forms", nargs="*", default=list(FORMS))
    parser.add_argument("activations", nargs="*", default=list(ACTIVATIONS))
    arguments = parser.parse_args()
    precision: Precision = arguments.precision
    shapes = "unknown shapes" if arguments.dynamic else "known shapes"
    print(f"{machine()}, OpenVINO {description()['openvino']}, {precision}, batch {BATCH}, sequence {TOKENS}, {shapes}")
    print(f"threads {arguments.threads}, medians of {arguments.rounds}\n")
    row("activation", "form", "ms", "ratio", "largest difference")
    row(*["---"] * 5)
    for activation in arguments.activations:
        runtime = OpenVino(arguments.threads, precision)
        compare(activation, arguments.forms, runtime, arguments.rounds, dynamic=arguments.dynamic)


if __name__ == "__main__":
    main()
