"""ONNX Runtime on an NVIDIA GPU, with the kernels of the actx ops compiled into the graph."""

from __future__ import annotations

import ctypes
import importlib.metadata
from dataclasses import replace
from typing import TYPE_CHECKING

import onnxruntime as ort

from actx.custom_ops.gpu import GpuUnavailable, require_triton
from actx.custom_ops.gpu.build import ARCHITECTURES
from actx.exporter.fitting import Form
from actx.exporter.lower.cuda import compile_nodes
from actx.exporter.runtimes.onnxruntime import CUDA
from actx.exporter.targets.base import Abilities, Files, Graph, Target, portable, refuse_kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from actx.exporter.runtimes.onnxruntime import RuntimeOptions

_INSTALL = "Install onnxruntime-gpu in place of onnxruntime, on a machine with an NVIDIA GPU and its driver."


class OrtCuda(Target):
    """ONNX Runtime's CUDA provider: a graph of actx nodes, each with its kernel.

    A GPU computes any activation at about the speed of its memory, and which form is faster has not been measured: nothing is
    rewritten unasked. What is rewritten is one kernel, where ONNX Runtime has one for each op of the formula.
    """

    name = "ort-cuda"
    summary = "ONNX Runtime on NVIDIA GPUs, with kernels in the graph"
    candidates = tuple(map(Form.parse, ("relu", "hardswish", "pwl:16", "spline:16x3")))
    native = "actx"
    has_kernels = True
    gpu_architectures = tuple(f"sm_{one}" for one in ARCHITECTURES)

    def abilities(self) -> Abilities:
        """Built where Triton is; run and profiled where ONNX Runtime has the provider."""
        missing = _no_cuda()
        versions = {"onnxruntime": ort.__version__}
        try:
            require_triton()
        except GpuUnavailable as error:
            return Abilities(str(error), missing, missing, versions, "Install actx with the extra gpu.")
        versions["triton"] = importlib.metadata.version("triton")
        return Abilities("", missing, missing, versions, _INSTALL if missing else "")

    def compile(self, graph: ir.Model, architectures: Sequence[str]) -> ir.Model:
        """Put its kernel into each node."""
        return compile_nodes(graph, [int(name.removeprefix("sm_")) for name in architectures])

    def graph(self, files: Files, options: RuntimeOptions, kernels: bool | None) -> Graph:
        """Return its graph, on the GPU where that can be, else on the CPU, by whose kernels the same nodes run."""
        own, missing = files.graphs.get(self.name), _no_cuda()
        runtime = options if missing else replace(options, provider=CUDA)
        where = f" on the CPU: {missing}" if missing else ""
        if own is None:
            refuse_kernels(files, kernels)
            return portable(files, runtime, f"the bundle holds this graph only{where}", on_target=not missing)
        found, lacking = files.choose(kernels, files.carried)
        if found is None:
            return portable(files, runtime, f"not {own}: {lacking}{where}", on_target=not missing)
        return Graph(
            files.folder / own,
            found.register(runtime),
            f"with {found.origin}{where}",
            on_target=not missing,
            kernels=True,
        )


def _no_cuda() -> str:
    """Say why ONNX Runtime has no GPU here; empty where it has."""
    if CUDA not in ort.get_available_providers():
        return f"ONNX Runtime {ort.__version__} here has no {CUDA}"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver"
    return ""
