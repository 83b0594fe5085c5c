"""The plugins in TensorRT's own Python layer, in a process of its own: `python -m tests.custom_ops.tensorrt.layer`.

The package `tensorrt_cu13_bindings` has that layer and not the libraries below. In their place TensorRT-RTX's are loaded, whose
plugin registry is the same interface; its builder takes no such plugins, so this ends where the layer would return to C++.
Sizes are numbers that say they are not constant.
"""

# ruff: noqa: PLC0415 - the libraries are found by what was set before this process started
from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

# As TensorRT's are called, and what stands in for them.
_LIBRARIES = {"libnvinfer.so.11": "libtensorrt_rtx.so.1", "libnvonnxparser.so.11": "libtensorrt_onnxparser_rtx.so.1"}
_ABSENT = ("libnvinfer_plugin.so.11", "int initLibNvInferPlugins(void* logger, const char* name) { return 1; }")


def run(requests: Sequence[tuple[str, list[tuple[str, tuple[int, ...]]]]], folder: Path) -> list[dict[str, Any]]:
    """Return what TensorRT is told for each node: its text, and types and sizes of its inputs.

    Args:
        requests: the nodes.
        folder: where the stand-ins are put.
    """
    libraries = Path(importlib.import_module("tensorrt_rtx_libs").__path__[0])
    for name, stand_in in _LIBRARIES.items():
        (folder / name).symlink_to(libraries / stand_in)
    name, source = _ABSENT
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(folder / name)]
    subprocess.run(command, input=source, text=True, check=True)
    answers = folder / "answers"
    subprocess.run(
        [sys.executable, "-m", __name__, str(answers)], input=pickle.dumps(requests), check=True,
        cwd=Path(__file__).parents[3], env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
    )  # fmt: skip
    found: list[dict[str, Any]] = pickle.loads(answers.read_bytes())
    return found


def main() -> None:
    """Answer the requests."""
    bindings = importlib.import_module("tensorrt_bindings")
    sys.modules["tensorrt"] = bindings
    plugin = sys.modules["tensorrt.plugin"] = importlib.import_module("tensorrt_bindings.plugin")
    from actx.custom_ops.tensorrt import register

    register()
    register()
    requests = pickle.load(sys.stdin.buffer)
    answers = [answer(bindings, plugin, *request) for request in requests]
    Path(sys.argv[1]).write_bytes(pickle.dumps(answers))


def answer(library: Any, plugin: Any, text: str, inputs: list[tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
    """Do what `_TemplateAOTPlugin` does with a node."""
    from tensorrt_bindings.plugin._lib import QDP_REGISTRY
    from tensorrt_bindings.plugin._tensor import SymIntExpr

    creator = library.get_plugin_registry().get_creator(f"Kernel{len(inputs)}", "1", "actx")
    fields = [(field.name, field.type) for field in creator.field_names]
    defined = QDP_REGISTRY[f"actx::Kernel{len(inputs)}"]

    class Number(library.IDimensionExpr):  # type: ignore[misc, name-defined]
        """A size that is not known to be constant."""

        value: int

        def is_constant(self) -> bool:
            return False

    def number(value: int) -> Any:
        found = Number.__new__(Number)
        found.value = value
        return found

    class Builder:
        """The arithmetic of sizes."""

        def constant(self, value: int) -> Any:
            return number(value)

        def operation(self, operation: Any, first: Any, second: Any) -> Any:
            kinds = library.DimensionOperation
            done = {
                kinds.SUM: first.value + second.value, kinds.SUB: first.value - second.value,
                kinds.PROD: first.value * second.value, kinds.FLOOR_DIV: first.value // (second.value or 1),
            }  # fmt: skip
            return number(done[operation])

    # Types are asked for before sizes: with ranks and no arithmetic.
    unsized = [
        plugin.TensorDesc(plugin.ShapeExprs(len(shape), _is_dummy=True), getattr(library.DataType, dtype))
        for dtype, shape in inputs
    ]
    for one in unsized:
        one._immutable = True
    SymIntExpr._exprBuilder = None
    kind = defined.register_func(*unsized, launch=text).dtype.name
    SymIntExpr._exprBuilder = Builder()
    described = []
    for dtype, shape in inputs:
        sizes = plugin.ShapeExprs.from_tuple([plugin.ShapeExpr(number(size)) for size in shape])
        described.append(plugin.TensorDesc(sizes, getattr(library.DataType, dtype)))
    output = defined.register_func(*described, launch=text)
    symbol, ptx, parameters, integers = defined.aot_impl_func(*described, text, (output,), 0)
    names = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")
    return {
        "type": kind, "fields": [(name, str(kind)) for name, kind in fields],
        "output": (output.dtype.name, tuple(size._expr.value for size in output.shape_expr)),
        "symbol": symbol, "ptx": ptx, "launch": {name: getattr(parameters, name)._expr.value for name in names},
        "integers": [(type(one).__name__, one._expr.value) for one in integers],
    }  # fmt: skip


if __name__ == "__main__":
    main()
