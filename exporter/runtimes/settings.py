"""How ONNX Runtime opens a session: plain settings, and the one function that follows them, here and on devices.

It needs Python 3.8 and ONNX Runtime alone: it is sent to devices.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

OPTIMIZED_MODEL = "optimized.onnx"
NO_QDQ = "session.disable_quant_qdq"
_SILENT = 4  # only fatal messages: everything else reaches the user as an error of ours


class LibraryRefusedError(Exception):
    """ONNX Runtime does not take a library of custom ops; the first argument is its path, the second the reason."""


def open_session(
    content: str | bytes, settings: Mapping[str, Any], libraries: Sequence[str] = (), trace: Path | None = None
) -> Any:
    """Open ONNX Runtime's own session.

    Args:
        content: the model's path, or the model.
        settings: `threads`, `optimization` (the name of a GraphOptimizationLevel), `disabled_optimizers`, `providers` and
            `entries`, the session's configuration by key.
        libraries: paths of libraries with custom ops.
        trace: an empty folder for ONNX Runtime's profile and for the optimized graph (without weights), or None.

    Raises:
        LibraryRefusedError: a library cannot be registered.
        Exception: ONNX Runtime's own, where it cannot open the model.
    """
    import onnxruntime as ort  # noqa: PLC0415 - a device may lack it, and is then told so

    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = settings["threads"]
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, settings["optimization"])
    for key, value in settings["entries"].items():
        options.add_session_config_entry(key, value)
    if trace is not None:
        _trace(options, trace)
    for library in libraries:
        register(options, library)
    disabled = list(settings["disabled_optimizers"]) or None
    create = partial(ort.InferenceSession, content, options, list(settings["providers"]), disabled_optimizers=disabled)
    return _create(create, options)


def register(options: Any, library: str) -> None:
    """Register a library of custom ops.

    Raises:
        LibraryRefusedError: it cannot be.
    """
    try:
        options.register_custom_ops_library(library)
    except Exception as error:
        raise LibraryRefusedError(library, str(error)) from error


def _trace(options: Any, trace: Path) -> None:
    options.enable_profiling = True
    options.profile_file_prefix = str(trace / "profile")
    options.optimized_model_filepath = str(trace / OPTIMIZED_MODEL)
    # The optimized graph is wanted, a second copy of the weights is not.
    (trace / "weights").symlink_to(os.devnull)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")


def _create(create: Any, options: Any) -> Any:
    """Create the session. ONNX Runtime 1.31 fuses Q/DQ of float8 into ops of 8-bit integers, and then refuses these."""
    try:
        return create()
    except Exception as error:
        if "float8" not in str(error):
            raise
        options.add_session_config_entry(NO_QDQ, "1")
        return create()
