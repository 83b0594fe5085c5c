"""The data that a model is calibrated, checked and profiled on.

A source is one of

1. an ``.npz`` file: one array per input, the first axis runs over samples;
2. a folder of ``.npz`` files, read in the order of their names, one or several samples each; sequence lengths may
   differ from file to file;
3. a ``.json`` file of inputs that Polygraphy wrote, one dict of arrays per run;
4. ``pkg.mod:callable``, called once per pass, which yields dicts of arrays and yields the same ones on every pass.

Nothing is unpickled. Arrays of other names than the model's inputs are kept apart as extras (labels, ids).
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import math
import re
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actx.exporter import polygraphy
from actx.exporter.errors import ActxError, UsageError

Arrays: TypeAlias = dict[str, NDArray[Any]]

NPZ_BATCH = 32
# One sample in so many is held out.
HELD_OUT = 4
# From so many batches on, whole ones are held out: their shapes, which latency depends on, stay what they are.
MANY_BATCHES = 16
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
GRAMMAR = "NAME:DTYPE[DIM,...] where a DIM is a positive number or a name, such as ids:int64[batch,seq]"
SOURCES = "Give an .npz file, a folder of .npz files, inputs of Polygraphy as .json, or pkg.mod:callable"
_MEND = "Mend the function; ACTX_DEBUG=1 shows where it fails."
_SPEC = re.compile(r"(?P<name>.+):(?P<dtype>\w+)\[(?P<dims>[^\[\]]*)\]")
_DIM = re.compile(r"0*[1-9][0-9]{0,17}|[A-Za-z_]\w*")
_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_MAGIC = b"\x93NUMPY"
# The most that deflate, the method of numpy.savez_compressed, can make of one byte.
_MAX_RATIO = 1032
_MAX_HEADER = 10_000  # bytes; NumPy reads no more by itself
# What NumPy and zipfile raise on damaged files: a header of an array is a piece of Python, which is parsed and not run.
_BROKEN_FILE = (ValueError, OSError, EOFError, LookupError, RuntimeError, TypeError, ArithmeticError, SyntaxError,
                tokenize.TokenError, zipfile.BadZipFile, zlib.error, struct.error)  # fmt: skip


@dataclass(frozen=True)
class InputSpec:
    """Name, element type and shape of one model input.

    Attributes:
        name: the input's name.
        dtype: numpy's name of the element type.
        dims: a number where the dimension is static, a name where it is dynamic. The first runs over samples.

    Raises:
        UsageError: the element type is unknown or a static dimension is not positive.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]

    def __post_init__(self) -> None:
        """Check the element type and the static dimensions."""
        if self.dtype not in DTYPES:
            what = f"input '{self.name}' has the element type '{self.dtype}', which cannot be fed"
            raise UsageError(
                what,
                note=f"element types: {', '.join(DTYPES)}",
                remedy="Choose one of these: in --input, or in the model itself.",
            )
        if any(isinstance(dim, int) and dim < 1 for dim in self.dims):
            msg = f"input '{self.name}' has an empty dimension"
            raise UsageError(
                msg, note=f"got {self}", remedy="Give every dimension a positive size, or a name where it is dynamic."
            )

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}[{','.join(str(dim) for dim in self.dims)}]"

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """Read a specification such as ``ids:int64[batch,seq]``; ``x:float32[]`` is a scalar.

        Raises:
            UsageError: the text does not follow the grammar.
        """
        match = _SPEC.fullmatch(text.strip())
        parts = [part.strip() for part in match["dims"].split(",")] if match and match["dims"].strip() else []
        if match is None or not all(_DIM.fullmatch(part) for part in parts):
            msg = f"'{text}' is no input specification"
            raise UsageError(msg, note=f"expected {GRAMMAR}", remedy="Write it in this form, quoted for the shell.")
        dims = tuple(int(part) if part[0].isdigit() else part for part in parts)
        return cls(match["name"].strip(), match["dtype"], dims)


@dataclass(frozen=True)
class Batch:
    """Consecutive samples of one shape.

    Attributes:
        feeds: one array per model input.
        extras: the other arrays of the source; those with one row per sample are split along with the inputs.
        samples: number of samples.
    """

    feeds: Arrays
    extras: Arrays
    samples: int


