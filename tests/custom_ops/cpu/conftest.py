"""The library of CPU kernels in every way that it is run: in this process, with sanitizers, and on the other architecture."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from actx.custom_ops import cpu
from actx.custom_ops.cpu.build import build
from actx.custom_ops.cpu.library import LIBRARY_NAME
from tests.conftest import written_once
from tests.custom_ops.cpu.process import Process, build_runner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEON_COMPILER = "aarch64-linux-gnu-g++"


def need(*programs: str) -> None:
    """Skip where a program is missing, but where all of them were installed for this."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"{missing[0]} is not installed")
    if missing:
        pytest.skip(f"{missing[0]} is not installed")


@pytest.fixture(scope="session")
def library() -> cpu.Library:
    """The installed library."""
    need("c++")
    return cpu.load()


def sanitized_library(factory: pytest.TempPathFactory) -> Path:
    """The library with AddressSanitizer and UndefinedBehaviorSanitizer; kernels of graphs are for the CPU's provider.

    It has the instruction sets of this machine alone.
    """
    need("c++", "cmake")
    asked: dict[str, Any] = {"isas": cpu.load().isas, "sanitize": True, "gpu_provider": "CPUExecutionProvider"}
    folder = written_once(factory, "sanitized", lambda folder: build(platform.machine(), folder, **asked))
    return folder / LIBRARY_NAME


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The library with sanitizers: what they find ends the process."""
    library = sanitized_library(tmp_path_factory)
    runner = build_runner("c++", tmp_path_factory.mktemp("sanitized"), "-fsanitize=address,undefined")
    with Process(runner, library) as process:
        yield process


@pytest.fixture(scope="session")
def neon_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library for 64-bit Arm."""
    need("cmake", NEON_COMPILER)
    return written_once(tmp_path_factory, "neon", lambda folder: build("aarch64", folder)) / LIBRARY_NAME


@pytest.fixture(scope="session")
def neon(neon_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The library for 64-bit Arm, run by an emulator where this machine is another."""
    emulator = [] if platform.machine() == "aarch64" else ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
    need(*emulator[:1])
    runner = build_runner(NEON_COMPILER, tmp_path_factory.mktemp("neon"))
    with Process(*emulator, runner, neon_library) as process:
        yield process


@pytest.fixture(scope="session")
def onnxruntime_headers() -> str:
    """The folder of a real onnxruntime_c_api.h: ONNX_RUNTIME_INCLUDE, or where Debian installs it."""
    folder = os.environ.get("ONNX_RUNTIME_INCLUDE", "/usr/include/onnxruntime")
    if not os.path.exists(f"{folder}/onnxruntime_c_api.h"):  # noqa: PTH110
        pytest.skip("ONNX Runtime's headers are not installed: set ONNX_RUNTIME_INCLUDE to their folder")
    need("c++")
    return folder


def compiles(*arguments: str) -> None:
    subprocess.run(["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *arguments], check=True)
