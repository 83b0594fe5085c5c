"""scikit-learn's bundled digits: 1797 images of 8 x 8 pixels, split once and for all.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (CC BY 4.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

SEED = 20260
EVALUATION_IMAGES = 450
CALIBRATION_IMAGES = 256
# Of the augmentation: pixels, radians, and a share of the size. Chosen by the accuracy on the calibration images.
MAX_SHIFT, MAX_ANGLE, MAX_ZOOM = 0.7, 0.3, 0.15


@dataclass(frozen=True)
class Part:
    """Images float32 [n, 1, 8, 8] with values in [0, 1], and their labels int64 [n]."""

    image: NDArray[np.float32]
    label: NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """The three disjoint parts of the data set."""

    train: Part
    calibration: Part
    evaluation: Part


def load_digits() -> Digits:
    """Split the 1797 images at random, with a fixed seed, into 1091 to train, 256 to calibrate and 450 to evaluate."""
    from sklearn import datasets  # noqa: PLC0415 - only training needs scikit-learn, which is no dependency of the package

    bunch = datasets.load_digits()
    image = (bunch.images[:, None] / 16).astype(np.float32)
    order = np.random.default_rng(SEED).permutation(len(image))
    cuts = [EVALUATION_IMAGES, EVALUATION_IMAGES + CALIBRATION_IMAGES]
    parts = [Part(image[rows], bunch.target[rows].astype(np.int64)) for rows in np.split(order, cuts)]
    return Digits(evaluation=parts[0], calibration=parts[1], train=parts[2])


def distorted(image: Tensor) -> Tensor:
    """Shift, turn and scale each image of [batch, 1, 8, 8] a little, at random, with zeros coming in."""
    batch, _, _, width = image.shape
    centre = (2 * torch.rand(batch, 2) - 1) * MAX_SHIFT * 2 / width
    angle, zoom = (2 * torch.rand(2, batch) - 1) * torch.tensor([[MAX_ANGLE], [MAX_ZOOM]])
    cos, sin = (1 + zoom) * angle.cos(), (1 + zoom) * angle.sin()
    maps = torch.stack([cos, -sin, centre[:, 0], sin, cos, centre[:, 1]], dim=1).reshape(batch, 2, 3)
    grid = functional.affine_grid(maps, list(image.shape), align_corners=False)
    return functional.grid_sample(image, grid, align_corners=False)
