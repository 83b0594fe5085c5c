"""What TensorRT-RTX's own parser and builder say to the typed graphs: real engines, built without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from actx.exporter.quantize import quantize
from tests.exporter.quantize.graphs import lowered, store

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


@pytest.mark.real
def test_the_encoder_with_norms_written_out_builds(encoder_legacy_onnx: Path, tmp_path: Path) -> None:
    typed = quantize(lowered(encoder_legacy_onnx, tmp_path), "fp16")
    shapes = dict.fromkeys(("input_ids", "attention_mask"), ((1, 4), (8, 32), (16, 128)))
    assert build(store(typed, tmp_path), shapes) > 0
