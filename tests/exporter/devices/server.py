"""An ssh server on the loopback interface, whose hosts stand for devices: each with temporary files of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SSHD = "/usr/sbin/sshd"
SECONDS = 20
# What onnxruntime needs to be imported; nothing else of the environment of the tests is on a device.
PACKAGES = ("numpy", "numpy.libs", "onnxruntime")


@dataclass(frozen=True)
class Server:
    """The server and its hosts.

    Attributes:
        folder: of everything that belongs to it.
        port: that it listens on.
        toml: a file that names the devices.
        tools: a folder with the ssh to use, which has a configuration of its own.
    """

    folder: Path
    port: int
    toml: Path
    tools: Path

    def temporary(self, host: str) -> Path:
        """The folder for a host's temporary files."""
        return self.folder / "hosts" / host

    def processes(self, host: str) -> dict[int, int]:
        """The processes of a host, each with its parent."""
        mark = f"TMPDIR={self.temporary(host)}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                environment = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdigit() else []
                if any(variable.startswith(mark) for variable in environment):
                    # The name, in parentheses, may hold anything.
                    found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        return found

    def cut(self, host: str) -> None:
        """Kill the server's end of the connection to a host."""
        found = self.processes(host)
        for parent in {*found.values()} - {*found}:
            os.kill(parent, signal.SIGKILL)

    def kill_worker(self, host: str) -> None:
        """Kill the process of a host that works, as the system does where memory ends."""
        found = self.processes(host)
        for worker in (process for process, parent in found.items() if parent in found):
            os.kill(worker, signal.SIGKILL)

    def left(self, host: str) -> list[str]:
        """What is still there of a host once it has had the time to clean up."""
        end = time.monotonic() + SECONDS
        while True:
            files = [str(file) for file in self.temporary(host).iterdir()]
            left = [*files, *map(str, self.processes(host))]
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.02)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Start the server: a host that is as it should be, and others that are not."""
    for name in ("host", "client", "wrong"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(keygen, check=True)
    shutil.copy(folder / "client.pub", folder / "authorized_keys")
    (folder / "known").write_text(f"device {(folder / 'host.pub').read_text()}")
    port = _free_port()
    (folder / "sshd_config").write_text(
        f"""
Port {port}
ListenAddress 127.0.0.1
HostKey {folder / "host"}
AuthorizedKeysFile {folder / "authorized_keys"}
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
AcceptEnv TMPDIR
LogLevel ERROR
MaxStartups 100
"""
    )
    pythons = _pythons(folder)
    toml = "".join(f'[devices.{name}]\naddress = "ssh://{name}"\npython = "{path}"\n' for name, path in pythons.items())
    (folder / "devices.toml").write_text(f'{toml}[groups]\nbench = ["first", "second", "third"]\n')
    (folder / "ssh_config").write_text("".join(_host(folder, port, name) for name in pythons))
    (folder / "bin").mkdir()
    _script(folder / "bin" / "ssh", f'exec {shutil.which("ssh")} -F {folder / "ssh_config"} "$@"')
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # the server's own, which its package makes where there is an init
    server = subprocess.Popen([SSHD, "-D", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield Server(folder, port, folder / "devices.toml", folder / "bin")
    finally:
        server.terminate()
        server.wait()


def _pythons(folder: Path) -> dict[str, Path]:
    """The Python of every host."""
    whole, bare = folder / "whole", folder / "bare"
    for place, packages in ((whole, PACKAGES), (bare, PACKAGES[:2])):
        venv.create(place, symlinks=True)
        inside = next(place.glob("lib/python*/site-packages"))
        for package in packages:
            (inside / package).symlink_to(Path(sysconfig.get_path("purelib")) / package)
    python = whole / "bin" / "python"
    _script(folder / "talking", f'echo Welcome\nexec {python} "$@"')
    _script(folder / "small", f'ulimit -f 1\nexec {python} "$@"')  # no file of more than a kilobyte
    _script(folder / "other", f'exec setarch i686 {python} "$@"')  # as uname says it is
    return {
        **dict.fromkeys(("first", "third", "stranger", "keyless"), python),
        "second": folder / "talking",
        "small": folder / "small",
        "other": folder / "other",
        "bare": bare / "bin" / "python",
        "absent": folder / "absent",
    }


def _host(folder: Path, port: int, name: str) -> str:
    temporary = folder / "hosts" / name
    temporary.mkdir(parents=True)
    return f"""
Host {name}
    HostName 127.0.0.1
    Port {port}
    HostKeyAlias device
    UserKnownHostsFile {"/dev/null" if name == "stranger" else folder / "known"}
    GlobalKnownHostsFile /dev/null
    IdentityFile {folder / ("wrong" if name == "keyless" else "client")}
    IdentitiesOnly yes
    IdentityAgent none
    SetEnv TMPDIR={temporary}
"""


def _script(file: Path, body: str) -> None:
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    end = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if time.monotonic() > end:
            sys.exit("the ssh server did not start")
        time.sleep(0.02)
