"""`recover` on real graphs of every shape: what changes, what does not, and that held-out samples are never worse off."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from actx.exporter.calibrate import calibrate
from actx.exporter.choose import choose
from actx.exporter.data import Data, hold_out, load_data
from actx.exporter.drift import check
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.fitting import Form
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.load.prepare import prepare
from actx.exporter.lower import lower
from actx.exporter.lower.fold import OWN
from actx.exporter.recover import recover
from actx.exporter.save import save
from actx.exporter.targets import find_target
from actx.exporter.workspace import workspace
from actx.models.demo import CALIBRATION, DATA_FOLDER, EVALUATION
from tests.networks import HIDDEN, OUT, SPELLINGS, SURROUNDINGS, WIDTH, Graph, feeds, onnx_mlp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actx.exporter.lower import Lowered
    from actx.exporter.recover import Recovered

SAMPLES, TOKENS = 48, 5
GELU = SPELLINGS["gelu_op"].write


@dataclass(frozen=True)
class Case:
    """A model, its forms, and data to recover on and to judge on."""

    model: ir.Model
    lowered: Lowered
    choices: tuple[Any, ...]
    data: Data
    fresh: Data

    def recover(self, **options: Any) -> Recovered:
        return recover(self.lowered, self.choices, self.model, self.data, **options)

    def drift(self, graph: ir.Model, folder: Path, data: Data | None = None, metric: str = "l2") -> float:
        save({"a.onnx": self.model, "b.onnx": graph}, folder)
        return check(folder / "a.onnx", folder / "b.onnx", data or self.fresh, metric=metric).drift


def case(
    source: onnx.ModelProto | Path,
    folder: Path,
    form: str = "relu",
    *,
    samples: int = SAMPLES,
    tokens: int = TOKENS,
    scale: float = 1.0,
    files: tuple[str, str] | None = None,
    **options: Any,
) -> Case:
    path = source
    if isinstance(source, onnx.ModelProto):
        path = folder / "source.onnx"
        onnx.save(source, path)
        given = [{n: scale * v for n, v in feeds(source, samples, tokens, seed).items()} for seed in (1, 2)]
        for name, arrays in zip(("data", "fresh"), given, strict=True):
            np.savez(folder / f"{name}.npz", **arrays)
        files = str(folder / "data.npz"), str(folder / "fresh.npz")
    assert files is not None
    loaded = load(path)  # type: ignore[arg-type]
    data, fresh = (load_data(file, loaded.inputs) for file in files)
    sites = lift(loaded.model).sites
    with workspace(loaded) as original:
        statistics = calibrate(original, sites, data)
    choices = choose(sites, find_target("onnx"), form=Form.parse(form), statistics=statistics)
    assert any(choice.rewritten for choice in choices)
    return Case(loaded.model, lower(loaded.model, choices, **options), choices, data, fresh)


def never_run(model_data: Data) -> Data:
    def opened() -> Any:
        pytest.fail("the data was read")

    return replace(model_data, _open=opened)


def conv_mlp(activation: str = "Gelu", dtype: Any = np.float32) -> onnx.ModelProto:
    g, rng = Graph(20, dtype), np.random.default_rng(3)
    x = g.input("x", ["batch", WIDTH, 4, 4])
    up = g.op("Conv", x, g.weight("up.weight", rng.standard_normal((HIDDEN, WIDTH, 3, 3)) / 4),
              g.weight("up.bias", rng.standard_normal(HIDDEN)), pads=[1, 1, 1, 1])  # fmt: skip
    down = g.weight("down.weight", rng.standard_normal((OUT, HIDDEN, 1, 1)))
    g.output(g.op("Conv", g.op(activation, up), down, g.weight("down.bias", np.zeros(OUT))), "y", 4)
    return g.model()


def gemm_chain() -> onnx.ModelProto:
    """Three layers and two sites: the one in the middle is behind the first and before the second."""
    g, rng = Graph(20), np.random.default_rng(4)
    x = g.input("x", ["batch", WIDTH])
    for i, (inputs, outputs) in enumerate(((WIDTH, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, OUT))):
        weight = g.weight(f"{i}.weight", rng.standard_normal((outputs, inputs)) / inputs**0.5)
        x = g.op("Gemm", x, weight, g.weight(f"{i}.bias", rng.standard_normal(outputs)), transB=1)
        x = GELU(g, x) if i < 2 else x
    g.output(x, "y", 2)
    return g.model()


def residual_blocks(shared: bool = False) -> onnx.ModelProto:
    """Two blocks x + down(gelu(up(x))); their weights may be the same initializers."""
    g, rng = Graph(20), np.random.default_rng(5)
    x = g.input("x", ["batch", "tokens", WIDTH])
    constants: dict[str, str] = {}

    def constant(name: str, *shape: int) -> str:
        key = name.partition(".")[2] if shared else name
        if key not in constants:
            constants[key] = g.weight(key, rng.standard_normal(shape) / shape[0] ** 0.5)
        return constants[key]

    for i in range(2):
        up = g.op("Add", g.op("MatMul", x, constant(f"{i}.up", WIDTH, HIDDEN)), constant(f"{i}.upbias", HIDDEN))
        product = g.op("MatMul", GELU(g, up), constant(f"{i}.down", HIDDEN, WIDTH))
        x = g.op("Add", x, g.op("Add", product, constant(f"{i}.downbias", WIDTH)))
    g.output(x, "y", 3)
    return g.model()


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "mlp": lambda: onnx_mlp(GELU, 20),
    "float16": lambda: onnx_mlp(GELU, 20, np.float16),
    "conv": conv_mlp,
    "gemm_chain": gemm_chain,
    "residual": residual_blocks,
    "shared": lambda: residual_blocks(shared=True),
    "gated": lambda: SPELLINGS["silu"].model(20, gated="matmul"),
    "packed": lambda: SPELLINGS["silu"].model(20, gated="split"),
    "interleaved": lambda: SPELLINGS["silu"].model(20, gated="interleaved"),
    "of_gemm": lambda: SURROUNDINGS["gemm"].build(20),
    "behind_norm": lambda: SURROUNDINGS["norm"].build(20),
    "two_readers": lambda: SURROUNDINGS["output_used_twice"].build(20),
    "input_used_twice": lambda: SURROUNDINGS["input_used_twice"].build(20),
    "two_branches": lambda: SURROUNDINGS["two_branches"].build(20),
    "wavenet": lambda: SURROUNDINGS["wavenet"].build(20),
    "constants_as_nodes": lambda: SURROUNDINGS["constants_as_nodes"].build(20),
}


def ops(model: ir.Model) -> list[str]:
    return [f"{node.domain}:{node.op_type}" for node in model.graph]


def own_constants(model: ir.Model) -> dict[tuple[str, int], ir.TensorProtocol]:
    """The constants that are not the source's, by the node that reads them."""
    found = {}
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is not None and OWN in str(value.name):
                assert value.const_value is not None
                found[str(node.outputs[0].name), index] = value.const_value
    return found


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "pwl:4" if name == "wavenet" else "relu") for name in NETWORKS),
        *(("mlp", "pwl:4"), ("shared", "pwl:4"), ("residual", "hardswish"), ("gemm_chain", "hardswish")),
    ],
)
def test_fresh_samples_are_better_off(name: str, form: str, tmp_path: Path) -> None:
    """Structure, numbers and validity, on samples that nothing was fitted on."""
    found = case(NETWORKS[name](), tmp_path, form)
    weights = {value.name: value.const_value for value in found.lowered.portable.graph.initializers.values()}
    result = found.recover()
    assert any(entry.layers for entry in result.sites), result.sites
    assert result.drift is not None
    assert result.drift_before is not None
    assert result.drift <= result.drift_before
    before, after = (found.drift(x.portable, tmp_path) for x in (found.lowered, result.lowered))
    assert after < before
    # The graphs are what they were but for constants, which both read as one tensor each; what was lowered has its own.
    assert weights == {v.name: v.const_value for v in found.lowered.portable.graph.initializers.values()}
    for mine, theirs in (
        (result.lowered.portable, found.lowered.portable),
        (result.lowered.native, found.lowered.native),
    ):
        assert mine is not None
        assert theirs is not None
        assert ops(mine) == ops(theirs)
        assert all(value.uses() for value in mine.graph.initializers.values())
    assert result.lowered.native is not None
    portable, native = own_constants(result.lowered.portable), own_constants(result.lowered.native)
    assert portable
    assert all(native[place] is tensor for place, tensor in portable.items())
    assert native.keys() == portable.keys()
    onnx.checker.check_model(ir.to_proto(result.lowered.portable), full_check=True)
    assert result.lowered.placements == found.lowered.placements


