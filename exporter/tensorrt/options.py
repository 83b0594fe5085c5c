"""What a build can be asked for, and which library has it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from actx.exporter.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

HARDWARE_COMPATIBILITY = ("none", "ampere+", "same-cc")
_SIZE = re.compile(r"(?P<number>\d{1,18}(?:\.\d{1,18})?)\s*(?P<unit>[KMG]i?B|B|)", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_CAPABILITY = re.compile(r"\d+\.\d")
_BOTH = ("trt", "trt-rtx")
_ENTERPRISE = ("trt",)
_RTX = ("trt-rtx",)


class _Option(NamedTuple):
    """Attributes: flag: on the command line; targets: that have it; why: what the others' library does instead."""

    flag: str
    targets: tuple[str, ...]
    why: str = ""


# TensorRT-RTX deprecated the timing cache in 1.2, does nothing with a hardware compatibility level ("is unsupported") or a
# DLA core, writes the same engine at every optimization level, and lacks the lean runtime of version-compatible engines.
_OPTIONS = {
    "timing_cache": _Option("--timing-cache", _ENTERPRISE, "times nothing while it builds"),
    "workspace": _Option("--workspace", _BOTH),
    "version_compatible": _Option("--version-compatible", _ENTERPRISE, "has no lean runtime"),
    "strip_weights": _Option("--strip-weights", _BOTH),
    "refit": _Option("--refit", _BOTH),
    "dla_core": _Option("--dla", _ENTERPRISE, "runs on no DLA"),
    "hardware_compatibility": _Option("--hardware-compatibility", _ENTERPRISE, "takes --compute-capability instead"),
    "tf32": _Option("--no-tf32", _BOTH),
    "optimization_level": _Option("--builder-level", _ENTERPRISE, "compiles on the device that runs the engine"),
    "compute_capabilities": _Option("--compute-capability", _RTX, "builds for the GPU of this machine"),
}


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        timing_cache: file of measured kernels; read if it is there, written back after the build.
        workspace: bytes of device memory that a layer may use while it runs; None for all of it.
        version_compatible: whether later versions of the library can run the engine too.
        strip_weights: whether the engine is written without its weights, to be refitted with them where it runs.
        refit: whether weights can be replaced in the engine.
        dla_core: number of the deep learning accelerator that takes the layers that it can; the GPU takes the others.
        hardware_compatibility: GPUs that the engine runs on: "none" (the one it was built on), "ampere+", "same-cc" (those of
            the same compute capability).
        tf32: whether float32 matrix products may round their inputs to 10 bits of mantissa.
        optimization_level: 0 to 5, how long is searched for fast kernels; None for the library's own.
        compute_capabilities: of the GPUs that the engine runs on, such as "8.6"; none for the library's own.

    Raises:
        UsageError: a value is out of its range.
    """

    timing_cache: Path | None = None
    workspace: int | None = None
    version_compatible: bool = False
    strip_weights: bool = False
    refit: bool = False
    dla_core: int | None = None
    hardware_compatibility: str = "none"
    tf32: bool = True
    optimization_level: int | None = None
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        wrong = [capability for capability in self.compute_capabilities if not _CAPABILITY.fullmatch(capability)]
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            _refuse("hardware_compatibility", self.hardware_compatibility, ", ".join(HARDWARE_COMPATIBILITY))
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            _refuse("optimization_level", self.optimization_level, "0 to 5")
        if self.workspace is not None and self.workspace < 1:
            _refuse("workspace", self.workspace, "a size such as 2GiB")
        if self.dla_core is not None and self.dla_core < 0:
            _refuse("dla_core", self.dla_core, "the number of a core, from 0")
        if wrong:
            _refuse("compute_capabilities", wrong[0], "a number such as 8.6")

    def check(self, target: str) -> None:
        """Check that the target's library has every option that was changed.

        Raises:
            UsageError: it has not, or not together.
        """
        for field in fields(self):
            option = _OPTIONS[field.name]
            if target not in option.targets and getattr(self, field.name) != field.default:
                raise UsageError(
                    f"target {target} has no {option.flag}",
                    note=f"its library {option.why}; targets with it: {', '.join(option.targets)}",
                    remedy="Leave it out, or choose that target.",
                )
        if (self.strip_weights or self.refit) and len(self.compute_capabilities) > 1:
            raise UsageError(
                "an engine that is stripped or can be refitted is for one compute capability",
                note=f"asked for {', '.join(self.compute_capabilities)}",
                remedy="Build one engine for each.",
            )

    def of(self, target: str) -> BuildOptions:
        """Return those that the target's library has; the others are the defaults."""
        kept = {name: value for name, value in self.to_dict().items() if target in _OPTIONS[name].targets}
        return BuildOptions.from_dict(kept)

    def changed(self) -> dict[str, str]:
        """Return the options that differ from the defaults, by name, with their flags on the command line."""
        return {
            field.name: _OPTIONS[field.name].flag
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        values = asdict(self)
        path = values["timing_cache"]
        return {**values, "timing_cache": path and str(path), "compute_capabilities": list(self.compute_capabilities)}

    def arguments(self) -> list[tuple[str, str | None]]:
        """Return the options of the command line that are not as by default, with their values; None for a flag."""
        changed = [(field.name, getattr(self, field.name)) for field in fields(self)]
        changed = [(name, value) for name, value in changed if value != getattr(BuildOptions(), name)]
        return [(_OPTIONS[name].flag, _text(value)) for name, value in changed]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BuildOptions:
        """Return the options that `to_dict` gave.

        Raises:
            UsageError: an option is unknown, or see the class.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UsageError(f"unknown build option {unknown[0]!r}", note=f"known: {', '.join(sorted(known))}")
        path = values.get("timing_cache")
        capabilities = tuple(values.get("compute_capabilities", ()))
        return cls(**{**values, "timing_cache": path and Path(path), "compute_capabilities": capabilities})


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    return ",".join(value) if isinstance(value, tuple) else str(value)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``2GiB``, ``512 MiB`` or ``1000000``.

    Raises:
        UsageError: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (size := round(float(match["number"]) * _UNITS[match["unit"].lower()])) < 1:
        remedy = "Write a positive number with B, KiB, MiB, GiB, KB, MB or GB."
        raise UsageError(f"'{text}' is no size", note="expected one such as 2GiB", remedy=remedy)
    return size


def parse_capabilities(text: str) -> tuple[str, ...]:
    """Return the compute capabilities of a list such as ``8.6,12.0``, each once.

    Raises:
        UsageError: one is no compute capability.
    """
    return BuildOptions(
        compute_capabilities=tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    ).compute_capabilities


def _refuse(name: str, got: object, allowed: str) -> None:
    flag = _OPTIONS[name].flag
    raise UsageError(f"{flag} cannot be '{got}'", note=f"allowed: {allowed}", remedy="Write it so.")
