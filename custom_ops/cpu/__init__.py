"""The CPU kernels from Python: the ops of domain `actx` on numpy arrays, by the same library that ONNX Runtime registers."""

from actx.custom_ops.cpu.library import Kernel, KernelsUnavailable, Library, Operator, find, load

__all__ = ["Kernel", "KernelsUnavailable", "Library", "Operator", "find", "load"]
