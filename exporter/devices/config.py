"""Devices by name: `devices.toml`.

[devices.pi]
address = "ssh://pi@raspberrypi.local"
python = "~/actx/bin/python"

[groups]
bench = ["pi", "jetson"]
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError

from actx.exporter.devices.address import SCHEME, Address
from actx.exporter.documents import first_fault, read_document
from actx.exporter.errors import ActxError, UsageError

FILE = Path("devices.toml")
PYTHON = "python3"
_MAX_BYTES = 1 << 18  # thousands of devices; the parser's time grows with the square of a long dotted key
# It is the one word of the user's that the device's shell reads: nothing in it means anything to a shell, but ~/ in front.
_PYTHON = r"^(~/)?[A-Za-z0-9_./][A-Za-z0-9_./+-]*$"
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


@dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        name: as the user calls it.
        address: where it is.
        python: what runs Python there: a command or a path.
    """

    name: str
    address: Address
    python: str = PYTHON


@dataclass(frozen=True)
class Chosen:
    """What the user's text names.

    Attributes:
        devices: at least one.
        group: whether it is a group, of which one table is made.
    """

    devices: tuple[Device, ...]
    group: bool


def _address(value: object) -> object:
    """Read an address; a fault is one of the file's, so that it is named with the device."""
    try:
        return Address.parse(value) if isinstance(value, str) else value
    except UsageError as error:
        raise ValueError(f"{error.what}: {error.note}") from error


_Name = Annotated[str, StringConstraints(pattern=_NAME)]


class _Entry(BaseModel):
    """A device in the file."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    address: Annotated[Address, BeforeValidator(_address)]
    python: Annotated[str, StringConstraints(pattern=_PYTHON)] = PYTHON


class _File(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid")

    devices: dict[_Name, _Entry] = {}
    groups: dict[_Name, list[_Name]] = {}


def find_devices(text: str, file: Path | None = None) -> Chosen:
    """Return the devices of an address, or of a name in the file.

    Args:
        text: ``ssh://[USER@]HOST[:PORT]``, or the name of a device or a group.
        file: what names them; None for `devices.toml` in the current folder.

    Raises:
        UsageError: it is no address, or the file has no such name.
        ActxError: the file cannot be read or is not as it should be.
    """
    if text.startswith(SCHEME):
        return Chosen((Device(text, Address.parse(text)),), group=False)
    place = file or FILE
    if file is None and not place.exists():
        raise UsageError(
            f"there is no device {text!r}",
            note=f"an address begins with {SCHEME}, and there is no {FILE} in this folder",
            remedy=f"Give an address, {SCHEME}USER@HOST, or the file that names the device with --devices.",
        )
    known = _read(place)
    devices = {name: Device(name, entry.address, entry.python) for name, entry in known.devices.items()}
    if text in known.groups:
        return Chosen(tuple(devices[name] for name in known.groups[text]), group=True)
    if text not in devices:
        names = ", ".join((*devices, *known.groups)) or "none"
        raise UsageError(
            f"there is no device {text!r}",
            note=f"{place} has: {names}",
            remedy=f"Choose one of these, or give an address, {SCHEME}USER@HOST.",
        )
    return Chosen((devices[text],), group=False)


def find_device(device: Device | str) -> Device:
    """Return one device: itself, or that of an address or a name in `devices.toml` in the current folder.

    Raises:
        UsageError: as `find_devices`, or it is a group.
        ActxError: as `find_devices`.
    """
    if isinstance(device, Device):
        return device
    found = find_devices(device)
    if found.group:
        raise UsageError(f"{device!r} is a group of devices", remedy="Name one of them.")
    return found.devices[0]


def _read(file: Path) -> _File:
    try:
        content = tomllib.loads(read_document(file, _MAX_BYTES).decode())
        known = _File.model_validate(content)
    except OSError as error:
        raise ActxError(
            f"cannot read {file}", note=str(error.strerror), remedy="Name another with --devices."
        ) from error
    except ValidationError as error:
        raise _malformed(file, first_fault(error)) from error
    except (ValueError, RecursionError) as error:
        raise ActxError(
            f"{file} is no TOML file", note=str(error), remedy="Mend the line that the note names."
        ) from error
    _check(file, known)
    return known


def _check(file: Path, known: _File) -> None:
    if both := known.devices.keys() & known.groups.keys():
        raise _malformed(file, f"{min(both)} is a device and a group")
    for group, names in known.groups.items():
        if not names or len({*names}) < len(names):
            raise _malformed(file, f"group {group} names {'a device twice' if names else 'no device'}")
        if unknown := [name for name in names if name not in known.devices]:
            raise _malformed(file, f"group {group} names {unknown[0]}, which is no device")


def _malformed(file: Path, note: str) -> ActxError:
    remedy = "docs/devices.md shows how it is written."
    return ActxError(f"{file} does not name devices as it should", note=note, remedy=remedy)
