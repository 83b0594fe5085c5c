"""Exports attribute their drift: which stages there are, when it is done, what is said of the worst places."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from actx.cli.main import run
from actx.exporter.errors import UsageError
from actx.exporter.fitting import Form
from actx.exporter.manifest import Manifest
from actx.exporter.pipeline import DriftExceeded, Exported, NotBuilt, export
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.runtimes.openvino import description
from tests.networks import Graph

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from actx.exporter.runtimes.base import Session

WIDTH, HIDDEN, SAMPLES = 12, 32, 96
LAYERS = ("up", "gate", "down")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of two residual blocks x + down(gelu(up(x))) and a gated one behind, with data."""
    folder = tmp_path_factory.mktemp("stages")
    g, rng = Graph(20), np.random.default_rng(5)
    x = g.input("x", ["batch", WIDTH])

    def linear(value: str, name: str, inputs: int, outputs: int) -> str:
        g.scope = f"/{name}/"
        weight = rng.standard_normal((inputs, outputs)) / inputs**0.5
        return g.linear(value, name, weight, rng.standard_normal(outputs) / 4)

    for i in range(2):
        inner = linear(x, f"block{i}/up", WIDTH, HIDDEN)
        g.scope = f"/block{i}/act/"
        x = g.op("Add", x, linear(g.op("Gelu", inner), f"block{i}/down", HIDDEN, WIDTH))
    gate, up = (linear(x, f"gated/{name}", WIDTH, HIDDEN) for name in ("gate", "up"))
    g.scope = "/gated/act/"
    product = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    g.output(linear(product, "gated/down", HIDDEN, 4), "y", 2)
    onnx.save(g.model(), folder / "model.onnx")
    np.savez(folder / "data.npz", x=rng.standard_normal((SAMPLES, WIDTH)).astype(np.float32))
    return folder


def exported(folder: Path, out: Path, **asked: Any) -> Exported:
    """Export, also where the engine cannot be built here."""
    try:
        return export(folder / "model.onnx", out, data=str(folder / "data.npz"), measure_latency=False, **asked)
    except NotBuilt as error:
        return error.exported


def test_an_original_is_opened_once_for_what_it_gives_and_once_for_what_is_inside(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, bool]] = []
    plain = RuntimeOptions.open

    def watched(self: RuntimeOptions, model: Path, outputs: Sequence[str] = ()) -> Session:
        opened.append((model.name, bool(outputs)))
        return plain(self, model, outputs)

    monkeypatch.setattr(RuntimeOptions, "open", watched)
    found = exported(folder, tmp_path / "out", form=Form("relu"), quant="int4", ffn="keep")
    assert [report.graph for report in found.drifts] == ["model.ort-cpu.onnx", "model.onnx"]
    assert stages(found) == ["rewrite", "quantize"]
    # To calibrate, to check at the sites, and to attribute the drift.
    assert sorted(tapped for name, tapped in opened if name == "original.onnx") == [False, True, True, True]
    assert sorted(file.name for file in found.path.iterdir()) == sorted(
        [*found.manifest.files, "manifest.json", "report.html"]
    )


def stages(found: Exported) -> list[str]:
    return [] if found.attribution is None else [stage.name for stage in found.attribution.stages]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"form": Form("keep")}, []),
        ({"form": Form("keep"), "attribute": True}, []),
        ({"form": Form("relu")}, []),
        ({"form": Form("relu"), "attribute": True}, ["rewrite"]),
        ({"form": Form("keep"), "ffn": "pack", "attribute": True}, ["rewrite"]),
        ({"form": Form("relu"), "recover": True}, ["rewrite", "recovery"]),
        ({"form": Form("relu"), "recover": True, "attribute": False}, []),
        ({"form": Form("keep"), "target": "trt", "quant": "int8", "attribute": True}, ["quantize"]),
        ({"form": Form("relu"), "target": "trt", "quant": "int8"}, ["rewrite", "quantize"]),
        (
            {"form": Form("relu"), "target": "trt", "quant": "int8", "recover": True},
            ["rewrite", "recovery", "quantize"],
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values() if isinstance(value, dict) else value)) or "none",
)
def test_only_stages_that_changed_something_are_there(
    folder: Path, tmp_path: Path, asked: dict[str, Any], expected: list[str]
) -> None:
    found = exported(folder, tmp_path / "out", **asked)
    assert stages(found) == expected
    if found.attribution is not None and found.drift is not None:
        assert found.attribution.stages[-1].drift == pytest.approx(found.drift.drift, rel=1e-6)
        (*_, last) = found.attribution.stages
        assert {place.name for place in last.places} >= {site.name for site in found.manifest.sites}
        read = Manifest.read(found.path / "manifest.json").attribution
        assert read is not None
        assert [stage.name for stage in read.stages] == expected
        assert read.verdict == found.attribution.verdict


