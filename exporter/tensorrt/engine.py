"""A serialized engine as a `Runtime`: opened, run, timed layer by layer.

Nothing of this can run without a GPU. Everything is the documented API and no more: NVIDIA, TensorRT Python API, `Runtime`,
`ICudaEngine`, `IExecutionContext`, `IOutputAllocator`, `IProfiler`; TensorRT-RTX, "Working with RTX CUDA Graphs".
"""

from __future__ import annotations

import math
import time
import weakref
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError, TargetUnavailable, UsageError
from actx.exporter.runtimes.base import breakdown
from actx.exporter.tensorrt import device
from actx.exporter.tensorrt.build import runs_on
from actx.exporter.tensorrt.inspector import Layer, SiteLayers, parse_layers, site_of, sites_of
from actx.exporter.tensorrt.library import Library, find, logger
from actx.exporter.tensorrt.network import origins
from actx.exporter.tensorrt.plan import RTX_MAGIC, Plan, read_plan
from actx.exporter.tensorrt.shapes import Profile, specs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from actx.exporter.data import Arrays
    from actx.exporter.runtimes.base import Breakdown

    Feeds: TypeAlias = Mapping[str, NDArray[Any]]

_PROFILED_RUNS = 20
_WARM_UP_RUNS = 3


@dataclass(frozen=True)
class EngineRuntime:
    """How engines are opened and run.

    Attributes:
        target: the target they were built for, `trt` or `trt-rtx`.
        facts: what their build said (`build.Built.facts`); empty where it is not known.
        graph: the ONNX file that they were built from, to name nodes and sites in times; None where it is not there.
        cuda_graph: whether timed runs launch one CUDA graph instead of every kernel. With TensorRT-RTX every run does so.
        transfers: whether the copies to the device and back are timed.
        spin: whether the host waits by asking again and again instead of asleep.
        trust: whether code that a version-compatible engine carries, its runtime, may run.
    """

    target: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    graph: Path | None = None
    cuda_graph: bool = True
    transfers: bool = False
    spin: bool = True
    trust: bool = False

    @property
    def name(self) -> str:
        """Of the library and the device."""
        return {"trt": "TensorRT", "trt-rtx": "TensorRT-RTX"}[self.target]

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU does the work: yes."""
        return True

    @property
    def taps(self) -> bool:
        """Whether values inside can be given as outputs: no, an engine's are fixed when it is built."""
        return False

    def open(self, model: Path, outputs: Sequence[str] = ()) -> EngineSession:
        """Open an engine.

        Args:
            model: the file.
            outputs: must be empty.

        Raises:
            TargetUnavailable: there is no GPU, no library, or the engine is for other GPUs.
            ActxError: the file is no engine of this library, is truncated, or is refused by the library.
        """
        if outputs:
            note = f"asked for {', '.join(outputs)}"
            raise ActxError(
                "an engine gives its own outputs only", note=note, remedy="Compare the sites of model.onnx."
            )
        plan = read_plan(model)
        _check_maker(self, model, plan)
        gpu = device.require_gpu("an engine cannot be run")
        if self.facts and not runs_on(dict(self.facts), gpu.compute_capability):
            raise _wrong_gpu(self, gpu)
        _check_trust(self)
        library = find(self.target)
        return EngineSession(self, library, _deserialize(self, library, model, plan))

    def node_times(self, model: Path, feeds: Arrays, owners: Mapping[str, str]) -> Breakdown:
        """Run an engine under the library's profiler and map its layers to sites; without a CUDA graph, which has no layers.

        Raises:
            ActxError: see `open` and `EngineSession.run`.
        """
        session = replace(self, cuda_graph=False).open(model)
        times = session.layer_times(feeds, _PROFILED_RUNS)
        nodes = {} if self.graph is None else origins(self.graph, owners)
        layers = {layer.name: layer for layer in session.layers()}
        rows = []
        for name, milliseconds in times.items():
            layer = layers.get(name)
            ops = [] if layer is None else [nodes[node].op_type for node in layer.nodes if node in nodes]
            kind = "+".join(dict.fromkeys(ops)) or (layer.kind if layer else "")
            site = None if layer is None else site_of(layer, nodes)
            rows.append((name, kind, milliseconds * 1e3 / _PROFILED_RUNS, site))
        return breakdown(rows, owners, _PROFILED_RUNS, {name: array.shape for name, array in feeds.items()})

    def sites(self, model: Path, owners: Mapping[str, str]) -> dict[str, SiteLayers]:
        """Return how an engine computes every site: in which layers, and in which types.

        Args:
            model: the file.
            owners: as in `node_times`, of the values of `graph`, which must be there.

        Raises:
            ActxError: see `open` and `EngineSession.layers`.
        """
        assert self.graph is not None
        return sites_of(self.open(model).layers(), origins(self.graph, owners))

    def peak_memory(self, model: Path, feeds: Arrays) -> int | None:  # noqa: ARG002 - of the protocol
        """Return None: what an engine takes is the device's memory, which is not measured."""
        return None

    def in_turns(self) -> EngineRuntime:
        """Return itself: the host's threads do not work for a session between its runs."""
        return self

    def describe(self) -> dict[str, Any]:
        """Return library, GPU and options as JSON values; `gpu` is None where there is none.

        Raises:
            TargetUnavailable: the library is not there.
        """
        library = find(self.target)
        gpu, _ = device.find_gpu()
        return {
            "runtime": library.module.__name__,
            "version": library.version,
            "gpu": None if gpu is None else asdict(gpu),
            "options": {"cuda_graph": self.cuda_graph, "transfers": self.transfers, "spin": self.spin},
        }


