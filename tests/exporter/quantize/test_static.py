"""Static int8 on a CPU: what becomes codes, how far numbers move, tables between layers, and bad data."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from actx.custom_ops import cpu
from actx.exporter.choose import choose
from actx.exporter.data import load_data
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.fitting import Form
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.load.inputs import input_specs
from actx.exporter.lower import lower
from actx.exporter.quantize.fused import inspect_fused
from actx.exporter.quantize.packed import unpack
from actx.exporter.quantize.ranges import CALIBRATORS, find_range, observe_histograms, params_of
from actx.exporter.quantize.source import table_sites
from actx.exporter.quantize.static import EXCLUDED, Settings, Style, observe, write
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.save import save
from actx.exporter.targets import find_target
from tests.networks import SPELLINGS, SURROUNDINGS, WIDTH, Graph, feeds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from actx.exporter.data import Data
    from actx.exporter.lower import Lowered
    from actx.exporter.quantize.source import Quantized, TableSite

ROWS, PLAIN = Style(rows=True, tables=True), Style(rows=False, tables=False)
OWN = Style(rows=True, tables=True, own_layers=True)
BY_ROWS = pytest.mark.parametrize("style", [ROWS, OWN], ids=["rows", "own layers"])


def opened(proto: onnx.ModelProto, folder: Path, form: str = "keep") -> tuple[Lowered, tuple[TableSite, ...]]:
    onnx.save(proto, folder / "source.onnx")
    model = load(folder / "source.onnx").model
    choices = choose(lift(model).sites, find_target("ort-cpu"), form=Form.parse(form))
    lowered = lower(model, choices)
    return lowered, table_sites(choices, lowered)


def samples(arrays: Mapping[str, Any], model: ir.Model, folder: Path) -> Data:
    np.savez(folder / "data.npz", **arrays)
    return load_data(str(folder / "data.npz"), input_specs(model))


def quantized(proto: onnx.ModelProto, folder: Path, settings: Settings, form: str = "keep", **arrays: Any) -> Quantized:
    lowered, sites = opened(proto, folder, form)
    data = samples(arrays or feeds(proto), lowered.portable, folder)
    return write(
        observe(lowered.native or lowered.portable, sites, data, settings, observed=lowered.portable), settings
    )


def run(model: ir.Model, folder: Path, batch: Mapping[str, Any], name: str = "graph.onnx") -> Any:
    save({name: model}, folder, f"{name}.data")
    session = RuntimeOptions(threads=1, libraries=(cpu.load().path,)).open(folder / name)
    return next(iter(session.run(dict(batch)).values()))


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def mlp(activation: str = "Gelu", **inputs: Any) -> onnx.ModelProto:
    """Two layers with biases and an op between them, the first input of 3 dimensions."""
    graph = Graph(20)
    rng = np.random.default_rng(0)
    x = graph.input("x", inputs.get("shape", ["batch", "tokens", WIDTH]))
    for name in ("up", "down"):
        weight, bias = rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH), rng.standard_normal(WIDTH)
        x = graph.op("Add", graph.op("MatMul", x, graph.weight(name, weight)), graph.weight(f"{name}.bias", bias))
        x = graph.op(activation, x) if name == "up" else x
    graph.output(x, "y", 3)
    return graph.model()


def values(*shape: int) -> Any:
    return np.random.default_rng(1).uniform(-2, 2, shape).astype(np.float32)


@pytest.mark.parametrize("style", [ROWS, PLAIN, OWN], ids=["rows", "in place", "own layers"])
@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_moves_by_no_more_than_its_steps(style: Style, calibrator: str, tmp_path: Path) -> None:
    proto, x = mlp("Relu"), values(4, 3, WIDTH)
    found = quantized(proto, tmp_path, Settings(style, calibrator), x=x)
    before, after = (run(model, tmp_path, {"x": x}) for model in (opened(proto, tmp_path)[0].portable, found.model))
    assert found.calibrator == calibrator
    assert not any(found.layers.values())
    # Four tensors of codes, of rms at least a sixth of their range: each moves by half a step of 1/255 or 1/127 at most. What
    # a calibrator cuts off adds to that; the entropy's threshold cuts off more than a hundredth.
    bound = 0.1 if calibrator == "entropy" else 6 * 4 * 0.5 / 127
    assert np.linalg.norm(after - before) <= bound * np.linalg.norm(before)


def test_a_site_between_two_layers_is_one_table(tmp_path: Path) -> None:
    found = quantized(mlp(), tmp_path, Settings(ROWS), x=values(4, 3, WIDTH))
    assert len(found.tables) == 1
    assert ops(found.model)["Lut"] == 1
    assert "Gelu" not in ops(found.model)
    run(found.model, tmp_path, {"x": values(2, 5, WIDTH)})
    (site,) = inspect_fused(tmp_path / "graph.onnx", list(found.tables), RuntimeOptions(libraries=(cpu.load().path,)))
    assert site.whole


def test_a_layer_of_ours_has_the_table_behind_it(tmp_path: Path) -> None:
    """What stands in front of the node is the layer's input, which becomes codes there."""
    found = quantized(mlp(), tmp_path, Settings(OWN), x=values(4, 3, WIDTH))
    assert ops(found.model) - Counter({"Identity": 1}) == {"QuantizeLinear": 1, "QLinear": 1, "QLinearToFloat": 1}
    run(found.model, tmp_path, {"x": values(2, 5, WIDTH)})
    (site,) = inspect_fused(tmp_path / "graph.onnx", list(found.tables), RuntimeOptions(libraries=(cpu.load().path,)))
    assert (site.op_types, site.whole) == (("QLinear",), True)


