"""Compile every variant of the GPU kernels for every GPU, and say which spill.

    python -m tests.custom_ops.gpu.matrix 87 90

Takes some minutes per GPU; without numbers, all of them.
"""

from __future__ import annotations

import sys

from rich.progress import track

from actx.custom_ops.gpu.build import ARCHITECTURES, compile_kernel, variants


def main() -> int:
    """Compile, and print a line for each variant that takes local memory."""
    spilled = 0
    for architecture in [int(word) for word in sys.argv[1:]] or ARCHITECTURES:
        for name, launch, pointers in track(list(variants()), f"sm_{architecture}"):
            for aligned in (True, False):
                found = compile_kernel(launch.kernel, pointers, architecture, aligned=aligned).description[
                    "local_bytes"
                ]
                spilled += found > 0
                if found:
                    sys.stdout.write(f"{name} sm_{architecture} aligned={aligned}: {found} bytes of local memory\n")
    sys.stdout.write(f"{spilled} variants spill\n")
    return spilled > 0


if __name__ == "__main__":
    raise SystemExit(main())
