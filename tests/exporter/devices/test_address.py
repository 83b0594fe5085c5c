"""Behaviour of `devices.address` and `devices.config`: what names a device, and what is no option and no command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from actx.exporter.devices import Address, Device, find_devices
from actx.exporter.devices.config import find_device
from actx.exporter.errors import ActxError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

FILE = """
[devices.pi]
address = "ssh://pi@raspberrypi.local:2222"
python = "~/actx/bin/python"
[devices.jetson]
address = "ssh://jetson"
[groups]
bench = ["pi", "jetson"]
"""


@pytest.mark.parametrize(
    ("text", "address", "arguments"),
    [
        ("ssh://pi", Address("pi"), ["--", "pi"]),
        ("ssh://me@pi.local", Address("pi.local", "me"), ["-l", "me", "--", "pi.local"]),
        ("ssh://me@10.0.0.7:2222", Address("10.0.0.7", "me", 2222), ["-l", "me", "-p", "2222", "--", "10.0.0.7"]),
        ("ssh://[fe80::1%eth0]:22", Address("fe80::1%eth0", None, 22), ["-p", "22", "--", "fe80::1%eth0"]),
    ],
)
def test_addresses(text: str, address: Address, arguments: list[str]) -> None:
    assert Address.parse(text) == address
    assert address.arguments() == arguments
    assert str(address) == text


HOSTILE = (
    "ssh://-oProxyCommand=touch${IFS}ran",
    "ssh://pi;touch ran",
    "ssh://$(touch ran)",
    "ssh://`touch ran`@pi",
    "ssh://-l@pi",
    "ssh://pi\ntouch ran",
    "ssh://me:secret@pi",
    "ssh://pi:0",
    "ssh://pi:65536",
    "ssh://pi/etc/passwd",
    "ssh://",
    "ssh://" + "a" * 1000,
    "SSH://pi",
    "http://pi",
    "ssh://[pi]",
    "ssh://pi%2fetc",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="is no address of a device") as raised:
        Address.parse(text)
    assert "\n" not in raised.value.what


def test_devices_and_groups_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "devices.toml").write_text(FILE)
    pi = Device("pi", Address("raspberrypi.local", "pi", 2222), "~/actx/bin/python")
    jetson = Device("jetson", Address("jetson"), "python3")
    assert find_devices("pi").devices == (pi,)
    assert (find_devices("bench").devices, find_devices("bench").group) == ((pi, jetson), True)
    assert find_devices("ssh://other").devices == (Device("ssh://other", Address("other")),)
    assert find_device("jetson") == find_device(jetson) == jetson
    with pytest.raises(UsageError, match="is a group"):
        find_device("bench")
    with pytest.raises(UsageError, match="there is no device 'orin'") as raised:
        find_devices("orin")
    assert "pi, jetson, bench" in raised.value.note


def test_a_name_needs_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no device 'pi'"):
        find_devices("pi")
    with pytest.raises(ActxError, match="cannot read"):
        find_devices("pi", tmp_path / "others.toml")


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("[devices.pi]\naddress = 1", "devices.pi.address"),
        ("[devices.pi]", "devices.pi.address: Field required"),
        (
            '[devices.pi]\naddress = "ssh://-oProxyCommand=x"',
            "devices.pi.address: 'ssh://-oProxyCommand=x' is no address",
        ),
        ('[devices.pi]\naddress = "ssh://pi"\npassword = "x"', "devices.pi.password"),
        ('[devices.pi]\naddress = "ssh://pi"\npython = "python3; touch ran"', "devices.pi.python"),
        ('[devices.pi]\naddress = "ssh://pi"\npython = "-c"', "devices.pi.python"),
        ('[devices."pi;"]\naddress = "ssh://pi"', "devices.pi;"),
        ('[groups]\nbench = ["pi"]', "group bench names pi, which is no device"),
        ("[groups]\nbench = []", "group bench names no device"),
        (f'{FILE}pi = ["jetson"]', "pi is a device and a group"),
        (f'{FILE}twice = ["pi", "pi"]', "group twice names a device twice"),
        ("[devices", "Expected ']'"),
    ],
)
def test_a_file_that_is_not_as_it_should_be(text: str, note: str, tmp_path: Path) -> None:
    (tmp_path / "devices.toml").write_text(text)
    with pytest.raises(ActxError) as raised:
        find_devices("pi", tmp_path / "devices.toml")
    assert note in raised.value.note
    assert "devices.toml" in raised.value.what
