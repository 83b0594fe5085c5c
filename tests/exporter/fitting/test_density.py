"""Fits under a density of the inputs: closer where they are, and nowhere much worse."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from actx.custom_ops import ACTIVATIONS
from actx.exporter.fitting import Density, Fit, Form, fit
from actx.exporter.fitting.density import CAP

RNG = np.random.default_rng(0)
INPUTS = {
    "narrow": RNG.normal(-0.4, 0.5, 100_000),
    "wide": RNG.normal(0.3, 3.0, 100_000),
    "two heaps": np.concatenate([RNG.normal(-3, 0.2, 50_000), RNG.normal(1, 0.2, 50_000)]),
    "one place": np.full(1000, 0.7),
    "few": RNG.normal(0, 1, 12),
    "beyond fp16": np.array([1e30, -1e30, 0.5]),
}
KINDS = ("gelu", "silu", "mish")
FORMS = ("hardswish", "pwl:7", "pwl:8", "pwl:16", "poly:4", "poly:8", "spline:8x2", "spline:16x3")


@cache
def fit_evenly(form: str, kind: str) -> Fit:
    """Fit without a density, once for all inputs."""
    return fit(ACTIVATIONS[kind], Form.parse(form))


# Each form with all inputs and all functions, and all inputs with all functions.
@pytest.mark.parametrize(
    ("name", "form", "kind"),
    [(name, form, KINDS[(i + j) % 3]) for i, name in enumerate(INPUTS) for j, form in enumerate(FORMS)],
)
def test_closer_where_the_inputs_are_and_capped_elsewhere(name: str, form: str, kind: str) -> None:
    density, function = Density.of(INPUTS[name]), ACTIVATIONS[kind]
    even, weighted = fit_evenly(form, kind), fit(function, Form.parse(form), density=density)
    assert even.rms is None
    assert weighted.rms is not None
    assert weighted.rms <= density.rms(function(density.places) - even.spline(density.places))
    assert weighted.core_error <= CAP * even.core_error
    assert weighted.certificate is not None
    assert weighted.max_error <= weighted.certificate.error
    x = np.clip(INPUTS[name], -65504, 65504)
    sampled = np.sqrt(np.mean(np.square(function(x) - weighted.spline(x))))
    if name in ("narrow", "wide"):
        assert weighted.rms == pytest.approx(sampled, rel=0.1)


@pytest.mark.parametrize(
    ("form", "gain"), [("pwl:8", 0.75), ("spline:8x2", 0.8), ("poly:8", 0.95), ("hardswish", 0.95)]
)
def test_the_gain_is_worth_it(form: str, gain: float) -> None:
    density = Density.of(INPUTS["narrow"])
    even, weighted = (fit(ACTIVATIONS["gelu"], Form.parse(form), density=d) for d in (None, density))
    assert weighted.rms is not None
    assert weighted.rms <= gain * density.rms(ACTIVATIONS["gelu"](density.places) - even.spline(density.places))


def test_s_of_zero_is_f_of_zero() -> None:
    for form in ("pwl:8", "poly:4", "spline:8x3"):
        spline = fit(ACTIVATIONS["gelu"], Form.parse(form), density=Density.of(INPUTS["two heaps"])).spline
        assert spline(np.zeros(1)) == 0


def test_an_exact_fit_stays_exact() -> None:
    found = fit(ACTIVATIONS["relu2"], Form.parse("spline:4x2"), density=Density.of(INPUTS["wide"]))
    assert found.exact
    assert found.rms == 0


def test_densities_add_up_whatever_the_batches() -> None:
    x = INPUTS["wide"]
    whole = Density.of(x)
    assert whole.mass.sum() == x.size
    assert (Density.of(x[:100]) + Density.of(x[100:].astype(np.float64))).key == whole.key
    moved = np.abs(Density.of(-x).counts - whole.mirrored().counts).sum()
    assert moved <= 1e-3 * x.size  # a number at an edge counts on one side of it


def test_the_width_lies_between_one_and_the_cap() -> None:
    x = np.linspace(-70000, 70000, 10001)
    for inputs in INPUTS.values():
        width = Density.of(inputs).width(x, 1)
        assert width.min() >= 1
        assert width.max() <= CAP
