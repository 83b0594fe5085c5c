"""Lift on real models from every exporter: exactly their activations, under names that stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from actx.exporter.lift import Lifted, lift
from actx.exporter.load import load
from tests.exporter.lift.test_lift import assert_regions_are_closed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.real

ENCODER_KINDS = ["gelu"] * 6 + ["tanh"]
ENCODER_NAMES = [*(f"encoder.layer.{i}.intermediate.intermediate_act_fn" for i in range(6)), "pooler.activation"]
FORMATS = ("encoder_archive", "encoder_dynamo_onnx", "encoder_legacy_onnx")


def _lifted(file: Path) -> Lifted:
    pytest.importorskip("transformers")  # an archive needs its output class
    model = load(file).model
    found = lift(model)
    assert_regions_are_closed(model, found.sites)
    assert [site.name for site in found.sites] == [site.name for site in lift(model).sites]
    return found


@pytest.mark.parametrize("fixture", FORMATS)
def test_encoder(fixture: str, request: pytest.FixtureRequest) -> None:
    found = _lifted(request.getfixturevalue(fixture))
    assert [site.kind for site in found.sites] == ENCODER_KINDS
    assert not any(site.gate for site in found.sites)
    x = np.linspace(-8, 8, 1001)
    assert len({site.function.key for site in found.sites[:6]}) == 1
    np.testing.assert_allclose(found.sites[6].evaluate(x), np.tanh(x))
    prefix = "model." if fixture == "encoder_legacy_onnx" else ""  # of the module that was exported
    assert [site.name for site in found.sites] == [prefix + name for name in ENCODER_NAMES]


@pytest.mark.parametrize("fixture", ["llama_archive", "llama_onnx"])
def test_decoder(fixture: str, request: pytest.FixtureRequest) -> None:
    found = _lifted(request.getfixturevalue(fixture))
    assert [site.kind for site in found.sites] == ["silu"] * 3
    assert all(site.gate is not None for site in found.sites)
    assert [f"layers.{i}." in site.name for i, site in enumerate(found.sites)] == [True] * 3
    refused = {row.ops: row.reason for row in found.rejections}
    assert "does not come from a linear op" in refused["Cos"]
