"""What a node `actx::KernelN` holds: the code of one launch, and what it is launched with as arithmetic of the output's sizes.

1. Inputs are those of the op that are not absent, in its order, then the table of `gpu.tables`. N is how many there are.
2. The one attribute `launch` is a text of JSON: the fields of `KernelNode`. One text is all that the parser has to carry over,
   and TensorRT (11.4 too) passes the attributes of a plugin by place, in the order in which the parser happened to find them.
3. The kernel takes the inputs, the integers, then the output: the order in which TensorRT passes them.
4. An integer is a product of sizes of the output, given by their axes; the grid follows from the first two by `gpu.grid`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from actx.custom_ops.gpu.build import compile_kernel
from actx.custom_ops.gpu.launch import Kernel, compilation, split
from actx.custom_ops.ops.gated_spline import GatedSplineOp
from actx.custom_ops.tensorrt.ptx import with_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from actx.custom_ops.ops import Op, TensorType

ATTRIBUTE = "launch"
# Numbers of inputs that nodes have: Lut has X and the table, PolyNorm has X, W, B, U and the table.
INPUT_COUNTS = range(2, 6)
# Bytes of shared memory that any launch may ask for; more would take an attribute of the function.
SHARED_BYTES = 48 * 1024


@dataclass(frozen=True)
class KernelNode:
    """The attribute of a node.

    Attributes:
        kernel: what was compiled.
        ptx: its code, for one compute capability.
        shared_bytes: its shared memory.
        integers: for each integer, the axes of the output whose sizes it is the product of.
        output: name of the element type of the output.
        halved: the axis along which the output is half as long as the first input, not negative; None where it has its shape.
    """

    kernel: Kernel
    ptx: str
    shared_bytes: int
    integers: tuple[tuple[int, ...], ...]
    output: str
    halved: int | None

    def text(self) -> str:
        """2."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what a text says; zero bytes at its end do not count."""
        fields = json.loads(text.rstrip("\0"), object_hook=_with_tuples)
        return cls(**{**fields, "kernel": Kernel(**fields["kernel"])})


def kernel_node(
    op: Op, inputs: Sequence[TensorType | None], architecture: int
) -> tuple[KernelNode, NDArray[np.generic]]:
    """Compile the kernel of a node, and return it with its table.

    Args:
        op: the node.
        inputs: types and shapes, in the order of the op; None for an input that is absent. Of the first one the rank must be
            known; sizes that are not (names, or None) are left to the launch.
        architecture: compute capability times 10.

    Raises:
        GpuUnavailable: Triton is not installed.
        ValueError: types or shapes do not fit, the rank is not known, or there are no kernels for the compute capability.
    """
    found, output, first = compilation(op, inputs), op.output(inputs), inputs[0]
    assert first is not None
    assert first.shape is not None
    kernel = found.kernel
    binary = compile_kernel(kernel, found.pointers, architecture, aligned=bool(found.aligned))
    shared = binary.description["shared_bytes"]
    assert shared <= SHARED_BYTES, f"{kernel.name} takes {shared} bytes of shared memory"
    return KernelNode(
        kernel,
        with_parameters(binary.ptx, kernel.name, _places(kernel, inputs)),
        shared,
        axes(op, inputs)[: len(kernel.integers)],
        output.dtype.name,
        op.axis % len(first.shape) if isinstance(op, GatedSplineOp) else None,
    ), found.table


def _with_tuples(found: dict[str, Any]) -> dict[str, Any]:
    """Return what was read of a mapping, with tuples for lists, and for lists in lists."""
    return {
        name: tuple(tuple(item) if isinstance(item, list) else item for item in value)
        if isinstance(value, list)
        else value
        for name, value in found.items()
    }


def axes(op: Op, inputs: Sequence[TensorType | None]) -> tuple[tuple[int, ...], ...]:
    """4. Return the axes of rows, columns and channels, whatever the sizes; the rank of the first input is known."""
    first = inputs[0]
    assert first is not None
    assert first.shape is not None
    rank = len(first.shape)
    rows, channels = split(op, inputs)
    start = rows % rank if rows < 0 else rows
    return tuple(range(start)), tuple(range(start, rank)), () if channels is None else (channels % rank,)


def _places(kernel: Kernel, inputs: Sequence[TensorType | None]) -> list[int]:
    """3. The kernel itself takes the inputs, with stand-ins for those that are absent, the output, the table, the integers."""
    given = [kernel.inputs.index(place) for place, tensor in enumerate(inputs) if tensor is not None]
    output = len(kernel.inputs)
    table = output + 1
    return [*given, table, *range(table + 1, table + 1 + len(kernel.integers)), output]
