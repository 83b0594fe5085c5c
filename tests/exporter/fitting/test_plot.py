from pathlib import Path

import pytest

from actx.custom_ops.activations import ACTIVATIONS
from actx.exporter.errors import UsageError
from actx.exporter.fitting import Form, fit
from actx.exporter.fitting.plot import draw


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize(("name", "form"), [("gelu", "pwl:8"), ("tanh", "relu"), ("relu6", "spline:4x2")])
def test_pictures_are_the_same_every_time(tmp_path: Path, name: str, form: str, suffix: str) -> None:
    function = ACTIVATIONS[name]
    found = fit(function, Form.parse(form))
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    draw(found, function, name, first)
    draw(found, function, name, second)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[:4] in (b"\x89PNG", b"<?xm")
    if suffix == ".svg":
        assert b"dc:date" not in first.read_bytes()


def test_affine_fit_without_knots_draws(tmp_path: Path) -> None:
    found = fit(lambda x: 2 * x, Form.parse("pwl:4"))
    draw(found, lambda x: 2 * x, "line", tmp_path / "line.png")
    assert (tmp_path / "line.png").stat().st_size > 1000


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    found = fit(ACTIVATIONS["relu"], Form.parse("relu"))
    with pytest.raises(UsageError, match=r"cannot draw to a\.pdf"):
        draw(found, ACTIVATIONS["relu"], "relu", tmp_path / "a.pdf")