@dataclass(frozen=True)
class Data:
    """Batches that can be iterated over any number of times.

    Attributes:
        source: where the data came from, as the user wrote it.
        samples: number of samples in one pass.
        synthetic: whether the numbers are random rather than the user's.
        notes: what was done to the data that the user should know: casts, samples left out.
        whole: whether the model takes batches of this size alone, which cannot be cut.
    """

    source: str
    samples: int
    synthetic: bool
    notes: tuple[str, ...]
    _open: Callable[[], Iterator[Batch]] = field(repr=False)
    whole: bool = False

    def __iter__(self) -> Iterator[Arrays]:
        for batch in self.batches():
            yield batch.feeds

    def batches(self) -> Iterator[Batch]:
        """Yield the batches with their extras.

        Raises:
            ActxError: the source changed since it was loaded.
        """
        samples = 0
        for batch in self._open():
            samples += batch.samples
            yield batch
        if samples != self.samples:
            what = f"'{self.source}' gave {samples} samples in this pass and {self.samples} in the first"
            raise ActxError(what, remedy="Make it yield the same samples on every pass; fix the seed if it draws them.")


def load_data(source: str, inputs: Sequence[InputSpec], batch_size: int | None = None) -> Data:
    """Open a source and check all of it against the model's inputs.

    A single ``.npz`` comes in batches of 32; files of a folder and what a callable yields come as they are. A
    `batch_size` splits each of them along the first axis; samples of different files are never joined, because their
    shapes may differ. A model whose first dimension is static fixes the batch size, and samples that do not fill a
    batch are then left out: `Data.notes` says how many.

    Casts that keep the values are made and noted: between floats where nothing overflows, from integers and booleans
    where every value is exact in the other type. Floats are never cast to integers.

    Args:
        source: an ``.npz`` file, a folder of such files, inputs of Polygraphy, or ``pkg.mod:callable``.
        inputs: the model's inputs. Dynamic dimensions of one name must have one size within a batch.
        batch_size: samples per batch; None takes the default above.

    Raises:
        UsageError: `batch_size` is not positive or is not the one that the model fixes.
        ActxError: the source cannot be read, or an input is missing, of another type or shape, empty or not finite.
    """
    specs = tuple(inputs)
    fixed = _static_batch(specs)
    parts, default = _parts(source, specs)
    size = _batch_size(batch_size, fixed, default)
    samples, given, notes = 0, 0, dict[str, None]()
    for batch, remarks in parts():
        given += batch.samples
        samples += sum(piece.samples for piece in _split(batch, size, exact=fixed is not None))
        notes.update(dict.fromkeys(remarks))
    if not samples:
        what = f"'{source}' has {given} samples, too few for one batch" if given else f"'{source}' has no samples"
        note = f"the model takes {fixed} at a time" if given else ""
        raise ActxError(what, note=note, remedy=f"{SOURCES}.")
    if samples != given:
        notes[f"the model takes exactly {fixed} samples at a time: {given - samples} of {given} were left out"] = None

    def batches() -> Iterator[Batch]:
        for batch, _ in parts():
            yield from _split(batch, size, exact=fixed is not None)

    return Data(source, samples, synthetic=False, notes=tuple(notes), _open=batches, whole=fixed is not None)


def synthetic_data(inputs: Sequence[InputSpec], sizes: Mapping[str, int], seed: int = 0) -> Data:
    """Make one batch of random numbers, marked as synthetic.

    Floats are standard normal. Integers and booleans are, by the input's name: ``mask`` ones, with a tail of zeros on
    the last axis that leaves at least one element; ``type`` or ``segment`` zeros; ``position`` ascending; anything else
    uniform below 100 (booleans below 2).

    Args:
        inputs: the model's inputs.
        sizes: the size of every dynamic dimension.
        seed: seed of the generator; the numbers depend on nothing else.

    Raises:
        UsageError: the size of a dimension is missing or not positive.
    """
    rng = np.random.default_rng(seed)
    feeds = {spec.name: _draw(spec, _shape(spec, sizes), rng) for spec in inputs}
    samples = max((len(array) for array in feeds.values() if array.ndim), default=1)
    whole = any(spec.dims and isinstance(spec.dims[0], int) for spec in inputs)

    def batches() -> Iterator[Batch]:
        yield Batch(dict(feeds), {}, samples)

    return Data("synthetic", samples, synthetic=True, notes=(), _open=batches, whole=whole)


