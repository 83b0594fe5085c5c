"""The small networks that every target with a builder of its own must take, each with its data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx

from tests.networks import SPELLINGS, WIDTH

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.networks import Gate


class Small(NamedTuple):
    """Linear, activation, linear on [batch, tokens, width]; the form that it is exported in."""

    spelling: str
    form: str | None
    gated: Gate | None = None


SMALL: Mapping[str, Small] = {
    "mish": Small("mish_op", None),
    "16-segment pwl": Small("gelu_op", "pwl:16"),
    "gated silu": Small("silu", None, "matmul"),
    "hardswish": Small("gelu_op", "hardswish"),
}


def write_small(small: Small, folder: Path, batches: int = 4) -> tuple[Path, Path]:
    """Write a network and its data, batches of several sizes and lengths; return both places."""
    model, data = folder / "model.onnx", folder / "data"
    onnx.save(SPELLINGS[small.spelling].model(20, gated=small.gated), model)
    data.mkdir()
    rng = np.random.default_rng(0)
    for i in range(batches):
        x = rng.standard_normal((2 + 2 * i, 5 + 3 * i, WIDTH), np.float32)
        np.savez(data / f"{i}.npz", x=x)
    return model, data


def write_batches(batches: list[dict[str, Any]], folder: Path) -> Path:
    """Write batches as a folder of files and return it."""
    for i, batch in enumerate(batches):
        np.savez(folder / f"{i}.npz", **batch)
    return folder
