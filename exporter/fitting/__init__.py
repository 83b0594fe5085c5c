"""Fit a form to a scalar function: `fit(function, Form.parse("pwl:16"))`."""

from actx.exporter.fitting.density import Density
from actx.exporter.fitting.fitting import Fit, Proof, exact_table, fit
from actx.exporter.fitting.form import Form
from actx.exporter.fitting.joint import fit_together

__all__ = ["Density", "Fit", "Form", "Proof", "exact_table", "fit", "fit_together"]