def hold_out(data: Data) -> tuple[Data, Data]:
    """Split data into a part to calibrate on and a part held out, one sample in four, spread evenly; always in the same way.

    Whole batches are held out where the model fixes their size or there are many; otherwise rows of every batch, with their
    extras. One pass is made over the data.

    Returns:
        Both parts, each with a note that says so.

    Raises:
        ActxError: there is only one sample, or only one batch and the model fixes its size.
    """
    sizes = [batch.samples for batch in data.batches()]
    by_batches = data.whole or len(sizes) >= MANY_BATCHES
    units = len(sizes) if by_batches else data.samples
    if units < 2:
        what = f"'{data.source}' has one {'batch' if data.whole else 'sample'}, and none to hold out"
        raise ActxError(what, remedy="Give more samples.")
    weights = sizes if by_batches else [1] * data.samples
    held = sum(weight for i, weight in enumerate(weights) if _is_held_out(i, units))
    note = f"{held} of {data.samples} samples were held out: forms are fitted on the others, and drift is measured on these"

    def part(*, held_out: bool) -> Data:
        pick = _pick_batches if by_batches else _pick_rows
        samples = held if held_out else data.samples - held
        return replace(
            data, samples=samples, notes=(*data.notes, note), _open=lambda: pick(data, units, held_out=held_out)
        )

    return part(held_out=False), part(held_out=True)


