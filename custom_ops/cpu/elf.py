"""The header of a shared library: enough to say why one cannot be loaded, before the loader is given it.

The loader calls a library for another architecture a missing file, and one that was cut short ends the process.
"""

from __future__ import annotations

import platform
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# e_machine (ELF gABI, chapter 4) of what the library is built for.
ARCHITECTURES = {62: "x86_64", 183: "aarch64"}
_HEADER = struct.Struct("<16s2H I 3Q I 6H")  # Elf64_Ehdr
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian


def why_not_here(path: Path) -> str:
    """Return why the file is no whole shared library for this machine, or nothing.

    Raises:
        OSError: it cannot be read.
    """
    return why_not_for(path, platform.machine())


def why_not_for(path: Path, architecture: str) -> str:
    """Return why the file is no whole shared library for machines of an architecture, or nothing.

    Args:
        path: the file.
        architecture: as `platform.machine` has it.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if not header.startswith(_MAGIC[: max(1, len(header))]):
        return "it is not a shared library of a 64-bit machine"
    if len(header) < _HEADER.size:
        return "it was cut short"
    fields = _HEADER.unpack(header)
    machine, sections, section_size, section_count = fields[2], fields[6], fields[11], fields[12]
    if path.stat().st_size < sections + section_size * section_count:
        return "it was cut short"
    if ARCHITECTURES.get(machine) != architecture:
        return f"it is for {ARCHITECTURES.get(machine, f'machine {machine}')}, this is {architecture}"
    return ""
