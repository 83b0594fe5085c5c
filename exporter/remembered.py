"""Run a model once on a batch, however often others are compared with it: what it gave is kept, as far as there is room."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from actx.exporter.data import digest
from actx.exporter.sessions import HELD_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from actx.exporter.data import Arrays, InputSpec
    from actx.exporter.runtimes.base import Opener, Runner


class Remembered:
    """Opens models, which must not change meanwhile, once they have to run. Values inside them are not kept.

    Args:
        runtime: what runs them.
        most: bytes of outputs that are kept.
    """

    def __init__(self, runtime: Opener, most: int = HELD_BYTES) -> None:
        self.runtime = runtime
        self.ends: dict[Path, tuple[tuple[InputSpec, ...], tuple[str, ...]]] = {}
        self._given: dict[tuple[Path, tuple[str, ...], str], Arrays] = {}
        self._left = most

    @property
    def taps(self) -> bool:
        """Whether values inside the graph can be given as outputs."""
        return self.runtime.taps

    def open(self, model: Path, outputs: Sequence[str] = ()) -> Runner:
        """Return a model as if it were open (see `Opener.open`)."""
        return self.runtime.open(model, outputs) if outputs else _Model(self, model)

    def run(self, model: _Model, feeds: Mapping[str, NDArray[Any]], names: tuple[str, ...]) -> Arrays:
        """Return what a model gives, or gave."""
        key = model.path, names, digest(feeds)
        if key not in self._given:
            found = model.session.run(feeds, names)
            size = sum(array.nbytes for array in found.values())
            if size > self._left:
                return found
            self._left -= size
            self._given[key] = found
        return dict(self._given[key])


class _Model:
    """A model that is opened when it is needed."""

    def __init__(self, memory: Remembered, path: Path) -> None:
        self._memory = memory
        self.path = path

    @cached_property
    def session(self) -> Runner:
        return self._memory.runtime.open(self.path)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return self._ends[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._ends[1]

    @property
    def _ends(self) -> tuple[tuple[InputSpec, ...], tuple[str, ...]]:
        if self.path not in self._memory.ends:
            self._memory.ends[self.path] = tuple(self.session.inputs), tuple(self.session.outputs)
        return self._memory.ends[self.path]

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        return self._memory.run(self, feeds, self.outputs if outputs is None else tuple(outputs))
