"""Tables that rows are gathered from, in 8 bits."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from actx.exporter.errors import ActxError
from actx.exporter.quantize.dynamic import to_dynamic_int8
from actx.exporter.quantize.lookups import BLOCK, Lookups, LookupStyle, find_lookups
from actx.exporter.quantize.static import Settings
from tests.exporter.quantize.graphs import outputs
from tests.exporter.quantize.test_static import PLAIN, ROWS, quantized
from tests.networks import Graph

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

ROWS_OF_TABLE, WIDTH = 50, 40  # the last block is not full
TOKENS = np.random.default_rng(2).integers(0, ROWS_OF_TABLE, (3, 7))


def table(rows: int = ROWS_OF_TABLE) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((rows, WIDTH)).astype(np.float32)


def embedding(numbers: NDArray[np.float32], *, layer: bool = True, twice: bool = False) -> onnx.ModelProto:
    """Rows of a table, and a layer behind them."""
    graph = Graph(20)
    tokens, weight = graph.input("tokens", ["batch", "tokens"], np.int64), graph.weight("table", numbers)
    value = graph.op("Gather", weight, tokens)
    if twice:
        value = graph.op("Add", value, graph.op("Gather", weight, tokens))
    if layer:
        value = graph.op("MatMul", value, graph.weight("w", np.eye(WIDTH)))
    graph.output(value, "y", 3)
    return graph.model()


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(("style", "block"), [("blocks", BLOCK), ("dequantize", WIDTH)])
@pytest.mark.parametrize("twice", [False, True])
def test_rows_are_within_half_a_step(style: LookupStyle, block: int, twice: bool, tmp_path: Path) -> None:
    model = ir.from_proto(embedding(table(), layer=False, twice=twice))
    lookups = Lookups(model.graph, style)
    for node in find_lookups(model.graph):
        lookups.write(node)
    assert "table" in model.graph.initializers  # it may have other readers
    assert len([name for name in model.graph.initializers if name.startswith("table/")]) == 2
    found = outputs(model, tmp_path, [{"tokens": TOKENS}])[0]["y"]
    expected = table()[TOKENS] * (1 + twice)
    # Symmetric codes of 8 bits, and the scale of the least squared error is not above that of the whole range.
    peaks = np.concatenate(
        [
            np.broadcast_to(np.abs(part).max(axis=-1, keepdims=True), part.shape)
            for part in np.split(expected, range(block, WIDTH, block), axis=-1)
        ],
        axis=-1,
    )
    assert np.linalg.norm(found - expected) <= np.linalg.norm(0.5 * peaks / 127 * (1 + 1e-6))


@pytest.mark.parametrize("style", [ROWS, PLAIN], ids=["rows", "in place"])
def test_static_layers_read_tables_in_codes(style: Any, tmp_path: Path) -> None:
    found = quantized(embedding(table()), tmp_path, Settings(style), tokens=TOKENS)
    assert ops(found.model)["GatherBlockQuantized" if style is ROWS else "Gather"] == 1
    assert "table" not in found.model.graph.initializers
    assert set(found.layers.values()) == {""}
    assert len(found.layers) == 2


def test_one_may_be_left_out_by_its_name(tmp_path: Path) -> None:
    proto = embedding(table())
    (name,) = (node.name for node in proto.graph.node if node.op_type == "Gather")
    found = quantized(proto, tmp_path, Settings(ROWS, exclude=(name,)), tokens=TOKENS)
    assert found.layers[name] == "it is excluded"
    assert ops(found.model)["Gather"] == 1
    dynamic = to_dynamic_int8(ir.from_proto(proto), exclude={name})
    assert ops(dynamic)["Gather"] == 1


def test_dynamic_layers_read_tables_in_codes(tmp_path: Path) -> None:
    model = to_dynamic_int8(ir.from_proto(embedding(table())))
    assert ops(model)["GatherBlockQuantized"] == 1
    assert "table" not in model.graph.initializers
    found = outputs(model, tmp_path, [{"tokens": TOKENS}])[0]["y"]
    # The table's codes, and those of what the layer reads, in steps of its range.
    assert np.abs(found - table()[TOKENS]).max() <= 2 * np.abs(table()).max() / 127


def test_small_tables_other_axes_and_bad_numbers() -> None:
    graph = Graph(20)
    columns = graph.op("Gather", graph.weight("table", table()), graph.input("tokens", [3], np.int64), axis=1)
    graph.output(columns, "y", 2)
    assert not find_lookups(ir.from_proto(graph.model()).graph)
    assert not find_lookups(ir.from_proto(embedding(table(8))).graph)
    bad = table()
    bad[3, 3] = np.inf
    model = ir.from_proto(embedding(bad))
    with pytest.raises(ActxError, match="not finite"):
        Lookups(model.graph, "blocks").write(find_lookups(model.graph)[0])
