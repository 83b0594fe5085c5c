"""The ops of domain `actx` on NVIDIA GPUs: Triton kernels, one description of their launches, and a compiler ahead of time.

`plan` says what is launched for a node; it needs neither Triton nor a GPU. `run` launches it on torch tensors, and
`python -m actx.custom_ops.gpu.build` compiles kernels to files.
"""

from __future__ import annotations

import importlib.util

from actx.custom_ops.gpu.launch import Kernel, Launch, grid, plan, specialise, view

__all__ = ["GpuUnavailable", "Kernel", "Launch", "grid", "plan", "require_triton", "specialise", "view"]


class GpuUnavailable(Exception):  # noqa: N818 - the name states the condition, as KernelsUnavailable does
    """The GPU kernels cannot be compiled here; the text says why."""


def require_triton() -> None:
    """Check that the kernels can be compiled.

    Raises:
        GpuUnavailable: Triton is not installed.
    """
    if importlib.util.find_spec("triton") is None:
        msg = "the GPU kernels need Triton, which is not installed: pip install 'actx[gpu]'"
        raise GpuUnavailable(msg)
