"""Build a serialized engine from a graph.

The engine is strongly typed: every tensor is computed in the type that the graph gives it. Layers keep the names of their
nodes (`ProfilingVerbosity.DETAILED`), by which times and types are mapped to sites.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from actx.exporter.errors import ActxError, TargetUnavailable, UsageError
from actx.exporter.tensorrt.device import find_gpu
from actx.exporter.tensorrt.library import Library, find, logger, title
from actx.exporter.tensorrt.network import Network, check_graph, parse
from actx.exporter.tensorrt.options import BuildOptions
from actx.exporter.tensorrt.plugins import register_plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from actx.exporter.tensorrt.shapes import Profile

Progress: TypeAlias = "Callable[[int, int], None]"

DEFAULT = BuildOptions()
# A word in the library's message, and what helps.
_REMEDIES = {
    "workspace": "Give it a larger --workspace.",
    "memory": "Close other programs on the device, give it a smaller --workspace, or a smaller largest shape.",
    "Turing": "Leave 7.5 out of --compute-capability, or build it for a model in float16 alone.",
    "volume": "State smaller ranges with --shape.",
    "profile": "State ranges that the model takes with --shape.",
    "lean": "Install the library's lean runtime, or leave --version-compatible out.",
}  # fmt: skip
_GENERAL_REMEDY = "Export the model without what the note names, or for another target."


@dataclass(frozen=True)
class Built:
    """An engine that was written.

    Attributes:
        engine: the file.
        facts: JSON values for the manifest: `target`, `graph` (the file that it was built from), `plugins` (names of its nodes
            that are such), `library`, `version`, `options`, `inputs`, `ranges` and
            `shapes` (`Profile.to_dict`), `compute_capabilities` (empty: the library's default, see `runs_on`),
            `gpu` (the one it was built on, or None), `bytes`, `seconds`, `strongly_typed`, `tf32`.
        notes: what was assumed, for the user.
    """

    engine: Path
    facts: dict[str, Any]
    notes: tuple[str, ...]


def build(
    graph: Path,
    engine: Path,
    *,
    target: str,
    profile: Profile,
    options: BuildOptions = DEFAULT,
    progress: Progress | None = None,
) -> Built:
    """Build an engine.

    Args:
        graph: an ONNX file of standard ops, and for `trt` plugins, its external data beside it.
        engine: the file to write. It is there whole or not at all.
        target: `trt` or `trt-rtx`.
        profile: the shapes that it takes (`shapes.resolve`).
        options: how it is built.
        progress: called with the number of steps of the library's work that are done and to do.

    Raises:
        TargetUnavailable: the library is not there, or what was asked for needs a GPU.
        UsageError: the target does not have an option, or the model not an input of the profile.
        ActxError: the graph cannot be built, or the file not be written.
    """
    options.check(target)
    plugins = check_graph(graph, title(target), takes_plugins=target == "trt")  # known without the library too
    library = find(target)
    if plugins:
        register_plugins()
    _check_capabilities(library, options)
    log = logger(library)
    with interrupts_held() as held:
        network = parse(library, _builder(library, log), graph, log)
        config = network.builder.create_builder_config()
        _configure(library, network, config, options)
        _add_profile(network, config, profile)
        cache = _timing_cache(config, options)
        monitor = _monitor(library, progress, held)
        config.progress_monitor = monitor
        start = time.perf_counter()
        serialized = network.builder.build_serialized_network(network.definition, config)
        seconds = time.perf_counter() - start
    if monitor.raised is not None:
        raise monitor.raised
    if serialized is None:
        raise _refused(library, options, log)
    write_whole(engine, memoryview(serialized))
    if cache is not None and options.timing_cache is not None:
        write_whole(options.timing_cache, memoryview(config.get_timing_cache().serialize()))
    facts = {**_facts(library, profile, options), "graph": graph.name, "plugins": list(plugins)}
    return Built(engine, {**facts, "bytes": serialized.nbytes, "seconds": round(seconds, 3)}, profile.notes)


def runs_on(facts: dict[str, Any], capability: str) -> bool:
    """Tell whether an engine can run on a GPU of a compute capability, as far as what is known of its build says.

    TensorRT-RTX builds for 8.0 and later where nothing is asked for (NVIDIA, TensorRT-RTX, "CPU-Only AOT and TensorRT-RTX
    Engines"). TensorRT builds for the GPU that is there.
    """
    number = _number(capability)
    if asked := facts["compute_capabilities"]:
        return capability in asked
    if facts["target"] == "trt-rtx" or facts["options"]["hardware_compatibility"] == "ampere+":
        return number >= (8, 0)
    built_on = facts.get("gpu")
    return built_on is None or built_on["compute_capability"] == capability


def write_whole(path: Path, content: memoryview) -> None:
    """Write a file beside its place and rename it when it is complete.

    Raises:
        ActxError: it cannot be written; what was at the place is there as before.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        note = f"{error.strerror}; it needs {content.nbytes} bytes"
        raise ActxError(f"cannot write '{path}'", note=note, remedy="Check the free space and permissions.") from error


def _builder(library: Library, log: Any) -> Any:
    try:
        return library.module.Builder(log)
    except Exception as error:  # the binding raises TypeError where its factory gives nothing
        raise _refused(library, DEFAULT, log) from error


def _check_capabilities(library: Library, options: BuildOptions) -> None:
    known = library.compute_capabilities
    if unknown := [capability for capability in options.compute_capabilities if capability not in known]:
        raise UsageError(
            f"{library} cannot build for compute capability {unknown[0]}",
            note=f"available: {', '.join(known)}",
            remedy="Choose of these, or target trt on that device.",
        )


def _configure(library: Library, network: Network, config: Any, options: BuildOptions) -> None:
    trt = library.module
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    flags = {
        "TF32": options.tf32,
        "VERSION_COMPATIBLE": options.version_compatible,
        "STRIP_PLAN": options.strip_weights,
        "REFIT": options.refit,
        "GPU_FALLBACK": options.dla_core is not None,
    }
    for name, wanted in flags.items():
        if wanted:
            config.set_flag(getattr(trt.BuilderFlag, name))
        elif hasattr(trt.BuilderFlag, name):
            config.clear_flag(getattr(trt.BuilderFlag, name))
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.hardware_compatibility != "none":
        level = {"ampere+": "AMPERE_PLUS", "same-cc": "SAME_COMPUTE_CAPABILITY"}[options.hardware_compatibility]
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if options.dla_core is not None:
        _use_dla(trt, network.builder, config, options.dla_core)
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for i, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), i)


