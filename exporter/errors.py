"""Every error that actx raises on purpose.

ActxError                exit code 1: the input or the machine is at fault
├── UsageError           exit code 2: the request is
├── RequirementError     exit code 3: the result misses a requirement that was stated
└── TargetUnavailable    exit code 4: the target cannot be had on this machine
"""

from __future__ import annotations

from typing import ClassVar


class ActxError(Exception):
    """An error in three parts: what failed, the facts, and the remedy.

    Attributes:
        what: one line that says what failed.
        note: the facts: got, allowed, available. May be empty.
        remedy: what to do about it. May be empty.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, note: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = one_line(what)
        self.note = one_line(note)
        self.remedy = one_line(remedy)

    def __str__(self) -> str:
        parts = [self.what, f"Note: {self.note}" if self.note else "", self.remedy]
        return "\n".join(part for part in parts if part)


class UsageError(ActxError):
    """The request itself is wrong: an unknown form, a malformed option."""

    exit_code = 2


class IncomparableError(ActxError):
    """Two models give nothing that can be compared."""


class RequirementError(ActxError):
    """A stated requirement, such as the drift budget, was missed."""

    exit_code = 3


class TargetUnavailable(ActxError):  # noqa: N818 - the name states the condition, as FileNotFound does
    """The target cannot be built or run on this machine."""

    exit_code = 4


def one_line(text: str, limit: int = 300) -> str:
    """Return text on one line: control characters escaped, the middle of an overlong text left out."""
    flat = printable(" ".join(text.split()))
    return flat if len(flat) <= limit else f"{flat[: limit // 2]} ... {flat[-limit // 2 :]}"


def printable(text: str) -> str:
    """Return text with control characters escaped: names in a model may hold what a terminal would obey."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
