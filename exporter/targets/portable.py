"""No runtime in particular: the portable graph of standard ops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnxruntime as ort

from actx.exporter.targets.base import Abilities, Files, Graph, Target, portable, refuse_kernels

if TYPE_CHECKING:
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions


class Portable(Target):
    """ONNX for any runtime; ONNX Runtime on the CPU stands in for it where it is measured."""

    name = "onnx"
    summary = "standard ops for any runtime"
    on_devices = True

    def abilities(self) -> Abilities:
        """Everything."""
        return Abilities(versions={"onnxruntime": ort.__version__})

    def graph(self, files: Files, options: RuntimeOptions, kernels: bool | None) -> Graph:
        """Return the portable graph."""
        refuse_kernels(files, kernels)
        return portable(files, options, "the bundle holds this graph only")
