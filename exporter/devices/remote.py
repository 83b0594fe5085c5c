"""Models on a device: a `Runtime` whose sessions are there, and a `Place` whose rounds are measured there.

1. A file is sent once, when it is first needed. The device gives it a name, which a graph's external data is then said to have:
   no name of a model or bundle is used there.
2. Rounds are measured on the device by the code that measures them here (`turns`); this side draws the orders and decides when
   there are enough.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import onnx

from actx.custom_ops import cpu
from actx.custom_ops.cpu.elf import ARCHITECTURES, why_not_for
from actx.exporter.bundle import ENGINE_SUFFIX, library_name, read_bundle, verify
from actx.exporter.devices import frames, replies
from actx.exporter.devices.link import CallFailedError, Link
from actx.exporter.errors import ActxError, TargetUnavailable
from actx.exporter.kernels import Carried, Kernels, is_named
from actx.exporter.load.onnx_file import read_onnx
from actx.exporter.opening import best_graph
from actx.exporter.place import SECONDS_OF_ENERGY, energy_per_run, fared
from actx.exporter.runtimes.onnxruntime import (
    RuntimeOptions,
    further_outputs,
    input_spec,
    no_tensor,
    open_error,
    reason,
    refused,
    run_error,
    session_settings,
)
from actx.exporter.runtimes.onnxruntime_profiler import read_trace
from actx.exporter.targets import Graph, find_target
from actx.exporter.turns import MAX_TURNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from actx.exporter.data import Arrays, InputSpec
    from actx.exporter.place import Entrant, Times
    from actx.exporter.runtimes.base import Breakdown, Runtime

_RUNS = 20  # of `node_times`
Asked: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Depot:
    """What has been sent to a device.

    Attributes:
        link: to it.
    """

    link: Link
    _files: dict[tuple[Path, tuple[str, ...]], replies.Sent] = field(default_factory=dict)
    _feeds: dict[int, tuple[Arrays, int]] = field(default_factory=dict)

    def file(self, path: Path) -> replies.Sent:
        """Return a file on the device.

        Raises:
            ActxError: it cannot be read, or not be sent.
        """
        key = path.resolve(), ()
        if key not in self._files:
            try:
                with path.open("rb") as content:
                    parts = iter(lambda: content.read(frames.CHUNK), b"")
                    self._files[key] = self.link.call("file", replies.Sent, parts, path.stat().st_size)[0]
            except OSError as error:
                raise ActxError(f"cannot read {path}", note=str(error.strerror), remedy="Copy it again.") from error
        return self._files[key]

    def model(self, path: Path, outputs: Sequence[str] = ()) -> int:
        """Return the number on the device of a graph with further outputs.

        Raises:
            ActxError: it is no graph, keeps data outside its folder, or cannot be sent.
        """
        key = path.resolve(), ("graph", *outputs)
        if key not in self._files:
            if outputs:
                appendix, after = further_outputs(outputs), self.model(path)
            else:
                appendix, after = self._graph(path), None
            self._files[key] = self.link.call("file", replies.Sent, [appendix], after=after)[0]
        return self._files[key].file

    def feeds(self, feeds: Arrays) -> int:
        """Return the number on the device of feeds, which are not to be changed any more."""
        if id(feeds) not in self._feeds:
            described, parts = frames.describe(feeds)
            kept, _ = self.link.call("keep", replies.Kept, parts, arrays=described)
            self._feeds[id(feeds)] = feeds, kept.feeds
        return self._feeds[id(feeds)][1]

    def takes_library(self, path: Path) -> str:
        """Return why ONNX Runtime on the device does not take a library of custom ops; empty where it does."""
        try:
            self.link.call("register", replies.Nothing, library=self.file(path).file)
        except CallFailedError as error:
            return reason(error.text)
        return ""

    def _graph(self, path: Path) -> bytes:
        """Return a graph whose external data is where the device has it."""
        if not path.is_file():
            what = f"model '{path}' {'is no file' if path.exists() else 'does not exist'}"
            raise ActxError(what, remedy="Give an .onnx file.")
        read_onnx(path)  # it checks where the data is
        proto = onnx.load(path, load_external_data=False)
        tensors = (tensor for graph in (proto.graph, *proto.functions) for tensor in _tensors(graph))
        for entry in (entry for tensor in tensors for entry in tensor.external_data if entry.key == "location"):
            entry.value = self.file(path.parent / entry.value).name
        content: bytes = proto.SerializeToString()
        return content


@dataclass(frozen=True)
class RemoteRuntime:
    """ONNX Runtime on a device: see `Runtime`.

    Attributes:
        depot: what has been sent there.
        options: how sessions are opened.
    """

    depot: Depot
    options: RuntimeOptions

    @property
    def name(self) -> str:
        """Of the library and the device."""
        return f"{self.options.name} on {self.depot.link.device.name}"

    @property
    def on_gpu(self) -> bool:
        """Whether an NVIDIA GPU does the work."""
        return self.options.on_gpu

    @property
    def taps(self) -> bool:
        """Values inside the graph can be outputs."""
        return True

    def open(self, model: Path, outputs: Sequence[str] = ()) -> RemoteSession:
        """Open a model (see `Runtime.open`).

        Raises:
            ActxError: it cannot be sent, or ONNX Runtime there cannot open it.
        """
        opened, _ = self._call("open", replies.Opened, model, outputs, model=self.asked(model, outputs))
        session = RemoteSession(self.depot.link, opened)
        weakref.finalize(session, self.depot.link.closed.append, opened.session)
        return session

    def node_times(self, model: Path, feeds: Arrays, owners: Mapping[str, str]) -> Breakdown:
        """Run a model under ONNX Runtime's profiler there (see `onnxruntime_profiler`)."""
        asked, kept = self.asked(model), self.depot.feeds(feeds)
        trace, content = self._call("trace", replies.Trace, model, (), model=asked, feeds=kept, runs=_RUNS)
        events, graph = bytes(content[: trace.sizes[0]]), bytes(content[trace.sizes[0] :])
        try:
            return read_trace(events, graph, model, feeds, owners, runs=_RUNS)
        except Exception as error:
            what = f"the profile of '{model}' from {self.depot.link.device.name} cannot be read"
            raise ActxError(
                what, note=str(error), remedy="Compare the versions of ONNX Runtime, there and here."
            ) from error

    def peak_memory(self, model: Path, feeds: Arrays) -> int | None:
        """Return the bytes that a fresh process there needs to open a model and run it once; None where that is unknown."""
        asked, kept = self.asked(model), self.depot.feeds(feeds)
        return self._call("footprint", replies.Footprint, model, (), model=asked, feeds=kept)[0].bytes

    def in_turns(self) -> RemoteRuntime:
        """Return it with idle threads stopped between runs and busy ones pinned."""
        return replace(self, options=self.options.in_turns())

    def describe(self) -> dict[str, Any]:
        """Return what a measurement depends on besides the model: the device, its versions and options."""
        link = self.depot.link
        hello, cores = link.hello, len(link.hello.cores)
        return {
            "runtime": "onnxruntime",
            "provider": self.options.provider,
            **hello.versions.model_dump(),
            **hello.machine.model_dump(),
            "threads_used": self.options.threads or cores,
            "threads_pinned": self.options.pins_threads(hello.cores),
            "options": self.options.to_dict(),
            "device": {
                "name": link.device.name,
                "address": str(link.device.address),
                **hello.model_dump(include={"model", "architecture", "libc"}),
            },
        }

    def asked(self, model: Path, outputs: Sequence[str] = ()) -> Asked:
        """Return what the runner opens a session with."""
        return {
            "file": self.depot.model(model, outputs),
            "libraries": [self.depot.file(library).file for library in self.options.libraries],
            "settings": session_settings(self.options, self.depot.link.hello.cores),
        }

    def _call(
        self, name: str, kind: type[replies.R], path: Path, outputs: Sequence[str], **arguments: Any
    ) -> tuple[replies.R, bytearray]:
        """Have a model opened, or raise in our words."""
        try:
            return self.depot.link.call(name, kind, **arguments)
        except CallFailedError as error:
            if error.kind == "library":
                raise refused(self.options.libraries[0], error.text) from error
            raise open_error(path, outputs, error.text, self.depot.link.hello.versions.onnxruntime) from error


