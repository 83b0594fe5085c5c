"""Fit a form to a scalar function: `fit(function, Form.parse("pwl:16"))`."""

from actx.exporter.fit.fitting import Fit, fit
from actx.exporter.fit.form import Form

__all__ = ["Fit", "Form", "fit"]
