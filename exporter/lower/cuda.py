"""Compile the actx nodes of a graph for ONNX Runtime's CUDA provider: each carries its kernel then.

A node stays what it was, and runs on a CPU as before; one whose op has no kernels for GPUs does so always. Nodes of one kernel
and element type, whatever their tables, are compiled once.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from actx.custom_ops.gpu import GpuUnavailable
from actx.custom_ops.gpu.build import compile_kernel
from actx.custom_ops.gpu.graph import input_types
from actx.custom_ops.gpu.node import compile_node
from actx.custom_ops.ops import DOMAIN
from actx.exporter.errors import ActxError, TargetUnavailable
from actx.exporter.load.actx_nodes import check_node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actx.custom_ops.gpu.build import Binary
    from actx.custom_ops.gpu.launch import Kernel


def compile_nodes(model: ir.Model, architectures: Sequence[int]) -> ir.Model:
    """Return the model with a kernel in each actx node.

    Args:
        model: of actx nodes. It is not changed.
        architectures: compute capabilities, times 10, for which there is machine code and not only PTX.

    Raises:
        TargetUnavailable: Triton is not installed.
        ActxError: the rank of what a node reads is not known.
    """
    compiled = model.clone()
    ShapeInferencePass(check_type=False, strict_mode=False)(compiled)
    compile_one = partial(_compiled_once, {})
    for node in (node for node in compiled.graph if node.domain == DOMAIN):
        op = check_node(node)
        if not op.ON_GPU:
            continue
        try:
            found = compile_node(op, input_types(op, node), architectures, compile_one=compile_one)
        except GpuUnavailable as error:
            raise TargetUnavailable(
                "the kernels cannot be compiled here", note=str(error), remedy="Install actx with the extra gpu."
            ) from error
        except ValueError as error:
            raise ActxError(
                f"node {node.name} cannot be compiled for a GPU",
                note=str(error),
                remedy="Export the model with the ranks of its values.",
            ) from error
        for attribute in ir.convenience.convert_attributes(_tensors(found)):
            node.attributes.add(attribute)
    return compiled


def _compiled_once(
    known: dict[str, Binary], kernel: Kernel, pointers: Sequence[Any], architecture: int, *, aligned: bool
) -> Binary:
    key = str((kernel, pointers, architecture, aligned))
    if key not in known:
        known[key] = compile_kernel(kernel, pointers, architecture, aligned=aligned)
    return known[key]


def _tensors(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: ir.Tensor(value) if hasattr(value, "dtype") else value for name, value in attributes.items()}
