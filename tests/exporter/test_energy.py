"""Behaviour of `energy` on trees of files as Linux has them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from actx.exporter import energy

if TYPE_CHECKING:
    from pathlib import Path


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def server(tmp_path: Path) -> Path:
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "package-1", "intel-rapl:2": "psys"}
    for zone, name in zones.items():
        files = {"name": name, "max_energy_range_uj": "999", "energy_uj": "900"}
        write(tmp_path, {f"sys/class/powercap/{zone}/{file}": f"{text}\n" for file, text in files.items()})
    return tmp_path


def test_the_packages(server: Path) -> None:
    meter = energy.find_meter(server)
    meter.begin()
    write(
        server,
        {"sys/class/powercap/intel-rapl:0/energy_uj": "950\n", "sys/class/powercap/intel-rapl:1/energy_uj": "10\n"},
    )
    assert meter.end() == 50 + 110, "the second has begun again"


def test_a_run_of_each_model(server: Path) -> None:
    counter, taken = server / "sys/class/powercap/intel-rapl:0/energy_uj", [900]

    def run(microjoules: int) -> int:
        taken[0] = (taken[0] + microjoules) % 1000
        counter.write_text(str(taken[0]))
        time.sleep(0.002)
        return 0

    found = energy.measure([lambda: run(3), lambda: run(7)], 0.04, lambda: energy.find_meter(server))
    assert found["of"] == "the CPU packages"
    assert min(found["runs"]) >= 4, "once in each of four turns"
    assert found["microjoules"] == [3 * found["runs"][0], 7 * found["runs"][1]], "without the runs for warm-up"


def test_the_input_of_a_module(tmp_path: Path) -> None:
    hwmon = "sys/class/hwmon/hwmon2"
    root = write(
        tmp_path,
        {
            f"{hwmon}/in1_label": "VDD_CPU_GPU_CV\n",
            f"{hwmon}/in1_input": "1\n",
            f"{hwmon}/curr1_input": "1\n",
            f"{hwmon}/in2_label": "VDD_IN\n",
            f"{hwmon}/in2_input": "5000\n",
            f"{hwmon}/curr2_input": "2000\n",
        },
    )
    threads = threading.active_count()

    def run() -> int:
        time.sleep(0.001)
        return 0

    begun = time.monotonic()
    found = energy.measure([run], 0.2, lambda: energy.find_meter(root))
    elapsed = time.monotonic() - begun
    assert found["of"] == "the whole module"
    assert 0.2 <= found["microjoules"][0] / 10e6 <= elapsed, "5 V and 2 A are 10 J in a second"
    assert threading.active_count() == threads


def test_there_is_no_meter(tmp_path: Path, server: Path) -> None:
    missing = energy.measure([], 1, lambda: energy.find_meter(tmp_path / "empty"))
    assert missing == {"missing": "there is no energy counter of the CPU and no power sensor of the module"}
    (server / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    assert "may not be read" in energy.measure([lambda: 0], 1, lambda: energy.find_meter(server))["missing"]


def test_a_meter_that_is_lost(server: Path) -> None:
    def run() -> int:
        (server / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("")
        return 0

    assert "may not be read" in energy.measure([run], 0.01, lambda: energy.find_meter(server))["missing"]
