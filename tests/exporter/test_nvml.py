"""Behaviour of `nvml` with NVIDIA's own Python layer over a small library that has the functions of the driver's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from actx.exporter import nvml

if TYPE_CHECKING:
    from pathlib import Path

# Like a Jetson's, it has no counter of energy where JETSON is defined: 3 is NVML_ERROR_NOT_SUPPORTED, 6 NVML_ERROR_NOT_FOUND.
LIBRARY = r"""
#include <string.h>
typedef void* device;
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
const char* nvmlErrorString(int code) { return "an error"; }
int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, device* found) {
    *found = (device)1; return strcmp(bus, "0000:01:00.0") ? 6 : 0;
}
int nvmlDeviceGetClockInfo(device d, int clock, unsigned* mhz) { *mhz = clock == 1 ? 1410 : 0; return 0; }
int nvmlDeviceGetMaxClockInfo(device d, int clock, unsigned* mhz) { *mhz = clock == 1 ? 1980 : 0; return 0; }
int nvmlDeviceGetTemperature(device d, int sensor, unsigned* celsius) { *celsius = 61; return 0; }
int nvmlDeviceGetPowerUsage(device d, unsigned* milliwatts) { *milliwatts = 250500; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(device d, unsigned long long* reasons) { *reasons = REASONS; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(device d, unsigned long long* millijoules) {
    static unsigned long long counted = 5000;
    *millijoules = (counted += 20); return JETSON ? 3 : 0;
}
"""
SCRIPT = """
import json
from actx.exporter import energy, nvml
gpu = nvml.find_gpu("0000:01:00.0")
other = nvml.find_gpu("0000:02:00.0")
taken = energy.measure([lambda: 0], 0.0, lambda: gpu)
print(json.dumps([gpu.conditions(), gpu.has_meter(), other is None, taken]))
"""


@pytest.mark.parametrize(
    ("reasons", "throttled"), [(0x1, False), (0x40, True), (0x4, True)], ids=["idle", "heat", "power cap"]
)
@pytest.mark.parametrize("jetson", [False, True])
def test_what_a_gpu_tells(tmp_path: Path, reasons: int, throttled: bool, jetson: bool) -> None:
    (tmp_path / "nvml.c").write_text(LIBRARY)
    defined = [f"-DREASONS={reasons}", f"-DJETSON={int(jetson)}"]
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-w",
        *defined,
        "-o",
        str(tmp_path / "libnvidia-ml.so.1"),
        str(tmp_path / "nvml.c"),
    ]
    subprocess.run(command, check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    told, has_meter, no_other, taken = json.loads(done.stdout)
    assert told == {"clock_mhz": 1410, "limit_mhz": 1980, "temperature": 61, "watts": 250.5, "throttled": throttled}
    assert no_other
    assert has_meter is not jetson
    if jetson:
        assert taken == {"missing": "the GPU does not count its energy"}
    else:
        assert taken == {"runs": [0], "microjoules": [4 * 20_000], "of": "the GPU"}


def test_no_gpu_and_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvml.find_gpu(None) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.find_gpu("0000:01:00.0") is None, "nvidia-ml-py is not installed"
