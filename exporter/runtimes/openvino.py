"""OpenVINO on a CPU: opens a bundle's ONNX graph as it is, runs it, and times its nodes.

1. Names and types are the ONNX graph's, whatever OpenVINO makes of them: ports are found by their position.
2. What OpenVINO takes in silence is refused: an input that is missing, or an array of another type.
3. By itself OpenVINO computes in bfloat16 where the CPU has it. Here it does so only if it is asked to.
4. Every op is renamed before it is compiled, to a number that stands for the ONNX value it computes: fused nodes list the
   numbers of what they were made of, and so are mapped back to sites.
5. A node that a linear op was fused into belongs to no site; any other belongs to the site that one of its ops computes.
6. On one thread a synchronous run ends in silence where a node fails (OpenVINO 2026.4); an asynchronous one says so. Times are
   taken of synchronous runs, which have less around them, after an asynchronous one on the same feeds.
"""

from __future__ import annotations

import importlib.metadata
import re
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from actx.exporter import machine
from actx.exporter.data import DTYPES, Arrays, InputSpec
from actx.exporter.errors import ActxError, TargetUnavailable, UsageError
from actx.exporter.footprint import peak_memory
from actx.exporter.runtimes.base import Breakdown, breakdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import openvino as ov
    from numpy.typing import NDArray

