"""Cases of every op as a plugin in an engine of TensorRT, against the float64 reference; and an export that may take plugins.

    python -m tests.gpu.tensorrt_plugins

prints rows of the page, and ends with 1 where one is broken. run.sh runs it in a process of its own: a plugin that fails may
leave its process without a GPU.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from actx.custom_ops.ops import TensorType
from actx.exporter import Form, export
from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError
from actx.exporter.targets import TARGETS
from actx.exporter.tensorrt.build import build
from actx.exporter.tensorrt.engine import EngineRuntime
from actx.exporter.tensorrt.plugins import with_plugins
from actx.exporter.tensorrt.shapes import resolve
from actx.models.demo import ARCHIVE, CALIBRATION, demo_path
from tests.custom_ops.cpu.nodes import model
from tests.op_cases import GPU_OPS, cases

if TYPE_CHECKING:
    from tests.op_cases import Case

EVERY = 20  # of the cases: each is an engine of its own
TYPES = frozenset({"float32", "float16", "int8"})  # that numpy has, and TensorRT takes for codes
MOST_DRIFT = 1e-3


def check(op_type: str, architecture: int) -> tuple[int, list[str]]:
    """Return how many cases of the op were run, and those that break the contract or give no engine."""
    found = [case for case in cases(op_type) if _taken(case)][::EVERY]
    return len(found), [f"{case}{why}" for case in found if (why := _broken(case, architecture)) is not None]


def _taken(case: Case) -> bool:
    given = [one for one in case.inputs if one is not None]
    return all(one.size and one.ndim and one.dtype.name in TYPES for one in given)


def _broken(case: Case, architecture: int) -> str | None:
    """Say what is wrong with the result, empty where it breaks the contract; None where it does not."""
    try:
        agrees = bool(case.op.agrees(_run(case, architecture), case.inputs).all())
    except (ActxError, ValueError) as error:
        return f" ({error.args[0]})"
    return None if agrees else ""


def _run(case: Case, architecture: int) -> np.ndarray:
    types = [None if one is None else TensorType.of(one) for one in case.inputs]
    content = model(case.op.NAME, case.op.attributes(), types, case.op.output(types))
    feeds = {f"x{i}": np.asarray(one) for i, one in enumerate(case.inputs) if one is not None}
    specs = tuple(InputSpec(name, one.dtype.name, one.shape) for name, one in feeds.items())
    with tempfile.TemporaryDirectory() as folder:
        graph, engine = Path(folder) / "model.onnx", Path(folder) / "model.engine"
        ir.save(with_plugins(ir.from_proto(onnx.load_from_string(content)), architecture), graph)
        built = build(graph, engine, target="trt", profile=resolve(specs))
        (result,) = EngineRuntime("trt", built.facts, graph).open(engine).run(feeds).values()
    return result


def check_export() -> tuple[int, list[str]]:
    """Return how many sites of the demo's network may have a plugin, and what is wrong with its engine."""
    with tempfile.TemporaryDirectory() as folder:
        exported = export(
            demo_path(ARCHIVE), Path(folder) / "out", target="trt", data=str(demo_path(CALIBRATION)), quant="fp16",
            form=Form.parse("spline:16x3"), kernels=True,
        )  # fmt: skip
    engine, typed = exported.drifts[:2]
    decided = {site.name: site.plugin for site in exported.manifest.sites}
    sys.stderr.write("".join(f"{name}: {plugin}\n" for name, plugin in decided.items()))
    wrong = [f"{name}: {plugin.reason}" for name, plugin in decided.items() if plugin and plugin.latency is None]
    far = engine.graph != "model.trt.engine" or abs(engine.drift - typed.drift) > MOST_DRIFT
    return len(decided), [*wrong, *([f"{engine.graph} drifts by {engine.drift:g}"] if far else [])]


def main() -> int:
    """Print the rows; 1 where one is broken."""
    try:
        architecture = TARGETS["trt"].require_plugins()
    except ActxError as error:
        print(f"| plugins in TensorRT | 0 | not run: {error.what} |")
        return 0
    broken = 0
    for op_type in GPU_OPS:
        sys.stderr.write(f"in TensorRT: {op_type}\n")
        count, wrong = check(op_type, architecture)
        broken += len(wrong)
        print(f"| {op_type} in TensorRT | {count} | {len(wrong)} {' '.join(wrong[:5])} |", flush=True)
    count, wrong = check_export()
    print(f"| sites of an export to TensorRT | {count} | {len(wrong)} {' '.join(wrong[:5])} |")
    return broken + len(wrong) > 0


if __name__ == "__main__":
    raise SystemExit(main())
