"""ONNX Runtime and the launcher of GPU kernels on a machine without a GPU, in a process of its own.

The library is built for the provider of the CPU, and the process has a stand-in for CUDA's driver (driver.cc), whose device
memory is memory of the host. What is launched gets the parameters checked against the plan, and the reference for a result.
"""

# ruff: noqa: PLC0415 - the process loads the stand-in before anything else
from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actx.custom_ops.gpu.build import Binary
from actx.custom_ops.gpu.launch import plan
from actx.custom_ops.gpu.node import compile_node
from actx.custom_ops.ops import TensorType
from tests.custom_ops.cpu.nodes import model
from tests.custom_ops.cpu.test_onnxruntime import open_session, run_case
from tests.custom_ops.gpu.worker import Worker, answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from actx.custom_ops.gpu.launch import Kernel
    from tests.op_cases import Case

HERE = Path(__file__).parent
SHARED, LARGE_SHARED = 512, 60_000
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip


def build_driver(folder: Path) -> Path:
    """Build the stand-in under the driver's own name: a library that is loaded already is taken by it."""
    path = folder / "libcuda.so.1"
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["c++", *options, str(HERE / "driver.cc"), "-o", str(path)], check=True)
    return path


def start(library: Path, driver: Path | None, environment: Mapping[str, str]) -> Worker:
    """Start the process."""
    return Worker(__name__, str(library), str(driver or ""), environment=environment)


# --- what the process runs ---

_LIBRARY: Any = None
_DRIVER: Any = None


@dataclass
class _Library:
    path: str


def serve() -> None:
    global _LIBRARY, _DRIVER  # noqa: PLW0603 - the state of the process
    _LIBRARY = _Library(sys.argv[1])
    _DRIVER = ctypes.CDLL(sys.argv[2]) if sys.argv[2] else None
    answer(globals(), AssertionError)


@dataclass
class _Compiler:
    """Gives images that say what they are, and keeps the kernels."""

    shared: int = SHARED
    kernels: list[Kernel] = field(default_factory=list)

    def __call__(self, kernel: Kernel, pointers: Sequence[Any], architecture: int, *, aligned: bool) -> Binary:
        self.kernels.append(kernel)
        text = f"{architecture} {'aligned' if aligned else 'any'} {[str(one) for one in pointers]}"
        shared, threads = self.shared + architecture, 32 * kernel.warps
        description = {"symbol": kernel.name, "threads": threads, "shared_bytes": shared}
        return Binary(f"\x7fELF {text}\0".encode(), f"PTX {text}", description)


def launches_as_planned(case: Case, unknown: tuple[int, ...], architectures: Sequence[int], device: int) -> None:
    """Run a case whose sizes at some axes of the first input are not known when it is compiled."""
    types = [None if given is None else TensorType.of(given) for given in case.inputs]
    compiler = _Compiler()
    attributes = compile_node(case.op, _forget(types, unknown), architectures, compile_one=compiler)
    launched = []

    def check(*arguments: Any) -> int:
        try:
            launched.append(_check_launch(case, types, compiler.kernels[0], architectures, device, *arguments))
        except AssertionError as error:
            launched.append(error)
        return 0

    _prepare(check, device)
    result = _run(case, attributes)
    assert not any(isinstance(one, AssertionError) for one in launched), launched
    assert len(launched) == (result.size > 0)
    assert result.tobytes() == case.op.reference(case.inputs).tobytes()
    assert _DRIVER.stub_held() == 0


