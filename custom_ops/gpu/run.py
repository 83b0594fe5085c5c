"""The kernels on torch tensors.

1. A call launches one kernel on the current stream of the tensors' device, and neither waits nor copies. The first call of a
   node with its element types compiles the kernel and uploads the table: a CUDA graph is captured after one.
2. Tables stay on their device as long as the cache holds them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from actx.custom_ops.gpu import kernels
from actx.custom_ops.gpu.launch import plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actx.custom_ops.gpu.launch import Kernel, Launch
    from actx.custom_ops.ops import Op, TensorType

Tensors: TypeAlias = "Sequence[torch.Tensor | None]"

_NODES = 4096  # nodes with their shapes; what is forgotten is planned and uploaded again


def run(op: Op, types: Sequence[TensorType | None], tensors: Tensors, output: torch.Tensor) -> torch.Tensor:
    """Launch the kernel of a node.

    Args:
        op: the node; the same object for each call, so that it is planned once.
        types: types and shapes of the tensors.
        tensors: in the order of the op, None for one that is absent; what is not contiguous is copied on the device.
        output: where the result goes, contiguous.
    """
    chosen, table = _planned(op, tuple(types), output.device)
    if output.numel():
        inputs = [tensors[place].contiguous() for place in chosen.kernel.inputs]  # type: ignore[union-attr]
        launch(chosen.kernel, chosen.grid, [*inputs, output, table, *chosen.integers])
    return output


def launch(kernel: Kernel, programs: int, arguments: Sequence[Any]) -> None:
    """Launch a kernel on the device of its first argument."""
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
        # Products and sums may fuse into one rounding, which the contracts allow for.
        getattr(kernels, kernel.name)[(programs,)](
            *arguments, **kernel.constexprs, num_warps=kernel.warps, enable_fp_fusion=True
        )


@lru_cache(_NODES)
def _planned(op: Op, types: tuple[TensorType | None, ...], device: torch.device) -> tuple[Launch, torch.Tensor]:
    planned = plan(op, types)
    return planned, _uploaded(planned.table.tobytes(), planned.table.dtype.str, device)


@lru_cache(_NODES)
def _uploaded(numbers: bytes, dtype: str, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(numbers, dtype).copy()).to(device)