@BY_ROWS
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-6])
def test_a_bias_far_larger_than_the_weights_stays(style: Style, scale: float, tmp_path: Path) -> None:
    """In steps of the products it would not fit into 32 bits."""
    graph = Graph(20)
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)) * scale
    hidden = graph.op(
        "Add",
        graph.op("MatMul", graph.input("x", ["n", WIDTH]), graph.weight("w", weight)),
        graph.weight("b", np.linspace(-3, 3, WIDTH)),
    )
    hidden = graph.op("Sigmoid", hidden)
    graph.output(graph.op("MatMul", hidden, graph.weight("down", np.eye(WIDTH))), "y", 2)
    x = values(8, WIDTH)
    found = quantized(graph.model(), tmp_path, Settings(style, "minmax"), x=x)
    expected = 1 / (1 + np.exp(-np.tile(np.linspace(-3, 3, WIDTH), (8, 1))))
    assert np.abs(run(found.model, tmp_path, {"x": x}) - expected).max() <= 0.02


def test_the_table_is_of_the_form_and_not_of_the_source(tmp_path: Path) -> None:
    x = values(4, 3, WIDTH)
    tables = [
        next(
            node
            for node in quantized(mlp(), tmp_path, Settings(ROWS, "minmax"), form, x=x).model.graph
            if node.op_type == "Lut"
        )
        for form in ("keep", "relu")
    ]
    assert tables[0].attributes["table"].value != tables[1].attributes["table"].value


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_no_code_stands_for_what_a_table_cannot_give(calibrator: str, tmp_path: Path) -> None:
    found = quantized(mlp(), tmp_path, Settings(ROWS, calibrator), x=values(64, 3, WIDTH))
    (table,) = (node.attributes["table"].as_ints() for node in found.model.graph if node.op_type == "Lut")
    assert (min(table), max(table)) == (0, 255)


@BY_ROWS
@pytest.mark.parametrize("name", ["silu", "gelu_legacy"])
def test_a_gated_site_is_one_table_of_factors(style: Style, name: str, tmp_path: Path) -> None:
    proto = SPELLINGS[name].model(20, gated="matmul")
    found = quantized(proto, tmp_path, Settings(style, "minmax"))
    assert ops(found.model)["GatedLut"] == 1
    before = run(opened(proto, tmp_path)[0].portable, tmp_path, feeds(proto))
    after = run(found.model, tmp_path, feeds(proto))
    assert np.linalg.norm(after - before) <= 8 / 127 * np.linalg.norm(before)


