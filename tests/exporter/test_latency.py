"""Behaviour of `exporter.profile`: statistics on made-up times, attribution of nodes on real sessions."""

from __future__ import annotations

import gc
import json
import math
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.signal import lfilter

from actx.exporter import latency, turns
from actx.exporter.data import InputSpec, synthetic_data
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.latency import (
    Round,
    compare_all,
    compare_latency,
    machine_notes,
    profile,
    summarize,
    take_rounds,
    take_turns,
    time_model,
)
from actx.exporter.runtimes.onnxruntime import RuntimeOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

MAX_ROUNDS, MAX_TURNS = latency._MAX_ROUNDS, turns.MAX_TURNS  # as they are before tests/conftest.py has less of them
WIDTH = 16
WEIGHT = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
Layers = list[tuple[str, list[str], str]]

# x / sqrt(2), erf, + 1, * x, * 1/2 between two linear layers; node names are left out as many exporters do.
ERF_GELU: Layers = [
    ("MatMul", ["x", "w"], "a"),
    ("Div", ["a", "root"], "d"),
    ("Erf", ["d"], "e"),
    ("Add", ["e", "one"], "f"),
    ("Mul", ["a", "f"], "g"),
    ("Mul", ["g", "half"], "h"),
    ("MatMul", ["h", "w"], "b"),
    ("Relu", ["b"], "c"),
    ("MatMul", ["c", "w"], "y"),
]
ERF_OWNERS = {**dict.fromkeys("defgh", "gelu"), "c": "relu"}


@pytest.fixture(scope="module", autouse=True)
def measurements_are_as_long_as_a_users() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "_MAX_ROUNDS", MAX_ROUNDS)
        patch.setattr(turns, "MAX_TURNS", MAX_TURNS)
        yield


