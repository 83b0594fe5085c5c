"""The form of every error."""

from __future__ import annotations

import pytest

from actx.exporter.errors import ActxError, RequirementError, TargetUnavailable, UsageError, one_line


def test_what_then_note_then_remedy() -> None:
    error = ActxError("it failed", note="got 1, allowed 2", remedy="Give 2.")
    assert str(error) == "it failed\nNote: got 1, allowed 2\nGive 2."
    assert str(ActxError("it failed")) == "it failed"
    assert str(ActxError("it failed", remedy="Give 2.")) == "it failed\nGive 2."


@pytest.mark.parametrize(
    ("kind", "code"), [(ActxError, 1), (UsageError, 2), (RequirementError, 3), (TargetUnavailable, 4)]
)
def test_exit_codes(kind: type[ActxError], code: int) -> None:
    assert kind("x").exit_code == code
    assert isinstance(kind("x"), ActxError)


def test_each_part_is_one_line_without_control_characters() -> None:
    error = ActxError("a\nb\tc", note="red \x1b[31m", remedy="x\r\ny\x00")
    assert str(error).split("\n") == ["a b c", r"Note: red \x1b[31m", r"x y\x00"]


def test_long_text_keeps_both_ends() -> None:
    text = one_line("start " + "x" * 10_000 + " end")
    assert len(text) < 400
    assert text.startswith("start")
    assert text.endswith("end")
    assert one_line("x" * 300) == "x" * 300
