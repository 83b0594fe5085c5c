"""The C++ example of the documentation: compiled against real headers, and run with the runtime that Python has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
import pytest

from actx.exporter import Form, export, session
from actx.models.demo import DATA_FOLDER

if TYPE_CHECKING:
    from actx.custom_ops import cpu

SOURCE = Path(__file__).parents[3] / "docs/cpp/run_bundle.cc"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "out"
    model = DATA_FOLDER / "digits_vit.pt2"
    export(model, out, form=Form.parse("spline:16x3"), measure_drift=False, measure_latency=False)
    return out


@pytest.fixture(scope="module")
def program(onnxruntime_headers: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel has the runtime's shared library, under its full version."""
    folder = tmp_path_factory.mktemp("cpp")
    runtime = next((Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if runtime is None:
        pytest.skip("this ONNX Runtime has no shared library of its own")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        shutil.copy(runtime, folder / name)
    command = [
        "c++",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        f"-I{onnxruntime_headers}",
        SOURCE,
        f"-L{folder}",
        "-lonnxruntime",
    ]
    subprocess.run([*command, f"-Wl,-rpath,{folder}", "-o", folder / "run_bundle"], check=True)
    return folder / "run_bundle"


@pytest.mark.parametrize("kernels", [True, False])
def test_gives_what_python_gets(
    program: Path, bundle: Path, library: cpu.Library, tmp_path: Path, kernels: bool
) -> None:
    images = np.load(DATA_FOLDER / "evaluation.npz")["image"][:5]
    images.tofile(tmp_path / "images")
    path = library.path if kernels else tmp_path / "nowhere.so"
    done = subprocess.run([program, bundle, path, tmp_path / "images"], capture_output=True, text=True, check=True)
    assert ("running the portable graph" in done.stderr) == (not kernels)
    (expected,) = session(bundle, kernels=kernels).run({"image": images}).values()
    # Six significant digits are printed.
    np.testing.assert_allclose(np.loadtxt(done.stdout.splitlines()), expected, rtol=1e-5, atol=1e-5)


def test_says_what_is_wrong(program: Path, library: cpu.Library, tmp_path: Path) -> None:
    done = subprocess.run([program, tmp_path, library.path, "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "model.onnx" in done.stderr
