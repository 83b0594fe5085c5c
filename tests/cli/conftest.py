"""Run the command line, in this process or as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import onnx
import pytest

from actx.cli.main import run
from tests.networks import many_sites

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Result:
    """What a command gave."""

    code: int
    out: str
    err: str


class Actx(Protocol):
    def __call__(self, *arguments: object) -> Result: ...


@pytest.fixture
def actx(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Actx:
    """Return the function that runs `actx` in this process."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["actx", *map(str, arguments)])
        code = run()
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


def process(*arguments: object, cwd: Path | None = None) -> Result:
    """Run `actx` as a process of its own."""
    command = [sys.executable, "-m", "actx.cli.main", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three sites in a row: gelu, silu, mish."""
    file = tmp_path / "model.onnx"
    onnx.save(many_sites(3), file)
    return file