def test_a_residual_is_read_as_it_was(tmp_path: Path) -> None:
    found = quantized(SURROUNDINGS["residual"].build(20), tmp_path, Settings(PLAIN))
    for node in found.model.graph:
        given = [v.producer().op_type for v in node.inputs if v is not None and v.producer() is not None]  # type: ignore[union-attr]
        assert ("DequantizeLinear" in given) == (node.op_type in {"MatMul", "Gemm"})


def test_a_product_of_two_activations(tmp_path: Path) -> None:
    graph = Graph(20)
    x = graph.input("x", ["batch", WIDTH, WIDTH])
    graph.output(graph.op("MatMul", x, graph.op("Transpose", x, perm=[0, 2, 1])), "y", 3)
    batch = values(2, WIDTH, WIDTH)
    found = quantized(graph.model(), tmp_path, Settings(ROWS), x=batch)
    types = {node.inputs[2].dtype for node in found.model.graph if node.op_type == "QuantizeLinear" and node.inputs[2]}
    assert types == {ir.DataType.UINT8}
    exact = batch @ batch.transpose(0, 2, 1)
    assert np.linalg.norm(run(found.model, tmp_path, {"x": batch}) - exact) <= 4 / 127 * np.linalg.norm(exact)


def test_layers_may_share_a_weight(tmp_path: Path) -> None:
    graph = Graph(20)
    weight = graph.weight("w", np.random.default_rng(0).standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH))
    value = graph.op("MatMul", graph.op("MatMul", graph.input("x", ["batch", WIDTH]), weight), weight)
    graph.output(value, "y", 2)
    x = values(64, WIDTH)
    exact = run(opened(graph.model(), tmp_path)[0].portable, tmp_path, {"x": x})
    found = quantized(graph.model(), tmp_path, Settings(ROWS), x=x)
    assert ops(found.model)["MatMulIntegerToFloat"] == 2
    assert np.linalg.norm(run(found.model, tmp_path, {"x": x}) - exact) <= 0.1 * np.linalg.norm(exact)


@pytest.mark.parametrize(("factor", "left"), [(0.125, 0), (-0.125, 1), (np.full(WIDTH, 0.125), 1)])
def test_a_factor_behind_a_product_goes_into_its_scale(tmp_path: Path, factor: Any, left: int) -> None:
    graph = Graph(20)
    x = graph.input("x", ["batch", WIDTH, WIDTH])
    product = graph.op("MatMul", x, graph.op("Transpose", x, perm=[0, 2, 1]))
    graph.output(graph.op("Mul", product, graph.weight("factor", np.float32(factor))), "y", 3)
    batch = values(2, WIDTH, WIDTH)
    found = quantized(graph.model(), tmp_path, Settings(ROWS), x=batch)
    assert [node.op_type for node in found.model.graph].count("Mul") == left
    exact = batch @ batch.transpose(0, 2, 1) * factor
    assert np.linalg.norm(run(found.model, tmp_path, {"x": batch}) - exact) <= 4 / 127 * np.linalg.norm(exact)


def outlier() -> tuple[onnx.ModelProto, Any]:
    """A layer that reads one channel that is a hundred times as large as the others, with a small weight."""
    graph = Graph(20)
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH))
    weight[0] /= 100
    graph.output(graph.op("MatMul", graph.input("x", ["batch", WIDTH]), graph.weight("w", weight)), "y", 2)
    x = values(64, WIDTH)
    x[:, 0] *= 100
    return graph.model(), x


def test_migration_gives_an_outlier_codes_of_its_own(tmp_path: Path) -> None:
    proto, x = outlier()
    exact = run(opened(proto, tmp_path)[0].portable, tmp_path, {"x": x})
    errors = []
    for migrate in (False, True):
        found = quantized(proto, tmp_path, Settings(ROWS, "minmax", migrate=migrate), x=x)
        assert found.migrated == (("x",) if migrate else ())
        errors.append(np.linalg.norm(run(found.model, tmp_path, {"x": x}) - exact) / np.linalg.norm(exact))
    # The step of x falls from 400/255 to about 4/255, where the rounding of the weight is as large.
    assert errors[1] <= errors[0] / 10


