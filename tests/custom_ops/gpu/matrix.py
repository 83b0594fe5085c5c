"""Compile every variant of the GPU kernels for every GPU, and say how many registers they take and which spill.

    python -m tests.custom_ops.gpu.matrix 87 90

Takes some minutes per GPU; without numbers, all of them. Writes the rows of a Markdown table, one per GPU.
"""

from __future__ import annotations

import statistics
import sys

from rich.progress import track

from actx.custom_ops.gpu.build import ARCHITECTURES, compile_kernel, variants


def compiled(architecture: int) -> tuple[list[int], int]:
    """Compile for one GPU; return the registers of each kernel, and how many spill, each of which has a line on stderr."""
    registers, spilled = [], 0
    for name, launch, pointers in track(list(variants()), f"sm_{architecture}"):
        for aligned in (True, False):
            found = compile_kernel(launch.kernel, pointers, architecture, aligned=aligned).description
            registers.append(found["registers"])
            if found["local_bytes"]:
                spilled += 1
                line = f"{name} sm_{architecture} aligned={aligned}: {found['local_bytes']} bytes of local memory\n"
                sys.stderr.write(line)
    return registers, spilled


def main() -> int:
    """Print the table; 1 where a kernel spills."""
    spills = 0
    sys.stdout.write("| compute capability | kernels | registers, median | most | spill |\n|---|---|---|---|---|\n")
    for architecture in [int(word) for word in sys.argv[1:]] or ARCHITECTURES:
        registers, spilled = compiled(architecture)
        spills += spilled
        counts = (len(registers), round(statistics.median(registers)), max(registers), spilled)
        sys.stdout.write(f"| {architecture / 10} | {' | '.join(map(str, counts))} |\n")
        sys.stdout.flush()
    return spills > 0


if __name__ == "__main__":
    raise SystemExit(main())