def save(
    folder: Path, layers: Layers, *, element: int = TensorProto.FLOAT, external: bool = False, named: bool = False
) -> Path:
    folder.mkdir(exist_ok=True)
    dtype = helper.tensor_dtype_to_np_dtype(element)
    constants = {"w": WEIGHT, "root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    nodes = [helper.make_node(op, i, [o], name=f"node_{o}" if named else None) for op, i, o in layers]
    used = {name for node in nodes for name in node.input}
    initializers = [numpy_helper.from_array(np.asarray(a, dtype), n) for n, a in constants.items() if n in used]
    values = [helper.make_tensor_value_info(name, element, ["n", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(proto, folder / "m.onnx", save_as_external_data=external, location="w.data", size_threshold=0)
    return folder / "m.onnx"


def feeds(dtype: str = "float32") -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((5, WIDTH)).astype(dtype)}


@dataclass(frozen=True)
class Weather:
    """What disturbs the times of a simulated machine.

    Attributes:
        jitter: spread of independent noise.
        memory: spread of autocorrelated noise, which halves in about 70 runs.
        drift: factor by which the machine has become slower after 1000 runs.
        busy: share of the time in which another process has the core; it adds up to 4 ms, a time slice, to a run.
        layout: spread between sessions of one model, for as long as they are open.
    """

    jitter: float = 0.0
    memory: float = 0.0
    drift: float = 1.0
    busy: float = 0.0
    layout: float = 0.0


def simulated(costs: tuple[float, ...], seed: int, weather: Weather, runs: int | None = None) -> list[Round]:
    """Measure sessions that take so many ms on an undisturbed machine, on one that has this weather."""
    rng = np.random.default_rng(seed)
    count = 2**14
    noise = weather.jitter * rng.standard_normal(count) + math.log(weather.drift) / 1000 * np.arange(count)
    steps = weather.memory * math.sqrt(1 - 0.99**2) * rng.standard_normal(count)
    noise += lfilter([1], [1, -0.99], steps)
    waits = np.where(rng.random(count) < weather.busy, 4 * rng.random(count), 0)
    run_noise = zip(np.exp(noise).tolist(), waits.tolist(), strict=True)

    def measure(index: int) -> Round:
        layout = np.exp(weather.layout * rng.standard_normal(len(costs))).tolist()

        def run(which: int) -> int:
            factor, wait = next(run_noise)
            return int(1e6 * (costs[which] * layout[which] * factor + wait))

        return Round(np.zeros((len(costs), 2), np.int64), take_turns(run, len(costs), rng))

    return take_rounds(measure, runs)


WEATHER = {
    "still": Weather(),
    "jitter": Weather(jitter=0.05),
    "layout": Weather(jitter=0.01, layout=0.02),
    "drift": Weather(jitter=0.01, drift=3),
    "autocorrelated": Weather(jitter=0.01, memory=0.2),
    "busy core": Weather(jitter=0.01, busy=0.6),
    "all": Weather(jitter=0.02, memory=0.1, drift=1.5, busy=0.5, layout=0.01),
}


@pytest.mark.parametrize("weather", WEATHER.values(), ids=WEATHER)
def test_a_model_does_not_differ_from_itself(weather: Weather) -> None:
    verdicts = [compare_latency(simulated((1, 1, 1), seed, weather)).verdict for seed in range(100)]
    assert sum(verdict != "no difference" for verdict in verdicts) <= 1


@pytest.mark.parametrize("weather", WEATHER.values(), ids=WEATHER)
def test_ten_percent_are_found_in_both_directions(weather: Weather) -> None:
    for costs, verdict in (((1, 1.1, 1), "slower"), ((1.1, 1, 1.1), "faster")):
        found = [compare_latency(simulated(costs, seed, weather)) for seed in range(10)]
        assert sum(result.verdict == verdict for result in found) >= 9
        for result in found:
            low, high = result.interval
            assert low <= result.paired_ratio <= high
            assert result.paired_ratio == pytest.approx(costs[0] / costs[1], rel=0.03)
            assert result.ratio == pytest.approx(costs[0] / costs[1], rel=0.2)


def test_rounds_end_once_the_ratio_is_known_and_turns_once_they_agree() -> None:
    still, noisy = (simulated((1, 1, 1), 0, WEATHER[name]) for name in ("still", "all"))
    assert (len(still), {done.turns.shape for done in still}) == (8, {(3, 3)})
    assert len(noisy) > 8
    assert max(done.turns.shape[1] for done in noisy) > 3
    assert len(simulated((1, 1, 1), 0, WEATHER["still"], runs=20)) == 20
    assert len(simulated((1, 1, 1), 0, Weather(jitter=2))) == 50
    # Runs of a second: no more than 3 turns.
    assert {done.turns.shape[1] for done in simulated((1000, 1000, 1000), 0, Weather(jitter=1))} == {3}


def rounds(*rows: NDArray[np.int64]) -> list[Round]:
    """Rounds of one turn each from the times of every session."""
    return [Round(np.zeros((len(rows), 2), np.int64), np.array([turn]).T) for turn in zip(*rows, strict=True)]


def times(median: float, spread: float, count: int, seed: int) -> NDArray[np.int64]:
    draws = np.random.default_rng(seed).lognormal(math.log(median), spread, count)
    return draws.astype(np.int64)


def test_difference_within_the_noise_of_the_original_against_itself_is_none() -> None:
    a = times(1e6, 0.001, 40, 0)
    again = (a * 1.10).astype(np.int64)  # the machine treats one of two equal sessions 10 % better
    b = (a / 1.03).astype(np.int64)
    result = compare_latency(rounds(a, b, again))
    assert result.interval[0] > 1
    assert result.verdict == "no difference"
    assert result.noise >= 1.09


def test_the_interval_is_between_order_statistics() -> None:
    """Of 20 values the 6th and the 15th: they miss the median with 2 P(Bin(20, 1/2) <= 5) = 4.1 %."""
    ones, ratios = np.full(20, 10**6), np.arange(1, 21)
    result = compare_latency(rounds(ones * ratios, ones, ones * ratios))
    assert result.interval == pytest.approx((6, 15))
    assert result.paired_ratio == pytest.approx(math.sqrt(10 * 11))
    assert result.noise == 1


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_too_few_rounds_show_nothing(count: int) -> None:
    a = np.full(count, 1000)
    result = compare_latency(rounds(a, a // 2, a))
    assert result.verdict == "no difference"
    assert result.paired_ratio == pytest.approx(2)
    assert result.interval == (pytest.approx((2, 2)) if count > 5 else (0, math.inf))
    assert result.noise == math.inf
    assert compare_latency(rounds(np.full(8, 1000), np.full(8, 500), np.full(8, 1000))).verdict == "faster"


def test_several_artifacts_share_rounds_and_are_judged_one_by_one() -> None:
    found = simulated((1, 0.8, 1, 1.25, 1), 0, WEATHER["layout"])
    verdicts = [compare_latency([done.only(artifact) for done in found]).verdict for artifact in (1, 2, 3)]
    assert verdicts == ["faster", "no difference", "slower"]


def test_several_real_models_are_compared_with_one(tmp_path: Path) -> None:
    paths = [save(tmp_path / name, ERF_GELU) for name in "abc"]
    options = RuntimeOptions(threads=1)
    found = compare_all((paths[0], options), [(path, options) for path in paths[1:]], feeds(), seconds=2.0)
    assert len(found) == 2
    for one in found:
        assert one.original_ms > 0
        assert one.artifact_ms > 0
    assert found[0].original_ms == found[1].original_ms
    (hurried,) = compare_all((paths[0], options), [(paths[1], options)], feeds(), seconds=0.0)
    assert (hurried.comparison.verdict, hurried.comparison.noise) == ("no difference", math.inf)


def test_the_time_of_one_model(tmp_path: Path) -> None:
    found = time_model(save(tmp_path / "m", ERF_GELU), feeds(), runtime=RuntimeOptions(threads=1), seconds=2.0)
    assert 0 < found.min <= found.p50 <= found.p99
    assert found.throughput == pytest.approx(5e3 / found.mean)


def test_zero_times_are_taken() -> None:
    zero = np.zeros(10, np.int64)
    assert compare_latency(rounds(zero, zero, zero)).verdict == "no difference"


def test_summary_in_milliseconds_and_samples_per_second() -> None:
    latency = summarize(np.arange(1, 101) * 1_000_000, samples=400)
    assert (latency.runs, latency.min, latency.p50, latency.mean) == (100, 1.0, 50.5, 50.5)
    assert latency.p50 <= latency.p90 <= latency.p95 <= latency.p99 <= 100
    assert latency.throughput == pytest.approx(400 / 5.05)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_fused_nodes_map_to_their_site(tmp_path: Path, *, external: bool, named: bool) -> None:
    path = save(tmp_path / "m", ERF_GELU, external=external, named=named)
    result = RuntimeOptions().node_times(path, feeds(), ERF_OWNERS, runs=2, warmup=1)
    found = {node.op_type: node.site for node in result.nodes if node.site}
    assert found == {"Gelu": "gelu", "Relu": "relu"}
    assert [node.op_type for node in result.nodes] == ["MatMul", "Gelu", "MatMul", "Relu", "MatMul"]
    assert sum(node.share or 0 for node in result.nodes) == pytest.approx(1)
    assert result.activation_share == pytest.approx(sum(share or 0 for share in result.sites.values()))
    assert result.runs == 2
    assert result.shapes == {"x": (5, WIDTH)}


def test_every_node_of_a_site_that_is_not_fused_counts(tmp_path: Path) -> None:
    path = save(tmp_path / "m", ERF_GELU)
    result = RuntimeOptions(optimization="none").node_times(path, feeds(), ERF_OWNERS, runs=1)
    assert [node.site for node in result.nodes] == [None, *["gelu"] * 5, None, "relu", None]


def test_site_whose_op_the_runtime_expands_keeps_all_of_its_nodes(tmp_path: Path) -> None:
    layers: Layers = [("MatMul", ["x", "w"], "a"), ("Mish", ["a"], "b"), ("MatMul", ["b", "w"], "y")]
    for element, dtype in ((TensorProto.FLOAT, "float32"), (TensorProto.FLOAT16, "float16")):
        path = save(tmp_path / dtype, layers, element=element)
        result = RuntimeOptions().node_times(path, feeds(dtype), {"b": "mish"}, runs=1)
        inner = [node for node in result.nodes if node.op_type not in ("MatMul", "Cast")]
        assert len(inner) >= 1
        assert all(node.site == "mish" for node in inner)
        assert all(node.site is None for node in result.nodes if node.op_type == "MatMul")


def images() -> dict[str, Any]:
    return {"x": np.ones((1, 16, 8, 8), np.float32)}


def conv(folder: Path, *behind: onnx.NodeProto) -> Path:
    """A convolution from x to a, and the nodes behind it, the last of which gives y."""
    weight = numpy_helper.from_array(np.ones((16, 16, 3, 3), np.float32), "w")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    values[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [1, 16, 8, 8]))
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4), *behind]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "c.onnx")
    return folder / "c.onnx"


def test_activation_folded_into_a_linear_op_is_not_measured(tmp_path: Path) -> None:
    relu, second = helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Conv", ["b", "w"], ["y"], pads=[1] * 4)
    result = RuntimeOptions().node_times(conv(tmp_path, relu, second), images(), {"b": "relu"}, runs=1)
    assert result.sites == {"relu": None}
    assert result.activation_share is None
    assert result.to_dict()["sites"] == {"relu": None}
    assert not any(node.site for node in result.nodes)


def test_a_graph_whose_nodes_take_no_time_is_not_measured(tmp_path: Path) -> None:
    """All of it is constant: no node is left to run."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [WIDTH, WIDTH])
    nodes = [helper.make_node("Relu", ["w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [], [y], [numpy_helper.from_array(WEIGHT, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    result = RuntimeOptions().node_times(tmp_path / "m.onnx", {}, {"y": "relu"}, runs=1)
    assert (result.nodes, result.sites, result.activation_share) == ((), {"relu": None}, None)


def test_without_sites_no_share_is_measured(tmp_path: Path) -> None:
    assert RuntimeOptions().node_times(save(tmp_path / "m", ERF_GELU), feeds(), {}, runs=1).activation_share is None


def test_layout_changes_that_the_runtime_inserts_own_no_site(tmp_path: Path) -> None:
    """ReorderOutput gives the value that has the site's name; the activation before it gives one of another layout."""
    gelu, flat = helper.make_node("Gelu", ["a"], ["b"]), helper.make_node("Flatten", ["b"], ["y"])
    result = RuntimeOptions().node_times(conv(tmp_path, gelu, flat), images(), {"b": "gelu"}, runs=1)
    owned = {node.op_type: node.site for node in result.nodes}
    assert {"Gelu": "gelu", "Flatten": None}.items() <= owned.items()
    assert all(site is None for op, site in owned.items() if op.startswith("Reorder"))


def test_a_transpose_that_the_runtime_moves_owns_no_site(tmp_path: Path) -> None:
    """It moves the first one behind the activation, where the value has the site's name, and drops the second."""
    there = helper.make_node("Transpose", ["a"], ["t"], perm=[0, 2, 3, 1])
    gelu, flat = helper.make_node("Gelu", ["t"], ["b"]), helper.make_node("Flatten", ["b"], ["f"])
    back = helper.make_node("Transpose", ["b"], ["u"], perm=[0, 3, 1, 2])
    again, both = helper.make_node("Flatten", ["u"], ["g"]), helper.make_node("Concat", ["f", "g"], ["y"], axis=1)
    options = RuntimeOptions(optimization="extended")  # without the layouts of convolutions
    path = conv(tmp_path, there, gelu, back, again, flat, both)
    result = options.node_times(path, images(), {"b": "gelu"}, runs=1)
    assert [(n.op_type, n.site) for n in result.nodes if n.op_type in ("Gelu", "Transpose")] == [
        ("Gelu", "gelu"), ("Transpose", None)
    ]  # fmt: skip


def test_casts_that_the_runtime_inserts_own_no_site_and_the_models_own_do(tmp_path: Path) -> None:
    """Softplus has no float16 kernel here: it runs in float32, and the cast behind it gives the site's value."""
    layers: Layers = [("MatMul", ["x", "w"], "a"), ("Softplus", ["a"], "y")]
    path = save(tmp_path / "m", layers, element=TensorProto.FLOAT16)
    result = RuntimeOptions().node_times(path, feeds("float16"), {"y": "softplus"}, runs=1)
    assert [node.op_type for node in result.nodes if node.site] == ["Softplus"]
    assert result.nodes[-1].op_type == "Cast"

    proto = onnx.load(save(tmp_path / "own", [*layers[:1], ("Cast", ["a"], "c"), ("Tanh", ["c"], "y")]))
    proto.graph.node[1].attribute.append(helper.make_attribute("to", TensorProto.DOUBLE))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    onnx.save(proto, tmp_path / "own" / "m.onnx")
    options = RuntimeOptions(optimization="none")
    result = options.node_times(tmp_path / "own" / "m.onnx", feeds(), {"c": "tanh", "y": "tanh"}, runs=1)
    assert [node.op_type for node in result.nodes if node.site] == ["Cast", "Tanh"]


def test_nodes_of_a_subgraph_are_counted_once(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", "y"))
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    branches = [
        helper.make_graph([helper.make_node("Tanh", ["x"], [f"t{i}"])], f"b{i}", [],
                          [helper.make_tensor_value_info(f"t{i}", TensorProto.FLOAT, ["n", WIDTH])])
        for i in range(2)
    ]  # fmt: skip
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])
    proto = helper.make_model(helper.make_graph([node], "g", [flag, x], [y]), ir_version=10)
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", 20))
    onnx.save(proto, tmp_path / "m.onnx")
    large = {"x": np.ones((4000, WIDTH), np.float32), "flag": np.array(True)}
    result = RuntimeOptions().node_times(tmp_path / "m.onnx", large, {}, runs=3)
    by_op = {node.op_type: node.share or 0 for node in result.nodes}
    assert set(by_op) == {"If", "Tanh"}
    assert sum(by_op.values()) == pytest.approx(1)
    assert by_op["Tanh"] > by_op["If"]  # 64 thousand tanh against choosing a branch