HEADS = 4


def several_heads(*, read_twice: bool, bias: bool) -> tuple[onnx.ModelProto, Any]:
    """Values with one large channel, in heads of a few channels each, mixed by probabilities, and a layer that reads them."""
    rng, graph = np.random.default_rng(0), Graph(20)
    weight, after = rng.standard_normal((2, WIDTH, WIDTH)) / np.sqrt(WIDTH)
    weight[:, 5] *= 100
    after[5] /= 100
    x, mixes = graph.input("x", ["batch", 3, WIDTH]), graph.input("mixes", ["batch", HEADS, 3, 3])
    v = graph.op("MatMul", x, graph.weight("v", weight))
    if bias:
        v = graph.op("Add", graph.weight("bias", 10 * weight[0]), v)
    heads = graph.op("Reshape", v, np.array([0, 0, HEADS, -1]))
    mixed = graph.op("MatMul", graph.op("Softmax", mixes), graph.op("Transpose", heads, perm=[0, 2, 1, 3]))
    joined = graph.op("Reshape", graph.op("Transpose", mixed, perm=[0, 2, 1, 3]), np.array([0, 0, -1]))
    y = graph.op("MatMul", joined, graph.weight("after", after))
    graph.output(graph.op("Add", y, joined) if read_twice else y, "y", 3)
    return graph.model(), {"x": values(8, 3, WIDTH), "mixes": rng.standard_normal((8, HEADS, 3, 3)).astype(np.float32)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("read_twice", [False, True])
def test_magnitude_moves_into_the_layer_that_it_comes_from(tmp_path: Path, read_twice: bool, bias: bool) -> None:
    proto, feeds = several_heads(read_twice=read_twice, bias=bias)
    exact = run(opened(proto, tmp_path)[0].portable, tmp_path, feeds)
    errors = []
    for migrate in (False, True):
        found = quantized(proto, tmp_path, Settings(ROWS, "minmax", migrate=migrate), **feeds)
        errors.append(np.linalg.norm(run(found.model, tmp_path, feeds) - exact) / np.linalg.norm(exact))
        # A residual would get what is divided.
        assert ops(found.model)["Mul"] == (1 if migrate and read_twice else 0)
    assert found.migrated
    assert errors[1] <= errors[0] / (1 if read_twice else 5)


def test_the_bias_takes_the_mean_error_of_the_weight(tmp_path: Path) -> None:
    graph = Graph(20)
    weight = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    graph.output(graph.op("MatMul", graph.input("x", ["batch", WIDTH]), graph.weight("w", weight)), "y", 2)
    x = np.float32(5) + values(256, WIDTH) / 100
    means = []
    for correct in (False, True):
        found = quantized(graph.model(), tmp_path, Settings(ROWS, "minmax", correct=correct), x=x)
        means.append(np.abs((run(found.model, tmp_path, {"x": x}) - x @ weight).mean(axis=0)).mean())
    assert means[1] <= means[0] / 3  # what is left is the rounding of x, the same in every row here


def test_excluded_layers_stay(tmp_path: Path) -> None:
    found = quantized(mlp(), tmp_path, Settings(ROWS, exclude=(first_layer(mlp(), tmp_path),)), x=values(4, 3, WIDTH))
    assert sorted(found.layers.values()) == ["", "it is excluded"]
    assert not found.tables  # one of its ends is in floating point
    with pytest.raises(UsageError, match="no layer is named 'nothing'"):
        quantized(mlp(), tmp_path, Settings(ROWS, exclude=("nothing",)), x=values(4, 3, WIDTH))
    with pytest.raises(UsageError, match="no regular expression"):
        quantized(mlp(), tmp_path, Settings(ROWS, exclude=("(",)), x=values(4, 3, WIDTH))


def first_layer(proto: onnx.ModelProto, folder: Path) -> str:
    model = opened(proto, folder)[0].portable
    return next(str(node.name or node.outputs[0].name) for node in model.graph if node.op_type == "MatMul")


@pytest.mark.parametrize("shape", [["batch", WIDTH], ["batch", 3, WIDTH], ["a", "b", "c", WIDTH], [2, 3, WIDTH]])
def test_any_shape(shape: list[Any], tmp_path: Path) -> None:
    sizes = [size if isinstance(size, int) else 2 for size in shape]
    graph = Graph(20)
    weight = np.random.default_rng(0).standard_normal((WIDTH, 4)).astype(np.float32)
    graph.output(graph.op("MatMul", graph.input("x", shape), graph.weight("w", weight)), "y", len(shape))
    x = values(*sizes)
    found = quantized(graph.model(), tmp_path, Settings(ROWS), x=x)
    assert run(found.model, tmp_path, {"x": x}).shape == (*sizes[:-1], 4)
    onnx.checker.check_model(onnx.load(tmp_path / "graph.onnx"), full_check=True)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0], ids=["zero", "positive", "negative"])
