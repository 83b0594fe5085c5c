"""ONNX Runtime, and nothing else of it than the measuring steps need."""

from __future__ import annotations

import importlib.metadata
import re
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from actx.exporter import machine
from actx.exporter.data import DTYPES, Arrays, InputSpec
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.footprint import peak_memory
from actx.exporter.runtimes.base import ENGINE_DEFAULT, EngineOptions
from actx.exporter.runtimes.settings import NO_QDQ, LibraryRefusedError, open_session, register

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from actx.exporter.runtimes.base import Breakdown, Session

OPTIMIZATIONS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_ELEMENT_TYPES = {"float": "float32", "double": "float64", "bool": "bool"} | {name: name for name in DTYPES}
_OP_LACKING = re.compile(
    r"No Op registered for (?P<op>\w+)|error: (?P<function>[\w.]+:\w+)\(-?\d+\) is not a registered|"
    r"implementation for (?P<kernel>[\w.:]+)\(\d+\)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class RuntimeOptions:
    """ONNX Runtime, and how it opens a session; recorded beside everything that is measured with it.

    Attributes:
        threads: threads of one operator, 0 for as many as the machine has cores.
        optimization: graph optimizations, "none", "basic", "extended" or "all".
        disabled_optimizers: names of single optimizers to leave out, such as "SkipLayerNormFusion".
        libraries: shared libraries with custom ops to register.
        spin_between_runs: whether idle threads keep spinning after a run. Off where several sessions take turns,
            because one's spinning threads take the cores from the next.
        pin_threads: whether each thread but the caller's is kept on a core of its own where there are as many, as
            ONNX Runtime does by itself where `threads` is 0. On a busy machine times then vary less.
        fuse_qdq: whether an op between Q/DQ becomes one of integers. Off, they are computed as they are written.
        engine: how engines are run, on targets that have them.
        provider: what runs the nodes; those that the CUDA provider does not have run on the CPU.

    Raises:
        UsageError: a negative number of threads or an unknown optimization.
    """

    threads: int = 0
    optimization: str = "all"
    disabled_optimizers: tuple[str, ...] = ()
    libraries: tuple[Path, ...] = ()
    spin_between_runs: bool = True
    pin_threads: bool = False
    fuse_qdq: bool = True
    engine: EngineOptions = ENGINE_DEFAULT
    provider: str = CPU

    def __post_init__(self) -> None:
        """Check the values."""
        if self.threads < 0:
            msg = "the number of threads must not be negative"
            raise UsageError(msg, note=f"got {self.threads}", remedy="0 takes one thread per core.")
        if self.optimization not in OPTIMIZATIONS:
            note = f"got '{self.optimization}', available: {', '.join(OPTIMIZATIONS)}"
            msg = "unknown graph optimization"
            raise UsageError(msg, note=note, remedy="Choose one of these.")

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        return {
            "threads": self.threads,
            "optimization": self.optimization,
            "disabled_optimizers": list(self.disabled_optimizers),
            "libraries": [library.name for library in self.libraries],
            "spin_between_runs": self.spin_between_runs,
            "pin_threads": self.pin_threads,
            "fuse_qdq": self.fuse_qdq,
        }

    @property
    def name(self) -> str:
        """Of the library and the device."""
        return f"ONNX Runtime {self.provider.removesuffix('ExecutionProvider')}"

    @property
    def on_gpu(self) -> bool:
        """Whether an NVIDIA GPU does the work."""
        return self.provider != CPU

    @property
    def taps(self) -> bool:
        """Values inside the graph can be outputs."""
        return True

    def open(self, model: Path, outputs: Sequence[str] = ()) -> Session:
        """Open a model.

        Values that are asked for are not fused away, so such a session can be slower and its last bits can differ.

        Args:
            model: the ``.onnx`` file; its external data is looked for beside it. Nothing is written there.
            outputs: names of further values of the graph to return, after the graph's own outputs.

        Raises:
            ActxError: the file is missing, no ONNX model, lacks its external data, or uses what this runtime does not have.
        """
        return _Session(inference_session(model, self, outputs))

    def node_times(
        self, model: Path, feeds: Arrays, owners: Mapping[str, str], *, runs: int = 20, warmup: int = 3
    ) -> Breakdown:
        """Time every node; see `onnxruntime_profiler`."""
        from actx.exporter.runtimes.onnxruntime_profiler import node_times  # noqa: PLC0415 - imports onnx

        def open_profiled(trace: Path) -> _Session:
            return _Session(inference_session(model, self, trace=trace))

        return node_times(open_profiled, model, feeds, owners, runs=runs, warmup=warmup)

    def peak_memory(self, model: Path, feeds: Arrays) -> int | None:
        """Return the bytes that a fresh process needs to open a model and run it once."""
        return peak_memory(self, model, feeds)

    def in_turns(self) -> RuntimeOptions:
        """Return the options with idle threads stopped between runs and busy ones pinned."""
        return replace(self, spin_between_runs=False, pin_threads=True)

    def pins_threads(self, cores: Sequence[int]) -> bool:
        """Tell whether each thread is kept on one of these cores: ONNX Runtime does that by itself where it takes all."""
        return bool(_cores_of_threads(self, cores)) or (self.threads == 0 and len(cores) > 1)

    def describe(self) -> dict[str, Any]:
        """Return what a measurement depends on besides the model: versions, CPU, cores, their governors, options."""
        cores = machine.usable_cores()
        return {
            "runtime": "onnxruntime",
            "provider": self.provider,
            "onnxruntime": ort.__version__,
            "onnx": importlib.metadata.version("onnx"),
            "numpy": np.__version__,
            **machine.describe(),
            "threads_used": self.threads or len(cores),
            "threads_pinned": self.pins_threads(cores),
            "options": self.to_dict(),
        }


DEFAULT = RuntimeOptions()


@dataclass(frozen=True)
class _Session:
    """An open ONNX Runtime session."""

    _session: Any  # onnxruntime.InferenceSession, which is not typed

    @cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What it takes; unnamed dynamic dimensions are called ``INPUT.AXIS``.

        Raises:
            ActxError: an input is no tensor, or of an element type that numpy does not have.
        """
        return tuple(input_spec(node) for node in self._session.get_inputs())

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives."""
        return tuple(output.name for output in self._session.get_outputs())

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Run once and return the outputs by name, in the order asked for; None for all.

        Raises:
            ActxError: the feeds do not fit, a node fails, or an output is no numeric tensor.
        """
        names = self.outputs if outputs is None else outputs
        try:
            values = self._session.run(list(names), dict(feeds))
        except Exception as error:
            expected = ", ".join(f"{node.name}:{node.type}{node.shape}" for node in self._session.get_inputs())
            raise run_error(str(error), feeds, expected) from error
        for name, value in zip(names, values, strict=True):
            if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
                raise no_tensor(name, str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__)
        return dict(zip(names, values, strict=True))

    def timer(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], int]:
        """Return what runs once on these feeds and gives the nanoseconds."""
        session, fed = self._session, dict(feeds)

        def run() -> int:
            begin = time.perf_counter_ns()
            session.run(None, fed)
            return time.perf_counter_ns() - begin

        return run

    def end_profiling(self) -> Path:
        """Return the file with the profile, where the session writes one."""
        return Path(self._session.end_profiling())


def inference_session(
    model: Path, options: RuntimeOptions, outputs: Sequence[str] = (), trace: Path | None = None
) -> Any:
    """Open ONNX Runtime's own session.

    Args:
        model: see `RuntimeOptions.open`.
        options: how it is run.
        outputs: see `RuntimeOptions.open`.
        trace: an empty folder for ONNX Runtime's profile and for the optimized graph (without weights), or None.

    Raises:
        ActxError: see `RuntimeOptions.open`.
    """
    path = Path(model)
    if not path.is_file():
        what = f"model '{model}' {'is no file' if path.exists() else 'does not exist'}"
        raise ActxError(what, remedy="Give an .onnx file.")
    _check_provider(options, ort.get_available_providers())
    settings = session_settings(options, machine.usable_cores())
    try:
        content: str | bytes = str(path)
        if outputs:
            settings["entries"]["session.model_external_initializers_file_folder_path"] = str(path.resolve().parent)
            content = path.read_bytes() + further_outputs(outputs)
        session = open_session(content, settings, [str(library) for library in options.libraries], trace)
    except LibraryRefusedError as error:
        raise refused(*error.args) from error
    except Exception as error:
        raise open_error(path, outputs, str(error)) from error
    _check_provider(options, session.get_providers())
    return session


def _check_provider(options: RuntimeOptions, found: Sequence[str]) -> None:
    """Raise where the provider is not there, or did not start: ONNX Runtime goes on without it, and only warns."""
    if options.provider not in found:
        what = f"ONNX Runtime {ort.__version__} cannot start {options.provider} here"
        remedy = "Install a build that has it, and the driver, CUDA and cuDNN that this build needs."
        raise ActxError(what, note=f"it has {', '.join(found)}", remedy=remedy)


def check_library(library: Path) -> None:
    """Check that ONNX Runtime takes a custom-op library.

    Raises:
        ActxError: it does not.
    """
    try:
        register(ort.SessionOptions(), str(library))
    except LibraryRefusedError as error:
        raise refused(*error.args) from error


def refused(library: Path | str, text: str) -> ActxError:
    """Say in our words why ONNX Runtime refused a library of custom ops."""
    remedy = "Build it for this machine and this ONNX Runtime."
    return ActxError(f"custom-op library '{library}' cannot be loaded", note=reason(text), remedy=remedy)


def session_settings(options: RuntimeOptions, cores: Sequence[int]) -> dict[str, Any]:
    """Return what `open_session` follows, as JSON values.

    Args:
        options: how sessions are opened.
        cores: numbers of the cores that the process may run on.
    """
    entries: dict[str, str] = {}
    if not options.fuse_qdq:
        entries[NO_QDQ] = "1"
    if not options.spin_between_runs:
        entries["session.force_spinning_stop"] = "1"
    if pinned := _cores_of_threads(options, cores):
        entries["session.intra_op_thread_affinities"] = ";".join(str(core + 1) for core in pinned)  # counted from 1
    return {
        "threads": options.threads,
        "optimization": OPTIMIZATIONS[options.optimization].name,
        "disabled_optimizers": list(options.disabled_optimizers),
        "providers": list(dict.fromkeys((options.provider, CPU))),
        "entries": entries,
    }


def _cores_of_threads(options: RuntimeOptions, cores: Sequence[int]) -> Sequence[int]:
    """Return the core of each thread but the caller's; none where they are not pinned."""
    return cores[1 : options.threads] if options.pin_threads and options.threads <= len(cores) else []


def further_outputs(outputs: Sequence[str]) -> bytes:
    """Return what gives a model more graph outputs when it is appended to the model's bytes.

    Concatenating serialized messages merges them (Protocol Buffers, Encoding, "Last One Wins"), so the outputs are
    appended without parsing the model.
    """
    import onnx  # noqa: PLC0415 - a process that measures memory does without it

    more = onnx.GraphProto(output=[onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs)])
    appendix: bytes = onnx.ModelProto(graph=more).SerializeToString()
    return appendix


