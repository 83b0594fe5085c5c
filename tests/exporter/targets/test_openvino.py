"""Bundles for `openvino`: graphs of standard ops in OpenVINO's own forms, checked and profiled in OpenVINO."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from actx.exporter import Form, InputSpec, check, export, profile, session
from actx.exporter.errors import UsageError
from actx.models.demo import CALIBRATION, demo_path
from tests.exporter.targets.networks import SMALL, write_batches, write_small
from tests.networks import WIDTH

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.pipeline import Exported

OWN = "model.openvino.onnx"


def for_openvino(model: Path, out: Path, data: Path | None = None, **options: Any) -> Exported:
    asked = {"measure_latency": False, **options}
    return export(model, out, target="openvino", data=None if data is None else str(data), **asked)


@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name: str, tmp_path: Path) -> None:
    """Unasked nothing is rewritten; a form drifts as it does in ONNX Runtime."""
    small = SMALL[name]
    model, data = write_small(small, tmp_path)
    form = None if small.form is None else Form.parse(small.form)
    exported = for_openvino(model, tmp_path / "out", data, form=form)
    assert [report.graph for report in exported.drifts][-1] == "model.onnx"
    first = exported.drifts[0]
    assert first.runtime["runtime"] == "openvino"
    assert first.runtime["precision_used"] == "f32"
    if form is None:
        assert first.drift <= 1e-5
    else:
        portable = export(model, tmp_path / "portable", target="onnx", form=form, data=str(data), measure_latency=False)
        assert portable.drift is not None
        assert first.drift == pytest.approx(portable.drift.drift, rel=0.01)
    assert [site.name for site in first.sites] == [site.name for site in exported.manifest.sites if site.form != "keep"]


def test_a_form_is_written_as_itself(tmp_path: Path) -> None:
    """In the portable graph a form this close is the source's own op."""
    model, data = write_small(SMALL["16-segment pwl"], tmp_path)
    exported = for_openvino(model, tmp_path / "out", data, form=Form.parse("poly:12"))
    ops = {name: {node.op_type for node in onnx.load(exported.path / name).graph.node} for name in ("model.onnx", OWN)}
    assert "Gelu" in ops["model.onnx"]
    assert "Gelu" not in ops[OWN]


def test_the_demo_network_with_its_latency(demo_onnx: Path, tmp_path: Path) -> None:
    data = demo_path(CALIBRATION)
    exported = for_openvino(demo_onnx, tmp_path / "out", data, measure_latency=True, runs=2)
    assert exported.latency is not None
    assert exported.latency.runtime["runtime"] == "openvino"
    assert exported.latency.runtime["cpu"]
    assert set(exported.latency.artifact_nodes.sites) == {site.name for site in exported.manifest.sites}
    assert exported.latency.artifact_startup.peak_memory
    opened = session(exported.path)
    assert opened.reason.startswith("in OpenVINO 20")
    again = check(demo_onnx, exported.path, data=str(data))
    assert again.drift == pytest.approx(exported.drifts[0].drift, rel=1e-3, abs=1e-7)
    report = profile(demo_onnx, exported.path, data=str(data), runs=2)
    assert report.runtime["options"]["precision"] == "f32"


def test_a_form_for_unknown_shapes_is_remarked_on(tmp_path: Path) -> None:
    model, data = write_small(SMALL["mish"], tmp_path, batches=1)
    pwl = Form.parse("pwl:8")
    named = for_openvino(model, tmp_path / "named", data, form=pwl)
    assert any("only where it knows the shapes" in note for note in named.manifest.notes)
    known = for_openvino(model, tmp_path / "known", data, form=pwl, inputs=[InputSpec("x", "float32", (2, 5, WIDTH))])
    assert not any("only where it knows the shapes" in note for note in known.manifest.notes)


def test_bfloat16_is_asked_for_and_recorded(demo_onnx: Path, tmp_path: Path) -> None:
    data = demo_path(CALIBRATION)
    exported = for_openvino(demo_onnx, tmp_path / "out", data, quant="bf16", measure_latency=True, runs=1)
    assert exported.drifts[0].runtime["options"]["precision"] == "bf16"
    assert exported.latency is not None
    assert exported.latency.runtime["options"]["precision"] == "bf16"  # of the original too
    assert exported.drifts[0].drift < 8 * 2.0**-8


def test_a_model_without_rewritten_sites_runs_there_too(tmp_path: Path) -> None:
    model, data = write_small(SMALL["hardswish"], tmp_path)
    exported = for_openvino(model, tmp_path / "out", data, form=Form.parse("keep"))
    assert exported.manifest.graphs == {"portable": "model.onnx"}
    assert exported.drifts[0].runtime["runtime"] == "openvino"
    assert len(exported.drifts) == 1
    assert np.isfinite(session(exported.path).run({"x": np.ones((2, 3, WIDTH), np.float32)})["y"]).all()


@pytest.mark.real
def test_the_encoder(encoder_dynamo_onnx: Path, encoder_data: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = write_batches(encoder_data("calibration")[:2], tmp_path / "data")
    form = Form.parse("poly:12")
    exported = for_openvino(encoder_dynamo_onnx, tmp_path / "out", data, form=form, metric="cosine", max_drift=1e-6)
    assert exported.drifts[0].graph == OWN


def test_what_it_does_not_have(tmp_path: Path) -> None:
    model, data = write_small(SMALL["mish"], tmp_path)
    with pytest.raises(UsageError, match="no scheme 'fp16'"):
        for_openvino(model, tmp_path / "out", data, quant="fp16")
    with pytest.raises(UsageError, match="no kernels"):
        for_openvino(model, tmp_path / "out", data, kernels=True)


def test_without_openvino_the_bundle_is_left(tmp_path: Path) -> None:
    """In a process of its own, in which the package cannot be imported."""
    model, _ = write_small(SMALL["mish"], tmp_path)
    options = ["--target", "openvino", "--form", "pwl:8", "--no-profile", "-o", str(tmp_path / "out")]
    code = f"""
import sys
sys.modules["openvino"] = None
from actx.cli.main import run
sys.argv = ["actx", "export", {str(model)!r}, *{options!r}]
sys.exit(run())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "OpenVINO cannot be loaded here" in done.stderr
    assert "in ONNX Runtime: OpenVINO cannot be loaded here" in done.stdout
    assert (tmp_path / "out" / OWN).is_file()


def test_a_check_without_openvino_says_so(tmp_path: Path) -> None:
    """Where nothing was rewritten too, so that the bundle has one graph."""
    model, data = write_small(SMALL["mish"], tmp_path)
    out = for_openvino(model, tmp_path / "out", data).path
    code = f"""
import sys
sys.modules["openvino"] = None
from actx.exporter import check
print(*check({str(model)!r}, {str(out)!r}).notes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "model.onnx was run, in ONNX Runtime: OpenVINO cannot be loaded here" in done.stdout, done.stderr