@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_constant_data(value: float, calibrator: str, tmp_path: Path) -> None:
    x = np.full((1, 2, WIDTH), value, np.float32)
    found = quantized(mlp("Relu"), tmp_path, Settings(ROWS, calibrator), x=x)
    before, after = (
        run(model, tmp_path, {"x": x}) for model in (opened(mlp("Relu"), tmp_path)[0].portable, found.model)
    )
    assert np.linalg.norm(after - before) <= 0.1 * np.linalg.norm(before)


def test_infinite_values_are_an_error(tmp_path: Path) -> None:
    graph = Graph(20)
    hot = graph.op("Exp", graph.input("x", ["batch", WIDTH]))
    graph.output(graph.op("MatMul", hot, graph.weight("w", np.eye(WIDTH, dtype=np.float32))), "y", 2)
    with pytest.raises(ActxError, match="is not finite on the calibration data"):
        quantized(graph.model(), tmp_path, Settings(ROWS), x=np.full((2, WIDTH), 1000, np.float32))


def test_refuses_what_is_quantized_already(tmp_path: Path) -> None:
    first = quantized(mlp(), tmp_path, Settings(PLAIN), x=values(4, 3, WIDTH))
    save({"again.onnx": first.model}, tmp_path)
    proto = onnx.load(tmp_path / "again.onnx")
    with pytest.raises(UsageError, match="quantized already"):
        quantized(proto, tmp_path, Settings(PLAIN), x=values(4, 3, WIDTH))


def test_refuses_a_model_without_layers(tmp_path: Path) -> None:
    graph = Graph(20)
    graph.output(graph.op("Relu", graph.input("x", ["batch", WIDTH])), "y", 2)
    with pytest.raises(UsageError, match="nothing to quantize"):
        quantized(graph.model(), tmp_path, Settings(ROWS), x=values(2, WIDTH))


def test_a_range_is_of_what_the_table_gives(tmp_path: Path) -> None:
    """A gelu is flat below -4: the least error in what it gives takes no codes for that."""
    graph = Graph(20)
    graph.output(graph.op("Identity", graph.input("x", ["batch", WIDTH])), "y", 2)
    model = ir.from_proto(graph.model())
    x = np.random.default_rng(0).uniform(-20, 4, (256, WIDTH)).astype(np.float32)
    histogram = observe_histograms(model, ["x"], samples({"x": x}, model, tmp_path))["x"]

    def relu(x: Any) -> Any:
        return np.maximum(x, 0)

    errors = {}
    for name in ("minmax", "mse"):
        params = params_of(find_range(histogram, name, ir.DataType.UINT8, relu), ir.DataType.UINT8)
        errors[name] = np.square(relu(params.dequantize(params.quantize(x))) - relu(x)).mean()
    assert errors["mse"] <= errors["minmax"] / 4