Precision: TypeAlias = Literal["f32", "bf16", "default"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_NAME = "OpenVINO CPU"
_DEVICE = "CPU"
_REMEDY = "Check it with onnx.checker.check_model."
_WARMUP, _RUNS = 3, 20  # of `node_times`
_LINEAR = frozenset(
    {"FullyConnected", "MatMul", "Convolution", "Deconvolution", "GroupConvolution", "ScaledDotProductAttention", "LLMMLP",
     "QKVProjection", "RNNCell", "RNNSeq"}
)  # fmt: skip
_NOT_RUN = frozenset({"Input", "Output", "Const"})
_LACKING = re.compile(r"No conversion rule found for operations: (?:(?P<domain>[\w.]+)\.)?(?P<op>\w+)")


@dataclass(frozen=True)
class OpenVino:
    """How models are run in OpenVINO.

    Attributes:
        threads: threads of one run, 0 for as many as OpenVINO takes.
        precision: what float32 graphs are computed in; "default" leaves it to OpenVINO (`describe` says what it takes).

    Raises:
        UsageError: a negative number of threads or an unknown precision.
    """

    threads: int = 0
    precision: Precision = "f32"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.threads < 0:
            msg = "the number of threads must not be negative"
            raise UsageError(msg, note=f"got {self.threads}", remedy="0 takes one thread per core.")
        if self.precision not in PRECISIONS:
            note = f"got '{self.precision}', available: {', '.join(PRECISIONS)}"
            msg = "unknown precision"
            raise UsageError(msg, note=note, remedy="Choose one of these.")

    @property
    def name(self) -> str:
        """Of the library and the device."""
        return _NAME

    @property
    def on_gpu(self) -> bool:
        """Whether an NVIDIA GPU does the work: no."""
        return False

    @property
    def taps(self) -> bool:
        """Any value of the graph can be an output."""
        return True

    def open(self, model: Path, outputs: Sequence[str] = ()) -> OpenVinoSession:
        """Open a model (see `Runtime.open`). Its weights are mapped from their file, not copied.

        Args:
            model: the ``.onnx`` file; its external data is looked for beside it.
            outputs: names of further values to return. They are not fused away: such a session can be slower.

        Raises:
            TargetUnavailable: OpenVINO is not installed.
            ActxError: the file is missing or damaged, or uses what OpenVINO does not have.
        """
        graph = _Graph.read(Path(model))
        return _compile(graph, _read(graph), outputs, self._config())

    def node_times(self, model: Path, feeds: Arrays, owners: Mapping[str, str]) -> Breakdown:
        """Run a model under OpenVINO's performance counters, in whole microseconds, and map its nodes to sites by 4 and 5.

        Args:
            model: the file.
            feeds: one array per input.
            owners: the site of every value that a site computes, by the value's name in the model.

        Raises:
            ActxError: the model cannot be opened or run.
        """
        graph = _Graph.read(Path(model))
        content = _read(graph)
        values = _number_ops(content, graph)
        session = _compile(graph, content, (), self._config() | {"PERF_COUNT": True})
        for _ in range(_WARMUP):
            session.run(feeds)
        totals: dict[str, float] = defaultdict(float)
        for _ in range(_RUNS):
            session.run(feeds)
            for name, microseconds in session.counters():
                totals[name] += microseconds / _RUNS
        layers = {layer.name: layer for layer in session.layers()}
        times = [
            (graph.label(values, name), layers[name].kind, microseconds, _site(layers[name], values, owners))
            for name, microseconds in totals.items()
            if name in layers and layers[name].kind not in _NOT_RUN
        ]
        return breakdown(times, owners, _RUNS, {name: array.shape for name, array in feeds.items()})

    def peak_memory(self, model: Path, feeds: Arrays) -> int | None:
        """Return the bytes that a fresh process needs to open a model and run it once (see `footprint`)."""
        return peak_memory(self, model, feeds)

    def in_turns(self) -> OpenVino:
        """Return it as it is: OpenVINO's idle threads sleep, and it keeps each thread on its core by itself."""
        return self

    def describe(self) -> dict[str, Any]:
        """Return what a measurement depends on besides the model, as JSON values.

        Raises:
            TargetUnavailable: OpenVINO is not installed.
        """
        core = _library().Core()
        return {
            "runtime": "openvino",
            **description(),
            "onnx": importlib.metadata.version("onnx"),
            "numpy": np.__version__,
            **machine.describe(),
            "threads_used": self.threads or len(machine.usable_cores()),
            "threads_pinned": bool(core.get_property(_DEVICE, "ENABLE_CPU_PINNING")),
            "precision_used": _default_precision(core) if self.precision == "default" else self.precision,
            "options": asdict(self),
        }

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if self.threads:
            config["INFERENCE_NUM_THREADS"] = self.threads
        if self.precision != "default":
            config["INFERENCE_PRECISION_HINT"] = self.precision
        return config


def description() -> dict[str, Any]:
    """Return version, device, its capabilities and the precision it takes by itself, as JSON values.

    Raises:
        TargetUnavailable: OpenVINO is not installed.
    """
    core = _library().Core()
    return {
        "openvino": importlib.metadata.version("openvino"),
        "device": _DEVICE,
        "device_name": str(core.get_property(_DEVICE, "FULL_DEVICE_NAME")).strip(),
        "capabilities": list(core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")),
        "default_precision": _default_precision(core),
    }


class OpenVinoSession:
    """A compiled model: see `Session`."""

    def __init__(self, graph: _Graph, compiled: ov.CompiledModel, outputs: Mapping[str, str | None]) -> None:
        self._inputs = graph.inputs
        self._outputs = dict(outputs)
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The ONNX graph's; unnamed dynamic dimensions are called ``INPUT.AXIS``."""
        return self._inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """The ONNX graph's, in its order, and those that were added."""
        return tuple(self._outputs)

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Run once (see `Session.run`)."""
        places = {name: place for place, name in enumerate(self._outputs)}
        names = list(places) if outputs is None else list(outputs)
        if unknown := [name for name in names if name not in places]:
            raise self._error(feeds, f"'{unknown[0]}' is no output")
        for name in names:
            if self._outputs[name] is None:
                msg = f"output '{name}' is no numeric tensor"
                raise ActxError(msg, remedy="Remove that output from the model, or cast it to float32.")
        self._run_once(self._request, feeds)
        return {name: self._array(places[name], str(self._outputs[name])) for name in names}

    def timer(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], int]:
        """Return what runs once on preset tensors and gives the nanoseconds it took."""
        request = self._compiled.create_infer_request()
        arrays = self._run_once(request, feeds)

        def run() -> int:
            begin = time.perf_counter_ns()
            request.infer(share_outputs=True)
            elapsed = time.perf_counter_ns() - begin
            assert arrays is not None  # the request reads their memory
            return elapsed

        return run

    def counters(self) -> Iterator[tuple[str, float]]:
        """Yield name and microseconds of every node in the last run, where they were asked for."""
        for info in self._request.profiling_info:
            yield info.node_name, info.real_time.total_seconds() * 1e6

    def layers(self) -> Iterator[_Layer]:
        """Yield the nodes of the graph that runs."""
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            kind, parts = (info[key].astype(str) for key in ("layerType", "originalLayersNames"))
            yield _Layer(node.get_friendly_name(), kind, tuple(parts.split(",")))

    def _run_once(self, request: ov.InferRequest, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """6. Run with errors; the arrays are to be kept as long as the request is used."""
        arrays = self._set(request, feeds)
        try:
            request.start_async()
            request.wait()
        except RuntimeError as error:
            raise self._error(feeds, _reason(str(error))) from error
        return arrays

    def _set(self, request: ov.InferRequest, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Let a request read these arrays."""
        if wrong := _misfit(self._inputs, feeds):
            raise self._error(feeds, wrong)
        tensor = _library().Tensor
        arrays = [np.ascontiguousarray(feeds[spec.name]).reshape(feeds[spec.name].shape) for spec in self._inputs]
        for place, array in enumerate(arrays):
            request.set_input_tensor(place, tensor(array, shared_memory=bool(array.size and array.flags.writeable)))
        return arrays

    def _array(self, place: int, dtype: str) -> NDArray[Any]:
        """Copy an output; OpenVINO may have narrowed its type."""
        return np.array(self._request.get_output_tensor(place).data, dtype=dtype)

    def _error(self, feeds: Mapping[str, NDArray[Any]], reason: str) -> ActxError:
        got = ", ".join(f"{name}:{array.dtype}{list(array.shape)}" for name, array in feeds.items())
        note = f"{reason} (fed {got}; the model's inputs are {', '.join(map(str, self._inputs))})"
        return ActxError(
            "the model failed to run on the data", note=note, remedy="Give inputs that the model accepts (--data)."
        )


@dataclass(frozen=True)
class _Layer:
    """A node of the graph that runs: its name, its type and the names of the ops that it was made of."""

    name: str
    kind: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class _Graph:
    """What is needed of an ONNX file besides what OpenVINO reads.

    Attributes:
        path: the file.
        inputs: what it takes.
        outputs: numpy's element type of every output; None where that is no number numpy has.
        nodes: label and op type, with its domain, of the node that computes each value.
    """

    path: Path
    inputs: tuple[InputSpec, ...]
    outputs: Mapping[str, str | None]
    nodes: Mapping[str, tuple[str, str]]

    @classmethod
    def read(cls, path: Path) -> _Graph:
        if not path.is_file():
            what = f"model '{path}' {'is no file' if path.exists() else 'does not exist'}"
            raise ActxError(what, remedy="Give an .onnx file.")
        try:
            graph = onnx.load(path, load_external_data=False).graph
        except DecodeError as error:
            raise _not_onnx(path) from error
        if not graph.output:
            raise _not_onnx(path)
        initializers = {tensor.name for tensor in graph.initializer}
        return cls(
            path,
            tuple(_input_spec(value) for value in graph.input if value.name not in initializers),
            {value.name: _dtype(value.type.tensor_type.elem_type) for value in graph.output},
            {value: (node.name or value, _op(node)) for node in _nodes(graph) for value in node.output},
        )

    def label(self, values: Mapping[str, str], number: str) -> str:
        """Return the label of the node that computes the value of that number; what OpenVINO added keeps its own name."""
        value = values.get(number, number)
        return self.nodes[value][0] if value in self.nodes else value


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


def _op(node: onnx.NodeProto) -> str:
    return f"{node.domain}:{node.op_type}" if node.domain else node.op_type


def _dtype(element: int) -> str | None:
    """Return numpy's name of an ONNX element type that can be fed and read."""
    try:
        name = onnx.helper.tensor_dtype_to_np_dtype(element).name
    except KeyError:
        return None
    return name if name in DTYPES else None


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    kind = value.type.tensor_type
    dtype = _dtype(kind.elem_type) if value.type.HasField("tensor_type") else None
    if dtype is None:
        msg = f"input '{value.name}' is no tensor of numbers that numpy has, and cannot be fed"
        raise ActxError(msg, remedy="Export the model with tensors of numbers for inputs.")
    dims = tuple(
        dim.dim_value if dim.dim_value > 0 else dim.dim_param or f"{value.name}.{axis}"
        for axis, dim in enumerate(kind.shape.dim)
    )
    return InputSpec(value.name, dtype, dims)


def _library() -> Any:
    try:
        import openvino  # noqa: PLC0415 - an extra, which takes its time to import
    except ImportError as error:
        msg = "OpenVINO cannot be loaded here"
        raise TargetUnavailable(msg, note=str(error), remedy="Install it: pip install 'actx[openvino]'.") from error
    return openvino


def _version() -> str:
    return f"OpenVINO {importlib.metadata.version('openvino')}"


def _default_precision(core: ov.Core) -> str:
    """Return what float32 graphs are computed in unless told otherwise: f32, bf16 or f16."""
    names = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
    found = core.get_property(_DEVICE, "INFERENCE_PRECISION_HINT").get_type_name()
    return names.get(found, str(found))


def _read(graph: _Graph) -> ov.Model:
    try:
        return _library().Core().read_model(graph.path)
    except RuntimeError as error:
        raise _open_error(graph, str(error)) from error


def _compile(graph: _Graph, model: ov.Model, outputs: Sequence[str], config: Mapping[str, Any]) -> OpenVinoSession:
    """Compile a model with further values for outputs."""
    types = dict(graph.outputs)
    for name in (name for name in dict.fromkeys(outputs) if name not in types):
        try:
            (port,) = model.add_outputs(name)
        except RuntimeError as error:
            what = f"'{graph.path}' has no value named '{name}'"
            note = f"asked for {len(outputs)} values"
            raise ActxError(what, note=note, remedy="Compare the names with the graph's.") from error
        types[name] = _numpy_type(port.get_element_type())
    try:
        compiled = _library().Core().compile_model(model, _DEVICE, dict(config))
    except RuntimeError as error:
        raise _open_error(graph, str(error)) from error
    return OpenVinoSession(graph, compiled, types)


def _numpy_type(element: ov.Type) -> str | None:
    name = element.get_type_name()
    name = {"f16": "float16", "f32": "float32", "f64": "float64", "boolean": "bool"}.get(name, name)
    name = re.sub(r"^(u|i)(\d+)$", lambda match: f"{'u' if match[1] == 'u' else ''}int{match[2]}", name)
    return name if name in DTYPES else None


def _misfit(specs: Sequence[InputSpec], feeds: Mapping[str, NDArray[Any]]) -> str:
    """2. Say what does not fit, or nothing."""
    names = {spec.name for spec in specs}
    if missing := [name for name in names if name not in feeds]:
        return f"input '{missing[0]}' is missing"
    if extra := [name for name in feeds if name not in names]:
        return f"'{extra[0]}' is no input"
    for spec in specs:
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.dims) and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(spec.dims, array.shape, strict=True)
        )
        if array.dtype.name != spec.dtype or not fits:
            return f"input '{spec.name}' does not fit"
    return ""


