"""What TensorRT-RTX's own parser and builder say to the typed graphs: real engines, built without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from actx.exporter.quantize import SCHEMES, quantize
from tests.exporter.quantize.graphs import lowered, store
from tests.networks import SPELLINGS, WIDTH, feeds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

trt: Any = pytest.importorskip("tensorrt_rtx")

Shape = tuple[int, ...]
CAPABILITIES = ("SM86", "SM120")


class Messages(trt.ILogger):  # type: ignore[misc]
    """Collects what the library has to say, and prints nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []

    def log(self, severity: Any, text: str) -> None:
        if severity <= trt.ILogger.ERROR:
            self.errors.append(text)


def build(graph: Path, shapes: Mapping[str, tuple[Shape, Shape, Shape]]) -> int:
    """Parse and build a strongly typed engine for two compute capabilities; return its size in bytes."""
    messages = Messages()
    builder = trt.Builder(messages)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, messages).parse_from_file(str(graph)), messages.errors
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    for name, (least, usual, most) in shapes.items():
        profile.set_shape(name, least, usual, most)
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = len(CAPABILITIES)
    for i, name in enumerate(CAPABILITIES):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, messages.errors
    return int(engine.nbytes)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("name", "form", "gated"),
    [("mish_op", "keep", None), ("mish_threshold", "keep", None), ("gelu_op", "pwl:16", None), ("silu", "keep", "matmul"),
     ("hardswish_op", "keep", None)],
)  # fmt: skip
def test_networks_build(name: str, form: str, gated: Any, scheme: str, tmp_path: Path) -> None:
    proto = SPELLINGS[name].model(20, gated=gated)
    typed = quantize(lowered(proto, tmp_path, form), scheme, batches=[feeds(proto)])
    shapes = {"x": ((1, 1, WIDTH), (8, 16, WIDTH), (32, 128, WIDTH))}
    assert build(store(typed, tmp_path), shapes) > 0


@pytest.mark.real
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_encoder_builds(scheme: str, encoder_dynamo_onnx: Path, encoder_data: Any, tmp_path: Path) -> None:
    typed = quantize(lowered(encoder_dynamo_onnx, tmp_path), scheme, batches=encoder_data("calibration")[:2])
    shapes = dict.fromkeys(("input_ids", "attention_mask"), ((1, 4), (8, 32), (16, 128)))
    weights = sum(v.const_value.nbytes for v in typed.graph.initializers.values() if v.const_value is not None)
    size = build(store(typed, tmp_path), shapes)
    # int8 weights are stored as such: 10.6 million in the layers, a byte each, and 11.9 million in tables in front.
    assert size < weights * (1 if scheme != "fp16" else 1.2)


@pytest.mark.real
def test_the_encoder_with_norms_written_out_builds(encoder_legacy_onnx: Path, tmp_path: Path) -> None:
    typed = quantize(lowered(encoder_legacy_onnx, tmp_path), "fp16")
    shapes = dict.fromkeys(("input_ids", "attention_mask"), ((1, 4), (8, 32), (16, 128)))
    assert build(store(typed, tmp_path), shapes) > 0
