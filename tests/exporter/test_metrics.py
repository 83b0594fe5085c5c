"""Behaviour of `exporter.metrics`: definitions against independent formulas, streaming, and what is not finite."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from actx.exporter.errors import ActxError, UsageError
from actx.exporter.metrics import (
    METRICS,
    AccuracyMeter,
    OutputDrift,
    OutputMeter,
    PowerRatio,
    UserMetric,
    check_metric,
    cosine_distance,
    json_values,
    kl_divergence,
    worst,
)

RNG = np.random.default_rng(7)
# Float64 sums of some thousand terms: a relative error of a few roundings.
ROUNDING = 1e-12


def measure(original: Any, artifact: Any, *, logits: bool | None = None) -> OutputDrift:
    meter = OutputMeter("y", logits=logits)
    meter.update(np.asarray(original), np.asarray(artifact))
    return meter.result()


def noisy(shape: tuple[int, ...], scale: float = 0.1) -> tuple[Any, Any]:
    original = RNG.standard_normal(shape)
    return original, original + scale * RNG.standard_normal(shape)


def test_definitions() -> None:
    original, artifact = noisy((50, 11))
    drift = measure(original, artifact)
    error = artifact - original
    cosines = (original * artifact).sum(1) / np.linalg.norm(original, axis=1) / np.linalg.norm(artifact, axis=1)
    p = softmax(original, axis=1)
    kl = (p * (log_softmax(original, axis=1) - log_softmax(artifact, axis=1))).sum(1).mean()
    expected = {
        "max_abs": np.abs(error).max(),
        "mean_abs": np.abs(error).mean(),
        "l2": np.linalg.norm(error) / np.linalg.norm(original),
        "sqnr_db": 10 * np.log10((original**2).sum() / (error**2).sum()),
        "cosine": 1 - cosines.mean(),
        "top1": (original.argmax(1) != artifact.argmax(1)).mean(),
        "kl": kl,
    }
    assert {name: getattr(drift, name) for name in expected} == pytest.approx(expected, rel=ROUNDING, abs=1e-14)
    assert drift.elements == 550


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (5, 4), (1, 4), (2, 3, 4), (0, 3), (3, 0)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8", "bool"])
def test_equal_outputs_have_no_drift_at_all(shape: tuple[int, ...], dtype: str) -> None:
    array = (10 * RNG.standard_normal(shape)).astype(dtype) if dtype != "bool" else RNG.random(shape) > 0.5
    drift = measure(array, array.copy())
    assert all(drift.value(metric) in (0.0, None) for metric in METRICS)
    assert drift.sqnr_db in (math.inf, None)
    json.dumps(drift.to_dict(), allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**31))
def test_batches_of_any_shape_add_up(rows: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [(rng.standard_normal((n, 5)), rng.standard_normal((n, 5))) for n in rows]
    meter = OutputMeter("y")
    for pair in pairs:
        meter.update(*pair)
    whole = measure(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
    streamed = meter.result()
    for metric in (*METRICS, "mean_abs", "sqnr_db", "elements"):
        assert getattr(streamed, metric) == pytest.approx(getattr(whole, metric), rel=1e-10)


def test_batches_of_different_sequence_length() -> None:
    meter = OutputMeter("y")
    for length in (3, 8, 1):
        original, artifact = noisy((2, length, 4))
        meter.update(original, artifact)
    drift = meter.result()
    assert drift.elements == 2 * 12 * 4
    assert drift.top1 is None
    assert drift.kl is None


def test_named_logits_of_rank_3_count_rows() -> None:
    original = np.zeros((1, 4, 3))
    original[..., 0] = 1
    artifact = original.copy()
    artifact[0, 1] = [0, 1, 0]
    assert measure(original, artifact, logits=True).top1 == 0.25
    assert measure(original[0], artifact[0], logits=False).top1 is None


def test_top1_that_the_original_holds_at_equal_value_has_not_changed() -> None:
    assert measure([[1.0, 1.0, 0.0]], [[0.9, 1.0, 0.0]]).top1 == 0
    assert measure([[1.0, 1.1, 0.0]], [[1.2, 1.1, 0.0]]).top1 == 1


def test_tiny_cosine_drift_is_not_rounded_away() -> None:
    a = np.array([[1.0, 0.0]])
    b = np.array([[1.0, 1e-9]])
    assert cosine_distance(a, b)[0] == pytest.approx(5e-19, rel=1e-6)
    assert cosine_distance(a, -a)[0] == 2
    assert cosine_distance(1e300 * a, 1e-300 * b)[0] == pytest.approx(5e-19, rel=1e-6)


def test_zero_vectors() -> None:
    zero, one = np.zeros((1, 3)), np.ones((1, 3))
    assert cosine_distance(zero, zero)[0] == 0
    assert cosine_distance(zero, one)[0] == cosine_distance(one, zero)[0] == 1
    assert measure(zero, one).l2 == math.inf
    assert measure(one, zero).l2 == 1
    assert measure(zero, one).sqnr_db == -math.inf


def test_kl_is_stable_and_takes_minus_infinity() -> None:
    rows = np.array([[1000.0, 0.0, -1000.0], [-np.inf, 1.0, 2.0], [-np.inf, -np.inf, -np.inf]])
    assert kl_divergence(rows, rows).tolist() == [0, 0, 0]
    shifted = rows + np.array([[5.0], [7.0], [0.0]])
    assert kl_divergence(rows, shifted).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    far = kl_divergence(np.array([[800.0, 0.0]]), np.array([[0.0, 800.0]]))
    assert far[0] == pytest.approx(800)


def test_probabilities_are_not_put_through_softmax_again() -> None:
    logits = 5 * RNG.standard_normal((30, 8))
    other = logits + RNG.standard_normal((30, 8))
    expected = measure(logits, other).kl
    probabilities = [softmax(array, axis=1).astype(np.float32) for array in (logits, other)]
    assert measure(*probabilities).kl == pytest.approx(expected, rel=1e-5)  # float32 probabilities: 24 bits
    with_zero = measure([[1.0, 0.0]], [[0.5, 0.5]])
    assert with_zero.kl == pytest.approx(math.log(2))
    assert math.isfinite(measure([[0.5, 0.5]], [[1.0, 0.0]]).kl or 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_value_that_is_not_finite_on_one_side_makes_the_drift_infinite(bad: float, side: int) -> None:
    pair = [np.ones((4, 3)), np.ones((4, 3))]
    pair[side][2, 1] = bad
    drift = measure(*pair)
    assert drift.non_finite == 1
    assert all(drift.value(metric) == math.inf for metric in METRICS)
    assert json.dumps(drift.to_dict(), allow_nan=False).count('"inf"') == 6


def test_infinities_of_opposite_sign_differ_and_equal_ones_do_not() -> None:
    assert measure([[np.inf, 1.0]], [[-np.inf, 1.0]]).non_finite == 1
    assert measure([[np.inf, 1.0]], [[np.nan, 1.0]]).non_finite == 1
    same = measure([[np.inf, 1.0], [np.nan, 2.0], [-np.inf, 3.0]], [[np.inf, 1.0], [np.nan, 2.0], [-np.inf, 3.0]])
    assert all(same.value(metric) == 0 for metric in METRICS)


def test_float16_overflow_is_seen_against_float32() -> None:
    original = np.full((2, 2), 70000, np.float32)
    with np.errstate(over="ignore"):
        assert measure(original, original.astype(np.float16)).l2 == math.inf


def test_integer_outputs_have_max_abs_and_top1_only() -> None:
    drift = measure(np.array([[1, 2], [3, 4], [5, 6]]), np.array([[1, 2], [3, 9], [0, 0]]))
    assert drift.max_abs == 6
    assert drift.top1 == pytest.approx(2 / 3)
    assert (drift.l2, drift.cosine, drift.kl, drift.sqnr_db) == (None, None, None, None)
    assert measure(np.array([255], np.uint8), np.array([0], np.uint8)).max_abs == 255
    assert measure(np.array([True, False]), np.array([True, True])).top1 == 0.5
    big = 2**62
    assert measure(np.array([big]), np.array([big + 1])).top1 == 1


@pytest.mark.parametrize(
    ("original", "artifact"),
    [(np.ones((2, 3)), np.ones((2, 4))), (np.ones((2, 3)), np.ones((3, 2))), (np.ones(2), np.ones(2, np.int64))],
)
def test_different_shapes_and_kinds_are_refused(original: Any, artifact: Any) -> None:
    with pytest.raises(ActxError, match="output 'y' differs"):
        measure(original, artifact)


def test_worst_output_counts_and_a_metric_must_apply() -> None:
    good, bad = measure([[1.0, 2.0]], [[1.0, 2.0]]), measure([[1.0, 2.0]], [[1.5, 2.0]])
    renamed = OutputDrift(**{**{k: getattr(bad, k) for k in bad.__dataclass_fields__}, "name": "z"})
    assert worst([good, renamed], "max_abs") == ("z", 0.5)
    integers = measure(np.array([1]), np.array([2]))
    assert worst([integers], "top1")[1] == 1
    for metric in ("l2", "cosine", "kl"):
        with pytest.raises(UsageError, match="applies to none") as caught:
            worst([integers], metric)
        assert caught.value.note == "outputs: y; metrics that apply: max_abs, top1"
    with pytest.raises(UsageError):
        worst([], "l2")


def test_metric_names() -> None:
    for metric in (*METRICS, "pkg.mod:f"):
        check_metric(metric)
    with pytest.raises(UsageError) as caught:
        check_metric("psnr")
    assert all(metric in caught.value.note for metric in METRICS)


def test_power_ratio_in_db() -> None:
    power = PowerRatio()
    power.add(np.array([10.0, 0.0]), np.array([10.0, 1.0]))
    assert power.db() == pytest.approx(20)
    power.add(np.array([1.0]), np.array([np.nan]))
    assert power.db() == -math.inf


def spread(original: dict[str, Any], artifact: dict[str, Any], batch: dict[str, Any]) -> float:
    return float(np.abs(original["y"] - artifact["y"]).mean() + batch["bonus"].mean())


def nothing(*_: Any) -> None:
    return None


def not_a_number(*_: Any) -> float:
    return math.nan


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Give this module a name that can be imported."""
    import sys  # noqa: PLC0415 - only here

    monkeypatch.setitem(sys.modules, "user_metrics", request.module)
    return "user_metrics"


