"""A temporary copy of the original model as ONNX, for the steps that run it."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from actx.exporter.errors import ActxError
from actx.exporter.save import save

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actx.exporter.load import LoadedModel

ORIGINAL = "original.onnx"


@contextlib.contextmanager
def workspace(loaded: LoadedModel) -> Iterator[Path]:
    """Give the path of the original graph as ONNX; it is removed at the end, and errors name the user's file instead."""
    with tempfile.TemporaryDirectory(prefix="actx-") as folder:
        path = Path(folder) / ORIGINAL
        try:
            save({ORIGINAL: loaded.model}, Path(folder))
            yield path
        except ActxError as error:
            error.what = error.what.replace(str(path), str(loaded.source))
            raise
