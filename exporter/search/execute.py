"""Run trials side by side: in processes of this machine, or on a Ray cluster, both through joblib.

1. What the log has is not run. Every result is in the log as soon as it is here.
2. Trials are handed out in the order of the pairs, one per process, which begins it at once. None is after the deadline, which
   is of a clock that nobody sets, and of this machine's: those of a cluster need not agree on the time.
3. A process that is lost only costs the trials that were handed out and had no result yet: they run again. When that gave no
   result `ATTEMPTS` times in a row, the search ends with an error.
4. On a cluster, actx and a metric of the user's own have to be installed on every machine; the bench goes there through Ray's
   object store and is unpacked once per process. `RAY_ADDRESS` names the cluster; without it one is started on this machine
   for as long as the trials run.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import joblib

from actx.exporter.errors import ActxError, UsageError
from actx.exporter.scratch import scratch
from actx.exporter.search.trials import Bench, TrialResult, run_trial, trial_key

if TYPE_CHECKING:
    from actx.exporter.fitting import Form
    from actx.exporter.search.log import Log

Executor: TypeAlias = Literal["local", "ray"]
EXECUTORS: tuple[Executor, ...] = get_args(Executor)
Progress: TypeAlias = Callable[[int, int], None]
Pair: TypeAlias = "tuple[str, Form]"

ATTEMPTS = 3
KIND = "sensitivity"
_RAY_BACKEND = "actx-ray"


def parse_executor(text: str) -> Executor:
    """Read the name of an executor.

    Raises:
        UsageError: there is none of that name.
    """
    for name in EXECUTORS:
        if text == name:
            return name
    raise UsageError(f"there is no executor {text!r}", remedy=f"Choose {' or '.join(EXECUTORS)}.")


def check_executor(executor: Executor) -> None:
    """Check that what an executor needs is installed.

    Raises:
        ActxError: it is not.
    """
    if executor == "ray" and importlib.util.find_spec("ray") is None:
        raise ActxError("Ray is not installed", remedy="Install it: pip install 'actx[cluster]'.")


def run_trials(
    bench: Bench,
    pairs: Sequence[Pair],
    log: Log,
    *,
    jobs: int = 1,
    executor: Executor = "local",
    deadline: float | None = None,
    progress: Progress | None = None,
) -> dict[Pair, TrialResult]:
    """Return the result of every pair of a site's name and a form, in their order; without those that the deadline cut off.

    Args:
        bench: what the trials are made on.
        pairs: the most promising first.
        log: where results are taken from and kept.
        jobs: how many run at once.
        executor: ``local`` or ``ray``.
        deadline: of `time.monotonic`; None for none.
        progress: called with the number of pairs that have a result, and of all.

    Raises:
        UsageError: `jobs` is not positive, or 1 on Ray, where nothing would be distributed.
        ActxError: a trial fails, processes are lost again and again, or Ray cannot be had.
    """
    if jobs < (least := 2 if executor == "ray" else 1):
        what = f"the number of jobs must be at least {least} with the executor {executor}"
        raise UsageError(what, note=f"got {jobs}", remedy=f"Give --jobs {least} or more.")
    keys = {pair: trial_key(bench, *pair) for pair in pairs}
    known = {pair: log.get(key, TrialResult.from_dict) for pair, key in keys.items()}
    results = {pair: result for pair, result in known.items() if result is not None}
    if progress is not None:
        progress(len(results), len(keys))
    if len(results) < len(keys):
        missing = [pair for pair in keys if pair not in results]
        with contextlib.closing(_measured(bench, missing, jobs, executor, deadline)) as measured:
            for pair, result in measured:
                about = {"site": pair[0], "form": str(pair[1]), "metric": bench.metric}
                log.put(keys[pair], KIND, about, result.to_dict())
                results[pair] = result
                if progress is not None:
                    progress(len(results), len(keys))
    return {pair: results[pair] for pair in keys if pair in results}


def _measured(
    bench: Bench, pairs: Sequence[Pair], jobs: int, executor: Executor, deadline: float | None
) -> Generator[tuple[Pair, TrialResult]]:
    """Yield the results as they come (3.)."""
    left = dict.fromkeys(pairs)
    with _EXECUTORS[executor](bench, jobs) as pool:
        failures = 0
        while left:
            try:
                for pair, result in pool.run(list(left), deadline):
                    failures = 0
                    del left[pair]
                    yield pair, result
                return
            except pool.lost as error:
                failures += 1
                if failures > ATTEMPTS:
                    raise _given_up(len(left), error) from error


def _given_up(left: int, error: BaseException) -> ActxError:
    return ActxError(
        f"a process was lost in {ATTEMPTS + 1} attempts in a row, with {left} trials left",
        note=f"{type(error).__name__}: {error}",
        remedy="Memory may be short: run with fewer --jobs. What was measured is in the log.",
    )


@dataclass(frozen=True)
class _Task:
    """One trial, as it is handed to a process.

    Attributes:
        bench: of its site alone.
        pair: site and form.
        path: where modules of the user's own are found.
        files: of the bench, where it has no folder there: a reference into Ray's object store.
    """

    bench: Bench
    pair: Pair
    path: tuple[str, ...]
    files: Any = None

    def __call__(self) -> tuple[Pair, TrialResult]:
        bench = self.bench
        if self.files is not None:
            bench = replace(bench, folder=_unpacked(self.files))
        with _importable(self.path):
            return self.pair, run_trial(bench, *self.pair)


@contextlib.contextmanager
def _importable(path: Sequence[str]) -> Iterator[None]:
    before = list(sys.path)
    sys.path.extend(entry for entry in path if entry not in before)
    try:
        yield
    finally:
        sys.path[:] = before


@dataclass(frozen=True)
class _Pool:
    """Processes that run trials.

    Attributes:
        bench: what the trials are made on.
        lost: the errors of a lost process.
        files: see `_Task`.
    """

    bench: Bench
    lost: tuple[type[BaseException], ...]
    files: Any = None

    def run(self, pairs: Sequence[Pair], deadline: float | None) -> Iterator[tuple[Pair, TrialResult]]:
        """2."""
        path = (str(Path.cwd()), *filter(None, sys.path))
        tasks = (
            joblib.delayed(_Task(self.bench.only(pair[0]), pair, path, self.files))()
            for pair in pairs
            if deadline is None or time.monotonic() <= deadline
        )
        results = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")(tasks)
        with contextlib.closing(results):
            yield from results


@contextlib.contextmanager
def _local(bench: Bench, jobs: int) -> Iterator[_Pool]:
    with joblib.parallel_config("loky", n_jobs=jobs):
        yield _Pool(bench, (BrokenProcessPool,))


@contextlib.contextmanager
def _ray(bench: Bench, jobs: int) -> Iterator[_Pool]:
    """4."""
    try:
        import ray  # noqa: PLC0415 - an extra, which takes its time to import
        from ray.util.joblib.ray_backend import RayBackend  # noqa: PLC0415
    except ImportError as error:
        msg = "Ray cannot be loaded here"
        raise ActxError(msg, note=str(error), remedy="Install it: pip install 'actx[cluster]'.") from error
    # That Ray's backend gives no results before the last is inherited from the one of multiprocessing, and not its own limit.
    joblib.register_parallel_backend(_RAY_BACKEND, type("_Backend", (RayBackend,), {"supports_return_generator": True}))
    joined = ray.is_initialized()
    if not joined:
        _start(ray, jobs)
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        _check_size(int(resources.get("CPU", 0)), jobs)
        files = ray.put({file.name: file.read_bytes() for file in bench.folder.iterdir()})
        # Ray tells of a lost process on stdout, which is for the result.
        with contextlib.redirect_stdout(sys.stderr), joblib.parallel_config(_RAY_BACKEND, n_jobs=jobs):
            yield _Pool(bench, (ray.exceptions.RayActorError,), files)
    finally:
        if not joined:
            ray.shutdown()


def _start(ray: Any, jobs: int) -> None:
    address = os.environ.get("RAY_ADDRESS")
    local = {"address": "local", "num_cpus": jobs, "include_dashboard": False}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # by default a cluster that Ray starts reports home
    try:
        _reach(address or "")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Ray says about its own code
            ray.init(**({"address": address} if address else local), logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        what = f"the Ray cluster at {address} cannot be joined" if address else "a Ray cluster cannot be started here"
        note = f"{type(error).__name__}: {error}"
        raise ActxError(what, note=note, remedy="Check RAY_ADDRESS, or run with --executor local.") from error


def _reach(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself tries for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _check_size(cpus: int, jobs: int) -> None:
    if cpus < jobs:
        what = f"the Ray cluster is too small for {jobs} jobs"
        raise ActxError(what, note=f"it has {cpus} CPUs, and every job takes one", remedy="Give fewer --jobs.")


_EXECUTORS = {"local": _local, "ray": _ray}


@lru_cache(maxsize=1)
def _unpacked(files: Any) -> Path:
    """Write the files of a bench to a folder, which goes with the process."""
    import ray  # noqa: PLC0415 - only there

    kept = contextlib.ExitStack()
    atexit.register(kept.close)
    folder = kept.enter_context(scratch())
    for name, content in ray.get(files).items():
        (folder / name).write_bytes(content)
    return folder
