from __future__ import annotations

import sys
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import pytest
import torch

from actx.models.characters import LETTERS, MASK, load_characters, tokens_of
from actx.models.networks import NETWORKS
from actx.models.train import IGNORED, TASKS, accuracy, main, masked, shifted, train
from actx.models.trained import Recipe, load_trained, trained_path

if TYPE_CHECKING:
    from pathlib import Path

    from actx.models.train import Task

STEPS = 3


def _shortened(task: Task) -> Task:
    inputs, label = task.held_out
    return replace(task, steps=STEPS, batches=lambda: islice(task.batches(), STEPS), held_out=(inputs[:9], label[:9]))


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_trains(network: str) -> None:
    task, recipe = _shortened(TASKS[network]()), Recipe(network)
    model = train(recipe, task, epochs=1)
    assert not model.training
    torch.manual_seed(0)
    assert 0 <= accuracy(model, task) <= 1
    again = train(recipe, task, epochs=1)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_script_writes_weights_of_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["digits", "--ffn", "moa", "--epochs", "1", "--out", str(tmp_path / "new")])
    printed = capsys.readouterr().out
    (file,) = (tmp_path / "new").iterdir()
    assert "accuracy on 450 held-out images: 0." in printed
    assert f"written: {file}" in printed
    assert file.name == trained_path("digits_moa").name
    assert file.stat().st_size == trained_path("digits_moa").stat().st_size
    assert load_trained("digits_moa").state_dict().keys() == Recipe("digits", ffn="moa").build().state_dict().keys()


@pytest.mark.parametrize(
    "arguments",
    [
        ["vgg"],
        ["digits", "--activation", "glu"],
        ["conv", "--norm", "rms"],
        ["conv", "--activation", "polynorm"],
        ["digits", "--activation", "mish", "--ffn", "moa"],
    ],
)
def test_the_script_refuses_what_there_is_not(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_characters() -> None:
    assert len(LETTERS) == MASK == 96
    text = "def f(x):\n    return x"
    assert "".join(LETTERS[token] for token in tokens_of(text + "\té€\x7f")) == text
    corpus = load_characters()
    for part in (corpus.train, corpus.evaluation):
        assert len(part) > 50_000
        assert (part.min(), part.max()) == (0, 95)


def test_labels_of_characters() -> None:
    torch.manual_seed(0)
    window = torch.arange(65).expand(40, 65)
    inputs, label = shifted(window)
    assert torch.equal(label, inputs + 1)
    inputs, label = masked(window)
    hidden = inputs == MASK
    assert 0.1 < hidden.double().mean() < 0.2
    assert torch.equal(torch.where(hidden, label, inputs), window[:, :-1])
    assert (label[~hidden] == IGNORED).all()


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SystemExit):
        main(["digits"])
    assert "pip install -c constraints.txt scikit-learn" in capsys.readouterr().err