def test_report_is_complete_json_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    original = save(tmp_path / "o", ERF_GELU, external=True)
    artifact = save(tmp_path / "a", ERF_GELU, element=TensorProto.FLOAT16)
    before = [(p, p.stat().st_mtime_ns) for p in (original.parent, *original.parent.iterdir())]
    data = synthetic_data([InputSpec("x", "float32", ("n", WIDTH))], {"n": 4})
    seen: list[tuple[int, int]] = []
    report = profile(
        original, artifact, data, runs=7, owners_original=ERF_OWNERS, owners_artifact=ERF_OWNERS,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert gc.isenabled()
    assert seen == [(i, 7) for i in range(1, 8)]
    assert (report.runs, report.batch_sizes, report.synthetic) == (7, (4,), True)
    assert report.original.runs == report.artifact.runs == report.original_again.runs >= 7 * 3
    for startup in (report.original_startup, report.artifact_startup):
        assert startup.load > 0
        assert startup.first_run > 0
        assert startup.peak_memory is not None
        assert 0 < startup.peak_memory < 2**30
    minima = report.round_minima
    a, b, again = (np.log(row) for row in (minima.original, minima.artifact, minima.original_again))
    assert (min(minima.original), min(minima.artifact)) == (report.original.min, report.artifact.min)
    assert np.exp(np.median((a + again) / 2 - b)) == pytest.approx(report.comparison.paired_ratio)
    assert report.shapes == ({"x": (4, WIDTH)},)
    assert {node.site for node in report.original_nodes.nodes} == {None, "gelu", "relu"}
    assert report.runtime["options"]["spin_between_runs"] is False
    assert report.runtime["others_busy_cores"] >= 0
    assert len(report.runtime["load_average"]) == 3
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["comparison"]["verdict"] in ("faster", "slower", "no difference")
    assert not list(scratch.iterdir())
    assert [(p, p.stat().st_mtime_ns) for p in (original.parent, *original.parent.iterdir())] == before
    assert capfd.readouterr() == ("", "")


def test_few_rounds_are_noted(tmp_path: Path) -> None:
    path = save(tmp_path / "m", ERF_GELU)
    data = synthetic_data([InputSpec("x", "float32", ("n", WIDTH))], {"n": 1})
    report = profile(path, path, data, runs=1)
    assert report.comparison.verdict == "no difference"
    assert "too few" in report.notes[0]
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["comparison"]["interval"] == [0, "inf"]


def test_failures_leave_nothing_behind_and_restore_garbage_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    path = save(tmp_path / "m", ERF_GELU)
    with pytest.raises(ActxError, match="failed to run"):
        RuntimeOptions().node_times(path, {"x": np.ones((2, 3), np.float32)}, {})
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ActxError, match="not an ONNX model"):
        RuntimeOptions().node_times(tmp_path / "junk.onnx", feeds(), {})
    data = synthetic_data([InputSpec("x", "float32", ("n", WIDTH))], {"n": 1})

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(path, path, data, progress=stop)
    assert gc.isenabled()
    assert not list(scratch.iterdir())
    assert capfd.readouterr() == ("", "")


