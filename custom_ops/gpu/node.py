"""Compile the kernel of a node into attributes of it, which a launcher needs neither Python nor Triton for.

`actx.custom_ops.ops.cuda` says what they mean. Where a size is not known, the kernel is the one for wide rows; where it is not
known whether rows start at multiples of 16 bytes, there are two images, and the launcher takes its choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from actx.custom_ops.gpu.build import ARCHITECTURES, compile_kernel
from actx.custom_ops.gpu.launch import compilation, split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actx.custom_ops.gpu.build import Binary
    from actx.custom_ops.ops import Op, TensorType

# PTX of the oldest runs on all newer ones, compiled by the driver; that of 9.0 and later would run on no other.
PORTABLE = ARCHITECTURES[0]


def compile_node(
    op: Op,
    inputs: Sequence[TensorType | None],
    architectures: Sequence[int] = (),
    *,
    compile_one: Callable[..., Binary] = compile_kernel,
) -> dict[str, Any]:
    """Return the attributes.

    Args:
        op: the node.
        inputs: types of its inputs, None for one that is absent; sizes may be names or None.
        architectures: for which there is machine code beside the PTX (see `ARCHITECTURES`).
        compile_one: `compile_kernel`, or what remembers its results.

    Raises:
        GpuUnavailable: Triton is not installed.
        ValueError: types or shapes do not fit, the rank of the first input is not known, or there is no such architecture.
    """
    found = compilation(op, inputs)
    kernel, (rows, channel_axis) = found.kernel, split(op, inputs)
    alignments = (True, False) if found.aligned is None else (found.aligned,)
    images: list[tuple[bytes, int, bool, int]] = []
    for aligned in alignments:
        for architecture in dict.fromkeys((PORTABLE, *architectures)):
            binary = compile_one(kernel, found.pointers, architecture, aligned=aligned)
            shared = binary.description["shared_bytes"]
            if architecture == PORTABLE:
                images.append((binary.ptx.encode() + b"\0", architecture, aligned, shared))
            if architecture in architectures:
                images.append((binary.cubin, architecture, aligned, shared))
    codes, targets, aligned_for, shared_bytes = zip(*images, strict=True)
    attributes = {
        "code": np.frombuffer(b"".join(codes), np.uint8), "code_sizes": [len(code) for code in codes],
        "architectures": list(targets), "aligned": [int(one) for one in aligned_for], "shared_bytes": list(shared_bytes),
        "symbol": binary.description["symbol"], "threads": binary.description["threads"], "table": found.table,
        "inputs": list(kernel.inputs), "rows": rows, "integers": len(kernel.integers),
        "tile": [kernel.tile[0], kernel.tile[1] or 0],
    }  # fmt: skip
    if channel_axis is not None:
        attributes["channel_axis"] = channel_axis
    return {f"cuda_{name}": value for name, value in attributes.items()}
