"""The binding of `libactx_ops.so` (include/actx_ops.h) to numpy, by ctypes."""

from __future__ import annotations

import ctypes
import importlib.resources
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from actx.custom_ops.cpu.elf import why_not_here

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

LIBRARY_NAME = "libactx_ops.so"
VARIABLE = "ACTX_LIBRARY"
ISA_VARIABLE = "ACTX_ISA"
ABI_VERSION = 1
# Numbers of ONNX's TensorProto.DataType.
_TYPES: dict[np.dtype[Any], int] = {
    np.dtype(dtype): number
    for dtype, number in (
        (np.float32, 1),
        (np.uint8, 2),
        (np.int8, 3),
        (np.int32, 6),
        (np.float16, 10),
        (ml_dtypes.bfloat16, 16),
    )
}
_DTYPES = {number: dtype for dtype, number in _TYPES.items()}
_MAX_RANK = 64  # as many dimensions as numpy has
_ERROR_SIZE = 1024


class KernelsUnavailable(Exception):  # noqa: N818 - the name states the condition, as FileNotFound does
    """The library is not there, or cannot be used on this machine; the text says why."""


class Kernel(NamedTuple):
    """A row of the kernel table.

    Attributes:
        name: which kernel; the argument `kernel` takes it where it is one of the op's own.
        op_type: the op that it runs.
    """

    name: str
    op_type: str


class _Attribute(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("floats", ctypes.c_void_p),
        ("ints", ctypes.c_void_p),
        ("text", ctypes.c_char_p),
        ("count", ctypes.c_size_t),
    )


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_size_t),
        ("shape", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
    )


def find() -> Path | None:
    """Return the file that the environment variable ACTX_LIBRARY names, else the installed one, else None."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    installed = importlib.resources.files("actx.custom_ops.cpu").joinpath(LIBRARY_NAME)
    return Path(str(installed)) if installed.is_file() else None


def load(path: Path | str | None = None) -> Library:
    """Load the library.

    Args:
        path: the file, or None for the one that `find` returns.

    Raises:
        KernelsUnavailable: there is none, or it cannot be used on this machine.
    """
    chosen = find() if path is None else Path(path)
    if chosen is None:
        msg = "actx was installed without its CPU kernels, as it is where no C++ compiler is found"
        raise KernelsUnavailable(msg)
    return Library(chosen)


class Library:
    """A loaded library of CPU kernels. Several threads may use it at once.

    Args:
        path: the file.

    Attributes:
        path: the file, absolute.
        isas: the instruction sets that it has and this CPU runs, best first.

    Raises:
        KernelsUnavailable: it cannot be used on this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._c = _open(self.path)
        self.isas: tuple[str, ...] = tuple(self._c.actx_isas().decode().split())

    def kernels(self, isa: str) -> tuple[Kernel, ...]:
        """Return the rows of the kernel table of an instruction set.

        Raises:
            ValueError: it cannot be had here.
        """
        text = self._c.actx_kernels(isa.encode())
        if text is None:
            msg = f"the instruction set {isa!r} is not available here; available: {', '.join(self.isas)}"
            raise ValueError(msg)
        return tuple(Kernel(*line.split()) for line in text.decode().splitlines())

    def create(
        self, op_type: str, attributes: Mapping[str, Any], *, isa: str | None = None, kernel: str | None = None
    ) -> Operator:
        """Check the attributes of an operator and prepare its tables.

        Args:
            op_type: its name in the domain `actx`.
            attributes: integers, floats, text, and sequences of one kind of number; what is None is absent.
            isa: the instruction set, or None for the best (or the one that the environment variable ACTX_ISA names).
            kernel: the row of the kernel table, or None for the first that fits.

        Raises:
            ValueError: there is no such operator, instruction set or kernel, or an attribute is not as the op defines it.
        """
        return Operator(self, op_type, attributes, isa, kernel)

    def run(
        self,
        op_type: str,
        attributes: Mapping[str, Any],
        inputs: Sequence[NDArray[Any] | None],
        *,
        isa: str | None = None,
        kernel: str | None = None,
    ) -> NDArray[Any]:
        """Create an operator and run it once: see `create` and `Operator.run`."""
        return self.create(op_type, attributes, isa=isa, kernel=kernel).run(inputs)


