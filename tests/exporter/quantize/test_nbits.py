"""int4 weights: every code against the ops' definitions in float64, and a trained decoder's perplexity and size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from actx.exporter.errors import ActxError, UsageError
from actx.exporter.quantize.blocks import Blocks, encode
from actx.exporter.quantize.nbits import Style, ranked_layers, to_int4, weight_bytes
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.models.characters import load_characters
from actx.models.trained import load_trained
from tests.exporter.quantize.graphs import lowered, outputs, store
from tests.networks import Graph

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

STYLES: tuple[Style, ...] = ("matmul_nbits", "dequantize")
OUT = 24
WINDOW = 64


def matrix(inputs: int, outputs: int = OUT) -> NDArray[np.float32]:
    return np.random.default_rng(inputs).standard_normal((inputs, outputs)).astype(np.float32)


def layer(inputs: int = 64, op: str = "MatMul", dtype: Any = np.float32, **attributes: Any) -> ir.Model:
    """One layer y of x [batch, inputs], a Gemm with a bias."""
    graph = Graph(21, dtype)
    weight = graph.weight("weight", matrix(inputs).T if attributes.get("transB") else matrix(inputs))
    bias = [graph.weight("bias", np.linspace(-1, 1, OUT))] if op == "Gemm" else []
    graph.output(graph.op(op, graph.input("x", ["batch", inputs]), weight, *bias, **attributes), "y", 2)
    model: ir.Model = ir.from_proto(graph.model())
    return model


def tied(inputs: int) -> ir.Model:
    """Rows of a table, and the products of x with all of them."""
    graph, table = Graph(21), matrix(40, inputs)
    rows = graph.op("Gather", graph.weight("table", table), graph.input("tokens", ["batch", "tokens"], np.int64))
    graph.output(rows, "rows", 3)
    x = graph.input("x", ["batch", inputs])
    graph.output(graph.op("MatMul", x, graph.weight("head", np.ascontiguousarray(table.T))), "y", 2)
    model: ir.Model = ir.from_proto(graph.model())
    return model


def constant(model: ir.Model, name: str) -> NDArray[Any]:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    (node,) = (node for node in model.graph if node.op_type == op_type)
    return node


def defined(model: ir.Model) -> NDArray[np.float64]:
    """The matrix [inputs, outputs] that the one layer of a model stands for, by its op's definition."""
    nodes = [node for node in model.graph if node.op_type in {"MatMulNBits", "DequantizeLinear"}]
    (node,) = nodes
    given = [
        None if v is None else constant(model, str(v.name))
        for v in node.inputs
        if v in model.graph.initializers.values()
    ]
    settings = node.attributes
    block = settings.get_int("block_size", 0)
    codes, scales = (np.asarray(array) for array in given[:2])
    if node.op_type == "DequantizeLinear":
        axis = settings.get_int("axis", 1)
        wide = np.repeat(scales, block, axis) if block else np.expand_dims(scales, 1 - axis)
        numbers = codes.astype(np.float64) * wide
        return numbers.T if axis == (1 if block else 0) else numbers
    bits, inputs = settings.get_int("bits", 4), settings.get_int("K", 0)
    points = np.full(scales.shape, 2 ** (bits - 1))
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
        if len(given) > 2:
            packed = np.asarray(given[2])
            points = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)[:, : scales.shape[1]]
    exact = (codes.astype(np.float64) - points[..., None]) * scales[..., None].astype(np.float64)
    return exact.reshape(len(codes), -1)[:, :inputs].T


