"""The machine that a measurement runs on: its CPU, its clock's governor, what else keeps it busy, and a process's memory.

Read from Linux's /proc and /sys; unknown where these do not say.

It needs the standard library of Python 3.8 alone: it is sent to devices.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

UNKNOWN = "unknown"
_GOVERNOR = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
_WORKING = (0, 1, 2, 5, 6, 7)  # proc(5), /proc/stat: user, nice, system, irq, softirq, steal


def usable_cores() -> list[int]:
    """Return the numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_name() -> str:
    """Return the name of the CPU."""
    names = (
        line.partition(":")[2].strip()
        for line in _read("/proc/cpuinfo").splitlines()
        if line.startswith(("model name", "Model"))
    )
    return next(names, "") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return what the CPU can do by the names of the system, such as `avx2`; empty where they are not known."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return frozenset(found[1].split() if found else ())


def governors() -> list[str]:
    """Return what sets the clock of each usable core, such as `performance` or `powersave`."""
    return [_read(_GOVERNOR.format(core)).strip() or UNKNOWN for core in usable_cores()]


def describe() -> dict[str, Any]:
    """Return what a measurement depends on besides model and runtime, as JSON values."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": len(usable_cores()),
        "governors": governors(),
    }


def load_average() -> list[float] | None:
    """Return the mean number of runnable threads over the last 1, 5 and 15 minutes."""
    try:
        return list(os.getloadavg())
    except (OSError, AttributeError):
        return None


def memory(field: str) -> int | None:
    """Return a figure of this process from /proc/self/status in bytes, such as `VmRSS` or `VmHWM`, its high-water mark."""
    found = re.search(rf"^{field}:\s*(\d+) kB$", _read("/proc/self/status"), re.MULTILINE)
    return None if found is None else 1024 * int(found[1])


def lower_high_water_mark() -> None:
    """Set the high-water mark of this process's memory back to what it holds."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5)


class Others:
    """How busy other processes keep the usable cores, from when this is made."""

    def __init__(self) -> None:
        self._before = self._now()

    def cores(self) -> float | None:
        """Return the mean number of cores that others kept busy, or None where that is unknown."""
        before, now = self._before, self._now()
        elapsed = now[0] - before[0]
        if before[1] is None or now[1] is None or elapsed <= 0:
            return None
        return max((now[1] - before[1]) / elapsed, 0.0)

    @staticmethod
    def _now() -> tuple[float, float | None]:
        """Return the time, and the seconds that the usable cores have worked for others."""
        names = {f"cpu{core}" for core in usable_cores()}
        lines = [line.split() for line in _read("/proc/stat").splitlines()]
        ticks = [int(line[1 + i]) for line in lines if line and line[0] in names for i in _WORKING]
        worked = sum(ticks) / os.sysconf("SC_CLK_TCK") - time.process_time() if ticks else None
        return time.perf_counter(), worked


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
