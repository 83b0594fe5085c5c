"""The connection to a device: one process of the system's own ssh, and messages to and from the runner behind it.

1. ssh is given a list of arguments, of which the user's are checked (`address`, `config`), and never asks: agent, keys,
   ~/.ssh/config, jump hosts and known hosts are as they are for the user.
2. The device's Python gets the runner on its stdin (`runner.BOOTSTRAP`), so that nothing needs to be there before.
3. What the device sends is data: objects that are checked (`replies`), and numbers.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import shlex
import subprocess
import tempfile
from typing import IO, TYPE_CHECKING, Any

from pydantic import ValidationError

from actx.exporter.devices import frames
from actx.exporter.devices.replies import Hello, Missing, R
from actx.exporter.devices.runner import BOOTSTRAP
from actx.exporter.documents import first_fault
from actx.exporter.errors import ActxError, TargetUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from actx.exporter.devices.config import Device
    from actx.exporter.devices.frames import Buffer

MODULES = (
    "actx.exporter.machine",
    "actx.exporter.turns",
    "actx.exporter.sensors",
    "actx.exporter.energy",
    "actx.exporter.devices.frames",
    "actx.exporter.runtimes.settings",
    "actx.exporter.devices.runner",
)
_PROGRAM = """
import sys, types
if sys.version_info < (3, 8):
    sys.exit("Python 3.8 or newer is needed, and this is " + sys.version.split()[0])
for name, source in {sources!r}:
    parts = name.split(".")
    for outer in [".".join(parts[:end]) for end in range(1, len(parts))]:
        sys.modules.setdefault(outer, types.ModuleType(outer))
    sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), sys.modules[name].__dict__)