def steps(blocks: Blocks, inputs: int) -> NDArray[np.float64]:
    return np.repeat(blocks.scales.astype(np.float64), blocks.codes.shape[2], axis=1)[:, :inputs].T


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("inputs", [24, 64, 72])
@pytest.mark.parametrize(("op", "attributes"), [("MatMul", {}), ("Gemm", {}), ("Gemm", {"transB": 1})])
def test_what_is_written_is_the_closest_codes(
    op: str, attributes: dict[str, Any], inputs: int, style: Style, wide: bool, tmp_path: Path
) -> None:
    model = layer(inputs, op, **attributes)
    name = next(str(node.name) for node in model.graph)
    typed = to_int4(model, style=style, wide=[name] if wide else ())
    found, weight = defined(typed), matrix(inputs)
    # A clipped range is taken where it lessens the squared error, so a block's is at most half a step of its range each.
    step = np.abs(weight).max() * (2 / 254 if wide else 2 / 14)
    assert np.sqrt(((found - weight) ** 2).mean()) <= step / 2
    x = np.random.default_rng(1).uniform(-1, 1, (5, inputs)).astype(np.float32)
    expected = x.astype(np.float64) @ found + (np.linspace(-1, 1, OUT) if op == "Gemm" else 0)
    # ONNX Runtime rounds the inputs of a block to int8: half a step of at most 1 / 127.
    bound = 0.5 / 127 * np.abs(found).sum(axis=0) + 1e-5
    assert (np.abs(outputs(typed, tmp_path, [{"x": x}])[0]["y"] - expected) <= bound).all()
    assert "weight" not in typed.graph.initializers


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_of_a_block_are_the_nearest(bits: int, symmetric: bool) -> None:
    rows = matrix(70, 9).T
    blocks = encode(rows, 32, bits=bits, symmetric=symmetric)
    assert blocks.codes.shape == (9, 3, 32)
    assert blocks.numbers().shape == rows.shape
    assert not symmetric or blocks.symmetric
    scale, point = steps(blocks, 70).T, np.repeat(blocks.zero_points, 32, axis=1)[:, :70].astype(np.float64)
    nearest = np.clip(np.rint(rows / scale) + point, 0, 2**bits - 1)
    np.testing.assert_array_equal(blocks.codes.reshape(9, -1)[:, :70], nearest)
    # Padding is zero, exactly.
    np.testing.assert_array_equal(blocks.codes[:, 2, 6:], np.broadcast_to(blocks.zero_points[:, 2:], (9, 26)))


def test_the_range_as_it_is_is_no_better() -> None:
    rows = np.random.default_rng(0).standard_t(3, (64, 64)).astype(np.float32)
    blocks = encode(rows, 32, bits=4)
    parts = rows.reshape(64, 2, 32).astype(np.float64)
    low, high = parts.min(axis=-1, keepdims=True), parts.max(axis=-1, keepdims=True)
    scale = (high - low) / 15
    point = np.rint(-low / scale)
    plain = (np.clip(np.rint(parts / scale) + point, 0, 15) - point) * scale
    error = ((blocks.numbers().reshape(parts.shape) - parts) ** 2).sum(axis=-1)
    assert (error <= ((plain - parts) ** 2).sum(axis=-1) * (1 + 1e-5)).all()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("value", [0.0, 0.3, -2.0, 1e-42])
def test_constant_weights(value: float, style: Style, tmp_path: Path) -> None:
    graph = Graph(21)
    weight = graph.weight("weight", np.full((32, 16), value))
    graph.output(graph.op("MatMul", graph.input("x", ["batch", 32]), weight), "y", 2)
    typed = to_int4(ir.from_proto(graph.model()), style=style)
    # The last code is the number itself, to float32's rounding; nothing is below the smallest scale.
    np.testing.assert_allclose(defined(typed), np.float32(value), rtol=1e-6, atol=1e-38)
    y = outputs(typed, tmp_path, [{"x": np.ones((2, 32), np.float32)}])[0]["y"]
    np.testing.assert_allclose(y, 32 * value, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("style", STYLES)
def test_weights_that_are_shared_are_stored_once(style: Style) -> None:
    graph = Graph(21)
    x, weight = graph.input("x", ["batch", 32]), graph.weight("weight", matrix(32, 32))
    graph.output(graph.op("MatMul", graph.op("MatMul", x, weight), weight), "y", 2)
    model: ir.Model = ir.from_proto(graph.model())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    typed = to_int4(model, style=style)
    codes = [name for name in typed.graph.initializers if name.endswith("codes")]
    assert codes == ["weight/actx/columns/4/codes"]
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    names = {str(v.name) for node in model.graph for v in node.outputs}
    assert names <= {str(v.name) for node in typed.graph for v in node.outputs}


@pytest.mark.parametrize("inputs", [24, 32])
@pytest.mark.parametrize("style", STYLES)
def test_a_table_has_8_bits_and_a_tied_layer_shares_it(style: Style, inputs: int, tmp_path: Path) -> None:
    model = tied(inputs)
    typed = to_int4(model, style=style)
    x = np.random.default_rng(1).uniform(-1, 1, (5, inputs)).astype(np.float32)
    tokens = np.arange(40).reshape(5, 8)
    found = outputs(typed, tmp_path, [{"x": x, "tokens": tokens}])[0]
    table = matrix(40, inputs)
    step = np.abs(table).max(axis=1) / 127
    assert (np.abs(found["rows"].reshape(40, inputs) - table) <= step[:, None] / 2 * (1 + 1e-5)).all()
    if style == "matmul_nbits":
        assert [name for name in typed.graph.initializers if name.endswith("/codes")] == ["head/actx/columns/8/codes"]
        rows = found["rows"].reshape(40, inputs).astype(np.float64)
        assert (np.abs(found["y"] - x @ rows.T) <= 0.5 / 127 * np.abs(rows).sum(axis=1) + 1e-5).all()


def test_a_table_by_itself(tmp_path: Path) -> None:
    graph, table = Graph(21), matrix(40, 40)
    rows = graph.op("Gather", graph.weight("table", table), graph.input("tokens", ["batch"], np.int64))
    graph.output(graph.op("MatMul", rows, graph.weight("weight", matrix(40))), "y", 2)
    graph.output(rows, "rows", 2)
    typed = to_int4(ir.from_proto(graph.model()), style="matmul_nbits")
    found = outputs(typed, tmp_path, [{"tokens": np.arange(40)}])[0]["rows"]
    assert (np.abs(found - table) <= np.abs(table).max(axis=1, keepdims=True) / 254 * (1 + 1e-5)).all()
    assert constant(typed, "table/actx/table/codes").shape == (40, 40)


def test_what_is_left_out_stays() -> None:
    model = tied(32)
    kept = {str(node.name) for node in model.graph if node.op_type == "Gather"}
    typed = to_int4(model, style="matmul_nbits", exclude=kept)
    assert typed.graph.initializers["table"].const_value is model.graph.initializers["table"].const_value
    assert node_of(typed, "MatMulNBits").attributes.get_int("bits", 0) == 4


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="blocks of 24"):
        to_int4(layer(), style="matmul_nbits", block=24)
    for model in (layer(dtype=np.float16), layer(op="Gemm", alpha=0.5)):
        with pytest.raises(UsageError, match="nothing to quantize") as error:
            to_int4(model, style="matmul_nbits")
        assert "float32" in error.value.note
    for style in STYLES:
        with pytest.raises(UsageError, match="quantized already"):
            to_int4(to_int4(layer(), style=style), style=style)
    old = layer()
    old.graph.opset_imports[""] = 20
    with pytest.raises(UsageError, match="needs opset 21"):
        to_int4(old, style="dequantize")
    with pytest.raises(ActxError, match="not finite"):
        encode(np.full((1, 32), np.nan, np.float32), 32, bits=4)


