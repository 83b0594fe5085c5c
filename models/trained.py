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
        """The parts that were chosen, such as ``digits_xielu``."""
        return "_".join(part for part in asdict(self).values() if part is not None)

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


TRAINED: Mapping[str, tuple[Recipe, float]] = {}
"""Every trained network: its recipe, and its accuracy on held-out data.

Of ``digits`` and ``conv`` the accuracy is the share of the 450 images of `evaluation.npz` that are told right; of ``decoder``
that of the characters of `EVALUATION_MODULES` that are foretold from the up to 63 before.
"""


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
    return TRAINED[name][0]
