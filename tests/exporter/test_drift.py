"""Behaviour of `exporter.check` on real sessions: end-to-end drift, noise per site, budgets and faults."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.special import ndtr

from actx.exporter.data import InputSpec, load_data, synthetic_data
from actx.exporter.drift import SiteTap, check, check_applies
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.metrics import METRICS, OutputMeter

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.data import Data

WIDTH = 24
RNG = np.random.default_rng(5)
W1, W2, W3 = (RNG.standard_normal((WIDTH, n)).astype(np.float32) / 5 for n in (WIDTH, WIDTH, 7))
X = InputSpec("x", "float32", ("n", "t", WIDTH))
Layers = list[tuple[str, list[str], str, dict[str, Any]]]

GELUS: Layers = [
    ("MatMul", ["x", "w1"], "a", {}),
    ("Gelu", ["a"], "b", {}),
    ("MatMul", ["b", "w2"], "c", {}),
    ("Gelu", ["c"], "d", {}),
    ("MatMul", ["d", "w3"], "y", {}),
]


def replaced(layers: Layers, output: str, op: str, **attributes: Any) -> Layers:
    return [(op, i, o, attributes) if o == output else (t, i, o, a) for t, i, o, a in layers]


def save(
    folder: Path,
    layers: Layers,
    *,
    outputs: tuple[str, ...] = ("y",),
    weights: dict[str, Any] | None = None,
    element: int = TensorProto.FLOAT,
    external: bool = False,
) -> Path:
    folder.mkdir(exist_ok=True)
    dtype = helper.tensor_dtype_to_np_dtype(element)
    tensors = {"w1": W1, "w2": W2, "w3": W3, **(weights or {})}
    nodes = [helper.make_node(op, i, [o], **attributes) for op, i, o, attributes in layers]
    used = {name for node in nodes for name in node.input}
    initializers = [numpy_helper.from_array(a.astype(dtype), n) for n, a in tensors.items() if n in used]
    kinds = {node.output[0]: TensorProto.INT64 if node.op_type == "ArgMax" else element for node in nodes}
    ends = [helper.make_tensor_value_info(name, kinds[name], None) for name in outputs]
    start = helper.make_tensor_value_info("x", element, list(X.dims))
    graph = helper.make_graph(nodes, "g", [start], ends, initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(proto, folder / "m.onnx", save_as_external_data=external, location="w.data", size_threshold=0)
    return folder / "m.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Three files of different numbers of samples and sequence lengths."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i, (rows, length) in enumerate(((1, 3), (4, 5), (2, 1))):
        x = np.random.default_rng(i).standard_normal((rows, length, WIDTH)).astype(np.float32)
        np.savez(folder / f"{i}.npz", x=x, label=np.zeros((rows, length), np.int64))
    return load_data(str(folder), [X])


def gelu(x: Any) -> Any:
    return x * ndtr(x)


def taps() -> list[SiteTap]:
    return [SiteTap("first", gelu, "b", "a", "b"), SiteTap("second", gelu, "d", "c", "d")]


@pytest.mark.parametrize("external", [False, True])
def test_model_against_itself_has_no_drift_and_leaves_nothing_behind(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch, *, external: bool
) -> None:
    path = save(tmp_path / "m", GELUS, external=external)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before = {p: p.stat().st_mtime_ns for p in (path.parent, *path.parent.iterdir())}
    report = check(path, path, data, taps=taps(), max_drift=0)
    assert report
    assert report.drift == 0
    assert report.samples == 7
    assert [site.accumulated_db for site in report.sites] == [math.inf, math.inf]
    # ONNX Runtime's float32 Gelu against float64: no worse than 100 dB, a few roundings of 2**-24.
    assert min(site.added_db or 0 for site in report.sites) > 100
    assert {p: p.stat().st_mtime_ns for p in (path.parent, *path.parent.iterdir())} == before
    assert not list(scratch.iterdir())


def test_noise_is_attributed_to_the_site_that_adds_it(tmp_path: Path, data: Data) -> None:
    original = save(tmp_path / "o", GELUS)
    artifact = save(tmp_path / "a", replaced(GELUS, "b", "Gelu", approximate="tanh"))
    first, second = check(original, artifact, data, taps=taps()).sites
    assert first.added_db is not None
    assert second.added_db is not None
    assert 40 < first.added_db < 90
    assert second.added_db > 100
    assert second.accumulated_db < 90
    both = replaced(replaced(GELUS, "b", "Gelu", approximate="tanh"), "d", "Relu")
    report = check(original, save(tmp_path / "b", both), data, taps=taps())
    assert report.worst_site == "second"
    assert report.drift > 1e-3


def test_scales_are_taken_off(tmp_path: Path, data: Data) -> None:
    original = save(tmp_path / "o", GELUS)
    scaled = {"w1": W1, "w2": W2 / 4, "four": np.float32(4), "half": np.float32(0.5)}
    layers: Layers = [
        ("MatMul", ["x", "w1"], "a0", {}),
        ("Mul", ["a0", "half"], "a", {}),
        ("Add", ["a", "a"], "whole", {}),
        ("Gelu", ["whole"], "b0", {}),
        ("Mul", ["b0", "four"], "b", {}),
        *GELUS[2:],
    ]
    artifact = save(tmp_path / "a", layers, weights=scaled)
    tap = SiteTap("first", gelu, "b", "a", "b", input_scale=0.5, output_scale=4.0)
    (site,) = check(original, artifact, data, taps=[tap]).sites
    assert site.added_db is not None
    assert min(site.added_db, site.accumulated_db) > 100
    (wrong,) = check(original, artifact, data, taps=[SiteTap("first", gelu, "b", "a", "b")]).sites
    assert wrong.accumulated_db < 10


def test_outputs_that_are_no_numbers_anywhere_are_no_agreement(tmp_path: Path, data: Data) -> None:
    broken = {"w1": W1, "w2": np.full_like(W2, np.nan), "w3": W3}
    path = save(tmp_path / "m", GELUS, weights=broken)
    with pytest.raises(ActxError, match="NaN or infinite everywhere") as caught:
        check(path, path, data, max_drift=1e-6)
    assert caught.value.remedy


def test_elements_that_are_no_numbers_in_both_are_told(tmp_path: Path, data: Data) -> None:
    weights = {"w1": W1, "w2": W2, "w3": W3.copy()}
    weights["w3"][:, 0] = np.nan
    path = save(tmp_path / "m", GELUS, weights=weights)
    report = check(path, path, data)
    (output,) = report.outputs
    assert (output.non_finite, report.drift) == (0, 0)
    assert 0 < output.not_compared < output.elements
    assert any(note.startswith(f"{output.not_compared} of {output.elements} elements") for note in report.notes)


@pytest.mark.parametrize(("interval", "least", "most"), [(None, 0, 0), ((-1e9, 1e9), 0, 0), ((-0.1, 0.1), 0.5, 1)])
def test_inputs_outside_the_interval_of_a_fit(
    interval: tuple[float, float] | None, least: float, most: float, tmp_path: Path, data: Data
) -> None:
    path = save(tmp_path / "m", GELUS)
    report = check(path, path, data, taps=[SiteTap("first", gelu, "b", "a", "b", interval=interval)])
    assert least <= report.sites[0].outside <= most
    assert any("calibrate on data like this" in note for note in report.notes) == (most > 0)


def test_site_without_a_function_is_not_measured(tmp_path: Path, data: Data) -> None:
    original = save(tmp_path / "o", GELUS)
    artifact = save(tmp_path / "a", replaced(GELUS, "b", "Relu"))
    report = check(original, artifact, data, taps=[SiteTap("first", None, "b", "a", "b")])
    assert report.sites[0].added_db is None
    assert report.to_dict()["sites"][0]["added_db"] is None
    assert report.worst_site == "first"


def test_taps_may_be_graph_inputs_and_outputs(tmp_path: Path, data: Data) -> None:
    layers: Layers = [("Gelu", ["x"], "y", {})]
    path = save(tmp_path / "m", layers)
    (site,) = check(path, path, data, taps=[SiteTap("only", gelu, "y", "x", "y")]).sites
    assert site.accumulated_db == math.inf
    assert (site.added_db or 0) > 100


def test_end_to_end_drift_does_not_depend_on_taps(tmp_path: Path, data: Data) -> None:
    original = save(tmp_path / "o", GELUS)
    artifact = save(tmp_path / "a", replaced(GELUS, "d", "Gelu", approximate="tanh"))
    plain, tapped = check(original, artifact, data), check(original, artifact, data, taps=taps())
    assert plain.drift == tapped.drift > 0
    assert plain.outputs == tapped.outputs


def test_drift_matches_a_computation_by_hand(tmp_path: Path, data: Data) -> None:
    artifact = save(tmp_path / "a", GELUS, weights={"w3": W3 * np.float32(1.25)})
    report = check(save(tmp_path / "o", GELUS), artifact, data, max_drift=0.2)
    assert report.drift == pytest.approx(0.25, rel=1e-6)  # the last layer is linear; float32 rounding
    assert report.outputs[0].cosine == pytest.approx(0, abs=1e-12)
    assert not report
    assert check(save(tmp_path / "o", GELUS), artifact, data, max_drift=0.3)
    assert check(save(tmp_path / "o", GELUS), artifact, data, metric="cosine", max_drift=1e-9)


def test_several_outputs_the_worst_counts_and_integers_have_top1(tmp_path: Path, data: Data) -> None:
    layers: Layers = [*GELUS, ("ArgMax", ["y"], "class", {"axis": -1, "keepdims": 0})]
    names = ("b", "y", "class")
    original = save(tmp_path / "o", layers, outputs=names)
    artifact = save(tmp_path / "a", layers, outputs=names, weights={"w3": -W3})
    report = check(original, artifact, data, taps=taps())
    assert report.worst_output == "y"
    assert report.drift == pytest.approx(2, rel=1e-6)
    assert [output.l2 for output in report.outputs] == [0.0, report.drift, None]
    top1 = check(original, artifact, data, metric="top1", logits=["y"])
    assert top1.drift == 1
    assert top1.outputs[2].top1 == 1


def test_float16_artifact_with_float16_inputs(tmp_path: Path, data: Data) -> None:
    original = save(tmp_path / "o", GELUS)
    artifact = save(tmp_path / "a", GELUS, element=TensorProto.FLOAT16)
    report = check(original, artifact, data, taps=taps())
    assert 1e-5 < report.drift < 1e-2  # a handful of roundings of 2**-11
    assert 50 < (report.sites[0].added_db or 0) < 100


def test_nan_of_the_artifact_is_infinite_drift_and_never_passes(tmp_path: Path, data: Data) -> None:
    original = save(tmp_path / "o", GELUS)
    layers: Layers = [*GELUS[:-1], ("MatMul", ["d", "w3"], "e", {}), ("Sqrt", ["e"], "y", {})]
    artifact = save(tmp_path / "a", layers)
    report = check(original, artifact, data)
    assert (report.drift, report.worst_output) == (math.inf, "y")
    assert report.outputs[0].non_finite > 0
    assert not report
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert json.loads(text)["drift"] == "inf"
    assert json.loads(text)["within_budget"] is False
    assert check(artifact, artifact, data).drift == 0  # NaN in the same places


def test_one_sample(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.ones((1, 1, WIDTH), np.float32))
    path = save(tmp_path / "m", GELUS)
    assert check(path, path, load_data(str(tmp_path / "one.npz"), [X])).samples == 1


def test_an_old_file_may_list_its_constants_as_inputs(tmp_path: Path, data: Data) -> None:
    path = save(tmp_path / "m", GELUS)
    old = onnx.load(path)
    old.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in old.graph.initializer)
    onnx.save(old, tmp_path / "old.onnx")
    assert check(tmp_path / "old.onnx", path, data).drift == 0


def test_synthetic_data_is_marked(tmp_path: Path) -> None:
    path = save(tmp_path / "m", GELUS)
    report = check(path, path, synthetic_data([X], {"n": 2, "t": 3}))
    assert report.synthetic
    assert report.to_dict()["synthetic"] is True
    assert report.notes == ()
    judged = check(path, path, synthetic_data([X], {"n": 2, "t": 3}), max_drift=0.1)
    assert judged.notes == ("the budget was judged on random input: give --data to judge it on yours",)
    assert report.to_dict()["runtime"]["onnxruntime"]


def test_accuracy_where_labels_fit_the_logits(tmp_path: Path, data: Data) -> None:
    path = save(tmp_path / "m", GELUS)
    assert check(path, path, data).accuracy is None
    accuracy = check(path, path, data, logits=["y"]).accuracy
    assert accuracy is not None
    assert accuracy.labels == 1 * 3 + 4 * 5 + 2 * 1
    assert "labels were not counted" in check(path, path, data).notes[-1]
    assert accuracy.original == accuracy.artifact


def labelled(original: dict[str, Any], artifact: dict[str, Any], batch: dict[str, Any]) -> float:
    assert set(batch) == {"x", "label"}
    return float(np.abs(original["y"] - artifact["y"]).max())


def count_shapes(original: dict[str, Any], artifact: dict[str, Any], batch: dict[str, Any]) -> float:
    return float(original["y"].size != artifact["y"].size)


def test_metric_of_the_user(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setitem(sys.modules, "user_metrics", request.module)
    original = save(tmp_path / "o", GELUS)
    artifact = save(tmp_path / "a", replaced(GELUS, "d", "Relu"))
    report = check(original, artifact, data, metric="user_metrics:labelled")
    assert 0 < report.drift <= report.outputs[0].max_abs
    assert report.worst_output is None
    narrow = save(tmp_path / "n", GELUS, weights={"w3": W3[:, :3]})
    assert check(original, narrow, data, metric="user_metrics:count_shapes").drift == 1
    with pytest.raises(ActxError, match="'y' differs in shape"):
        check(original, narrow, data)


def test_requests_that_make_no_sense(tmp_path: Path, data: Data) -> None:
    path = save(tmp_path / "m", GELUS)
    for wrong in (
        {"metric": "psnr"},
        {"max_drift": -1.0},
        {"max_drift": math.nan},
        {"logits": ["z"]},
        {"metric": "kl"},
    ):
        with pytest.raises(UsageError):
            check(path, path, data, **wrong)


@pytest.mark.parametrize("op", ["MatMul", "ArgMax"])
@pytest.mark.parametrize("dims", [None, ["n", 4], ["n", 1], ["n", "t", 4], ["n"], [2, 0]])
@pytest.mark.parametrize("metric", METRICS)
def test_what_the_graph_tells_of_a_metric_is_what_the_outputs_give(
    op: str, dims: list[Any] | None, metric: str
) -> None:
    """A graph that does not tell refuses nothing."""
    element = TensorProto.INT64 if op == "ArgMax" else TensorProto.FLOAT
    ends = [helper.make_tensor_value_info("y", element, dims)]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", [], ends)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    values = np.ones(
        [5 if isinstance(dim, str) else dim for dim in dims or ()], helper.tensor_dtype_to_np_dtype(element)
    )
    meter = OutputMeter("y")
    meter.update(values, values)
    if dims is None or meter.result().value(metric) is not None:
        check_applies(metric, model)
    else:
        with pytest.raises(UsageError, match="applies to none"):
            check_applies(metric, model)
    check_applies("pkg.mod:own", model)
    if op == "MatMul" and dims == ["n", "t", 4]:
        check_applies("kl", model, logits=["y"])


def test_models_that_do_not_match(tmp_path: Path, data: Data) -> None:
    original = save(tmp_path / "o", GELUS, outputs=("b", "y"))
    with pytest.raises(ActxError, match="other outputs"):
        check(original, save(tmp_path / "a", GELUS), data)
    with pytest.raises(ActxError, match="in another order"):
        check(original, save(tmp_path / "b", GELUS, outputs=("y", "b")), data)
    renamed = onnx.load(save(tmp_path / "c", GELUS))
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "z"
    onnx.save(renamed, tmp_path / "z.onnx")
    with pytest.raises(ActxError, match="other inputs"):
        check(save(tmp_path / "d", GELUS), tmp_path / "z.onnx", data)


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (SiteTap("s", None, "absent", "a", "b"), "no value named 'absent'"),
        (SiteTap("s", None, "b", "a", "absent"), "no value named 'absent'"),
        (SiteTap("s", None, "b", "a", "y"), "site 's' cannot be compared"),
    ],
)
def test_taps_that_do_not_match_leave_nothing_behind(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch, tap: SiteTap, message: str
) -> None:
    path = save(tmp_path / "m", GELUS)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with pytest.raises(ActxError, match=message):
        check(path, path, data, taps=[tap])
    assert not list(scratch.iterdir())
    assert [p.name for p in path.parent.iterdir()] == ["m.onnx"]


def test_progress_counts_samples_of_both_passes(tmp_path: Path, data: Data) -> None:
    path = save(tmp_path / "m", GELUS)
    seen: list[tuple[int, int]] = []
    check(path, path, data, taps=taps(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 14), (5, 14), (7, 14), (8, 14), (12, 14), (14, 14)]
