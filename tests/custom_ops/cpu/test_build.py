"""The build: what a library exports and needs, and what happens where tools are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actx.custom_ops import cpu
from actx.custom_ops.cpu.build import BuildError, build
from tests.custom_ops.cpu.conftest import need

SOURCES = Path(__file__).parents[3] / "custom_ops/cpu"
EXPORTED = {
    "RegisterCustomOps",
    "actx_abi_version",
    "actx_isas",
    "actx_kernels",
    "actx_op_create",
    "actx_op_destroy",
    "actx_op_infer",
    "actx_op_kernel",
    "actx_op_run",
}


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def exported(library: Path) -> set[str]:
    need("nm")
    return {line.split()[-1] for line in output_of("nm", "-D", "--defined-only", library).splitlines()}


def test_exports_its_interface_only(library: cpu.Library) -> None:
    assert exported(library.path) == EXPORTED


def test_needs_no_cpp_library(library: cpu.Library) -> None:
    need("readelf")
    needed = [line for line in output_of("readelf", "-d", library.path).splitlines() if "NEEDED" in line]
    assert needed
    assert not [line for line in needed if "stdc++" in line or "libgcc" in line]


def test_the_cross_built_library_is_refused_here_by_name(neon_library: Path) -> None:
    assert exported(neon_library) == EXPORTED
    if os.uname().machine != "aarch64":
        with pytest.raises(cpu.KernelsUnavailable, match="it is for aarch64, this is x86_64"):
            cpu.load(neon_library)


def test_refuses_an_unknown_architecture(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no kernels for architecture 'vax'; available: x86_64, aarch64"):
        build("vax", tmp_path)


def test_refuses_an_unknown_instruction_set(tmp_path: Path) -> None:
    need("c++", "cmake")
    with pytest.raises(BuildError, match=r"no kernels for the instruction set 'mmx' of \w+; available: "):
        build(os.uname().machine, tmp_path, isas=["mmx"])


def test_says_which_compiler_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    other = "x86_64" if os.uname().machine == "aarch64" else "aarch64"
    with pytest.raises(
        BuildError, match=r"linux-gnu-g\+\+ is not installed; on Debian and Ubuntu it is in the package g\+\+-"
    ):
        build(other, tmp_path)
    with pytest.raises(BuildError, match="cmake is not installed"):
        build(os.uname().machine, tmp_path)


def test_the_command_prints_one_line_where_it_cannot_build(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "actx.custom_ops.cpu.build", "--arch", "aarch64", "-o", str(tmp_path)]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def configure(path: Path, build_folder: Path) -> subprocess.CompletedProcess[str]:
    """Configure with no other programs than those in `path` and CMake's own."""
    need("cmake", "make")
    for tool in ("make", "uname", "cat"):
        if (found := shutil.which(tool)) and not (path / tool).exists():
            (path / tool).symlink_to(found)
    cmake = shutil.which("cmake")
    assert cmake is not None
    command = [cmake, "-S", str(SOURCES), "-B", str(build_folder), "-G", "Unix Makefiles"]
    # As a build from Python does, with the compiler that Python was built with.
    return subprocess.run(command, env={"PATH": str(path), "CXX": "g++"}, capture_output=True, text=True, check=False)


def test_without_a_compiler_it_builds_nothing_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = configure(tmp_path / "bin", tmp_path / "build")
    assert done.returncode == 0, done.stderr
    assert "No C++ compiler was found" in done.stderr
    subprocess.run(["cmake", "--build", str(tmp_path / "build")], check=True)
    subprocess.run(["cmake", "--install", str(tmp_path / "build"), "--prefix", str(tmp_path / "to")], check=True)
    assert not list(tmp_path.rglob("*.so"))


def test_a_compiler_that_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin/c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    done = configure(tmp_path / "bin", tmp_path / "build")
    assert done.returncode != 0
    assert "is not able to compile a simple test program" in done.stderr