def _number_ops(model: ov.Model, graph: _Graph) -> dict[str, str]:
    """4. Return the ONNX value by number; an op within the translation of a node has the value that it is used for."""
    found: dict[str, str] = {}
    ops = model.get_ordered_ops()
    numbers = {op: str(number) for number, op in enumerate(ops)}
    for op in reversed(ops):
        own = sorted(name for port in op.outputs() for name in port.get_names() if name in graph.nodes)
        users = {found.get(numbers[i.get_node()]) for port in op.outputs() for i in port.get_target_inputs()}
        value = own[0] if own else users.pop() if len(users) == 1 else None
        if value is not None and op.get_type_name() not in {"Constant", "Result"}:
            found[numbers[op]] = value
        op.set_friendly_name(numbers[op])
    return found


def _site(layer: _Layer, values: Mapping[str, str], owners: Mapping[str, str]) -> str | None:
    """5."""
    if layer.kind in _LINEAR:
        return None
    sites = (owners.get(values.get(part, part)) for part in reversed(layer.parts))
    return next((site for site in sites if site is not None), None)


def _not_onnx(path: Path) -> ActxError:
    note = f"{path.stat().st_size} bytes, which do not parse"
    return ActxError(f"'{path}' is not an ONNX model", note=note, remedy="Copy or export it again.")


