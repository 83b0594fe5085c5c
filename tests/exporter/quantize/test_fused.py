"""The proof that sites stay whole: what ONNX Runtime makes of a site between two int8 layers, islands and all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from actx.custom_ops import ACTIVATIONS, cpu
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.lower import SITE_METADATA
from actx.exporter.quantize.fused import SiteFusion, inspect_fused
from actx.exporter.quantize.params import QuantParams
from actx.exporter.quantize.tables import gated_table, output_range, site_table
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from tests.networks import WIDTH, Graph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SITE = "layers.0.act"
X, H = QuantParams.asymmetric(-1, 1), QuantParams.asymmetric(-4, 5)
WEIGHT_SCALE = np.array(1 / 256, np.float32)


class Network:
    """x -> codes -> layer -> site -> layer -> y; a layer is a Gemm with Q/DQ, or a MatMul."""

    def __init__(self, layer: str) -> None:
        self.graph = Graph(20)
        self.layer = layer
        self.rng = np.random.default_rng(0)
        self.owned: dict[str, str] = {}
        self.x = self.rounded(self.graph.input("x", ["batch", WIDTH]), X)

    def codes(self, value: str, params: QuantParams) -> str:
        return self.graph.op("QuantizeLinear", value, *params.constants())

    def number(self, codes: str, params: QuantParams) -> str:
        return self.graph.op("DequantizeLinear", codes, *params.constants())

    def rounded(self, value: str, params: QuantParams) -> str:
        return self.number(self.codes(value, params), params)

    def linear(self, value: str, name: str, scale: float) -> str:
        codes = self.rng.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8)
        weight = self.graph.op("DequantizeLinear", self.graph.constant(codes, name), WEIGHT_SCALE, np.array(0, np.int8))
        if self.layer == "MatMul":
            return self.graph.op("MatMul", value, weight)
        bias = self.rng.integers(-500, 500, WIDTH).astype(np.int32)
        scales = np.array(scale * WEIGHT_SCALE, np.float32)
        return self.graph.op(
            "Gemm", value, weight, self.graph.op("DequantizeLinear", bias, scales, np.array(0, np.int32))
        )

    def site(self, op_type: str, *inputs: str, name: str = SITE, **attributes: Any) -> str:
        """A node of the site."""
        given = self.graph.op(op_type, *inputs, **attributes)
        self.owned[given] = name
        return given

    def save(self, folder: Path) -> Path:
        model = self.graph.model()
        for node in model.graph.node:
            if node.output[0] in self.owned:
                node.metadata_props.add(key=SITE_METADATA, value=self.owned[node.output[0]])
        onnx.save(model, folder / "model.onnx")
        return folder / "model.onnx"


def inspected(network: Network, folder: Path, **options: Any) -> SiteFusion:
    runtime = RuntimeOptions(threads=1, libraries=(cpu.load().path,), **options)
    (found,) = inspect_fused(network.save(folder), [SITE], runtime)
    return found


def between(write: Callable[[Network, str], str], y: QuantParams, layer: str = "Gemm") -> Network:
    """Two layers, and in between what `write` makes of the first one's output: numbers that came from codes of `y`."""
    network = Network(layer)
    value = write(network, network.linear(network.x, "up", X.scale))
    network.graph.output(network.linear(value, "down", y.scale), "y", 2)
    return network


GELU = QuantParams.asymmetric(*output_range(ACTIVATIONS["gelu"], H))
UNIT = QuantParams.asymmetric(0, 1)


def table(network: Network, value: str) -> str:
    op = site_table(ACTIVATIONS["gelu"], H, GELU)
    codes = network.site(op.NAME, network.codes(value, H), domain="actx", **op.attributes())
    return network.number(codes, GELU)


def seeded(op_type: str, y: QuantParams) -> Callable[[Network, str], str]:
    """Q/DQ around an op of floats."""
    return lambda network, value: network.rounded(network.site(op_type, network.rounded(value, H)), y)


@pytest.mark.parametrize("layer", ["Gemm", "MatMul"])
def test_a_table_between_two_layers_is_whole(layer: str, tmp_path: Path) -> None:
    found = inspected(between(table, GELU, layer), tmp_path)
    assert found == SiteFusion(SITE, ("Lut",), integer_in=True, integer_out=True)
    assert found.whole
    assert str(found) == "Lut: codes in, codes out"


@pytest.mark.parametrize("layer", ["Gemm", "MatMul"])
def test_a_seeded_island_is_found_and_named(layer: str, tmp_path: Path) -> None:
    found = inspected(between(seeded("Gelu", GELU), GELU, layer), tmp_path)
    islands = ("DequantizeLinear in front", "QuantizeLinear behind")
    assert found == SiteFusion(SITE, ("Gelu",), integer_in=False, integer_out=False, islands=islands)
    assert not found.whole
    assert str(found) == "Gelu: floats in, floats out, DequantizeLinear in front, QuantizeLinear behind"


def test_a_site_in_pieces_is_not_whole(tmp_path: Path) -> None:
    """ONNX Runtime writes Mish out as three nodes, whose values have names of its own."""
    found = inspected(between(seeded("Mish", GELU), GELU), tmp_path)
    assert found.op_types == ("Softplus", "Tanh", "Mul")
    assert not found.whole


