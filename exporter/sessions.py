"""Run several models on the same data: all open at once where they are small, else in turn, so that memory holds the largest.

1. The models that were used last stay open as long as their files are `OPEN_BYTES` together, and one always. What a runtime
   needs for a model is about its file, once more while it is opened.
2. Where not all can be open at once, each runs on as many batches as its outputs leave room for in `HELD_BYTES`, before the
   next one is opened. The one that ran last goes on first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from actx.exporter.bundle import ENGINE_SUFFIX
from actx.exporter.data import cast_feeds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from actx.exporter.data import Arrays, Batch, Data
    from actx.exporter.runtimes.base import Opener, Runner

OPEN_BYTES = 2**31
HELD_BYTES = 2**30


@dataclass(frozen=True)
class Entrant:
    """A model to run.

    Attributes:
        path: its file.
        runtime: what opens it.
        further: names of values inside it that become outputs.
        values: what to return, None for its outputs.
    """

    path: Path
    runtime: Opener
    further: tuple[str, ...] = ()
    values: tuple[str, ...] | None = None


class Sessions:
    """Models that are opened when they are used (1).

    Args:
        entrants: the models.
        most: bytes of files that may be open at once.
    """

    def __init__(self, entrants: Sequence[Entrant], most: int | None = None) -> None:
        self._entrants = entrants
        self._most = OPEN_BYTES if most is None else most
        self._sizes = [file_bytes(entrant.path) for entrant in entrants]
        self._open: dict[int, Runner] = {}  # the one used last is last

    def __getitem__(self, number: int) -> Runner:
        """Return a model, opened.

        Raises:
            ActxError: it cannot be opened.
        """
        session = self._open.pop(number, None)
        if session is None:
            while self._open and self._sizes[number] + sum(self._sizes[other] for other in self._open) > self._most:
                del self._open[next(iter(self._open))]
            entrant = self._entrants[number]
            session = entrant.runtime.open(entrant.path, entrant.further)
        self._open[number] = session
        return session

    def run(self, data: Data, count: int | None = None) -> Iterator[tuple[Batch, list[Arrays]]]:
        """Yield every batch with what each model gives on it (2).

        Args:
            data: made for the first model's inputs; cast to those of the others where these differ.
            count: how many of the models run, the first ones; None for all.

        Raises:
            ActxError: a model cannot be opened, or run on the data.
        """
        numbers = range(len(self._entrants) if count is None else count)
        together = sum(self._sizes) <= self._most
        batches = data.batches()
        while True:
            opened = [number for number in reversed(self._open) if number in numbers]
            first, *others = [*opened, *(number for number in numbers if number not in self._open)]
            held: list[tuple[Batch, dict[int, Arrays]]] = []
            room = HELD_BYTES // len(numbers)
            while room > 0 and (batch := next(batches, None)) is not None:
                found = self._run(first, batch)
                held.append((batch, {first: found}))
                room = 0 if together else room - sum(array.nbytes for array in found.values())
            if not held:
                return
            for number in others:
                for batch, given in held:
                    given[number] = self._run(number, batch)
            for batch, given in held:
                yield batch, [given[number] for number in numbers]

    def _run(self, number: int, batch: Batch) -> Arrays:
        session = self[number]
        return session.run(cast_feeds(batch.feeds, session.inputs), self._entrants[number].values)


def file_bytes(model: Path) -> int:
    """Return the size of a model's file and of the external data that it refers to; 0 of what cannot be read."""
    try:
        size = model.stat().st_size
        if model.suffix == ENGINE_SUFFIX:
            return size
        graph = onnx.load(model, load_external_data=False).graph
    except Exception:  # noqa: BLE001 - the parser has no exception of its own; opening it will say what is wrong
        return 0
    entries = (entry for tensor in graph.initializer for entry in tensor.external_data if entry.key == "length")
    return size + sum(int(entry.value) for entry in entries)
