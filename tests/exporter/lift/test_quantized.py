"""Sources that are quantized already: sites are found through Q/DQ, and their bundles hold no weight twice."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from actx.exporter import Form, export
from actx.exporter.errors import UsageError
from actx.exporter.lift import Lifted, lift
from actx.exporter.load import load
from actx.exporter.quantize import quantize
from actx.models.demo import CALIBRATION, demo_path
from tests.exporter.quantize.graphs import lowered, store
from tests.networks import SPELLINGS, SURROUNDINGS, Gate, feeds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the quantizer's own code

NAMES = ("gelu_legacy", "gelu_op", "silu", "mish_threshold", "prelu_per_channel", "hardswish_op", "hardswish_mobilenet")
# As TensorRT takes it, and as the quantizer does it unasked: unsigned, int32 biases, every op that it knows.
SYMMETRIC: dict[str, Any] = {
    "op_types_to_quantize": ["MatMul", "Gemm", "Conv"],
    "activation_type": QuantType.QInt8,
    "extra_options": {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "AddQDQPairToWeight": True,
    },
}
PLAIN: dict[str, Any] = {"activation_type": QuantType.QUInt8}
LINEAR: dict[str, Any] = {**PLAIN, "op_types_to_quantize": ["MatMul", "Gemm", "Conv"]}


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Any:
        return next(self.batches, None)


def quantized(source: Path, batches: Sequence[Any], options: dict[str, Any]) -> Path:
    """Quantize a file with ONNX Runtime's own quantizer."""
    result = source.with_name("quantized.onnx")
    settings = {"quant_format": QuantFormat.QDQ, "per_channel": True, "weight_type": QuantType.QInt8, **options}
    quantize_static(source, result, Reader(batches), **settings)
    return result


def lifted(file: Path) -> Lifted:
    """Lift, and check that no site has a Q or DQ in it."""
    model = load(file).model
    found = lift(model)
    producers = {str(v.name): node.op_type for node in model.graph for v in node.outputs}
    assert "DequantizeLinear" in producers.values()
    assert not any("uantizeLinear" in producers[name] for site in found.sites for name in site.values)
    return found


def network(proto: onnx.ModelProto, folder: Path, options: dict[str, Any]) -> Path:
    onnx.save(proto, folder / "float.onnx")
    return quantized(folder / "float.onnx", [feeds(proto)], options)


@pytest.mark.parametrize("options", [SYMMETRIC, LINEAR], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", NAMES)
def test_a_site_between_quantized_layers(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    (site,) = lifted(network(SPELLINGS[name].model(20), tmp_path, options)).sites
    assert site.kind == SPELLINGS[name].kind


@pytest.mark.parametrize("gated", ["matmul", "split_gate_second"])
def test_a_gate_between_quantized_layers(gated: Gate, tmp_path: Path) -> None:
    (site,) = lifted(network(SPELLINGS["silu"].model(20, gated=gated), tmp_path, SYMMETRIC)).sites
    assert site.kind == "silu"
    assert site.gate is not None


@pytest.mark.parametrize("name", ["gemm", "conv", "conv_prelu", "reshape", "norm", "residual"])
def test_surroundings_that_are_quantized(name: str, tmp_path: Path) -> None:
    network_of = SURROUNDINGS[name]
    found = lifted(network(network_of.build(20), tmp_path, SYMMETRIC))
    assert tuple(site.kind for site in found.sites) == network_of.kinds


def test_pairs_within_an_activation_divide_it(tmp_path: Path) -> None:
    # Unasked the quantizer puts pairs around the Mul of a silu: what is left as one function is its sigmoid.
    (site,) = lifted(network(SPELLINGS["silu"].model(20), tmp_path, PLAIN)).sites
    assert site.kind == "sigmoid"


@pytest.mark.parametrize("scheme", ["int8", "int8-fp16"])
def test_what_our_own_scheme_writes_is_lifted_again(scheme: str, tmp_path: Path) -> None:
    proto = SPELLINGS["gelu_op"].model(20)
    typed = quantize(lowered(proto, tmp_path), scheme, batches=[feeds(proto)])
    (site,) = lifted(store(typed, tmp_path)).sites
    assert site.kind == "gelu"


@pytest.mark.parametrize("options", [SYMMETRIC, PLAIN], ids=["symmetric", "all_ops"])
def test_the_demo_network_is_exported_from_a_quantized_file(
    options: dict[str, Any], demo_onnx: Path, tmp_path: Path
) -> None:
    batch = {"image": np.load(demo_path(CALIBRATION))["image"][:64]}
    file = quantized(shutil.copy(demo_onnx, tmp_path / "source.onnx"), [batch], options)
    assert [site.kind for site in lifted(file).sites] == ["gelu"] * 3
    np.savez(tmp_path / "data.npz", **batch)
    exported = export(
        file, tmp_path / "out", form=Form.parse("pwl:16"), data=str(tmp_path / "data.npz"), measure_latency=False
    )
    assert exported.drift is not None
    # Fits within 2.3e-3, where activations are of order 1, and now and then a step of int8 in what reads them.
    assert exported.drift.drift <= 0.03
    assert (tmp_path / "out" / "weights.data").stat().st_size <= file.stat().st_size


@pytest.mark.real
def test_the_quantized_encoder(encoder_dynamo_onnx: Path, encoder_data: Any, tmp_path: Path) -> None:
    source = tmp_path / "encoder.onnx"
    source.symlink_to(encoder_dynamo_onnx)
    options = {**SYMMETRIC, "op_types_to_quantize": ["MatMul"]}
    found = lifted(quantized(source, encoder_data("calibration")[:1], options))
    assert [site.kind for site in found.sites] == ["gelu"] * 6 + ["tanh"]


@pytest.mark.parametrize("name", ["mish_op", "silu", "hardswish_op"])
def test_a_source_of_the_quantizer_becomes_an_engine(name: str, tmp_path: Path) -> None:
    source = network(SPELLINGS[name].model(20, gated="matmul" if name == "silu" else None), tmp_path, SYMMETRIC)
    exported = export(source, tmp_path / "out", target="trt-rtx", form=Form.parse("pwl:16"), measure_latency=False)
    assert (exported.path / exported.manifest.engines["trt-rtx"].file).stat().st_size > 0
    typed = onnx.load(exported.path / "model.trt-rtx.onnx")
    assert sum(node.op_type == "QuantizeLinear" for node in typed.graph.node) >= 4


def test_an_asymmetric_source_is_refused_by_name(tmp_path: Path) -> None:
    source = network(SPELLINGS["mish_op"].model(20), tmp_path, LINEAR)
    with pytest.raises(UsageError, match="uint8") as caught:
        export(source, tmp_path / "out", target="trt-rtx", measure_latency=False)
    assert "QuantizeLinear" in caught.value.what
