"""Models that run on the same data: side by side or in turn, with the same outputs and as few openings as memory allows."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from actx.exporter import sessions
from actx.exporter.data import InputSpec, load_data
from actx.exporter.drift import DriftReport, SiteTap, check
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.sessions import Entrant, Sessions, file_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from actx.exporter.data import Data
    from actx.exporter.runtimes.base import Runtime, Session

WIDTH, ROWS, BATCHES = 32, 6, 3
WEIGHT_BYTES = 4 * WIDTH * WIDTH
OUTPUT_BYTES = 4 * WIDTH * (ROWS // BATCHES)


class Watched:
    """Opens models in ONNX Runtime, and keeps a record of what it opened and of how many were open at once."""

    taps = True

    def describe(self) -> dict[str, Any]:
        return {}

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most = 0

    def open(self, model: Path, outputs: Sequence[str] = ()) -> Session:
        found = RuntimeOptions(threads=1).open(model, outputs)
        self.opened.append(model.stem)
        self.alive.add(found._session)  # type: ignore[attr-defined]
        self.most = max(self.most, len(self.alive))
        return found


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Three layers with weights of their own, in external data."""
    found = []
    for seed, name in enumerate("abc"):
        weight = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)).astype(np.float32)
        ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", WIDTH]) for end in "xy"]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["v"]), helper.make_node("Tanh", ["v"], ["y"])]
        graph = helper.make_graph(nodes, name, ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
        found.append(path)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Data:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(9).standard_normal((ROWS, WIDTH)).astype(np.float32))
    return load_data(str(tmp_path / "x.npz"), [InputSpec("x", "float32", ("n", WIDTH))], ROWS // BATCHES)


def outputs(run: Sessions, data: Data) -> list[list[bytes]]:
    return [[given["y"].tobytes() for given in found] for _, found in run.run(data)]


def entrants(models: Sequence[Path], runtime: Watched) -> list[Entrant]:
    return [Entrant(model, runtime) for model in models]


def test_the_size_of_a_model_counts_its_external_data(models: list[Path]) -> None:
    assert file_bytes(models[0]) == models[0].stat().st_size + WEIGHT_BYTES
    assert file_bytes(models[0].with_suffix(".missing")) == 0


def test_small_models_are_open_together(models: list[Path], data: Data) -> None:
    watched = Watched()
    outputs(Sessions(entrants(models, watched)), data)
    assert watched.opened == ["a", "b", "c"]
    assert watched.most == 3


@pytest.mark.parametrize(
    ("room", "opened"),
    [
        (BATCHES * len("abc"), "abc"),  # all batches at once
        (1, "abcabac"),  # batch by batch: the one that ran last goes on first
    ],
)
def test_large_models_take_turns(
    models: list[Path], data: Data, room: int, opened: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outputs(Sessions(entrants(models, Watched())), data)
    monkeypatch.setattr(sessions, "HELD_BYTES", room * OUTPUT_BYTES)
    watched = Watched()
    assert outputs(Sessions(entrants(models, watched), most=WEIGHT_BYTES), data) == expected
    assert watched.most == 1
    assert "".join(watched.opened) == opened


def test_the_first_ones_run_while_another_stays_open(models: list[Path], data: Data) -> None:
    watched = Watched()
    run = Sessions(entrants(models, watched), most=WEIGHT_BYTES)
    for batch, found in run.run(data, 2):
        expected = Sessions(entrants(models[2:], Watched()))[0].run(batch.feeds)
        assert len(found) == 2
        np.testing.assert_array_equal(run[2].run(batch.feeds)["y"], expected["y"])
    assert watched.most == 1


def test_a_check_of_large_models_holds_one_at_a_time(
    models: list[Path], data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    taps = [SiteTap("tanh", np.tanh, "y", "v", "y")]

    def measured(watched: Watched) -> DriftReport:
        runtime = cast("Runtime", watched)
        return check(models[0], models[1], data, taps=taps, runtime=runtime, original_runtime=runtime)

    together, apart = Watched(), Watched()
    expected = measured(together)
    monkeypatch.setattr(sessions, "OPEN_BYTES", WEIGHT_BYTES)
    assert measured(apart) == expected
    assert (together.most, apart.most) == (2, 1)
    assert apart.opened == ["b", "a", "a", "b"]
