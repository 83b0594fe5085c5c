"""Keep the weights of a module in a file that is mapped, so that the system can drop their pages when it needs the memory.

A model is held for as long as it is exported, beside the sessions that run it. Its weights are read a few times and in order,
when graphs are written. The file is temporary and has no name: it is gone with the last tensor that is mapped to it.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from torch import Tensor, nn

# Where tensors begin in the file: a multiple of the size of any element, and of a line of the cache.
_ALIGNMENT = 64


@dataclass(frozen=True)
class MappedWeights:
    """What the weights of a module are mapped from; none where it has none, or they were not mapped."""

    file: mmap.mmap | None = field(default=None, repr=False)

    def drop(self) -> None:
        """Take the pages out of this process's memory; the next reader of a weight gets them from the file again."""
        if self.file is not None:
            self.file.madvise(mmap.MADV_DONTNEED)


def map_weights(module: nn.Module) -> MappedWeights:
    """Move the parameters of a module into a mapped file, one after the other; those that are one stay one.

    Raises:
        ActxError: there is no space for the file.
    """
    import torch  # noqa: PLC0415 - slow to import, and not needed for ONNX files

    weights = [weight for weight in module.parameters() if _is_plain(weight.data)]
    offsets, size = [], 0
    for weight in weights:
        offsets.append(size)
        size += -(-weight.numel() * weight.element_size() // _ALIGNMENT) * _ALIGNMENT
    if not size:
        return MappedWeights()
    try:
        with tempfile.TemporaryFile(prefix="actx-") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a mapped file that finds the disk full would end the process
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise ActxError(
            f"cannot keep {size} bytes of weights in {tempfile.gettempdir()}",
            note=str(error),
            remedy="Free space there, or set TMPDIR to another folder.",
        ) from error
    for weight, offset in zip(weights, offsets, strict=True):
        place = torch.frombuffer(mapped, dtype=weight.dtype, count=weight.numel(), offset=offset).view(weight.shape)
        weight.data = place.copy_(weight.detach())
    found = MappedWeights(mapped)
    found.drop()
    return found


def _is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is nothing but its numbers in memory."""
    import torch  # noqa: PLC0415

    return type(tensor) is torch.Tensor and tensor.layout is torch.strided and tensor.is_cpu and tensor.numel() > 0
