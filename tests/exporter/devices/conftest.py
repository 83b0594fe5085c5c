"""Devices: an ssh server for the session, and a bundle to run on them."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import onnx
import pytest

from actx.exporter import Form, export
from tests.cli.conftest import Actx, actx
from tests.exporter.devices.server import SSHD, Server, serve
from tests.networks import many_sites

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Actx", "actx"]  # the command line as its own tests run it


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    missing = [tool for tool in (SSHD, "ssh", "ssh-keygen") if shutil.which(tool) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"{missing[0]} is not installed")
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    with serve(tmp_path_factory.mktemp("ssh")) as started:
        yield started


@pytest.fixture
def devices(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """The server, with its ssh on the path and its `devices.toml` in the current folder."""
    monkeypatch.setenv("PATH", f"{server.tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    shutil.copy(server.toml, tmp_path / "devices.toml")
    return server


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites in a row: gelu, silu, mish."""
    file = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(many_sites(3), file)
    return file


@pytest.fixture(scope="session")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, with every site as a table, and the library of the kernels."""
    out = tmp_path_factory.mktemp("bundle") / "out"
    form, carried = Form.parse("pwl:16"), (os.uname().machine,)
    return export(model, out, form=form, measure_drift=False, measure_latency=False, with_kernels=carried).path
