"""A small program as torch.export.save writes it, and the tool that edits such archives."""

# ruff: noqa: PLC0415 - torch is imported by the fixture that needs it
from __future__ import annotations

import warnings
import zipfile
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x float32 [batch, 4] -> linear -> GELU -> linear -> [batch, 3], saved as `model.pt2`."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.GELU(), torch.nn.Linear(5, 3)).eval()
    file = tmp_path_factory.mktemp("archive") / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says about its own code
        program = torch.export.export(module, (torch.zeros(2, 4),), dynamic_shapes=({0: torch.export.Dim("n")},))
        torch.export.save(program, file)
    return file


@pytest.fixture
def edited(archive: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return the function that copies the archive with some records changed, added or left out.

    Names have no leading folder; a value of None leaves the record out, a function maps the old content to the new.
    """

    def edit(changes: Mapping[str, bytes | str | Callable[[bytes], bytes] | None], root: str = "model") -> Path:
        file = tmp_path / "edited.pt2"
        left = dict(changes)
        with zipfile.ZipFile(archive) as source, zipfile.ZipFile(file, "w") as target:
            for info in source.infolist():
                name = info.filename.split("/", 1)[1]
                old = source.read(info)
                change = left.pop(name, old)
                content = change if change is None or isinstance(change, (bytes, str)) else change(old)
                if content is not None:
                    target.writestr(f"{root}/{name}", content)
            for name, added in left.items():
                assert isinstance(added, (bytes, str)), name
                target.writestr(f"{root}/{name}", added)
        return file

    return edit
