"""Inputs and outputs as Polygraphy's own library writes and reads them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from polygraphy.comparator import RunResults
from polygraphy.json import save_json

from actx.exporter import check
from actx.exporter.data import InputSpec, load_data
from actx.exporter.errors import ActxError
from tests.networks import SPELLINGS, WIDTH

if TYPE_CHECKING:
    from pathlib import Path

SPECS = [InputSpec("x", "float32", ("batch", "tokens", WIDTH))]


def runs() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((2 + i, 3 + i, WIDTH), np.float32)} for i in range(3)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_json(runs(), str(tmp_path / "inputs.json"))
    return tmp_path / "inputs.json"


def test_every_run_is_a_batch(saved: Path) -> None:
    batches = list(load_data(str(saved), SPECS))
    assert [batch["x"].shape for batch in batches] == [(2, 3, WIDTH), (3, 4, WIDTH), (4, 5, WIDTH)]
    for batch, run in zip(batches, runs(), strict=True):
        np.testing.assert_array_equal(batch["x"], run["x"])


def test_both_outputs_are_kept(saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(SPELLINGS["gelu_op"].model(20), tmp_path / "model.onnx")
    onnx.save(SPELLINGS["gelu_legacy"].model(20), tmp_path / "other.onnx")
    results = tmp_path / "results.json"
    report = check(tmp_path / "model.onnx", tmp_path / "other.onnx", data=str(saved), save_outputs=results)
    assert capfd.readouterr() == ("", "")
    read = RunResults.load(str(results))
    assert list(read.keys()) == ["original", "other.onnx"]
    before, after = ([np.asarray(run["y"]) for run in read[name]] for name in ("original", "other.onnx"))
    assert [array.shape[0] for array in before] == [2, 3, 4]
    difference = max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True))
    assert report.outputs[0].max_abs == pytest.approx(difference)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"x": 1}', '[{"x": [1, 2]}]', "[" * 10_000])
def test_what_is_no_such_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_text(content)
    with pytest.raises(ActxError, match="inputs of Polygraphy"):
        load_data(str(tmp_path / "inputs.json"), SPECS)


def test_an_array_that_is_cut_short(saved: Path) -> None:
    tree = json.loads(saved.read_text())
    tree[1]["x"]["array"] = tree[1]["x"]["array"][:100]
    saved.write_text(json.dumps(tree))
    with pytest.raises(ActxError, match="inputs of Polygraphy"):
        load_data(str(saved), SPECS)


def test_a_model_that_is_called_as_the_original_is(saved: Path, tmp_path: Path) -> None:
    onnx.save(SPELLINGS["silu"].model(20), tmp_path / "model.onnx")
    onnx.save(SPELLINGS["silu"].model(20), tmp_path / "original")
    check(tmp_path / "model.onnx", tmp_path / "original", data=str(saved), save_outputs=tmp_path / "outputs.json")
    assert len(RunResults.load(str(tmp_path / "outputs.json"))) == 2


def test_outputs_that_cannot_be_written(saved: Path, tmp_path: Path) -> None:
    onnx.save(SPELLINGS["gelu_op"].model(20), tmp_path / "model.onnx")
    with pytest.raises(ActxError, match="cannot write"):
        check(tmp_path / "model.onnx", tmp_path / "model.onnx", data=str(saved), save_outputs=tmp_path)