# --- the trained decoder ---


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    example = torch.zeros(2, WINDOW, dtype=torch.int64)
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=512)}
    file = tmp_path_factory.mktemp("decoder") / "decoder.pt2"
    torch.export.save(torch.export.export(load_trained("decoder"), (example,), dynamic_shapes=(dims,)), file)
    return lowered(file, file.parent, opset=21)


def windows(tokens: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    starts = np.linspace(0, len(tokens) - WINDOW - 1, count).astype(int)
    return np.stack([tokens[start : start + WINDOW + 1] for start in starts])


def perplexity(model: ir.Model, text: NDArray[np.int64], folder: Path) -> float:
    """exp of the mean cross-entropy of the next character, over windows [n, WINDOW + 1]."""
    session = DEFAULT.open(store(model, folder))
    (logits,) = session.run({"tokens": text[:, :-1]}).values()
    exact = logits.astype(np.float64)
    own = np.take_along_axis(exact, text[:, 1:, None], axis=-1)[..., 0]
    return float(np.exp((np.logaddexp.reduce(exact, axis=-1) - own).mean()))


@pytest.mark.parametrize("style", STYLES)
def test_the_decoder_keeps_its_perplexity_at_0_3_of_its_size(style: Style, decoder: ir.Model, tmp_path: Path) -> None:
    text = load_characters()
    calibration, held_out = windows(text.train, 128), windows(text.evaluation, 512)
    ranked = ranked_layers(decoder, [{"tokens": calibration[:32, :-1]}], style=style)
    aim = 1.025 * perplexity(decoder, calibration, tmp_path)
    sizes = range(len(ranked) + 1)
    made = (to_int4(decoder, style=style, wide=ranked[:size]) for size in sizes)
    typed = next(model for model in made if perplexity(model, calibration, tmp_path) <= aim)
    assert perplexity(typed, held_out, tmp_path) <= 1.03 * perplexity(decoder, held_out, tmp_path)
    assert weight_bytes(typed) <= 0.3 * weight_bytes(decoder)


def test_layers_are_ranked_by_what_they_move(tmp_path: Path) -> None:
    graph = Graph(21)
    x = graph.input("x", ["batch", 32])
    names = []
    for factor in (1.0, 100.0, 10.0):
        names.append(graph.op("MatMul", x, graph.weight(f"weight_{factor}", factor * matrix(32, 16))))
        graph.output(names[-1], f"y_{factor}", 2)
    model: ir.Model = ir.from_proto(graph.model())
    nodes = [str(node.name) for node in model.graph if node.op_type == "MatMul"]
    feeds = [{"x": np.random.default_rng(0).uniform(-1, 1, (4, 32)).astype(np.float32)}]
    assert ranked_layers(model, feeds, style="matmul_nbits") == (nodes[1], nodes[2], nodes[0])