def head(data: Data, samples: int) -> Data:
    """Return the first so many samples, or all where there are fewer.

    Where the model fixes the batch size these are whole batches: as many as fit, and at least one.

    Raises:
        UsageError: `samples` is not positive.
    """
    if samples < 1:
        msg = "the number of samples must be at least 1"
        raise UsageError(msg, note=f"got {samples}", remedy="Give a positive number.")
    if data.whole:
        size = next(data.batches()).samples
        samples = max(samples // size, 1) * size
    if samples >= data.samples:
        return data

    def batches() -> Iterator[Batch]:
        left = samples
        for batch in data.batches():
            yield batch if batch.samples <= left else _rows(batch, slice(left))
            left -= batch.samples
            if left <= 0:
                return

    note = f"the first {samples} of {data.samples} samples"
    return replace(data, samples=samples, notes=(*data.notes, note), _open=batches)


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of names, types, shapes and elements, as hexadecimal digits; the order of names does not count."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        found.update(repr((name, array.dtype.str, array.shape)).encode())
        found.update(array.tobytes())
    return found.hexdigest()


def import_callable(text: str, purpose: str) -> Callable[..., Any]:
    """Import ``pkg.mod:callable`` with the current directory on the path.

    Args:
        text: the name.
        purpose: what it is for, such as "data source"; stands in the errors.

    Raises:
        UsageError: the text is malformed.
        ActxError: the import fails or there is no such callable.
    """
    if not _CALLABLE.fullmatch(text):
        msg = f"'{text}' is no {purpose}"
        raise UsageError(
            msg, note="expected pkg.mod:callable", remedy="Name the module and what is in it, with a colon between."
        )
    module_name, _, attribute = text.partition(":")
    found: Any = _import(module_name, f"{purpose} '{text}'")
    for name in attribute.split("."):
        found = getattr(found, name, None)
    if not callable(found):
        what = f"{purpose} '{text}' is no callable" if found is not None else f"{purpose} '{text}' is not in its module"
        raise ActxError(
            what,
            note=f"'{module_name}' was read from {_origin(module_name)}",
            remedy="Check the name and which file it was read from.",
        )
    return found  # type: ignore[no-any-return]


def import_activations(module_name: str) -> None:
    """Import a module that registers activations (see `actx.custom_ops.activation`), with the current directory on the path.

    Raises:
        UsageError: the text is no name of a module.
        ActxError: the import fails.
    """
    if not _MODULE.fullmatch(module_name):
        msg = f"'{module_name}' is no module of activations"
        raise UsageError(msg, note="expected pkg.mod", remedy="Name the module that registers them.")
    from actx.custom_ops import REGISTERED  # noqa: PLC0415 - imports scipy, which processes that only read data do without

    _import(module_name, f"module '{module_name}' of activations")
    if not REGISTERED:
        raise UsageError(
            f"module '{module_name}' registers no activation",
            note="--activations is for names that actx.custom_ops.activation gives",
            remedy="Decorate a formula with it, or leave the option out.",
        )


def _import(module_name: str, what: str) -> Any:
    try:
        with current_directory_importable():
            return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script without a main guard may end itself
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        remedy = (
            "Run from the folder that holds the module, or install it." if missing else "The module itself is at fault."
        )
        raise ActxError(f"{what} cannot be imported", note=_reason(error), remedy=remedy) from error


@contextlib.contextmanager
def current_directory_importable() -> Iterator[None]:
    """Put the current directory first on the import path for the duration of the block."""
    entry = str(Path.cwd())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the block may have removed it itself
            sys.path.remove(entry)


def cast_feeds(feeds: Mapping[str, NDArray[Any]], inputs: Sequence[InputSpec]) -> Arrays:
    """Cast the feeds to another model's input types by the rules of `load_data`, such as a float16 artifact's.

    Raises:
        ActxError: an input is missing, or its values cannot be cast.
    """
    return {spec.name: _cast(_pick(feeds, spec, "the data"), spec, "the data")[0] for spec in inputs}


_Parts: TypeAlias = Callable[[], Iterator[tuple[Batch, list[str]]]]


def _parts(source: str, specs: tuple[InputSpec, ...]) -> tuple[_Parts, int | None]:
    """Return what reads the source part by part, and its default batch size."""
    path = Path(source)
    if path.is_file() and path.suffix == polygraphy.SUFFIX:
        runs = polygraphy.read_inputs(path)
        return lambda: (_conform(dict(run), specs, f"run {i} of {source}") for i, run in enumerate(runs)), None
    if path.is_file():
        whole = _conform(_read_npz(path), specs, source)
        return lambda: iter([whole]), NPZ_BATCH
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix == ".npz" and file.is_file())
        if not files:
            msg = f"folder '{source}' has no .npz files"
            raise ActxError(msg, remedy=f"{SOURCES}.")
        return lambda: (_conform(_read_npz(file), specs, str(file)) for file in files), None
    if not _CALLABLE.fullmatch(source):
        msg = f"data '{source}' does not exist"
        raise ActxError(msg, remedy=f"{SOURCES}.")
    function = import_callable(source, "data source")
    return partial(_call, function, specs, source), None


def _call(function: Callable[..., Any], specs: tuple[InputSpec, ...], source: str) -> Iterator[tuple[Batch, list[str]]]:
    for index, item in enumerate(_items(function, source)):
        label = f"item {index} of {source}"
        if not isinstance(item, Mapping):
            msg = f"{label} is no dict of arrays"
            raise ActxError(msg, note=f"got {type(item).__name__}", remedy="Make it yield dicts, one array per input.")
        yield _conform({str(name): _as_array(value, name, label) for name, value in item.items()}, specs, label)


def _items(function: Callable[..., Any], source: str) -> Iterator[Any]:
    """Step through what the user's function yields; any exception of theirs is reported as theirs."""
    try:
        with current_directory_importable():
            result = function()
            iterator = None if isinstance(result, Mapping) or not isinstance(result, Iterable) else iter(result)
    except Exception as error:
        msg = f"data source '{source}' failed"
        raise ActxError(msg, note=_reason(error), remedy=_MEND) from error
    if iterator is None:
        got = type(result).__name__
        msg = f"data source '{source}' does not yield"
        raise ActxError(
            msg,
            note=f"expected an iterable of dicts, got {got}",
            remedy="Make it a generator of dicts, one array per input.",
        )
    while True:
        try:
            with current_directory_importable():
                item = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            msg = f"data source '{source}' failed"
            raise ActxError(msg, note=_reason(error), remedy=_MEND) from error
        yield item


