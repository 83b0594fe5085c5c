"""Families of Hugging Face transformers as small networks with random weights, made from their configurations, offline."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from actx.exporter import session
from actx.exporter.data import synthetic_data
from actx.exporter.load.hugging_face import _no_progress_bar, default_inputs, read_folder
from actx.exporter.load.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from actx.exporter.data import InputSpec

LAYERS = 2
WIDTH, FFN, VOCABULARY, POSITIONS = 64, 128, 200, 64
IMAGE = 32
SAMPLES, TOKENS = 8, 12
# Weights so large that the activations are nonlinear on what reaches them.
SCALE = 0.1

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "max_position_embeddings": POSITIONS, "initializer_range": SCALE,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = TEXT | {"num_key_value_heads": 2, "head_dim": 16}
GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": POSITIONS,
    "initializer_range": SCALE, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PAIR: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": FFN, "decoder_ffn_dim": FFN,
    "max_position_embeddings": POSITIONS, "init_std": SCALE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
VISION: dict[str, Any] = {
    "image_size": IMAGE, "patch_size": 8, "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "initializer_range": SCALE,
}  # fmt: skip
SPEECH: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "conv_dim": (32, 32), "conv_stride": (5, 4), "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "initializer_range": SCALE, "apply_spec_augment": False,
}  # fmt: skip
TWO_TOWERS: dict[str, Any] = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 32}


@dataclass(frozen=True)
class Family:
    """One model of a family.

    Attributes:
        kind: what it is for.
        model: its class in transformers.
        settings: of its configuration.
        sites: the activations that this configuration has, by kind.
        inputs: to state with ``--input``; none where the folder tells them.
    """

    kind: str
    model: str
    settings: Mapping[str, Any]
    sites: Counter[str]
    inputs: tuple[str, ...] = field(default=())

    def save(self, folder: Path) -> None:
        """Make the model with seed 0, and save it as `save_pretrained` does."""
        with torch.random.fork_rng(), quiet(), _no_progress_bar():
            torch.manual_seed(0)
            kind = getattr(transformers, self.model)
            model = kind(kind.config_class(**self.settings)).eval()
            if model.main_input_name == "pixel_values":
                _settle(model)
            model.save_pretrained(folder)


def _settle(model: transformers.PreTrainedModel) -> None:
    """Give batch norms the statistics of random images: with those that they begin with signals die out."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = None  # the mean of all batches, of one here
    if norms:
        size = getattr(model.config, "image_size", 2 * IMAGE)
        model(torch.randn(SAMPLES, 3, size, size))
        model.eval()


def draw(folder: Path, inputs: Sequence[InputSpec] = ()) -> dict[str, NDArray[Any]]:
    """Draw samples for the inputs of a folder, those stated or those that it tells."""
    with quiet():
        specs = inputs or default_inputs(folder, read_folder(folder))
    names = {dim for spec in specs for dim in spec.dims if isinstance(dim, str)}
    return next(iter(synthetic_data(specs, {name: SAMPLES if name == "batch" else TOKENS for name in names})))


