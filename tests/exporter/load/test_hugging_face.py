"""Folders of save_pretrained, loaded without a network: the sites and outputs are those of the torch model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from actx.exporter import Form, export, session
from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError
from actx.exporter.load import load
from actx.exporter.load.hugging_face import default_inputs
from actx.exporter.load.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.real

MAX_ABS = 1e-4
LAYERS = 2
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4}


def encoder() -> Any:
    config = transformers.BertConfig(
        **SIZES, intermediate_size=64, vocab_size=96, max_position_embeddings=64, hidden_act="gelu"
    )
    return transformers.BertModel(config)


def decoder() -> Any:
    config = transformers.LlamaConfig(
        **SIZES, intermediate_size=88, num_key_value_heads=2, vocab_size=96, max_position_embeddings=64
    )
    return transformers.LlamaForCausalLM(config)


def vision() -> Any:
    config = transformers.ViTConfig(**SIZES, intermediate_size=64, image_size=16, patch_size=8, hidden_act="gelu_new")
    return transformers.ViTForImageClassification(config)


def texts(batch: int, tokens: int) -> dict[str, NDArray[Any]]:
    """Token ids, and a mask with a tail of zeros in the first row."""
    mask = np.ones((batch, tokens), np.int64)
    mask[0, tokens // 2 + 1 :] = 0
    return {"input_ids": np.random.default_rng(0).integers(3, 96, (batch, tokens)), "attention_mask": mask}


def images(batch: int) -> dict[str, NDArray[Any]]:
    return {"pixel_values": np.random.default_rng(0).standard_normal((batch, 3, 16, 16)).astype(np.float32)}


TEXTS = [texts(2, 16), texts(1, 1), texts(5, 33), texts(3, 7)]
# Model, the kinds of its sites (the encoder has a pooler), and feeds of several sizes.
MODELS: dict[str, tuple[Callable[[], Any], list[str], list[dict[str, NDArray[Any]]]]] = {
    "encoder": (encoder, ["gelu", "gelu", "tanh"], TEXTS),
    "decoder": (decoder, ["silu"] * LAYERS, TEXTS),
    "vision": (vision, ["gelu_tanh"] * LAYERS, [images(2), images(1), images(5)]),
}


def saved(name: str, folder: Path, **options: Any) -> Any:
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        model = MODELS[name][0]().eval()
        model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize(("name", "sharded"), [*((name, False) for name in MODELS), ("decoder", True)])
def test_sites_and_outputs(name: str, sharded: bool, tmp_path: Path) -> None:
    _, kinds, feeds = MODELS[name]
    folder = tmp_path / "folder"
    model = saved(name, folder, max_shard_size="20KB" if sharded else "1GB")
    assert (len(list(folder.glob("*.safetensors"))) > 1) == sharded
    done = export(folder, tmp_path / "out", form=Form.parse("keep"), measure_drift=False, measure_latency=False)
    assert [site.kind for site in done.manifest.sites] == kinds
    assert done.manifest.source.format == "a Hugging Face folder"
    bundle = session(tmp_path / "out")
    for feed in feeds:
        with torch.no_grad():
            expected = model(**{key: torch.from_numpy(array) for key, array in feed.items()})
        found = bundle.run(feed)
        assert "past_key_values" not in " ".join(found)
        for got, wanted in zip(found.values(), expected.to_tuple(), strict=False):
            assert np.abs(got - wanted.numpy()).max() <= MAX_ABS


def test_an_export_with_data_of_another_size(tmp_path: Path) -> None:
    saved("decoder", tmp_path / "folder")
    np.savez(tmp_path / "data.npz", **texts(6, 11))
    done = export(
        tmp_path / "folder", tmp_path / "out", form=Form.parse("pwl:32"), data=str(tmp_path / "data.npz"), batch_size=3,
        measure_latency=False,
    )  # fmt: skip
    assert done.drift is not None
    assert done.drift.samples == 6
    assert 0 < done.drift.drift < 1e-3


def test_stated_inputs_win_over_those_of_the_configuration(tmp_path: Path) -> None:
    saved("encoder", tmp_path / "folder")
    loaded = load(tmp_path / "folder", inputs=[InputSpec.parse("input_ids:int64[rows,8]")])
    assert [str(spec) for spec in loaded.inputs] == ["input_ids:int64[rows,8]"]


def test_the_digest_changes_with_the_weights(tmp_path: Path) -> None:
    saved("vision", tmp_path / "folder")
    before = load(tmp_path / "folder").sha256
    file = tmp_path / "folder" / "model.safetensors"
    state = load_file(file)
    save_file({name: tensor + 1 for name, tensor in state.items()}, file, metadata={"format": "pt"})
    assert load(tmp_path / "folder").sha256 != before


# --- folders that cannot be loaded ---


def refused(folder: Path, words: str) -> ActxError:
    with pytest.raises(ActxError, match=words) as caught:
        load(folder)
    assert str(folder) in caught.value.what
    assert caught.value.note
    assert caught.value.remedy
    return caught.value


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    saved("vision", tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["classifier.bias"]
    save_file(state, file, metadata={"format": "pt"})
    assert "classifier.bias" in refused(tmp_path, "lacks weights").note


def test_a_missing_shard(tmp_path: Path) -> None:
    saved("encoder", tmp_path, max_shard_size="20KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    refused(tmp_path, "cannot load")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_truncated_weights(tmp_path: Path, share: float) -> None:
    saved("vision", tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    refused(tmp_path, "cannot load")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model = saved("vision", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    refused(tmp_path, "cannot load")


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    saved("vision", tmp_path)
    marker = tmp_path / "marker"
    (tmp_path / "modeling.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["Own"], "auto_map": {"AutoConfig": "modeling.C", "AutoModel": "modeling.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "never run" in refused(tmp_path, "does not have").remedy
    assert not marker.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "1", "{}", '{"architectures": 3}', '{"architectures": ["os"]}', '{"architectures": [null]}']
)
def test_configurations_that_name_no_model(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, r"cannot read|does not have")


@pytest.mark.parametrize("change", [{"hidden_size": 33}, {"num_attention_heads": 0}, {"hidden_act": "no_such"}])
def test_configurations_that_do_not_fit_the_weights(tmp_path: Path, change: dict[str, Any]) -> None:
    saved("vision", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    refused(tmp_path, "cannot load")


def test_inputs_that_the_configuration_does_not_tell(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[8], depths=[1])
    with quiet():
        transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    error = refused(tmp_path, "does not say the sizes")
    assert "not known is pixel_values" in error.note
    assert "--input 'pixel_values:float32" in error.remedy


TOWER = {**SIZES, "intermediate_size": 64}


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (
            "T5ForConditionalGeneration",
            {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 32},
            ["input_ids:int64[batch,tokens]", "attention_mask:int64[batch,tokens]",
             "decoder_input_ids:int64[batch,decoder_tokens]"],
        ),
        (
            "WhisperForConditionalGeneration",
            {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 32,
             "num_mel_bins": 8, "max_source_positions": 20, "pad_token_id": 0},
            ["input_features:float32[batch,8,40]", "decoder_input_ids:int64[batch,decoder_tokens]"],
        ),
        (
            "CLIPModel",
            {"text_config": {**TOWER, "vocab_size": 32}, "vision_config": {**TOWER, "image_size": 16, "patch_size": 8}},
            ["input_ids:int64[batch,tokens]", "attention_mask:int64[batch,tokens]", "pixel_values:float32[batch,3,16,16]"],
        ),
        (
            "Wav2Vec2Model",
            {**TOWER, "conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,), "num_feat_extract_layers": 1,
             "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
            ["input_values:float32[batch,16000]"],
        ),
        (
            "ASTModel",
            {**TOWER, "num_mel_bins": 16, "max_length": 24, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
            ["input_values:float32[batch,24,16]"],
        ),
    ],
)  # fmt: skip
def test_inputs_that_the_configuration_tells(
    kind: str, settings: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    model = getattr(transformers, kind)
    with quiet():
        found = default_inputs(tmp_path, model(model.config_class(**settings)))
    assert [str(spec) for spec in found] == expected
