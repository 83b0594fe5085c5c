"""OpenVINO on a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from actx.exporter.bundle import PORTABLE
from actx.exporter.errors import TargetUnavailable
from actx.exporter.fitting import Form
from actx.exporter.quantize.selection import int4, static_int8
from actx.exporter.quantize.static import Style
from actx.exporter.runtimes import openvino
from actx.exporter.targets.base import Abilities, Files, Graph, Target, refuse_kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actx.exporter.data import InputSpec
    from actx.exporter.quantize.source import Quantized, Source
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions

_STYLE = Style(rows=False, tables=False, symmetric_products=True)
_BF16 = ("bf16", "int8-bf16")


class OpenVino(Target):
    """OpenVINO on a CPU.

    It computes most activations within the linear layer before them, and chains of pointwise ops in one loop where it knows the
    shapes: a form is as fast at best, but for what it has no op for. So nothing is rewritten unasked.
    """

    name = "openvino"
    summary = "OpenVINO on a CPU"
    candidates = tuple(map(Form.parse, ("relu", "hardswish", "poly:4", "poly:6", "poly:8", "poly:12")))
    native = "standard"
    schemes = ("bf16", "int8", "int8-bf16", "int4")

    def abilities(self) -> Abilities:
        """Everything, where it is installed."""
        try:
            found = openvino.description()
        except TargetUnavailable as error:
            return Abilities("", error.what, error.what, {}, error.remedy)
        return Abilities(versions={"openvino": found["openvino"]})

    def remarks(self, inputs: Sequence[InputSpec], *, rewritten: bool) -> list[str]:
        """Warn where a form cannot be fast."""
        unknown = next((spec for spec in inputs if any(isinstance(dim, str) for dim in spec.dims)), None)
        if not rewritten or unknown is None:
            return []
        text = (
            f"OpenVINO computes a form in one pass only where it knows the shapes: give sizes, as --input '{unknown}'"
        )
        return [f"{text} with numbers for names"]

    def quantize(self, scheme: str, source: Source) -> Quantized | None:
        """Return the graph with Q/DQ around what multiplies; bfloat16 is a setting of OpenVINO."""
        if scheme == "int4":
            return int4(source, "dequantize", source.options)
        return static_int8(source, _STYLE, source.options) if self.changes_graph(scheme) else None

    def changes_graph(self, scheme: str | None) -> bool:
        """bf16 is a setting."""
        return scheme not in {None, "bf16"}

    def require(self) -> None:
        """Check that it is installed."""
        openvino.description()

    def graph(self, files: Files, options: RuntimeOptions, kernels: bool | None) -> Graph:
        """Return its graph, in OpenVINO where that is installed, else in ONNX Runtime."""
        refuse_kernels(files, kernels)
        own = files.folder / files.graphs.get(self.name, PORTABLE)
        try:
            found = openvino.description()
        except TargetUnavailable as error:
            return Graph(own, replace(options, fuse_qdq=False), f"in ONNX Runtime: {error.what}", on_target=False)
        return Graph(own, _runtime(options, files.quant), f"in OpenVINO {found['openvino']}")


def _runtime(options: RuntimeOptions, scheme: str | None) -> openvino.OpenVino:
    return openvino.OpenVino(options.threads, "bf16" if scheme in _BF16 else "f32")