sys.modules[name].main(program)
"""
# Nothing but this connection, no question, and an end to it 30 s after the device was last heard of.
_OPTIONS = (
    *("-T", "-x", "-a"),
    *("-o", "BatchMode=yes"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "PermitLocalCommand=no"),
    *("-o", "RemoteCommand=none"),
    *("-o", "ConnectTimeout=30"),
    *("-o", "ServerAliveInterval=10"),
    *("-o", "ServerAliveCountMax=3"),
    *("-o", "LogLevel=ERROR"),
)
_OF_SSH, _NOT_FOUND, _KILLED = 255, (126, 127), 137  # exit statuses
_MOST_NOISE = 1 << 16  # bytes that a login script may print
_SECONDS_TO_END = 20


class CallFailedError(ActxError):
    """The runner could not do what it was asked for; where the caller knows more, it says so in other words.

    Attributes:
        kind: what failed: `runtime` (ONNX Runtime), `library` or `output`.
        text: the message.
        name: of the output.
    """

    def __init__(self, device: str, kind: str, text: str, name: str) -> None:
        super().__init__(f"the runner on {device} failed", note=text)
        self.kind, self.text, self.name = kind, text, name


@contextlib.contextmanager
def connect(device: Device) -> Iterator[Link]:
    """Start the runner on a device; at the end it and its files are gone.

    Raises:
        TargetUnavailable: the device lacks Python, numpy or ONNX Runtime, or this machine ssh.
        ActxError: there is no connection, or it is lost.
    """
    command = f"exec {device.python} -B -c {shlex.quote(BOOTSTRAP)}"
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(  # noqa: S603 - 1
                ["ssh", *_OPTIONS, *device.address.arguments(), command],  # noqa: S607 - the user's own
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        except OSError as error:
            remedy = "Install OpenSSH's client."
            raise TargetUnavailable("ssh cannot be started here", note=str(error), remedy=remedy) from error
        try:
            yield Link(device, process, errors)
        finally:
            _end(process)


def program() -> bytes:
    """Return the runner with all that it needs, as Python."""
    sources = [(name, inspect.getsource(importlib.import_module(name))) for name in MODULES]
    return _PROGRAM.format(sources=sources).encode()


class Link:
    """An open connection.

    Args:
        device: where to.
        process: ssh.
        errors: where it writes its errors.

    Attributes:
        device: where to.
        hello: what the runner found there.
        closed: numbers of sessions that are not needed any more; the next call says so.
    """

    def __init__(self, device: Device, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.device, self.closed = device, list[int]()
        self._process, self._requests, self._replies = process, process.stdin, process.stdout
        self._errors = errors
        try:
            text = program()
            self._requests.write(b"%d\n%s" % (len(text), text))
            self._requests.flush()
            self._greet()
            message, _ = frames.read(self._replies)
        except (EOFError, OSError) as error:
            raise self._unreachable() from error
        except frames.MalformedError as error:
            raise self.strange(str(error)) from error
        if "missing" in message:
            raise self._lacking(self._checked(Missing, message))
        self.hello = self._checked(Hello, message)

    def call(
        self, name: str, kind: type[R], payload: Iterable[Buffer] = (), size: int | None = None, **arguments: Any
    ) -> tuple[R, bytearray]:
        """Have the runner do something.

        Args:
            name: of the call (see `runner.Runner`).
            kind: what it answers.
            payload: bytes that belong to the call, in parts.
            size: see `frames.write`.
            arguments: of the call, as JSON values.

        Raises:
            CallFailedError: it could not, for a reason that the caller puts into words.
            ActxError: it could not for lack of space or memory, or the connection is lost.
        """
        done, self.closed[:] = list(self.closed), []
        try:
            frames.write(self._requests, {"call": name, "closed": done, **arguments}, payload, size)
            message, length = frames.read(self._replies)
            answer = frames.take(self._replies, length)
        except (EOFError, OSError) as error:
            raise self._lost() from error
        except frames.MalformedError as error:
            raise self.strange(str(error)) from error
        if "error" in message:
            raise self._failed(message)
        return self._checked(kind, message), answer

    def _greet(self) -> None:
        """Read what comes before the runner's first message, and the greeting."""
        seen = bytearray()
        while not seen.endswith(frames.GREETING):
            byte = self._replies.read(1)
            if not byte:
                raise EOFError
            seen += byte
            if len(seen) > _MOST_NOISE:
                raise frames.MalformedError(f"it began with {bytes(seen[:40])!r}")

    def _checked(self, kind: type[R], message: dict[str, Any]) -> R:
        try:
            return kind.model_validate(message)
        except ValidationError as error:
            raise self.strange(first_fault(error)) from error

    def _failed(self, message: dict[str, Any]) -> ActxError:
        kind, text, name = (str(message.get(part, "")) for part in ("kind", "error", "name"))
        if kind == "full":
            remedy = "Make room where its temporary files are, or have its login set TMPDIR to another place."
            return ActxError(f"{self.device.name} has no space for the models", note=text, remedy=remedy)
        if kind == "memory":
            remedy = "Try a smaller --batch-size."
            return ActxError(f"{self.device.name} has no memory for the models", note=text, remedy=remedy)
        return CallFailedError(self.device.name, kind, text, name)

    def _lacking(self, found: Missing) -> TargetUnavailable:
        python = f"Python {found.python} ({self.device.python})"
        return TargetUnavailable(
            f"{self.device.name} lacks {found.missing}",
            note=f"{python}: {found.text}",
            remedy=f"Install it there: {self.device.python} -m pip install onnxruntime. Or name another in devices.toml.",
        )

    def _unreachable(self) -> ActxError:
        """Say why the runner never started."""
        status, text = self._end()
        name = self.device.name
        if status == _OF_SSH and "Host key verification failed" in text:
            remedy = f"Connect to it once by hand and compare the key: ssh {self.device.address}."
            return ActxError(
                f"the host key of {name} is not the one that ssh knows, or ssh knows none", note=text, remedy=remedy
            )
        if status == _OF_SSH and "Permission denied" in text:
            remedy = "Give the device your public key, and ssh the private one: by an agent or ~/.ssh/config."
            return ActxError(f"{name} does not let you in", note=text, remedy=remedy)
        if status == _OF_SSH:
            remedy = f"See that this works without a question: ssh {self.device.address}."
            return ActxError(f"{name} cannot be reached", note=text, remedy=remedy)
        what = f"there is no Python on {name}" if status in _NOT_FOUND else f"Python on {name} does not run"
        remedy = 'Install python3 there, or name another with python = "..." in devices.toml.'
        return TargetUnavailable(what, note=text or f"its exit status is {status}", remedy=remedy)

    def _lost(self) -> ActxError:
        status, text = self._end()
        if status == _KILLED:
            note = text or "it was killed, as the system does where memory ends"
            return ActxError(
                f"the runner on {self.device.name} was ended", note=note, remedy="Try a smaller --batch-size."
            )
        note = text or f"ssh ended with status {status}"
        remedy = "Run it again; nothing is left on the device."
        return ActxError(f"the connection to {self.device.name} was lost", note=note, remedy=remedy)

    def strange(self, note: str) -> ActxError:
        """Say that the device does not answer as the runner does."""
        remedy = "See that a login there runs Python and prints nothing else."
        return ActxError(f"{self.device.name} does not answer as the runner does", note=note, remedy=remedy)

    def _end(self) -> tuple[int, str]:
        """End ssh, and return its exit status and errors."""
        status = _end(self._process)
        self._errors.seek(0)
        lines = self._errors.read(_MOST_NOISE).decode(errors="replace").splitlines()
        return status, " ".join(line.strip() for line in lines if line.strip() and not line.startswith("@"))


def _end(process: subprocess.Popen[bytes]) -> int:
    """Close the connection, and give the runner the time to clean up; return the exit status of ssh."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        return process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
