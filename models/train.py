"""Train a reference network on digits or characters, in under two minutes on two cores.

    python -m actx.models.train NETWORK [--activation NAME] [--ffn NAME] [--norm NAME] [--epochs N] [--out DIR]

`digits_vit`, `digits` and `conv` learn scikit-learn's digits, `decoder` and `encoder` the sources of Python's standard
library: the next character, or those that are masked. The seed and the schedule are fixed; the result still depends on the
machine's rounding, which is why the trained files are part of the package. `digits_vit`, without options, is the network of
`actx demo`: it is written as an archive and a state dict, with the data; any other as one safetensors file.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from actx.models.activations import ACTIVATIONS
from actx.models.characters import MASK, load_characters
from actx.models.demo import ARCHIVE, CALIBRATION, EVALUATION, STATE
from actx.models.digits import SEED, distorted, load_digits
from actx.models.ffn import FFNS
from actx.models.networks import NETWORKS
from actx.models.trained import Recipe
from actx.models.transformer import NORMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor
    from torch.export import ExportedProgram

    from actx.models.digits import Digits, Part

BATCH = 64
TOKENS = 64
WINDOW_BATCHES = 100
MASKED_SHARE = 0.15
IGNORED = -100
"""The label of what the loss and the accuracy leave out."""


@dataclass(frozen=True)
class Task:
    """What a network is to learn.

    Attributes:
        steps: batches of an epoch.
        epochs: passes over the data, or over so much of it.
        peak_learning_rate: of the one cycle.
        smoothing: of the labels.
        batches: yields the inputs and the labels of an epoch, drawn by torch's generator.
        held_out: inputs and labels to evaluate on.
        unit: what the accuracy is a share of.
    """

    steps: int
    epochs: int
    peak_learning_rate: float
    smoothing: float
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    held_out: tuple[Tensor, Tensor]
    unit: str


# --- tasks ---


def digits_task(digits: Digits, *, epochs: int, peak_learning_rate: float) -> Task:
    """Return the task of telling digits, the images distorted at random."""
    held_out = (torch.from_numpy(digits.evaluation.image), torch.from_numpy(digits.evaluation.label))
    return Task(
        steps=-(-len(digits.train.label) // BATCH),
        epochs=epochs,
        peak_learning_rate=peak_learning_rate,
        smoothing=0.1,
        batches=partial(_images, digits.train),
        held_out=held_out,
        unit="images",
    )


def characters_task(inputs: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Task:
    """Return a task on windows of 64 characters of the standard library's sources.

    Args:
        inputs: gives the inputs and the labels of windows int64 [batch, 65].
    """
    corpus = load_characters()
    windows = len(corpus.evaluation) // (TOKENS + 1)
    held_out = torch.from_numpy(corpus.evaluation[: windows * (TOKENS + 1)]).reshape(windows, TOKENS + 1)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        evaluation = inputs(held_out)
    return Task(
        steps=WINDOW_BATCHES,
        epochs=30,
        peak_learning_rate=1e-2,
        smoothing=0.0,
        batches=partial(_windows, torch.from_numpy(corpus.train), inputs),
        held_out=evaluation,
        unit="characters",
    )


def shifted(window: Tensor) -> tuple[Tensor, Tensor]:
    """Return all characters but the last, and for each the next."""
    return window[:, :-1], window[:, 1:]


def masked(window: Tensor) -> tuple[Tensor, Tensor]:
    """Return all characters but the last with some masked at random, and the labels of those, with the others ignored."""
    window = window[:, :-1]
    hidden = torch.rand(window.shape) < MASKED_SHARE
    return window.masked_fill(hidden, MASK), window.masked_fill(~hidden, IGNORED)


def _images(part: Part) -> Iterator[tuple[Tensor, Tensor]]:
    image, label = torch.from_numpy(part.image), torch.from_numpy(part.label)
    for rows in torch.split(torch.randperm(len(label)), BATCH):
        yield distorted(image[rows]), label[rows]


def _windows(corpus: Tensor, inputs: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(WINDOW_BATCHES):
        start = torch.randint(len(corpus) - TOKENS, (BATCH, 1))
        yield inputs(corpus[start + torch.arange(TOKENS + 1)])


TASKS: Mapping[str, Callable[[], Task]] = {
    "digits_vit": lambda: digits_task(load_digits(), epochs=200, peak_learning_rate=2e-3),
    "digits": lambda: digits_task(load_digits(), epochs=120, peak_learning_rate=5e-3),
    "conv": lambda: digits_task(load_digits(), epochs=60, peak_learning_rate=5e-3),
    "decoder": lambda: characters_task(shifted),
    "encoder": lambda: characters_task(masked),
}
"""What each network of `NETWORKS` learns."""


# --- training ---


def train(recipe: Recipe, task: Task, epochs: int | None = None) -> nn.Module:
    """Return a network trained with AdamW and one cycle of the learning rate, in evaluation mode.

    Args:
        recipe: what network.
        task: what to learn.
        epochs: instead of the task's.
    """
    epochs = task.epochs if epochs is None else epochs
    torch.manual_seed(SEED)
    model = recipe.build()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.peak_learning_rate, epochs * task.steps)
    for epoch in range(epochs):
        total = 0.0
        for inputs, label in task.batches():
            loss = _loss(model(inputs), label, task.smoothing)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        _progress(f"epoch {epoch + 1}/{epochs}: loss {total / task.steps:.4f}")
    return model.eval()


def _loss(logits: Tensor, label: Tensor, smoothing: float) -> Tensor:
    return functional.cross_entropy(
        logits.flatten(0, -2), label.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
    )


def accuracy(model: nn.Module, task: Task) -> float:
    """Return the share of held-out labels that are those of the largest logits."""
    inputs, label = task.held_out
    with torch.no_grad():
        best = model(inputs).argmax(dim=-1)
    return float((best == label)[label != IGNORED].double().mean())


# --- files ---


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


def write_demonstration(folder: Path, model: nn.Module) -> None:
    """Write the archive, the state dict, and the calibration and evaluation data of `actx demo` to a folder."""
    digits = load_digits()
    torch.export.save(export_archive(model), folder / ARCHIVE)
    torch.save(model.state_dict(), folder / STATE)
    np.savez_compressed(folder / CALIBRATION, image=digits.calibration.image)
    np.savez_compressed(folder / EVALUATION, image=digits.evaluation.image, label=digits.evaluation.label)


def write(folder: Path, recipe: Recipe, model: nn.Module) -> tuple[str, ...]:
    """Write a trained network to a folder: the files of the demonstration, or one of weights. Return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    if recipe == Recipe("digits_vit"):
        write_demonstration(folder, model)
        return ARCHIVE, STATE, CALIBRATION, EVALUATION
    save_file(model.state_dict(), folder / recipe.file)
    return (recipe.file,)


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{line}")
        sys.stderr.flush()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m actx.models.train", description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--activation", choices=ACTIVATIONS, help="of the feed-forward layers or the blocks")
    parser.add_argument("--ffn", choices=FFNS, help="structure of the feed-forward layers")
    parser.add_argument("--norm", choices=NORMS, help="what stands in front of each sub-layer")
    parser.add_argument("--epochs", type=_positive, help="instead of the network's own number")
    parser.add_argument("--out", type=Path, default=Path(), help="folder (default: the current one)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Train, write the files and print the accuracy on held-out data."""
    parser = _parser()
    options = parser.parse_args(arguments)
    recipe = Recipe(options.network, options.activation, options.ffn, options.norm)
    try:
        recipe.build()
        task = TASKS[recipe.network]()
    except ValueError as error:
        parser.error(str(error))
    except ModuleNotFoundError as error:
        parser.error(f"{error}; the digits are scikit-learn's: pip install -c constraints.txt scikit-learn")
    model = train(recipe, task, options.epochs)
    files = write(options.out, recipe, model)
    labels = int((task.held_out[1] != IGNORED).sum())
    sys.stdout.write(f"accuracy on {labels} held-out {task.unit}: {accuracy(model, task):.4f}\n")
    sys.stdout.write(f"written: {', '.join(str(options.out / name) for name in files)}\n")


if __name__ == "__main__":
    main()
