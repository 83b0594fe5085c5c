from __future__ import annotations

import numpy as np
import pytest
import torch

from actx.models.characters import load_characters
from actx.models.demo import DATA_FOLDER, EVALUATION, demo_path
from actx.models.trained import TRAINED, Recipe, load_trained, trained_path

MAX_BYTES = 60_000
MIN_ACCURACY = 0.95
ONE_IMAGE = 1 / 450
# The standard library's sources differ between versions of Python.
OTHER_SOURCES = 0.02
OF_IMAGES = [name for name in TRAINED if name != "decoder"]


@pytest.mark.parametrize("name", TRAINED)
def test_file_is_small(name: str) -> None:
    assert trained_path(name).stat().st_size <= MAX_BYTES


def test_every_file_is_listed_under_its_name() -> None:
    assert {trained.recipe.file for trained in TRAINED.values()} == {
        file.name for file in DATA_FOLDER.glob("*.safetensors")
    }
    assert all(trained.recipe.name == name for name, trained in TRAINED.items())


@pytest.mark.parametrize("name", OF_IMAGES)
def test_accuracy_on_the_evaluation_images(name: str) -> None:
    data = np.load(demo_path(EVALUATION))
    with torch.no_grad():
        best = load_trained(name)(torch.from_numpy(data["image"])).argmax(dim=1)
    found, stated = (best.numpy() == data["label"]).mean(), TRAINED[name].accuracy
    assert stated > MIN_ACCURACY
    assert found == pytest.approx(stated, abs=ONE_IMAGE + 1e-4)  # the machine's rounding may tip an image


def test_accuracy_on_characters() -> None:
    tokens = torch.from_numpy(load_characters().evaluation[: 200 * 65]).reshape(200, 65)
    with torch.no_grad():
        best = load_trained("decoder")(tokens[:, :-1]).argmax(dim=-1)
    assert (best == tokens[:, 1:]).double().mean() > TRAINED["decoder"].accuracy - OTHER_SOURCES


def test_trained_parameters_are_not_those_of_the_start() -> None:
    trained = load_trained("digits_prelu_per_channel").state_dict()
    slopes = [value for name, value in trained.items() if name.endswith("activation.weight")]
    assert len(slopes) == 2
    assert all(slope.std() > 0.01 for slope in slopes)


def test_unknown_network_is_an_error() -> None:
    for ask in (load_trained, trained_path):
        with pytest.raises(ValueError, match="no trained network is called 'digits_gelu'; there are "):
            ask("digits_gelu")


def test_recipe_refuses_what_a_network_has_not() -> None:
    with pytest.raises(ValueError, match="conv has no feed-forward layers"):
        Recipe("conv", ffn="gated").build()
