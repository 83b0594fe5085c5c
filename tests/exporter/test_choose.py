"""Which form a site gets: pins, one form for all, the target's default, and why a site is kept."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from actx.exporter import Form, fit
from actx.exporter.calibrate import SiteStatistics
from actx.exporter.choose import DEFAULT_ERROR, MAX_CHANNEL_FITS, MUCH_FINER, Choice, choose
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.fitting import Density
from actx.exporter.lift import Site, lift
from actx.exporter.load.prepare import prepare
from actx.exporter.targets import TARGETS
from tests.networks import HIDDEN, SPELLINGS, many_sites, onnx_mlp

if TYPE_CHECKING:
    import onnx

CPU, PORTABLE = TARGETS["ort-cpu"], TARGETS["onnx"]
PWL, SPLINE, KEEP = (Form.parse(text) for text in ("pwl:8", "spline:8x3", "keep"))
NARROW = SiteStatistics(-2.0, 1.0, 12.0, 0.0)
DENSE = SiteStatistics(-2.0, 1.0, 12.0, 0.0, Density.of(np.random.default_rng(0).normal(-0.5, 0.4, 10_000)))


def sites_of(model: onnx.ModelProto) -> tuple[Site, ...]:
    graph = ir.from_proto(model)
    prepare(graph)
    return lift(graph).sites


def site_of(spelling: str) -> Site:
    (site,) = sites_of(SPELLINGS[spelling].model())
    return site


def only(site: Site, form: Form | None = None, observed: SiteStatistics | None = None, **settings: bool) -> Choice:
    statistics = None if observed is None else {site.name: observed}
    (choice,) = choose([site], CPU, form=form, statistics=statistics, **settings)
    return choice


def test_what_is_asked_for_is_fitted_closer_where_the_data_is() -> None:
    site = site_of("gelu_op")
    asked = only(site, PWL, DENSE).fit
    assert asked is not None
    assert asked.rms is not None
    even = only(site, PWL, DENSE, weighted=False).fit
    assert even is not None
    assert even.rms is None
    assert asked.max_error > even.max_error
    by_default = only(site, None, DENSE).fit
    assert by_default is None or by_default.rms is None


# --- 1. pins ---


def test_a_pin_takes_a_name_or_a_pattern_and_the_last_one_counts() -> None:
    sites = sites_of(many_sites(4))
    pins = {"layers.*": PWL, "layers.2": SPLINE, "layers.[13]": KEEP}
    choices = choose(sites, CPU, form=Form.parse("relu"), pins=pins)
    assert [str(c.form) for c in choices] == ["pwl:8", "keep", "spline:8x3", "keep"]
    assert [c.reason for c in choices] == ["pinned"] * 4
    assert [c.fit is None for c in choices] == [False, True, False, True]
    assert [c.site for c in choices] == list(sites)


def test_a_name_is_no_pattern_to_itself() -> None:
    site = dataclasses.replace(site_of("silu"), name="blocks[0].act")
    (choice,) = choose([site], CPU, pins={"blocks[0].act": PWL})
    assert choice.form == PWL


def test_a_pin_without_a_site() -> None:
    sites = sites_of(many_sites(7))
    with pytest.raises(UsageError, match="no site is named") as caught:
        choose(sites, CPU, pins={"layer.0": PWL})
    assert caught.value.note.endswith("layers.4 and 2 more")
    with pytest.raises(UsageError) as caught:
        choose([], CPU, pins={"x": PWL})
    assert caught.value.note == "the model has no sites"


def test_a_pinned_form_that_cannot_be_had() -> None:
    site = site_of("exp")
    with pytest.raises(ActxError, match="cannot take the form pwl:8") as caught:
        choose([site], CPU, pins={site.name: PWL})
    assert "right tail" in caught.value.note
    assert caught.value.remedy
    assert choose([site], CPU, pins={site.name: PWL}, statistics={site.name: NARROW})[0].fit is not None
    site = site_of("tanh")
    for observed in (None, {site.name: NARROW}):
        with pytest.raises(ActxError, match="cannot take the form relu") as caught:
            choose([site], CPU, pins={site.name: Form.parse("relu")}, statistics=observed)
        assert caught.value.note == "relu diverges from tanh"


# --- 2. one form for all ---


def test_one_form_for_all() -> None:
    for choice in choose(sites_of(many_sites(4)), PORTABLE, form=PWL):
        assert (choice.form, choice.reason) == (PWL, "as asked")
        assert choice.fit is not None
        assert choice.fit.interval == (-math.inf, math.inf)


def test_equal_functions_are_fitted_once() -> None:
    choices = choose(sites_of(many_sites(40)), CPU, form=PWL)
    assert len({id(choice.fit) for choice in choices}) == 3


def test_keep_keeps_all() -> None:
    assert {(c.form, c.fit, c.reason) for c in choose(sites_of(many_sites(4)), CPU, form=KEEP)} == {
        (KEEP, None, "as asked")
    }


def test_a_form_that_diverges_or_cannot_follow_is_not_taken_and_says_so() -> None:
    tanh = only(site_of("tanh"), Form.parse("relu"))
    assert (tanh.fit, tanh.form, tanh.reason) == (None, KEEP, "kept: relu diverges from tanh")
    exp = only(site_of("exp"), PWL)
    assert exp.fit is None
    assert exp.reason.startswith("kept: pwl:8 cannot hold on all of R")


def test_without_asymptotes_the_observed_range_is_the_interval() -> None:
    found = only(site_of("exp"), PWL, NARROW)
    assert found.fit is not None
    assert found.fit.interval == NARROW.interval == (-2.375, 1.375)
    x = np.linspace(*NARROW.interval, 1001)
    assert np.abs(found.fit.spline(x) - np.exp(x)).max() <= found.fit.max_error
    # Where there are asymptotes the range does not matter.
    assert only(site_of("silu"), PWL, NARROW).fit.interval == (-math.inf, math.inf)  # type: ignore[union-attr]


def test_what_is_coarse_on_all_of_r_is_fitted_where_the_data_is() -> None:
    """A rational has a shape of its own beyond where it was trained; gelu has none."""
    wide, form = SiteStatistics(-3.0, 3.0, 12.0, 0.0), Form.parse("spline:8x3")
    site = site_of("rational_a")
    everywhere, near = (only(site, form, observed).fit for observed in (None, wide))
    assert everywhere is not None
    assert near is not None
    assert (everywhere.bounds, near.bounds) == (None, wide.interval)
    assert near.core_error * MUCH_FINER < everywhere.core_error
    for spelling, same in (("gelu_op", "spline:16x3"), ("gelu_op", "hardswish")):
        found = only(site_of(spelling), Form.parse(same), wide).fit
        assert found is None or found.bounds is None


def test_a_range_of_one_point_is_no_interval_to_fit_on() -> None:
    for point in (0.5, -1e30):
        observed = SiteStatistics(point, point, 1.0, 0.0)
        kept = only(site_of("exp"), PWL, observed)
        assert (kept.fit, kept.form) == (None, KEEP)
        assert f"every input observed is {point:g}" in kept.reason
        assert only(site_of("gelu_op"), PWL, observed).fit is not None


def test_fold_is_handed_on() -> None:
    form = Form.parse("hardswish")
    free, raw = (only(site_of("gelu_legacy"), form, fold=fold).fit for fold in (True, False))
    assert free is not None
    assert raw is not None
    assert raw.slope == 1
    assert free.slope is not None
    assert free.slope > 1.5


# --- 3. the default ---


@pytest.mark.parametrize(
    "spelling", ["relu", "silu", "sigmoid", "tanh", "gelu_legacy", "gelu_new", "prelu_per_channel"]
)
def test_the_default_keeps_what_the_target_runs_fast(spelling: str) -> None:
    choice = only(site_of(spelling))
    assert (choice.form, choice.fit) == (KEEP, None)
    assert choice.reason == f"ort-cpu runs {choice.site.kind} as one fast op"


@pytest.mark.parametrize("spelling", ["mish_decomposed", "softplus", "elu", "selu", "apl"])
def test_the_default_takes_the_smallest_close_spline(spelling: str) -> None:
    choice = only(site_of(spelling))
    assert choice.fit is not None
    assert choice.fit.core_error <= DEFAULT_ERROR
    assert choice.form.name == "spline"
    smaller = choice.form.parameters[0] - 8
    if smaller and not choice.fit.exact:
        closest = only(choice.site, Form("spline", (smaller, 3))).fit
        assert closest is None or closest.core_error > DEFAULT_ERROR


def test_the_default_without_kernels_keeps_all() -> None:
    (choice,) = choose([site_of("mish_decomposed")], PORTABLE)
    assert choice.reason == "kept: no form is known to be faster on onnx; --form chooses one"


def test_the_default_keeps_what_no_spline_follows() -> None:
    assert only(site_of("snake")).reason.startswith("kept: spline:32x3 cannot hold")
    # The denominator of this rational has kinks and poles near the real line.
    assert only(site_of("rational_b")).reason == "kept: spline:32x3 is not within 1e-05"


# --- per channel ---


@pytest.mark.parametrize(
    ("spelling", "form"),
    [("prelu_per_channel", "pwl:4"), ("prelu_by_relu", "spline:8x3"), ("swish_beta_per_channel", "pwl:16"),
     ("swish_beta_per_channel", "spline:16x3"), ("swish_beta_per_channel", "hardswish")],
)  # fmt: skip
def test_a_table_per_channel(spelling: str, form: str) -> None:
    choice = only(site_of(spelling), Form.parse(form))
    assert choice.fit is not None
    spline = choice.fit.spline
    assert (spline.axis, len(spline.knots)) == (-1, HIDDEN)
    assert choice.fit.slope is None
    x = np.linspace(-20, 20, 4001)[:, None] + np.zeros(HIDDEN)
    error = np.abs(spline(x) - SPELLINGS[spelling](x)).max(axis=0)
    assert (error <= choice.fit.max_error * (1 + 1e-3)).all()  # the worst channel's


def test_the_errors_of_a_table_per_channel_are_those_of_its_worst_channels() -> None:
    betas = np.full(HIDDEN, 1.5, np.float32)
    betas[0] = 0.0  # x / 2, which is a spline
    (site,) = sites_of(onnx_mlp(lambda g, x: g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, betas)))))
    found = only(site, SPLINE).fit
    fits = [fit(site.function.channel(i), SPLINE) for i in range(2)]
    assert [f.exact for f in fits] == [True, False]
    assert found is not None
    assert (found.exact, found.ratio) == (False, fits[1].ratio)
    assert found.max_error == max(f.max_error for f in fits)
    assert found.core_error == max(f.core_error for f in fits)
    assert found.certificate == max((f.certificate for f in fits if f.certificate), key=lambda c: c.error)


def test_too_many_distinct_channels() -> None:
    slopes = np.linspace(0.01, 0.9, HIDDEN).astype(np.float32)
    few = onnx_mlp(lambda g, x: g.op("PRelu", x, slopes))
    assert only(*sites_of(few), PWL).fit is not None
    site = site_of("swish_beta_per_channel")
    many = dataclasses.replace(site.function, channels=MAX_CHANNEL_FITS + 1)
    steps = []
    for step in many.steps:
        operands = [
            dataclasses.replace(o, values=np.linspace(0.5, 2, MAX_CHANNEL_FITS + 1))
            if getattr(o, "per_channel", 0)
            else o
            for o in step.operands
        ]
        steps.append(dataclasses.replace(step, operands=tuple(operands)))  # type: ignore[arg-type]
    wide = dataclasses.replace(site, function=dataclasses.replace(many, steps=tuple(steps)))
    assert only(wide, PWL).reason == f"kept: {MAX_CHANNEL_FITS + 1} channels differ"


def test_progress_counts_the_sites() -> None:
    seen: list[tuple[int, int]] = []
    choose(sites_of(many_sites(5)), CPU, form=KEEP, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]
