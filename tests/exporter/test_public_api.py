"""The public surface is small, and pinned."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import actx.exporter
from actx.exporter.opening import Session

SIGNATURES = {
    "ActxError": ["what", "note", "remedy"],
    "Form": ["name", "parameters"],
    "check": [
        *("model", "artifact", "data", "inputs", "batch_size", "metric", "max_drift", "logits"),
        *("save_outputs", "trust", "factory", "kernels", "options", "progress"),
    ],
    "compare": ["base", "others", "fail_if"],
    "export": [
        *(
            "model",
            "out",
            "target",
            "quant",
            "calibrator",
            "exclude",
            "form",
            "sites",
            "data",
            "held_out",
            "inputs",
            "batch_size",
            "metric",
            "max_drift",
            "fold",
            "weighted",
            "ffn",
            "ffn_sites",
            "recover",
            "search",
        ),
        *("measure_drift", "measure_latency", "attribute", "runs", "force", "trust", "factory", "opset"),
        *("require_int8_sites", "kernels", "with_kernels", "shapes", "build", "options", "progress"),
    ],
    "build": ["bundle", "target", "shapes", "options", "progress"],
    "fit": ["function", "form", "interval", "fold", "density"],
    "InputSpec": ["name", "dtype", "dims"],
    "RuntimeOptions": [
        *("threads", "optimization", "disabled_optimizers", "libraries", "spin_between_runs", "pin_threads"),
        *("fuse_qdq", "engine", "provider"),
    ],
    "inspect": ["model", "data", "inputs", "batch_size", "trust", "factory", "options"],
    "profile": [
        *("model", "artifact", "data", "inputs", "batch_size", "runs", "trust", "factory", "kernels", "options"),
        "progress",
    ],
    "report": ["bundle", "out", "format"],
    "rewrite": ["module", "args", "forms", "kwargs", "dynamic_shapes", "statistics", "fold"],
    "SearchOptions": ["log", "jobs", "executor", "max_time", "samples"],
    "session": ["bundle", "options", "kernels", "trust"],
}


def test_names() -> None:
    assert actx.exporter.__all__ == sorted(SIGNATURES)


@pytest.mark.parametrize("name", SIGNATURES)
def test_parameters(name: str) -> None:
    function = getattr(actx.exporter, name)
    assert list(inspect.signature(function).parameters) == SIGNATURES[name]
    assert inspect.getdoc(function)


def test_what_is_optional_is_passed_by_name() -> None:
    for name in ("check", "export", "inspect", "profile", "rewrite"):
        parameters = inspect.signature(getattr(actx.exporter, name)).parameters.values()
        for parameter in parameters:
            assert (parameter.default is parameter.empty) == (parameter.kind == parameter.POSITIONAL_OR_KEYWORD)


def test_a_session_runs() -> None:
    assert list(inspect.signature(Session.run).parameters) == ["self", "feeds", "outputs"]


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = actx.exporter.nothing
    assert not hasattr(actx.exporter, "__wrapped__")


def test_public_names_are_the_functions_whatever_was_imported_before() -> None:
    """A module must not share the name of a public function: importing it would put the module in the function's place."""
    modules = {file.stem for file in Path(actx.exporter.__file__).parent.iterdir()}
    assert not modules & set(actx.exporter.__all__)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = """
import sys, actx.exporter
heavy = {"torch", "onnx", "onnxruntime", "numpy", "scipy", "matplotlib", "rich"}
sys.exit(f"imported {heavy & set(sys.modules)}" if heavy & set(sys.modules) else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
