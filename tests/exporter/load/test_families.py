"""Families of transformers, one for each way to be written: the sites are those of the configuration, the outputs torch's."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from actx.exporter import Form, export
from tests.families import FAMILIES, draw, drift

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.real

# 1 - cosine
MAX_DRIFT = 1e-6


@pytest.mark.parametrize("name", ["nemotron", pytest.param("t5", marks=pytest.mark.slow), "convnext"])
def test_sites_and_outputs(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = tmp_path / name
    family.save(folder)
    done = export(folder, tmp_path / "out", form=Form.parse("spline:16x3"), measure_drift=False, measure_latency=False)
    assert Counter(site.kind for site in done.manifest.sites) == family.sites
    assert drift(folder, tmp_path / "out", draw(folder)) <= MAX_DRIFT
