"""Kills: `python -m tests.benchmarks.faults`, a hundred ends by SIGKILL of an export, a search and a sweep over devices.

A kill is at the beginning or end of a step, each in turn, and where there are no more of these at a random moment. Then

1. the bundle must be whole, the old one or the new one, by the digests of its manifest;
2. the log of a search must have every line but the last whole, and nothing measured twice;
3. on the devices of a sweep nothing may stay.

A search that was killed goes on with the next run, and one that came to its end begins anew. At last each command runs
undisturbed, and neither beside the bundle nor among the temporary files may anything be left. Printed is what was found; the
exit code is 1 where it is not so. A sweep needs an ssh server (on Debian: openssh-server), started on the loopback interface.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy starts threads: processes are forked

import numpy as np
import onnx

from actx.exporter import Form, RuntimeOptions, export
from actx.exporter.bundle import read_bundle, verify
from actx.exporter.devices import find_devices
from actx.exporter.devices.sweep import profile_all
from actx.exporter.errors import ActxError
from actx.exporter.search.search import SearchOptions
from tests.exporter.devices.server import SSHD, Server, serve
from tests.networks import many_sites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Progress: TypeAlias = "Callable[[str, int, int], None]"
ONE = RuntimeOptions(threads=1)
FORMS = ("relu", "hardswish")
HOSTS = ("first", "second", "third")
SHARES = {"export": 0.4, "search": 0.3, "sweep": 0.3}
# A search goes on where it was: its random moments are within a part of a whole run.
PARTS = {"export": 1, "search": 4, "sweep": 1}
COLUMNS = ("at steps", "at random", "too late", "old bundle", "new bundle", "half a bundle", "other faults")


@dataclass
class Place:
    """Files of the campaign.

    Attributes:
        folder: with a model, data, and the bundle.
        server: the devices; None where there is no ssh server.
        turn: how often an export was begun: it changes the form that is asked for.
    """

    folder: Path
    server: Server | None
    turn: int = 0

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def data(self) -> str:
        return str(self.folder / "data.npz")

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @classmethod
    def make(cls, folder: Path, server: Server | None) -> Place:
        place = cls(folder, server)
        onnx.save(many_sites(1), place.model)
        rng = np.random.default_rng(0)
        np.savez(place.data, x=rng.uniform(-1, 1, (32, 3, 8)).astype(np.float32))
        return place

    def hidden(self) -> list[str]:
        """What is beside the bundle that was not there before."""
        return [file.name for file in self.folder.iterdir() if file.name.startswith(".")]

    def entries(self) -> list[str]:
        """The keys of the whole lines of the log; a line that was cut short is the last."""
        lines = self.log.read_bytes().split(b"\n")[:-1] if self.log.exists() else []
        return [json.loads(line)["key"] for line in lines]


@dataclass
class Row:
    """What was found of a command."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


# --- the commands ---


def run_export(place: Place, progress: Progress) -> None:
    export(
        place.model, place.out, form=Form.parse(FORMS[place.turn % 2]), data=place.data, force=True, recover=True,
        measure_latency=False, options=ONE, progress=progress,
    )  # fmt: skip


def run_search(place: Place, progress: Progress) -> None:
    export(
        place.model, place.out, form="auto", data=place.data, max_drift=1e-2, force=True, runs=3, options=ONE,
        search=SearchOptions(log=place.log, jobs=1), progress=progress,
    )  # fmt: skip


def run_sweep(place: Place, progress: Progress) -> None:
    devices = find_devices("bench", place.folder / "devices.toml").devices
    outcomes = profile_all(devices, place.model, place.out, runs=1, options=ONE, progress=progress)
    failed = [str(outcome.error) for outcome in outcomes if outcome.error is not None]
    if failed:
        raise ActxError(failed[0])


COMMANDS: dict[str, Callable[[Place, Progress], None]] = {
    "export": run_export,
    "search": run_search,
    "sweep": run_sweep,
}


# --- what must hold after a kill ---


def inspect(command: str, place: Place, before: dict[str, str], row: Row) -> None:
    """Look at the bundle, the log and the devices."""
    try:
        folder, manifest = read_bundle(place.out)
        verify(folder, manifest)
        row.counts["old bundle" if manifest.files == before else "new bundle"] += 1
    except ActxError as error:
        row.counts["half a bundle"] += 1
        row.faults.append(str(error))
    try:
        twice = [key for key, count in Counter(place.entries()).items() if count > 1]
        row.faults += [f"measured twice: {key}" for key in twice]
    except (ValueError, KeyError, TypeError) as error:
        row.faults.append(f"the log has a line that is not whole: {error}")
    if command == "sweep" and place.server is not None:
        row.faults += [f"{host} has {left}" for host in HOSTS for left in place.server.left(host)]


