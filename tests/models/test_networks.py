from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from actx.custom_ops import cpu
from actx.custom_ops.torch_ops import onnx_translations
from actx.models.activations import ACTIVATIONS, make_activation
from actx.models.ffn import FFNS
from actx.models.networks import ConvNet, Decoder, Encoder, SqueezeExcite, VisionTransformer, digits_network
from actx.models.transformer import NORMS, Attention, RMSNorm, Rotary

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_ABS = 1e-4
IMAGE = torch.linspace(0, 1, 128).reshape(2, 1, 8, 8)
TOKENS = torch.arange(24).reshape(2, 12)
# Their gates are of the mean over all tokens.
LOOK_AHEAD = ("dy_relu", "meta_acon")


# --- the vision transformer ---


def _model(activation: str = "gelu") -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(activation).eval()


def test_size_is_that_of_a_demonstration() -> None:
    assert 100_000 < sum(p.numel() for p in _model().parameters()) < 200_000


@pytest.mark.parametrize("activation", ["gelu", "mish", "hardswish", "prelu", "apl"])
def test_every_block_has_an_activation_of_its_own(activation: str) -> None:
    kind = type(make_activation(activation, 1))
    found = [module for module in _model(activation).modules() if isinstance(module, kind)]
    assert len(set(map(id, found))) == 3


def test_images_of_a_batch_do_not_see_each_other() -> None:
    image = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        together, alone = _model()(image), _model()(image[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)


def test_position_matters() -> None:
    image = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        logits, mirrored = _model()(image), _model()(image.flip(-1))
    assert not torch.allclose(logits, mirrored, atol=1e-3)


def test_other_image_and_patch_sizes() -> None:
    model = VisionTransformer(image_size=12, patch_size=3, channels=3, classes=4, width=16, depth=1, heads=2, hidden=24)
    assert model(torch.zeros(2, 3, 12, 12)).shape == (2, 4)


# --- parts ---


def test_rms_norm() -> None:
    norm, reference, x = RMSNorm(12), nn.RMSNorm(12, eps=1e-6), torch.randn(3, 5, 12)
    torch.testing.assert_close(norm(x), reference(x), rtol=0, atol=1e-6)


def test_rotary_scores_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(8).expand(1, 1, 40, 8) for _ in range(2))
    rotary = Rotary(8)
    scores = (rotary(q) @ rotary(k).transpose(-2, -1))[0, 0]
    for distance in (0, 1, 7):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)
    torch.testing.assert_close(rotary(q).norm(dim=-1), q.norm(dim=-1), rtol=0, atol=1e-5)


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    attention, x = Attention(12, 3, causal=True), torch.randn(2, 5, 12)
    q, k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x), attention.out(mixed), rtol=0, atol=1e-5)


def test_squeeze_and_excite_scales_channels() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 8, 3, 3) + 0.1
    ratio = SqueezeExcite(8)(x) / x
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio))


# --- decoder, encoder, convolutional network ---


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name not in LOOK_AHEAD])
def test_decoder_sees_no_later_token(activation: str) -> None:
    _assert_causal(Decoder(activation))


@pytest.mark.parametrize("ffn", FFNS)
def test_decoder_sees_no_later_token_through_any_ffn(ffn: str) -> None:
    _assert_causal(Decoder(ffn=ffn))


def _assert_causal(model: Decoder) -> None:
    changed = TOKENS.clone()
    changed[:, 7:] += 50
    with torch.no_grad():
        before, after = model.eval()(TOKENS), model(changed)
    assert before.shape == (2, 12, 96)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=0, atol=1e-4)
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)


def test_encoder_sees_both_ways_and_positions() -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    changed = TOKENS.clone()
    changed[:, -1] += 50
    with torch.no_grad():
        assert not torch.allclose(model(TOKENS)[:, 0], model(changed)[:, 0], atol=1e-4)
        assert not torch.allclose(model(TOKENS).flip(1), model(TOKENS.flip(1)), atol=1e-3)
    assert Encoder(classes=3)(TOKENS).shape == (2, 3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("network", [digits_network, Decoder, Encoder])
def test_transformers_take_any_norm(network: Callable[..., nn.Module], norm: str) -> None:
    x = IMAGE if network is digits_network else TOKENS
    assert network(norm=norm)(x).isfinite().all()


def test_unknown_norm_is_an_error() -> None:
    with pytest.raises(ValueError, match="no norm is called 'batch'; there are layer, rms, dyt, derf"):
        digits_network(norm="batch")


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if "polynorm" not in name])
def test_convolutional_network_takes_any_activation_of_channels(activation: str) -> None:
    assert ConvNet(activation, depth=2)(IMAGE).shape == (2, 10)


# --- export ---

EXPORTED: dict[str, Callable[[], nn.Module]] = {
    "decoder": lambda: Decoder(depth=1),
    "encoder, xielu": lambda: Encoder("xielu", ffn="interleaved_gate_second", depth=1),
    "digits, polynorm": lambda: VisionTransformer("polynorm", ffn="clamped", depth=1),
    "digits, moa": lambda: VisionTransformer(ffn="moa", norm="dyt", depth=1),
    "conv, apl": lambda: ConvNet("apl"),
}
LEGACY: dict[str, Callable[[], nn.Module]] = {
    "decoder, attention-driven": lambda: Decoder(ffn="attention_driven", norm="derf"),
    "encoder, context-aware": lambda: Encoder(ffn="context_aware", classes=3),
    "digits, experts of rationals": lambda: digits_network("rational_c", ffn="experts"),
    "conv": ConvNet,
    "conv, dy_relu": lambda: ConvNet("dy_relu"),
}
"""Not what has expm1, of which the legacy exporter has no translation, or our op, which it does not know."""


def _example(model: nn.Module) -> tuple[torch.Tensor, dict[int, str]]:
    """Return an input, and the names of its dynamic axes."""
    of_tokens = isinstance(model, (Decoder, Encoder))
    return (TOKENS, {0: "batch", 1: "tokens"}) if of_tokens else (IMAGE, {0: "batch"})


def _assert_agrees(graph: bytes, model: nn.Module) -> None:
    """Run a graph with other sizes of the dynamic axes than it was exported with."""
    example, axes = _example(model)
    x = torch.cat([example, example[:1].flip(-1)])
    x = x[:, :9] if 1 in axes else x
    options = ort.SessionOptions()
    if (library := cpu.find()) is not None:
        options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(x).numpy(), rtol=0, atol=MAX_ABS)


@pytest.mark.parametrize("name", EXPORTED)
def test_export(name: str) -> None:
    torch.manual_seed(0)
    model = EXPORTED[name]().eval()
    example, axes = _example(model)
    dynamic = {axis: torch.export.Dim(size) for axis, size in axes.items()}
    program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's deprecations of its own code
        converted = torch.onnx.export(program, dynamo=True, verbose=False, custom_translation_table=onnx_translations())
    assert converted is not None
    _assert_agrees(converted.model_proto.SerializeToString(), model)


@pytest.mark.parametrize("name", LEGACY)
def test_legacy_export(name: str) -> None:
    torch.manual_seed(0)
    model = LEGACY[name]().eval()
    example, axes = _example(model)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's deprecations of its own code
        torch.onnx.export(
            model, (example,), file, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes={"x": axes}
        )
    _assert_agrees(file.getvalue(), model)
