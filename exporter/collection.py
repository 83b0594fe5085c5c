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


@contextlib.contextmanager
def only_new_garbage() -> Iterator[None]:
    """Collect once, and until the end look only at objects made from here on: a collection then takes next to no time.

    With PyTorch imported there are a million others, and walking all of them takes a tenth of a second.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