def run_error(text: str, feeds: Mapping[str, NDArray[Any]], expected: str) -> ActxError:
    """Say in our words why ONNX Runtime did not run a model on these feeds, whose inputs are as `expected` says."""
    got = ", ".join(f"{name}:{array.dtype}{list(array.shape)}" for name, array in feeds.items())
    note = f"{reason(text)} (fed {got}; the model's inputs are {expected})"
    return ActxError(
        "the model failed to run on the data", note=note, remedy="Give inputs that the model accepts (--data)."
    )


def no_tensor(name: str, kind: str) -> ActxError:
    """Say that an output is no tensor of numbers."""
    what = f"output '{name}' is no numeric tensor"
    return ActxError(what, note=f"got {kind}", remedy="Remove that output from the model.")


def open_error(path: Path, outputs: Sequence[str], text: str, version: str = ort.__version__) -> ActxError:
    """Say in our words why ONNX Runtime of a version refused a model."""
    version = f"ONNX Runtime {version}"
    if "Protobuf parsing failed" in text or "No graph was found" in text:
        return ActxError(
            f"'{path}' is not an ONNX model",
            note=f"{path.stat().st_size} bytes, which do not parse",
            remedy="Copy or export it again.",
        )
    if "xternal data" in text or "xternal initializer" in text or "ExtData" in text:
        remedy = "Keep the model and its data files together in one folder, as files and not as links."
        return ActxError(f"the external data of '{path}' is missing or incomplete", note=reason(text), remedy=remedy)
    if newer := re.search(r"domain \S+ is till opset \d+|max supported IR version: \d+", text):
        msg = f"'{path}' was made for a newer runtime than {version}"
        return ActxError(msg, note=newer[0], remedy="Export it at a lower opset, or update onnxruntime.")
    if missing := re.search(r"Graph output \((.+?)\) does not exist", text):
        return ActxError(
            f"'{path}' has no value named '{missing[1]}'",
            note=f"asked for {len(outputs)} values",
            remedy="Compare the names with the graph's.",
        )
    if lacking := _OP_LACKING.search(text):
        op = lacking["op"] or lacking["function"] or lacking["kernel"]
        remedy = "Register the library that holds it, or use the portable model.onnx."
        what = f"'{path}' uses the op '{op}', which {version} does not have here"
        return ActxError(what, note=reason(text), remedy=remedy)
    return ActxError(
        f"{version} cannot open '{path}'", note=reason(text), remedy="Check it with onnx.checker.check_model."
    )


def reason(text: str) -> str:
    """Return ONNX Runtime's message without the runtime's own code, build paths and C++ signatures from its message."""
    message = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?", "", text)
    return re.sub(r"/onnxruntime_src/\S+:\d+ .*?\)( const)? (?=[A-Z])", "", message)


def input_spec(node: Any) -> InputSpec:
    """Return an input that ONNX Runtime describes by `name`, `type` and `shape`.

    Raises:
        ActxError: it is no tensor, or of an element type that numpy does not have.
    """
    match = re.fullmatch(r"tensor\((\w+)\)", node.type)
    if match is None or match[1] not in _ELEMENT_TYPES:
        msg = f"input '{node.name}' has the type {node.type}, which cannot be fed"
        raise ActxError(msg, remedy="Export the model with tensors of numbers for inputs.")
    dims = tuple(
        dim if isinstance(dim, int) and dim > 0 else str(dim) if isinstance(dim, str) and dim else f"{node.name}.{axis}"
        for axis, dim in enumerate(node.shape)
    )
    return InputSpec(node.name, _ELEMENT_TYPES[match[1]], dims)
