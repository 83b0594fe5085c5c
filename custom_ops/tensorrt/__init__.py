"""The ops of domain `actx` in TensorRT: the engine holds the kernel, and running it needs neither Python nor actx.

1. `embed` replaces the actx nodes of a graph by nodes `actx::Kernel2` to `actx::Kernel5`, which hold compiled code.
2. `register` makes these known to TensorRT in this process: its parser then takes the graph, and the builder writes the code
   into the engine. Neither Triton nor a kernel of ours is needed from here on.
3. TensorRT launches the code by itself: a program that runs the engine has nothing to register.

    model = embed(model, 87)
    register()
    ...  # parse and build with the library, as for any graph
"""

from __future__ import annotations

from actx.custom_ops.tensorrt.embed import embed, is_plugin
from actx.custom_ops.tensorrt.kernel_node import KernelNode, kernel_node
from actx.custom_ops.tensorrt.plugin import PluginsUnavailable, register

__all__ = ["KernelNode", "PluginsUnavailable", "embed", "is_plugin", "kernel_node", "register"]
