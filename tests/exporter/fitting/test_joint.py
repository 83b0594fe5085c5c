"""Functions fitted together share their knots, and each is as close as its fit says."""

from __future__ import annotations

import numpy as np
import pytest

from actx.custom_ops.activations import ACTIVATIONS
from actx.custom_ops.ops.spline_mix import SplineMixOp
from actx.exporter.errors import ActxError
from actx.exporter.fitting import Form, fit, fit_together

SMOOTH = ("gelu", "silu", "tanh")
KINKED = ("relu", "relu2", "leaky_relu")
X = np.linspace(-30, 30, 60_001).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("form", ["spline:8x3", "spline:16x3", "spline:24x2"])
def test_all_share_the_knots_and_keep_what_they_promise(form: str) -> None:
    names = (*SMOOTH, *KINKED)
    fits = fit_together([ACTIVATIONS[name] for name in names], Form.parse(form))
    SplineMixOp(tuple(found.spline for found in fits))  # checks that knots and origins are the same
    for name, found in zip(names, fits, strict=True):
        assert np.abs(found.spline(X) - ACTIVATIONS[name](X)).max() <= found.max_error
        assert found.certificate is not None
        assert found.max_error <= found.certificate.error <= found.max_error * 1.01 + 1e-9
        assert found.exact == (name in KINKED)
        assert found.spline(0.0) == pytest.approx(float(ACTIVATIONS[name](np.zeros(1))[0]), abs=0)


def test_sharing_costs_little() -> None:
    """Three smooth functions bend in the same place: together they need an error some 3 times that of each by itself."""
    form = Form.parse("spline:16x3")
    alone = max(fit(ACTIVATIONS[name], form).core_error for name in SMOOTH)
    together = max(found.core_error for found in fit_together([ACTIVATIONS[name] for name in SMOOTH], form))
    assert alone <= together <= 4 * alone


def test_piecewise_polynomials_alone_are_exact() -> None:
    fits = fit_together([ACTIVATIONS[name] for name in KINKED], Form.parse("spline:4x3"))
    assert all(found.exact and found.core_error <= 1e-7 for found in fits)
    assert fits[0].spline.segments == 2


def test_on_an_interval_no_asymptotes_are_needed() -> None:
    fits = fit_together([np.exp, ACTIVATIONS["relu"]], Form.parse("spline:16x3"), interval=(-4.0, 4.0))
    x = np.linspace(-4, 4, 10_001)
    assert np.abs(fits[0].spline(x) - np.exp(x)).max() <= fits[0].max_error < 1e-3
    assert fits[1].exact
    with pytest.raises(ActxError, match="right tail is out of reach"):
        fit_together([np.exp, ACTIVATIONS["relu"]], Form.parse("spline:16x3"))


def test_too_few_segments_and_other_forms_are_refused() -> None:
    kinked = [ACTIVATIONS["relu"], lambda x: np.maximum(x - 1, 0)]
    for functions in (kinked, [*kinked, ACTIVATIONS["gelu"]]):
        with pytest.raises(ActxError, match="2 segments are too few"):
            fit_together(functions, Form.parse("spline:2x3"))
    for form in ("pwl:8", "poly:4", "hardswish", "relu"):
        with pytest.raises(ActxError, match="no knots that the entries of a mixture could share"):
            fit_together([ACTIVATIONS["gelu"]], Form.parse(form))
