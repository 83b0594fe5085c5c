"""Small trained networks that come with the package, one file of at most 60 kB each, and how each was made.

`actx.models.train` trains them, and many more; the files are part of the package because the result of a training depends on
the machine's rounding.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from actx.models.demo import DATA_FOLDER
from actx.models.networks import NETWORKS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn


@dataclass(frozen=True)
class Recipe:
    """What network to make; None leaves the choice to the network.

    Attributes:
        network: a name in `NETWORKS`.
        activation: a name in `ACTIVATIONS`.
        ffn: a name in `FFNS`.
        norm: a name in `NORMS`.
    """

    network: str
    activation: str | None = None
    ffn: str | None = None
    norm: str | None = None

    @property
    def name(self) -> str:
        """The parts that were chosen, such as ``digits_xielu`` or, with an activation for a norm, ``digits_dyt_norm``."""
        norm = None if self.norm is None else f"{self.norm}_norm"
        return "_".join(part for part in (self.network, self.activation, self.ffn, norm) if part is not None)

    @property
    def file(self) -> str:
        """The name of the file with the weights, a safetensors file of float32 tensors."""
        return f"{self.name}.safetensors"

    def build(self) -> nn.Module:
        """Return a new network, to be trained.

        Raises:
            ValueError: the network has no such part, or there is none of such a name.
        """
        chosen = {name: part for name, part in asdict(self).items() if part is not None}
        del chosen["network"]
        if self.network == "conv" and not {"ffn", "norm"}.isdisjoint(chosen):
            msg = "conv has no feed-forward layers, and its norms are part of it"
            raise ValueError(msg)
        return NETWORKS[self.network](**chosen)


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        recipe: what network it is.
        accuracy: on held-out data. Of ``digits`` and ``conv`` it is the share of the 450 images of `evaluation.npz` that are
            told right; of ``decoder`` that of the characters of `EVALUATION_MODULES` that are foretold, in windows of 64.
        epochs: how long it was trained, where that is not the network's own number.
    """

    recipe: Recipe
    accuracy: float
    epochs: int | None = None


_TRAINED = (
    Trained(Recipe("digits", "prelu_per_channel"), 0.9667),
    Trained(Recipe("digits", "swish"), 0.9756),
    Trained(Recipe("digits", "rational_a"), 0.9911),
    Trained(Recipe("digits", "apl"), 0.9733),
    Trained(Recipe("digits", "polyrelu"), 0.9667),
    Trained(Recipe("digits", "xielu"), 0.9756),
    Trained(Recipe("digits", "dyt"), 0.9622),
    Trained(Recipe("digits", "la"), 0.9800),
    Trained(Recipe("digits", "polynorm"), 0.9800),
    Trained(Recipe("digits", ffn="gated"), 0.9733),
    Trained(Recipe("digits", ffn="moa"), 0.9756),
    Trained(Recipe("digits", norm="dyt"), 0.9578, epochs=240),
    Trained(Recipe("conv"), 0.9756),
    Trained(Recipe("decoder"), 0.5815),
)

TRAINED: Mapping[str, Trained] = {trained.recipe.name: trained for trained in _TRAINED}
"""Every trained network by its name."""


def trained_path(name: str) -> Path:
    """Return the path of the weights of a trained network.

    Raises:
        ValueError: there is no such network in `TRAINED`.
    """
    return DATA_FOLDER / _recipe(name).file


def load_trained(name: str) -> nn.Module:
    """Return a trained network in evaluation mode.

    Args:
        name: one of `TRAINED`. ``digits...`` and ``conv`` take float32 images [batch, 1, 8, 8] with values in [0, 1] to
            logits [batch, 10]; ``decoder`` takes int64 tokens [batch, tokens], those of `actx.models.characters`, to logits
            [batch, tokens, 96].

    Raises:
        ValueError: there is no such network.
    """
    model = _recipe(name).build()
    model.load_state_dict(load_file(trained_path(name)))
    return model.eval()


def _recipe(name: str) -> Recipe:
    if name not in TRAINED:
        msg = f"no trained network is called {name!r}; there are {', '.join(TRAINED)}"
        raise ValueError(msg)
    return TRAINED[name].recipe