def test_counts_are_checked(tmp_path: Path) -> None:
    path = save(tmp_path / "m", ERF_GELU)
    data = synthetic_data([InputSpec("x", "float32", ("n", WIDTH))], {"n": 1})
    for runs in (0, -1):
        with pytest.raises(UsageError):
            profile(path, path, data, runs=runs)
    for runs, warmup in ((0, 1), (-1, 0), (1, -1)):
        with pytest.raises(UsageError):
            RuntimeOptions().node_times(path, feeds(), {}, runs=runs, warmup=warmup)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({}, []),
        ({"others_busy_cores": 1.2}, ["other processes kept 1.2 of 2 cores busy"]),
        ({"others_busy_cores": 0.4}, []),
        ({"others_busy_cores": None, "governors": ["unknown", "unknown"]}, []),
        ({"governors": ["performance", "powersave"]}, ["the CPU governor is powersave"]),
    ],
)
def test_doubts_about_the_machine_are_noted(machine: dict[str, Any], words: list[str]) -> None:
    described = {"cores": 2, "others_busy_cores": 0.0, "governors": ["performance", "performance"], **machine}
    notes = machine_notes(described)
    assert len(notes) == len(words)
    assert all(note.startswith(word) for note, word in zip(notes, words, strict=True))


def test_nodes_of_a_subgraph_with_the_numbers_of_its_graph_are_told_apart(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", "y"))
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    branches = [
        helper.make_graph([helper.make_node("Tanh", ["t"], [f"t{i}"])], f"b{i}", [],
                          [helper.make_tensor_value_info(f"t{i}", TensorProto.FLOAT, ["n", WIDTH])])
        for i in range(2)
    ]  # fmt: skip
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    graph = helper.make_graph(nodes, "g", [flag, x], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(proto, tmp_path / "m.onnx")
    result = RuntimeOptions().node_times(
        tmp_path / "m.onnx", {**feeds(), "flag": np.array(False)}, {"t": "outer"}, runs=2
    )
    tanh = [node for node in result.nodes if node.op_type == "Tanh"]
    assert sorted(node.site or "" for node in tanh) == ["", "outer"]
    assert result.sites["outer"] == pytest.approx(next(node.share for node in tanh if node.site))
