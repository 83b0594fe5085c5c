"""Behaviour of `sensors` on trees of files as Linux has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from actx.exporter import sensors

if TYPE_CHECKING:
    from pathlib import Path

CPU = "sys/devices/system/cpu"
NOTHING = {
    "governors": None,
    "clocks_mhz": None,
    "limits_mhz": None,
    "temperatures": None,
    "throttle_events": None,
    "throttled": None,
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_is_not_told_is_not_known(tmp_path: Path) -> None:
    assert sensors.conditions([0, 1], tmp_path) == NOTHING
    assert sensors.model_name(tmp_path) is None


def test_a_board(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
            f"{CPU}/cpu1/cpufreq/scaling_cur_freq": "2400000\n",
            f"{CPU}/cpu1/cpufreq/scaling_max_freq": "2400000\n",
            f"{CPU}/cpu1/cpufreq/scaling_governor": "ondemand\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "61250\n",
            "sys/class/thermal/thermal_zone1/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone1/temp": "-5000\n",
            "sys/class/thermal/thermal_zone2/type": "broken\n",
            "sys/class/thermal/thermal_zone2/temp": "no number\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n",  # it was, and is not now
        },
    )
    found = sensors.conditions([0, 1], root)
    assert found["clocks_mhz"] == [1500, 2400]
    assert found["limits_mhz"] == [2400]
    assert found["governors"] == ["ondemand"]
    assert found["temperatures"] == {"cpu-thermal": 61.25, "cpu-thermal 2": -5}
    assert found["throttled"] is False
    assert sensors.conditions([1], root)["clocks_mhz"] == [2400]
    assert sensors.model_name(root) == "Raspberry Pi 5 Model B Rev 1.0"
    write(root, {"sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n"})
    assert sensors.conditions([0], root)["throttled"] is True


def test_a_server(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "sys/class/dmi/id/sys_vendor": "Example\n",
            "sys/class/dmi/id/product_name": "Edge 100\n",
            f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "3\n",
            f"{CPU}/cpu1/thermal_throttle/core_throttle_count": "4\n",
            "sys/class/hwmon/hwmon0/name": "k10temp\n",
            "sys/class/hwmon/hwmon0/temp1_input": "45000\n",
            "sys/class/hwmon/hwmon0/temp2_label": "Tdie\n",
            "sys/class/hwmon/hwmon0/temp2_input": "46000\n",
            "sys/class/thermal/cooling_device0/type": "Processor\n",
            "sys/class/thermal/cooling_device0/cur_state": "2\n",
            "sys/class/thermal/cooling_device1/type": "Fan\n",
            "sys/class/thermal/cooling_device1/cur_state": "1\n",
        },
    )
    found = sensors.conditions([0, 1], root)
    assert found["throttle_events"] == 7
    assert found["temperatures"] == {"k10temp": 45, "Tdie": 46}
    assert found["throttled"] is True
    assert sensors.model_name(root) == "Example Edge 100"
    write(root, {"sys/class/thermal/cooling_device0/cur_state": "0\n"})
    assert sensors.conditions([0], root)["throttled"] is False, "a fan does not hold the clock down"


def test_a_module_counts_its_over_currents(tmp_path: Path) -> None:
    root = write(
        tmp_path, {"sys/class/hwmon/hwmon1/oc1_event_cnt": "2\n", "sys/class/hwmon/hwmon1/oc3_event_cnt": "1\n"}
    )
    before = sensors.conditions([0], root)
    assert before["throttle_events"] == 3
    assert sensors.was_throttled([before, before]) is False
    write(root, {"sys/class/hwmon/hwmon1/oc3_event_cnt": "2\n"})
    assert sensors.was_throttled([before, sensors.conditions([0], root)]) is True


@pytest.mark.parametrize(
    ("cpu", "gpu", "expected"), [(None, None, None), (False, None, False), (None, True, True), (False, True, True)]
)
def test_a_gpu_may_be_held_down_too(cpu: bool | None, gpu: bool | None, expected: bool | None) -> None:
    assert sensors.was_throttled([NOTHING | {"throttled": cpu, "gpu": {"throttled": gpu}}, NOTHING]) is expected