@pytest.mark.parametrize("name", ["gated", "packed"])
def test_a_packed_gate_is_recovered_behind_its_product(name: str, tmp_path: Path) -> None:
    proto = NETWORKS[name]()
    site = lift(load_model(proto)).sites[0].name
    found = case(proto, tmp_path, packed=(site,))
    result = found.recover()
    (entry,) = result.sites
    assert entry.layers
    assert found.drift(result.lowered.portable, tmp_path) < found.drift(found.lowered.portable, tmp_path)
    assert result.lowered.native is not None
    assert "actx:GatedSpline" in ops(result.lowered.native)


def load_model(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    prepare(model)
    return model


def test_a_layer_gives_what_a_slope_folded_into_it_asks_for(tmp_path: Path) -> None:
    """The middle layer gives so many times what it gives in the original, and lacks next to nothing of that."""
    found = case(gemm_chain(), tmp_path, "hardswish")
    scales = [place.scale for place in found.lowered.placements]
    assert scales[1] != 1
    first, second = found.recover().sites
    assert first.before is not None
    assert first.before < 0.05
    assert second.layers


def test_weights_that_two_layers_read_become_two(tmp_path: Path) -> None:
    found = case(residual_blocks(shared=True), tmp_path)
    result = found.recover()
    assert all(entry.layers for entry in result.sites)
    downs = {
        id(node.inputs[1].const_value)
        for node in result.lowered.portable.graph
        if node.op_type == "MatMul" and node.inputs[1] is not None and node.inputs[1].shape == ir.Shape([HIDDEN, WIDTH])
    }
    assert len(downs) == 2


# --- what is left alone ---


def body_reader() -> onnx.ModelProto:
    """What the site gives is read in the branches of an If alone."""
    proto = onnx_mlp(GELU, 20)
    graph = proto.graph
    product = next(node for node in graph.node if node.op_type == "MatMul" and "down.weight" in node.input)
    place = list(graph.node).index(product)
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", list(product.input), [name])], name, [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "t", OUT])],
        )
        for name in ("then", "otherwise")
    ]  # fmt: skip
    graph.initializer.append(numpy_helper.from_array(np.array(0.0, np.float32), "zero"))
    first = helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0)
    which = helper.make_node("Greater", ["most", "zero"], ["which"])
    either = helper.make_node("If", ["which"], list(product.output), then_branch=branches[0], else_branch=branches[1])
    nodes = [*list(graph.node)[:place], first, which, either, *list(graph.node)[place + 1 :]]
    del graph.node[:]
    graph.node.extend(nodes)
    return proto


