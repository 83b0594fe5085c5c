"""Keep the weights of a module in a file that is mapped, so that the system can drop their pages when it needs the memory.

1. A model is held for as long as it is exported, beside the sessions that run it. Its weights are read a few times and in
   order, when graphs are written.
2. The weight of a linear layer lies there as its graph has it, inputs first. A graph that is written into the folder of the
   file refers to what lies there, instead of having a copy of it.
3. The folder is temporary: it is removed with the `MappedWeights`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from actx.exporter.errors import ActxError
from actx.exporter.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor, nn

_FILE = "module.data"
# Where tensors begin in the file: a multiple of the size of any element, and of a line of the cache.
_ALIGNMENT = 64


@dataclass(frozen=True)
class MappedWeights:
    """What the weights of a module are mapped from; none where it has none, or they were not mapped.

    Attributes:
        file: it, mapped.
        path: its place, in a folder of its own.
    """

    file: mmap.mmap | None = field(default=None, repr=False)
    path: Path | None = None

    def drop(self) -> None:
        """Take the pages out of this process's memory; the next reader of a weight gets them from the file again."""
        if self.file is not None:
            self.file.madvise(mmap.MADV_DONTNEED)

    def stored(self, model: ir.Model) -> dict[int, ir.ExternalTensor]:
        """Return where the tensors of a model are in the file, those that are, as `save` takes them for the file's folder."""
        tensors = (value.const_value for value in model.graph.initializers.values())
        return {id(tensor): place for tensor in tensors if (place := self._place(tensor)) is not None}

    def _place(self, tensor: ir.TensorProtocol | None) -> ir.ExternalTensor | None:
        if self.file is None or self.path is None or not isinstance(tensor, ir.Tensor):
            return None
        array = tensor.numpy()
        offset = _address(array) - _address(np.frombuffer(self.file, np.uint8))
        if not (array.flags.c_contiguous and array.nbytes == tensor.nbytes and 0 <= offset < len(self.file)):
            return None
        return ir.ExternalTensor(
            self.path.name, offset, array.nbytes, tensor.dtype, shape=tensor.shape, name=str(tensor.name),
            base_dir=self.path.parent,
        )  # fmt: skip


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
    found = _new_file(size)
    assert found.file is not None
    across = set(_of_linear_layers(module))
    for weight, offset in zip(weights, offsets, strict=True):
        place = torch.frombuffer(found.file, dtype=weight.dtype, count=weight.numel(), offset=offset)
        if weight in across:
            weight.data = place.view(weight.shape[::-1]).copy_(weight.detach().T).T
        else:
            weight.data = place.view(weight.shape).copy_(weight.detach())
    found.drop()
    return found


def _new_file(size: int) -> MappedWeights:
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(scratch()) / _FILE
        try:
            with path.open("w+b") as file:
                # A mapped file that finds the disk full would end the process.
                os.posix_fallocate(file.fileno(), 0, size)
                found = MappedWeights(mmap.mmap(file.fileno(), size), path)
        except OSError as error:
            raise ActxError(
                f"cannot keep {size} bytes of weights in {tempfile.gettempdir()}",
                note=str(error),
                remedy="Free space there, or set TMPDIR to another folder.",
            ) from error
        weakref.finalize(found, stack.pop_all().close)
    return found


def _of_linear_layers(module: nn.Module) -> Iterator[Tensor]:
    """Yield the weights that linear layers have and no other module: a table of them is read row by row."""
    from torch import nn  # noqa: PLC0415 - slow to import

    own = [(layer, dict(layer.named_parameters(recurse=False))) for layer in module.modules()]
    shared = {weight for layer, weights in own if not isinstance(layer, nn.Linear) for weight in weights.values()}
    of_linear = (weights.get("weight") for layer, weights in own if isinstance(layer, nn.Linear))
    yield from (weight for weight in of_linear if weight is not None and weight not in shared)


def _is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is nothing but its numbers in memory."""
    import torch  # noqa: PLC0415

    return type(tensor) is torch.Tensor and tensor.layout is torch.strided and tensor.is_cpu and tensor.numel() > 0


def _address(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> int:
    begin: int = array.__array_interface__["data"][0]
    return begin
