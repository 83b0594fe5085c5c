"""The trained encoder and the trained demo network in every scheme, on held-out data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from actx.exporter.quantize import quantize
from actx.models.demo import CALIBRATION, EVALUATION, demo_path
from tests.exporter.quantize.graphs import UNIT, lowered, outputs, relative_l2
from tests.networks import cosine, mean_embedding

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.real

# Some 64 values are stored in a row in six layers, and their roundings are independent: they add up as their root.
HALF_DRIFT = 8 * UNIT


def embedding_cosine(after: Any, before: Any, batches: Any, name: str) -> float:
    pairs = zip(after, before, batches, strict=True)
    return float(
        np.mean(
            np.concatenate(
                [
                    cosine(*(mean_embedding(run[name], batch["attention_mask"]) for run in (a, b)))
                    for a, b, batch in pairs
                ]
            )
        )
    )


@pytest.mark.parametrize("exporter", ["dynamo", "legacy"])
def test_the_encoder_in_float16(exporter: str, encoder_data: Any, tmp_path: Path, request: Any) -> None:
    plain = lowered(request.getfixturevalue(f"encoder_{exporter}_onnx"), tmp_path)
    batches = encoder_data("held_out")[::3]
    after, before = outputs(quantize(plain, "fp16"), tmp_path, batches), outputs(plain, tmp_path, batches)
    for name in before[0]:
        assert relative_l2(after, before, name) <= HALF_DRIFT


def test_the_encoder_in_int8(encoder_dynamo_onnx: Path, encoder_data: Any, tmp_path: Path) -> None:
    plain = lowered(encoder_dynamo_onnx, tmp_path)
    batches = encoder_data("held_out")[::3]
    before = outputs(plain, tmp_path, batches)
    name = next(iter(before[0]))
    typed = quantize(plain, "int8-fp16", batches=encoder_data("calibration"))
    # What ONNX Runtime's own quantizer reaches at its best on this encoder, MatMul only, is 0.933.
    assert embedding_cosine(outputs(typed, tmp_path, batches), before, batches, name) >= 0.97


@pytest.mark.parametrize("scheme", ["fp16", "int8", "int8-fp16"])
def test_the_demo_network(scheme: str, demo_onnx: Path, tmp_path: Path) -> None:
    plain = lowered(demo_onnx, tmp_path)
    held_out, calibration = ({"image": np.load(demo_path(file))["image"]} for file in (EVALUATION, CALIBRATION))
    typed = quantize(plain, scheme, batches=[calibration])
    after, before = (outputs(model, tmp_path, [held_out]) for model in (typed, plain))
    (name,) = before[0]
    # Half a step of int8 is a 254th of the peak: an eighth of the signal after some fifteen layers with peaks of 8 rms.
    assert relative_l2(after, before, name) <= (HALF_DRIFT if scheme == "fp16" else 1 / 8)
    same = after[0][name].argmax(axis=-1) == before[0][name].argmax(axis=-1)
    assert same.mean() >= 0.99
