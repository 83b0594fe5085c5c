"""`attribute` on the stages of a trained network: what a seeded error is attributed to, and what it is not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from actx.exporter.attribution import ENGINE, QUANTIZE, RECOVERY, REWRITE, SOURCE, WORST, StageModel, attribute
from actx.exporter.calibrate import calibrate
from actx.exporter.choose import choose
from actx.exporter.data import Data, load_data
from actx.exporter.drift import check
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.fitting import Form
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.lower import lower
from actx.exporter.quantize import quantize
from actx.exporter.recover import recover
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.runtimes.program import Program
from actx.exporter.save import save
from actx.exporter.segments import Changed
from actx.exporter.targets import find_target
from actx.models.demo import CALIBRATION, EVALUATION, demo_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from actx.exporter.attribution import Attribution
    from actx.exporter.load import LoadedModel

STAGES = (REWRITE, RECOVERY, QUANTIZE, ENGINE)
# A layer that no stage but the quantization changes, and its weight.
LAYER, WEIGHT = "blocks.1.attention.out", "val_73"
SEED = 0.5
SAMPLES = 64
OPTIONS = replace(DEFAULT, spin_between_runs=False)  # several sessions take turns


@dataclass(frozen=True)
class Case:
    """The digits network, and its model after every stage."""

    loaded: LoadedModel
    models: Mapping[str, ir.Model]
    sites: tuple[Changed, ...]
    data: Data

    def attribute(self, folder: Path, alter: Callable[[str, ir.Model], ir.Model], metric: str = "l2") -> Attribution:
        """Attribute with models that were altered on the way."""
        files = {f"{name}.onnx": alter(name, model) for name, model in self.models.items()}
        save({"original.onnx": self.loaded.model, **files}, folder)
        models = [StageModel("original", folder / "original.onnx", OPTIONS)]
        models += [StageModel(name, folder / f"{name}.onnx", OPTIONS) for name in self.models]
        return attribute(models, self.data, metric=metric, sites=self.sites, options=OPTIONS)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """pwl:8, recovered, int8; the engine is the same graph again."""
    folder = tmp_path_factory.mktemp("stages")
    loaded = load(demo_path("digits_vit.pt2"))
    samples = load_data(str(demo_path(CALIBRATION)), loaded.inputs)
    np.savez(folder / "fresh.npz", image=np.load(demo_path(EVALUATION))["image"][:SAMPLES])
    data = load_data(str(folder / "fresh.npz"), loaded.inputs)
    sites = lift(loaded.model).sites
    save({"original.onnx": loaded.model}, folder)
    observed = calibrate(folder / "original.onnx", sites, samples)
    choices = choose(sites, find_target("onnx"), form=Form.parse("pwl:8"), statistics=observed)
    lowered = lower(loaded.model, choices, native=None)
    recovered = recover(lowered, choices, loaded.model, samples)
    assert all(entry.layers for entry in recovered.sites)
    typed = quantize(recovered.lowered.portable, "int8", batches=iter(samples))
    graphs = (lowered.portable, recovered.lowered.portable, typed, typed)
    changed = tuple(Changed(site, refitted=True) for site in sites)
    return Case(loaded, dict(zip(STAGES, graphs, strict=True)), changed, data)


def unaltered(_: str, model: ir.Model) -> ir.Model:
    return model


def seeded(model: ir.Model, name: str = WEIGHT, size: float = SEED) -> ir.Model:
    """Return a model with a relative error of `size` in the numbers of one weight."""
    clone = model.clone()
    value = clone.graph.initializers[name]
    assert value.const_value is not None
    weight = value.const_value.numpy()
    noise = np.random.default_rng(0).standard_normal(weight.shape)
    value.const_value = ir.tensor((weight * (1 + size * noise)).astype(weight.dtype), name=name)
    return clone


def test_the_drift_is_the_one_that_check_measures_and_what_stages_add_is_their_own(case: Case, tmp_path: Path) -> None:
    found = case.attribute(tmp_path, unaltered)
    rewrite, recovery, quantized, engine = found.stages
    assert [stage.name for stage in found.stages] == list(STAGES)
    for stage in found.stages:
        report = check(tmp_path / "original.onnx", tmp_path / f"{stage.name}.onnx", case.data)
        assert stage.drift == pytest.approx(report.drift, rel=1e-6)
    assert rewrite.added == rewrite.drift
    assert recovery.added == recovery.drift - rewrite.drift < 0
    assert rewrite.cost == pytest.approx(recovery.drift)  # what is left of it
    between = check(tmp_path / f"{RECOVERY}.onnx", tmp_path / f"{QUANTIZE}.onnx", case.data)
    # l2 is relative to the norm of the model before, which is within its drift of the original's
    assert quantized.added == pytest.approx(between.drift, rel=1e-6)
    assert (engine.added, engine.cost) == (0, 0)
    assert quantized.places[0].kind == "layer"
    assert engine.places == quantized.places


@pytest.mark.parametrize("stage", STAGES)
def test_an_error_seeded_in_one_stage_makes_that_stage_and_its_layer_the_worst(
    case: Case, tmp_path: Path, stage: str
) -> None:
    late = STAGES[STAGES.index(stage) :]
    found = case.attribute(tmp_path, lambda name, model: seeded(model) if name in late else model)
    assert found.verdict == stage
    assert max(found.stages, key=lambda one: one.added).name == stage
    worst, *others = found.worst
    assert (worst.name, worst.kind, worst.stage) == (LAYER, "layer", stage)
    assert all(other.added_db > worst.added_db + 6 for other in others)


@pytest.mark.parametrize("metric", ["cosine", "max_abs", "kl"])
def test_it_goes_by_the_metric_that_was_asked_for(case: Case, tmp_path: Path, metric: str) -> None:
    found = case.attribute(tmp_path, lambda name, model: seeded(model) if name in STAGES[2:] else model, metric)
    assert (found.metric, found.verdict) == (metric, QUANTIZE)
    report = check(tmp_path / "original.onnx", tmp_path / f"{ENGINE}.onnx", case.data, metric=metric)
    assert found.stages[-1].drift == pytest.approx(report.drift, rel=1e-6)


def test_a_broken_scale_is_found_at_its_layer(case: Case, tmp_path: Path) -> None:
    def broken(name: str, model: ir.Model) -> ir.Model:
        if name not in {QUANTIZE, ENGINE}:
            return model
        clone = model.clone()
        scale = clone.graph.initializers[f"{WEIGHT}/actx/axis_1/scale"]
        assert scale.const_value is not None
        scale.const_value = ir.tensor(scale.const_value.numpy() / 4, name=scale.name)
        return clone

    found = case.attribute(tmp_path, broken)
    assert found.verdict == QUANTIZE
    assert (found.worst[0].name, found.worst[0].stage) == (LAYER, QUANTIZE)


def test_an_altered_conversion_is_seen_against_the_program(case: Case, tmp_path: Path) -> None:
    loaded = case.loaded
    outputs = tuple(str(value.name) for value in loaded.model.graph.outputs)
    assert loaded.program is not None
    program = Program(loaded.program, loaded.inputs, outputs, loaded.weights)
    save({"good.onnx": loaded.model, "bad.onnx": seeded(loaded.model)}, tmp_path)
    drifts = {}
    for name in ("good", "bad"):
        models = [StageModel("program", loaded.source, program), StageModel(SOURCE, tmp_path / f"{name}.onnx", OPTIONS)]
        found = attribute(models, case.data)
        drifts[name] = found.stages[0].added
        assert found.verdict == SOURCE
        assert not found.worst  # torch's values have other names
    # Both compute in float32, whose rounding is 6e-8, through some 60 nodes one behind the other.
    assert 0 < drifts["good"] < 60 * 6e-8
    assert drifts["bad"] > 0.01


def test_at_most_so_many_places_are_named_each_once(case: Case, tmp_path: Path) -> None:
    found = case.attribute(tmp_path, unaltered)
    assert len(found.worst) == WORST < len(found.stages[0].places)
    assert len({place.name for place in found.worst}) == WORST
    noise = [place.added_db for place in found.worst]
    assert noise == sorted(noise)


def test_equal_models_cost_nothing(case: Case, tmp_path: Path) -> None:
    save({"a.onnx": case.loaded.model, "b.onnx": case.loaded.model}, tmp_path)
    models = [
        StageModel(name, tmp_path / f"{file}.onnx", OPTIONS) for name, file in (("original", "a"), (REWRITE, "b"))
    ]
    found = attribute(models, case.data)
    assert (found.verdict, found.worst, found.stages[0].added) == (None, (), 0)


def test_what_cannot_be_attributed(case: Case, tmp_path: Path) -> None:
    save({"a.onnx": case.loaded.model}, tmp_path)
    alone = [StageModel("original", tmp_path / "a.onnx", OPTIONS)]
    with pytest.raises(UsageError, match="no stage"):
        attribute(alone, case.data)
    with pytest.raises(ActxError, match=r"missing\.onnx"):
        attribute([*alone, StageModel(REWRITE, tmp_path / "missing.onnx", OPTIONS)], case.data)


def test_progress_counts_the_samples_of_both_passes(case: Case, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    save({"a.onnx": case.loaded.model}, tmp_path)
    models: Sequence[StageModel] = [StageModel(name, tmp_path / "a.onnx", OPTIONS) for name in ("original", REWRITE)]
    attribute(models, case.data, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2 * case.data.samples, 2 * case.data.samples)
