"""What a target is to the pipeline: which graph it takes, what it is built to, and what runs it here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from actx.exporter.bundle import ENGINE_SUFFIX, PORTABLE
from actx.exporter.errors import UsageError
from actx.exporter.kernels import Carried, Kernels, choose_kernels

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from actx.exporter.data import InputSpec
    from actx.exporter.fitting import Form
    from actx.exporter.lift.ops import Op
    from actx.exporter.lower import Native
    from actx.exporter.manifest import EngineEntry
    from actx.exporter.quantize.source import Quantized, Source
    from actx.exporter.runtimes.base import Runtime
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions
    from actx.exporter.tensorrt.options import BuildOptions
    from actx.exporter.tensorrt.shapes import Profile


# Called with how much of a step is done and how much there is to do.
Progress: TypeAlias = Callable[[int, int], None]
Chooser: TypeAlias = Callable[[bool | None, Carried | None], tuple[Kernels | None, str]]


@dataclass(frozen=True)
class Files:
    """What is in a bundle's folder.

    Attributes:
        folder: the bundle's.
        graphs: file names by role, as in its manifest.
        engines: what was built, by target, as in its manifest.
        quant: the scheme that its target's graph was quantized with, None for none.
        carried: the libraries that the bundle carries.
        trust: whether code that came with the bundle may run: there is none where it is being made.
        disabled_optimizers: of ONNX Runtime, that its target's graph is faster without.
        choose: returns the kernels of the machine that runs it (see `choose_kernels`).
    """

    folder: Path
    graphs: Mapping[str, str]
    engines: Mapping[str, EngineEntry]
    quant: str | None = None
    carried: Carried | None = None
    trust: bool = True
    disabled_optimizers: tuple[str, ...] = ()
    choose: Chooser = choose_kernels


@dataclass(frozen=True)
class Graph:
    """What to run, and in what.

    Attributes:
        path: an ONNX file or an engine.
        runtime: what opens it.
        reason: why this one.
        on_target: whether this is what the target's devices run, so that its latency is the target's.
        kernels: whether it needs the actx kernels.
        source: the graph that an engine was built from, None for a graph.
    """

    path: Path
    runtime: Runtime
    reason: str
    on_target: bool = True
    kernels: bool = False
    source: Path | None = None

    @property
    def onnx(self) -> Path | None:
        """The graph itself, or that of the engine; None of an engine by itself."""
        return self.source or (None if self.path.suffix == ENGINE_SUFFIX else self.path)


@dataclass(frozen=True)
class Abilities:
    """What can be done with a target on this machine; an empty text says yes, any other why not.

    Attributes:
        build: make the artifact.
        run: run it, for `check` and `session`.
        profile: measure its latency.
        versions: of what it needs, by name.
        install: what to do for what cannot be done; empty where nothing is missing.
    """

    build: str = ""
    run: str = ""
    profile: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    install: str = ""


@dataclass(frozen=True)
class BuildRequest:
    """What an engine is built for.

    Attributes:
        profile: the shapes that it takes.
        options: of the builder.
    """

    profile: Profile
    options: BuildOptions


class Target(ABC):
    """A runtime on a device class.

    Attributes:
        name: as it is called on the command line.
        summary: what it is, in a few words.
        fast: kinds of sites that it runs as one op about as fast as what would replace them: not rewritten unasked.
        forms: for the other kinds, the forms that are tried unasked, from the cheapest; none where it is best left alone.
        candidates: the forms that the search tries at a site beside keeping it (row-wise sites have one form of their own).
        native: what its own graph is written in, beside the portable one (see `lower`); None where that is what it takes.
        schemes: values of ``--quant``; without a scheme the graph keeps the source's types.
        optimizers: of ONNX Runtime, that a graph may be faster without: the ops, by domain and type, that each writes.
        on_devices: whether ONNX Runtime's CPU provider on a device runs it.
        has_kernels: whether there are actx kernels for it.
        gpu_architectures: values of ``--with-kernels`` that its own graph is compiled for, beside libraries for the CPU's.
        has_engine: whether an engine is built for it, from the portable graph in the types of a scheme.
        has_plugins: whether that engine can compute a site by a plugin, an actx node with its code (see `plugins`).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    fast: ClassVar[frozenset[str]] = frozenset()
    forms: ClassVar[tuple[Form, ...]] = ()
    candidates: ClassVar[tuple[Form, ...]] = ()
    native: ClassVar[Native | None] = None
    schemes: ClassVar[tuple[str, ...]] = ()
    optimizers: ClassVar[Mapping[str, frozenset[Op]]] = {}
    on_devices: ClassVar[bool] = False
    has_kernels: ClassVar[bool] = False
    gpu_architectures: ClassVar[tuple[str, ...]] = ()
    has_engine: ClassVar[bool] = False
    has_plugins: ClassVar[bool] = False

    @abstractmethod
    def abilities(self) -> Abilities:
        """Return what can be done with it on this machine."""

    @abstractmethod
    def graph(self, files: Files, options: RuntimeOptions, kernels: bool | None) -> Graph:
        """Return what this machine runs of a bundle that was made for it.

        Args:
            files: the bundle.
            options: how it is run.
            kernels: whether the graph of actx nodes must be taken, or must not; None for where it can.

        Raises:
            TargetUnavailable: what was asked for explicitly cannot be had.
            UsageError: kernels were asked for and there are none for this target.
        """

    def remarks(self, inputs: Sequence[InputSpec], *, rewritten: bool) -> list[str]:  # noqa: ARG002
        """Return what its users should know of a model with such inputs, of which sites were rewritten or not."""
        return []

    def require(self) -> None:  # noqa: B027 - most targets are built with what actx itself needs
        """Check that its artifact can be built here.

        Raises:
            TargetUnavailable: it cannot; the graph in the bundle is then all that is made.
        """

    def require_plugins(self) -> int:
        """Check that plugins can be compiled, built and run here, and return the GPU's compute capability times 10.

        Raises:
            TargetUnavailable: they cannot.
        """
        raise NotImplementedError

    def compile(self, graph: ir.Model, architectures: Sequence[str]) -> ir.Model:  # noqa: ARG002
        """Return its own graph as its devices take it; most take it as it is.

        Args:
            graph: it is not changed.
            architectures: of its `gpu_architectures`.

        Raises:
            TargetUnavailable: it cannot be compiled on this machine.
            ActxError: a node cannot be.
        """
        return graph

    def quantize(self, scheme: str, source: Source) -> Quantized | None:  # noqa: ARG002
        """Return the target's graph in one of its schemes; None where the scheme is a setting of the runtime.

        Raises:
            UsageError: the scheme does not apply to the model, or there is no data.
            ActxError: the model cannot be run on the data.
        """
        return None

    def changes_graph(self, scheme: str | None) -> bool:
        """Tell whether a scheme is in the graph, and not a setting of the runtime."""
        return scheme is not None

    def check_options(self, options: BuildOptions) -> None:
        """Check that the target's builder has the options that are set.

        Raises:
            UsageError: it has not.
        """
        raise NotImplementedError

    def command(self, graph: Path, request: BuildRequest) -> str:
        """Return the command of the library's own tool that builds the same, in the bundle's folder and to beside it."""
        raise NotImplementedError

    def build(
        self, graph: Path, engine: Path, request: BuildRequest, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Build an engine from the target's graph and return the facts of it, as JSON values.

        Raises:
            TargetUnavailable: it cannot be built on this machine.
            UsageError: the options or shapes are not for this library.
            ActxError: the library cannot take the graph, or the disk is full.
        """
        raise NotImplementedError


def portable(files: Files, options: RuntimeOptions, reason: str, *, on_target: bool = True) -> Graph:
    """Return the graph of standard ops, in ONNX Runtime."""
    return Graph(files.folder / PORTABLE, options, reason, on_target=on_target)


def refuse_kernels(files: Files, kernels: bool | None) -> None:
    """Raise where kernels were asked for and the bundle has no graph for them."""
    if kernels:
        raise UsageError(
            f"{files.folder} has no graph of actx nodes",
            note=f"its graphs: {', '.join(files.graphs.values())}",
            remedy="Leave --kernels out: no site was rewritten, or the target has no kernels.",
        )