# --- kills ---


def begin(command: str, place: Place, last: int | None) -> int:
    """Start a command in a process of its own, which kills itself at that boundary of a step, and return its number."""
    child = os.fork()
    if child:
        return child
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    seen, step = 0, ""

    def progress(name: str, done: int, total: int) -> None:
        nonlocal seen, step
        boundary = (name != step) + (done == total)
        step = name
        if last is not None and seen < last <= seen + boundary:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += boundary

    code = 1
    with contextlib.suppress(BaseException):
        COMMANDS[command](place, progress)
        code = 0
    os._exit(code)


def kill_at(child: int, seconds: float) -> int:
    """Kill a process after so long, and return its exit code, negative where it was killed."""
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return wait(child)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def campaign(command: str, place: Place, kills: int, rng: random.Random) -> Row:
    """Kill a command so often, and let it run through at the end."""
    row = Row()
    length = undisturbed(command, place, row)
    place.log.unlink(missing_ok=True)
    last: int | None = 1
    while row.counts["at steps"] + row.counts["at random"] < kills and row.counts["too late"] < kills:
        place.turn += 1
        before = read_bundle(place.out)[1].files
        child = begin(command, place, last)
        code = wait(child) if last is not None else kill_at(child, rng.uniform(0, length / PARTS[command]))
        inspect(command, place, before, row)
        if code == -signal.SIGKILL:
            row.counts["at steps" if last is not None else "at random"] += 1
        elif code == 0:
            row.counts["too late"] += last is None
            place.log.unlink(missing_ok=True)
        elif code != 0:
            row.faults.append(f"it ended by itself with code {code}")
        last = last + 1 if last is not None and code == -signal.SIGKILL else None
        done = row.counts["at steps"] + row.counts["at random"]
        print(f"\r{command}: {done} of {kills} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    undisturbed(command, place, row)
    row.faults += [f"left beside the bundle: {name}" for name in place.hidden()]
    row.faults += [f"left among temporary files: {file.name}" for file in Path(tempfile.gettempdir()).glob("actx-*")]
    row.counts["other faults"] = len(row.faults) - row.counts["half a bundle"]
    return row


def undisturbed(command: str, place: Place, row: Row) -> float:
    """Run a command through, and return the seconds."""
    start = time.monotonic()
    if code := wait(begin(command, place, None)):
        row.faults.append(f"undisturbed it ended with code {code}")
    return time.monotonic() - start


@contextlib.contextmanager
def devices(folder: Path) -> Iterator[Server | None]:
    """Start the ssh server."""
    if shutil.which(SSHD) is None:
        yield None
        return
    folder.mkdir()
    with serve(folder) as server:
        os.environ["PATH"] = f"{server.tools}{os.pathsep}{os.environ['PATH']}"
        yield server


def main() -> int:
    """Print a row per command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--only", choices=SHARES, help="this command")
    options = parser.parse_args()
    shares = SHARES if options.only is None else {options.only: 1.0}
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as given, devices(Path(given) / "ssh") as server:
        folder = Path(given) / "files"
        temporary = Path(given) / "temporary"
        folder.mkdir()
        temporary.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        place = Place.make(folder, server)
        if server is not None:
            shutil.copy(server.toml, folder / "devices.toml")
        undisturbed("export", place, Row())
        for command, share in shares.items():
            if command != "sweep" or server is not None:
                kills = round(share * options.kills)
                rows[command] = campaign(command, place, kills, random.Random(options.seed))
    print(f"| command | {' | '.join(COLUMNS)} |\n|---{'|---' * len(COLUMNS)}|")
    for command, row in rows.items():
        print(f"| {command} | {' | '.join(str(row.counts[column]) for column in COLUMNS)} |")
        for fault in row.faults:
            print(f"{command}: {fault}", file=sys.stderr)
    if "sweep" in shares and "sweep" not in rows:
        print("sweep: not run, there is no ssh server", file=sys.stderr)
    return int(len(rows) < len(shares) or any(row.faults for row in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
