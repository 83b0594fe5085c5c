"""The demonstration network that comes with the package: a vision transformer trained on 8 x 8 digits.

Importing this module does not import torch.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from actx.exporter.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from actx.models.ffn import ActivationLike

ARCHIVE = "digits_vit.pt2"
STATE = "digits_vit.state.pt"
CALIBRATION = "calibration.npz"
EVALUATION = "evaluation.npz"
FILES = (ARCHIVE, STATE, CALIBRATION, EVALUATION)
# __file__ would miss the data in an editable install whose import hook maps the folders.
DATA_FOLDER = Path(str(files("actx.models"))) / "data"


def demo_path(name: str) -> Path:
    """Return the path of a file of the demonstration.

    Args:
        name: `digits_vit.pt2`, a torch.export archive: image float32 [batch, 1, 8, 8] with values in [0, 1] to logits
            float32 [batch, 10]; `digits_vit.state.pt`, its state dict; `calibration.npz`, 256 images under `image`;
            `evaluation.npz`, 450 other images with their `label` int64.

    Raises:
        UsageError: there is no such file.
    """
    if name not in FILES:
        raise UsageError(
            f"no demonstration file is called {name!r}",
            note=f"available: {', '.join(FILES)}",
            remedy="Ask for one of these names.",
        )
    return DATA_FOLDER / name


def load_digits_vit(activation: ActivationLike | None = None) -> nn.Module:
    """Return the trained network in evaluation mode.

    Args:
        activation: another without parameters in place of the trained ``gelu``: a name in `actx.models.activations`, or a
            factory.
    """
    import torch  # noqa: PLC0415 - importing the module must stay cheap

    from actx.models.networks import VisionTransformer  # noqa: PLC0415

    model = VisionTransformer(activation)
    model.load_state_dict(torch.load(demo_path(STATE), weights_only=True))
    return model.eval()
