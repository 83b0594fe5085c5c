"""What runs on a device: it opens models, runs them, measures rounds, and answers the calls that actx sends.

1. It makes a private folder, and takes files into it under names of its own choice.
2. Two processes: one that works, and one that waits for it and for the end of the connection, whichever comes first, ends the
   other and removes the folder. So nothing stays behind a killed connection, or a runner that the system killed.
3. What libraries print goes to stderr: stdout carries messages (`frames`).
4. It reads models, arrays and settings. Libraries of custom ops are code, which it loads where it is told to.

It needs Python 3.8, numpy and ONNX Runtime, and the modules that are sent with it.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actx.exporter import energy, machine, sensors, turns
from actx.exporter.devices import frames
from actx.exporter.runtimes.settings import OPTIMIZED_MODEL, LibraryRefusedError, open_session, register

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import IO

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]
    Reply = tuple[dict[str, Any], Sequence[frames.Buffer]]

# What Python is started with; the program follows on its stdin, behind its length.
BOOTSTRAP = "import sys;r=sys.stdin.buffer;program=r.read(int(r.readline()));exec(program)"
CALLS = {
    name: f"_{name}"
    for name in (
        "file", "register", "open", "run", "time", "keep", "round", "trace", "footprint", "peak", "watch", "watched",
        "energy",
    )
}  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WARMUP = 3


def main(program: bytes) -> None:
    """Serve until the connection ends; then nothing is left.

    Args:
        program: what this is a part of, to start it once more.
    """
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    folder = Path(tempfile.mkdtemp(prefix="actx-runner-"))
    alive, working = os.pipe()
    worker = os.fork()
    if worker:
        os.close(working)
        replies.close()
        _guard(worker, alive, folder)
    os.close(alive)
    os.environ["TMPDIR"] = str(folder)  # ONNX Runtime leaves a file where temporary files are
    try:
        _work(program, requests, replies, folder)
    except Exception:  # noqa: BLE001 - it is told where the errors of ssh are
        traceback.print_exc()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _guard(worker: int, alive: int, folder: Path) -> None:
    """2. Wait, without work, until the worker or the connection ends."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: os.kill(worker, signal.SIGKILL))
    ends = select.poll()
    for descriptor in (alive, sys.stdin.fileno()):
        ends.register(descriptor, 0)  # POLLHUP and POLLERR are always told
    ends.poll()
    with contextlib.suppress(OSError):
        os.kill(worker, signal.SIGKILL)
    _, status = os.waitpid(worker, 0)
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)


def _work(program: bytes, requests: IO[bytes], replies: IO[bytes], folder: Path) -> None:
    replies.write(frames.GREETING)
    try:
        import numpy as np  # noqa: PLC0415 - the device may lack it
        import onnxruntime as ort  # noqa: PLC0415
    except ImportError as error:
        frames.write(replies, {"missing": error.name, "text": str(error), "python": platform.python_version()})
        return
    gc.disable()
    cores = machine.usable_cores()
    found = {
        "model": sensors.model_name(),
        "architecture": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "cores": cores,
        "versions": {"onnxruntime": ort.__version__, "numpy": np.__version__},
        "machine": machine.describe(),
    }
    frames.write(replies, found)
    Runner(program, requests, replies, folder, cores).serve()


