"""Made-up manifests and reports, as the verbs write them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RUNTIME = {"runtime": "onnxruntime", "cpu": "Xeon", "cores": 4, "threads_used": 2}


def times(p50: float) -> dict[str, Any]:
    values = {"min": p50 * 0.9, "p50": p50, "p90": p50 * 1.1, "p95": p50 * 1.2, "p99": p50 * 1.5, "mean": p50}
    return {"runs": 100, **values, "throughput": 1000 / p50}


def latency(
    p50: float, original: float = 2.0, *, again: Mapping[str, float] | None = None, noise: float = 1.005,
    interval: tuple[float, float] = (1.0, 1.02), verdict: str = "no difference", peak_memory: int | None = 2**24,
    **other: Any,
) -> dict[str, Any]:  # fmt: skip
    """What `actx profile --json` prints; `again` are percentiles of the original's second session."""
    nodes = {"nodes": [], "sites": {}, "activation_share": None, "runs": 3, "shapes": {"x": [2, 4]}}
    middle = (interval[0] + interval[1]) / 2
    return {
        "graph": "model.onnx",
        "original": times(original),
        "artifact": times(p50),
        "original_again": times(original) | dict(again or {}),
        "original_startup": {"load": 5.0, "first_run": 3.0, "peak_memory": 2**24},
        "artifact_startup": {"load": 5.0, "first_run": 3.0, "peak_memory": peak_memory},
        "comparison": {
            "verdict": verdict, "ratio": middle, "paired_ratio": middle, "interval": interval, "aa_ratio": 1.0, "noise": noise,
        },
        "original_nodes": nodes,
        "artifact_nodes": nodes,
        "runs": 8,
        "shapes": [{"x": [2, 4]}],
        "batch_sizes": [2],
        "synthetic": False,
        "source": "data/eval.npz",
        "notes": [],
        "runtime": RUNTIME,
        **other,
    }  # fmt: skip


def drift(outputs: Mapping[str, float], **other: Any) -> dict[str, Any]:
    """What `actx check --json` prints: the relative l2 of every output."""
    found = {"elements": 8, "non_finite": 0, "not_compared": 0, "max_abs": 0.5, "mean_abs": 0.1, "sqnr_db": 30.0}
    rest = {"cosine": 1e-4, "top1": None, "kl": None}
    return {
        "graph": "model.onnx",
        "metric": "l2",
        "drift": max(outputs.values()),
        "worst_output": None,
        "samples": 16,
        "synthetic": False,
        "source": "data/eval.npz",
        "outputs": [{"name": name, **found, "l2": l2, **rest} for name, l2 in outputs.items()],
        "sites": [],
        "worst_site": None,
        "max_drift": None,
        "accuracy": None,
        "notes": [],
        "runtime": RUNTIME,
        "within_budget": True,
        **other,
    }


def site(name: str, form: str) -> dict[str, Any]:
    return {
        "name": name, "kind": "gelu", "parameters": {}, "function": "0", "gated": False, "shape": None, "dtype": "float32",
        "form": form, "reason": "as asked", "lowering": "Gelu", "own_mathematics": False, "input": "a", "output": "b",
        "scale": 1.0, "fit": None, "statistics": None,
    }  # fmt: skip


def manifest(forms: Mapping[str, str] | None = None, **other: Any) -> dict[str, Any]:
    """What an export writes."""
    request = {
        "target": "ort-cpu", "form": None, "sites": {}, "fold": True, "weighted": True, "metric": "l2", "max_drift": None,
        "data": None, "held_out": None, "quant": None, "shapes": {}, "build": {},
    }  # fmt: skip
    return {
        "version": 2,
        "created": "2026-01-01T00:00:00+00:00",
        "source": {"file": "model.onnx", "format": "an ONNX model", "sha256": "0" * 64, "opset": 20},
        "request": request | other.pop("request", {}),
        "versions": {},
        "files": {},
        "graphs": {"portable": "model.onnx"},
        "engines": {},
        "sites": [site(name, form) for name, form in (forms or {}).items()],
        "drift": [],
        "latency": None,
        "notes": [],
        **other,
    }


def written(content: object, file: Path) -> Path:
    """Write JSON, into a folder as a bundle's manifest where the name has no suffix."""
    if not file.suffix:
        file.mkdir()
        written(content, file / "manifest.json")
        return file
    file.write_text(json.dumps(content), encoding="utf-8")
    return file