def _as_array(value: Any, name: object, label: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception as error:
        msg = f"'{name}' in {label} is no array"
        raise ActxError(msg, note=_reason(error), remedy=_MEND) from error


def _read_npz(path: Path) -> Arrays:
    try:
        opened = path.open("rb")
    except OSError as error:
        msg = f"cannot read '{path}'"
        raise ActxError(msg, note=str(error.strerror), remedy="Check its permissions.") from error
    try:
        with opened as file:  # numpy leaves a file that it opened itself open when the archive is broken
            if file.read(len(_MAGIC)) != _MAGIC:
                file.seek(0)
                _check_overlap(file, path.stat().st_size)
                archive = np.lib.npyio.NpzFile(file)
                return {name: _read_member(archive, name, path) for name in archive.files}
    except _BROKEN_FILE as error:
        msg = f"'{path}' is not a complete .npz file"
        raise ActxError(msg, note=_reason(error), remedy=_save_hint()) from error
    msg = f"'{path}' is not an .npz file"
    raise ActxError(msg, note="it holds one unnamed array", remedy=_save_hint())


def _read_member(archive: Any, name: str, path: Path) -> NDArray[Any]:
    try:
        _check_claims(archive.zip, name)
        array = archive[name]
    except _BROKEN_FILE as error:
        pickled = "allow_pickle" in str(error)
        what = f"'{name}' in '{path}' {'holds Python objects, which are not read' if pickled else 'cannot be read'}"
        remedy = "Save it with a numeric type and one shape for all samples." if pickled else "Write the file again."
        raise ActxError(what, note=_reason(error), remedy=remedy) from error
    except MemoryError as error:
        what = f"'{name}' in '{path}' does not fit into memory"
        raise ActxError(what, note=_reason(error), remedy="Split the samples over a folder of .npz files.") from error
    if not isinstance(array, np.ndarray):
        msg = f"'{path}' is not an .npz file"
        raise ActxError(msg, note=f"'{name}' in it is no array", remedy=_save_hint())
    return array


def _check_overlap(file: IO[bytes], size: int) -> None:
    """Refuse members that share their bytes: thousands could unpack the same ones."""
    with zipfile.ZipFile(file) as archive:
        there = sum(info.compress_size for info in archive.infolist())
    if there > size:
        raise ValueError(f"its members claim {there} bytes, and the file has {size}")


def _check_claims(archive: zipfile.ZipFile, name: str) -> None:
    """Compare what a member claims with what is there: numpy makes room for all of it before it reads."""
    info = archive.getinfo(name if name in archive.namelist() else f"{name}.npy")
    if info.file_size > info.compress_size * _MAX_RATIO:
        raise ValueError(f"it claims {info.file_size} bytes, and {info.compress_size} are there")
    with archive.open(info) as member:
        if member.read(len(_MAGIC)) != _MAGIC:
            return  # no array, as the caller says
        member.seek(0)
        length = struct.Struct("<H" if np.lib.format.read_magic(member) == (1, 0) else "<I")
        header = member.read(min(*length.unpack(member.read(length.size)), _MAX_HEADER))
    # Where this is no Python, NumPy tries Python 2's, with a tokenizer that may take hours for a kilobyte.
    fields = ast.literal_eval(header.decode("latin1"))
    dtype = np.lib.format.descr_to_dtype(fields["descr"])
    claimed = math.prod(fields["shape"]) * dtype.itemsize
    if claimed > info.file_size and not dtype.hasobject:
        raise ValueError(f"it claims {claimed} bytes, and {info.file_size} are there")


def _conform(arrays: Arrays, specs: tuple[InputSpec, ...], label: str) -> tuple[Batch, list[str]]:
    """Check one part of the source; return it as one batch, and remarks on the casts that were made."""
    sizes: dict[str, int] = {}
    feeds: Arrays = {}
    remarks = []
    for spec in specs:
        array = _pick(arrays, spec, label)
        _check_shape(array, spec, sizes, label)
        _check_finite(array, spec.name, label)
        feeds[spec.name], remark = _cast(array, spec, label)
        remarks += [remark] if remark else []
    counts = {name: len(array) for name, array in feeds.items() if array.ndim}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        msg = f"the inputs in {label} have different numbers of samples"
        raise ActxError(
            msg,
            note=f"first axes: {listed}",
            remedy="The first axis runs over samples: give every input one row per sample.",
        )
    samples = next(iter(counts.values()), 1)
    if not samples:
        msg = f"{label} has no samples"
        raise ActxError(msg, note="the first axis is empty", remedy="Give at least one sample.")
    return Batch(feeds, {name: array for name, array in arrays.items() if name not in feeds}, samples), remarks


def _pick(arrays: Mapping[str, NDArray[Any]], spec: InputSpec, label: str) -> NDArray[Any]:
    if spec.name not in arrays:
        note = f"it has {', '.join(sorted(arrays)) or 'no arrays'}"
        remedy = f"Name the array '{spec.name}'; the model needs {spec}."
        msg = f"input '{spec.name}' is missing in {label}"
        raise ActxError(msg, note=note, remedy=remedy)
    return arrays[spec.name]


def _check_shape(array: NDArray[Any], spec: InputSpec, sizes: dict[str, int], label: str) -> None:
    """Compare with the specification, collecting the sizes of dynamic dimensions in `sizes`."""
    what = f"input '{spec.name}' in {label} has the wrong shape"
    if array.ndim != len(spec.dims):
        note = f"got {list(array.shape)}, of rank {array.ndim}; the model needs {spec}"
        raise ActxError(what, note=note, remedy="The first axis runs over samples: add it if it is missing.")
    for axis, (size, dim) in enumerate(zip(array.shape, spec.dims, strict=True)):
        if axis == 0 and isinstance(dim, int):
            continue  # a static first dimension fixes the batch size, and batches are cut to it
        expected = dim if isinstance(dim, int) else sizes.setdefault(dim, size)
        if size != expected or (axis and not size):
            note = f"got {list(array.shape)}, the model needs {spec}"
            raise ActxError(
                what,
                note=f"{note}, with {dim} = {expected}" if isinstance(dim, str) else note,
                remedy="Give samples of that shape; the first axis runs over samples.",
            )


def _check_finite(array: NDArray[Any], name: str, label: str) -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    place = np.argwhere(~np.isfinite(array))[0]
    sample = f"sample {place[0]}" if len(place) else "a scalar"
    note = f"{array[tuple(place)]} at index {place.tolist()}"
    msg = f"input '{name}' in {label} is not finite in {sample}"
    raise ActxError(msg, note=note, remedy="Leave that sample out, or mend it.")


def _cast(array: NDArray[Any], spec: InputSpec, label: str) -> tuple[NDArray[Any], str]:
    """Return the array in the specified type and a remark, empty where the type was right."""
    wanted, kinds = np.dtype(spec.dtype), array.dtype.kind + np.dtype(spec.dtype).kind
    if array.dtype == wanted:
        return np.ascontiguousarray(array) if array.ndim else array, ""
    what = f"input '{spec.name}' in {label} has the element type {array.dtype}, the model needs {spec.dtype}"
    if kinds[0] not in "fiub":
        raise ActxError(what, remedy="Save it as numbers.")
    if kinds[0] == "f" and kinds[1] != "f":
        remedy = f"Use .astype('{spec.dtype}') if it is meant."
        raise ActxError(what, note="floats are never cast to integers", remedy=remedy)
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    if not (np.isfinite(cast).all() if kinds == "ff" else _exact(array, wanted)):
        raise ActxError(
            what,
            note="the cast would change values: they are out of its range",
            remedy="Save it in the model's type, with values in its range.",
        )
    return cast, f"input '{spec.name}' was cast from {array.dtype} to {spec.dtype}"


def _exact(array: NDArray[Any], wanted: np.dtype[Any]) -> bool:
    """Whether integers or booleans keep their values in the wanted type."""
    if not array.size:
        return True
    low, high = int(array.min()), int(array.max())
    if wanted.kind == "b":
        return 0 <= low <= high <= 1
    if wanted.kind == "f":  # every integer up to 2 to the number of significand bits is a float
        limit: int = 2 ** (int(np.finfo(wanted).nmant) + 1)
        return -limit <= low <= high <= limit
    bounds = np.iinfo(wanted)
    return int(bounds.min) <= low <= high <= int(bounds.max)


def _static_batch(specs: tuple[InputSpec, ...]) -> int | None:
    sizes = {spec.dims[0] for spec in specs if spec.dims and isinstance(spec.dims[0], int)}
    if len(sizes) > 1:
        note = ", ".join(str(spec) for spec in specs)
        msg = "the model's inputs have different static first dimensions"
        raise ActxError(msg, note=note, remedy="Export the model with one batch dimension for all inputs.")
    return next((int(size) for size in sizes), None)


def _batch_size(asked: int | None, fixed: int | None, default: int | None) -> int | None:
    if asked is not None and asked < 1:
        msg = "the batch size must be at least 1"
        raise UsageError(msg, note=f"got {asked}", remedy="Give a positive number, or leave --batch-size out.")
    if asked is not None and fixed is not None and asked != fixed:
        msg = "the model fixes the batch size"
        raise UsageError(
            msg, note=f"its first dimension is {fixed}, asked for {asked}", remedy="Leave --batch-size out."
        )
    return fixed or asked or default


def _split(batch: Batch, size: int | None, *, exact: bool) -> Iterator[Batch]:
    """Cut a batch along the first axis; with `exact`, a last piece that is smaller is left out."""
    step = size or batch.samples
    for start in range(0, batch.samples, step):
        count = min(step, batch.samples - start)
        if exact and count < step:
            return
        yield _rows(batch, slice(start, start + count))


def _rows(batch: Batch, rows: slice | NDArray[np.intp]) -> Batch:
    """Return some samples of a batch, with the extras that have one row per sample."""
    feeds = {name: array[rows] if array.ndim else array for name, array in batch.feeds.items()}
    extras = {
        name: array[rows] if array.ndim and len(array) == batch.samples else array
        for name, array in batch.extras.items()
    }
    return Batch(feeds, extras, len(np.arange(batch.samples)[rows]))


def _is_held_out(index: int, units: int) -> bool:
    """Tell of one of so many samples, or batches; of few, in any order, one is held out."""
    period = min(HELD_OUT, units)
    return index % period == period // 2


def _pick_batches(data: Data, units: int, *, held_out: bool) -> Iterator[Batch]:
    for index, batch in enumerate(data.batches()):
        if _is_held_out(index, units) == held_out:
            yield batch


def _pick_rows(data: Data, units: int, *, held_out: bool) -> Iterator[Batch]:
    first = 0
    for batch in data.batches():
        rows = [i for i in range(batch.samples) if _is_held_out(first + i, units) == held_out]
        first += batch.samples
        if rows:
            yield _rows(batch, np.array(rows, dtype=np.intp))


def _shape(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    missing = [dim for dim in spec.dims if isinstance(dim, str) and sizes.get(dim, 0) < 1]
    if missing:
        note = f"{spec}; sizes given: {', '.join(f'{k}={v}' for k, v in sizes.items()) or 'none'}"
        msg = f"synthetic data needs the size of the dynamic dimension '{missing[0]}'"
        raise UsageError(msg, note=note, remedy="Give samples with --data.")
    return tuple(dim if isinstance(dim, int) else int(sizes[dim]) for dim in spec.dims)


def _draw(spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    name, dtype = spec.name.lower(), np.dtype(spec.dtype)
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    ramp = np.broadcast_to(np.arange(shape[-1]), shape) if shape else np.zeros(())
    if "mask" in name:
        lengths = rng.integers(1, shape[-1], (*shape[:-1], 1), endpoint=True) if shape else 1
        return (ramp < lengths).astype(dtype)
    if "type" in name or "segment" in name:
        return np.zeros(shape, dtype)
    if "position" in name and dtype.kind != "b":
        return ramp.astype(dtype)
    return np.asarray(rng.integers(0, 2 if dtype.kind == "b" else 100, shape)).astype(dtype)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _origin(module_name: str) -> str:
    return str(getattr(sys.modules.get(module_name), "__file__", None) or "memory")


def _save_hint() -> str:
    return "Write it with numpy.savez(path, INPUT_NAME=array, ...)."
