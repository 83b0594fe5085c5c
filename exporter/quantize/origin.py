"""Where the channels of a value come from: the layer whose outputs they are, through what only moves or mixes rows.

What an attention gives is the layer of its values, in whose columns its channels stand in another order: Reshape and Transpose
move them, and the product with the probabilities adds rows of one channel. So a factor per channel of it is a factor per column
of that layer's weight and bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actx.exporter.lift.ops import op_of, standard, tensor_of
from actx.exporter.linear import MATMUL

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

TRANSPOSE = ("", "Transpose")
MOVES = standard("Reshape", "Transpose")


def origin(value: ir.Value) -> tuple[ir.Value, NDArray[np.intp]] | None:
    """Return a value further up, and for every channel of `value` the one channel there that it comes from.

    Channels run over the last axis. Every value on the way has one reader, and nobody else sees the result: what divides a
    channel up there divides it here, and nothing else. The value itself is returned where nothing moves it.

    Returns:
        None where a channel comes from several, or shapes are not known.
    """
    path: list[ir.Node] = []
    top = value
    while (step := _step(top)) is not None:
        node, top = step
        path.append(node)
        if len(top.consumers()) > 1 or top.is_graph_output():
            return None
    if top.shape is None or not isinstance(width := top.shape[-1], int):
        return None
    channels: NDArray[np.intp] | None = np.arange(width).reshape(*[1] * (len(top.shape) - 1), width)
    for node in reversed(path):
        channels = None if channels is None else _through(node, channels)
    if channels is None or channels.shape[-1] != width:
        return None
    return top, channels.reshape(-1)


def _step(value: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """Return what gives a value, and the input whose channels it gives on; None where it computes."""
    node = value.producer()
    if node is None:
        return None
    is_product = op_of(node) == MATMUL and all(tensor_of(factor) is None for factor in node.inputs)
    source = node.inputs[1 if is_product else 0] if is_product or op_of(node) in MOVES else None
    return None if source is None else (node, source)


def _through(node: ir.Node, channels: NDArray[np.intp]) -> NDArray[np.intp] | None:
    """Return the channels of what a node gives, by place; axes on which they do not differ have one element."""
    if op_of(node) == TRANSPOSE:
        return channels.transpose(node.attributes.get_ints("perm", default=range(channels.ndim)[::-1]))
    if op_of(node) == MATMUL:
        (rows, _) = node.inputs
        same_rank = rows is not None and rows.shape is not None and len(rows.shape) == channels.ndim
        return channels if same_rank and channels.shape[-2] == 1 else None
    shape = node.outputs[0].shape
    return None if shape is None else _reshaped(channels, list(shape))


def _reshaped(channels: NDArray[np.intp], shape: list[int | ir.SymbolicDim]) -> NDArray[np.intp] | None:
    """Give the last axes together to the channels, as they had the last axes together before."""
    last = np.squeeze(channels).shape
    if channels.shape[channels.ndim - len(last) :] != last:
        return None
    sizes: list[int] = []
    while shape and isinstance(size := shape[-1], int) and np.prod(sizes, dtype=int) < channels.size:
        sizes.insert(0, size)
        shape.pop()
    if np.prod(sizes, dtype=int) != channels.size:
        return None
    return channels.reshape(*[1] * len(shape), *sizes)
