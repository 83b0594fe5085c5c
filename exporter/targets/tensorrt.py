"""TensorRT and TensorRT-RTX on NVIDIA GPUs: one module, because the libraries are the same but for their names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actx.custom_ops.ops import DOMAIN
from actx.exporter.bundle import engine_name
from actx.exporter.errors import TargetUnavailable
from actx.exporter.fitting import Form
from actx.exporter.quantize import SCHEMES, quantize
from actx.exporter.quantize.source import Quantized
from actx.exporter.targets.base import Abilities, BuildRequest, Files, Graph, Progress, Target, portable, refuse_kernels
from actx.exporter.tensorrt.build import build
from actx.exporter.tensorrt.command import command
from actx.exporter.tensorrt.device import require_gpu
from actx.exporter.tensorrt.engine import EngineRuntime
from actx.exporter.tensorrt.library import TARGETS as LIBRARIES
from actx.exporter.tensorrt.library import describe, find
from actx.exporter.tensorrt.plugins import plugin_architecture, with_plugins

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from actx.exporter.quantize.source import Source
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions
    from actx.exporter.tensorrt.options import BuildOptions


class _TensorRt(Target):
    """A typed graph, and the engine that is built from it. A GPU runs any pointwise function at the speed of its memory."""

    candidates = tuple(map(Form.parse, ("relu", "hardswish", "poly:4", "poly:8")))
    schemes = tuple(SCHEMES)
    has_engine = True
    builds_without_gpu = False

    def abilities(self) -> Abilities:
        """Return what the library and the machine allow."""
        try:
            found = describe(self.name)
        except TargetUnavailable as error:
            return Abilities(error.what, error.what, error.what, {}, error.remedy)
        no_gpu = f"no GPU: {found['no_gpu']}" if found["gpu"] is None else ""
        return Abilities(
            "" if self.builds_without_gpu else no_gpu, no_gpu, no_gpu, {found["library"]: found["version"]}
        )

    def check_options(self, options: BuildOptions) -> None:
        """Check that the library has the options."""
        options.check(self.name)

    def quantize(self, scheme: str, source: Source) -> Quantized:
        """Return the portable graph in the types of the scheme."""
        batches = None if source.data.synthetic else source.feeds()
        typed = quantize(source.lowered.portable, scheme, batches=batches, options=source.options)
        return Quantized(typed)

    def require(self) -> None:
        """Check that the library is installed; whether it also needs a GPU it says itself."""
        find(self.name)

    def build(
        self, graph: Path, engine: Path, request: BuildRequest, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Build the engine; one of its facts is the library's own command that builds the same in the bundle's folder.

        There is none for a graph with plugins.
        """
        profile, options = request.profile, request.options
        built = build(graph, engine, target=self.name, profile=profile, options=options, progress=progress)
        if built.facts["plugins"]:
            return built.facts  # the library's own tool has no plugins of ours
        return {**built.facts, "command": self.command(graph, request)}

    def command(self, graph: Path, request: BuildRequest) -> str:
        """Return the command of the library's own tool that builds the same, in the bundle's folder and to beside it."""
        names = Path(graph.name), Path("..") / engine_name(self.name)
        return command(*names, target=self.name, profile=request.profile, options=request.options)

    def graph(self, files: Files, options: RuntimeOptions, kernels: bool | None) -> Graph:
        """Return the engine where this machine runs it, else the typed graph in ONNX Runtime."""
        refuse_kernels(files, kernels)
        own = next((files.graphs[name] for name in LIBRARIES if name in files.graphs), None)  # both take the same graph
        built = files.engines.get(self.name)
        if own is None:
            return portable(files, options, "in ONNX Runtime: the bundle holds this graph only", on_target=False)
        typed, literal = files.folder / own, replace(options, fuse_qdq=False)
        if built is None:
            return Graph(typed, literal, "in ONNX Runtime: no engine was built", on_target=False)
        engine = files.folder / built.file
        stated = built.facts.get("graph")  # a manifest may state anything: only the bundle's own graphs are opened
        parsed = next((name for name in files.graphs.values() if name == stated), own)
        runtime = engine_runtime(self.name, options, built.facts, files.folder / parsed, trust=files.trust)
        try:
            find(self.name)
            require_gpu("the engine cannot be run")
        except TargetUnavailable as error:
            return Graph(typed, literal, f"in ONNX Runtime: {error.what}", on_target=False)
        return Graph(engine, runtime, f"the engine in {runtime.name}", source=typed)


def engine_runtime(
    target: str, options: RuntimeOptions, facts: Mapping[str, Any], graph: Path | None, *, trust: bool
) -> EngineRuntime:
    """Return what runs an engine."""
    asked = options.engine
    return EngineRuntime(
        target, facts, graph, cuda_graph=asked.cuda_graph, transfers=asked.transfers, spin=asked.spin, trust=trust
    )


class Trt(_TensorRt):
    """TensorRT: data centre and Jetson."""

    name = "trt"
    summary = "TensorRT 10.12 or newer on NVIDIA GPUs and Jetson"
    has_plugins = True

    def require_plugins(self) -> int:
        """Check that the library, a GPU that there are kernels for, and Triton are here."""
        find(self.name)
        return plugin_architecture()

    def compile(self, graph: ir.Model, architectures: Sequence[str]) -> ir.Model:
        """Put its kernel for the GPU of this machine into each actx node; a graph without such nodes is what it was."""
        del architectures
        if not any(node.domain == DOMAIN for node in graph.graph):
            return graph
        return with_plugins(graph, self.require_plugins())


class TrtRtx(_TensorRt):
    """TensorRT-RTX: engines for desktop GPUs, built on any machine and finished on the GPU."""

    name = "trt-rtx"
    summary = "TensorRT for RTX GPUs; built without a GPU"
    builds_without_gpu = True