def _use_dla(trt: Any, builder: Any, config: Any, core: int) -> None:
    if core >= builder.num_DLA_cores:
        raise TargetUnavailable(
            f"there is no DLA core {core}",
            note=f"this machine has {builder.num_DLA_cores}",
            remedy="Leave --dla out, or build on the device that has it.",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core


def _add_profile(network: Network, config: Any, profile: Profile) -> None:
    definition = network.definition
    inputs = {tensor.name: tensor for tensor in (definition.get_input(i) for i in range(definition.num_inputs))}
    if shapes := [name for name, tensor in inputs.items() if tensor.is_shape_tensor]:
        raise ActxError(
            f"the values of input '{shapes[0]}' are sizes of other tensors",
            note="an engine would be built for a range of its values, which cannot be stated",
            remedy="Export the model with dynamic dimensions instead of that input.",
        )
    wanted = {name: shape for name, shape in profile.shapes().items() if name in inputs}
    if missing := sorted(set(inputs) - set(wanted)):
        raise UsageError(f"the profile has no shape for input '{missing[0]}'", note=f"it has {', '.join(wanted)}")
    if not wanted:
        return
    optimization = network.builder.create_optimization_profile()
    for name, shape in wanted.items():
        _check_dims(name, tuple(inputs[name].shape), shape[0])
        try:
            optimization.set_shape(name, *shape)
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"input '{name}' does not take the shapes {shape}", note=str(error)) from error
    if config.add_optimization_profile(optimization) < 0:
        note = network.log.errors[-1] if network.log.errors else ""
        raise UsageError("the library refuses the shapes", note=note, remedy=_REMEDIES["profile"])


