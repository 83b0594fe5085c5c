"""The demonstration network is the same model from every source that can hold it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from safetensors.torch import save_file

from actx.exporter import Form, export, inspect, session
from actx.exporter.data import InputSpec
from actx.exporter.load import load
from actx.models.demo import ARCHIVE, CALIBRATION, demo_path, load_digits_vit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

# Its weights are random until those of the source are put in.
FACTORY = "actx.models.networks:VisionTransformer"
INPUT = InputSpec.parse("image:float32[batch,1,8,8]")
MAX_ABS = 1e-5


@dataclass(frozen=True)
class Source:
    """How a source is written, and what `load` needs with it."""

    write: Callable[[Path], Any]
    options: dict[str, Any]


def _state(prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in load_digits_vit().state_dict().items()}


@cache
def _converted() -> ir.Model:
    return load(demo_path(ARCHIVE)).model


def _onnx(path: Path, opset: int | None = None) -> None:
    onnx.save(ir.to_proto(_converted()), path)
    if opset is not None:
        onnx.save(ir.to_proto(load(path, opset=opset).model), path)


def _external(path: Path) -> None:
    onnx.save(ir.to_proto(_converted()), path, save_as_external_data=True, location="weights.bin", size_threshold=0)


TRACED = {"inputs": [INPUT]}
WEIGHTS = {**TRACED, "factory": FACTORY}
SOURCES = {
    "archive": Source(lambda path: shutil.copy(demo_path(ARCHIVE), path), {}),
    "onnx": Source(_onnx, {}),
    "onnx of opset 13": Source(lambda path: _onnx(path, 13), {}),
    "onnx of opset 17": Source(lambda path: _onnx(path, 17), {}),
    "onnx of opset 25": Source(lambda path: _onnx(path, 25), {}),
    "onnx with external data": Source(_external, {}),
    "pickled module": Source(lambda path: torch.save(load_digits_vit(), path), {**TRACED, "trust": True}),
    "state dict": Source(lambda path: torch.save(_state(), path), WEIGHTS),
    "state dict, not zipped": Source(
        lambda path: torch.save(_state(), path, _use_new_zipfile_serialization=False), WEIGHTS
    ),
    "state dict of DataParallel": Source(lambda path: torch.save(_state("module."), path), WEIGHTS),
    "Lightning checkpoint": Source(
        lambda path: torch.save({"epoch": 3, "state_dict": _state("model."), "loops": {}}, path), WEIGHTS
    ),
    "safetensors": Source(lambda path: save_file(_state(), path), WEIGHTS),
}


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    with np.load(demo_path(CALIBRATION)) as arrays:
        return np.asarray(arrays["image"][:32])


def _export(model: Path, out: Path, images: NDArray[np.float32], **options: Any) -> tuple[list[tuple[str, str]], Any]:
    """Return the names and kinds of the sites, and the outputs of the bundle."""
    done = export(model, out, form=Form.parse("keep"), measure_drift=False, measure_latency=False, **options)
    (logits,) = session(out).run({"image": images}).values()
    return [(site.name, site.kind) for site in done.manifest.sites], logits


@pytest.fixture(scope="module")
def of_the_archive(
    tmp_path_factory: pytest.TempPathFactory, images: NDArray[np.float32]
) -> tuple[list[tuple[str, str]], Any]:
    return _export(demo_path(ARCHIVE), tmp_path_factory.mktemp("archive") / "out", images)


# Each is read otherwise; what was read becomes a graph in the same way as that of a neighbour.
LIKE_ANOTHER = ("onnx of opset 17", "state dict, not zipped", "state dict of DataParallel")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LIKE_ANOTHER)) for name in SOURCES]
)
def test_sites_and_outputs_are_those_of_the_archive(
    name: str, tmp_path: Path, images: NDArray[np.float32], of_the_archive: tuple[list[tuple[str, str]], Any]
) -> None:
    expected, wanted = of_the_archive
    source = SOURCES[name]
    file = tmp_path / "source.bin"  # told by content
    source.write(file)
    found, got = _export(file, tmp_path / "out", images, **source.options)
    assert found == expected
    assert [kind for _, kind in found] == ["gelu"] * 3
    assert np.abs(got - wanted).max() <= MAX_ABS


def test_inspect_takes_weights_too(tmp_path: Path) -> None:
    save_file(_state(), tmp_path / "weights")
    found = inspect(tmp_path / "weights", inputs=[INPUT], factory=FACTORY)
    assert [site.kind for site in found.sites] == ["gelu"] * 3
    assert found.model.format == "a safetensors file"
    assert found.model.inputs == (INPUT,)


# --- models that are quantized already ---


class _Reader(CalibrationDataReader):
    def __init__(self, images: NDArray[np.float32]) -> None:
        self._batches = iter([{"image": images}])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._batches, None)


@pytest.mark.parametrize("ops", [None, ["MatMul", "Gemm", "Conv"]])
def test_a_quantized_model(ops: list[str] | None, tmp_path: Path, images: NDArray[np.float32]) -> None:
    """The activations are found between their Q/DQ nodes, which stay where they are."""
    _onnx(tmp_path / "float.onnx")
    file = tmp_path / "quantized.onnx"
    quantize_static(tmp_path / "float.onnx", file, _Reader(images), op_types_to_quantize=ops)
    found = inspect(file)
    assert [site.kind for site in found.sites] == ["gelu"] * 3
    expected = InferenceSession(str(file)).run(None, {"image": images})[0]
    limits = {"keep": 0.0, "spline:32x3": 0.05, "pwl:32": 0.05}
    for form, limit in limits.items():
        export(file, tmp_path / "out", form=Form.parse(form), force=True, measure_drift=False, measure_latency=False)
        (logits,) = session(tmp_path / "out").run({"image": images}).values()
        assert np.linalg.norm(logits - expected) <= limit * np.linalg.norm(expected)
        nodes = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.node
        quantizers = [node for node in nodes if node.op_type == "QuantizeLinear"]
        assert len(quantizers) == sum(node.op_type == "QuantizeLinear" for node in onnx.load(file).graph.node)
