"""An original that several artifacts are compared with: opened when it has to run, and run once on a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from actx.exporter.errors import ActxError
from actx.exporter.remembered import Remembered
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from tests.networks import SPELLINGS, feeds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from actx.exporter.runtimes.base import Runner


class Counted:
    """Opens models in ONNX Runtime, and counts them."""

    taps = True

    def __init__(self) -> None:
        self.opened: list[tuple[str, ...]] = []

    def open(self, model: Path, outputs: Sequence[str] = ()) -> Runner:
        self.opened.append(tuple(outputs))
        return RuntimeOptions(threads=1).open(model, outputs)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(SPELLINGS["gelu_op"].model(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def batches(count: int = 2) -> list[dict[str, Any]]:
    given = feeds(SPELLINGS["gelu_op"].model())
    return [{name: array * np.float32(i + 1) for name, array in given.items()} for i in range(count)]


def test_what_a_model_gave_is_not_computed_again(model: Path) -> None:
    counted = Counted()
    memory = Remembered(counted)
    plain = RuntimeOptions(threads=1).open(model)
    for _ in range(2):
        opened = memory.open(model)
        assert opened.inputs == plain.inputs
        assert opened.outputs == plain.outputs
        for batch in batches():
            given, expected = opened.run(batch), plain.run(batch)
            assert given.keys() == expected.keys()
            assert all((given[name] == expected[name]).all() for name in expected)
    assert counted.opened == [()]
    (new,) = batches(3)[2:]
    memory.open(model).run(new)
    assert counted.opened == [(), ()]


def test_values_inside_are_not_kept(model: Path) -> None:
    counted = Counted()
    memory = Remembered(counted)
    name = onnx.load(model).graph.node[0].output[0]
    for _ in range(2):
        assert name in memory.open(model, [name]).run(batches()[0])
    assert counted.opened == [(name,)] * 2


def test_no_more_is_kept_than_there_is_room_for(model: Path) -> None:
    first, second = batches()
    counted = Counted()
    size = sum(array.nbytes for array in RuntimeOptions(threads=1).open(model).run(first).values())
    memory = Remembered(counted, most=size)
    for batch in (first, second, first):
        memory.open(model).run(batch)
    assert len(counted.opened) == 2
    memory.open(model).run(second)
    assert len(counted.opened) == 3


def test_a_model_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ActxError, match="does not exist"):
        _ = Remembered(Counted()).open(tmp_path / "missing.onnx").inputs
