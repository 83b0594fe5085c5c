"""What the tests of quantization share: a lowered graph of a network, its outputs in ONNX Runtime, distances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from actx.exporter.choose import choose
from actx.exporter.fitting import Form
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.lower import lower
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.save import save
from actx.exporter.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

# Q/DQ as they are written, whatever the machine has kernels for.
LITERAL = RuntimeOptions(fuse_qdq=False)
# Unit roundoff of float16: a number that is stored in it differs by at most this much of itself.
UNIT = 2.0**-11


def lowered(source: onnx.ModelProto | Path, folder: Path, form: str = "keep", opset: int | None = None) -> ir.Model:
    """The portable graph of a model whose sites all have one form."""
    if isinstance(source, onnx.ModelProto):
        onnx.save(source, folder / "source.onnx")
        source = folder / "source.onnx"
    model = load(source, opset=opset).model
    choices = choose(lift(model).sites, find_target("onnx"), form=Form.parse(form))
    return lower(model, choices, native=None).portable


def store(model: ir.Model, folder: Path, name: str = "graph.onnx") -> Path:
    save({name: model}, folder, f"{name}.data")
    return folder / name


def outputs(
    model: ir.Model, folder: Path, batches: Iterable[dict[str, NDArray[Any]]], options: RuntimeOptions = LITERAL
) -> list[dict[str, NDArray[Any]]]:
    """Check a graph strictly and run it, once per batch."""
    path = store(model, folder)
    onnx.checker.check_model(path, full_check=True)
    session = options.open(path)
    return [session.run(feeds) for feeds in batches]


def relative_l2(of: Iterable[dict[str, NDArray[Any]]], to: Iterable[dict[str, NDArray[Any]]], name: str) -> float:
    """||a - b|| / ||b|| of one output over all batches; NaN or infinity where an output has one."""
    a, b = (np.concatenate([o[name].astype(np.float64).reshape(-1) for o in run]) for run in (of, to))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