class EngineSession:
    """An open engine. What it holds on the device is given back when the session is."""

    def __init__(self, runtime: EngineRuntime, library: Library, loaded: _Loaded) -> None:
        self._runtime = runtime
        self._library = library
        self._loaded = loaded
        resources = ExitStack()
        self._stream = resources.enter_context(device.stream(spin=runtime.spin))
        self._held = [resources]  # and the buffers', once there are some; nothing in it may refer to the session
        weakref.finalize(self, _close, self._held)
        self._config, self._context = _context(runtime, library, loaded)
        self._bound: _Bound | None = None

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Name, type and dimensions of what it takes; names of dynamic dimensions come from the build's facts."""
        known = {spec.name: spec for spec in specs_of(self._runtime.facts)}
        return tuple(known.get(name) or self._spec(name) for name in self._names("INPUT"))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives."""
        return self._names("OUTPUT")

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Arrays:
        """Run once and return the outputs by name, in the order asked for; None for all of them.

        Raises:
            UsageError: a shape is outside what the engine was built for.
            ActxError: the feeds do not fit otherwise, or the run fails.
        """
        bound = self._bind(feeds)
        bound.upload(self._stream)
        _execute(self._context, self._stream, self._loaded.log)
        bound.download(self._stream)
        self._stream.wait()
        results = bound.results(self._stream)
        return {name: results[name] for name in (self.outputs if outputs is None else outputs)}

    def timer(self, feeds: Feeds) -> Callable[[], int]:
        """Return what runs once on these feeds and gives the nanoseconds until the host knows that it is done.

        Raises:
            ActxError: see `run`; or the engine cannot be captured as a CUDA graph.
        """
        bound, launch = self._ready(feeds)
        transfers, stream = self._runtime.transfers, self._stream

        def once() -> int:
            nonlocal bound, launch
            if self._bound is not bound:  # other shapes were run in between
                bound, launch = self._ready(feeds)
            start = time.perf_counter_ns()
            if transfers:
                bound.upload(stream)
            launch()
            if transfers:
                bound.download(stream)
            stream.wait()
            return time.perf_counter_ns() - start

        return once

    def layers(self) -> tuple[Layer, ...]:
        """Return the engine's layers.

        Raises:
            ActxError: the inspector's text cannot be read.
        """
        inspector = self._loaded.engine.create_engine_inspector()
        return parse_layers(inspector.get_engine_information(self._library.module.LayerInformationFormat.JSON))

    def layer_times(self, feeds: Feeds, runs: int) -> dict[str, float]:
        """Return the milliseconds of every layer by name, summed over runs after a few for warm-up.

        Raises:
            ActxError: see `run`.
        """
        for _ in range(_WARM_UP_RUNS):
            self.run(feeds)
        profiler = _profiler(self._library)
        self._context.profiler = profiler
        for _ in range(runs):
            self.run(feeds)
        self._context.profiler = None
        return dict(profiler.milliseconds)

    def _names(self, mode: str) -> tuple[str, ...]:
        engine, wanted = self._loaded.engine, getattr(self._library.module.TensorIOMode, mode)
        names = (engine.get_tensor_name(i) for i in range(engine.num_io_tensors))
        return tuple(name for name in names if engine.get_tensor_mode(name) == wanted)

    def _spec(self, name: str) -> InputSpec:
        shape = self._loaded.engine.get_tensor_shape(name)
        dims = tuple(int(size) if size >= 0 else f"{name}.{axis}" for axis, size in enumerate(shape))
        return InputSpec(name, _dtype(self._library, self._loaded.engine, name).name, dims)

    def _ready(self, feeds: Feeds) -> tuple[_Bound, Callable[[], None]]:
        """Return the buffers, filled, and what starts one run on them; TensorRT-RTX makes its own CUDA graph (`_context`).

        The library finishes its work for new shapes in the first run, which cannot be captured.
        """
        self.run(feeds)
        bound = self._bind(feeds)
        launch = partial(_execute, self._context, self._stream, self._loaded.log)
        if not self._runtime.cuda_graph or self._library.target == "trt-rtx":
            return bound, launch
        try:
            return bound, bound.resources.enter_context(device.captured(self._stream, launch))
        except ActxError as error:
            what = "the engine cannot be captured as a CUDA graph"
            raise ActxError(what, note=error.note, remedy="Measure it without one.") from error

    def _bind(self, feeds: Feeds) -> _Bound:
        """Return buffers for the feeds, filled with them; those of the last run where the shapes are the same."""
        arrays = {name: self._checked(name, feeds) for name in self._names("INPUT")}
        shapes = {name: array.shape for name, array in arrays.items()}
        if self._bound is None or self._bound.shapes != shapes or self._bound.varies:
            if self._runtime.facts:
                Profile.from_facts(self._runtime.facts).check(arrays)
            self._bound = None
            _close(self._held[1:])
            del self._held[1:]
            self._set_profile(shapes)
            self._bound = self._allocate(arrays)
        self._bound.fill(arrays)
        return self._bound

    def _checked(self, name: str, feeds: Feeds) -> NDArray[Any]:
        expected = _dtype(self._library, self._loaded.engine, name)
        array = feeds.get(name)
        if array is None or array.dtype != expected:
            got = "nothing" if array is None else array.dtype
            msg = f"input '{name}' of the engine is {expected}"
            raise ActxError(msg, note=f"got {got}", remedy="Give inputs that the model accepts (--data).")
        return array

    def _set_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Choose the first optimization profile that takes the shapes."""
        engine, context = self._loaded.engine, self._context
        for index in range(engine.num_optimization_profiles):
            if all(_takes(engine, name, index, shape) for name, shape in shapes.items()):
                if context.active_optimization_profile != index:
                    context.set_optimization_profile_async(index, self._stream.handle)
                    self._stream.wait()
                return
        name = next(name for name, shape in shapes.items() if not _takes(engine, name, 0, shape))
        low, _, high = (tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0))
        raise UsageError(
            f"the engine does not take shape {list(shapes[name])} for input '{name}'",
            note=f"it was built for {list(low)} to {list(high)}",
            remedy="Build it with --shape ranges that hold it, or use other data.",
        )

    def _allocate(self, arrays: Arrays) -> _Bound:
        """Take buffers for shapes and tell the context their addresses."""
        engine, context, trt = self._loaded.engine, self._context, self._library.module
        bound = _Bound({name: array.shape for name, array in arrays.items()})
        self._held.append(bound.resources)
        for name, array in arrays.items():
            on_host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
            bound.varies |= on_host  # its values are shapes: they must be inferred again on every run
            tensor = bound.add(name, array.dtype, array.shape, on_host=on_host, given=True)
            if not context.set_input_shape(name, array.shape):
                raise _failed(f"the engine refuses shape {list(array.shape)} for input '{name}'", self._loaded.log)
            context.set_tensor_address(name, tensor.address)
        bound.fill(arrays)
        if lacking := context.infer_shapes():
            raise _failed(f"the engine cannot infer its shapes from input '{lacking[0]}'", self._loaded.log)
        for name in self.outputs:
            self._allocate_output(bound, name)
        return bound

    def _allocate_output(self, bound: _Bound, name: str) -> None:
        engine, context, trt = self._loaded.engine, self._context, self._library.module
        shape = tuple(int(size) for size in context.get_tensor_shape(name))
        dtype = _dtype(self._library, engine, name)
        if min(shape, default=0) < 0:  # it depends on the data: the library says how much it needs when it runs
            allocator = bound.add_allocator(self._library, name, dtype)
            context.set_output_allocator(name, allocator)
            return
        on_host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
        context.set_output_allocator(name, None)
        context.set_tensor_address(name, bound.add(name, dtype, shape, on_host=on_host, given=False).address)


