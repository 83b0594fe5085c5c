"""What recovery gives back on the real sentence encoder, on texts that it did not see."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from actx.exporter.calibrate import calibrate
from actx.exporter.choose import choose
from actx.exporter.data import load_data
from actx.exporter.fitting import Form
from actx.exporter.kernels import find_kernels
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.lower import lower
from actx.exporter.recover import recover
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.save import save
from actx.exporter.targets import find_target
from actx.exporter.workspace import workspace
from tests.conftest import encoder_batches, further_texts
from tests.networks import cosine, mean_embedding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.real

# Mean cosine of the embeddings of held-out texts with the original's, at least, by form and number of texts to fit on.
AT_LEAST = {("relu", 64): 0.983, ("hardswish", 64): 0.996, ("pwl:8", 64): 0.9997, ("relu", 256): 0.988}

ONE_THREAD = RuntimeOptions(threads=1)


def embeddings(file: Path, batches: list[dict[str, NDArray[np.int64]]], **options: Any) -> NDArray[np.float64]:
    session = replace(ONE_THREAD, **options).open(file)
    hidden = session.outputs[0]
    return np.concatenate([mean_embedding(session.run(b)[hidden], b["attention_mask"]) for b in batches])


@pytest.mark.parametrize(
    ("form", "count"), [pytest.param(*case, marks=[pytest.mark.slow] * (case[0] == "relu")) for case in AT_LEAST]
)
def test_held_out_texts_keep_their_embeddings(
    form: str,
    count: int,
    encoder_dynamo_onnx: Path,
    encoder_folder: Path,
    texts: Mapping[str, list[str]],
    encoder_data: Callable[[str], list[dict[str, NDArray[np.int64]]]],
    tmp_path: Path,
) -> None:
    (tmp_path / "data").mkdir()
    given = texts["calibration"] + (further_texts() if count > 64 else [])
    assert len(given) == count
    assert set(given).isdisjoint(texts["held_out"])
    for i, batch in enumerate(encoder_batches(encoder_folder, given)):
        np.savez(tmp_path / "data" / f"{i:02}.npz", **batch)
    loaded = load(encoder_dynamo_onnx)
    sites = lift(loaded.model).sites
    data = load_data(str(tmp_path / "data"), loaded.inputs)
    with workspace(loaded) as original:
        statistics = calibrate(original, sites, data, ONE_THREAD)
    choices = choose(sites, find_target("ort-cpu"), form=Form.parse(form), statistics=statistics)
    lowered = lower(loaded.model, choices)
    result = recover(lowered, choices, loaded.model, data, metric="cosine", options=ONE_THREAD)
    assert [len(entry.layers) for entry in result.sites[:6]] == [1] * 6  # behind those, the pooler gives an output
    graphs = {"original": loaded.model, "without": lowered.portable, "portable": result.lowered.portable}
    assert result.lowered.native is not None
    save({f"{name}.onnx": graph for name, graph in {**graphs, "native": result.lowered.native}.items()}, tmp_path)
    held = encoder_data("held_out")
    kernels = find_kernels().library
    found = {name: embeddings(tmp_path / f"{name}.onnx", held) for name in graphs}
    found["native"] = embeddings(tmp_path / "native.onnx", held, libraries=(kernels,))
    reached = {name: float(cosine(found["original"], rows).mean()) for name, rows in found.items()}
    assert reached["without"] < AT_LEAST[form, count] <= min(reached["portable"], reached["native"]), reached
