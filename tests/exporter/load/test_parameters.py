"""A parameter that does not fit its channels is one error that names the place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError
from actx.exporter.load import load
from tests.networks import HIDDEN, WIDTH, Graph, onnx_mlp

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("op", ["PRelu", "Mul", "Max"])
@pytest.mark.parametrize(("length", "what"), [(HIDDEN - 1, "does not fit"), (0, "it has no elements")])
def test_of_an_onnx_model(op: str, length: int, what: str, tmp_path: Path) -> None:
    def write(g: Graph, x: str) -> str:
        g.scope = "/blocks.0/act/"
        return g.op(op, g.op("Tanh", x), np.full(length, 0.1, np.float32))

    onnx.save(onnx_mlp(write), tmp_path / "model.onnx")
    with pytest.raises(ActxError, match=r"a parameter of blocks\.0\.act does not fit its input") as caught:
        load(tmp_path / "model.onnx")
    assert what in caught.value.note
    assert op in caught.value.note


def test_of_a_torch_module(tmp_path: Path) -> None:
    import torch  # noqa: PLC0415 - slow to import, and for this test only

    layers = torch.nn.Sequential(torch.nn.Linear(WIDTH, HIDDEN), torch.nn.PReLU(HIDDEN - 1), torch.nn.Linear(HIDDEN, 2))
    torch.save(layers, tmp_path / "model.pt")
    with pytest.raises(ActxError, match="torch cannot trace") as caught:
        load(tmp_path / "model.pt", inputs=[InputSpec.parse(f"input:float32[batch,{WIDTH}]")], trust=True)
    assert caught.value.note.startswith("in 1: RuntimeError: ")
