"""Small reference networks: a vision transformer, an encoder and a decoder of tokens, and a convolutional network.

Each takes any activation of `ACTIVATIONS` by name, the transformers any feed-forward layer of `FFNS` and any norm of `NORMS`.
All export with a dynamic batch; the encoder and the decoder with a dynamic number of tokens, too.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from actx.models.activations import IMAGE_CHANNELS, make_activation
from actx.models.ffn import MAX_POSITIONS, make_ffn
from actx.models.transformer import Attention, blocks, make_norm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from actx.models.ffn import ActivationLike, FFNFactory


class VisionTransformer(nn.Module):
    """Classify square images cut into square patches: pre-norm blocks, and a mean over the tokens at the end.

    The architecture is that of Dosovitskiy et al., arXiv 2010.11929; the mean in place of a class token is the simplification
    of Beyer et al., arXiv 2205.01580.

    Args:
        activation: of the feed-forward layers, a name or a factory, called once per layer; None for the structure's own.
        ffn: structure of the feed-forward layers, a name or a factory.
        norm: what stands in front of each sub-layer.
        image_size: height and width of the image, pixels.
        patch_size: height and width of a patch, pixels; divides image_size.
        channels: channels of the image.
        classes: number of logits.
        width: features per token.
        depth: number of blocks.
        heads: attention heads; divides width.
        hidden: features of the activation.
    """

    def __init__(
        self,
        activation: ActivationLike | None = None,
        *,
        ffn: str | FFNFactory = "plain",
        norm: str = "layer",
        image_size: int = 8,
        patch_size: int = 2,
        channels: int = 1,
        classes: int = 10,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.position = nn.Parameter(0.02 * torch.randn((image_size // patch_size) ** 2, width))
        make = partial(make_ffn, ffn, hidden=hidden, activation=activation)
        self.blocks = blocks(depth, width, norm, partial(Attention, heads=heads), make)
        self.norm = make_norm(norm, width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return float32 logits [batch, classes] of float32 images [batch, channels, image_size, image_size]."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


class Decoder(nn.Module):
    """Predict the next token: RMSNorm, rotary positions, causal attention and a gated feed-forward layer (arXiv 2302.13971).

    The embedding is the weight of the last layer, too.

    Args:
        activation: of the feed-forward layers, a name or a factory, called once per layer; None for the structure's own.
        ffn: structure of the feed-forward layers, a name or a factory.
        norm: what stands in front of each sub-layer.
        vocabulary: number of tokens there are.
        width: features per token.
        depth: number of blocks.
        heads: attention heads; divides width into even parts.
        hidden: features of the activation.
    """

    def __init__(
        self,
        activation: ActivationLike | None = None,
        *,
        ffn: str | FFNFactory = "gated",
        norm: str = "rms",
        vocabulary: int = 96,
        width: int = 24,
        depth: int = 2,
        heads: int = 2,
        hidden: int = 48,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        make = partial(make_ffn, ffn, hidden=hidden, activation=activation)
        attention = partial(Attention, heads=heads, causal=True, rotary=True)
        self.blocks = blocks(depth, width, norm, attention, make)
        self.norm = make_norm(norm, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return float32 logits [batch, tokens, vocabulary] of int64 tokens [batch, tokens]."""
        return functional.linear(self.norm(self.blocks(self.embedding(tokens))), self.embedding.weight)


