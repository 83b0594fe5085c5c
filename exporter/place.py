"""Where the rounds of a latency measurement are taken: in this process, or on a device (`devices.remote`)."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from actx.exporter import energy, machine, nvml, sensors
from actx.exporter.collection import no_garbage_collection
from actx.exporter.tensorrt.device import bus_address
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
SECONDS_OF_ENERGY = 2.0  # for each model, so that what a counter misses at either end is little


class Place(Protocol):
    """A machine that measures, watched from when this is made."""

    def take_round(
        self, entrants: Sequence[Entrant], orders: Iterable[Sequence[int]], most: int
    ) -> tuple[Times, Times]:
        """Measure one round (see `turns.take_round`)."""

    def describe(self, original: Entrant, artifact: Entrant) -> dict[str, Any]:
        """Return what the machine was like since this was made, as JSON values."""


class Here:
    """The process itself: see `Place`.

    Args:
        gpu: whether the models run on a GPU.
    """

    def __init__(self, *, gpu: bool = False) -> None:
        self._gpu = nvml.find_gpu(bus_address()) if gpu else None
        self._before = self._conditions()
        self._during: list[dict[str, Any]] = []
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
            times = take_round(start, orders, most)
        self._during.append(self._conditions())
        return times

    def describe(self, original: Entrant, artifact: Entrant) -> dict[str, Any]:
        """Return the machine, how it has fared, how many cores others kept busy meanwhile, and the energy of a run."""
        others, after = self._others.cores(), self._conditions()
        timers = [runtime.open(model).timer(feeds) for model, runtime, feeds in (original, artifact)]
        return {
            **machine.describe(),
            "load_average": self._load,
            "others_busy_cores": others,
            **fared(self._before, self._during, after),
            "energy_per_run": energy_per_run(energy.measure(timers, SECONDS_OF_ENERGY, self._meter)),
        }

    def _conditions(self) -> dict[str, Any]:
        now = sensors.conditions(machine.usable_cores())
        return now if self._gpu is None else {**now, "gpu": self._gpu.conditions()}

    def _meter(self) -> Any:
        return self._gpu if self._gpu is not None and self._gpu.has_meter() else energy.find_meter()


def fared(before: dict[str, Any], during: list[dict[str, Any]], after: dict[str, Any]) -> dict[str, Any]:
    """Return how a machine has fared (see `sensors.conditions`), and whether its clock was ever held down, as JSON values."""
    conditions = {"before": before, "during": during, "after": after}
    return {"conditions": conditions, "throttled": sensors.was_throttled([before, *during, after])}


def energy_per_run(measured: dict[str, Any]) -> dict[str, Any]:
    """Return joules per run of what `energy.measure` returned, as JSON values: null where they were not measured."""
    pairs = zip(measured.get("microjoules", (0, 0)), measured.get("runs", (0, 0)), strict=True)
    original, artifact = (1e-6 * taken / runs if runs else None for taken, runs in pairs)
    return {
        "original_joules": original,
        "artifact_joules": artifact,
        "of": measured.get("of"),
        "missing": measured.get("missing"),
    }
