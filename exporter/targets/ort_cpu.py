"""ONNX Runtime on a CPU, with the native kernels of the actx ops."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import onnxruntime as ort

from actx.custom_ops import cpu
from actx.custom_ops.cpu.library import ISA_VARIABLE
from actx.exporter.fitting import Form
from actx.exporter.kernels import choose_kernels
from actx.exporter.lift.ops import contrib
from actx.exporter.machine import cpu_flags
from actx.exporter.quantize.selection import dynamic_int8, int4, static_int8
from actx.exporter.quantize.static import Style
from actx.exporter.targets.base import Abilities, Files, Graph, Target, portable, refuse_kernels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actx.exporter.kernels import Kernels
    from actx.exporter.lift.ops import Op
    from actx.exporter.quantize.source import Quantized, Source
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions

# What ONNX Runtime's own op for a kind costs on a CPU, as a multiple of the actx node that would replace it: float32, one
# thread, on AVX-512 or AVX2, whichever is less (`python -m tests.benchmarks.kernels isas`), because the device may have
# either. A kind that is not here has no op that comes near.
_COST_OF_OWN_OP = {
    "relu": 0.7, "relu6": 0.5, "hardtanh": 0.6, "leaky_relu": 0.8, "prelu": 0.8, "relu2": 1.7, "hard_sigmoid": 0.7,
    "hardswish": 2.4, "sigmoid": 0.4, "tanh": 0.3, "silu": 0.3, "gelu": 0.7, "gelu_tanh": 0.6, "quick_gelu": 0.7,
}  # fmt: skip
# Outputs are not changed unasked for less than this.
_WORTH_A_REWRITE = 1.5


class OrtCpu(Target):
    """ONNX Runtime on a CPU: a graph of actx nodes, and the kernels that run it."""

    name = "ort-cpu"
    summary = "ONNX Runtime on a CPU, with native kernels"
    fast = frozenset(kind for kind, cost in _COST_OF_OWN_OP.items() if cost < _WORTH_A_REWRITE)
    forms = tuple(Form("spline", (segments, 3)) for segments in (8, 16, 24, 32))
    # One kernel runs them all, and larger tables cost it little.
    candidates = tuple(
        map(Form.parse, ("relu", "hardswish", "pwl:8", "pwl:16", "spline:8x3", "spline:16x3", "spline:32x3"))
    )
    native = "actx"
    # Fused with the sum in front of it, a normalization is slower; and our ops take NCHW, so that Transposes stay around them.
    optimizers: ClassVar[Mapping[str, frozenset[Op]]] = {
        "SkipLayerNormFusion": contrib("SkipLayerNormalization"),
        "NhwcTransformer": contrib("QLinearConv", "NhwcMaxPool", "NhwcFusedConv"),
    }
    schemes = ("int8", "int8-dynamic", "int4")
    on_devices = True
    has_kernels = True

    def abilities(self) -> Abilities:
        """Everything; without the kernels, the portable graph."""
        kernels, missing = choose_kernels(None)
        note = "" if kernels is not None else f"{missing}: model.onnx is run. Install actx where a C++17 compiler is."
        return Abilities(versions={"onnxruntime": ort.__version__}, install=note)

    def quantize(self, scheme: str, source: Source) -> Quantized:
        """Return the graph in int8, with tables and layers that add their bias before they round, or as MatMulNBits."""
        kernels, _ = choose_kernels(None)
        runtime = None if kernels is None else kernels.register(source.options)
        if scheme == "int8-dynamic":
            return dynamic_int8(source, runtime)
        if scheme == "int4":
            return int4(source, "matmul_nbits", runtime)
        own_layers = "aarch64" not in source.architectures and _has_faster_layers(kernels)
        return static_int8(source, Style(rows=True, tables=True, own_layers=own_layers), runtime)

    def graph(self, files: Files, options: RuntimeOptions, kernels: bool | None) -> Graph:
        """Return the graph of actx nodes where this machine has the kernels, else the portable one."""
        own = files.graphs.get(self.name)
        if own is None:
            refuse_kernels(files, kernels)
            return portable(files, options, "the bundle holds this graph only")
        found, missing = files.choose(kernels, files.carried)
        if found is None:
            return portable(files, options, f"not {own}: {missing}")
        disabled = (*options.disabled_optimizers, *files.disabled_optimizers)
        runtime = found.register(replace(options, disabled_optimizers=disabled))
        return Graph(files.folder / own, runtime, f"with {found.origin}", kernels=True)


def _has_faster_layers(kernels: Kernels | None) -> bool:
    """Tell whether our int8 layers are faster here than ONNX Runtime's: with dot products of codes in AVX-512, or none."""
    if kernels is None:
        return False
    isa = os.environ.get(ISA_VARIABLE) or cpu.load(kernels.library).isas[0]
    return isa == "avx512vbmi" or (isa == "avx2" and "avx_vnni" not in cpu_flags())
