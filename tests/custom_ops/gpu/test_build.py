"""Kernels compiled ahead of time, for every GPU; `python -m tests.custom_ops.gpu.matrix` compiles all variants."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from actx.custom_ops.gpu.build import ARCHITECTURES, variants

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("triton", reason="actx was installed without the extra gpu")

# Of the table's and of the spline's kernels one for all GPUs; for two of them every kernel, and what needs many registers.
EVERYWHERE = ("gated-spline32x3-interleaved-1-float16", "gated_lut-int8-int8")
KERNELS = (
    "spline-spline16x3-bfloat16",
    "mix-7-u-bfloat16",
    "polynorm-3-4096-bfloat16",
    "lut-int8-uint8",
    "spline-poly16-u-float32",
    "spline-uneven16x3-float16",
    "channels-float32",
    "polynorm-4-16384-u-float32",
    "polynorm-4-65536-u-bfloat16",
    "gelu-apart-bfloat16",
)


# What once spilled: rows that take all registers of a multiprocessor, access without 16 bytes, and what the assembler would
# spill of its own accord.
SPILLING = ("polynorm-1-4096-float32", "polynorm-4-16384-u-float32", "mix-4-u-float16", "gelu-halves-float16")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "actx.custom_ops.gpu.build", *arguments, "-o", str(folder / "kernels")]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache")}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def built(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    done = run(folder, *arguments)
    assert done.returncode == 0, done.stderr
    files = sorted((folder / "kernels").iterdir())
    assert [str(file) for file in files if file.suffix == ".cubin"] == sorted(done.stdout.split())
    assert all(file.read_bytes().startswith(b"\x7fELF") for file in files if file.suffix == ".cubin")
    return [json.loads(file.read_text()) for file in files if file.suffix == ".json"]


def test_kernels_compile_without_spills(tmp_path: Path) -> None:
    architectures = [word for one in ARCHITECTURES for word in ("--arch", str(one))]
    descriptions = built(tmp_path, *architectures, *EVERYWHERE)
    assert {one["architecture"] for one in descriptions} == set(ARCHITECTURES)
    assert len(descriptions) == len(ARCHITECTURES) * len(EVERYWHERE)
    descriptions += built(tmp_path / "more", "--arch", "87", "--arch", "90", *KERNELS)
    spilled = [one for one in descriptions if one["local_bytes"]]
    assert not spilled, spilled


def test_what_once_spilled_has_the_registers_it_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.custom_ops.gpu.matrix", "80", "90", *SPILLING]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "aligned=" in line]
    assert [line.endswith(" 0 bytes of local memory") for line in lines] == [True] * 2 * 2 * len(SPILLING)


def test_gate_up_compiles_without_spills(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.custom_ops.gpu.gate_up", "87"]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.endswith(" 0 bytes of local memory") for line in done.stdout.splitlines()] == [True] * 2


def test_a_description_says_what_a_launcher_needs(tmp_path: Path) -> None:
    (found,) = built(tmp_path, "--arch", "87", "gated-hardswish-split-0-bfloat16")
    assert found["symbol"] == found["kernel"] == "activation"
    assert (found["threads"], found["tile"], found["aligned"]) == (128, [2, 1024], True)
    pointers, integers = [[name, "*bf16"] for name in "xuy"], [[name, "i32"] for name in ("rows", "cols", "channels")]
    scratch = [["global_scratch", "*i8"], ["profile_scratch", "*i8"]]
    assert found["parameters"] == [*pointers, ["table", "*fp32"], *integers, *scratch]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "99"], "no kernels for compute capability 99; available: 75, 80, 86, 87, 89, 90, 100, 110, 120\n"),
        (["--arch", "90", "spline-none"], "no variant is called spline-none\n"),
    ],
)
def test_what_cannot_be_built_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(tmp_path, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


def test_variants_have_names_of_their_own() -> None:
    names = [name for name, *_ in variants()]
    assert len(set(names)) == len(names)
    assert {*EVERYWHERE, *KERNELS} < set(names)