def _check_dims(name: str, dims: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Check a shape of the profile against the network's, where dynamic dimensions are negative."""
    if len(dims) != len(shape) or any(dim not in {size, -1} for dim, size in zip(dims, shape, strict=True)):
        raise UsageError(
            f"the profile is for other dimensions of input '{name}'",
            note=f"it says {list(shape)}, the model has {list(dims)}, where -1 is dynamic",
            remedy="Describe the inputs as the graph has them.",
        )


def _timing_cache(config: Any, options: BuildOptions) -> Any:
    """Return the cache that the build reads and adds to; None where none was asked for."""
    file = options.timing_cache
    if file is None:
        return None
    try:
        known = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise ActxError(f"cannot read '{file}'", note=str(error.strerror), remedy="Check its permissions.") from error
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        remedy = "Name a new file, or delete it: it is measured anew."
        raise ActxError(f"the timing cache '{file}' is of another device or version", remedy=remedy)
    return cache


@contextlib.contextmanager
def interrupts_held() -> Iterator[Sequence[int]]:
    """Give the signals to end that came within the block, which take effect at its end.

    What they raise in a callback, such as the logger's, the library would print and go on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield ()  # signals are handled in the main thread alone
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield came
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            handlers[signal.Signals(came[0])](came[0], None)


def _monitor(library: Library, progress: Progress | None, held: Sequence[int]) -> Any:
    """Return what tells of the outermost phase of the build, the one with the steps.

    The library is told to stop where a signal is `held`, or where `progress` raises: that is the attribute `raised`, which
    the caller raises. The library itself would print it and go on.
    """

    class Monitor(library.module.IProgressMonitor):  # type: ignore[misc, name-defined]  # the base is known at run time only
        """Counts the steps of phases that lie in no other."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.raised: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if progress is not None and phase_name in self.steps:
                    progress(step + 1, self.steps[phase_name])
            except BaseException as error:  # noqa: BLE001 - raised again once the library has stopped
                self.raised = error
            return self.raised is None and not held

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def _refused(library: Library, options: BuildOptions, log: Any) -> ActxError:
    """Say why there is no engine: no GPU where the library needs one, else what it said last."""
    gpu, reason = find_gpu()
    note = log.errors[-1] if log.errors else ""
    if gpu is None and (options.strip_weights or options.refit):
        what = f"{library} needs a GPU to build an engine whose weights can be replaced"
        remedy = "Build it on a machine with one, or leave --strip-weights and --refit out."
        return TargetUnavailable(what, note=f"{reason}; {note}", remedy=remedy)
    if gpu is None and library.target == "trt":
        remedy = "Run actx build on the device that runs the engine."
        return TargetUnavailable(f"{library} cannot build here", note=f"{reason}; {note}", remedy=remedy)
    remedy = next((text for word, text in _REMEDIES.items() if word in note), _GENERAL_REMEDY)
    return ActxError(f"{library} cannot build an engine", note=note, remedy=remedy)


def _facts(library: Library, profile: Profile, options: BuildOptions) -> dict[str, Any]:
    gpu, _ = find_gpu()
    built_on = None if gpu is None else {"name": gpu.name, "compute_capability": gpu.compute_capability}
    return {
        "target": library.target,
        "library": library.module.__name__,
        "version": library.version,
        "options": options.to_dict(),
        **profile.to_dict(),
        "compute_capabilities": list(options.compute_capabilities),
        "gpu": built_on,
        "strongly_typed": True,
        "tf32": options.tf32,
    }


def _number(capability: str) -> tuple[int, int]:
    major, _, minor = capability.partition(".")
    return int(major), int(minor)
