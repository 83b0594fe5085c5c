"""Put a module into a graph of torch ops, in the place of an op and under a name of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import fx


def call_instead(root: fx.GraphModule, old: fx.Node, path: str, module: nn.Module, *inputs: Any) -> None:
    """Let the module, called with these inputs, give what `old` gave, and be the one at this path. `old` stays, unused."""
    _put(root, path, module)
    with root.graph.inserting_before(old):
        new = root.graph.call_module(path, inputs)
    new.meta["val"] = old.meta["val"]
    old.replace_all_uses_with(new)


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Make the module the one at the path. The weights and modules that are there already become its own."""
    parent = root
    *scopes, name = path.split(".")
    for scope in scopes:
        if not hasattr(parent, scope):
            parent.add_module(scope, nn.Module())
        parent = getattr(parent, scope)
    old = getattr(parent, name, None)
    if old is not None and old is not module:
        _move(old, module)
    parent.add_module(name, module)


def _move(old: nn.Module, new: nn.Module) -> None:
    for name, child in old.named_children():
        new.add_module(name, child)
    for name, parameter in old.named_parameters(recurse=False, remove_duplicate=False):
        new.register_parameter(name, parameter)
    state = old.state_dict()
    for name, buffer in old.named_buffers(recurse=False, remove_duplicate=False):
        new.register_buffer(name, buffer, persistent=name in state)
    for name, value in vars(old).items():
        if isinstance(value, torch.Tensor):
            setattr(new, name, value)