def test_pieces_of_ours_are_one_site(tmp_path: Path) -> None:
    def silu(network: Network, value: str) -> str:
        given = network.rounded(value, H)
        return network.rounded(network.site("Mul", given, network.site("Sigmoid", given)), GELU)

    found = inspected(between(silu, GELU), tmp_path, optimization="basic")
    assert found.op_types == ("Sigmoid", "Mul")
    assert found.islands == ("DequantizeLinear in front", "QuantizeLinear behind")


def test_what_the_runtime_fuses_with_its_pairs_is_whole(tmp_path: Path) -> None:
    """The site's own value is gone: the node is known by what comes behind it."""
    found = inspected(between(seeded("Sigmoid", UNIT), UNIT), tmp_path)
    assert (found.op_types, found.whole) == (("QLinearSigmoid",), True)


def test_a_relu_that_rounding_does_is_part_of_the_layer(tmp_path: Path) -> None:
    def relu(network: Network, value: str) -> str:
        return network.rounded(network.site("Relu", value), UNIT)

    found = inspected(between(relu, UNIT), tmp_path)
    assert (found.op_types, found.whole) == (("QGemm",), True)


def test_optimizations_decide(tmp_path: Path) -> None:
    """With none, the same graph has Q/DQ on both sides of its table."""
    found = inspected(between(table, GELU), tmp_path, optimization="none")
    assert found.op_types == ("Lut",)
    assert found.islands == ("QuantizeLinear in front", "DequantizeLinear behind")
    assert not found.whole


def test_a_layer_that_gives_floats_leaves_an_island_in_front(tmp_path: Path) -> None:
    """A sum in floating point stands between the layer and its codes."""
    found = inspected(between(lambda n, value: table(n, n.graph.op("Add", value, "x")), GELU), tmp_path)
    assert found.islands == ("QuantizeLinear in front",)
    assert not found.whole


def test_a_gated_table_reads_codes_on_both_sides(tmp_path: Path) -> None:
    network = Network("Gemm")
    gate, up = (network.linear(network.x, name, X.scale) for name in ("gate", "up"))
    y = QuantParams.asymmetric(-6, 6)
    op = gated_table(ACTIVATIONS["silu"], H, H, y)
    given = (network.codes(gate, H), network.codes(up, H))
    product = network.site(op.NAME, *given, domain="actx", **op.attributes())
    network.graph.output(network.linear(network.number(product, y), "down", y.scale), "y", 2)
    found = inspected(network, tmp_path)
    assert (found.op_types, found.whole) == (("GatedLut",), True)


def test_codes_are_codes_wherever_they_were_moved(tmp_path: Path) -> None:
    def moved(network: Network, value: str) -> str:
        codes = network.graph.op("Reshape", network.codes(value, H), [-1, 2, WIDTH // 2])
        op = site_table(ACTIVATIONS["gelu"], H, GELU)
        given = network.site(op.NAME, codes, domain="actx", **op.attributes())
        return network.number(network.graph.op("Reshape", given, [-1, WIDTH]), GELU)

    assert inspected(between(moved, GELU), tmp_path).whole


def test_the_edge_of_the_graph_is_no_island(tmp_path: Path) -> None:
    network = Network("Gemm")
    network.graph.output(table(network, network.linear(network.x, "up", X.scale)), "y", 2)
    assert inspected(network, tmp_path).whole


def test_a_residual_sum_reads_numbers(tmp_path: Path) -> None:
    """The layer behind reads codes, and the sum what was made of them: a float32 island."""
    network = Network("Gemm")
    given = table(network, network.linear(network.x, "up", X.scale))
    network.graph.output(network.graph.op("Add", network.linear(given, "down", GELU.scale), given), "y", 2)
    assert inspected(network, tmp_path).islands == ("DequantizeLinear behind",)


def test_json_and_back(tmp_path: Path) -> None:
    for network in (between(table, GELU), between(seeded("Gelu", GELU), GELU)):
        found = inspected(network, tmp_path)
        entry = json.loads(json.dumps(found.to_dict()))
        assert entry["whole"] == found.whole
        assert SiteFusion.from_dict(entry) == found


def test_each_site_is_told_from_the_next_one(tmp_path: Path) -> None:
    network = Network("Gemm")
    value = table(network, network.linear(network.x, "up", X.scale))
    given = network.rounded(network.linear(value, "middle", GELU.scale), H)
    value = network.rounded(network.site("Tanh", given, name="layers.1.act"), UNIT)
    network.graph.output(network.linear(value, "down", UNIT.scale), "y", 2)
    found = inspect_fused(network.save(tmp_path), ["layers.1.act", SITE], RuntimeOptions(libraries=(cpu.load().path,)))
    assert [(f.site, f.op_types, f.whole) for f in found] == [
        ("layers.1.act", ("Tanh",), False),
        (SITE, ("Lut",), True),
    ]


def test_an_unknown_site_is_an_error(tmp_path: Path) -> None:
    path = between(seeded("Gelu", GELU), GELU).save(tmp_path)
    with pytest.raises(UsageError, match="no site 'other'") as found:
        inspect_fused(path, [SITE, "other"])
    assert SITE in found.value.note


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    """Without the kernels nothing runs a table."""
    path = between(table, GELU).save(tmp_path)
    with pytest.raises(ActxError, match="actx:Lut"):
        inspect_fused(path, [SITE])
