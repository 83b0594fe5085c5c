"""The parts that the transformers share: attention, rotary positions, norms and blocks.

Written out in elementary ops: exporters turn scaled_dot_product_attention into a dozen shape computations, and the legacy one
knows no rms_norm.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from actx.models.activations import Derf, DyT
from actx.models.ffn import AttentionDrivenFFN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * weight over the last axis (arXiv 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "rms": RMSNorm,
    "dyt": DyT,
    "derf": Derf,
}
"""What stands in front of each sub-layer, made for a number of features: a norm, or an activation in place of one."""


def make_norm(name: str, width: int) -> nn.Module:
    """Return a new norm.

    Raises:
        ValueError: there is none of that name in `NORMS`.
    """
    if name not in NORMS:
        msg = f"no norm is called {name!r}; there are {', '.join(NORMS)}"
        raise ValueError(msg)
    return NORMS[name](width)


class Rotary(nn.Module):
    """Turn pairs of features by angles in proportion to the position (RoPE, arXiv 2104.09864; halves are paired)."""

    frequency: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequency", 10_000.0 ** -(torch.arange(0, width, 2) / width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x [batch, heads, tokens, width]."""
        # Not a table of angles: a slice of one would limit the number of tokens of an export.
        half = torch.arange(x.shape[-2], device=x.device)[:, None] * self.frequency
        angle = torch.cat([half, half], dim=-1)
        first, second = x.chunk(2, dim=-1)
        return x * angle.cos() + torch.cat([-second, first], dim=-1) * angle.sin()


class Attention(nn.Module):
    """Multi-head self-attention over [batch, tokens, width].

    Args:
        width: features per token.
        heads: divides width.
        causal: whether a token sees only itself and those before it.
        rotary: whether queries and keys are turned by their positions.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False, rotary: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.rotary = Rotary(width // heads) if rotary else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, tokens, width]."""
        _, tokens, width = x.shape
        q, k, v = (self._of_heads(part) for part in self.qkv(x).chunk(3, dim=-1))
        scores = self.rotary(q) @ self.rotary(k).transpose(-2, -1) * (width // self.heads) ** -0.5
        if self.causal:
            scores = scores + torch.full((tokens, tokens), -torch.inf, device=x.device).triu(1)
        mixed = scores.softmax(dim=-1) @ v
        projected: Tensor = self.out(mixed.transpose(1, 2).reshape(-1, tokens, width))
        return projected

    def _of_heads(self, x: Tensor) -> Tensor:
        """Return [batch, heads, tokens, width of a head]."""
        _, tokens, width = x.shape
        return x.reshape(-1, tokens, self.heads, width // self.heads).transpose(1, 2)


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and a residual connection.

    Args:
        norm: makes each of the two norms.
        attention: makes the attention.
        ffn: makes the feed-forward layer; one that takes two tensors gets the output of the attention as the second.
    """

    def __init__(
        self, norm: Callable[[], nn.Module], attention: Callable[[], nn.Module], ffn: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention()
        self.ffn_norm = norm()
        self.ffn = ffn()

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x [batch, tokens, width]."""
        attended = self.attention(self.attention_norm(x))
        x = x + attended
        normalised = self.ffn_norm(x)
        second = (attended,) if isinstance(self.ffn, AttentionDrivenFFN) else ()
        result: Tensor = x + self.ffn(normalised, *second)
        return result


def blocks(
    depth: int, width: int, norm: str, attention: Callable[[int], nn.Module], ffn: Callable[[int], nn.Module]
) -> nn.Sequential:
    """Return a chain of new blocks.

    Args:
        depth: number of blocks.
        width: features per token.
        norm: a name in `NORMS`.
        attention: makes an attention for tokens of a width.
        ffn: makes a feed-forward layer for tokens of a width.
    """
    makers = (partial(make_norm, norm, width), partial(attention, width), partial(ffn, width))
    return nn.Sequential(*(Block(*makers) for _ in range(depth)))
