"""Graphs whose actx nodes carry their code, as TensorRT takes them: see `custom_ops.tensorrt`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import ShapeInferencePass

from actx.custom_ops.gpu import GpuUnavailable, require_triton
from actx.custom_ops.gpu.build import ARCHITECTURES
from actx.custom_ops.ops import register_schemas
from actx.custom_ops.tensorrt import PluginsUnavailable, embed, register
from actx.exporter.errors import ActxError, TargetUnavailable
from actx.exporter.tensorrt.device import require_gpu

if TYPE_CHECKING:
    import onnx_ir as ir


def plugin_architecture() -> int:
    """Return the compute capability of this machine's GPU, times 10, for which plugins can be compiled here.

    Raises:
        TargetUnavailable: there is no GPU, there are no kernels for it, or Triton is not installed.
    """
    gpu = require_gpu("plugins cannot be measured")
    number = int(gpu.compute_capability.replace(".", ""))
    if number not in ARCHITECTURES:
        note = f"{gpu.name}; available: {', '.join(f'{known / 10:g}' for known in ARCHITECTURES)}"
        raise TargetUnavailable(f"there are no plugins for compute capability {gpu.compute_capability}", note=note)
    try:
        require_triton()
    except GpuUnavailable as error:
        raise TargetUnavailable(
            "plugins cannot be compiled here", note=str(error), remedy="Install actx with the extra gpu."
        ) from error
    return number


def with_plugins(graph: ir.Model, architecture: int) -> ir.Model:
    """Return a graph in which every actx node has become a plugin. The given one is not changed.

    Args:
        graph: typed.
        architecture: compute capability of the device times 10.

    Raises:
        ActxError: a node cannot be compiled.
    """
    compiled = graph.clone()
    register_schemas()
    ShapeInferencePass(check_type=False, strict_mode=False)(compiled)
    try:
        embed(compiled, architecture)
    except ValueError as error:
        remedy = "Export the model with the ranks of its values, or add --no-kernels."
        raise ActxError("a plugin cannot be compiled", note=str(error), remedy=remedy) from error
    return compiled


def register_plugins() -> None:
    """Make TensorRT's parser take such graphs, in this process.

    Raises:
        TargetUnavailable: TensorRT has no such plugins here.
    """
    try:
        register()
    except PluginsUnavailable as error:
        raise TargetUnavailable("the engine's plugins cannot be built here", note=str(error)) from error
