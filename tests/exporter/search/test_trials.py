"""Sensitivity trials on a trained network: what they measure, and that it is the same wherever and however often they run."""

from __future__ import annotations

import gc
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from actx.exporter.calibrate import SiteStatistics, calibrate
from actx.exporter.choose import choose
from actx.exporter.data import Data, head, hold_out, load_data
from actx.exporter.drift import check
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.fitting import Density, Form
from actx.exporter.lift import Site, lift
from actx.exporter.load import LoadedModel, load
from actx.exporter.lower import lower
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.save import save
from actx.exporter.search import execute
from actx.exporter.search.execute import Executor, Pair, run_trials
from actx.exporter.search.log import Log
from actx.exporter.search.trials import Bench, TrialResult, run_trial, trial_key, write_bench
from actx.exporter.targets import find_target
from actx.exporter.workspace import workspace
from actx.models.demo import DATA_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RELU, HARDSWISH, PWL, POLYNORM = (Form.parse(text) for text in ("relu", "hardswish", "pwl:8", "polynorm"))
# Per trial, the process that ran it adds a byte to a file. The first process to find no marker where one is asked for is lost.
METRIC = """
import os, pathlib, signal, time
import numpy as np

folder = pathlib.Path(__file__).parent

def count():
    with (folder / "calls").open("ab") as file:
        file.write(b".")

def largest(original, artifact, batch):
    count()
    return max(float(np.abs(original[name] - artifact[name]).max()) for name in original)

def fatal_once(original, artifact, batch):
    try:
        (folder / "marker").touch(exist_ok=False)
    except FileExistsError:
        return largest(original, artifact, batch)
    os.kill(os.getpid(), signal.SIGKILL)

def fatal(original, artifact, batch):
    os.kill(os.getpid(), signal.SIGKILL)

def slow(original, artifact, batch):
    time.sleep(0.2)
    return largest(original, artifact, batch)

def infinite(original, artifact, batch):
    return float("inf")

def broken(original, artifact, batch):
    raise ValueError(f"no label among {sorted(batch)}")
"""


