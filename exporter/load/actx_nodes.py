"""The nodes of domain `actx` that a source holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from actx.custom_ops.ops import DOMAIN, OPS, OPSET
from actx.exporter.errors import ActxError
from actx.exporter.lift.regions import attributes_of

if TYPE_CHECKING:
    from actx.custom_ops.ops import Op


def check_nodes(model: ir.Model) -> None:
    """Check the attributes of the actx nodes, and that they stand where they can be rewritten.

    Raises:
        ActxError: there is no such op, it is not as the op defines it, or it is in a body of If, Loop or Scan.
    """
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN:
            continue
        if node.graph is not model.graph:
            raise ActxError(
                f"node {node.name} is an actx::{node.op_type} in a body of If, Loop or Scan",
                note="there it cannot be written as standard ops",
                remedy="Move it out of the body.",
            )
        check_node(node)


def check_node(node: ir.Node) -> Op:
    """Return the op of a node.

    Raises:
        ActxError: there is no such op, or the node is not as the op defines it.
    """
    op = OPS.get(node.op_type)
    if op is None:
        raise ActxError(
            f"node {node.name} is an actx::{node.op_type}, which does not exist",
            note=f"opset {OPSET} has {', '.join(OPS)}",
            remedy="Export the model again.",
        )
    try:
        return op.from_attributes(attributes_of(node))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ActxError(
            f"node {node.name} is not as actx::{node.op_type} is defined",
            note=str(error),
            remedy="Export the model again.",
        ) from error


# Ops whose last input is an optional multiplier.
_WITH_MULTIPLIER = {"Spline": 1, "PolyNorm": 3}


def split_products(model: ir.Model) -> None:
    """Write ``Op(.., U)`` as ``Mul(Op(..), U)``, in place: a gated site like any other, which lowering joins again."""
    for node in [node for node in model.graph if node.domain == DOMAIN and node.op_type in _WITH_MULTIPLIER]:
        place = _WITH_MULTIPLIER[node.op_type]
        multiplier = node.inputs[place] if len(node.inputs) > place else None
        if multiplier is None:
            continue
        output = node.outputs[0]
        single = ir.Node(
            DOMAIN, node.op_type, node.inputs[:place], list(node.attributes.values()), name=node.name,
            metadata_props=dict(node.metadata_props),
        )  # fmt: skip
        product = ir.Node(
            "", "Mul", [single.outputs[0], multiplier], name=f"{node.name}/product", metadata_props=dict(node.metadata_props)
        )  # fmt: skip
        name = output.name
        single.outputs[0].name = f"{name}/actx/single"
        for new in (single.outputs[0], product.outputs[0]):
            new.type, new.shape = output.type, output.shape
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [single, product], [output], [product.outputs[0]]
        )
        product.outputs[0].name = name