def residual_beside() -> onnx.ModelProto:
    return SURROUNDINGS["residual"].build(20)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (body_reader, "its output is read within a body"),
        (residual_beside, "its output is read by Add, which is no layer"),
        (lambda: SURROUNDINGS["reshape"].build(20), "its output is read by Reshape, which is no layer"),
    ],
)
def test_where_no_layer_can_be_refitted_nothing_is_run(
    build: Callable[[], onnx.ModelProto], reason: str, tmp_path: Path
) -> None:
    found = case(build(), tmp_path, "pwl:4")
    found = replace(found, data=never_run(found.data))
    result = found.recover()
    assert result.lowered is found.lowered
    assert result.drift is result.drift_before is None
    (entry,) = result.sites
    assert entry.reason == f"no layer is refitted: {reason}"
    assert not entry.layers


def test_where_nothing_is_rewritten_nothing_is_run(tmp_path: Path) -> None:
    found = case(NETWORKS["mlp"](), tmp_path)
    choices = choose([choice.site for choice in found.choices], find_target("onnx"), form=Form("keep"))
    result = recover(lower(found.model, choices), choices, found.model, never_run(found.data))
    assert result.sites == ()
    assert result.drift is None


def test_the_sources_own_mathematics_needs_no_recovery(tmp_path: Path) -> None:
    found = case(NETWORKS["mlp"](), tmp_path, "spline:32x3")
    result = replace(found, data=never_run(found.data)).recover()
    assert result.lowered is found.lowered
    assert result.sites[0].reason.startswith("nothing to recover")


