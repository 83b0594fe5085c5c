"""Addresses of devices: what they may be made of, so that none becomes an option of ssh or a command."""

from __future__ import annotations

import re
from dataclasses import dataclass

from actx.exporter.errors import UsageError

SCHEME = "ssh://"
GRAMMAR = "ssh://[USER@]HOST[:PORT]"
# A name begins with a letter or a digit: ssh would take one that begins with - for an option.
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_ADDRESS = re.compile(
    rf"ssh://(?:(?P<user>{_NAME})@)?(?:(?P<host>{_NAME})|\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?)\])(?::(?P<port>\d+))?/?"
)
_MAX_LENGTH = 300
_MAX_PORT = 65535


@dataclass(frozen=True)
class Address:
    """Where a device is, for ssh.

    Attributes:
        host: a name, one that ~/.ssh/config gives a meaning to among them, or an IP address.
        user: None for the one that ssh takes.
        port: None for the one that ssh takes.
    """

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``ssh://[USER@]HOST[:PORT]``; HOST may be an IPv6 address in brackets.

        Raises:
            UsageError: the text is something else.
        """
        match = _ADDRESS.fullmatch(text) if len(text) <= _MAX_LENGTH else None
        port = None if match is None or match["port"] is None else int(match["port"])
        if match is None or (port is not None and not 0 < port <= _MAX_PORT):
            raise UsageError(
                f"'{text}' is no address of a device",
                note=f"expected {GRAMMAR}, of letters, digits and . _ - or an IPv6 address in brackets, with a port up to "
                f"{_MAX_PORT}; no password",
                remedy="Give what else ssh needs a Host entry in ~/.ssh/config, and name that host.",
            )
        return cls(match["host"] or match["ipv6"], match["user"], port)

    def arguments(self) -> list[str]:
        """Return it as the last arguments of ssh before the command."""
        user = [] if self.user is None else ["-l", self.user]
        port = [] if self.port is None else ["-p", str(self.port)]
        return [*user, *port, "--", self.host]

    def __str__(self) -> str:
        user = "" if self.user is None else f"{self.user}@"
        port = "" if self.port is None else f":{self.port}"
        return f"{SCHEME}{user}{f'[{self.host}]' if ':' in self.host else self.host}{port}"