@dataclass(frozen=True)
class _Loaded:
    """A deserialized engine and what it lives on."""

    log: Any
    runtime: Any
    engine: Any


@dataclass(frozen=True)
class _Tensor:
    """Buffers of one input or output; `device` is None where the engine reads and writes it on the host."""

    host: NDArray[np.uint8]
    device: int | None
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    given: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def address(self) -> int:
        return int(self.host.ctypes.data) if self.device is None else self.device

    def view(self) -> NDArray[Any]:
        return self.host[: self.size].view(self.dtype).reshape(self.shape)


class _Bound:
    """The buffers of one set of input shapes.

    Attributes:
        shapes: of the inputs.
        varies: whether values of inputs are shapes.
        resources: what gives the buffers back.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.varies = False
        self.resources = ExitStack()
        self._tensors: dict[str, _Tensor] = {}
        self._allocators: dict[str, Any] = {}

    def add(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], *, on_host: bool, given: bool) -> _Tensor:
        size = math.prod(shape) * dtype.itemsize
        host = self.resources.enter_context(device.pinned_memory(size))
        address = None if on_host else self.resources.enter_context(device.device_memory(size))
        self._tensors[name] = _Tensor(host, address, dtype, shape, given)
        return self._tensors[name]

    def add_allocator(self, library: Library, name: str, dtype: np.dtype[Any]) -> Any:
        self._allocators[name] = _allocator(library, dtype, self.resources)
        return self._allocators[name]

    def fill(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            self._tensors[name].view()[...] = array

    def upload(self, stream: device.Stream) -> None:
        for tensor in self._tensors.values():
            if tensor.given and tensor.device is not None:
                stream.to_device(tensor.device, int(tensor.host.ctypes.data), tensor.size)

    def download(self, stream: device.Stream) -> None:
        for tensor in self._tensors.values():
            if not tensor.given and tensor.device is not None:
                stream.to_host(int(tensor.host.ctypes.data), tensor.device, tensor.size)

    def results(self, stream: device.Stream) -> Arrays:
        """Return copies of the outputs; those whose size only the run told are fetched now."""
        fixed = {name: tensor.view().copy() for name, tensor in self._tensors.items() if not tensor.given}
        return fixed | {name: allocator.fetch(stream) for name, allocator in self._allocators.items()}


def _check_maker(runtime: EngineRuntime, model: Path, plan: Plan) -> None:
    maker = "trt-rtx" if plan.magic == RTX_MAGIC else "trt"
    if maker != runtime.target:
        note = f"its first bytes are {plan.magic.decode()}"
        raise ActxError(f"'{model}' is an engine of target {maker}", note=note, remedy=f"Run it with target {maker}.")


def _wrong_gpu(runtime: EngineRuntime, gpu: device.Gpu) -> TargetUnavailable:
    asked = ", ".join(runtime.facts["compute_capabilities"]) or "those of its build"
    return TargetUnavailable(
        f"the engine was not built for compute capability {gpu.compute_capability}",
        note=f"the GPU here is {gpu.name}; the engine runs on {asked}",
        remedy="Run actx build on this device, or for it with --compute-capability.",
    )


def _check_trust(runtime: EngineRuntime) -> None:
    if runtime.facts and runtime.facts["options"]["version_compatible"] and not runtime.trust:
        raise ActxError(
            "the engine carries its own runtime, which is code that would run with your rights",
            note="it was built with --version-compatible",
            remedy="Add --trust if you made it, or trust whoever did.",
        )


def _deserialize(runtime: EngineRuntime, library: Library, model: Path, plan: Plan) -> _Loaded:
    log = logger(library)
    made = library.module.Runtime(log)
    if runtime.trust:
        made.engine_host_code_allowed = True
    engine = made.deserialize_cuda_engine(model.read_bytes())
    if engine is None:
        error = _failed(f"{library} cannot load '{model}'", log)
        other = plan.version is not None and plan.version != library.version
        built = f"it was written by {library.title} {plan.version}; " if other else ""
        raise ActxError(
            error.what, note=f"{built}{error.note}", remedy="Build it again with this library, on this device."
        )
    return _Loaded(log, made, engine)


def _context(runtime: EngineRuntime, library: Library, loaded: _Loaded) -> tuple[Any, Any]:
    """Return a context and what it lives on. TensorRT-RTX captures graphs itself, anew for every shape."""
    config = None
    if library.target == "trt-rtx" and runtime.cuda_graph:
        config = loaded.engine.create_runtime_config()
        config.cuda_graph_strategy = library.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    context = loaded.engine.create_execution_context(*([] if config is None else [config]))
    if context is None:
        raise _failed("the device has no room for the engine", loaded.log)
    return config, context


def _close(stacks: Sequence[ExitStack]) -> None:
    for stack in reversed(stacks):
        stack.close()


def _execute(context: Any, stream: device.Stream, log: Any) -> None:
    if not context.execute_async_v3(stream.handle):
        raise _failed("the engine failed to run", log)


def _takes(engine: Any, name: str, index: int, shape: tuple[int, ...]) -> bool:
    low, _, high = engine.get_tensor_profile_shape(name, index)
    within = (least <= size <= most for least, size, most in zip(low, shape, high, strict=False))
    return len(tuple(low)) == len(shape) and all(within)


def _dtype(library: Library, engine: Any, name: str) -> np.dtype[Any]:
    kind = engine.get_tensor_dtype(name)
    try:
        dtype: np.dtype[Any] = np.dtype(library.module.nptype(kind))
    except TypeError as error:
        msg = f"'{name}' of the engine is {kind}, which numpy does not have"
        raise ActxError(msg, remedy="Cast it to float32 or float16 in the model.") from error
    return dtype


def _failed(what: str, log: Any) -> ActxError:
    return ActxError(what, note=log.errors[-1] if log.errors else "", remedy="Build the engine again on this device.")


def _profiler(library: Library) -> Any:
    class Profiler(library.module.IProfiler):  # type: ignore[misc, name-defined]  # the base is known at run time only
        """Sums the times that the library reports."""

        def __init__(self) -> None:
            super().__init__()
            self.milliseconds: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.milliseconds[layer_name] = self.milliseconds.get(layer_name, 0.0) + ms

    return Profiler()


def _allocator(library: Library, dtype: np.dtype[Any], resources: ExitStack) -> Any:
    class Allocator(library.module.IOutputAllocator):  # type: ignore[misc, name-defined]  # the base is known at run time only
        """Gives one output the memory that a run asks for, and remembers the shape that it then has."""

        def __init__(self) -> None:
            super().__init__()
            self.address, self.room = 0, -1
            self.shape: tuple[int, ...] = (0,)

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:  # noqa: ARG002 - of the interface
            if size > self.room:
                self.address, self.room = resources.enter_context(device.device_memory(size)), size
            return self.address

        def notify_shape(self, tensor_name: str, shape: Any) -> None:  # noqa: ARG002 - of the interface
            self.shape = tuple(int(length) for length in shape)

        def fetch(self, stream: device.Stream) -> NDArray[Any]:
            size = math.prod(self.shape) * dtype.itemsize
            with device.pinned_memory(size) as host:
                stream.to_host(int(host.ctypes.data), self.address, size)
                stream.wait()
                return host[:size].view(dtype).reshape(self.shape).copy()

    return Allocator()