class Runner:
    """Answers calls.

    Args:
        program: the whole of it.
        requests: where calls come from.
        replies: where answers go.
        folder: for files.
        cores: numbers of the cores that it may run on.
    """

    def __init__(self, program: bytes, requests: IO[bytes], replies: IO[bytes], folder: Path, cores: list[int]) -> None:
        self._program = program
        self._requests, self._replies, self._folder, self._cores = requests, replies, folder, cores
        self._files: list[Path] = []
        self._sessions: dict[int, Any] = {}
        self._feeds: list[Arrays] = []
        self._opened = 0
        self._others = machine.Others()

    def serve(self) -> None:
        """Answer until there are no more calls."""
        with contextlib.suppress(EOFError, BrokenPipeError):
            while True:
                request, size = frames.read(self._requests)
                message, payload = self._answer(request, size)
                frames.write(self._replies, message, payload)

    def _answer(self, request: dict[str, Any], size: int) -> Reply:
        call = request.pop("call")
        for number in request.pop("closed", ()):
            self._sessions.pop(number, None)
        if call == "file":  # it need not fit into memory
            request["size"] = size
        elif size:
            request["payload"] = frames.take(self._requests, size)
        try:
            answer: Reply = getattr(self, CALLS[call])(**request)
            return answer
        except LibraryRefusedError as error:
            return {"error": error.args[1], "kind": "library"}, ()
        except OSError as error:
            return {"error": str(error.strerror or error), "kind": "full" if error.errno in _FULL else "system"}, ()
        except (MemoryError, EOFError):  # or a process of its own was ended for lack of it
            return {"error": "there is not enough memory", "kind": "memory"}, ()
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's own are many
            return {"error": str(error), "kind": "runtime"}, ()

    def _file(self, size: int, after: int | None = None) -> Reply:
        """Take a file, or what comes after another one, and return its number and name."""
        path = self._folder / f"f{len(self._files)}"
        rest = iter(frames.parts(self._requests, size))
        try:
            with path.open("wb") as file:
                if after is not None:
                    with self._files[after].open("rb") as begin:
                        shutil.copyfileobj(begin, file)
                for part in rest:
                    file.write(part)
        finally:
            for _ in rest:  # where it could not be written, the next call is behind it
                pass
        self._files.append(path)
        return {"file": len(self._files) - 1, "name": path.name}, ()

    def _register(self, library: int) -> Reply:
        """Load a library of custom ops."""
        import onnxruntime as ort  # noqa: PLC0415

        register(ort.SessionOptions(), str(self._files[library]))
        return {}, ()

    def _open(self, model: dict[str, Any]) -> Reply:
        """Open a model."""
        session = self._session(model)
        self._opened += 1
        self._sessions[self._opened] = session
        inputs = [[node.name, node.type, list(node.shape)] for node in session.get_inputs()]
        return {"session": self._opened, "inputs": inputs, "outputs": [node.name for node in session.get_outputs()]}, ()

    def _run(self, session: int, outputs: list[str], arrays: list[Any], payload: bytes = b"") -> Reply:
        """Run a model once, and return what it gives."""
        values = self._sessions[session].run(outputs, frames.arrays(arrays, payload))
        for name, value in zip(outputs, values):
            kind = getattr(value, "dtype", None)
            if kind is None or kind.kind not in "fiub":
                return {"error": str(kind or type(value).__name__), "kind": "output", "name": name}, ()
        described, parts = frames.describe(dict(zip(outputs, values)))
        return {"arrays": described}, parts

    def _time(self, session: int, arrays: list[Any], payload: bytes = b"") -> Reply:
        """Run a model once, and return the nanoseconds."""
        return {"nanoseconds": _timer(self._sessions[session], frames.arrays(arrays, payload))()}, ()

    def _keep(self, arrays: list[Any], payload: bytes = b"") -> Reply:
        """Keep feeds, for several calls."""
        self._feeds.append(frames.arrays(arrays, payload))
        return {"feeds": len(self._feeds) - 1}, ()

    def _round(self, entrants: list[dict[str, Any]], orders: list[list[int]], most: int) -> Reply:
        """Measure one round, and how the device fares right behind it."""

        def start(which: int) -> turns.Opened:
            session, feeds = self._session(entrants[which]["model"]), self._feeds[entrants[which]["feeds"]]
            return lambda: session.run(None, feeds), lambda: _timer(session, feeds)

        gc.collect()
        times = turns.take_round(start, orders, most)
        return {"start": times[0], "turns": times[1], "conditions": sensors.conditions(self._cores)}, ()

    def _trace(self, model: dict[str, Any], feeds: int, runs: int) -> Reply:
        """Run a model under ONNX Runtime's profiler, and return the profile and the graph that ran."""
        with tempfile.TemporaryDirectory(dir=str(self._folder)) as place:
            session = self._session(model, Path(place))
            for _ in range(_WARMUP + runs):
                session.run(None, self._feeds[feeds])
            parts = [Path(session.end_profiling()).read_bytes(), (Path(place) / OPTIMIZED_MODEL).read_bytes()]
        return {"sizes": [len(part) for part in parts]}, parts

    def _footprint(self, model: dict[str, Any], feeds: int) -> Reply:
        """Have a runner of its own open a model and run it once, and return the bytes that it needed for that."""
        arrays, parts = frames.describe(self._feeds[feeds])
        asked = {"call": "peak", "path": str(self._files[model["file"]]), "libraries": self._libraries(model)}
        command = [sys.executable, "-B", "-c", BOOTSTRAP]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:  # noqa: S603 - our own
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(b"%d\n%s" % (len(self._program), self._program))
            frames.write(child.stdin, {**asked, "settings": model["settings"], "arrays": arrays}, parts)
            frames.take(child.stdout, len(frames.GREETING))
            frames.read(child.stdout)
            return frames.read(child.stdout)[0], ()

    def _peak(
        self, path: str, libraries: list[str], settings: dict[str, Any], arrays: list[Any], payload: bytes
    ) -> Reply:
        """Return the bytes that this process needs to open a model and run it once; None where the system does not tell."""
        feeds = frames.arrays(arrays, payload)
        machine.lower_high_water_mark()
        before = machine.memory("VmRSS")
        open_session(path, settings, libraries).run(None, feeds)
        peak = machine.memory("VmHWM")
        return {"bytes": None if before is None or peak is None else peak - before}, ()

    def _watch(self) -> Reply:
        """Begin to watch how the device fares."""
        before = {"load_average": machine.load_average(), "conditions": sensors.conditions(self._cores)}
        self._others = machine.Others()
        return before, ()

    def _watched(self) -> Reply:
        """Return how it has fared."""
        return {"others_busy_cores": self._others.cores(), "conditions": sensors.conditions(self._cores)}, ()

    def _energy(self, entrants: list[dict[str, Any]], seconds: float) -> Reply:
        """Run models one after the other, each alone for so long, and return the energy that was taken meanwhile."""
        timers = [_timer(self._session(one["model"]), self._feeds[one["feeds"]]) for one in entrants]
        return energy.measure(timers, seconds), ()

    def _session(self, model: dict[str, Any], trace: Path | None = None) -> Any:
        return open_session(str(self._files[model["file"]]), model["settings"], self._libraries(model), trace)

    def _libraries(self, model: dict[str, Any]) -> list[str]:
        return [str(self._files[library]) for library in model["libraries"]]


def _timer(session: Any, feeds: Arrays) -> Callable[[], int]:
    """Return what runs a session once and gives the nanoseconds."""

    def run() -> int:
        begin = time.perf_counter_ns()
        session.run(None, feeds)
        return time.perf_counter_ns() - begin

    return run
