"""The energy of a run, by what Linux tells: counters of the CPU's packages, or the sensor of what a module draws.

1. The counters of x86 packages (RAPL, running average power limit) count microjoules. They begin again at a known value.
2. NVIDIA's Jetson modules measure the power of their input with an INA3221; it is what `tegrastats` prints. It is read all the
   time, and the energy is the integral by the trapezoidal rule.
3. The energy has all in it that ran meanwhile, the idle parts included. Nothing is estimated: without a meter there is none.

It needs the standard library of Python 3.8 alone: it is sent to devices.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from actx.exporter.sensors import ROOT, read_number, read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_ROUNDS = 4
# Rails of an INA3221 that carry all that the module takes.
_INPUTS = ("VDD_IN", "POM_5V_IN")
_SAMPLE_S = 0.01


class NotMeteredError(Exception):
    """There is no meter, or it cannot be read; the argument says why, in words."""


class Packages:
    """The counters of the CPU's packages.

    Args:
        zones: their folders in /sys/class/powercap.
    """

    of = "the CPU packages"

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = zones
        self._ends = [self._value(zone / "max_energy_range_uj") + 1 for zone in zones]
        self.begin()

    def begin(self) -> None:
        """Begin to measure."""
        self._begun = self._now()

    def end(self) -> int:
        """Return the microjoules since the beginning, which is less than a round of the counters ago."""
        pairs = zip(self._now(), self._begun, self._ends)
        return sum((now - begun) % end for now, begun, end in pairs)

    def _now(self) -> list[int]:
        return [self._value(zone / "energy_uj") for zone in self._zones]

    @staticmethod
    def _value(file: Path) -> int:
        return _required(file, "the energy counter of the CPU may not be read by this user")


class ModuleInput:
    """The sensor of what a module draws.

    Args:
        volts: file of the voltage in millivolts.
        amperes: file of the current in milliamperes.
    """

    of = "the whole module"

    def __init__(self, volts: Path, amperes: Path) -> None:
        self._volts, self._amperes = volts, amperes
        self._samples = [self._sample()]

    def begin(self) -> None:
        """Begin to measure."""
        self._samples = [self._sample()]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Return the microjoules since the beginning."""
        self._done.set()
        self._thread.join()
        self._samples.append(self._sample())
        pairs = zip(self._samples, self._samples[1:])
        return round(sum((after[0] - before[0]) * (before[1] + after[1]) / 2 for before, after in pairs))

    def _watch(self) -> None:
        with contextlib.suppress(NotMeteredError):  # the last sample will say so
            while not self._done.wait(_SAMPLE_S):
                self._samples.append(self._sample())

    def _sample(self) -> tuple[float, int]:
        """Return the time in seconds and the power in microwatts."""
        volts, amperes = (
            _required(file, "the power sensor of the module cannot be read") for file in (self._volts, self._amperes)
        )
        return time.monotonic(), volts * amperes


def find_meter(root: Path = ROOT) -> Packages | ModuleInput:
    """Return what measures energy here.

    Args:
        root: of the file system.

    Raises:
        NotMeteredError: there is nothing, or it cannot be read.
    """
    zones = sorted((root / "sys/class/powercap").glob("*:*"))
    packages = [zone for zone in zones if (read_text(zone / "name") or "").startswith("package-")]
    if packages:
        return Packages(packages)
    for label in sorted((root / "sys/class/hwmon").glob("*/in*_label")):
        if read_text(label) in _INPUTS:
            channel = label.name[len("in") : -len("_label")]
            return ModuleInput(label.with_name(f"in{channel}_input"), label.with_name(f"curr{channel}_input"))
    msg = "there is no energy counter of the CPU and no power sensor of the module"
    raise NotMeteredError(msg)


def measure(
    timers: Sequence[Callable[[], int]], seconds: float, meter: Callable[[], Any] = find_meter
) -> dict[str, Any]:
    """Run models in turns, each alone for so long, and return the energy that was taken meanwhile.

    Args:
        timers: each runs a model once.
        seconds: how long each model runs.
        meter: gives what has `of`, `begin` and `end`.

    Returns:
        `runs` and `microjoules` of each model and `of`, whose energy it is; or `missing`, why there is none.
    """
    runs, microjoules = [0] * len(timers), [0] * len(timers)
    try:
        found = meter()
        for which in list(range(len(timers))) * _ROUNDS:
            timers[which]()
            found.begin()
            try:
                begun = time.monotonic()
                while time.monotonic() - begun < seconds / _ROUNDS:
                    timers[which]()
                    runs[which] += 1
            finally:
                taken = found.end()
            microjoules[which] += taken
    except NotMeteredError as error:
        return {"missing": str(error)}
    return {"runs": runs, "microjoules": microjoules, "of": found.of}


def _required(file: Path, otherwise: str) -> int:
    value = read_number(file)
    if value is None:
        raise NotMeteredError(otherwise)
    return value
