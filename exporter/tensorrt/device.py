"""The GPU of this machine through CUDA's runtime API: what it is, memory on both sides, copies, graphs, waiting.

Every call's return code is checked. What is taken is given back by the context manager that took it.
Source: NVIDIA, CUDA Runtime API reference; the calls have the same names here.
"""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actx.exporter.errors import ActxError, TargetUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

_BUS_ADDRESS = 32  # characters, with room
_REMEDY = "Run it on a machine with an NVIDIA GPU and its driver."


@dataclass(frozen=True)
class Gpu:
    """A device.

    Attributes:
        name: as its maker calls it.
        compute_capability: such as "8.6".
        cuda: the newest CUDA version that the driver supports, such as "13.0".
        clock_mhz: the largest clock of its multiprocessors; None where the driver does not say.
    """

    name: str
    compute_capability: str
    cuda: str
    clock_mhz: float | None


def find_gpu() -> tuple[Gpu | None, str]:
    """Return the first GPU, or None and why there is none. Nothing is raised: a machine without one is a plain case."""
    try:
        cuda = _cuda()
        version = _done(cuda.cudaDriverGetVersion())
        if not version:
            return None, "there is no NVIDIA driver"
        if not _done(cuda.cudaGetDeviceCount()):
            return None, "the driver finds no GPU"
        properties = _done(cuda.cudaGetDeviceProperties(0))
    except TargetUnavailable as error:
        return None, error.note or error.what
    except ActxError as error:
        return None, error.note
    name = bytes(properties.name).split(b"\0")[0].decode(errors="replace")
    supported = f"{version // 1000}.{version % 1000 // 10}"
    return Gpu(name, f"{properties.major}.{properties.minor}", supported, _clock_mhz(cuda)), ""


def bus_address() -> str | None:
    """Return the PCI address of the first GPU, such as "0000:01:00.0"; None where there is none or CUDA cannot be called."""
    try:
        return bytes(_done(_cuda().cudaDeviceGetPCIBusId(_BUS_ADDRESS, 0))).split(b"\0")[0].decode()
    except ActxError:
        return None


def require_gpu(purpose: str) -> Gpu:
    """Return the first GPU.

    Args:
        purpose: what it is needed for; stands in the error: "an engine cannot be run".

    Raises:
        TargetUnavailable: there is none, no driver, or no `cuda-bindings`.
    """
    gpu, reason = find_gpu()
    if gpu is None:
        raise TargetUnavailable(f"{purpose} without a GPU", note=reason, remedy=_REMEDY)
    return gpu


class Stream:
    """A CUDA stream, made by `stream`.

    Attributes:
        handle: what the libraries take.
    """

    def __init__(self, handle: Any, event: Any, *, spin: bool) -> None:
        self.handle = int(handle)
        self._event = event
        self._spin = spin

    def to_device(self, device: int, host: int, size: int) -> None:
        """Copy `size` bytes to the device, in the stream's order."""
        cuda = _cuda()
        _done(cuda.cudaMemcpyAsync(device, host, size, cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, self.handle))

    def to_host(self, host: int, device: int, size: int) -> None:
        """Copy `size` bytes to the host, in the stream's order."""
        cuda = _cuda()
        _done(cuda.cudaMemcpyAsync(host, device, size, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost, self.handle))

    def wait(self) -> None:
        """Wait until all that was given to the stream is done.

        Raises:
            ActxError: some of it failed on the device.
        """
        cuda = _cuda()
        if not self._spin:
            _done(cuda.cudaEventRecord(self._event, self.handle))
            _done(cuda.cudaEventSynchronize(self._event))
            return
        busy = cuda.cudaError_t.cudaErrorNotReady
        while (code := cuda.cudaStreamQuery(self.handle)[0]) == busy:
            pass
        _done((code,))


@contextlib.contextmanager
def stream(*, spin: bool) -> Iterator[Stream]:
    """Give a stream that waits by asking again and again, or (`spin` False) asleep until the device is done."""
    cuda = _cuda()
    handle = _done(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
    try:
        event = _done(cuda.cudaEventCreateWithFlags(cuda.cudaEventBlockingSync | cuda.cudaEventDisableTiming))
        try:
            yield Stream(handle, event, spin=spin)
        finally:
            _done(cuda.cudaEventDestroy(event))
    finally:
        _done(cuda.cudaStreamDestroy(handle))


@contextlib.contextmanager
def device_memory(size: int) -> Iterator[int]:
    """Give the address of `size` bytes on the device. There is an address for 0 bytes too: engines want one."""
    cuda = _cuda()
    address = int(_done(cuda.cudaMalloc(max(size, 1))))
    try:
        yield address
    finally:
        _done(cuda.cudaFree(address))


@contextlib.contextmanager
def pinned_memory(size: int) -> Iterator[NDArray[np.uint8]]:
    """Give `size` bytes (at least 1) of page-locked memory of the host, uint8 (size,): copies to and from it need not wait."""
    cuda = _cuda()
    count = max(size, 1)
    address = int(_done(cuda.cudaMallocHost(count)))
    try:
        yield np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))
    finally:
        _done(cuda.cudaFreeHost(address))


@contextlib.contextmanager
def captured(on: Stream, work: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Capture what `work` gives to the stream as a CUDA graph, and give what launches it there.

    Raises:
        ActxError: the work cannot be captured, as where it waits for the device.
    """
    cuda = _cuda()
    _done(cuda.cudaStreamBeginCapture(on.handle, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    try:
        work()
    finally:
        graph = _done(
            cuda.cudaStreamEndCapture(on.handle)
        )  # also where the work failed: the stream must leave the capture
    try:
        runnable = _done(cuda.cudaGraphInstantiate(graph, 0))
        try:
            yield lambda: _done(cuda.cudaGraphLaunch(runnable, on.handle))
        finally:
            _done(cuda.cudaGraphExecDestroy(runnable))
    finally:
        _done(cuda.cudaGraphDestroy(graph))


def _clock_mhz(cuda: Any) -> float | None:
    error, khz = cuda.cudaDeviceGetAttribute(cuda.cudaDeviceAttr.cudaDevAttrClockRate, 0)
    return khz / 1000 if error == cuda.cudaError_t.cudaSuccess else None


def _cuda() -> Any:
    try:
        from cuda.bindings import runtime  # noqa: PLC0415 - only where a device is asked for
    except ImportError as error:
        note = f"cuda-bindings is not installed ({error})"
        remedy = "Install it: pip install 'actx[trt-rtx]' or 'actx[trt]'."
        raise TargetUnavailable("CUDA cannot be called", note=note, remedy=remedy) from error
    return runtime


def _done(result: tuple[Any, ...]) -> Any:
    """Return the value of a call, None where it has none.

    Raises:
        ActxError: its return code is an error.
    """
    code, *values = result
    if code:
        text = bytes(_cuda().cudaGetErrorString(code)[1]).decode(errors="replace")
        raise ActxError(
            "CUDA reports an error", note=f"{code.name}: {text}", remedy="Look at nvidia-smi and the driver."
        )
    return values[0] if values else None
