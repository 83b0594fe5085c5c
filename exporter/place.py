"""Where the rounds of a latency measurement are taken: in this process, or on a device (`devices.remote`)."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from actx.exporter import machine
from actx.exporter.collection import no_garbage_collection
from actx.exporter.turns import take_round

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from actx.exporter.data import Arrays
    from actx.exporter.runtimes.base import Runtime
    from actx.exporter.turns import Opened

# A model in a round, what it is run in and on.
Entrant: TypeAlias = "tuple[Path, Runtime, Arrays]"
Times: TypeAlias = list[list[int]]


class Place(Protocol):
    """A machine that measures, watched from when this is made."""

    def take_round(
        self, entrants: Sequence[Entrant], orders: Iterable[Sequence[int]], most: int
    ) -> tuple[Times, Times]:
        """Measure one round (see `turns.take_round`)."""

    def describe(self, original: Entrant, artifact: Entrant) -> dict[str, Any]:
        """Return what the machine was like since this was made, as JSON values."""


class Here:
    """The process itself: see `Place`."""

    def __init__(self) -> None:
        self._load = machine.load_average()
        self._others = machine.Others()

    def take_round(
        self, entrants: Sequence[Entrant], orders: Iterable[Sequence[int]], most: int
    ) -> tuple[Times, Times]:
        """Measure one round (see `turns.take_round`)."""

        def start(which: int) -> Opened:
            model, runtime, feeds = entrants[which]
            session = runtime.open(model)
            return lambda: session.run(feeds), lambda: session.timer(feeds)  # the first run has its checks

        gc.collect()
        with no_garbage_collection():
            return take_round(start, orders, most)

    def describe(
        self,
        original: Entrant,  # noqa: ARG002 - what is known of this machine does not depend on them
        artifact: Entrant,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Return the machine, its load average before, and how many cores others kept busy meanwhile."""
        return machine.describe() | {"load_average": self._load, "others_busy_cores": self._others.cores()}