def test_a_body_beside_the_site_is_run_as_it_is(tmp_path: Path) -> None:
    """An If behind the refitted layers reads a value from before them."""
    proto = NETWORKS["residual"]()
    graph = proto.graph
    last = graph.node[-1]
    assert last.op_type == "Identity"
    summed = last.input[0]
    branches = [
        helper.make_graph(
            [helper.make_node(op, [summed, "x"], [op])], op, [],
            [helper.make_tensor_value_info(op, TensorProto.FLOAT, ["b", "t", WIDTH])],
        )
        for op in ("Add", "Sub")
    ]  # fmt: skip
    graph.initializer.append(numpy_helper.from_array(np.array(0.0, np.float32), "zero"))
    del graph.node[-1]
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Greater", ["most", "zero"], ["which"]),
            helper.make_node("If", ["which"], ["y"], then_branch=branches[0], else_branch=branches[1]),
        ]
    )
    found = case(proto, tmp_path)
    result = found.recover()
    assert all(entry.layers for entry in result.sites)
    assert found.drift(result.lowered.portable, tmp_path) < found.drift(found.lowered.portable, tmp_path)


# --- data ---


def test_one_sample_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(ActxError, match="has one sample, and none to hold out"):
        case(NETWORKS["mlp"](), tmp_path, samples=1).recover()


def test_one_batch_of_a_model_that_fixes_its_size(tmp_path: Path) -> None:
    proto = NETWORKS["mlp"]()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = SAMPLES
    with pytest.raises(ActxError, match="has one batch, and none to hold out") as caught:
        case(proto, tmp_path).recover()
    assert caught.value.remedy == "Give more samples."


@pytest.mark.parametrize("name", ["mlp", "conv", "gated"])
def test_fewer_rows_than_inputs(name: str, tmp_path: Path) -> None:
    found = case(NETWORKS[name](), tmp_path, samples=2, tokens=1)
    result = found.recover()
    held = hold_out(found.data)[1]
    before, after = (found.drift(x.portable, tmp_path, held) for x in (found.lowered, result.lowered))
    assert after <= before


def test_rows_beyond_the_range_of_the_type_are_left_out(tmp_path: Path) -> None:
    """In float16 one sample of the data gives infinities; the layers are fitted on the others."""
    found = case(NETWORKS["float16"](), tmp_path)
    arrays = dict(np.load(tmp_path / "data.npz"))
    arrays["x"][1] = 6e4
    np.savez(tmp_path / "wild.npz", **arrays)
    wild = replace(found, data=load_data(str(tmp_path / "wild.npz"), load(tmp_path / "source.onnx").inputs))
    result = wild.recover()
    assert result.sites[0].layers
    assert found.drift(result.lowered.portable, tmp_path) < found.drift(found.lowered.portable, tmp_path)


