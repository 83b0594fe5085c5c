"""`export`: models of every kind, what the bundle says of them, and that two equal exports are equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from actx.exporter import Form, check, export, report, session
from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError, RequirementError, UsageError
from actx.models.demo import ARCHIVE, CALIBRATION, demo_path
from tests.networks import HIDDEN, OUT, SPELLINGS, WIDTH, Graph, feeds, many_sites, unary

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.pipeline import Exported

PWL = Form.parse("pwl:8")
SILENT = ort.SessionOptions()
SILENT.log_severity_level = 4


def save(tmp_path: Path, proto: onnx.ModelProto, name: str = "model.onnx") -> Path:
    file = tmp_path / name
    onnx.save(proto, file)
    return file


def quick(model: Path, out: Path, **options: Any) -> Exported:
    return export(model, out, **{"form": PWL, "measure_latency": False, **options})


def run(file: Path, values: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    return ort.InferenceSession(file, SILENT, providers=["CPUExecutionProvider"]).run(None, values)  # type: ignore[no-any-return]


def two_linears(graph: Graph, x: str, act: str = "Gelu", width: int = WIDTH) -> str:
    rng = np.random.default_rng(0)
    up = graph.linear(x, "up", rng.standard_normal((width, HIDDEN)), rng.standard_normal(HIDDEN))
    return graph.linear(unary(act)(graph, up), "down", rng.standard_normal((HIDDEN, OUT)))


# --- models of every kind ---


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_gives_a_valid_bundle(tmp_path: Path, name: str) -> None:
    """A portable graph of standard ops, a native one, and a manifest that can be written and read."""
    proto = SPELLINGS[name].model(20)
    exported = quick(save(tmp_path, proto), tmp_path / "out", measure_drift=False)
    portable = onnx.load(exported.path / "model.onnx")
    onnx.checker.check_model(portable)
    assert {node.domain for node in portable.graph.node} <= {"", "com.microsoft"}
    assert len(exported.manifest.sites) == 1
    outputs = run(exported.path / "model.onnx", feeds(proto))
    assert np.isfinite(outputs[0].astype(np.float32)).all()


def test_a_model_without_sites_is_exported_unchanged_and_said(tmp_path: Path) -> None:
    graph = Graph(18)
    x = graph.input("x", ["batch", "tokens", WIDTH])
    graph.output(graph.linear(x, "only", np.ones((WIDTH, OUT))), "y", 3)
    proto = graph.model()
    exported = quick(save(tmp_path, proto), tmp_path / "out", max_drift=0)
    assert exported.manifest.sites == []
    assert "the model has no sites: it was exported unchanged" in exported.manifest.notes
    assert exported.manifest.graphs == {"portable": "model.onnx"}
    assert exported.drift is not None
    assert exported.drift.drift == 0
    written = onnx.load(exported.path / "model.onnx")
    assert [node.op_type for node in written.graph.node] == [node.op_type for node in proto.graph.node]


def test_keep_changes_nothing(tmp_path: Path) -> None:
    exported = quick(save(tmp_path, many_sites(6)), tmp_path / "out", form=Form.parse("keep"), max_drift=0)
    assert {site.form for site in exported.manifest.sites} == {"keep"}
    assert exported.manifest.graphs == {"portable": "model.onnx"}


def test_half_precision(tmp_path: Path) -> None:
    proto = SPELLINGS["mish_decomposed"].model(18, np.float16)
    exported = quick(save(tmp_path, proto), tmp_path / "out", form=Form.parse("spline:16x3"), max_drift=5e-3)
    assert exported.manifest.sites[0].dtype == "float16"
    written = onnx.load(exported.path / "model.onnx")
    assert written.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16


def test_integer_inputs_and_several_outputs(tmp_path: Path) -> None:
    graph = Graph(18)
    ids = graph.input("input_ids", ["batch", "tokens"], np.int64)
    mask = graph.input("attention_mask", ["batch", "tokens"], np.int64)
    table = graph.weight("table", np.random.default_rng(0).standard_normal((100, WIDTH)))
    hidden = two_linears(graph, graph.op("Gather", table, ids), "Elu")
    graph.output(hidden, "hidden", 3)
    graph.output(graph.reduce("ReduceMean", hidden, [1]), "pooled", 3)
    graph.output(graph.reduce("ReduceSum", mask, [1]), "count", 2, np.int64)
    exported = quick(save(tmp_path, graph.model()), tmp_path / "out")
    assert exported.drift is not None
    assert exported.drift.synthetic
    assert [out.name for out in exported.drift.outputs] == ["hidden", "pooled", "count"]
    assert 0 < exported.drift.drift < 0.02
    opened = session(exported.path)
    result = opened.run({"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.ones((1, 3), np.int64)})
    assert list(result) == ["hidden", "pooled", "count"]
    assert opened.graph in exported.manifest.graphs.values()
    assert opened.reason


def test_a_static_batch(tmp_path: Path) -> None:
    graph = Graph(18)
    graph.output(two_linears(graph, graph.input("x", [4, WIDTH]), "Elu"), "y", 2)
    model = save(tmp_path, graph.model())
    np.savez(tmp_path / "data.npz", x=np.zeros((10, WIDTH), np.float32))
    exported = quick(model, tmp_path / "out", data=str(tmp_path / "data.npz"))
    assert exported.drift is not None
    assert exported.drift.samples == 8
    assert any("2 of 10 were left out" in note for note in exported.manifest.notes)
    with pytest.raises(UsageError, match="fixes the batch size"):
        quick(model, tmp_path / "other", data=str(tmp_path / "data.npz"), batch_size=3)


def test_sequences_of_unequal_length_in_a_folder(tmp_path: Path) -> None:
    model = save(tmp_path, SPELLINGS["elu"].model(18))
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, tokens in enumerate((3, 17, 5)):
        np.savez(folder / f"{i}.npz", x=rng.uniform(-1, 1, (i + 1, tokens, WIDTH)).astype(np.float32))
    exported = export(model, tmp_path / "out", form=PWL, data=str(folder), runs=2)
    assert exported.drift is not None
    assert exported.drift.samples == 6
    assert not exported.drift.synthetic
    statistics = exported.manifest.sites[0].statistics
    assert statistics is not None
    assert -6 <= statistics.low < 0 < statistics.high <= 6
    assert statistics.elements_per_sample == pytest.approx((3 + 2 * 17 + 3 * 5) * HIDDEN / 6)


def test_held_out_samples_are_for_the_measurements_alone(tmp_path: Path) -> None:
    model = save(tmp_path, SPELLINGS["snake"].model(18))
    rng = np.random.default_rng(0)
    for name, samples, scale in (("data", 4, 1), ("held_out", 6, 2)):
        np.savez(tmp_path / f"{name}.npz", x=rng.uniform(-scale, scale, (samples, 3, WIDTH)).astype(np.float32))
    data, held_out = (str(tmp_path / f"{name}.npz") for name in ("data", "held_out"))
    alone = export(model, tmp_path / "alone", form=PWL, data=data, runs=2)
    both = export(model, tmp_path / "both", form=PWL, data=data, held_out=held_out, runs=2)
    assert both.manifest.sites[0].fit == alone.manifest.sites[0].fit
    assert both.manifest.sites[0].statistics == alone.manifest.sites[0].statistics
    assert both.drift is not None
    assert (both.drift.samples, both.drift.source) == (6, held_out)
    assert both.latency is not None
    assert both.latency.source == held_out
    assert any("outside the interval" in note for note in both.manifest.notes)


def test_an_undefined_asymptote_needs_data(tmp_path: Path) -> None:
    model = save(tmp_path, SPELLINGS["snake"].model(18))
    exported = quick(model, tmp_path / "out")
    assert exported.manifest.sites[0].form == "keep"
    assert exported.manifest.sites[0].reason.startswith("kept: ")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).uniform(-1, 1, (4, 3, WIDTH)).astype(np.float32))
    exported = quick(model, tmp_path / "with", data=str(tmp_path / "data.npz"))
    site = exported.manifest.sites[0]
    assert site.form == "pwl:8"
    assert site.fit is not None
    assert site.fit.interval is not None


def test_the_users_input_types(tmp_path: Path) -> None:
    graph = Graph(18)
    graph.output(two_linears(graph, graph.input("x", ["a", WIDTH]), "Elu"), "y", 2)
    model = save(tmp_path, graph.model())
    exported = quick(model, tmp_path / "out", inputs=[InputSpec("x", "float32", (2, WIDTH))])
    dims = onnx.load(exported.path / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [2, WIDTH]


def test_external_data_of_the_source_is_taken_over(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    proto = many_sites(4)
    onnx.save(proto, source / "model.onnx", save_as_external_data=True, location="other.bin", size_threshold=0)
    exported = quick(source / "model.onnx", tmp_path / "out", form=Form.parse("keep"), max_drift=0)
    for file in source.iterdir():
        file.unlink()
    values = feeds(proto)
    assert run(exported.path / "model.onnx", values)[0].shape == (2, 5, OUT)


def test_an_archive_named_weights_data_is_not_confused_with_the_bundles_own(tmp_path: Path) -> None:
    proto = many_sites(4)
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="weights.data", size_threshold=0)
    expected = run(tmp_path / "model.onnx", feeds(proto))
    exported = quick(tmp_path / "model.onnx", tmp_path / "out", form=Form.parse("keep"))
    np.testing.assert_array_equal(run(exported.path / "model.onnx", feeds(proto))[0], expected[0])


# --- what is asked for ---


def test_pins_and_the_default(tmp_path: Path) -> None:
    model = save(tmp_path, many_sites(4))
    names = [site.name for site in quick(model, tmp_path / "all").manifest.sites]
    pins = {names[0]: Form.parse("relu"), names[2]: Form.parse("keep")}
    manifest = quick(model, tmp_path / "out", form=None, sites=pins).manifest
    assert [site.form for site in manifest.sites][0::2] == ["relu", "keep"]
    assert [site.reason for site in manifest.sites][0::2] == ["pinned", "pinned"]
    assert manifest.request.sites == {name: str(form) for name, form in pins.items()}
    assert manifest.request.form is None


def test_a_pin_that_matches_nothing(tmp_path: Path) -> None:
    model = save(tmp_path, many_sites(4))
    with pytest.raises(UsageError, match="no site is named 'nothing'") as caught:
        quick(model, tmp_path / "out", sites={"nothing": PWL})
    assert "the model has " in caught.value.note
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_an_unknown_target_or_metric_is_found_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown target"):
        quick(tmp_path / "missing", tmp_path / "out", target="tpu")
    with pytest.raises(UsageError):
        quick(tmp_path / "missing", tmp_path / "out", metric="accuracy")


def test_a_metric_that_applies_to_no_output_is_found_before_any_work(tmp_path: Path) -> None:
    """The default one does not apply to integers."""
    graph = Graph(18)
    hidden = two_linears(graph, graph.input("x", ["batch", WIDTH]), "Elu")
    graph.output(graph.op("ArgMax", hidden, axis=1, keepdims=0), "y", 1, np.int64)
    model = save(tmp_path, graph.model())
    steps: list[str] = []
    with pytest.raises(UsageError, match="metric 'l2' applies to none") as caught:
        quick(model, tmp_path / "out", progress=lambda step, *_: steps.append(step))
    assert caught.value.note.endswith("metrics that apply: max_abs, top1")
    assert steps == []
    assert quick(model, tmp_path / "out", measure_drift=False).drift is None
    with pytest.raises(UsageError, match="metric 'kl' applies to none"):
        check(model, tmp_path / "out", metric="kl", progress=lambda *_: steps.append("check"))
    assert steps == []
    assert check(model, tmp_path / "out", metric="top1").metric == "top1"


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), -1.0])
def test_a_budget_that_is_none(tmp_path: Path, budget: float) -> None:
    with pytest.raises(UsageError, match="budget"):
        quick(save(tmp_path, many_sites(1)), tmp_path / "out", max_drift=budget)


def test_the_portable_target_has_no_native_graph(tmp_path: Path) -> None:
    exported = quick(save(tmp_path, many_sites(4)), tmp_path / "out", target="onnx")
    names = ["manifest.json", "model.onnx", "report.html", "weights.data"]
    assert sorted(file.name for file in exported.path.iterdir()) == names


def test_a_budget_is_checked_even_where_the_drift_was_not_asked_for(tmp_path: Path) -> None:
    model = save(tmp_path, SPELLINGS["gelu_op"].model(20))
    with pytest.raises(RequirementError, match="the drift is"):
        quick(model, tmp_path / "out", form=Form.parse("relu"), measure_drift=False, max_drift=1e-9)


def test_what_is_not_measured_is_null(tmp_path: Path) -> None:
    exported = quick(save(tmp_path, many_sites(4)), tmp_path / "out", measure_drift=False)
    assert exported.drift is None
    assert exported.latency is None
    tree = json.loads((exported.path / "manifest.json").read_text())
    assert tree["drift"] == []
    assert tree["latency"] is None


def test_data_of_another_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=np.zeros((2, 3)))
    with pytest.raises(ActxError, match="input 'x' is missing") as caught:
        quick(save(tmp_path, many_sites(4)), tmp_path / "out", data=str(tmp_path / "data.npz"))
    assert "image" in caught.value.note


def test_progress_ends_where_it_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 2, WIDTH), np.float32))
    last: dict[str, tuple[int, int]] = {}
    export(
        save(tmp_path, many_sites(4)), tmp_path / "out", form=PWL, data=str(tmp_path / "data.npz"), runs=2,
        kernels=False, progress=lambda step, done, total: last.update({step: (done, total)}),
    )  # fmt: skip
    assert list(last) == ["calibrate", "fit", "check", "profile"]
    assert all(done == total for done, total in last.values())


def test_the_source_is_recorded(tmp_path: Path) -> None:
    model = save(tmp_path, many_sites(4))
    source = quick(model, tmp_path / "out").manifest.source
    assert (source.file, source.format, source.opset) == ("model.onnx", "an ONNX model", 18)
    assert len(source.sha256) == 64


# --- two equal exports ---

SCRIPT = """
import sys
from pathlib import Path
from actx.exporter import Form, export
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
model, data, out = sys.argv[1:]
sites = {"*": Form.parse("spline:8x3")}
sites = sites if "onnx" in model else None
# --ffn auto goes by what it measures.
options = {"ffn": "pack", "options": RuntimeOptions(threads=1), "runs": 2, "measure_latency": not data}
export(Path(model), Path(out), form=Form.parse("pwl:16"), sites=sites, data=data or None, **options)
"""


@pytest.mark.parametrize("kind", ["onnx", "archive"])
def test_two_exports_are_equal(tmp_path: Path, kind: str) -> None:
    """In two processes whose sets and dicts of strings are ordered differently."""
    model = save(tmp_path, many_sites(9)) if kind == "onnx" else demo_path(ARCHIVE)
    data = "" if kind == "onnx" else str(demo_path(CALIBRATION))
    found = []
    for seed in ("1", "2"):
        out = tmp_path / f"out{seed}"
        command = [sys.executable, "-c", SCRIPT, str(model), data, str(out)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        files = {file.name: file.read_bytes() for file in out.iterdir()}
        manifest = json.loads(files.pop("manifest.json"))
        assert files.pop("report.html").decode() == report(out)
        for field in ("created", "drift", *(["latency"] if kind == "onnx" else [])):
            assert manifest.pop(field) is not None
        found.append((files, manifest))
    assert found[0] == found[1]


def test_a_domain_that_is_not_standard_is_kept(tmp_path: Path) -> None:
    """A model may hold ops of others; only actx's own must not be in the portable graph."""
    proto = SPELLINGS["quick_gelu_microsoft"].model(18)
    exported = quick(save(tmp_path, proto), tmp_path / "out", form=Form.parse("keep"), max_drift=0)
    assert helper.make_opsetid("com.microsoft", 1) in onnx.load(exported.path / "model.onnx").opset_import
