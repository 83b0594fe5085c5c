"""What a machine is, and how it fares: its clocks, temperatures and throttling, as Linux tells them in /sys and /proc.

What the system does not tell is None. Nothing is estimated.

It needs the standard library of Python 3.8 alone: it is sent to devices.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path("/")
_CPU = "sys/devices/system/cpu"
# The firmware of a Raspberry Pi: bits 0 to 3 are under-voltage, capped clock, throttled, soft limit of the temperature, now.
_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
_FIRMWARE_NOW = 0b1111
# Of NVIDIA Jetson: how often a rail's current was too high, and clocks were lowered.
_OVER_CURRENT = "*/oc*_event_cnt"
_COOLS_CPU = re.compile(r"cpufreq|^Processor$|cpu", re.IGNORECASE)


def model_name(root: Path = ROOT) -> str | None:
    """Return the name of the board or the machine."""
    for tree in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if name := read_text(root / tree):
            return name
    parts = [read_text(root / "sys/class/dmi/id" / part) for part in ("sys_vendor", "product_name")]
    return " ".join(part for part in parts if part) or None


def conditions(cores: list[int], root: Path = ROOT) -> dict[str, Any]:
    """Return how the device fares now, as JSON values; None for what it does not tell.

    Args:
        cores: numbers of the cores that are of interest.
        root: of the file system.

    Returns:
        `governors` of the cores; `clocks_mhz` and `limits_mhz` of every core, now and at most allowed now; `temperatures` in
        degrees Celsius by sensor; `throttle_events`, how often the cores' own thermal control and the board's over-current
        protection have stepped in since the start; `throttled`, whether the clock is held down now.
    """
    clocks, limits = (
        [read_number(root / _CPU / f"cpu{core}/cpufreq/{file}") for core in cores]
        for file in ("scaling_cur_freq", "scaling_max_freq")
    )
    counters = [root / _CPU / f"cpu{core}/thermal_throttle/core_throttle_count" for core in cores]
    events = [read_number(counter) for counter in (*counters, *(root / "sys/class/hwmon").glob(_OVER_CURRENT))]
    governors = [read_text(root / _CPU / f"cpu{core}/cpufreq/scaling_governor") for core in cores]
    return {
        "governors": [governor for governor in governors if governor is not None] or None,
        "clocks_mhz": _mhz(clocks),
        "limits_mhz": _mhz(limits),
        "temperatures": _temperatures(root) or None,
        "throttle_events": sum(event for event in events if event is not None)
        if any(e is not None for e in events)
        else None,
        "throttled": _throttled(root),
    }


def was_throttled(fared: Sequence[Mapping[str, Any]]) -> bool | None:
    """Tell of conditions, one after the other, whether the clock was ever held down; None where nothing tells."""
    events = [one["throttle_events"] for one in fared if one["throttle_events"] is not None]
    told = [part["throttled"] for one in fared for part in (one, one.get("gpu", {"throttled": None}))]
    known = [held for held in told if held is not None]
    if events:
        known.append(events[-1] > events[0])
    return any(known) if known else None


def read_number(file: Path) -> int | None:
    """Return the integer that a file holds; None where it cannot be read or holds none."""
    text = read_text(file)
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None


def read_text(file: Path) -> str | None:
    """Return the text of a file without what ends it; None where it cannot be read or is empty."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.strip("\0\n ") or None


def _throttled(root: Path) -> bool | None:
    states = [read_number(zone / "cur_state") for zone in _zones(root, "cooling_device*") if _cools_cpu(zone)]
    firmware = read_text(root / _FIRMWARE)
    known = [state > 0 for state in states if state is not None]
    if firmware is not None and re.fullmatch(r"(0x)?[0-9a-f]+", firmware):
        known.append(bool(int(firmware, 16) & _FIRMWARE_NOW))
    return any(known) if known else None


def _cools_cpu(zone: Path) -> bool:
    return bool(_COOLS_CPU.search(read_text(zone / "type") or ""))


def _temperatures(root: Path) -> dict[str, float]:
    """Return what thermal zones measure, and hardware monitors, which have them where there are no zones."""
    found: dict[str, float] = {}
    for zone in _zones(root, "thermal_zone*"):
        _add(found, read_text(zone / "type") or zone.name, read_number(zone / "temp"))
    if not found:
        for sensor in sorted((root / "sys/class/hwmon").glob("*/temp*_input")):
            label = read_text(sensor.with_name(sensor.name.replace("_input", "_label"))) or read_text(
                sensor.with_name("name")
            )
            _add(found, label or sensor.name, read_number(sensor))
    return found


def _add(found: dict[str, float], name: str, millidegrees: int | None) -> None:
    """Add a temperature; of several sensors of one name, each with a number."""
    if millidegrees is not None:
        same = sum(1 for other in found if other == name or other.startswith(f"{name} "))
        found[f"{name} {same + 1}" if same else name] = millidegrees / 1000


def _zones(root: Path, pattern: str) -> list[Path]:
    return sorted((root / "sys/class/thermal").glob(pattern), key=lambda zone: (len(zone.name), zone.name))


def _mhz(kilohertz: list[int | None]) -> list[float] | None:
    known = [value / 1000 for value in kilohertz if value is not None]
    return known or None
