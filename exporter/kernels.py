"""The native kernels: the library that runs a graph of actx nodes in ONNX Runtime, and the libraries that a bundle carries.

A library is looked for in this order:

1. The environment variable `ACTX_LIBRARY` names one. Then that one it must be. So it is where `ACTX_ISA` names an instruction
   set: then the kernels must be had, with it.
2. The one that was installed with actx.
3. The one that the bundle carries for this machine. It is code of whoever made the bundle, so only a bundle that is trusted
   has its library loaded, and only after its digest was compared with the manifest's.

It can be used if `actx.custom_ops.cpu` can load it (the file is whole, for this machine and of this interface) and ONNX Runtime
registers it.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from actx.custom_ops import cpu
from actx.custom_ops.cpu.build import BuildError, build
from actx.custom_ops.cpu.elf import ARCHITECTURES
from actx.custom_ops.cpu.library import ISA_VARIABLE, VARIABLE
from actx.exporter.bundle import library_name, verify
from actx.exporter.errors import ActxError, TargetUnavailable, UsageError
from actx.exporter.runtimes.onnxruntime import check_library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from actx.exporter.manifest import Manifest
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions

_REMEDY = "Install actx where a C++17 compiler is, or leave --kernels out: model.onnx needs no kernels."
_REMEDY_NAMED = f"Build that library for this machine, or unset {VARIABLE}."
_REMEDY_ISA = f"Unset {ISA_VARIABLE}, or name an instruction set that is available."


@dataclass(frozen=True)
class Kernels:
    """A library that can be used here.

    Attributes:
        library: the file.
        origin: which one it is, in words.
    """

    library: Path
    origin: str

    def register(self, options: RuntimeOptions) -> RuntimeOptions:
        """Return options of a session that has the kernels too."""
        return replace(options, libraries=(*options.libraries, self.library))


@dataclass(frozen=True)
class Carried:
    """The libraries that a bundle carries.

    Attributes:
        folder: the bundle's.
        manifest: its manifest.
        trust: whether they may be loaded.
    """

    folder: Path
    manifest: Manifest
    trust: bool


def find_kernels(carried: Carried | None = None) -> Kernels:
    """Return the kernels of this machine.

    Args:
        carried: what the bundle has, if there is one.

    Raises:
        TargetUnavailable: no library can be used here.
        ActxError: the bundle's library is not the file that the export wrote.
    """
    if is_named():
        return _usable(cpu.find(), f"the kernels that {VARIABLE} names", _REMEDY_NAMED)
    try:
        return _usable(cpu.find(), "the installed kernels")
    except TargetUnavailable as error:
        if carried is None or not (carried.folder / library_name(platform.machine())).is_file():
            raise
        return _of_bundle(carried, error)


def choose_kernels(wanted: bool | None, carried: Carried | None = None) -> tuple[Kernels | None, str]:
    """Return the kernels to use, and why there are none where there are none.

    Args:
        wanted: whether they must be used, or must not; None for where they can.
        carried: what the bundle has, if there is one.

    Raises:
        TargetUnavailable: they were asked for, by `wanted`, `ACTX_LIBRARY` or `ACTX_ISA`, and cannot be had.
        ActxError: see `find_kernels`.
    """
    if wanted is False:
        return None, "the kernels were not to be used"
    try:
        return find_kernels(carried), ""
    except TargetUnavailable as error:
        if wanted or is_named() or os.environ.get(ISA_VARIABLE):
            raise
        return None, f"{error.what}: {error.note}"


def check_architectures(names: Sequence[str], gpus: Sequence[str] = ()) -> None:
    """Check that libraries can be built for architectures of these names, and kernels for those of GPUs.

    Raises:
        UsageError: one is not known.
    """
    known = [*ARCHITECTURES.values(), *gpus]
    if unknown := [name for name in names if name not in known]:
        note = f"available: {', '.join(known)}"
        raise UsageError(f"no kernels for architecture {unknown[0]!r}", note=note, remedy="Choose of these.")


def carry(folder: Path, architectures: Sequence[str]) -> None:
    """Put the libraries for architectures into a bundle: the one that is in use here, others built.

    Args:
        folder: the bundle's.
        architectures: see `check_architectures`.

    Raises:
        ActxError: there is no compiler for one, or the build fails.
    """
    for architecture in architectures:
        place = folder / library_name(architecture)
        place.parent.mkdir(parents=True, exist_ok=True)
        installed = cpu.find() if architecture == platform.machine() else None
        if installed is not None:
            shutil.copyfile(_usable(installed, "the installed kernels").library, place)
        else:
            _build(architecture, place.parent)


def _build(architecture: str, folder: Path) -> None:
    try:
        build(architecture, folder)
    except BuildError as error:
        remedy = "Install what the note names, or leave the architecture out of --with-kernels."
        raise ActxError(f"the kernels for {architecture} cannot be built", note=str(error), remedy=remedy) from error


def _of_bundle(carried: Carried, missing: TargetUnavailable) -> Kernels:
    name = library_name(platform.machine())
    if not carried.trust:
        raise TargetUnavailable(
            f"{missing.what}, and those of the bundle are not trusted",
            note=f"{missing.note}; {name} is code that would run with your rights",
            remedy="Add --trust if you made the bundle, or trust whoever did.",
        )
    if name not in carried.manifest.files:
        raise missing
    verify(carried.folder, carried.manifest)
    return _usable(carried.folder / name, "the bundle's own kernels")


def is_named() -> bool:
    """Tell whether the environment names the library that it must be."""
    return bool(os.environ.get(VARIABLE))


def _usable(library: Path | None, origin: str, remedy: str = _REMEDY) -> Kernels:
    """Check that a library can be used. ONNX Runtime comes last, because it looks at nothing before it loads a file."""
    if library is None:
        note = "actx was installed without them"
        raise TargetUnavailable("there are no kernels for this machine", note=note, remedy=remedy)
    try:
        loaded = cpu.load(library)
    except cpu.KernelsUnavailable as error:
        raise TargetUnavailable(f"{origin} cannot be used", note=str(error), remedy=remedy) from error
    _check_isa(loaded, origin)
    try:
        check_library(loaded.path)
    except ActxError as error:
        raise TargetUnavailable(f"{origin} cannot be used", note=error.note, remedy=remedy) from error
    return Kernels(loaded.path, origin)


def _check_isa(loaded: cpu.Library, origin: str) -> None:
    asked = os.environ.get(ISA_VARIABLE)
    if asked and asked not in loaded.isas:
        note = f"{ISA_VARIABLE} is {asked!r}; available here: {', '.join(loaded.isas)}"
        raise TargetUnavailable(f"{origin} cannot be used", note=note, remedy=_REMEDY_ISA)
