"""Each verb once, as a user runs it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from actx.custom_ops import ACTIVATIONS
from actx.models.demo import ARCHIVE, EVALUATION, demo_path
from tests.cli.conftest import process
from tests.networks import NOT_SITES, WIDTH

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from tests.cli.conftest import Actx


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.npz"
    np.savez(file, x=np.random.default_rng(0).uniform(-1, 1, (6, 3, WIDTH)).astype(np.float32))
    return file


# --- inspect ---


def test_inspect(actx: Actx, model: Path, data: Path) -> None:
    result = actx("inspect", model, "--data", data)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("3 sites in model.onnx: an ONNX model, opset 18\n")
    assert re.search(r"^layers\.0\S*  gelu ", result.out, re.MULTILINE)
    assert "synthetic" not in result.out
    assert not re.search(r" $", result.out, re.MULTILINE)


def test_inspect_says_why_not(actx: Actx, tmp_path: Path) -> None:
    onnx.save(NOT_SITES["layer_norm"].build(18), tmp_path / "model.onnx")
    assert "No sites" not in actx("inspect", tmp_path / "model.onnx").out
    result = actx("inspect", tmp_path / "model.onnx", "--explain")
    assert "No sites" in result.out
    assert "because" in result.out


# --- export, check, profile ---


def test_export_check_and_profile(actx: Actx, model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    common = ("--data", data, "--batch-size", 2, "--threads", 1)
    result = actx("export", model, "-o", out, "--form", "spline:8x3", *common, "--runs", 3)
    assert (result.code, result.err) == (0, "")
    assert "3 sites of model.onnx for ort-cpu" in result.out
    assert f"bundle: {out}" in result.out
    assert "synthetic" not in result.out
    result = actx("check", model, out, *common, "--metric", "max_abs", "--max-drift", 1)
    assert result.code == 0
    assert "budget 1: met" in result.out
    result = actx("profile", model, out, *common, "--runs", 3)
    assert result.code == 0
    assert "all sites" in result.out
    assert actx("export", model, "-o", out, *common).code == 2
    assert actx("export", model, "-o", out, *common, "--force", "--no-check", "--no-profile").code == 0


def test_data_that_is_constant(actx: Actx, model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((6, 3, WIDTH), np.float32))
    common = (model, "--data", tmp_path / "data.npz")
    assert actx("inspect", *common).code == 0
    for form in ("pwl:8", "hardswish"):
        result = actx("export", *common, "-o", tmp_path / "out", "--form", form, "--runs", 2, "--force", "--json")
        assert (result.code, result.err) == (0, "")
        assert json.loads(result.out)["drift"][0]["drift"] >= 0


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.full((2, 3, WIDTH), np.nan, np.float32)}, "is not finite"),
        ({"x": np.zeros((0, 3, WIDTH), np.float32)}, "has no samples"),
        ({"z": np.zeros((2, 3, WIDTH), np.float32)}, "is missing"),
        ({"x": np.zeros((2, 3, WIDTH + 1), np.float32)}, "has the wrong shape"),
        ({"x": np.zeros((2, WIDTH), np.float32)}, "has the wrong shape"),
        ({"x": np.full((2, 3, WIDTH), "a")}, "has the element type"),
    ],
)
def test_data_that_does_not_fit_leaves_the_old_bundle(
    actx: Actx, model: Path, tmp_path: Path, arrays: dict[str, NDArray[Any]], words: str
) -> None:
    out = tmp_path / "out"
    assert actx("export", model, "-o", out, "--form", "pwl:8", "--no-check", "--no-profile").code == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    result = actx("export", model, "-o", out, "--data", tmp_path / "data.npz", "--force")
    assert (result.code, result.out) == (1, "")
    assert words in result.err
    assert 2 <= len(result.err.splitlines()) <= 3
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.npz", "model.onnx", "out"]


def test_sites_are_pinned_by_name_and_pattern(actx: Actx, model: Path, tmp_path: Path) -> None:
    pins = ("--site", "layers.*=pwl:4", "--site", "layers.1*=keep")
    result = actx("export", model, "-o", tmp_path / "out", *pins, "--no-check", "--no-profile", "--json")
    assert result.code == 0
    assert [site["form"] for site in json.loads(result.out)["sites"]] == ["pwl:4", "keep", "pwl:4"]


def test_inspect_of_a_bundle(actx: Actx, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert actx("export", model, "-o", out, "--form", "pwl:8", "--no-check", "--no-profile").code == 0
    result = actx("inspect", out)
    assert (result.code, result.err) == (0, "")
    title, columns, *rows = result.out.splitlines()
    assert title == "out: 3 sites of model.onnx for ort-cpu"
    assert "error at most" in columns
    assert all("pwl:8" in row and "everywhere" in row and "constant and linear" in row for row in rows[:3])
    printed = json.loads(actx("inspect", out, "--json").out)
    assert printed.pop("graph") in {"model.onnx", "model.ort-cpu.onnx"}
    assert printed.pop("reason")
    assert printed.pop("site_layers") == {}  # of engines
    assert printed == json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert actx("inspect", out, "--explain").code == 2
    (out / "model.onnx").write_bytes(b"")
    assert "not the file that the export wrote" in actx("inspect", out).err


def test_a_missed_budget(actx: Actx, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = actx("export", model, "-o", out, "--form", "relu", "--max-drift", 1e-9, "--no-profile")
    assert result.code == 3
    assert "budget 1e-09: MISSED" in result.out
    assert result.out.rstrip().endswith("bundle: " + str(tmp_path / "out.rejected"))
    assert "synthetic input" in result.err
    assert str(tmp_path / "out.rejected") in result.err
    assert not out.exists()
    assert (tmp_path / "out.rejected" / "manifest.json").is_file()


def test_an_archive_in_a_process_of_its_own_prints_nothing_but_its_object(tmp_path: Path) -> None:
    """torch and its exporter log, warn and print."""
    data = demo_path(EVALUATION)
    result = process(
        "export",
        demo_path(ARCHIVE),
        "--form",
        "pwl:16",
        "--data",
        data,
        "--no-profile",
        "--json",
        "-o",
        tmp_path / "out",
    )
    assert (result.code, result.err) == (0, "")
    tree = json.loads(result.out)
    assert tree["source"]["file"] == "digits_vit.pt2"
    assert tree["drift"][0]["synthetic"] is False
    assert tree["drift"][0]["accuracy"]["artifact"] > 0.9
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out"]


# --- fit ---


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_fit_of_every_activation(actx: Actx, name: str) -> None:
    result = actx("fit", name, "--form", "pwl:8", "--range=-4,4", "--json")
    assert (result.code, result.err) == (0, "")
    tree = json.loads(result.out)
    assert isinstance(tree["max_error"], float)
    assert len(tree["knots"]) + 1 == len(tree["coefficients"]) <= 8
    assert tree["interval"] == [-4, 4]


@pytest.mark.parametrize("form", ["relu", "hardswish", "pwl:8", "poly:8", "spline:8x3"])
def test_fit_of_every_form(actx: Actx, form: str) -> None:
    result = actx("fit", "silu", "--form", form)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"silu as {form}: ")
    assert "max error everywhere: " in result.out
    assert "-inf .. " in result.out


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plots_are_the_same_from_run_to_run(actx: Actx, tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    for file in (first, second):
        result = actx("fit", "gelu", "--form", "pwl:8", "--plot", file)
        assert (result.code, result.err) == (0, "")
        assert f"plot: {file}" in result.out
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 5000


def test_kernels_that_were_named_and_cannot_be_had(
    actx: Actx, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert actx("export", model, "-o", out, "--form", "pwl:8", "--no-profile").code == 0
    monkeypatch.setenv("ACTX_LIBRARY", str(tmp_path / "absent.so"))
    for command in (
        ("check", model, out), ("profile", model, out, "--kernels", "--runs", 1), ("inspect", out),
        ("export", model, "-o", tmp_path / "other"),
    ):  # fmt: skip
        refused = actx(*command)
        assert (refused.code, refused.out) == (4, "")
        assert len(refused.err.splitlines()) == 3
        assert "absent.so" in refused.err
    printed = json.loads(actx("check", model, out, "--no-kernels", "--json").out)
    assert printed["graph"] == "model.onnx"
    assert actx("export", model, "--target", "onnx", "--kernels", "-o", tmp_path / "other").code == 2
    assert actx("export", model, "--with-kernels", "x86_64,mips", "-o", tmp_path / "other").code == 2
    assert not (tmp_path / "other").exists()