def attention() -> onnx.ModelProto:
    """Scores and sums of one head, whose factors come out of layers, but for the softmax."""
    graph = Graph(20)
    rng = np.random.default_rng(0)
    x = graph.input("x", [2, 5, WIDTH])
    query, key, value = (
        graph.op("MatMul", x, graph.weight(name, rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)))
        for name in ("query", "key", "value")
    )
    scores = graph.op("MatMul", query, graph.op("Transpose", key, perm=[0, 2, 1]))
    graph.output(graph.op("MatMul", graph.op("Softmax", scores), value), "y", 3)
    return graph.model()


def test_a_product_without_zero_points_has_its_codes_from_the_layers_and_a_softmax_none(tmp_path: Path) -> None:
    x = values(2, 5, WIDTH)
    style = Style(rows=False, tables=False, symmetric_products=True)
    found = quantized(attention(), tmp_path, Settings(style, "minmax"), x=x)
    assert [reason for reason in found.layers.values() if reason] == ["it multiplies what a softmax gives"]
    signed = [n for n in found.model.graph if n.op_type == "QuantizeLinear" and n.outputs[0].dtype is ir.DataType.INT8]
    assert [n.inputs[0].producer().op_type for n in signed] == ["MatMul", "MatMul"]  # type: ignore[union-attr]
    before = run(opened(attention(), tmp_path)[0].portable, tmp_path, {"x": x})
    # As above: a factor, two layers and a product.
    assert np.linalg.norm(run(found.model, tmp_path, {"x": x}) - before) <= 6 * 4 * 0.5 / 127 * np.linalg.norm(before)


def test_a_table_per_channel_is_calibrated_on_what_it_reads(tmp_path: Path) -> None:
    found = quantized(SPELLINGS["prelu_per_channel"].model(20), tmp_path, Settings(ROWS, "mse"))
    assert len(found.tables) == 1


