"""A temporary copy of the original model as ONNX, for the steps that run it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from actx.custom_ops.ops import DOMAIN
from actx.exporter.errors import ActxError
from actx.exporter.lower.decompose import decompose
from actx.exporter.save import save
from actx.exporter.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx_ir as ir

    from actx.exporter.load import LoadedModel

ORIGINAL = "original.onnx"


def portable(model: ir.Model) -> ir.Model:
    """Return the model with standard ops in place of actx nodes: an original must run on any machine."""
    if all(node.domain != DOMAIN for node in model.graph):
        return model
    copy = model.clone()
    decompose(copy)
    return copy


@contextlib.contextmanager
def workspace(loaded: LoadedModel) -> Iterator[Path]:
    """Give the path of the original graph as ONNX; it is removed at the end, and errors name the user's file instead.

    Of weights that are mapped there is no copy: the graph is written beside them, and is removed with them.
    """
    mapped = loaded.weights.path
    with scratch() if mapped is None else contextlib.nullcontext(mapped.parent) as folder:
        path = folder / ORIGINAL
        try:
            model = portable(loaded.model)
            save({ORIGINAL: model}, folder, stored=loaded.weights.stored(model))
            loaded.weights.drop()
            yield path
        except ActxError as error:
            error.what = error.what.replace(str(path), str(loaded.source))
            raise