class Encoder(nn.Module):
    """Bidirectional attention over tokens with learned positions (arXiv 1810.04805, with norms in front as arXiv 2002.04745).

    Args:
        activation: of the feed-forward layers, a name or a factory, called once per layer; None for the structure's own.
        ffn: structure of the feed-forward layers, a name or a factory.
        norm: what stands in front of each sub-layer.
        vocabulary: number of tokens there are.
        classes: number of logits of a whole text; None for logits over the vocabulary of each token.
        width: features per token.
        depth: number of blocks.
        heads: attention heads; divides width.
        hidden: features of the activation.
    """

    def __init__(
        self,
        activation: ActivationLike | None = None,
        *,
        ffn: str | FFNFactory = "plain",
        norm: str = "layer",
        vocabulary: int = 97,
        classes: int | None = None,
        width: int = 24,
        depth: int = 2,
        heads: int = 2,
        hidden: int = 48,
    ) -> None:
        super().__init__()
        self.pooled = classes is not None
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(MAX_POSITIONS, width)
        make = partial(make_ffn, ffn, hidden=hidden, activation=activation)
        self.blocks = blocks(depth, width, norm, partial(Attention, heads=heads), make)
        self.norm = make_norm(norm, width)
        self.head = nn.Linear(width, vocabulary if classes is None else classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return float32 logits [batch, tokens, vocabulary], or [batch, classes], of int64 tokens [batch, at most 256]."""
        position = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(self.blocks(self.embedding(tokens) + self.position(position)))
        logits: Tensor = self.head(x.mean(dim=1) if self.pooled else x)
        return logits


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate of the image's mean (arXiv 1709.01507; the hard sigmoid is that of arXiv 1905.02244)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1)
        self.activation = nn.ReLU()
        self.expand = nn.Conv2d(channels // reduction, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x [batch, channels, height, width]."""
        mean = x.mean((2, 3), keepdim=True)
        result: Tensor = x * self.gate(self.expand(self.activation(self.squeeze(mean))))
        return result


class InvertedResidual(nn.Module):
    """Pointwise, depthwise, squeeze-and-excite, pointwise, with a residual connection where the shape stays.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        activation: of the two wide convolutions, a name or a factory, called once for each.
        expansion: by how much the layers between are wider.
        stride: of the depthwise convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, activation: ActivationLike, *, expansion: int = 2, stride: int = 1
    ) -> None:
        super().__init__()
        wide = expansion * inputs
        self.residual = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            make_activation(activation, wide, IMAGE_CHANNELS),
            nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            make_activation(activation, wide, IMAGE_CHANNELS),
            SqueezeExcite(wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, outputs, height / stride, width / stride] of [batch, inputs, height, width]."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class ConvNet(nn.Module):
    """A small MobileNetV3 (arXiv 1905.02244): its stem and head have hard swish, its blocks the activation.

    Args:
        activation: a name or a factory, called once per layer; not one that normalises over the last axis.
        channels: channels of the image.
        classes: number of logits.
        width: channels of the first half of the blocks; the second half has twice as many.
        depth: number of blocks at each of the two sizes.
    """

    def __init__(
        self,
        activation: ActivationLike = "prelu_per_channel",
        *,
        channels: int = 1,
        classes: int = 10,
        width: int = 16,
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.Hardswish()
        )
        first = [InvertedResidual(width, width, activation) for _ in range(depth)]
        second = [InvertedResidual(2 * width, 2 * width, activation) for _ in range(depth - 1)]
        self.blocks = nn.Sequential(*first, InvertedResidual(width, 2 * width, activation, stride=2), *second)
        self.hidden = nn.Linear(2 * width, 2 * width)
        self.activation = nn.Hardswish()
        self.head = nn.Linear(2 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return float32 logits [batch, classes] of float32 images [batch, channels, height, width]."""
        pooled = self.blocks(self.stem(image)).mean((2, 3))
        logits: Tensor = self.head(self.activation(self.hidden(pooled)))
        return logits


def digits_network(
    activation: ActivationLike | None = None, *, ffn: str | FFNFactory = "plain", norm: str = "layer"
) -> VisionTransformer:
    """Return a vision transformer as small as one that reads 8 x 8 digits can be: two blocks, width 24, hidden 48.

    Args:
        activation: of the feed-forward layers, a name or a factory; None for the structure's own.
        ffn: structure of the feed-forward layers, a name or a factory.
        norm: what stands in front of each sub-layer.

    Raises:
        ValueError: there is no activation, structure or norm of that name, or they do not go together.
    """
    return VisionTransformer(activation, ffn=ffn, norm=norm, width=24, depth=2, heads=2, hidden=48)


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "digits_vit": VisionTransformer,
    "digits": digits_network,
    "conv": ConvNet,
    "encoder": Encoder,
    "decoder": Decoder,
}
"""Every network: its name, and what makes it; all but ``conv`` take `activation`, `ffn` and `norm`, and it the first."""