def by_heads(difference: str = "", mask: list[Any] | None = None) -> onnx.ModelProto:
    """Attention of several heads between four layers; `difference` is what is unlike it."""
    graph, rng = Graph(20), np.random.default_rng(0)
    x = graph.input("x", ["batch", "tokens", WIDTH])

    def layer(name: str, value: str) -> str:
        return graph.op("MatMul", value, graph.weight(name, rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)))

    def split(value: str, perm: list[int]) -> str:
        shape = [0, 0, HEADS, WIDTH // HEADS] if difference != "groups" else [-1, 1, HEADS, WIDTH // HEADS]
        return graph.op("Transpose", graph.op("Reshape", value, np.array(shape)), perm=perm)

    query, key, value = (layer(name, x) for name in ("query", "key", "value"))
    keys = split(key, [0, 2, 1, 3] if difference == "keys" else [0, 2, 3, 1])
    if difference == "keys":
        keys = graph.op("Transpose", keys, perm=[0, 1, 3, 2])
    scores = graph.op("MatMul", split(query, [0, 2, 1, 3]), keys)
    scores = graph.op("Mul", scores, np.float32((WIDTH // HEADS) ** -0.5))
    if difference.startswith("Where"):
        chosen = graph.op("Greater", graph.input("mask", mask or []), np.float32(0))
        lowest = np.float32(-np.inf if "inf" in difference else np.finfo(np.float32).min)
        if "not" in difference:
            scores = graph.op("Where", graph.op("Not", chosen), lowest, scores)
        else:
            scores = graph.op("Where", chosen, scores, lowest)
    elif mask is not None:
        scores = graph.op("Add", graph.input("mask", mask), scores)
    weights = graph.op("Softmax", scores, axis=2 if difference == "axis" else -1)
    mixed = graph.op("MatMul", weights, split(value, [0, 2, 1, 3]))
    back = graph.op("Transpose", mixed, perm=[0, 2, 1, 3])
    joined = graph.op("Reshape", back, np.array([0, 0, WIDTH] if difference != "groups" else [2, -1, WIDTH]))
    y = layer("output", joined)
    graph.output(graph.op("Add", y, joined) if difference == "residual" else y, "y", 3)
    return graph.model()


MASKS: Mapping[str, list[Any] | None] = {
    "no mask": None,
    "of keys": ["batch", 1, 1, "tokens"],
    "of queries": ["batch", 1, "tokens", 1],
    "of all": ["batch", HEADS, "tokens", "tokens"],
}


@pytest.mark.parametrize("difference", ["", "keys"])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_between_layers_of_ours_is_one_op(mask: str, difference: str, tmp_path: Path) -> None:
    rng, x = np.random.default_rng(3), values(2, 7, WIDTH)
    dims = MASKS[mask]
    batch = {"x": x}
    if dims is not None:
        shape = [{"batch": 2, "tokens": 7}.get(dim, dim) for dim in dims]
        batch["mask"] = np.where(rng.random(shape) < 0.3, np.finfo(np.float32).min, rng.standard_normal(shape)).astype(
            np.float32
        )
    proto = by_heads(difference, dims)
    found = quantized(proto, tmp_path, Settings(OWN, "minmax"), **batch)
    kinds = ops(found.model) - Counter({"Identity": 1})
    assert kinds == {"QuantizeLinear": 1, "QLinear": 3, "QAttention": 1, "QLinearToFloat": 1}
    assert set(found.layers.values()) == {""}
    before = run(opened(proto, tmp_path)[0].portable, tmp_path, batch)
    # As above: x, four layers and the factors of two products, of codes of 8 bits.
    assert np.linalg.norm(run(found.model, tmp_path, batch) - before) <= 6 * 7 * 0.5 / 255 * np.linalg.norm(before)


@pytest.mark.parametrize("difference", ["Where", "Where not", "Where inf"])
@pytest.mark.parametrize("mask", ["of keys", "of all"])
def test_a_mask_in_the_place_of_scores_is_as_one_that_is_added(difference: str, mask: str, tmp_path: Path) -> None:
    dims = [{"batch": 2, "tokens": 7}.get(dim, dim) for dim in MASKS[mask] or []]
    numbers = np.random.default_rng(3).standard_normal(dims)
    numbers[..., 0] = 1  # a key that counts
    batch = {"x": values(2, 7, WIDTH), "mask": numbers.astype(np.float32)}
    proto = by_heads(difference, MASKS[mask])
    found = quantized(proto, tmp_path, Settings(OWN, "minmax"), **batch)
    assert ops(found.model)["QAttention"] == 1
    assert not {"MatMul", "Softmax"} & ops(found.model).keys()
    before = run(opened(proto, tmp_path)[0].portable, tmp_path, batch)
    # As above.
    assert np.linalg.norm(run(found.model, tmp_path, batch) - before) <= 6 * 7 * 0.5 / 255 * np.linalg.norm(before)


def in_one_layer(cut: str) -> onnx.ModelProto:
    """The same of one layer for queries, keys and values, whose parts are cut out by an op."""
    graph, rng, size = Graph(20), np.random.default_rng(0), WIDTH // HEADS
    x = graph.input("x", ["batch", "tokens", WIDTH])
    matrix = rng.standard_normal((WIDTH, 3 * WIDTH)) / np.sqrt(WIDTH)
    packed = graph.op("MatMul", x, graph.weight("packed", matrix))
    packed = graph.op("Add", packed, graph.weight("bias", rng.standard_normal(3 * WIDTH) / 10))
    if cut == "Split":
        parts = [
            graph.op("Reshape", part, np.array([0, 0, HEADS, size]))
            for part in graph.ops("Split", 3, packed, axis=2, num_outputs=3)
        ]
        parts = [graph.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts]
    else:
        turned = graph.op("Reshape", packed, np.array([0, 0, 3, HEADS, size]))
        turned = graph.op("Transpose", turned, perm=[2, 0, 3, 1, 4])
        parts = [_third(graph, cut, turned, i) for i in range(3)]
    query, key, value = parts
    scores = graph.op("MatMul", query, graph.op("Transpose", key, perm=[0, 1, 3, 2]))
    mixed = graph.op("MatMul", graph.op("Softmax", scores), value)
    joined = graph.op("Reshape", graph.op("Transpose", mixed, perm=[0, 2, 1, 3]), np.array([0, 0, WIDTH]))
    graph.output(graph.op("MatMul", joined, graph.weight("output", matrix[:, :WIDTH])), "y", 3)
    return graph.model()


def _third(graph: Graph, cut: str, turned: str, i: int) -> str:
    if cut == "Gather":
        return graph.op("Gather", turned, np.array(i - 3), axis=0)
    part = graph.op("Slice", turned, *(np.array([number]) for number in (i, i + 1, 0)))
    return graph.op("Squeeze", part, np.array([0]))


@pytest.mark.parametrize("cut", ["Split", "Gather", "Slice"])
def test_a_layer_of_queries_keys_and_values_is_taken_apart(cut: str, tmp_path: Path) -> None:
    proto, batch = in_one_layer(cut), {"x": values(2, 7, WIDTH)}
    found = quantized(proto, tmp_path, Settings(OWN, "minmax"), **batch)
    kinds = ops(found.model) - Counter({"Identity": 1})
    assert kinds == {"QuantizeLinear": 1, "QLinear": 3, "QAttention": 1, "QLinearToFloat": 1}
    before = run(opened(proto, tmp_path)[0].portable, tmp_path, batch)
    # As above.
    assert np.linalg.norm(run(found.model, tmp_path, batch) - before) <= 6 * 7 * 0.5 / 255 * np.linalg.norm(before)


@pytest.mark.parametrize("cut", ["Split", "Gather", "Slice"])
def test_layers_taken_apart_compute_the_same(cut: str, tmp_path: Path) -> None:
    batch = {"x": values(2, 7, WIDTH)}
    model = opened(in_one_layer(cut), tmp_path)[0].portable
    before = run(model, tmp_path, batch)
    unpack(model)
    assert ops(model)["Add"] == 3
    assert not {"Split", "Slice"} & ops(model).keys()
    # Each number is a sum of the same WIDTH products, which ONNX Runtime may order otherwise, through three layers.
    bound = 3 * WIDTH * np.finfo(np.float32).eps * np.abs(before).max()
    np.testing.assert_allclose(run(model, tmp_path, batch), before, rtol=0, atol=bound)


def test_a_packed_layer_that_is_excluded_stays_whole(tmp_path: Path) -> None:
    proto, batch = in_one_layer("Split"), {"x": values(2, 7, WIDTH)}
    (name,) = [
        n.name for n in opened(proto, tmp_path)[0].portable.graph if "packed" in {str(v and v.name) for v in n.inputs}
    ]
    found = quantized(proto, tmp_path, Settings(OWN, "minmax", exclude=(str(name),)), **batch)
    assert found.layers[str(name)] == EXCLUDED
    assert ops(found.model)["Split"] == 1


@pytest.mark.parametrize("difference", ["axis", "groups", "residual", "larger mask"])
def test_what_only_resembles_attention_stays_as_it_is(difference: str, tmp_path: Path) -> None:
    """A softmax over queries, groups of tokens that are no batch, a result read twice, a mask that makes scores larger."""
    batch = {"x": values(2, 7, WIDTH)}
    if difference == "larger mask":
        batch["mask"] = np.random.default_rng(3).standard_normal((2, 1, 1, 7)).astype(np.float32)
    proto = by_heads(difference, ["copies", 1, 1, "tokens"] if "mask" in batch else None)
    found = quantized(proto, tmp_path, Settings(OWN, "minmax"), **batch)
    assert ops(found.model)["QAttention"] == 0
    before = run(opened(proto, tmp_path)[0].portable, tmp_path, batch)
    assert np.linalg.norm(run(found.model, tmp_path, batch) - before) <= 6 * 7 * 0.5 / 255 * np.linalg.norm(before)


def test_attention_with_a_factor_in_floating_point_stays_as_it_is(tmp_path: Path) -> None:
    proto = by_heads()
    lowered, _ = opened(proto, tmp_path)
    products = [n.name for n in lowered.portable.graph if n.op_type == "MatMul" and n.inputs[1].const_value is None]
    found = quantized(proto, tmp_path, Settings(OWN, exclude=(str(products[0]),)), x=values(2, 7, WIDTH))
    assert ops(found.model)["QAttention"] == 0
    run(found.model, tmp_path, {"x": values(2, 7, WIDTH)})
