"""A site whose function is not finite where inputs come is named, in the notes of both verbs; a sound one is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from actx.cli.main import app
from actx.exporter import Form, export, inspect
from actx.exporter.calibrate import SiteStatistics
from actx.exporter.diagnosis import diagnose, require_bounded
from actx.exporter.errors import ActxError
from actx.exporter.lift import Site, lift
from actx.exporter.load.prepare import prepare
from actx.exporter.poles import find_pole
from tests.networks import HIDDEN, SPELLINGS, WIDTH, Graph, onnx_mlp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OBSERVED = SiteStatistics(-6.0, 6.0, 1.0, 0.0)
NAN = float("nan")


def site_of(write: Callable[[Graph, str], str]) -> Site:
    model = ir.from_proto(onnx_mlp(write))
    prepare(model)
    (site,) = lift(model).sites
    return site


def _over(at: float, power: float = 1.0) -> Callable[[Graph, str], str]:
    return lambda g, x: g.op("Div", x, g.op("Pow", g.op("Sub", x, at), power))


def _weak(g: Graph, x: str) -> str:
    return g.op("Add", g.op("Tanh", x), g.op("Div", 1e-4, g.op("Sub", x, 1.2345)))


def _published_gelu(g: Graph, x: str) -> str:
    """A Pade approximant that is good near 0, and whose denominator has a root beyond."""
    square = g.op("Mul", x, x)
    return g.op("Div", g.op("Add", g.scale(x, 0.5), g.scale(square, 0.4)), g.op("Sub", 1.0, g.scale(square, 0.06)))


def _per_channel(g: Graph, x: str) -> str:
    at = np.linspace(90, 2, HIDDEN).astype(np.float32)
    return g.op("Div", g.op("Tanh", x), g.op("Sub", x, at))


@pytest.mark.parametrize(
    ("write", "near"),
    [
        (_over(1.2345), 1.2345),
        (_over(-3.0, 2.0), -3.0),
        (_weak, 1.2345),
        (_published_gelu, 0.06**-0.5),
        (_per_channel, 2.0),
    ],
)
def test_a_pole_in_the_range_is_found(write: Callable[[Graph, str], str], near: float) -> None:
    site = site_of(write)
    (note,) = diagnose([site], {site.name: OBSERVED})
    assert f"site {site.name} is not finite near x = " in note
    assert "inside the observed range -6 .. 6" in note
    place = float(note.split("x = ")[1].split(",")[0])
    assert abs(place) == pytest.approx(abs(near), abs=1e-5)


def test_a_pole_outside_the_range_is_no_matter() -> None:
    site = site_of(_published_gelu)
    assert diagnose([site], {site.name: SiteStatistics(-3.0, 3.0, 1.0, 0.0)}) == ()
    (note,) = diagnose([site])
    assert "without --data nothing says whether inputs come there" in note


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (lambda g, x: g.op("Tanh", g.op("Mul", x, NAN)), "has a constant that is not a number"),
        (lambda g, x: g.op("LeakyRelu", x, alpha=NAN), "has a constant that is not a number"),
        (
            lambda g, x: g.op("PRelu", x, np.array([0.1] * (HIDDEN - 1) + [NAN], np.float32)),
            "constant that is not a number",
        ),
        (lambda g, x: g.op("Tanh", g.op("Mul", x, float("inf"))), "is not finite near x = 0"),
        (lambda g, x: g.op("Mul", x, g.op("Log", x)), "is not finite near x = -6"),
        (lambda g, x: g.op("Exp", g.op("Mul", x, 300.0)), "is not finite near x = 2"),
    ],
)
def test_what_is_no_number(write: Callable[[Graph, str], str], what: str) -> None:
    site = site_of(write)
    (note,) = diagnose([site], {site.name: OBSERVED})
    assert what in note


def test_outputs_that_were_not_finite_are_told() -> None:
    site = site_of(SPELLINGS["silu"].write)
    (note,) = diagnose([site], {site.name: SiteStatistics(-1.0, 1.0, 1.0, 0.0, undefined=3)})
    assert note == f"site {site.name} gave 3 outputs that are not finite, of finite inputs"


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_activations_of_the_literature_are_sound(name: str) -> None:
    site = site_of(SPELLINGS[name].write)
    assert diagnose([site]) == diagnose([site], {site.name: OBSERVED}) == ()


@settings(max_examples=40, deadline=None)
@given(st.floats(-50, 50), st.floats(1e-3, 3), st.floats(-4, 4))
def test_any_simple_pole_is_found_and_no_other(at: float, residue: float, slope: float) -> None:
    def write(g: Graph, x: str) -> str:
        return g.op("Add", g.scale(x, slope), g.op("Div", residue, g.op("Sub", x, at)))

    function = site_of(write).function
    found = find_pole(function, -60.0, 60.0)
    assert found == pytest.approx(float(np.float32(at)), abs=1e-4)
    with pytest.raises(ActxError, match="is not finite near x ="):
        require_bounded(function, (-60.0, 60.0))
    low, high = found + 0.01, found + 100
    assert find_pole(function, low, high) is None
    require_bounded(function, (low, high))


# --- what the verbs do with it ---


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(onnx_mlp(_over(1.2345)), tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.uniform(-1, 1, (64, 5, WIDTH)).astype(np.float32))
    return tmp_path / "model.onnx"


def test_inspect_notes_it(model: Path) -> None:
    found = inspect(model, data=str(model.parent / "data.npz"))
    assert any("is not finite near x = 1.2345, inside the observed range" in note for note in found.notes)
    assert any("without --data" in note for note in inspect(model).notes)


def test_export_keeps_the_site_and_notes_it(model: Path, tmp_path: Path) -> None:
    kinds: dict[str, Any] = {"form": Form.parse("spline:16x3"), "measure_latency": False, "max_drift": None}
    for i, data in enumerate((str(tmp_path / "data.npz"), None)):
        manifest = export(model, tmp_path / f"out{i}", data=data, **kinds).manifest
        assert [(site.form, "is not finite near x = 1.2345" in site.reason) for site in manifest.sites] == [
            ("keep", True)
        ]
        assert any("is not finite near x = 1.2345" in note for note in manifest.notes)


def test_a_pinned_form_is_an_error_that_names_the_site(model: Path, tmp_path: Path) -> None:
    (name,) = (site.name for site in inspect(model).sites)
    with pytest.raises(ActxError, match=f"site {name} cannot take the form pwl:8") as caught:
        export(model, tmp_path / "out", sites={name: Form.parse("pwl:8")}, data=str(tmp_path / "data.npz"))
    assert "is not finite near x = 1.2345" in caught.value.note


def test_an_export_that_gives_nan_everywhere_names_the_site(tmp_path: Path) -> None:
    onnx.save(onnx_mlp(lambda g, x: g.op("Tanh", g.op("Mul", x, NAN))), tmp_path / "model.onnx")
    with pytest.raises(ActxError, match="NaN or infinite everywhere") as caught:
        export(tmp_path / "model.onnx", tmp_path / "out", form=Form.parse("pwl:8"), measure_latency=False)
    assert "has a constant that is not a number" in caught.value.note
    kept = export(
        tmp_path / "model.onnx", tmp_path / "out", form=Form.parse("pwl:8"), measure_drift=False, measure_latency=False
    )
    assert [site.reason for site in kept.manifest.sites] == ["kept: the function has a constant that is not a number"]


def test_a_site_that_nothing_finite_reaches_has_no_range(tmp_path: Path) -> None:
    def write(g: Graph, x: str) -> str:
        return g.op("Tanh", g.linear(g.op("Tanh", g.op("Mul", x, NAN)), "middle", np.eye(HIDDEN)))

    onnx.save(onnx_mlp(write), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=np.ones((4, 3, WIDTH), np.float32))
    found = inspect(tmp_path / "model.onnx", data=str(tmp_path / "data.npz"))
    assert [site["range"] is None for site in found.to_dict()["sites"]] == [False, True]
    printed = (
        CliRunner().invoke(app, ["inspect", str(tmp_path / "model.onnx"), "--data", str(tmp_path / "data.npz")]).output
    )
    assert "nothing finite" in printed
