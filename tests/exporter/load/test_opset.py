"""A graph that was converted to another opset computes the same and has the same sites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnxruntime import InferenceSession, SessionOptions

from actx.exporter.errors import ActxError, UsageError
from actx.exporter.lift import lift
from actx.exporter.load import LoadedModel, load
from actx.models.demo import ARCHIVE, CALIBRATION, demo_path
from tests.networks import SPELLINGS, Graph

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MAX_ABS = 1e-5


def run(model: ir.Model | Path, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = SessionOptions()
    options.log_severity_level = 3
    content = str(model) if not isinstance(model, ir.Model) else ir.to_proto(model).SerializeToString()
    outputs: list[NDArray[Any]] = InferenceSession(content, options).run(None, feeds)
    return outputs


def check(original: LoadedModel, converted: LoadedModel, feeds: dict[str, NDArray[Any]], opset: int) -> None:
    """Structure, numbers and validity."""
    assert converted.opset == opset
    assert converted.inputs == original.inputs
    assert [s.kind for s in lift(converted.model).sites] == [s.kind for s in lift(original.model).sites]
    for a, b in zip(run(original.model, feeds), run(converted.model, feeds), strict=True):
        assert np.abs(a - b).max() <= MAX_ABS
    onnx.checker.check_model(ir.to_proto(converted.model))


@pytest.mark.parametrize("opset", range(18, 26))
def test_the_demonstration_network(opset: int) -> None:
    original, converted = load(demo_path(ARCHIVE)), load(demo_path(ARCHIVE), opset=opset)
    with np.load(demo_path(CALIBRATION)) as arrays:
        check(original, converted, {"image": arrays["image"][:8]}, opset)
    assert [s.name for s in lift(converted.model).sites] == [s.name for s in lift(original.model).sites]
    used = {value.name for node in converted.model.graph for value in node.inputs if value is not None}
    assert set(converted.model.graph.initializers) <= used
    assert converted.sha256 == original.sha256


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize(("before", "after"), [(13, 25), (18, 20), (20, 13), (22, 17)])
def test_every_spelling(name: str, before: int, after: int, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(SPELLINGS[name].model(before), file)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8)).astype(np.float32)
    original = load(file)
    try:
        converted = load(file, opset=after)
    except ActxError as error:
        assert error.what == f"{file} cannot be converted from opset {before} to {after}"
        assert error.note
        pytest.fail(str(error))
    check(original, converted, {original.inputs[0].name: x}, after)
