"""The real models of the suite agree with each other whatever way they were exported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from tests.networks import cosine, mean_embedding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


def _hidden(file: Path, batch: dict[str, Any]) -> NDArray[Any]:
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, batch)[0])


def test_texts_are_two_disjoint_splits_of_varied_length(texts: dict[str, list[str]]) -> None:
    calibration, held_out = texts["calibration"], texts["held_out"]
    assert len(set(calibration)) == len(set(held_out)) == 64
    assert not set(calibration) & set(held_out)
    lengths = [len(text.split()) for text in held_out]
    assert min(lengths) <= 5
    assert max(lengths) >= 80


@pytest.mark.real
def test_batches_have_unequal_lengths_and_padding(encoder_data: Callable[[str], list[dict[str, Any]]]) -> None:
    batches = encoder_data("calibration")
    assert [batch["input_ids"].shape[0] for batch in batches] == [8] * 8
    assert len({batch["input_ids"].shape[1] for batch in batches}) >= 4
    assert any((batch["attention_mask"] == 0).any() for batch in batches)
    assert all(array.dtype == np.int64 for batch in batches for array in batch.values())


@pytest.mark.real
def test_encoder_exports_agree(
    encoder_dynamo_onnx: Path, encoder_legacy_onnx: Path, encoder_archive: Path, encoder_data: Callable[[str], Any]
) -> None:
    program = torch.export.load(encoder_archive).module()
    for batch in encoder_data("held_out")[::4]:
        with torch.no_grad():
            expected = program(**{k: torch.from_numpy(v) for k, v in batch.items()}).last_hidden_state.numpy()
        for file in (encoder_dynamo_onnx, encoder_legacy_onnx):
            embeddings = [mean_embedding(h, batch["attention_mask"]) for h in (expected, _hidden(file, batch))]
            assert (cosine(*embeddings) > 1 - 1e-6).all()


@pytest.mark.real
def test_legacy_encoder_is_decomposed(encoder_legacy_onnx: Path, encoder_dynamo_onnx: Path) -> None:
    legacy, dynamo = (onnx.load(file, load_external_data=False) for file in (encoder_legacy_onnx, encoder_dynamo_onnx))
    assert sum(node.op_type == "Erf" for node in legacy.graph.node) == 6
    assert not any(node.op_type in {"Gelu", "LayerNormalization"} for node in legacy.graph.node)
    assert sum(node.op_type == "Gelu" for node in dynamo.graph.node) == 6


def test_llama_exports_agree(llama_onnx: Path, llama_archive: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 128, (3, 7))
    with torch.no_grad():
        expected = torch.export.load(llama_archive).module()(input_ids=torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(_hidden(llama_onnx, {"input_ids": ids}), expected, atol=1e-5)