@dataclass(frozen=True)
class Network:
    loaded: LoadedModel
    sites: tuple[Site, ...]
    statistics: dict[str, SiteStatistics]
    held: Data

    def bench(self, folder: Path, metric: str = "l2", samples: int = 64) -> Bench:
        """On one batch: a metric is called once per trial."""
        folder.mkdir()
        return write_bench(
            folder, self.loaded, self.sites, self.statistics, head(self.held, samples), metric=metric
        )  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Network:
    loaded = load(DATA_FOLDER / "digits_vit.pt2")
    sites = lift(loaded.model).sites
    rest, held = hold_out(load_data(str(DATA_FOLDER / "evaluation.npz"), loaded.inputs, batch_size=450))
    with workspace(loaded) as original:
        return Network(loaded, sites, dict(calibrate(original, sites, rest)), held)


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of metrics, which is found in the current directory alone."""
    name = f"metric_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(METRIC)
    monkeypatch.chdir(tmp_path)
    return name


def batched(network: Network, size: int) -> Data:
    return head(load_data(network.held.source, network.loaded.inputs, size), 50)


def pairs_of(bench: Bench, *forms: Form) -> list[Pair]:
    return [(site.name, form) for form in forms for site in bench.sites]


def calls(folder: Path) -> int:
    file = folder / "calls"
    return file.stat().st_size if file.exists() else 0


def logged(file: Path) -> Counter[str]:
    return Counter(json.loads(line)["key"] for line in file.read_bytes().split(b"\n")[:-1])


# --- one trial ---


@pytest.mark.parametrize("metric", ["l2", "kl"])
def test_a_trial_measures_the_drift_of_that_one_change(network: Network, tmp_path: Path, metric: str) -> None:
    data = batched(network, 20)
    bench = write_bench(tmp_path, network.loaded, network.sites, network.statistics, data, metric=metric)
    site = network.sites[1]
    (choice,) = choose([site], find_target("onnx"), pins={site.name: HARDSWISH}, statistics=network.statistics)
    lowered = lower(network.loaded.model, [choice], native="standard").native
    assert lowered is not None
    save({"changed.onnx": lowered}, tmp_path, "changed.data")
    one = RuntimeOptions(threads=1)
    with workspace(network.loaded) as original:
        changed = tmp_path / "changed.onnx"
        expected = check(original, changed, data, metric=metric, runtime=one, original_runtime=one)
    found = run_trial(bench, site.name, HARDSWISH)
    assert found == TrialResult(expected.drift)
    assert expected.drift > 0


@pytest.mark.parametrize("form", [RELU, PWL])
def test_a_trial_with_recovery_drifts_less(network: Network, tmp_path: Path, form: Form) -> None:
    bench = network.bench(tmp_path / "bench", "cosine")
    name = network.sites[1].name
    without, found = (run_trial(replace(bench, recover=recovers), name, form) for recovers in (False, True))
    assert without.drift is not None
    assert found.drift is not None
    assert 0 < found.drift < without.drift


def test_a_form_that_a_site_cannot_have_is_a_result(network: Network, tmp_path: Path) -> None:
    bench = network.bench(tmp_path / "bench")
    name = bench.sites[0].name
    log = Log(tmp_path / "log.jsonl")
    (result,) = run_trials(bench, [(name, POLYNORM)], log).values()
    assert result == TrialResult(None, "gelu is not row-wise")
    assert run_trials(bench, [(name, POLYNORM)], Log(tmp_path / "log.jsonl"), deadline=0) == {(name, POLYNORM): result}


def test_an_infinite_drift_is_a_result(network: Network, tmp_path: Path, user: str) -> None:
    bench = network.bench(tmp_path / "bench", f"{user}:infinite")
    pair = (bench.sites[0].name, RELU)
    run_trials(bench, [pair], Log(tmp_path / "log.jsonl"))
    again = run_trials(bench, [pair], Log(tmp_path / "log.jsonl"), deadline=0)
    assert again == {pair: TrialResult(math.inf)}


def test_batches_come_back_as_they_were(network: Network, tmp_path: Path, user: str) -> None:
    data = batched(network, 20)
    bench = write_bench(tmp_path, network.loaded, network.sites, {}, data, metric=f"{user}:largest")
    originals = list(data.batches())
    session = RuntimeOptions(threads=1).open(bench.folder / "original.onnx")
    for (batch, outputs), expected in zip(bench.batches(), originals, strict=True):
        assert batch.samples == expected.samples
        for found, wanted in ((batch.feeds, expected.feeds), (batch.extras, expected.extras)):
            assert found.keys() == wanted.keys()
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
        again = session.run(expected.feeds)
        assert all(np.array_equal(outputs[name], again[name]) for name in again)
    assert sum(batch.samples for batch in bench.as_data().batches()) == bench.samples == 50


def test_extras_that_cannot_be_stored(network: Network, tmp_path: Path) -> None:
    whole = next(head(network.held, 4).batches())
    batch = replace(whole, extras={"names": np.array([None] * 4)})
    data = replace(head(network.held, 4), _open=lambda: iter([batch]))
    write_bench(tmp_path, network.loaded, network.sites, {}, data, metric="l2")
    with pytest.raises(ActxError, match="'names' in the data holds Python objects"):
        write_bench(tmp_path, network.loaded, network.sites, {}, data, metric="mod:metric")


def test_a_bench_is_small_and_can_be_pickled(network: Network, tmp_path: Path) -> None:
    bench = network.bench(tmp_path / "bench")
    pickled = pickle.dumps(bench.only(bench.sites[0].name))
    assert len(pickled) < 50_000
    name = bench.sites[0].name
    assert trial_key(pickle.loads(pickled), name, PWL) == trial_key(bench, name, PWL)


# --- keys ---


def test_a_key_does_not_depend_on_the_place(network: Network, tmp_path: Path) -> None:
    name = network.sites[0].name
    first, second = (network.bench(tmp_path / folder) for folder in ("one", "two"))
    assert trial_key(first, name, PWL) == trial_key(second, name, PWL)
    assert first.id == second.id


def test_a_key_tells_apart_whatever_the_result_depends_on(network: Network, tmp_path: Path) -> None:
    bench = network.bench(tmp_path / "bench")
    name, other = (site.name for site in bench.sites[:2])
    observed = bench.statistics[name]
    assert observed.density is not None
    denser = replace(observed, density=observed.density + Density.of(np.zeros(1)))
    others = [
        network.bench(tmp_path / "fewer", samples=63),
        *(replace(bench, **{option: not getattr(bench, option)}) for option in ("fold", "weighted", "recover")),
        replace(bench, metric="kl"),
        replace(bench, model="another"),
        replace(bench, runtime=RuntimeOptions(threads=1, optimization="basic")),
        *(replace(bench, statistics=found) for found in ({}, {name: replace(observed, low=-9.0)}, {name: denser})),
    ]
    keys = [trial_key(b, name, PWL) for b in (bench, *others)]
    assert len({*keys, trial_key(bench, name, RELU), trial_key(bench, other, PWL)}) == len(keys) + 2
    evenly = replace(bench, weighted=False)
    assert trial_key(evenly, name, PWL) == trial_key(replace(evenly, statistics={name: denser}), name, PWL)


# --- many trials ---


def test_the_number_of_jobs_changes_nothing(network: Network, tmp_path: Path) -> None:
    bench = network.bench(tmp_path / "bench", "cosine")
    pairs = pairs_of(bench, RELU, HARDSWISH, PWL)
    found = [run_trials(bench, pairs, Log(), jobs=jobs) for jobs in (1, 2, 4)]
    assert found[0] == found[1] == found[2]
    assert list(found[0]) == list(found[1]) == pairs
    assert len({result.drift for result in found[0].values()}) == len(pairs)


# Ray leaves its own processes and files to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_lost_process_only_repeats_its_trials(
    network: Network, tmp_path: Path, user: str, capsys: pytest.CaptureFixture[str], executor: Executor
) -> None:
    """On Ray this is a cluster of two workers, started and ended here."""
    bench = network.bench(tmp_path / "bench", f"{user}:fatal_once")
    pairs = pairs_of(bench, RELU, PWL)
    file = tmp_path / "log.jsonl"
    found = run_trials(bench, pairs, Log(file), jobs=2, executor=executor)
    assert (tmp_path / "marker").exists()
    # The one that was lost did not count, and the other process's may count twice.
    assert len(pairs) <= calls(tmp_path) <= len(pairs) + 1
    assert logged(file) == dict.fromkeys(logged(file), 1)
    assert found == run_trials(bench, pairs, Log(), jobs=1)
    gc.collect()
    assert capsys.readouterr().out == ""


def test_a_trial_that_always_kills_its_process(
    network: Network, tmp_path: Path, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "ATTEMPTS", 1)
    bench = network.bench(tmp_path / "bench", f"{user}:fatal")
    with pytest.raises(ActxError, match="a process was lost in 2 attempts in a row, with 3 trials left") as caught:
        run_trials(bench, pairs_of(bench, RELU), Log(), jobs=2)
    assert "--jobs" in caught.value.remedy


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_a_trial_ends_the_search(network: Network, tmp_path: Path, user: str, jobs: int) -> None:
    bench = network.bench(tmp_path / "bench", f"{user}:broken")
    with pytest.raises(ActxError, match="failed") as caught:
        run_trials(bench, pairs_of(bench, RELU), Log(), jobs=jobs)
    assert caught.value.note == "ValueError: no label among ['image', 'label']"
    assert caught.value.remedy


def test_what_the_log_has_is_not_run(network: Network, tmp_path: Path, user: str) -> None:
    bench = network.bench(tmp_path / "bench", f"{user}:largest")
    file = tmp_path / "log.jsonl"
    first = run_trials(bench, pairs_of(bench, RELU), Log(file))
    seen: list[tuple[int, int]] = []
    both = run_trials(bench, pairs_of(bench, PWL, RELU), Log(file), progress=lambda *done: seen.append(done))
    assert calls(tmp_path) == 6
    assert seen == [(3, 6), (4, 6), (5, 6), (6, 6)]
    assert {pair: both[pair] for pair in first} == first
    assert list(both) == pairs_of(bench, PWL, RELU)


def test_no_trial_starts_after_the_deadline(network: Network, tmp_path: Path, user: str) -> None:
    bench = network.bench(tmp_path / "bench", f"{user}:slow")
    pairs = pairs_of(bench, RELU, HARDSWISH, PWL)
    log = Log(tmp_path / "log.jsonl")
    assert run_trials(bench, pairs, log, deadline=time.monotonic() - 1) == {}
    assert run_trials(bench, pairs, log, jobs=2, deadline=time.monotonic() - 1) == {}
    assert calls(tmp_path) == 0
    run_trials(bench, pairs[:2], log)
    some = run_trials(bench, pairs, log, deadline=time.monotonic() + 0.5)
    assert list(some) == pairs[: len(some)]
    assert 2 <= len(some) < len(pairs)
    assert list(run_trials(bench, pairs, log)) == pairs
    assert calls(tmp_path) == len(pairs)


RUN = """
import pickle, sys
from pathlib import Path
from actx.exporter.search.execute import run_trials
from actx.exporter.search.log import Log

