"""The same measurement on several devices at once: what one of them fails at costs the others nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from actx.exporter.drift import DriftReport
from actx.exporter.errors import ActxError, RequirementError
from actx.exporter.latency import LatencyReport
from actx.exporter.measuring import check_there, opened, prepared, profile_there
from actx.exporter.runtimes.onnxruntime import DEFAULT, RuntimeOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actx.exporter.data import InputSpec
    from actx.exporter.devices.config import Device
    from actx.exporter.measuring import Opened, Prepared

    Progress: TypeAlias = Callable[[str, int, int], None]

R = TypeVar("R", bound=DriftReport | LatencyReport)


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What came of one device: a report or an error.

    Attributes:
        device: which one.
        report: what was measured there.
        error: why nothing was.
    """

    device: Device
    report: R | None = None
    error: ActxError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: null for what there is not."""
        error = self.error
        return {
            "device": self.device.name,
            "address": str(self.device.address),
            "report": None if self.report is None else self.report.to_dict(),
            "error": None if error is None else {"what": error.what, "note": error.note, "remedy": error.remedy},
        }


def raise_for(outcomes: Sequence[Outcome[Any]]) -> None:
    """Raise what a sweep ends with; nothing where all devices were measured and no budget is missed.

    Raises:
        ActxError: a device failed.
        RequirementError: none failed, and a budget is missed.
    """
    failed = [(outcome.device.name, outcome.error) for outcome in outcomes if outcome.error is not None]
    if failed:
        name, first = failed[0]
        raise ActxError(
            f"{len(failed)} of {len(outcomes)} devices failed", note=f"{name}: {first.what}", remedy=first.remedy
        )
    over = [one.device.name for one in outcomes if isinstance(one.report, DriftReport) and not one.report]
    if over:
        raise RequirementError(
            f"the drift is over the budget on {len(over)} of {len(outcomes)} devices",
            note=", ".join(over),
            remedy="Export with a finer form, or look at the sites with the most noise.",
        )


def check_all(
    devices: Sequence[Device],
    model: Path | str,
    artifact: Path | str,
    *,
    data: str | None = None,
    inputs: Sequence[InputSpec] = (),
    batch_size: int | None = None,
    metric: str = "l2",
    max_drift: float | None = None,
    logits: Sequence[str] = (),
    trust: bool = False,
    factory: str | None = None,
    kernels: bool | None = None,
    options: RuntimeOptions = DEFAULT,
    progress: Progress | None = None,
) -> list[Outcome[DriftReport]]:
    """Do what `check` does on devices at once, each with its own report or error.

    Args:
        devices: where.
        model: see `check`, as for the others.
        artifact: see there.
        data: see there.
        inputs: see there.
        batch_size: see there.
        metric: see there.
        max_drift: see there.
        logits: see there.
        trust: see there.
        factory: see there.
        kernels: see there.
        options: see there.
        progress: called with the device's name and the number of samples done and to do.

    Raises:
        ActxError, UsageError: the original or the data cannot be read.
    """
    with prepared(Path(model), Path(artifact), data, inputs, batch_size, trust=trust, factory=factory) as pair:

        def measure(place: Opened, report: Callable[[int, int], None]) -> DriftReport:
            return check_there(pair, place, metric, max_drift, logits, None, report)

        return _sweep(devices, pair, measure, options, progress, kernels=kernels, trust=trust)


def profile_all(
    devices: Sequence[Device],
    model: Path | str,
    artifact: Path | str,
    *,
    data: str | None = None,
    inputs: Sequence[InputSpec] = (),
    batch_size: int | None = None,
    runs: int | None = None,
    trust: bool = False,
    factory: str | None = None,
    kernels: bool | None = None,
    options: RuntimeOptions = DEFAULT,
    progress: Progress | None = None,
) -> list[Outcome[LatencyReport]]:
    """Do what `profile` does on devices at once, each with its own report or error.

    Args:
        devices: where.
        model: see `profile`, as for the others.
        artifact: see there.
        data: see there.
        inputs: see there.
        batch_size: see there.
        runs: see there.
        trust: see there.
        factory: see there.
        kernels: see there.
        options: see there.
        progress: called with the device's name and the number of rounds done and to do.

    Raises:
        ActxError, UsageError: the original or the data cannot be read.
    """
    with prepared(Path(model), Path(artifact), data, inputs, batch_size, trust=trust, factory=factory) as pair:

        def measure(place: Opened, report: Callable[[int, int], None]) -> LatencyReport:
            return profile_there(pair, place, runs, report)

        return _sweep(devices, pair, measure, options, progress, kernels=kernels, trust=trust)


def _sweep(
    devices: Sequence[Device],
    pair: Prepared,
    measure: Callable[[Opened, Callable[[int, int], None]], R],
    options: RuntimeOptions,
    progress: Progress | None,
    *,
    kernels: bool | None,
    trust: bool,
) -> list[Outcome[R]]:
    stopped = threading.Event()

    def one(device: Device) -> Outcome[R]:
        def report(done: int, total: int) -> None:
            if stopped.is_set():
                raise ActxError("the sweep was stopped")
            if progress is not None:
                progress(device.name, done, total)

        try:
            with opened(pair.artifact, options, device, kernels=kernels, trust=trust) as place:
                return Outcome(device, measure(place, report))
        except ActxError as error:
            return Outcome(device, error=error)
        except Exception as error:  # noqa: BLE001 - it must not cost the other devices their results
            what, note = f"{type(error).__name__}: {error}", "this is not an error that actx expects"
            return Outcome(device, error=ActxError(what, note=note))

    with ThreadPoolExecutor(len(devices)) as pool:
        try:
            return list(pool.map(one, devices))
        finally:
            stopped.set()
