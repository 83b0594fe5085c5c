"""What a device is, and how it fares: its clocks, temperatures, throttling and energy, as Linux tells them in /sys and /proc.

What the system does not tell is None. Nothing is estimated.

It needs the standard library of Python 3.8 alone: it is sent to devices.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path("/")
_CPU = "sys/devices/system/cpu"
# The firmware of a Raspberry Pi: bits 0 to 3 are under-voltage, capped clock, throttled, soft limit of the temperature, now.
_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
_FIRMWARE_NOW = 0b1111
_COOLS_CPU = re.compile(r"cpufreq|^Processor$|cpu", re.IGNORECASE)


def model_name(root: Path = ROOT) -> str | None:
    """Return the name of the board or the machine."""
    for tree in ("proc/device-tree/model", "sys/firmware/devicetree/base/model"):
        if name := _read(root / tree):
            return name
    parts = [_read(root / "sys/class/dmi/id" / part) for part in ("sys_vendor", "product_name")]
    return " ".join(part for part in parts if part) or None


def conditions(cores: list[int], root: Path = ROOT) -> dict[str, Any]:
    """Return how the device fares now, as JSON values; None for what it does not tell.

    Args:
        cores: numbers of the cores that are of interest.
        root: of the file system.

    Returns:
        `governors` of the cores; `clocks_mhz` and `limits_mhz` of every core, now and at most allowed now; `temperatures` in
        degrees Celsius by sensor; `throttle_events`, how often the cores' own thermal control has stepped in since they were
        started; `throttled`, whether the clock is held down now.
    """
    clocks, limits = (
        [_number(root / _CPU / f"cpu{core}/cpufreq/{file}") for core in cores]
        for file in ("scaling_cur_freq", "scaling_max_freq")
    )
    events = [_number(root / _CPU / f"cpu{core}/thermal_throttle/core_throttle_count") for core in cores]
    governors = [_read(root / _CPU / f"cpu{core}/cpufreq/scaling_governor") for core in cores]
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


def energy(root: Path = ROOT) -> dict[str, tuple[int, int]] | str:
    """Return the counters of the CPU packages: microjoules, and where each begins again. Or why there are none, in words."""
    zones = sorted((root / "sys/class/powercap").glob("*:*"))
    packages = [zone for zone in zones if (_read(zone / "name") or "").startswith("package-")]
    if not packages:
        return "the device has no energy counter of its CPU"
    found = {}
    for zone in packages:
        counter, end = _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
        if counter is None or end is None:
            return "the energy counter of the device's CPU may not be read by its user"
        found[zone.name] = (counter, end)
    return found


def energy_between(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> int:
    """Return the microjoules between two readings that are less than a round of the counters apart."""
    return sum((after[zone][0] - begin) % (end + 1) for zone, (begin, end) in before.items())


def _throttled(root: Path) -> bool | None:
    states = [_number(zone / "cur_state") for zone in _zones(root, "cooling_device*") if _cools_cpu(zone)]
    firmware = _read(root / _FIRMWARE)
    known = [state > 0 for state in states if state is not None]
    if firmware is not None and re.fullmatch(r"(0x)?[0-9a-f]+", firmware):
        known.append(bool(int(firmware, 16) & _FIRMWARE_NOW))
    return any(known) if known else None


def _cools_cpu(zone: Path) -> bool:
    return bool(_COOLS_CPU.search(_read(zone / "type") or ""))


def _temperatures(root: Path) -> dict[str, float]:
    """Return what thermal zones measure, and hardware monitors, which have them where there are no zones."""
    found: dict[str, float] = {}
    for zone in _zones(root, "thermal_zone*"):
        _add(found, _read(zone / "type") or zone.name, _number(zone / "temp"))
    if not found:
        for sensor in sorted((root / "sys/class/hwmon").glob("*/temp*_input")):
            label = _read(sensor.with_name(sensor.name.replace("_input", "_label"))) or _read(sensor.with_name("name"))
            _add(found, label or sensor.name, _number(sensor))
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


def _number(file: Path) -> int | None:
    text = _read(file)
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None


def _read(file: Path) -> str | None:
    """Return the text of a file without what ends it; None where it cannot be read or is empty."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.strip("\0\n ") or None