bench, pairs = pickle.loads(Path(sys.argv[1]).read_bytes())
run_trials(bench, pairs, Log(Path(sys.argv[2])), jobs=int(sys.argv[3]))
"""


@pytest.mark.parametrize(("end", "jobs"), [(signal.SIGKILL, 1), (signal.SIGINT, 2)])
def test_a_search_that_was_killed_goes_on(
    network: Network, tmp_path: Path, user: str, temporary: Path, end: signal.Signals, jobs: int
) -> None:
    bench = network.bench(tmp_path / "bench", f"{user}:slow")
    pairs = pairs_of(bench, RELU, PWL)
    job, file = tmp_path / "job", tmp_path / "log.jsonl"
    job.write_bytes(pickle.dumps((bench, pairs)))
    command = [sys.executable, "-c", RUN, str(job), str(file), str(jobs)]
    search = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: file.exists() and file.read_bytes().count(b"\n") >= 2)
    os.killpg(search.pid, end)
    assert search.wait() != 0
    assert 2 <= sum(logged(file).values()) < len(pairs)
    found = run_trials(bench, pairs, Log(file))
    assert list(found) == pairs
    assert logged(file) == dict.fromkeys(logged(file), 1)
    # Of each process what was running, and of several what was done and not yet written.
    assert calls(tmp_path) <= len(pairs) + (1 if jobs == 1 else 2 * jobs)
    assert list(temporary.glob("actx-*")) == []


def test_a_line_that_was_cut_short_costs_one_trial(network: Network, tmp_path: Path, user: str) -> None:
    bench = network.bench(tmp_path / "bench", f"{user}:largest")
    pairs = pairs_of(bench, RELU, PWL)
    file = tmp_path / "log.jsonl"
    found = run_trials(bench, pairs, Log(file))
    file.write_bytes(file.read_bytes()[:-9])
    assert run_trials(bench, pairs, Log(file)) == found
    assert calls(tmp_path) == len(pairs) + 1
    assert logged(file) == dict.fromkeys(logged(file), 1)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_requests_that_cannot_be_met(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = network.bench(tmp_path / "bench")
    pairs = pairs_of(bench, RELU)
    with pytest.raises(UsageError, match="at least 1"):
        run_trials(bench, pairs, Log(), jobs=0)
    with pytest.raises(UsageError, match="at least 2 with the executor ray"):
        run_trials(bench, pairs, Log(), executor="ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ActxError, match=r"the Ray cluster at 127\.0\.0\.1:1 cannot be joined"):
        run_trials(bench, pairs, Log(), jobs=2, executor="ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ActxError, match="Ray cannot be loaded") as caught:
        run_trials(bench, pairs, Log(), jobs=2, executor="ray")
    assert "actx[cluster]" in caught.value.remedy
