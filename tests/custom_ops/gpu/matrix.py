"""Compile every variant of the GPU kernels for every GPU, and say how many registers they take and which spill.

    python -m tests.custom_ops.gpu.matrix 87 90
    python -m tests.custom_ops.gpu.matrix 87 'mix-*' 'polynorm-3-16384-*'

Takes some minutes per GPU; without numbers, all of them. Writes the rows of a Markdown table, one per GPU. Patterns choose
variants by name, and each of those has a line on stderr.
"""

from __future__ import annotations

import statistics
import sys
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from rich.progress import track

from actx.custom_ops.gpu.build import ARCHITECTURES, compile_kernel, variants

if TYPE_CHECKING:
    from collections.abc import Sequence


def compiled(architecture: int, patterns: Sequence[str]) -> tuple[list[int], int]:
    """Compile for one GPU; return the registers of each kernel, and how many spill, each of which has a line on stderr."""
    registers, spilled = [], 0
    chosen = [one for one in variants() if not patterns or any(fnmatchcase(one[0], pattern) for pattern in patterns)]
    for name, launch, pointers in track(chosen, f"sm_{architecture}"):
        for aligned in (True, False):
            found = compile_kernel(launch.kernel, pointers, architecture, aligned=aligned).description
            registers.append(found["registers"])
            spilled += found["local_bytes"] > 0
            if patterns or found["local_bytes"]:
                taken = f"{found['registers']} registers, {found['local_bytes']} bytes of local memory"
                sys.stderr.write(f"{name} sm_{architecture} aligned={aligned}: {taken}\n")
    return registers, spilled


def main() -> int:
    """Print the table; 1 where a kernel spills."""
    architectures = [int(word) for word in sys.argv[1:] if word.isdigit()]
    patterns, spills = [word for word in sys.argv[1:] if not word.isdigit()], 0
    sys.stdout.write("| compute capability | kernels | registers, median | most | spill |\n|---|---|---|---|---|\n")
    for architecture in architectures or ARCHITECTURES:
        registers, spilled = compiled(architecture, patterns)
        spills += spilled
        counts = (len(registers), round(statistics.median(registers)), max(registers), spilled)
        sys.stdout.write(f"| {architecture / 10} | {' | '.join(map(str, counts))} |\n")
        sys.stdout.flush()
    return spills > 0


if __name__ == "__main__":
    raise SystemExit(main())