def drift(folder: Path, bundle: Path, feeds: Mapping[str, NDArray[Any]]) -> float:
    """Return 1 - mean cosine between the outputs of a bundle and those of the torch module, of the worst output."""
    with quiet(), torch.no_grad():
        output = read_folder(folder).eval()(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    expected = [leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    found = list(session(bundle).run(feeds).values())
    return max(_drift(a, b) for a, b in zip(found, expected, strict=True))


def _drift(a: NDArray[Any], b: NDArray[Any]) -> float:
    assert a.shape == b.shape
    rows = [array.reshape(len(array) if array.ndim else 1, -1).astype(np.float64) for array in (a, b)]
    norms = np.prod([np.linalg.norm(row, axis=1) for row in rows], axis=0)
    assert (norms > 0).all(), "an output is zero, which every other output is as near to"
    return float(1 - np.mean(np.prod(rows, axis=0).sum(axis=1) / norms))


def _family(kind: str, model: str, settings: Mapping[str, Any], *inputs: str, **sites: int) -> Family:
    return Family(kind, model, settings, Counter(sites), inputs)


def _encoder(model: str, settings: Mapping[str, Any] = TEXT, *inputs: str, **sites: int) -> Family:
    return _family("encoder", model, settings, *inputs, **sites)


def _decoder(model: str, settings: Mapping[str, Any] = GROUPED, *inputs: str, **sites: int) -> Family:
    return _family("decoder", model, settings, *inputs, **sites)


def _pair(model: str, settings: Mapping[str, Any] = PAIR, *inputs: str, **sites: int) -> Family:
    return _family("encoder and decoder", model, settings, *inputs, **sites)


def _vision(model: str, settings: Mapping[str, Any] = VISION, *inputs: str, **sites: int) -> Family:
    return _family("vision", model, settings, *inputs, **sites)


def _speech(model: str, settings: Mapping[str, Any] = SPEECH, *inputs: str, **sites: int) -> Family:
    return _family("speech", model, settings, *inputs, **sites)


FAMILIES: dict[str, Family] = {
    "bert": _encoder("BertForMaskedLM", gelu=3),
    "roberta": _encoder("RobertaForMaskedLM", TEXT | {"max_position_embeddings": 80}, gelu=3),
    "albert": _encoder("AlbertModel", TEXT | {"embedding_size": 32}, gelu_tanh=2, tanh=1),
    "distilbert": _encoder(
        "DistilBertForSequenceClassification",
        {"vocab_size": VOCABULARY, "dim": WIDTH, "hidden_dim": FFN, "n_layers": LAYERS, "n_heads": 4,
         "max_position_embeddings": POSITIONS, "initializer_range": SCALE}, gelu=2, relu=1,
    ),
    "electra": _encoder("ElectraForPreTraining", TEXT | {"embedding_size": 32}, gelu=3),
    "deberta-v2": _encoder(
        "DebertaV2ForSequenceClassification",
        TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": WIDTH}, gelu=3,
    ),
    "mpnet": _encoder("MPNetModel", gelu=2, tanh=1),
    "modernbert": _encoder("ModernBertModel", TEXT | {"cls_token_id": 1, "sep_token_id": 2}, gelu=2),
    "camembert": _encoder("CamembertModel", TEXT | {"max_position_embeddings": 80}, gelu=2, tanh=1),
    "xlm-roberta": _encoder(
        "XLMRobertaForSequenceClassification", TEXT | {"max_position_embeddings": 80}, gelu=2, tanh=1
    ),
    "mobilebert": _encoder(
        "MobileBertModel", TEXT | {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}, relu=8, tanh=1,
    ),
    "squeezebert": _encoder("SqueezeBertModel", TEXT | {"embedding_size": WIDTH}, gelu=2, tanh=1),
    "nomic-bert": _encoder("NomicBertModel", silu=2),
    "gpt2": _decoder("GPT2LMHeadModel", GPT, gelu_tanh=2),
    "gpt-neo": _decoder(
        "GPTNeoForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": 4, "window_size": 8,
         "attention_types": [[["global", "local"], 1]], "max_position_embeddings": POSITIONS, "initializer_range": SCALE,
         "bos_token_id": 1, "eos_token_id": 2}, gelu_tanh=2,
    ),
    "gpt-neox": _decoder("GPTNeoXForCausalLM", TEXT, gelu=2),
    "gptj": _decoder("GPTJForCausalLM", GPT | {"rotary_dim": 8}, gelu_tanh=2),
    "opt": _decoder("OPTForCausalLM", TEXT | {"ffn_dim": FFN, "word_embed_proj_dim": WIDTH, "init_std": SCALE}, relu=2),
    "bloom": _decoder(
        "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 4, "initializer_range": SCALE},
        gelu_tanh=2,
    ),
    "falcon": _decoder("FalconForCausalLM", TEXT, gelu=2),
    "phi": _decoder("PhiForCausalLM", TEXT, gelu_tanh=2),
    "phi3": _decoder("Phi3ForCausalLM", TEXT, silu=2),
    "llama": _decoder("LlamaForCausalLM", silu=2),
    "mistral": _decoder("MistralForCausalLM", silu=2),
    "mixtral": _decoder("MixtralForCausalLM", GROUPED | {"num_local_experts": 4}, silu=2),
    "qwen2": _decoder("Qwen2ForCausalLM", silu=2),
    "qwen3": _decoder("Qwen3ForCausalLM", silu=2),
    "qwen3-moe": _decoder(
        "Qwen3MoeForCausalLM", GROUPED | {"num_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2}, silu=2
    ),
    "gemma": _decoder("GemmaForCausalLM", gelu_tanh=2),
    "gemma2": _decoder("Gemma2ForCausalLM", gelu_tanh=2, scalar=1),
    "gemma3": _decoder("Gemma3ForCausalLM", gelu_tanh=2),
    "olmo2": _decoder("Olmo2ForCausalLM", silu=2),
    "starcoder2": _decoder("Starcoder2ForCausalLM", gelu_tanh=2),
    "stablelm": _decoder("StableLmForCausalLM", silu=2),
    "granite": _decoder("GraniteForCausalLM", silu=2),
    "nemotron": _decoder("NemotronForCausalLM", relu2=2),
    "apertus": _decoder("ApertusForCausalLM", xielu=2),
    # The gate is clipped before its swish, and what it multiplies is clipped too.
    "gpt-oss": _decoder("GptOssForCausalLM", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}, scalar=4),
    "cohere": _decoder("CohereForCausalLM", silu=2),
    "glm4": _decoder("Glm4ForCausalLM", silu=2),
    "smollm3": _decoder("SmolLM3ForCausalLM", silu=2),
    "lfm2": _decoder("Lfm2ForCausalLM", silu=2),
    "mamba": _family(
        "state space", "MambaForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "state_size": 8, "num_hidden_layers": LAYERS},
        "input_ids:int64[batch,12]", silu=4, softplus=2,
    ),
    "mamba2": _family(
        "state space", "Mamba2ForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "state_size": 8, "num_hidden_layers": LAYERS, "num_heads": 8,
         "head_dim": 16, "n_groups": 1, "chunk_size": 8},
        "input_ids:int64[batch,12]", silu=4, softplus=2,
    ),
    "t5": _pair(
        "T5ForConditionalGeneration",
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 16, "d_ff": FFN, "num_layers": LAYERS, "num_heads": 4,
         "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}, gelu_tanh=4,
    ),
    "bart": _pair("BartForConditionalGeneration", gelu=4),
    "pegasus": _pair("PegasusForConditionalGeneration", PAIR | {"activation_function": "relu"}, relu=4),
    "marian": _pair("MarianMTModel", PAIR | {"activation_function": "swish"}, silu=4),
    "m2m-100": _pair("M2M100ForConditionalGeneration", relu=4),
    "vit": _vision("ViTModel", gelu=2, tanh=1),
    "deit": _vision("DeiTForImageClassification", gelu=2),
    "beit": _vision("BeitForImageClassification", gelu=2),
    "dinov2": _vision("Dinov2Model", gelu=2),
    "swin": _vision(
        "SwinForImageClassification",
        {"image_size": IMAGE, "patch_size": 4, "embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4,
         "initializer_range": SCALE}, gelu=2,
    ),
    "convnext": _vision(
        "ConvNextForImageClassification",
        {"image_size": IMAGE, "hidden_sizes": [32, 64], "depths": [1, 1], "num_stages": 2, "initializer_range": SCALE}, gelu=2,
    ),
    "resnet": _vision(
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1]}, "pixel_values:float32[batch,3,32,32]", relu=7,
    ),
    "mobilevit": _vision("MobileViTForImageClassification", {"image_size": 64, "initializer_range": SCALE}, silu=34),
    "mobilenet-v2": _vision("MobileNetV2ForImageClassification", {"image_size": 64, "depth_multiplier": 0.25}, relu6=35),
    "efficientnet": _vision(
        "EfficientNetForImageClassification",
        {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320,
         "initializer_range": 3 * SCALE}, silu=22, sigmoid=7,
    ),
    "segformer": _vision(
        "SegformerForSemanticSegmentation",
        {"image_size": 64, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4],
         "decoder_hidden_size": 32, "initializer_range": SCALE}, "pixel_values:float32[batch,3,64,64]", gelu=4, relu=1,
    ),
    "clip": _family("image and text", "CLIPModel", TWO_TOWERS, quick_gelu=4),
    "siglip": _family("image and text", "SiglipModel", TWO_TOWERS, gelu_tanh=5),
    "blip": _family("image and text", "BlipForImageTextRetrieval", TWO_TOWERS, gelu=4),
    "whisper": _speech(
        "WhisperForConditionalGeneration",
        PAIR | {"num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": POSITIONS}, gelu=6,
    ),
    "wav2vec2": _speech("Wav2Vec2ForCTC", gelu=5),
    "hubert": _speech("HubertForCTC", gelu=5),
    "speecht5": _speech(
        "SpeechT5ForSpeechToText",
        SPEECH | {"encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": 4,
                  "decoder_attention_heads": 4, "encoder_ffn_dim": FFN, "decoder_ffn_dim": FFN, "vocab_size": VOCABULARY},
        gelu=7,
    ),
    "ast": _speech(
        "ASTForAudioClassification",
        VISION | {"num_mel_bins": 32, "max_length": 64, "frequency_stride": 8, "time_stride": 8},
        gelu=2,
    ),
}  # fmt: skip