def test_user_metric_is_averaged_over_samples_and_sees_labels(here: str) -> None:
    metric = UserMetric(f"{here}:spread")
    metric.update({"y": np.ones(3)}, {"y": np.zeros(3)}, {"bonus": np.ones(3)}, 3)
    metric.update({"y": np.ones(1)}, {"y": np.ones(1)}, {"bonus": np.zeros(1)}, 1)
    assert metric.result() == pytest.approx(1.5)
    better = UserMetric(f"{here}:spread")
    better.update({"y": np.ones(1)}, {"y": np.ones(1)}, {"bonus": -np.ones(1)}, 1)
    assert better.result() == 0


@pytest.mark.parametrize("name", ["nothing", "not_a_number", "test_definitions"])
def test_user_metric_that_fails_is_named(here: str, name: str) -> None:
    with pytest.raises(ActxError, match=f"user_metrics:{name}"):
        UserMetric(f"{here}:{name}").update({}, {}, {}, 1)


def test_accuracy_of_both_models() -> None:
    meter = AccuracyMeter()
    original = {"hidden": np.zeros((2, 3, 4)), "logits": np.array([[0.0, 1.0], [1.0, 0.0]])}
    artifact = {"hidden": np.zeros((2, 3, 4)), "logits": np.array([[1.0, 0.0], [1.0, 0.0]])}
    meter.update(original, artifact, {"label": np.array([1, 0])})
    meter.update(original, artifact, {"label": np.array([1, -100])})
    assert meter.note == ""
    accuracy = meter.result()
    assert accuracy is not None
    assert (accuracy.output, accuracy.labels, accuracy.original) == ("logits", 3, 1.0)
    assert accuracy.artifact == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("extras", "note"),
    [
        ({}, ""),
        ({"label": np.zeros(5, int)}, "no float output of rank 2, or named as logits, has rows of their shape [5]"),
        ({"label": np.array(["a", "b"])}, "they are <U1, not integers"),
        ({"label": np.array([0.0, 1.0])}, "they are float64, not integers"),
        ({"label": np.int64(1)}, "no float output of rank 2, or named as logits, has rows of their shape []"),
        ({"label": np.array([99, 2])}, "2 are beyond the 2 classes of logits"),
    ],
)
def test_no_accuracy_without_labels_that_fit(extras: dict[str, Any], note: str) -> None:
    meter = AccuracyMeter()
    outputs = {"logits": np.array([[0.0, 1.0], [1.0, 0.0]])}
    meter.update(outputs, outputs, extras)
    assert meter.result() is None
    assert meter.note == (f"labels were not counted: {note}" if note else "")


def test_json_values_at_any_depth() -> None:
    values = {"a": [math.inf, (math.nan, {"b": -math.inf})], "c": 1.5, "d": "inf", "e": None, "f": True}
    assert json_values(values) == {"a": ["inf", [None, {"b": "-inf"}]], "c": 1.5, "d": "inf", "e": None, "f": True}
