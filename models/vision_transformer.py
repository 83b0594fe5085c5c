"""A small vision transformer: pre-norm blocks, GELU by default, a mean over the tokens at the end.

The architecture is that of Dosovitskiy et al., arXiv 2010.11929; the mean in place of a class token is the
simplification of Beyer et al., arXiv 2205.01580.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

ActivationFactory: TypeAlias = Callable[[], nn.Module]


class Attention(nn.Module):
    """Multi-head self-attention over [batch, tokens, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, tokens, width]."""
        _, tokens, width = x.shape
        # Written out: exporters turn scaled_dot_product_attention into a dozen shape computations.
        q, k, v = (self._of_heads(part) for part in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5
        mixed = scores.softmax(dim=-1) @ v
        projected: Tensor = self.out(mixed.transpose(1, 2).reshape(-1, tokens, width))
        return projected

    def _of_heads(self, x: Tensor) -> Tensor:
        """Return [batch, heads, tokens, width of a head]."""
        _, tokens, width = x.shape
        return x.reshape(-1, tokens, self.heads, width // self.heads).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, activation, Linear over the last dimension."""

    def __init__(self, width: int, hidden: int, activation: ActivationFactory) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.activation = activation()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        result: Tensor = self.down(self.activation(self.up(x)))
        return result


class Block(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm and a residual connection."""

    def __init__(self, width: int, heads: int, hidden: int, activation: ActivationFactory) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = FeedForward(width, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        x = x + self.attention(self.attention_norm(x))
        result: Tensor = x + self.ffn(self.ffn_norm(x))
        return result


class VisionTransformer(nn.Module):
    """Classify square images cut into square patches.

    Args:
        activation: makes the activation of one feed-forward layer, such as ``nn.GELU``; called once per block.
        image_size: height and width of the image, pixels.
        patch_size: height and width of a patch, pixels; divides image_size.
        channels: channels of the image.
        classes: number of logits.
        width: features per token.
        depth: number of blocks.
        heads: attention heads; divides width.
        hidden: features between the two linear layers of a feed-forward layer.
    """

    def __init__(
        self,
        activation: ActivationFactory = nn.GELU,
        *,
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
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, activation) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return float32 logits [batch, classes] of float32 images [batch, channels, image_size, image_size]."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits
