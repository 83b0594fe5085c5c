"""Replace the actx nodes of a graph by nodes that hold their code: see `kernel_node`.

1. Every node of domain `actx` in the main graph is replaced, or those whose names are given. Types and ranks must be known.
2. The table becomes an initializer.
3. Nodes of equal launches share nothing: the parser wants the attribute at each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from actx.custom_ops.gpu.graph import input_types
from actx.custom_ops.ops import DOMAIN, OPS, Op
from actx.custom_ops.tensorrt.kernel_node import ATTRIBUTE, kernel_node

if TYPE_CHECKING:
    from collections.abc import Container


def embed(model: ir.Model, architecture: int, names: Container[str] | None = None) -> int:
    """Embed the kernels into a model, which is modified, and return how many nodes were replaced.

    Args:
        model: with the types and ranks of the inputs of actx nodes.
        architecture: compute capability of the device times 10: 87 for Orin.
        names: of the nodes to replace, None for all.

    Raises:
        GpuUnavailable: Triton is not installed.
        ValueError: a node is not as its op defines it, its type or rank is not known, or there are no kernels for the device.
    """
    chosen = [
        node
        for node in model.graph
        if node.domain == DOMAIN and _has_kernels(node) and (names is None or node.name in names)
    ]
    for node in chosen:
        try:
            _replace(model.graph, node, architecture)
        except ValueError as error:
            msg = f"node {node.name}: {error}"
            raise ValueError(msg) from error
    return len(chosen)


def is_plugin(node: ir.Node) -> bool:
    """Tell whether a node is one that `embed` made."""
    return node.domain == DOMAIN and ATTRIBUTE in node.attributes


def _has_kernels(node: ir.Node) -> bool:
    return node.op_type in OPS and OPS[node.op_type].ON_GPU


def _replace(graph: ir.Graph, node: ir.Node, architecture: int) -> None:
    op = _op(node)
    launch, table = kernel_node(op, input_types(op, node), architecture)
    output = node.outputs[0]
    constant = ir.val(f"{output.name}_table", const_value=ir.tensor(np.asarray(table), name=f"{output.name}_table"))
    graph.register_initializer(constant)
    given = [*(value for value in node.inputs if value is not None), constant]
    # A plugin has a fixed number of inputs, so there is one per number.
    kernel = ir.node(
        f"Kernel{len(given)}", given, {ATTRIBUTE: launch.text()}, domain=DOMAIN, name=node.name,
        metadata_props=dict(node.metadata_props),
    )  # fmt: skip
    ir.convenience.replace_nodes_and_values(graph, node, [node], [kernel], [output], kernel.outputs)


def _op(node: ir.Node) -> Op:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return OPS[node.op_type].from_attributes(attributes)
