"""PyTorch, for the program that a graph was converted from: it is run to compare what it gives, and never timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actx.exporter.errors import ActxError
from actx.exporter.load.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch.export import ExportedProgram

    from actx.exporter.data import Arrays, InputSpec
    from actx.exporter.load.mapped import MappedWeights


@dataclass(frozen=True)
class Program:
    """A program with the names that its inputs and outputs have in the graph that was made of it.

    Attributes:
        program: as torch.export gives it.
        inputs: of the graph, in the program's order.
        outputs: likewise.
        weights: what its weights are mapped from; they stay in memory for the length of a run.
    """

    program: ExportedProgram
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    weights: MappedWeights

    @property
    def taps(self) -> bool:
        """Its values have other names than the graph's."""
        return False

    def open(self, model: Path, outputs: Sequence[str] = ()) -> ProgramSession:  # noqa: ARG002 - it is open
        """Return the program, ready to run (see `Opener.open`).

        Raises:
            ActxError: it takes other inputs than the graph.
        """
        takes = self.program.call_spec.in_spec.num_leaves
        if takes != len(self.inputs):
            raise ActxError(
                "the program cannot be run on the data",
                note=f"it takes {takes} inputs, and the graph that was made of it {len(self.inputs)}",
                remedy="Leave --attribute out.",
            )
        structure = self.program.call_spec.in_spec
        return ProgramSession(self.program.module(), structure, self.inputs, self.outputs, self.weights)


@dataclass(frozen=True)
class ProgramSession:
    """A program that can be run.

    Attributes:
        module: what runs it.
        structure: of its arguments.
        inputs: name, type and dimensions of what it takes.
        outputs: names of what it gives.
        weights: see `Program`.
    """

    module: Callable[..., Any]
    structure: Any
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    weights: MappedWeights

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Run once (see `Runner.run`).

        Raises:
            ActxError: it cannot be run on the feeds, or gives other outputs than the graph.
        """
        import torch  # noqa: PLC0415 - the program has imported it
        from torch.utils import _pytree  # noqa: PLC0415

        tensors = [torch.from_numpy(feeds[spec.name]) for spec in self.inputs]
        args, kwargs = _pytree.tree_unflatten(tensors, self.structure)
        try:
            with torch.no_grad(), quiet():
                found = self.module(*args, **kwargs)
        except Exception as error:
            what = "the program cannot be run on the data"
            raise ActxError(what, note=str(error), remedy="Compare the data with what it was exported with.") from error
        self.weights.drop()
        given = [value for value in _pytree.tree_leaves(found) if isinstance(value, torch.Tensor)]
        if len(given) != len(self.outputs):
            note = f"it gives {len(given)}, and the graph {', '.join(self.outputs)}"
            raise ActxError("the program has other outputs than its graph", note=note, remedy="Leave --attribute out.")
        named = {name: _array(value) for name, value in zip(self.outputs, given, strict=True)}
        return {name: named[name] for name in outputs or self.outputs}


def _array(value: Any) -> NDArray[Any]:
    """Return a tensor as numpy has it: bfloat16, which that lacks, as float32."""
    import torch  # noqa: PLC0415

    plain = value.float() if value.dtype is torch.bfloat16 else value
    array: NDArray[Any] = plain.numpy()
    return array
