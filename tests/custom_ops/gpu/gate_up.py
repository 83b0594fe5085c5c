"""Compile the kernel `gate_up` with a table, and say what it takes: `python -m tests.custom_ops.gpu.gate_up 80 90`."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np

from actx.custom_ops.gpu.build import compile_kernel
from actx.custom_ops.gpu.launch import gate_up
from actx.custom_ops.gpu.tables import pack
from tests.op_cases import gelu_table

NUMBERS, BRAIN = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


def main() -> None:
    """Print a line for each alignment; float16 takes what bfloat16 does."""
    kernel = gate_up(pack(gelu_table(16, 3), NUMBERS).constexprs())
    for architecture in map(int, sys.argv[1:]):
        for aligned in (True, False):
            found = compile_kernel(kernel, [BRAIN, BRAIN, BRAIN, NUMBERS], architecture, aligned=aligned).description
            taken = f"{found['registers']} registers, {found['shared_bytes']} bytes shared"
            sys.stdout.write(
                f"sm_{architecture} aligned={aligned}: {taken}, {found['local_bytes']} bytes of local memory\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
