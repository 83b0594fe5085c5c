import pytest

from actx.exporter.errors import UsageError
from actx.exporter.fitting import Form

MALFORMED = [
    "",
    "pwl",
    "pwl:",
    "pwl:1",
    "pwl:33",
    "pwl:016",
    "pwl:8x2",
    "pwl:-8",
    "pwl:8\n",
    " pwl:8",
    "PWL:8",
    "pwl:٨",
]
MALFORMED += ["poly:1", "poly:17", "spline:16", "spline:33x3", "spline:16x4", "spline:16x0", "spline:16x3x1"]
MALFORMED += ["relu:1", "lut", "auto", "pwl:99999999999"]


@pytest.mark.parametrize("text", ["keep", "relu", "hardswish", "pwl:2", "pwl:32", "poly:2", "poly:16", "spline:16x3"])
def test_text_round_trips(text: str) -> None:
    assert str(Form.parse(text)) == text


@pytest.mark.parametrize("text", MALFORMED)
def test_anything_else_names_what_is_allowed(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Form.parse(text)
    assert "pwl:K (2 <= K <= 32)" in caught.value.note
    assert "spline:KxD (2 <= K <= 32, 1 <= D <= 3)" in caught.value.note
    assert caught.value.exit_code == 2


def test_shape_and_order() -> None:
    assert (Form.parse("pwl:16").segments, Form.parse("pwl:16").degree) == (16, 1)
    assert (Form.parse("poly:8").segments, Form.parse("poly:8").degree) == (4, 8)
    assert (Form.parse("spline:32x3").segments, Form.parse("spline:32x3").degree) == (32, 3)
    assert sorted([Form.parse("pwl:16"), Form.parse("keep"), Form.parse("pwl:8")])[1] == Form.parse("pwl:8")
    assert len({Form.parse("pwl:8"), Form.parse("pwl:8")}) == 1


def test_constructing_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError):
        Form("pwl", (64,))
