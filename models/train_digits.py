"""Train the demonstration network on scikit-learn's bundled digits and write it with its data.

    python -m actx.models.train_digits [--out DIR] [--epochs N]

Source of the images: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository (CC BY 4.0): 1797 images of 8 x 8 pixels. The split, the seed and the schedule are fixed; the result still
depends on the machine's rounding, which is why the trained files are part of the package.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from actx.models.demo import ARCHIVE, CALIBRATION, DATA_FOLDER, EVALUATION, STATE
from actx.models.vision_transformer import VisionTransformer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.export import ExportedProgram

SEED = 20260
EVALUATION_IMAGES = 450
CALIBRATION_IMAGES = 256
EPOCHS = 200
BATCH = 64
PEAK_LEARNING_RATE = 2e-3
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


def train(part: Part, epochs: int) -> VisionTransformer:
    """Return a network trained with AdamW, one cycle of the learning rate and label smoothing."""
    torch.manual_seed(SEED)
    model = VisionTransformer()
    image, label = torch.from_numpy(part.image), torch.from_numpy(part.label)
    steps = -(-len(label) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, epochs * steps)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.split(torch.randperm(len(label)), BATCH):
            loss = functional.cross_entropy(model(distorted(image[rows])), label[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        _progress(f"epoch {epoch + 1}/{epochs}: loss {total / len(label):.4f}")
    return model.eval()


def accuracy(model: nn.Module, part: Part) -> float:
    """Return the share of images whose largest logit is the label's."""
    with torch.no_grad():
        best = model(torch.from_numpy(part.image)).argmax(dim=1)
    return float((best.numpy() == part.label).mean())


def export_archive(model: nn.Module) -> ExportedProgram:
    """Export with a dynamic batch dimension, without the traces of the machine that exported it."""
    # An example of batch 1 would be specialised to 1.
    example = torch.zeros(2, 1, 8, 8)
    shapes = {"image": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (), {"image": example}, dynamic_shapes=shapes)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # absolute paths of the source files
    return program


def write(folder: Path, model: VisionTransformer, digits: Digits) -> None:
    """Write the archive, the state dict, and the calibration and evaluation data to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(export_archive(model), folder / ARCHIVE)
    torch.save(model.state_dict(), folder / STATE)
    np.savez_compressed(folder / CALIBRATION, image=digits.calibration.image)
    np.savez_compressed(folder / EVALUATION, image=digits.evaluation.image, label=digits.evaluation.label)


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{line}")
        sys.stderr.flush()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main(arguments: list[str] | None = None) -> None:
    """Train, write the files and print the accuracy on the evaluation images."""
    parser = argparse.ArgumentParser(prog="python -m actx.models.train_digits", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DATA_FOLDER, help="folder (default: the package's own data)")
    parser.add_argument(
        "--epochs", type=_positive, default=EPOCHS, help="passes over the images (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    digits = load_digits()
    model = train(digits.train, options.epochs)
    write(options.out, model, digits)
    sys.stdout.write(f"accuracy on {EVALUATION_IMAGES} held-out images: {accuracy(model, digits.evaluation):.4f}\n")


if __name__ == "__main__":
    main()
