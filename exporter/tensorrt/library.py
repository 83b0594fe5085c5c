"""The library behind a target: `tensorrt` for `trt`, `tensorrt_rtx` for `trt-rtx`. One API under two import names."""

from __future__ import annotations

import importlib
import re
from dataclasses import asdict, dataclass
from typing import Any

from actx.exporter.errors import TargetUnavailable, one_line
from actx.exporter.tensorrt.device import find_gpu


@dataclass(frozen=True)
class _Kind:
    """What is known of a library before it is imported.

    Attributes:
        module: its import name.
        title: its name in sentences.
        minimum: the least version that will do, and why.
        install: how it is had.
    """

    module: str
    title: str
    minimum: tuple[int, int]
    install: str


_KINDS = {
    # 10.12 is the first where strongly typed networks are what NVIDIA recommends, and the last before weak typing went away.
    "trt": _Kind(
        "tensorrt",
        "TensorRT",
        (10, 12),
        "It comes with JetPack on Jetson. Elsewhere: pip install 'actx[trt]', or as NVIDIA's installation guide says.",
    ),
    "trt-rtx": _Kind("tensorrt_rtx", "TensorRT-RTX", (1, 4), "Install it: pip install 'actx[trt-rtx]'."),
}
TARGETS = tuple(_KINDS)
_CAPABILITY = re.compile(r"SM(\d+)(\d)")


@dataclass(frozen=True)
class Library:
    """A library that was imported.

    Attributes:
        target: the target that it builds for, `trt` or `trt-rtx`.
        module: the module itself. It has no types.
        title: "TensorRT" or "TensorRT-RTX".
        version: its version, such as "1.7.1.116".
    """

    target: str
    module: Any
    title: str
    version: str

    def __str__(self) -> str:
        return f"{self.title} {self.version}"

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """Those that an engine can be asked for, such as "8.6"; none where it is always that of the GPU here."""
        if self.target != "trt-rtx":
            return ()
        found = (_CAPABILITY.fullmatch(name) for name in self.module.ComputeCapability.__members__)
        return tuple(f"{match[1]}.{match[2]}" for match in found if match)


def find(target: str) -> Library:
    """Import the library behind a target.

    Raises:
        TargetUnavailable: it is not installed, cannot be loaded, or is too old.
    """
    kind = _KINDS[target]
    try:
        module = importlib.import_module(kind.module)
        version = str(module.__version__)
        module.Builder, module.OnnxParser, module.Runtime  # noqa: B018 - a half-removed package imports as an empty one
    except ImportError as error:
        absent = error.name == kind.module
        what = f"{kind.title} {'is not installed' if absent else 'cannot be loaded'}"
        raise TargetUnavailable(what, note="" if absent else str(error), remedy=kind.install) from error
    except Exception as error:  # the libraries raise what their loader or their CUDA libraries raise
        note = f"{type(error).__name__}: {error}"
        raise TargetUnavailable(f"{kind.title} cannot be loaded", note=note, remedy=kind.install) from error
    if _numbers(version) < kind.minimum:
        note = f"found {version}, the least that will do is {'.'.join(map(str, kind.minimum))}"
        raise TargetUnavailable(f"{kind.title} is too old", note=note, remedy=kind.install)
    return Library(target, module, kind.title, version)


def title(target: str) -> str:
    """Return the name of the library behind a target, whether it is installed or not."""
    return _KINDS[target].title


def describe(target: str) -> dict[str, Any]:
    """Return what `actx targets` says of a target, as JSON values.

    `library`, `version`, `compute_capabilities` that engines can be built for (empty: that of the GPU here), `gpu` (`Gpu`, or
    None) and `no_gpu`, why there is none.

    Raises:
        TargetUnavailable: see `find`.
    """
    library = find(target)
    gpu, reason = find_gpu()
    return {
        "library": library.module.__name__,
        "version": library.version,
        "compute_capabilities": list(library.compute_capabilities),
        "gpu": None if gpu is None else asdict(gpu),
        "no_gpu": reason or None,
    }


def logger(library: Library) -> Any:
    """Return a logger of the library that prints nothing and keeps the errors, one line each, in its list `errors`."""

    class Log(library.module.ILogger):  # type: ignore[misc, name-defined]  # the base is known at run time only
        """Collects what the library says."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in {self.ERROR, self.INTERNAL_ERROR}:
                self.errors.append(one_line(message))

    return Log()


def _numbers(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
