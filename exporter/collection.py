"""Python's cyclic garbage collector, kept still."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect no cycles until the end.

    For two uses: a measurement, which a collection would disturb; and the building of a large graph, which is one web of
    cycles that stays, so that every collection walks all of it to find nothing, and time grows faster than the graph.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
