"""Build the library of CPU kernels with CMake, for this machine or for another.

    python -m actx.custom_ops.cpu.build --arch aarch64 -o kernels

Another architecture needs its compiler (on Debian: apt install g++-aarch64-linux-gnu). The sources come with the package.
"""

from __future__ import annotations

import argparse
import importlib.resources
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from actx.custom_ops.cpu.elf import ARCHITECTURES
from actx.custom_ops.cpu.library import LIBRARY_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

_LAST_LINES = 20


class BuildError(Exception):
    """A tool is missing, or the build failed; the text says which, or how."""


def build(
    architecture: str,
    folder: Path | str,
    *,
    isas: Sequence[str] | None = None,
    sanitize: bool = False,
    gpu_provider: str = "CUDAExecutionProvider",
) -> Path:
    """Build the library and return its path.

    Args:
        architecture: "x86_64" or "aarch64".
        folder: where to put it; made if it is not there.
        isas: the instruction sets that get kernels, of "avx2", "avx512" and "avx512vbmi", or "neon"; "portable" is always
            among them. None for all; fewer make a smaller library.
        sanitize: whether to check addresses and undefined behaviour at run time. A program that loads such a library
            must be built with ``-fsanitize=address,undefined`` itself.
        gpu_provider: ONNX Runtime's provider that has the kernels of a graph; tests name the CPU's, over a stand-in for CUDA.

    Raises:
        BuildError: CMake or the compiler is missing, the architecture has no such instruction set, or the build fails.
    """
    target = Path(folder)
    options = [
        *_compiler_options(architecture),
        f"-DACTX_SANITIZE={'ON' if sanitize else 'OFF'}",
        f"-DACTX_CUDA_PROVIDER={gpu_provider}",
        f"-DACTX_ISAS={'all' if isas is None else ';'.join(isa for isa in isas if isa != 'portable')}",
    ]
    with (
        importlib.resources.as_file(importlib.resources.files("actx.custom_ops.cpu") / "CMakeLists.txt") as lists,
        tempfile.TemporaryDirectory() as scratch,
    ):
        _run("cmake", "-S", str(lists.parent), "-B", scratch, *options)
        _run("cmake", "--build", scratch, "--parallel")
        target.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(Path(scratch) / LIBRARY_NAME, target / LIBRARY_NAME))


def _compiler_options(architecture: str) -> list[str]:
    if architecture not in ARCHITECTURES.values():
        msg = f"no kernels for architecture {architecture!r}; available: {', '.join(ARCHITECTURES.values())}"
        raise BuildError(msg)
    if architecture == platform.machine():
        return []
    compiler = f"{architecture.replace('_', '-')}-linux-gnu-g++"
    if shutil.which(compiler) is None:
        package = f"g++-{architecture.replace('_', '-')}-linux-gnu"
        msg = f"{compiler} is not installed; on Debian and Ubuntu it is in the package {package}"
        raise BuildError(msg)
    return [
        "-DCMAKE_SYSTEM_NAME=Linux",
        f"-DCMAKE_SYSTEM_PROCESSOR={architecture}",
        f"-DCMAKE_CXX_COMPILER={compiler}",
    ]


def _run(*command: str) -> None:
    if shutil.which(command[0]) is None:
        msg = f"{command[0]} is not installed"
        raise BuildError(msg)
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()
        msg = f"{' '.join(command[:2])} failed:\n" + "\n".join(lines[-_LAST_LINES:])
        raise BuildError(msg)


def main() -> int:
    """Build from the command line."""
    parser = argparse.ArgumentParser(prog="python -m actx.custom_ops.cpu.build", description="Build the CPU kernels.")
    parser.add_argument("--arch", default=platform.machine(), choices=ARCHITECTURES.values(), help="the architecture")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="FOLDER", help="where to put the library")
    parser.add_argument(
        "--isa", action="append", metavar="NAME", help="one that gets kernels; repeatable (default: all)"
    )
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UndefinedBehaviorSanitizer")
    arguments = parser.parse_args()
    try:
        path = build(arguments.arch, arguments.output, isas=arguments.isa, sanitize=arguments.sanitize)
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
