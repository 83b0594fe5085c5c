"""What a runtime is to the steps that run models: it opens a file, runs it, times its nodes and says what it is.

ONNX Runtime, OpenVINO and TensorRT each have one module beside this one. A runtime is a small frozen value that can be
pickled: a fresh process measures memory with it (`footprint`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from actx.exporter.metrics import json_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from actx.exporter.data import Arrays, InputSpec


class Runner(Protocol):
    """An open model that can be run."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Name, type and dimensions of what it takes."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives, in the graph's order; those that were added come last."""

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Run once and return the outputs by name, in the order asked for; None for all of the graph's.

        Raises:
            ActxError: the feeds do not fit, a node fails, or an output is no numeric tensor.
        """


class Session(Runner, Protocol):
    """An open model that can be timed too."""

    def timer(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], int]:
        """Return what runs once on these feeds and gives the nanoseconds it took, with as little around it as possible."""


class Opener(Protocol):
    """How models are opened, to compare what they give."""

    @property
    def taps(self) -> bool:
        """Whether values inside the graph can be given as outputs."""

    def open(self, model: Path, outputs: Sequence[str] = ()) -> Runner:
        """Open a model.

        Args:
            model: the file; its external data is looked for beside it. Nothing is written there.
            outputs: names of further values of the graph to return, after the graph's own outputs.

        Raises:
            ActxError: the file is missing or damaged, or uses what this runtime does not have.
        """


class Runtime(Opener, Protocol):
    """How models are opened, run and timed."""

    @property
    def name(self) -> str:
        """Of the library and the device: "ONNX Runtime CPU"."""

    @property
    def on_gpu(self) -> bool:
        """Whether an NVIDIA GPU does the work."""

    def open(self, model: Path, outputs: Sequence[str] = ()) -> Session:
        """Open a model (see `Opener.open`)."""

    def node_times(self, model: Path, feeds: Arrays, owners: Mapping[str, str]) -> Breakdown:
        """Run a model under the runtime's own profiler and map its nodes to sites.

        Args:
            model: the file.
            feeds: one array per input.
            owners: the site of every value that a site computes, by the value's name in the model.
        """

    def peak_memory(self, model: Path, feeds: Arrays) -> int | None:
        """Return the bytes that a fresh process needs to open a model and run it once; None where that is unknown."""

    def in_turns(self) -> Runtime:
        """Return it as it is where several sessions take turns: idle threads rest, busy ones keep their cores."""

    def describe(self) -> dict[str, Any]:
        """Return what a measurement depends on besides the model, as JSON values: versions, machine, options."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is run and timed on a GPU; the defaults are those of `trtexec` 11.

    Attributes:
        cuda_graph: whether timed runs launch one CUDA graph instead of every kernel.
        transfers: whether the copies to the device and back are timed.
        spin: whether the host waits by asking again and again instead of asleep.
    """

    cuda_graph: bool = True
    transfers: bool = False
    spin: bool = True


ENGINE_DEFAULT = EngineOptions()


@dataclass(frozen=True)
class NodeTime:
    """Time of one node of the optimized graph.

    Attributes:
        name: the node's name in the optimized graph, or "OP_INDEX" where it has none.
        op_type: the operator, as optimized.
        microseconds_per_run: mean over runs, without the nodes of its subgraphs.
        share: of the sum over all nodes; None where that is 0.
        site: the site it belongs to, or None.
    """

    name: str
    op_type: str
    microseconds_per_run: float
    share: float | None
    site: str | None


@dataclass(frozen=True)
class Breakdown:
    """Time per node of one model.

    Attributes:
        nodes: all nodes, in the order they run.
        sites: share of every site that was asked for; None, not measured, where none of its nodes is left because it
            was folded into a linear op, removed, or lies in a subgraph. Where a bias was fused into an activation, its
            time is in the share.
        activation_share: share of all sites that could be measured together; None, not measured, where none could.
        runs: number of runs measured.
        shapes: shapes of the inputs.
    """

    nodes: tuple[NodeTime, ...]
    sites: dict[str, float | None]
    activation_share: float | None
    runs: int
    shapes: dict[str, tuple[int, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: null for what was not measured."""
        return json_values(asdict(self))


def breakdown(
    times: Sequence[tuple[str, str, float, str | None]],
    owners: Mapping[str, str],
    runs: int,
    shapes: dict[str, tuple[int, ...]],
) -> Breakdown:
    """Return the breakdown of nodes that were timed.

    Args:
        times: name, op type, mean microseconds per run and site of every node, in the order they run.
        owners: as in `Runtime.node_times`: its sites are those that were asked for.
        runs: number of runs measured.
        shapes: shapes of the inputs.
    """
    everything = sum(microseconds for _, _, microseconds, _ in times)
    nodes = tuple(
        NodeTime(name, op_type, microseconds, microseconds / everything if everything else None, site)
        for name, op_type, microseconds, site in times
    )
    shares: dict[str, float | None] = dict.fromkeys(owners.values())
    for node in nodes:
        if node.site is not None and node.share is not None:
            shares[node.site] = (shares[node.site] or 0.0) + node.share
    measured = [share for share in shares.values() if share is not None]
    return Breakdown(nodes, shares, sum(measured) if measured else None, runs, shapes)