def test_a_channel_that_is_constant(tmp_path: Path) -> None:
    proto = NETWORKS["mlp"]()
    (up,) = (tensor for tensor in proto.graph.initializer if tensor.name == "up.weight")
    weight = numpy_helper.to_array(up).copy()
    weight[:, 3:] = 0
    up.CopyFrom(numpy_helper.from_array(weight, "up.weight"))
    found = case(proto, tmp_path)
    result = found.recover()
    assert found.drift(result.lowered.portable, tmp_path) < found.drift(found.lowered.portable, tmp_path)


def test_external_data_gives_the_same(tmp_path: Path) -> None:
    proto = NETWORKS["residual"]()
    inside = case(proto, tmp_path)
    (tmp_path / "outside").mkdir()
    onnx.save(proto, tmp_path / "outside" / "m.onnx", save_as_external_data=True, size_threshold=0)
    files = str(tmp_path / "data.npz"), str(tmp_path / "fresh.npz")
    outside = case(tmp_path / "outside" / "m.onnx", tmp_path, files=files)
    first, second = (own_constants(found.recover().lowered.portable) for found in (inside, outside))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[place].numpy(), second[place].numpy()) for place in first)


def test_twice_gives_the_same(tmp_path: Path) -> None:
    found = case(NETWORKS["residual"](), tmp_path)
    seen: list[tuple[int, int]] = []
    first, second = found.recover(progress=lambda *done: seen.append(done)), found.recover()
    assert first.sites == second.sites
    assert seen == [(1, 2), (2, 2)]


# --- what decides ---

METRIC = """
import numpy as np

def contrary(original, artifact, batch):
    assert set(batch) == {"x"}
    return 1 / (1e-3 + float(np.abs(original["y"] - artifact["y"]).mean()))

def task(original, artifact, batch):
    return float(np.abs(original["y"] - artifact["y"]).max())
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"metric_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(METRIC)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_metric_of_the_users_own_decides(user: str, tmp_path: Path) -> None:
    found = case(NETWORKS["mlp"](), tmp_path)
    kept = found.recover(metric=f"{user}:task")
    assert kept.sites[0].layers
    assert kept.drift is not None
    assert kept.drift_before is not None
    assert kept.drift < kept.drift_before
    dropped = found.recover(metric=f"{user}:contrary")
    assert dropped.lowered is found.lowered
    assert dropped.drift == dropped.drift_before
    (entry,) = dropped.sites
    assert entry.reason.startswith("not kept: the drift on held-out samples would be")
    assert (entry.layers, entry.moved, entry.after) == ((), 0, None)


def test_an_unknown_metric_is_refused_before_any_work(tmp_path: Path) -> None:
    found = case(NETWORKS["mlp"](), tmp_path)
    with pytest.raises(UsageError):
        replace(found, data=never_run(found.data)).recover(metric="nonsense")


def test_the_drift_is_that_of_the_held_out_samples(tmp_path: Path) -> None:
    found = case(NETWORKS["residual"](), tmp_path)
    result = found.recover(metric="cosine")
    held = hold_out(found.data)[1]
    graphs = found.lowered.portable, result.lowered.portable
    drifts = [found.drift(graph, tmp_path, held, "cosine") for graph in graphs]
    assert [result.drift_before, result.drift] == pytest.approx(drifts)


# --- trained networks ---


def test_the_demo_loses_at_most_half_a_point(demo_onnx: Path, tmp_path: Path) -> None:
    files = tuple(str(DATA_FOLDER / name) for name in (CALIBRATION, EVALUATION))
    found = case(demo_onnx, tmp_path, files=files)
    result = found.recover()
    save({"a.onnx": found.model, "b.onnx": found.lowered.portable, "c.onnx": result.lowered.portable}, tmp_path)
    reports = [check(tmp_path / "a.onnx", tmp_path / name, found.fresh) for name in ("b.onnx", "c.onnx")]
    accuracies = [report.accuracy for report in reports]
    assert accuracies[0] is not None
    assert accuracies[1] is not None
    assert reports[1].drift < reports[0].drift
    assert accuracies[1].artifact >= accuracies[1].original - 0.005