@dataclass(frozen=True)
class RemoteSession:
    """An open session on a device: see `Session`."""

    _link: Link
    _opened: replies.Opened

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What it takes.

        Raises:
            ActxError: an input cannot be fed.
        """
        return tuple(input_spec(_Input(*given)) for given in self._opened.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives."""
        return tuple(self._opened.outputs)

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Run once (see `Runner.run`)."""
        names = list(self.outputs if outputs is None else outputs)
        ran, content = self._call("run", replies.Ran, feeds, outputs=names)
        try:
            found = frames.arrays(ran.arrays, content)
        except frames.MalformedError as error:
            raise self._link.strange(str(error)) from error
        if list(found) != names:
            raise self._link.strange(f"asked for {', '.join(names)}, got {', '.join(found)}")
        return found

    def timer(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], int]:
        """Return what runs it once and gives the nanoseconds that this took there."""
        return lambda: self._call("time", replies.Timed, feeds)[0].nanoseconds

    def _call(
        self, name: str, kind: type[replies.R], feeds: Mapping[str, NDArray[Any]], **arguments: Any
    ) -> tuple[replies.R, bytearray]:
        described, parts = frames.describe(feeds)
        try:
            return self._link.call(name, kind, parts, session=self._opened.session, arrays=described, **arguments)
        except CallFailedError as error:
            if error.kind == "output":
                raise no_tensor(error.name, error.text) from error
            expected = ", ".join(f"{given}:{kind}{shape}" for given, kind, shape in self._opened.inputs)
            raise run_error(error.text, feeds, expected) from error


class RemotePlace:
    """A device that measures, watched from when this is made: see `Place`."""

    def __init__(self, depot: Depot) -> None:
        self._depot = depot
        self._before = depot.link.call("watch", replies.Watch)[0]
        self._during: list[replies.Conditions] = []

    def take_round(
        self, entrants: Sequence[Entrant], orders: Iterable[Sequence[int]], most: int
    ) -> tuple[Times, Times]:
        """Measure one round there (see `turns.take_round`)."""
        asked = [self._asked(*entrant) for entrant in entrants]
        drawn = list(islice(orders, MAX_TURNS + 2))
        try:
            done, _ = self._depot.link.call("round", replies.Round, entrants=asked, orders=drawn, most=most)
        except CallFailedError as error:
            what = f"the models failed to run on {self._depot.link.device.name}"
            raise ActxError(what, note=reason(error.text), remedy="Give inputs that they accept (--data).") from error
        if {len(done.start), *map(len, done.turns)} != {len(asked)} or {*map(len, done.start)} != {2} or not done.turns:
            raise self._depot.link.strange("it measured another number of models")
        self._during.append(done.conditions)
        return done.start, done.turns

    def describe(self, original: Entrant, artifact: Entrant) -> dict[str, Any]:
        """Return how the device has fared: its load, clocks, temperatures and throttling, and the energy of a run."""
        link = self._depot.link
        watched, _ = link.call("watched", replies.Watched)
        asked = [self._asked(*entrant) for entrant in (original, artifact)]
        energy, _ = link.call("energy", replies.Energy, entrants=asked, seconds=SECONDS_OF_ENERGY)
        before, *during, after = (
            one.model_dump() for one in (self._before.conditions, *self._during, watched.conditions)
        )
        return {
            "load_average": self._before.load_average,
            "others_busy_cores": watched.others_busy_cores,
            **fared(before, during, after),
            "energy_per_run": energy_per_run(energy.model_dump(exclude_none=True)),
        }

    def _asked(self, model: Path, runtime: Runtime, feeds: Arrays) -> Asked:
        assert isinstance(runtime, RemoteRuntime)
        return {"model": runtime.asked(model), "feeds": self._depot.feeds(feeds)}


def device_graph(depot: Depot, artifact: Path, options: RuntimeOptions, *, kernels: bool | None, trust: bool) -> Graph:
    """Return what a device runs, of a bundle or an ONNX file itself (see `best_graph`).

    Raises:
        TargetUnavailable: it is for another runtime, or the kernels were asked for and cannot be had.
        ActxError: it is no bundle, or a file is not what the export wrote.
    """
    if artifact.is_dir():
        manifest = read_bundle(artifact)[1]
        target = find_target([manifest.request.target, *manifest.engines][-1])
        if not target.on_devices:
            raise _elsewhere(depot, f"{artifact} is for {target.name}", f"Or give {artifact / 'model.onnx'}.")
    elif artifact.suffix == ENGINE_SUFFIX:
        raise _elsewhere(depot, f"{artifact} is an engine", "")

    def choose(wanted: bool | None, carried: Carried | None = None) -> tuple[Kernels | None, str]:
        return choose_kernels(depot, wanted, carried)

    graph = best_graph(artifact, options, kernels=kernels, trust=trust, choose=choose)
    assert isinstance(graph.runtime, RuntimeOptions)
    return replace(graph, runtime=RemoteRuntime(depot, graph.runtime))


def choose_kernels(depot: Depot, wanted: bool | None, carried: Carried | None) -> tuple[Kernels | None, str]:
    """Return the kernels for a device, and why there are none where there are none (see `kernels.choose_kernels`).

    They are those of this machine where they are for the device's architecture too, else those that the bundle carries for it;
    and those that ONNX Runtime there takes.

    Raises:
        TargetUnavailable: they were asked for and cannot be had.
        ActxError: the bundle's library is not the file that the export wrote.
    """
    if wanted is False:
        return None, "the kernels were not to be used"
    missing: list[str] = []
    for library, origin in _libraries(depot.link.hello.architecture, carried, missing):
        if not (refusal := depot.takes_library(library)):
            return Kernels(library, f"{origin} on {depot.link.device.name}"), ""
        missing.append(f"{origin} cannot be used there: {refusal}")
    why = f"there are no kernels for {depot.link.device.name} ({'; '.join(missing)})"
    if wanted or is_named():
        remedy = "Export the bundle --with-kernels ARCH for the device's architecture, and give --trust if you made it."
        raise TargetUnavailable(
            f"there are no kernels for {depot.link.device.name}", note="; ".join(missing), remedy=remedy
        )
    return None, why


def _libraries(architecture: str, carried: Carried | None, missing: list[str]) -> Iterator[tuple[Path, str]]:
    """Yield what could be loaded on a device, and add what could not, and why, to `missing`."""
    if architecture not in ARCHITECTURES.values():  # it becomes part of a path
        missing.append(f"there are none for {architecture}")
        return
    installed = cpu.find()
    try:
        unfit = "actx was installed here without them" if installed is None else why_not_for(installed, architecture)
    except OSError as error:
        unfit = str(error.strerror)
    if installed is not None and not unfit:
        yield installed, "the kernels that are installed here"
    else:
        missing.append(f"not those that are installed here: {unfit}")
    name = library_name(architecture)
    if is_named() or carried is None or name not in carried.manifest.files or not (carried.folder / name).is_file():
        return
    if not carried.trust:
        missing.append(f"{name} of the bundle is code that would run with your rights there, and --trust was not given")
        return
    verify(carried.folder, carried.manifest)
    yield carried.folder / name, "the bundle's own kernels"


class _Input(NamedTuple):
    """An input as ONNX Runtime describes it."""

    name: str
    type: str
    shape: list[int | str | None]


def _tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _elsewhere(depot: Depot, what: str, remedy: str) -> TargetUnavailable:
    return TargetUnavailable(
        f"{what}, and cannot be run on {depot.link.device.name} from here",
        note="over ssh, ONNX Runtime on a CPU is what runs: bundles for ort-cpu and onnx, and ONNX files",
        remedy=f"Copy it to the device, and run actx there. {remedy}".strip(),
    )
