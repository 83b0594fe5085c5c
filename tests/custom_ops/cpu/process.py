"""A library of CPU kernels in a process of its own: for another machine under qemu, or with sanitizers. See runner.cc."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import ml_dtypes
import numpy as np

from actx.custom_ops.cpu import Kernel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

HERE = Path(__file__).parent
INCLUDE = HERE.parents[2] / "custom_ops/cpu/include"
TYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 10: np.float16, 16: ml_dtypes.bfloat16}
NUMBERS = {np.dtype(dtype): number for number, dtype in TYPES.items()}


class Runs(Protocol):
    """What `Library` and `Process` have in common."""

    @property
    def isas(self) -> tuple[str, ...]: ...

    def kernels(self, isa: str) -> tuple[Kernel, ...]: ...

    def run(
        self,
        op_type: str,
        attributes: Mapping[str, Any],
        inputs: Sequence[NDArray[Any] | None],
        *,
        isa: str | None = None,
        kernel: str | None = None,
    ) -> NDArray[Any]: ...


def build_runner(compiler: str, folder: Path, *options: str) -> Path:
    runner = folder / "runner"
    command = [compiler, "-std=c++17", "-O1", "-g", *options, f"-I{INCLUDE}", str(HERE / "runner.cc"), "-ldl", "-o"]
    subprocess.run([*command, str(runner)], check=True)
    return runner


class Process:
    """Runs ops in a process that `command` starts; a crash of it is an error that shows what it wrote to stderr."""

    def __init__(self, *command: str | Path) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([str(part) for part in command], stdin=pipe, stdout=pipe, stderr=pipe)
        self._send(_text("isas"))
        self.isas = tuple(self._read_text().split())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _, errors = self._process.communicate()
        assert self._process.returncode == 0, errors.decode()

    def kernels(self, isa: str) -> tuple[Kernel, ...]:
        self._send(_text("kernels") + _text(isa))
        return tuple(Kernel(*line.split()) for line in self._read_text().splitlines())

    def run(
        self,
        op_type: str,
        attributes: Mapping[str, Any],
        inputs: Sequence[NDArray[Any] | None],
        *,
        isa: str | None = None,
        kernel: str | None = None,
    ) -> NDArray[Any]:
        given = {name: value for name, value in attributes.items() if value is not None}
        message = _text("run") + _text(op_type) + _text(isa or "") + _text(kernel or "") + _number(len(given))
        message += b"".join(_attribute(name, value) for name, value in given.items())
        self._send(message + _number(len(inputs)) + b"".join(_tensor(array) for array in inputs))
        if self._read_text() == "error":
            raise ValueError(self._read_text())
        self._read_text()  # the kernel
        dtype = np.dtype(TYPES[self._read_number()])
        shape = tuple(self._read_number() for _ in range(self._read_number()))
        return np.frombuffer(self._read_bytes(), dtype).reshape(shape)

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._died()

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) < size:
            self._died()
        return data

    def _read_number(self) -> int:
        return int(struct.unpack("<Q", self._read(8))[0])

    def _read_bytes(self) -> bytes:
        return self._read(self._read_number())

    def _read_text(self) -> str:
        return self._read_bytes().decode()

    def _died(self) -> None:
        _, errors = self._process.communicate()
        msg = f"the runner ended with {self._process.returncode}:\n{errors.decode(errors='replace')}"
        raise RuntimeError(msg)


def _number(value: int) -> bytes:
    return struct.pack("<Q", value)


def _bytes(data: bytes) -> bytes:
    return _number(len(data)) + data


def _text(text: str) -> bytes:
    return _bytes(text.encode())


def _attribute(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return _text(name) + _text("s") + _text(value)
    array = np.asarray(value)
    whole = array.dtype.kind in "iu"
    with np.errstate(over="ignore"):
        data = array.astype(np.int64 if whole else np.float32).tobytes()
    return _text(name) + _text("i" if whole else "f") + _bytes(data)


def _tensor(array: NDArray[Any] | None) -> bytes:
    if array is None:
        return _number(0) + _number(0) + _bytes(b"")
    sizes = b"".join(_number(size) for size in array.shape)
    return _number(NUMBERS[array.dtype]) + _number(array.ndim) + sizes + _bytes(array.tobytes())
