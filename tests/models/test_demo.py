from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from actx.exporter.errors import UsageError
from actx.models.demo import ARCHIVE, CALIBRATION, EVALUATION, FILES, STATE, demo_path, load_digits_vit
from actx.models.digits import distorted, load_digits
from actx.models.train import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

MEGABYTE = 1_000_000
MIN_ACCURACY = 0.97
# A path of the machine that wrote a file: an absolute path, an environment, a source file.
MACHINE = re.compile(rb"(/[\w.-]+){2,}/|site-packages|\w\.py\b")


def _evaluation() -> tuple[torch.Tensor, NDArray[np.int64]]:
    data = np.load(demo_path(EVALUATION))
    return torch.from_numpy(data["image"]), data["label"]


def _logits(model: Callable[..., Any], image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = model(image=image)
    assert isinstance(logits, torch.Tensor)
    return logits


def _archived() -> Callable[..., Any]:
    return torch.export.load(demo_path(ARCHIVE)).module()


def _payloads(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


@pytest.mark.parametrize("load", [_archived, load_digits_vit])
def test_accuracy_on_the_evaluation_images(load: Callable[[], Callable[..., Any]]) -> None:
    image, label = _evaluation()
    assert (_logits(load(), image).argmax(dim=1).numpy() == label).mean() >= MIN_ACCURACY


def test_archive_and_state_dict_are_the_same_network() -> None:
    image, _ = _evaluation()
    torch.testing.assert_close(_logits(_archived(), image), _logits(load_digits_vit(), image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 3, 450])
def test_archive_takes_any_batch(batch: int) -> None:
    image, _ = _evaluation()
    expected = _logits(load_digits_vit(), image[:batch])
    torch.testing.assert_close(_logits(_archived(), image[:batch]), expected, rtol=0, atol=1e-5)


def test_archive_names_its_input() -> None:
    assert torch.export.load(demo_path(ARCHIVE)).graph_signature.user_inputs == ("image",)


def test_archive_becomes_onnx_with_a_dynamic_batch(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's deprecations of its own code
        program = torch.onnx.export(torch.export.load(demo_path(ARCHIVE)), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "digits.onnx")
    session = ort.InferenceSession(tmp_path / "digits.onnx", providers=["CPUExecutionProvider"])
    image, _ = _evaluation()
    (value,) = session.get_inputs()
    # torch.export does not keep the name of a dimension, only that it is a symbol.
    assert (value.name, type(value.shape[0]), value.shape[1:]) == ("image", str, [1, 8, 8])
    for batch in (1, 7):
        (logits,) = session.run(None, {"image": image[:batch].numpy()})
        np.testing.assert_allclose(logits, _logits(load_digits_vit(), image[:batch]).numpy(), atol=1e-4)


@pytest.mark.parametrize("name", FILES)
def test_file_is_small(name: str) -> None:
    assert demo_path(name).stat().st_size < MEGABYTE


@pytest.mark.parametrize("name", FILES)
def test_file_holds_no_trace_of_the_machine_that_wrote_it(name: str) -> None:
    for member, payload in _payloads(demo_path(name)).items():
        # Random bytes of weights match nothing this long, but a short pattern may occur in them by chance.
        readable = b"\n".join(re.findall(rb"[\x20-\x7e]{6,}", payload))
        found = MACHINE.search(readable)
        assert found is None, (member, found)


def test_archive_asks_for_no_pickle() -> None:
    payloads = _payloads(demo_path(ARCHIVE))
    configs = [json.loads(data) for name, data in payloads.items() if name.endswith("_config.json")]
    assert len(configs) == 2
    assert not any(entry["use_pickle"] for config in configs for entry in config["config"].values())
    # torch falls back to unpickling anything where the example inputs are more than tensors.
    (sample,) = [data for name, data in payloads.items() if "/sample_inputs/" in name]
    assert _loads_without_pickle(sample)


def _loads_without_pickle(payload: bytes) -> bool:
    arguments, keywords = torch.load(io.BytesIO(payload), weights_only=True)
    return arguments == () and set(keywords) == {"image"}


def test_data_is_what_the_documentation_says() -> None:
    calibration, evaluation = np.load(demo_path(CALIBRATION)), np.load(demo_path(EVALUATION))
    assert set(calibration) == {"image"}
    assert set(evaluation) == {"image", "label"}
    assert (calibration["image"].shape, evaluation["image"].shape) == ((256, 1, 8, 8), (450, 1, 8, 8))
    assert evaluation["label"].dtype == np.int64
    for data in (calibration, evaluation):
        assert data["image"].dtype == np.float32
        assert (data["image"].min(), data["image"].max()) == (0.0, 1.0)


def test_calibration_evaluation_and_training_images_are_disjoint() -> None:
    digits = load_digits()
    parts = [
        {image.tobytes() for image in part.image} for part in (digits.train, digits.calibration, digits.evaluation)
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    np.testing.assert_array_equal(np.load(demo_path(EVALUATION))["image"], digits.evaluation.image)
    np.testing.assert_array_equal(np.load(demo_path(CALIBRATION))["image"], digits.calibration.image)


def test_the_network_depends_on_its_activation() -> None:
    image, _ = _evaluation()
    assert not torch.allclose(_logits(load_digits_vit(), image), _logits(load_digits_vit("relu"), image), atol=0.1)


def test_unknown_file_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"available: digits_vit\.pt2"):
        demo_path("../train.py")


def test_import_does_not_import_torch() -> None:
    code = "import sys, actx.models, actx.models.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_training_writes_the_same_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["digits_vit", "--epochs", "1", "--out", str(tmp_path)])
    assert "accuracy on 450 held-out images: 0." in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(FILES)
    for name in (CALIBRATION, EVALUATION):
        new, old = np.load(tmp_path / name), np.load(demo_path(name))
        assert all((new[key] == old[key]).all() for key in old)
    new_state, old_state = (
        torch.load(folder / STATE, weights_only=True) for folder in (tmp_path, demo_path(STATE).parent)
    )
    assert {k: v.shape for k, v in new_state.items()} == {k: v.shape for k, v in old_state.items()}
    image, _ = _evaluation()
    assert _logits(torch.export.load(tmp_path / ARCHIVE).module(), image).shape == (450, 10)


@pytest.mark.parametrize("epochs", ["0", "-1", "many"])
def test_training_refuses_a_senseless_number_of_epochs(epochs: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["digits_vit", "--epochs", epochs, "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_distortion_keeps_the_image_near_its_place() -> None:
    torch.manual_seed(0)
    image = torch.zeros(64, 1, 8, 8)
    image[:, :, 3:5, 3:5] = 1
    moved = distorted(image)
    assert moved.shape == image.shape
    assert not torch.equal(moved, image)
    # A quarter turn or a shift by 2 pixels would move ink outside the middle.
    assert moved[:, :, 2:6, 2:6].sum() > 0.95 * moved.sum()
