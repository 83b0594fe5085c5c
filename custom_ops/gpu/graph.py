"""What a graph says of the inputs of an actx node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actx.custom_ops.ops import TensorType

if TYPE_CHECKING:
    import onnx_ir as ir

    from actx.custom_ops.ops import Op


def input_types(op: Op, node: ir.Node) -> list[TensorType | None]:
    """Return types and shapes of a node's inputs, in the order of its op; None for one that is absent.

    Raises:
        ValueError: the type of one is not known.
    """
    found = [None if value is None else _type(value) for value in node.inputs]
    return [*found, *[None] * (len(op.INPUTS) - len(found))]


def _type(value: ir.Value) -> TensorType:
    if value.dtype is None:
        msg = f"the type of {value.name} is not known: infer the types of the graph first"
        raise ValueError(msg)
    sizes = None if value.shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return TensorType(value.dtype.numpy(), sizes)