def _open_error(graph: _Graph, text: str) -> ActxError:
    """Say in our words why OpenVINO refused a model."""
    path, version = graph.path, _version()
    if "externally stored data" in text:
        remedy = "Keep the model and its data files together in one folder, as files and not as links."
        return ActxError(f"the external data of '{path}' is missing or incomplete", note=_reason(text), remedy=remedy)
    if lacking := _LACKING.search(text):
        op = f"{lacking['domain']}:{lacking['op']}" if lacking["domain"] else lacking["op"]
        node = next((label for label, found in graph.nodes.values() if found == op), "")
        remedy = "Export for the target openvino, or use the portable model.onnx."
        what = f"'{path}' uses the op '{op}', which {version} does not have"
        return ActxError(what, note=f"node {node}" if node else _reason(text), remedy=remedy)
    if "not enough registers" in text:
        remedy = "Choose poly or pwl, or fewer segments, for the forms of its sites."
        what = f"{version} cannot compile '{path}': a chain of elementwise ops needs more registers than the CPU has"
        return ActxError(what, note=_reason(text), remedy=remedy)
    return ActxError(f"{version} cannot open '{path}'", note=_reason(text), remedy=_REMEDY)


def _reason(text: str) -> str:
    """Drop places in OpenVINO's source from its message: the facts come last."""
    places = ("Exception from ", "Check '", "FrontEnd API failed", "Model wasn't", "Summary:")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith(places)) or lines[-1]
