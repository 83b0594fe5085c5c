"""Names of sites: the scope of the module that a region came from, stable across runs and exporters.

1. Graphs of torch's new exporter carry the module path in metadata (``pkg.torch.onnx.name_scopes``, or ``namespace``).
2. Graphs of the old one carry it in the node name: ``/encoder/layer.0/intermediate/act/Div``.
3. Otherwise the name of the node that gives the region's output, or of that value.
"""

from __future__ import annotations

import ast
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir


def site_names(regions: Iterable[Sequence[ir.Node]]) -> list[str]:
    """Return one unique name per region; the second and later ones of a scope get ``:1``, ``:2`` ..."""
    count: Counter[str] = Counter()
    names: dict[str, None] = {}
    for nodes in regions:
        scope = name = _scope_of(nodes) or nodes[-1].name or str(nodes[-1].outputs[0].name)
        while name in names:
            count[scope] += 1
            name = f"{scope}:{count[scope]}"
        names[name] = None
    return list(names)


def _scope_of(nodes: Sequence[ir.Node]) -> str:
    """Return the deepest module that all nodes belong to, dots between its parts."""
    scopes = [scope for node in nodes if (scope := module_path(node))]
    shared = [level for level, *others in zip(*scopes, strict=False) if all(other == level for other in others)]
    return shared[-1] if shared else ""


def module_path(node: ir.Node) -> list[str]:
    """Return the scopes that contain the node, outermost first, each a full dotted path."""
    listed = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if listed is not None:  # 1. the last entry is the op, the first the root module
        try:
            parts = ast.literal_eval(listed)
        except (ValueError, SyntaxError):
            parts = []
        return [str(part) for part in parts[:-1] if part]
    namespace = node.metadata_props.get("namespace")
    if namespace is not None:
        return [part for entry in namespace.split("/")[:-1] if (part := entry.partition(":")[0].strip())]
    name = node.name or ""
    if name.startswith("/") and name.count("/") > 1:  # 2.
        parts = name.strip("/").split("/")[:-1]
        return [".".join(parts[: i + 1]) for i in range(len(parts))]
    return []
