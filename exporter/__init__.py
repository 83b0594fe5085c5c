"""The pipeline, step by step, and the verbs that run it.

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actx.exporter.building import build
    from actx.exporter.comparing import compare
    from actx.exporter.data import InputSpec
    from actx.exporter.errors import ActxError
    from actx.exporter.fitting import Form, fit
    from actx.exporter.inspection import inspect
    from actx.exporter.measuring import check, profile
    from actx.exporter.opening import session
    from actx.exporter.pipeline import export
    from actx.exporter.reporting import report
    from actx.exporter.rewriting import rewrite
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions
    from actx.exporter.search.search import SearchOptions

__all__ = [
    "ActxError",
    "Form",
    "InputSpec",
    "RuntimeOptions",
    "SearchOptions",
    "build",
    "check",
    "compare",
    "export",
    "fit",
    "inspect",
    "profile",
    "report",
    "rewrite",
    "session",
]

_HOMES = {
    "ActxError": "errors",
    "Form": "fitting",
    "InputSpec": "data",
    "RuntimeOptions": "runtimes.onnxruntime",
    "SearchOptions": "search.search",
    "build": "building",
    "check": "measuring",
    "compare": "comparing",
    "export": "pipeline",
    "fit": "fitting",
    "inspect": "inspection",
    "profile": "measuring",
    "report": "reporting",
    "rewrite": "rewriting",
    "session": "opening",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
