"""Check and profile artifacts that were made earlier: bundles, ONNX files, and artifacts of other models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper

from actx.exporter import Form, check, export, inspect, profile, session
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.opening import best_graph
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.targets import Graph
from tests.networks import HIDDEN, SPELLINGS, WIDTH, Write, after, chain, many_sites, onnx_mlp, times_x, unary

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.pipeline import Exported


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "model.onnx"
    onnx.save(many_sites(3), file)
    return file


@pytest.fixture
def exported(model: Path, tmp_path: Path) -> Exported:
    return export(model, tmp_path / "out", form=Form.parse("pwl:8"), runs=2)


def test_paths_may_be_text(model: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    export(str(model), out, form=Form.parse("pwl:8"), measure_latency=False)
    assert inspect(str(model)).sites
    assert check(str(model), out)
    assert profile(str(model), out, runs=2).runs == 2
    assert session(out, kernels=False).graph == "model.onnx"


# --- check ---


def test_checking_a_bundle_repeats_what_its_export_measured(model: Path, exported: Exported) -> None:
    report = check(model, exported.path)
    assert exported.drift is not None
    assert report.drift == pytest.approx(exported.drift.drift, rel=1e-3)
    assert [site.name for site in report.sites] == [site.name for site in exported.drift.sites]
    assert report.synthetic
    assert report


def test_folded_slopes_are_accounted_for_at_the_sites(model: Path, tmp_path: Path) -> None:
    exported = export(model, tmp_path / "out", form=Form.parse("hardswish"), measure_latency=False)
    assert any(site.scale != 1 for site in exported.manifest.sites)
    assert all(site.added_db is not None and site.added_db > 10 for site in check(model, exported.path).sites)


def test_an_onnx_file_has_no_sites_to_look_at(model: Path, exported: Exported) -> None:
    report = check(model, exported.path / "model.onnx")
    assert report.sites == ()
    assert exported.drift is not None
    assert report.drift == pytest.approx(exported.drift.drift, rel=1e-3)
    assert check(model, model).drift == 0


def test_a_budget_decides(model: Path, exported: Exported) -> None:
    assert not check(model, exported.path, max_drift=0)
    assert check(model, exported.path, max_drift=1)


def test_a_bundle_of_a_model_with_other_weights_is_only_far_away(
    model: Path, tmp_path: Path, exported: Exported
) -> None:
    """The graphs fit, so this is drift and no error; sites are compared where they are the same."""
    proto = many_sites(3)
    other = np.random.default_rng(7).standard_normal((WIDTH, 6)).astype(np.float32)
    for tensor in proto.graph.initializer:
        if tensor.name == "head.weight":
            tensor.CopyFrom(onnx.numpy_helper.from_array(other, tensor.name))
    onnx.save(proto, tmp_path / "other.onnx")
    report = check(tmp_path / "other.onnx", exported.path, max_drift=0.5)
    assert not report
    remark = f"out was made from another file than other.onnx: {model.name}"
    assert remark in report.notes
    assert remark in profile(tmp_path / "other.onnx", exported.path, runs=2).notes


def _renamed(model: Path, old: str, new: str) -> Path:
    proto = onnx.load(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = new if value.name == old else value.name
    for node in proto.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    file = model.with_name(f"renamed_{new}.onnx")
    onnx.save(proto, file)
    return file


@pytest.mark.parametrize(("old", "new", "words"), [("x", "z", "other inputs"), ("y", "z", "other outputs")])
def test_an_artifact_with_other_names(model: Path, exported: Exported, old: str, new: str, words: str) -> None:
    other = _renamed(model, old, new)
    for artifact in (exported.path, exported.path / "model.onnx"):
        with pytest.raises(ActxError, match=words) as caught:
            check(other, artifact)
        assert new in caught.value.note
        with pytest.raises(ActxError, match=words):
            profile(other, artifact, runs=2)


def test_an_artifact_with_other_shapes(model: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.onnx"
    proto = onnx.load(model)
    shape = helper.make_tensor_value_info("x", 1, ["batch", "tokens", WIDTH])
    proto.graph.input[0].CopyFrom(shape)
    head = next(t for t in proto.graph.initializer if t.name == "head.weight")
    head.CopyFrom(onnx.numpy_helper.from_array(np.ones((WIDTH, 9), np.float32), head.name))
    onnx.save(proto, wide)
    with pytest.raises(ActxError) as caught:
        check(model, wide)
    assert caught.value.note


def test_artifacts_that_are_none(model: Path, tmp_path: Path, exported: Exported) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "folder").mkdir()
    for artifact in (tmp_path / "missing", tmp_path / "text.onnx", tmp_path / "folder"):
        with pytest.raises(ActxError) as caught:
            check(model, artifact)
        assert str(artifact) in caught.value.what
        with pytest.raises(ActxError):
            profile(model, artifact, runs=2)
    (exported.path / "model.onnx").unlink()
    with pytest.raises(ActxError, match=r"model\.onnx"):
        check(model, exported.path)


def test_a_bundle_without_its_weights(model: Path, tmp_path: Path) -> None:
    onnx.save(SPELLINGS["gelu_op"].model(20), tmp_path / "gelu.onnx")
    out = export(model, tmp_path / "out", form=Form.parse("keep"), measure_drift=False, measure_latency=False).path
    (out / "weights.data").unlink()
    with pytest.raises(ActxError, match=r"cannot read .*weights\.data"):
        check(model, out)


@pytest.mark.parametrize("name", ["model.onnx", "weights.data"])
def test_a_bundle_whose_files_have_changed(name: str, model: Path, exported: Exported) -> None:
    with (exported.path / name).open("ab") as file:
        file.write(b"\0")
    for use in (
        lambda: check(model, exported.path),
        lambda: profile(model, exported.path),
        lambda: session(exported.path),
    ):
        with pytest.raises(ActxError, match="not the file that the export wrote") as caught:
            use()
        assert caught.value.remedy


def test_a_site_that_the_manifest_does_not_know_as_it_is(model: Path, exported: Exported, tmp_path: Path) -> None:
    """Another function at a site of the same name is not compared there."""
    proto = onnx.load(model)
    for node in proto.graph.node:
        if node.op_type == "Erf":
            node.op_type = "Tanh"
    onnx.save(proto, tmp_path / "other.onnx")
    report = check(tmp_path / "other.onnx", exported.path)
    assert len(report.sites) < len(exported.manifest.sites)


@pytest.mark.parametrize(
    "activation",
    [
        chain("Softplus", "Sqrt"),
        chain("Exp"),
        times_x(times_x(times_x(unary("Identity")))),
        pytest.param(after(chain("Exp"), chain("Sin")), marks=pytest.mark.slow),
    ],
    ids=["sqrt(softplus(x))", "exp(x)", "x^4", "sin(exp(x))"],
)
def test_a_function_without_asymptotes_is_proved_where_the_data_is(activation: Write, tmp_path: Path) -> None:
    onnx.save(onnx_mlp(activation), tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(0, 1, (64, 3, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "seen.npz", x=x)
    np.savez(tmp_path / "wider.npz", x=2 * x)
    seen, wider = (str(tmp_path / f"{name}.npz") for name in ("seen", "wider"))
    form = Form.parse("spline:16x3")
    done = export(tmp_path / "model.onnx", tmp_path / "out", form=form, data=seen, measure_latency=False)
    (entry,) = done.manifest.sites
    assert entry.form == "spline:16x3"
    assert entry.fit is not None
    assert entry.fit.certificate is not None
    assert entry.fit.interval is not None
    (low, high), (left, right) = entry.fit.interval, entry.fit.certificate.interval
    assert left <= low < high <= right
    assert done.drift is not None
    assert not any("outside" in note for note in done.manifest.notes)
    report = check(tmp_path / "model.onnx", done.path, data=wider)
    assert 0 < report.sites[0].outside < 1
    assert any(f"outside the interval of the fit at 1 site, {report.sites[0].outside:.2%}" in n for n in report.notes)


# --- profile ---


def test_profiling_a_bundle_and_a_file(model: Path, exported: Exported) -> None:
    steps: list[tuple[int, int]] = []
    for artifact in (exported.path, exported.path / "model.onnx"):
        report = profile(model, artifact, runs=3, progress=lambda done, total: steps.append((done, total)))
        assert report.runs == 3
        assert report.synthetic
        assert steps[-1][0] == steps[-1][1]
        names = {site.name for site in exported.manifest.sites}
        assert set(report.original_nodes.sites) == names
        assert set(report.artifact_nodes.sites) == names


def test_no_runs_at_all(model: Path, exported: Exported) -> None:
    with pytest.raises(UsageError):
        profile(model, exported.path, runs=0)


# --- session ---


def test_a_session_opens_the_portable_graph_and_says_why(exported: Exported) -> None:
    opened = session(exported.path, kernels=False)
    assert opened.graph == "model.onnx"
    assert opened.reason == "not model.ort-cpu.onnx: the kernels were not to be used"
    result = opened.run({"x": np.zeros((1, 2, WIDTH), np.float32)}, ["y"])
    assert result["y"].shape == (1, 2, 6)


def test_feeds_that_do_not_fit(exported: Exported) -> None:
    opened = session(exported.path)
    for feeds in ({}, {"x": np.zeros((1, 2, HIDDEN), np.float32)}, {"x": np.zeros((1, 2, WIDTH))}, {"z": np.zeros(1)}):
        with pytest.raises(ActxError):
            opened.run(feeds)
    with pytest.raises(ActxError):
        opened.run({"x": np.zeros((1, 2, WIDTH), np.float32)}, ["nothing"])


def test_sessions_of_what_is_no_bundle(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ActxError, match="does not exist"):
        session(tmp_path / "missing")
    with pytest.raises(ActxError, match="is no bundle"):
        session(tmp_path)
    assert best_graph(model) == Graph(model, RuntimeOptions(), "the file itself")


# --- inspect ---


def test_inspecting_without_data_is_marked(model: Path) -> None:
    found = inspect(model)
    tree = found.to_dict()
    assert tree["synthetic"] is True
    assert [site["range"] for site in tree["sites"]] == [None] * 3
    assert tree["inputs"] == [f"x:float32[batch,tokens,{WIDTH}]"]
    assert 0 <= tree["activation_share"] <= 1
    assert {site["kind"] for site in tree["sites"]} == {"gelu", "silu", "mish"}


def test_inspecting_with_data(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 2, WIDTH), np.float32))
    sites = inspect(model, data=str(tmp_path / "data.npz")).to_dict()["sites"]
    assert all(site["range"][0] <= site["range"][1] for site in sites)
    assert all(site["elements_per_sample"] > 0 for site in sites)


def test_inspecting_a_model_without_sites(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, 1, ["n", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "model.onnx")
    found = inspect(tmp_path / "model.onnx")
    assert found.sites == ()
    assert [rejection.ops for rejection in found.rejections] == ["Softmax"]
    assert found.activation_share is None


def test_inspecting_a_model_that_cannot_run(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    proto.graph.node[0].op_type = "NoSuchOp"
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(ActxError, match="NoSuchOp") as caught:
        inspect(tmp_path / "other.onnx")
    assert str(tmp_path / "other.onnx") in caught.value.what  # and not its temporary copy
