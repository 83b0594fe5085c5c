"""The README's commands, run as they stand: the two that set up a fresh machine, and the worked example."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RUN_BY_THIS_TEST = "ACTX_README_TEST"
A_FEW = (
    "tests/custom_ops/test_ops.py",
    "tests/custom_ops/cpu/test_onnxruntime.py",
    "tests/exporter/runtimes/test_openvino.py",
    "tests/exporter/tensorrt/test_library.py",
)


def command(marker: str) -> str:
    """Return the shell block after an HTML comment."""
    found = re.search(rf"<!-- {marker} -->\n```sh\n(.*?)\n```", README.read_text(), re.DOTALL)
    assert found, marker
    return found[1]


def example() -> list[tuple[str, str]]:
    """Return the commands of the worked example and the first line of what each prints."""
    blocks = re.findall(r"```console\n(.*?)\n```", README.read_text(), re.DOTALL)
    steps = [step for block in blocks for step in re.split(r"^\$ ", block, flags=re.MULTILINE) if step]
    return [(step.partition("\n")[0], step.partition("\n")[2].partition("\n")[0]) for step in steps]


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.mark.skipif(
    bool(os.environ.get(RUN_BY_THIS_TEST)), reason="the two commands run already: this is a test of the tests"
)
def test_two_commands_set_up_a_fresh_machine(tmp_path: Path) -> None:
    clone = tmp_path / "actx"
    for name in tracked_files():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name, follow_symlinks=False)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "PYTHON", "VIRTUAL_ENV"))}
    clean["CCACHE_BASEDIR"] = str(clone)  # what was compiled elsewhere of the same files need not be again
    demo = subprocess.run(
        ["bash", "-ec", command("demo")], cwd=clone, env=clean, capture_output=True, text=True, check=False
    )
    assert demo.returncode == 0, demo.stdout[-2000:] + demo.stderr[-2000:]
    for fact in ("accuracy on the labels", "drift (top1)", "latency:", "bundle: actx-demo"):
        assert fact in demo.stdout
    assert (clone / "actx-demo" / "model.onnx").is_file()
    # A few of the tests show that the command installs what they need.
    selected = clean | {RUN_BY_THIS_TEST: "1", "PYTEST_ADDOPTS": " ".join(A_FEW)}
    script = ["bash", "-ec", command("tests")]
    tests = subprocess.run(script, cwd=clone, env=selected, capture_output=True, text=True, check=False)
    assert tests.returncode == 0, tests.stdout[-2000:] + tests.stderr[-2000:]
    assert re.search(r"\d+ passed", tests.stdout)


def test_the_worked_example(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models" / "data", tmp_path / "models" / "data")
    scripts = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}", "COLUMNS": "110"}
    code = 0
    for line, first in example():
        if line == "echo $?":
            assert str(code) == first
            continue
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        code = done.returncode
        assert code in (0, 3), done.stderr
        assert first.rstrip() in [printed.rstrip() for printed in (done.stdout + done.stderr).splitlines()]


def test_the_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "models" / "data", tmp_path / "models" / "data")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code
    names: dict[str, Any] = {}
    exec(code[1], names)
    assert names["logits"].shape == (450, 10)


def test_ci_runs_both_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    lines = re.search(r"^command_of\(\) \{.*?^demo=.*?$", script, re.DOTALL | re.MULTILINE)
    assert lines
    for name in ("demo", "tests"):
        assert f'bash -ec "${name}"' in script
        extracted = subprocess.run(
            ["bash", "-c", f'{lines[0]}\nprintf %s "${name}"'], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert extracted.stdout == command(name)
