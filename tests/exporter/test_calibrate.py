"""What calibration observes, against numpy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from actx.exporter.calibrate import SiteStatistics, calibrate
from actx.exporter.checkpoint import Checkpoint
from actx.exporter.data import Batch, Data
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.lift import Site, lift
from actx.exporter.load.prepare import prepare
from actx.exporter.scratch import exclusive
from tests.networks import HIDDEN, SPELLINGS, WIDTH, many_sites, onnx_mlp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray


def data_of(arrays: list[NDArray[Any]]) -> Data:
    batches = [Batch({"x": array}, {}, len(array)) for array in arrays]
    return Data("test", sum(b.samples for b in batches), False, (), lambda: iter(batches))


def saved(model: onnx.ModelProto, folder: Path) -> tuple[Path, tuple[Site, ...]]:
    graph = ir.from_proto(model)
    prepare(graph)
    ir.save(graph, folder / "model.onnx")
    return folder / "model.onnx", lift(graph).sites


def inputs_of(model: onnx.ModelProto, x: NDArray[Any]) -> NDArray[np.float64]:
    w = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    return np.asarray(x.astype(np.float64) @ w["up.weight"] + w["up.bias"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_ranges_zeros_and_elements(tmp_path: Path, dtype: str) -> None:
    model = SPELLINGS["relu"].model(dtype=np.dtype(dtype))
    path, sites = saved(model, tmp_path)
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(-1, 1, (n, tokens, WIDTH)).astype(dtype) for n, tokens in ((2, 5), (3, 7), (1, 1))]
    seen: list[tuple[int, int]] = []
    statistics = calibrate(path, sites, data_of(arrays), progress=lambda done, total: seen.append((done, total)))
    values = np.concatenate([inputs_of(model, x).reshape(-1) for x in arrays])
    (found,) = statistics.values()
    assert list(statistics) == [sites[0].name]
    rounding = 16 * {"float32": 2.0**-24, "float16": 2.0**-11}[dtype]  # of a sum of 8 products of at most 1
    assert found.low == pytest.approx(values.min(), abs=rounding * 6)
    assert found.high == pytest.approx(values.max(), abs=rounding * 6)
    assert found.elements == (2 * 5 + 3 * 7 + 1) * HIDDEN / 6
    assert found.density is not None
    assert found.density.mass.sum() == values.size
    near_zero = np.mean(np.abs(values) <= 6 * rounding)
    assert found.zeros == pytest.approx(np.mean(values <= 0), abs=float(near_zero) + 1e-12)
    assert seen == [(2, 6), (5, 6), (6, 6)]


def test_not_finite_inputs_are_left_out_of_the_range(tmp_path: Path) -> None:
    model = onnx_mlp(lambda g, x: g.op("Relu", x))
    path, sites = saved(model, tmp_path)
    x = np.zeros((3, 1, WIDTH), np.float32)
    x[1, 0, 0], x[2, 0, 0] = np.inf, np.nan
    (found,) = calibrate(path, sites, data_of([x])).values()
    expected = inputs_of(model, x[:1])
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)
    assert found.low == pytest.approx(expected.min(), abs=1e-6)
    assert found.high == pytest.approx(expected.max(), abs=1e-6)


def test_nothing_finite_at_all(tmp_path: Path) -> None:
    path, sites = saved(onnx_mlp(lambda g, x: g.op("Relu", x)), tmp_path)
    (found,) = calibrate(path, sites, data_of([np.full((1, 1, WIDTH), np.nan, np.float32)])).values()
    assert (found.low, found.high) == (0, 0)
    low, high = found.interval
    assert low < high


def test_every_site_is_observed_at_its_own_place(tmp_path: Path) -> None:
    model = onnx_mlp(SPELLINGS["silu"].write, gated="split")
    path, sites = saved(model, tmp_path)
    x = np.random.default_rng(1).uniform(-1, 1, (4, 3, WIDTH)).astype(np.float32)
    (found,) = calibrate(path, sites, data_of([x])).values()
    gate = inputs_of(model, x)[..., :HIDDEN]
    assert (found.low, found.high) == pytest.approx((gate.min(), gate.max()), abs=1e-5)
    assert found.zeros == 0
    assert found.elements == 3 * HIDDEN


def test_without_sites_nothing_runs(tmp_path: Path) -> None:
    assert calibrate(tmp_path / "there is no such file", [], data_of([])) == {}


def test_data_that_does_not_fit(tmp_path: Path) -> None:
    path, sites = saved(onnx_mlp(lambda g, x: g.op("Relu", x)), tmp_path)
    with pytest.raises(ActxError):
        calibrate(path, sites, data_of([np.zeros((2, 3, WIDTH + 1), np.float32)]))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (5.0, 5.0), (0.0, 0.0), (-1e4, 1e4), (1e30, 1e30)])
def test_the_interval_is_the_range_widened_about_its_centre(low: float, high: float) -> None:
    left, right = SiteStatistics(low, high, 1.0, 0.0).interval
    assert left < low <= high < right
    assert right - left == pytest.approx(max(1.25 * (high - low), 2e-3, 1e-3 * abs(low + high)))
    assert (left + right) / 2 == pytest.approx((low + high) / 2)


# --- checkpoints ---


def batches_of(sizes: tuple[int, ...], seed: int = 0) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, (size, 3, WIDTH)).astype(np.float32) for size in sizes]


def ending(arrays: list[NDArray[Any]], after: int) -> Data:
    """Data whose source is interrupted behind so many batches."""

    def batches() -> Iterator[Batch]:
        yield from list(data_of(arrays).batches())[:after]
        raise KeyboardInterrupt

    return replace(data_of(arrays), _open=batches)


def states(statistics: Mapping[str, SiteStatistics]) -> list[tuple[object, ...]]:
    found = statistics.values()
    return [(s.low, s.high, s.elements, s.zeros, s.undefined, s.density and s.density.key) for s in found]


@pytest.fixture
def mlp(tmp_path: Path) -> tuple[Path, tuple[Site, ...]]:
    return saved(many_sites(3), tmp_path)


@pytest.mark.parametrize("after", [0, 1, 3, 4])
def test_an_interrupted_pass_goes_on(tmp_path: Path, mlp: tuple[Path, tuple[Site, ...]], after: int) -> None:
    arrays = batches_of((2, 3, 1, 4))
    checkpoint = Checkpoint(tmp_path / "pass.npz", "digest of the model", seconds=0)
    with pytest.raises(KeyboardInterrupt):
        calibrate(*mlp, ending(arrays, after), checkpoint=checkpoint)
    seen: list[int] = []
    found = calibrate(*mlp, data_of(arrays), progress=lambda done, _: seen.append(done), checkpoint=checkpoint)
    assert states(found) == states(calibrate(*mlp, data_of(arrays)))
    assert seen == [2, 5, 6, 10][max(after - 1, 0) :]


def test_a_complete_pass_is_not_repeated(tmp_path: Path, mlp: tuple[Path, tuple[Site, ...]]) -> None:
    arrays = batches_of((2, 3))
    checkpoint = Checkpoint(tmp_path / "pass.npz", "digest of the model")
    first = calibrate(*mlp, data_of(arrays), checkpoint=checkpoint)
    seen: list[int] = []
    again = calibrate(*mlp, data_of(arrays), progress=lambda done, _: seen.append(done), checkpoint=checkpoint)
    assert states(first) == states(again)
    assert seen == [5]
    assert [file.name for file in tmp_path.glob("pass*")] == ["pass.npz"]


def test_more_data_goes_on_behind_the_data_that_was_seen(tmp_path: Path, mlp: tuple[Path, tuple[Site, ...]]) -> None:
    arrays = batches_of((2, 3, 4))
    checkpoint = Checkpoint(tmp_path / "pass.npz", "digest of the model")
    calibrate(*mlp, data_of(arrays[:2]), checkpoint=checkpoint)
    seen: list[int] = []
    found = calibrate(*mlp, data_of(arrays), progress=lambda done, _: seen.append(done), checkpoint=checkpoint)
    assert seen == [5, 9]
    assert states(found) == states(calibrate(*mlp, data_of(arrays)))


@pytest.mark.parametrize("other", ["batch", "fewer", "model", "sites", "damaged", "empty"])
def test_a_pass_over_anything_else_begins_anew(tmp_path: Path, mlp: tuple[Path, tuple[Site, ...]], other: str) -> None:
    path, sites = mlp
    arrays = batches_of((2, 3, 1))
    checkpoint = Checkpoint(tmp_path / "pass.npz", "digest of the model")
    calibrate(path, sites, data_of(arrays), checkpoint=checkpoint)
    if other == "batch":
        arrays[1] = np.nextafter(arrays[1], np.float32(2))
    elif other == "fewer":
        arrays = arrays[:2]
    elif other == "model":
        checkpoint = replace(checkpoint, model="another")
    elif other == "sites":
        sites = sites[:2]
    else:
        content = checkpoint.file.read_bytes()
        checkpoint.file.write_bytes(content[: len(content) // 2] if other == "damaged" else b"")
    seen: list[int] = []
    found = calibrate(path, sites, data_of(arrays), progress=lambda done, _: seen.append(done), checkpoint=checkpoint)
    assert seen == [2, 5, 6][: len(arrays)]
    assert states(found) == states(calibrate(path, sites, data_of(arrays)))


def test_two_passes_do_not_write_one_checkpoint_at_once(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "pass.npz", "digest of the model")
    checkpoint.save("first", {"sums": np.ones(3)})
    with exclusive(tmp_path / "pass.npz.part"):  # as another process has it
        checkpoint.save("second", {"sums": np.zeros(3)})
    assert checkpoint.load("second") is None
    assert checkpoint.load("first") is not None
    checkpoint.save("second", {"sums": np.zeros(3)})
    assert checkpoint.load("second") is not None
    assert [file.name for file in tmp_path.iterdir()] == ["pass.npz"]


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path, mlp: tuple[Path, tuple[Site, ...]]) -> None:
    with pytest.raises(ActxError, match="cannot write"):
        calibrate(*mlp, data_of(batches_of((1,))), checkpoint=Checkpoint(tmp_path / "missing" / "pass.npz", ""))


def test_a_file_that_is_no_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "samples.npz"
    np.savez(file, image=np.zeros(3))
    with pytest.raises(UsageError, match="no checkpoint of a calibration"):
        Checkpoint(file, "digest").check()
    Checkpoint(tmp_path / "none.npz", "digest").check()
    ours = Checkpoint(tmp_path / "ours.npz", "digest")
    ours.save("key", {"progress": np.zeros(1)})
    ours.check()
