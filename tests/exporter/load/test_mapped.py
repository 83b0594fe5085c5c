"""Weights of traced modules: in a mapped file, once, and not read or copied on the way to the graph."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError
from actx.exporter.load.mapped import MappedWeights, map_weights
from actx.exporter.load.program import to_onnx, trace
from actx.exporter.load.quiet import quiet
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.save import INLINE_BYTES, WEIGHTS, save

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, INNER = 32, 48


class Tied(nn.Module):
    """A table whose numbers are those of the last layer too, and a layer whose weight the converter transposes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(INNER, WIDTH)
        self.up = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, INNER, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(nn.functional.silu(self.up(self.table(ids))))
        return found


def within(weights: MappedWeights, array: NDArray[np.generic]) -> bool:
    """Tell whether an array lies in the mapped file."""
    assert weights.file is not None
    whole = np.frombuffer(weights.file, np.uint8)
    begin = whole.__array_interface__["data"][0]
    low, high = np.lib.array_utils.byte_bounds(array)
    return begin <= low < high <= begin + whole.nbytes


def test_weights_are_moved_and_stay_what_they_are() -> None:
    module = Tied()
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    weights = map_weights(module)
    assert module.head.weight is module.table.weight
    assert dict(module.named_parameters()).keys() == before.keys()
    for _ in range(2):  # after the pages were dropped too
        weights.drop()
        for name, weight in module.named_parameters():
            assert within(weights, weight.detach().numpy())
            torch.testing.assert_close(weight.detach(), before[name], rtol=0, atol=0)


def test_the_graph_reads_the_file_and_copies_nothing() -> None:
    module = Tied()
    weights = map_weights(module)
    with quiet():
        program = trace(Path("tied"), module, [InputSpec("ids", "int64", ("batch", "tokens"))])
        model = to_onnx(Path("tied"), program)
    large = [value.const_value for value in model.graph.initializers.values()]
    large = [tensor for tensor in large if tensor is not None and tensor.nbytes > INLINE_BYTES]
    assert sorted(tensor.nbytes for tensor in large) == [4 * WIDTH * WIDTH, 4 * WIDTH * INNER, 4 * WIDTH * INNER]
    assert all(within(weights, tensor.numpy()) for tensor in large)


def test_a_graph_beside_the_file_refers_to_it() -> None:
    module = Tied()
    weights = map_weights(module)
    with quiet():
        program = trace(Path("tied"), module, [InputSpec("ids", "int64", ("batch", "tokens"))])
        model = to_onnx(Path("tied"), program)
    stored = weights.stored(model)
    assert weights.path is not None
    folder = weights.path.parent
    # The table in the order of its rows, and the layer as the graph has it; the table as a layer is no part of the file.
    sizes = sorted(tensor.nbytes for tensor in stored.values() if tensor.nbytes > INLINE_BYTES)
    assert sizes == [4 * WIDTH * WIDTH, 4 * WIDTH * INNER]
    save({"graph.onnx": model}, folder, stored=stored)
    assert (folder / WEIGHTS).stat().st_size == 4 * WIDTH * INNER
    ids = np.arange(INNER).reshape(2, -1)
    expected = module(torch.from_numpy(ids)).detach().numpy()
    got = RuntimeOptions(threads=1).open(folder / "graph.onnx").run({"ids": ids})
    np.testing.assert_allclose(next(iter(got.values())), expected, rtol=1e-5, atol=1e-6)
    del weights
    assert not folder.exists()


def test_a_module_without_weights() -> None:
    map_weights(nn.SiLU()).drop()


def test_no_space_for_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(ActxError, match="cannot keep 10368 bytes of weights"):
        map_weights(Tied())
    assert not list(tmp_path.iterdir())