class Operator:
    """An operator with fixed attributes, made by `Library.create`. Several threads may run it at once."""

    def __init__(
        self, library: Library, op_type: str, attributes: Mapping[str, Any], isa: str | None, kernel: str | None
    ) -> None:
        self._c = library._c  # noqa: SLF001 - one module, one library
        self._handle = ctypes.c_void_p()
        given, keep = _attributes(attributes)
        names = (None if name is None else name.encode() for name in (isa, kernel))
        self._call("actx_op_create", op_type.encode(), given, len(given), *names, ctypes.byref(self._handle))
        del keep
        weakref.finalize(self, self._c.actx_op_destroy, self._handle)

    @property
    def kernel(self) -> str:
        """Name of the row of the kernel table that runs it."""
        name: bytes = self._c.actx_op_kernel(self._handle)
        return name.decode()

    def infer(self, inputs: Sequence[NDArray[Any] | None]) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Return dtype and shape of the output for these inputs.

        Raises:
            ValueError: their dtypes or shapes do not fit.
        """
        given, keep = _tensors(inputs)
        inferred = self._infer(given)
        del keep
        return inferred

    def run(self, inputs: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
        """Run on the calling thread.

        Args:
            inputs: arrays of float32, float16, ml_dtypes.bfloat16, int8, uint8 or int32; None for an optional input that is
                absent. What is not contiguous is copied.

        Raises:
            ValueError: their dtypes or shapes do not fit.
        """
        given, keep = _tensors(inputs)
        dtype, shape = self._infer(given)
        output = np.empty(shape, dtype)
        result, keep_output = _tensors([output])
        self._call("actx_op_run", self._handle, given, len(given), result)
        del keep, keep_output
        return output

    def _infer(self, given: ctypes.Array[_Tensor]) -> tuple[np.dtype[Any], tuple[int, ...]]:
        number, rank, shape = ctypes.c_int32(), ctypes.c_size_t(), (ctypes.c_int64 * _MAX_RANK)()
        into = (ctypes.byref(number), ctypes.byref(rank), shape, _MAX_RANK)
        self._call("actx_op_infer", self._handle, given, len(given), *into)
        return _DTYPES[number.value], tuple(shape[: rank.value])

    def _call(self, function: str, *arguments: object) -> None:
        error = ctypes.create_string_buffer(_ERROR_SIZE)
        if getattr(self._c, function)(*arguments, error, _ERROR_SIZE) != 0:
            raise ValueError(error.value.decode(errors="replace"))


def _open(path: Path) -> ctypes.CDLL:
    try:
        reason = why_not_here(path)
        c = None if reason else ctypes.CDLL(str(path))
    except OSError as error:
        reason, c = error.strerror or str(error), None
    if c is None:
        msg = f"{path} cannot be loaded: {reason}"
        raise KernelsUnavailable(msg)
    try:
        version = c.actx_abi_version()
    except AttributeError as error:
        msg = f"{path} is not a library of actx kernels: it lacks actx_abi_version"
        raise KernelsUnavailable(msg) from error
    if version != ABI_VERSION:
        msg = f"{path} is of another version of actx: its interface is number {version}, this actx has {ABI_VERSION}"
        raise KernelsUnavailable(msg)
    _declare(c)
    return c


def _declare(c: ctypes.CDLL) -> None:
    """Give the functions their types, as include/actx_ops.h has them."""
    size, text, pointer = ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p
    attributes, tensors = ctypes.POINTER(_Attribute), ctypes.POINTER(_Tensor)
    c.actx_isas.restype = c.actx_kernels.restype = c.actx_op_kernel.restype = text
    c.actx_op_destroy.restype = None
    c.actx_kernels.argtypes = (text,)
    c.actx_op_destroy.argtypes = c.actx_op_kernel.argtypes = (pointer,)
    c.actx_op_create.argtypes = (text, attributes, size, text, text, pointer, text, size)
    c.actx_op_infer.argtypes = (pointer, tensors, size, pointer, pointer, pointer, size, text, size)
    c.actx_op_run.argtypes = (pointer, tensors, size, tensors, text, size)


def _attributes(attributes: Mapping[str, Any]) -> tuple[ctypes.Array[_Attribute], list[NDArray[Any]]]:
    """Return the attributes, and the arrays that they point into."""
    present = {name: value for name, value in attributes.items() if value is not None}
    given = (_Attribute * len(present))()
    keep: list[NDArray[Any]] = []
    for into, (name, value) in zip(given, present.items(), strict=True):
        into.name = name.encode()
        if isinstance(value, str):
            into.text, into.count = value.encode(), len(value.encode())
            continue
        numbers = np.asarray(value)  # an empty sequence is one of floats
        kind: DTypeLike = np.int64 if numbers.dtype.kind in "iu" else np.float32
        with np.errstate(over="ignore"):  # the op refuses what is not finite
            numbers = np.array(numbers, dtype=kind, ndmin=1, order="C")
        keep.append(numbers)
        into.count = numbers.size
        setattr(into, "ints" if kind is np.int64 else "floats", numbers.ctypes.data)
    return given, keep


def _tensors(arrays: Sequence[NDArray[Any] | None]) -> tuple[ctypes.Array[_Tensor], list[object]]:
    """Return the tensors, and the arrays that they point into."""
    given = (_Tensor * len(arrays))()
    keep: list[object] = []
    for into, array in zip(given, arrays, strict=True):
        if array is None:
            continue
        dense = np.asarray(array, order="C")
        if dense.dtype not in _TYPES:
            msg = f"no op takes {dense.dtype}; allowed: {', '.join(str(dtype) for dtype in _TYPES)}"
            raise ValueError(msg)
        shape = (ctypes.c_int64 * dense.ndim)(*dense.shape)
        keep += [dense, shape]
        into.type, into.rank = _TYPES[dense.dtype], dense.ndim
        into.shape, into.data = ctypes.addressof(shape), dense.ctypes.data
    return given, keep
