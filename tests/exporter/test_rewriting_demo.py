"""The demonstration network: rewritten, fine-tuned, exported again."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.nn import functional

from actx.exporter import Form, export, rewrite, session
from actx.models.demo import EVALUATION, demo_path, load_digits_vit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

SITES = [f"blocks.{i}.ffn.activation" for i in range(3)]
BATCHES = ({0: torch.export.Dim.DYNAMIC},)
TRAINED = 256  # of the 450 labelled images


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    with np.load(demo_path(EVALUATION)) as data:
        return torch.from_numpy(data["image"]), torch.from_numpy(data["label"])


def bundle_logits(model: Path, out: Path, forms: Mapping[str, Form], images: Tensor) -> Tensor:
    """Export and run the bundle; check the sites on the way. A slope is folded, of a rewritten module too."""
    made = export(model, out, sites=forms, measure_drift=False, measure_latency=False)
    assert {site.name: site.form for site in made.manifest.sites} == {name: str(form) for name, form in forms.items()}
    assert all(site.lowering == "HardSwish" for site in made.manifest.sites if site.form == "hardswish")
    (logits,) = session(out).run({"image": images.numpy()}).values()
    return torch.from_numpy(logits)


@pytest.mark.parametrize("names", [("relu", "poly:4", "keep"), ("hardswish", "pwl:16", "spline:8x2")])
def test_the_module_gives_what_the_bundle_gives(
    names: tuple[str, ...], digits: tuple[Tensor, Tensor], demo_onnx: Path, tmp_path: Path
) -> None:
    images = digits[0][:64]
    forms = {site: Form.parse(name) for site, name in zip(SITES, names, strict=True)}
    rewritten = rewrite(load_digits_vit(), (images[:2],), forms)
    expected = bundle_logits(demo_onnx, tmp_path / "out", forms, images)
    with torch.no_grad():
        assert (rewritten(images) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", [pytest.param("pwl:16", marks=pytest.mark.slow), "hardswish"])
def test_fine_tuning(name: str, digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    images, labels = digits
    form = Form.parse(name)
    model = rewrite(load_digits_vit(), (images[:2],), form)
    before = loss(model, images[:TRAINED], labels[:TRAINED])
    correct = accuracy(model, images[TRAINED:], labels[TRAINED:])
    train_one_epoch(model, images[:TRAINED], labels[:TRAINED])
    assert loss(model, images[:TRAINED], labels[:TRAINED]) < before
    assert accuracy(model, images[TRAINED:], labels[TRAINED:]) >= correct - 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says about its own code
        program = torch.export.export(model.eval(), (images[:2],), dynamic_shapes=BATCHES)
        torch.export.save(program, tmp_path / "tuned.pt2")
    logits = bundle_logits(tmp_path / "tuned.pt2", tmp_path / "out", dict.fromkeys(SITES, form), images)
    with torch.no_grad():
        assert (model(images) - logits).abs().max() <= 1e-4


def train_one_epoch(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)
    for image, label in zip(images.split(32), labels.split(32), strict=True):
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(image), label))
        optimizer.step()


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float(functional.cross_entropy(model.eval()(images), labels))


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model.eval()(images).argmax(dim=1) == labels).double().mean())
