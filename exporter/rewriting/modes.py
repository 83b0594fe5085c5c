"""Let `train` and `eval` work on a graph that was traced in evaluation mode.

1. A dropout or batch norm module of torch is called as the module that it is, which also counts its batches.
2. Another op that is told whether the module is being trained (that of F.dropout, that of an LSTM) gets a module that tells it.
3. An op that behaves as in training even in evaluation mode stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from actx.exporter.rewriting.calls import call_instead

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, fx

# What torch's ops call the argument.
_FLAGS = frozenset({"train", "training", "use_input_stats"})


class Moded(nn.Module):
    """An op that is told whether the module is being trained."""

    def __init__(self, op: Callable[..., Tensor], flag: int) -> None:
        super().__init__()
        self._op = op
        self._flag = flag

    def forward(self, *inputs: Any) -> Tensor:
        """Run the op; the argument at `flag` is whether the module is being trained."""
        return self._op(*inputs[: self._flag], self.training, *inputs[self._flag + 1 :])


def restore_modes(root: fx.GraphModule, original: nn.Module) -> None:
    """Replace the ops that depend on the mode, whose modules in `original` are used for 1."""
    for node in list(root.graph.nodes):
        flag = _flag(node)
        if flag is None or node.args[flag] is not False:
            continue
        path = _scope(node)
        module = original.get_submodule(path)
        if isinstance(module, (_DropoutNd, _NormBase)) and type(module).__module__.startswith("torch.nn."):
            call_instead(root, node, path, module, node.args[0])
        else:
            call_instead(root, node, _free_name(root, node.name), Moded(node.target, flag), *node.args)
        root.graph.erase_node(node)


def _flag(node: fx.Node) -> int | None:
    """Return the place of the argument."""
    if not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001 - has no public name
        return None
    names = [argument.name for argument in node.target._schema.arguments[: len(node.args)]]  # noqa: SLF001
    return next((place for place, name in enumerate(names) if name in _FLAGS), None)


def _scope(node: fx.Node) -> str:
    """Return the path of the innermost module that the op is of. Of a module that is called again torch writes ``path@1``."""
    scopes = [scope for scope, _ in node.meta.get("nn_module_stack", {}).values()]
    return scopes[-1].partition("@")[0] if scopes else ""


def _free_name(root: nn.Module, name: str) -> str:
    while hasattr(root, name):
        name += "_"
    return name
