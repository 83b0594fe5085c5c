"""Conditions are read by a small grammar, and never pass for lack of a number."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actx.exporter.comparing.condition import parse_condition
from actx.exporter.errors import ActxError, UsageError

BASE = {"latency.p50": 2.0, "drift.l2": 0.1, 'size["a \\" b"]': 8.0, "accuracy": None}
HERE = {"latency.p50": 3.0, "drift.l2": math.inf, 'size["a \\" b"]': 4.0, "accuracy": 0.5}


def holds(text: str) -> bool:
    return parse_condition(text).holds(HERE, BASE, list(BASE))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latency.p50 > 1.05 * base", True),
        (" latency.p50>base*1.5 ", False),
        ("latency.p50 >= base * 1.5", True),
        ("latency.p50 < 1 + 2 * 3 - 8 / 2", False),
        ("latency.p50 <= -(1 - base * 2)", True),
        ("latency.p50 == base + 1", True),
        ("latency.p50 != 3e0", False),
        ("latency.p50 > base.drift.l2 * 29", True),
        ("latency.p50 > size['a \" b']", False),
        ('size["a \\" b"] < base', True),
        ("drift.l2 > 1e300 * base", True),
        ("drift.l2 > drift.l2", False),
    ],
)
def test_arithmetic(text: str, expected: bool) -> None:
    assert holds(text) is expected


def test_what_is_compared_is_told() -> None:
    assert parse_condition("latency.p50 > 1.05 * base").holds(HERE, BASE, list(BASE)) == (True, 3.0, 2.1)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "latency.p50", "1 > 2", "2 > latency.p50", "base > 1", "base.latency.p50 > 1", "latency.p50 > 1 > 0"),
        *("latency.p50 > '1'", "latency.p50 > True", "latency.p50 > None", "latency.p50 > 1j", "latency.p50 > ..."),
        *("latency.p50 is 1", "latency.p50 in base", "not latency.p50 > 1", "latency.p50 > 1 and 1", "latency.p50 = 1"),
        *("latency.p50 > 2 ** 3", "latency.p50 > 7 // 2", "latency.p50 > 7 % 2", "latency.p50 > ~1", "latency.p50 > +1"),
        *("latency.p50 > base[0]", "latency.p50 > [1]", "latency.p50 > {1}", "latency.p50 > (1, 2)"),
        "latency.p50 > 1 if 1 else 2",
        *("latency.p50 > abs(1)", "latency.p50 > __import__('os').system('true')", "latency.p50 > (lambda: 1)()"),
        *("latency.p50 > (x := 1)", "latency.p50 > f'{1}'", "latency.p50 > (await x)", "latency.p50 > 1 # more\n+ 1\n1"),
        *("latency.p50 > 1\0", "latency.p50 > '\\d'", "latency.p50 > 1if 1else 2", "\ud800 > 1", "import os"),
        *("latency.p50 > " + "(" * 480, "latency.p50 > " + "1" * 400, "latency.p50 > " + "1+" * 300 + "1"),
    ],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="is no condition") as error:
        parse_condition(text)
    assert error.value.remedy


@given(st.text(max_size=60) | st.text(alphabet="latency.p50 base><=+-*/()[]\"'1e9_", max_size=500))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_condition(text).quantity


@pytest.mark.parametrize("depth", [240, 470])
def test_depth_is_no_harm(depth: int) -> None:
    assert parse_condition("latency.p50 > " + "-" * depth + "1").holds(HERE, BASE, list(BASE))[0] is True


@pytest.mark.parametrize(
    "text", ["latency.p5 > 1", "latency.p50 > base.p50", "latency > 1", "size['b'] > 1", "x.y.z > base"]
)
def test_unknown_names(text: str) -> None:
    with pytest.raises(UsageError, match="unknown quantity") as error:
        holds(text)
    assert error.value.note == 'known are latency.{p50}, drift.{l2}, size["..."], accuracy'


@pytest.mark.parametrize("text", ["accuracy < base", "accuracy < base.accuracy - 1", "latency.p50 > base.accuracy"])
def test_what_was_not_measured_is_an_error(text: str) -> None:
    with pytest.raises(ActxError, match="cannot be judged") as error:
        holds(text)
    assert (error.value.exit_code, error.value.note) == (1, "accuracy was not measured in the base")
    with pytest.raises(ActxError, match="cannot be judged"):
        parse_condition("latency.p50 > 1").holds({}, BASE, list(BASE))


@pytest.mark.parametrize(
    "text", ["latency.p50 > 1 / 0", "latency.p50 > drift.l2 - drift.l2", "latency.p50 > 1 / (base - 2)"]
)
def test_what_is_no_number_is_an_error(text: str) -> None:
    with pytest.raises(ActxError, match="compares with no number"):
        holds(text)