def _check_launch(
    case: Case, types: Any, kernel: Kernel, architectures: Sequence[int], device: int,
    image: bytes, symbol: bytes, grid: int, threads: int, shared: int, _: Any, parameters: Any,
) -> str:  # fmt: skip
    planned = plan(case.op, types)
    assert symbol.decode() == kernel.name
    assert threads == 32 * kernel.warps
    own = device in architectures
    architecture = device if own else 75
    pointed = [types[place].dtype for place in kernel.inputs] + [case.op.output(types).dtype, planned.table.dtype]
    kind = "aligned" if planned.aligned else "any"
    name = f"{architecture} {kind} {[str(one) for one in pointed]}"
    assert image.decode() == (f"\x7fELF {name}" if own else f"PTX {name}")
    assert shared == SHARED + architecture
    pointers = [ctypes.c_uint64.from_address(parameters[i]).value for i in range(len(pointed))]
    for place, pointer in zip(kernel.inputs, pointers, strict=False):
        given = case.inputs[place]
        assert given is not None
        assert ctypes.string_at(pointer, given.nbytes) == np.ascontiguousarray(given).tobytes()
    assert ctypes.string_at(pointers[-1], planned.table.nbytes) == planned.table.tobytes()
    count = len(pointed) + len(kernel.integers)
    integers = [ctypes.c_int32.from_address(parameters[i]).value for i in range(len(pointed), count)]
    assert tuple(integers) == planned.integers
    tall, wide = kernel.tile
    rows, cols = integers[:2]
    assert grid == -(-rows // tall) * (1 if wide is None else -(-cols // wide))
    assert [ctypes.c_uint64.from_address(parameters[count + i]).value for i in range(2)] == [0, 0]
    expected = case.op.reference(case.inputs).tobytes()
    ctypes.memmove(pointers[-2], expected, len(expected))
    return image.decode()


def runs(
    case: Case, architectures: Sequence[int] = (), device: int = 87, changed: Mapping[str, Any] | None = None
) -> int:
    """Run a case with some attributes changed, or left out where they are None; return how often there was a launch."""
    types = [None if given is None else TensorType.of(given) for given in case.inputs]
    attributes = compile_node(case.op, types, architectures, compile_one=_Compiler())
    launched: list[int] = []
    _prepare(lambda *_: launched.append(1) or 0, device)
    _run(case, {**attributes, **(changed or {})})
    return len(launched)


def shares_large_memory(case: Case) -> int:
    """Return how often a kernel with more shared memory than is given unasked asks for it."""
    types = [None if given is None else TensorType.of(given) for given in case.inputs]
    attributes = compile_node(case.op, types, compile_one=_Compiler(LARGE_SHARED))
    _prepare(lambda *_: 0, 87)
    _run(case, attributes)
    return int(_DRIVER.stub_calls(b"cuFuncSetAttribute"))


def loads_once(case: Case, times: int) -> tuple[int, ...]:
    """Run one session several times; return how often was loaded, allocated and launched, and what is held in the end."""
    types = [None if given is None else TensorType.of(given) for given in case.inputs]
    attributes = compile_node(case.op, types, compile_one=_Compiler())
    _prepare(lambda *_: 0, 87)
    names = (b"cuModuleLoadData", b"cuMemAlloc_v2", b"cuLaunchKernel")
    before = [_DRIVER.stub_calls(name) for name in names]
    content = model(case.op.NAME, {**case.op.attributes(), **_protos(attributes)}, types, case.op.output(types))
    session = open_session(_LIBRARY, content)
    for _ in range(times):
        session.run(None, {f"x{i}": given for i, given in enumerate(case.inputs) if given is not None})
    held = _DRIVER.stub_held()
    del session
    assert held > 0
    return (*(_DRIVER.stub_calls(name) - old for name, old in zip(names, before, strict=True)), _DRIVER.stub_held())


def fails(name: str, result: int) -> None:
    """Make a call of the driver fail, or with 0 no longer."""
    _DRIVER.stub_fail(name.encode(), result)


def held() -> int:
    """Return how many modules, allocations and contexts there are."""
    return int(_DRIVER.stub_held())


_callback: Any = None


def _prepare(check: Callable[..., int], device: int) -> None:
    global _callback  # noqa: PLW0603 - it lives as long as it can be called
    if _DRIVER is None:
        return
    _callback = _CALLBACK(check)
    _DRIVER.stub_on_launch(_callback)
    _DRIVER.stub_set_architecture(device)


def _run(case: Case, attributes: Mapping[str, Any]) -> Any:
    return run_case(_LIBRARY, case, more=_protos(attributes))


def _protos(attributes: Mapping[str, Any]) -> dict[str, Any]:
    from onnx import numpy_helper

    return {
        name: numpy_helper.from_array(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
        for name, value in attributes.items()
    }


def _forget(types: Sequence[TensorType | None], unknown: tuple[int, ...]) -> list[TensorType | None]:
    """Lose the sizes of the first input's axes."""
    first, *others = types
    assert first is not None
    assert first.shape is not None
    shape = tuple(None if axis in unknown else size for axis, size in enumerate(first.shape))
    return [TensorType(first.dtype, shape), *others]
