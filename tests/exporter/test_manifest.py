"""`manifest.json` is validated when it is read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from pydantic import ValidationError

from actx.exporter import Form, export
from actx.exporter.errors import ActxError
from actx.exporter.manifest import Manifest
from tests.networks import SPELLINGS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("manifest")
    onnx.save(SPELLINGS["swish_beta_per_channel"].model(20), folder / "model.onnx")
    exported = export(folder / "model.onnx", folder / "out", form=Form.parse("pwl:8"), runs=2)
    content = (exported.path / "manifest.json").read_bytes()
    assert str(folder).encode() not in content  # it tells nothing of the machine
    return content


@pytest.fixture
def file(written: bytes, tmp_path: Path) -> Path:
    (tmp_path / "manifest.json").write_bytes(written)
    return tmp_path / "manifest.json"


def test_reading_gives_what_was_written(file: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(file)
    manifest.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == file.read_bytes()
    assert manifest.version == 2
    assert manifest.sites[0].form == "pwl:8"


def test_it_is_plain_json_without_nan(file: Path) -> None:
    def refuse(text: str) -> Any:
        raise AssertionError(text)

    assert json.loads(file.read_text(), parse_constant=refuse)["version"] == 2


def test_a_manifest_cannot_be_changed(file: Path) -> None:
    manifest = Manifest.read(file)
    with pytest.raises(ValidationError):
        manifest.created = "now"


@pytest.mark.parametrize("content", ["", "{", "null x", "\x00"])
def test_no_json(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(ActxError, match="cannot read"):
        Manifest.read(file)


def test_not_utf8_missing_and_a_folder(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"\xff\xfe{}")
    for place in (file, tmp_path / "missing", tmp_path):
        with pytest.raises(ActxError, match="cannot read"):
            Manifest.read(place)


def test_json_nested_too_deep(file: Path) -> None:
    file.write_text("[" * 100_000)
    with pytest.raises(ActxError, match="cannot read"):
        Manifest.read(file)


@pytest.mark.parametrize("content", ["[]", "1", '"x"', "null", "{}", '{"version": 1}', '{"version": "1"}'])
def test_another_version(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(ActxError, match="manifest version") as caught:
        Manifest.read(file)
    assert "reads 2" in caught.value.note


def _drop(tree: Any) -> str:
    del tree["sites"]
    return "sites"


def _add(tree: Any) -> str:
    tree["extra"] = 1
    return "extra"


def _drop_inside(tree: Any) -> str:
    del tree["sites"][0]["lowering"]
    return "sites.0.lowering"


def _add_inside(tree: Any) -> str:
    tree["sites"][0]["fit"]["extra"] = 1
    return "sites.0.fit.extra"


def _mistype(tree: Any) -> str:
    tree["request"]["fold"] = "perhaps"
    return "request.fold"


def _drop_from_drift(tree: Any) -> str:
    del tree["drift"][0]["outputs"][0]["l2"]
    return "drift.0.outputs.0.l2"


def _add_to_latency(tree: Any) -> str:
    tree["latency"]["artifact"]["extra"] = 1
    return "latency.artifact.extra"


CHANGES = (_drop, _add, _drop_inside, _add_inside, _mistype, _drop_from_drift, _add_to_latency)


@pytest.mark.parametrize("change", CHANGES)
def test_fields_that_are_missing_unknown_or_wrong(file: Path, change: Callable[[Any], str]) -> None:
    tree = json.loads(file.read_text())
    place = change(tree)
    file.write_text(json.dumps(tree))
    with pytest.raises(ActxError, match="not a valid manifest") as caught:
        Manifest.read(file)
    assert caught.value.note.startswith(place)
