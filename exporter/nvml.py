"""What NVIDIA's management library tells of a GPU: its clock, temperature, power, throttling and energy.

Where the driver or `nvidia-ml-py` is missing there is nothing, and what a GPU does not tell is None: Jetson modules, for one,
tell little here and much in /sys (`sensors`, `energy`).
Source: NVIDIA, NVML API Reference Guide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actx.exporter.energy import NotMeteredError

if TYPE_CHECKING:
    from collections.abc import Callable

# nvmlClocksEventReasons that hold the clock down: power cap, hardware slowdown, heat (by software, by hardware), power brake.
_HELD_DOWN = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


class Gpu:
    """A GPU, made by `find_gpu`; its energy counter is a meter for `energy.measure`."""

    of = "the GPU"

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle
        self._begun = 0

    def conditions(self) -> dict[str, Any]:
        """Return how it fares now, as JSON values; None for what it does not tell.

        Returns:
            `clock_mhz` and `limit_mhz` of its multiprocessors, now and at most; `temperature` in degrees Celsius; `watts`;
            `throttled`, whether the clock is held down.
        """
        nvml = self._library
        reasons = self._told(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        milliwatts = self._told(nvml.nvmlDeviceGetPowerUsage)
        return {
            "clock_mhz": self._told(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            "limit_mhz": self._told(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
            "temperature": self._told(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            "watts": None if milliwatts is None else milliwatts / 1000,
            "throttled": None if reasons is None else bool(reasons & _HELD_DOWN),
        }

    def has_meter(self) -> bool:
        """Tell whether it counts its energy."""
        return self._told(self._library.nvmlDeviceGetTotalEnergyConsumption) is not None

    def begin(self) -> None:
        """Begin to measure energy.

        Raises:
            NotMeteredError: it does not count.
        """
        self._begun = self._millijoules()

    def end(self) -> int:
        """Return the microjoules since the beginning.

        Raises:
            NotMeteredError: it does not count any more.
        """
        return 1000 * (self._millijoules() - self._begun)

    def _millijoules(self) -> int:
        counted = self._told(self._library.nvmlDeviceGetTotalEnergyConsumption)
        if counted is None:
            msg = "the GPU does not count its energy"
            raise NotMeteredError(msg)
        return int(counted)

    def _told(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return ask(self._handle, *arguments)
        except self._library.NVMLError:
            return None


def find_gpu(bus: str | None) -> Gpu | None:
    """Return the GPU at a PCI address such as "0000:01:00.0"; None where it cannot be asked."""
    if bus is None:
        return None
    try:
        import pynvml  # noqa: PLC0415 - only where there is a GPU
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(bus))
    except pynvml.NVMLError:
        return None