def test_another_runtime_is_a_stage_of_its_own(folder: Path, tmp_path: Path) -> None:
    description()  # what is tested needs OpenVINO, and fails without it
    found = exported(folder, tmp_path / "out", form=Form("poly", (4,)), target="openvino")
    assert stages(found) == ["rewrite", "engine"]
    assert found.attribution is not None
    rewrite, engine = found.attribution.stages
    # Both compute the same graph in float32: sums of at most 32 products, layer behind layer.
    assert engine.added < 1e-5 < rewrite.added
    assert found.drift is not None
    assert engine.drift == found.drift.drift


def test_the_coarse_site_is_named_with_the_next_form(folder: Path, tmp_path: Path) -> None:
    sites = {"block1.act": Form("hardswish")}
    found = exported(folder, tmp_path / "out", form=Form("spline", (16, 3)), sites=sites, attribute=True)
    assert found.attribution is not None
    worst, *others = found.attribution.worst
    assert (worst.name, worst.kind, worst.stage) == ("block1.act", "site", "rewrite")
    assert worst.remedy == "choose a finer form: --site 'block1.act=pwl:8', or --recover"
    assert all(other.added_db > worst.added_db + 20 for other in others)
    # Of its layers nothing is said: they give so many times as much, and nothing else.
    assert {other.kind for other in others} <= {"site"}


def test_a_scheme_is_named_at_layers(folder: Path, tmp_path: Path) -> None:
    asked = {"form": Form("keep"), "target": "trt", "quant": "int8", "attribute": True}
    found = exported(folder, tmp_path / "out", **asked)
    assert found.attribution is not None
    assert found.attribution.verdict == "quantize"
    for place in found.attribution.worst:
        assert (place.kind, place.stage) == ("layer", "quantize")
        assert place.name in {f"{block}.{layer}" for block in ("block0", "block1", "gated") for layer in LAYERS}
        assert "--quant fp16" in place.remedy
        # A step of peak / 127 makes a noise of it / sqrt(12). Peaks are 2 to 20 times the root mean square, of a product of
        # two normal numbers the most: 27 to 47 dB for weights and inputs each.
        assert 24 < place.added_db < 47


def test_a_layer_that_can_be_left_out_of_a_scheme_is_named_as_the_option_takes_it(folder: Path, tmp_path: Path) -> None:
    asked = {"form": Form("keep"), "target": "openvino", "quant": "int8"}
    found = exported(folder, tmp_path / "out", **asked, attribute=True)
    assert stages(found) == ["quantize"]  # in OpenVINO, which computes in these types: there is no stage between
    assert found.attribution is not None
    worst = found.attribution.worst[0]
    remedy, _, pattern = worst.remedy.partition(": --exclude ")
    assert remedy == "leave it in floating point"
    again = exported(folder, tmp_path / "again", **asked, attribute=True, exclude=[pattern.strip("'")])
    assert again.attribution is not None
    noise = {place.node: place.added_db for place in again.attribution.stages[-1].places}
    assert noise[worst.node] > worst.added_db + 10


def test_a_missed_budget_is_attributed_unless_that_is_not_wanted(folder: Path, tmp_path: Path) -> None:
    for attribute, expected in ((None, ["rewrite"]), (False, [])):
        with pytest.raises(DriftExceeded) as caught:
            exported(folder, tmp_path / "out", form=Form("relu"), max_drift=1e-4, attribute=attribute)
        assert stages(caught.value.exported) == expected


def test_it_needs_the_drift(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--attribute needs the drift"):
        exported(folder, tmp_path / "out", form=Form("relu"), measure_drift=False, attribute=True)


def test_the_command_prints_the_stages_and_what_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["actx", "export", str(folder / "model.onnx"), "--data", str(folder / "data.npz"), "--form", "relu"]
    asked += ["--no-profile", "--attribute", "--target", "onnx", "-o", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", asked)
    run()
    printed = capsys.readouterr().out
    assert "of the stages, rewrite costs the most" in printed
    assert "Where most noise is added" in printed
    assert "--site 'block0.act=" in printed
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())["attribution"]
    assert (found["metric"], found["verdict"]) == ("l2", "rewrite")
