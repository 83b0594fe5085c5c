"""Bundles to report: real ones, and a manifest with what is made up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from actx.exporter import Form, export
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.models.demo import DATA_FOLDER
from tests.conftest import written_once

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = {
    "script": "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "quotes": "\"'` onmouseover='document.title=1' </td></style></script>{{ 7*7 }}",
    "long": "x" * 10_000,
    "right to left": "\u202e\u05d0\u05d1\u05d2|`[a](javascript:b)`\u2028\u2029",
}


@pytest.fixture(scope="session")
def quantized(demo_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the demo's network, with everything but a search."""
    return written_once(
        tmp_path_factory, "reported", lambda out: _write_quantized(demo_onnx, tmp_path_factory.mktemp("data"), out)
    )


def _write_quantized(model: Path, folder: Path, out: Path) -> None:
    for name in ("calibration", "evaluation"):
        with np.load(DATA_FOLDER / f"{name}.npz") as arrays:
            np.savez(folder / f"{name}.npz", **{key: array[:32] for key, array in arrays.items()})
    export(
        model,
        out,
        form=Form.parse("hardswish"),
        sites={"blocks.2.ffn.activation": Form.parse("keep")},
        data=str(folder / "calibration.npz"),
        held_out=str(folder / "evaluation.npz"),
        quant="int8",
        calibrator="minmax",
        max_drift=0.5,
        attribute=True,
        runs=2,
        options=RuntimeOptions(threads=1),
    )


@pytest.fixture
def hostile(quantized: Path, tmp_path: Path) -> Path:
    """The same with hostile names for sites, layers, outputs and in notes."""
    manifest = read(quantized)
    for site, name in zip(manifest["sites"], HOSTILE.values(), strict=False):
        site["name"] = name
    manifest["sites"].append(manifest["sites"][0] | {"name": HOSTILE["right to left"], "reason": HOSTILE["script"]})
    manifest["quantization"]["layers"] = dict.fromkeys(HOSTILE.values(), HOSTILE["quotes"])
    manifest["attribution"]["worst"] = [
        culprit | {"name": name, "remedy": name}
        for culprit, name in zip(manifest["attribution"]["worst"], HOSTILE.values(), strict=False)
    ]
    manifest["drift"][0]["outputs"][0]["name"] = HOSTILE["script"]
    manifest["source"]["file"] = HOSTILE["script"]
    manifest["notes"] += HOSTILE.values()
    return write(manifest, tmp_path / "hostile")


@pytest.fixture
def searched(quantized: Path, tmp_path: Path) -> Path:
    """The same with a search."""
    manifest = read(quantized)
    forms = [site["form"] for site in manifest["sites"]]
    front = [{"forms": forms, "saved_ms": ms, "drift": drift} for ms, drift in ((0, 0), (0.1, 1e-4), (0.3, 2e-3))]
    verified = [
        {"predicted_saved_ms": 0.3, "predicted_drift": 2e-3, "drift": "inf", "verdict": None, "ratio": None, "taken": False},
        {"predicted_saved_ms": 0.1, "predicted_drift": 1e-4, "drift": 2e-4, "verdict": "faster", "ratio": 1.1, "taken": True},
    ]  # fmt: skip
    manifest["search"] = {
        "budget": 1e-3,
        "metric": "l2",
        "samples": 8,
        "original_ms": 3.0,
        "share": 0.1,
        "reason": "as built",
        "candidates": [{"site": "a", "form": "relu", "saved_ms": None, "drift": "inf", "reason": "<b>diverges"}],
        "front": front,
        "verified": [one | {"forms": forms} for one in verified],
    }
    return write(manifest, tmp_path / "searched")


@pytest.fixture
def crowded(quantized: Path, tmp_path: Path) -> Path:
    """The same with 2,000 sites."""
    manifest = read(quantized)
    site, noise, nodes = manifest["sites"][0], manifest["drift"][0]["sites"][0], manifest["latency"]["original_nodes"]
    names = [f"encoder.layers.{i}.feed_forward.activation" for i in range(2000)]
    manifest["sites"] = [site | {"name": name} for name in names]
    manifest["drift"][0]["sites"] = [noise | {"name": name} for name in names]
    nodes["sites"] = dict.fromkeys(names, 1e-4)
    return write(manifest, tmp_path / "crowded")


def read(bundle: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def write(manifest: dict[str, Any], folder: Path) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder
