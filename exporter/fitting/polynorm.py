"""`polynorm`: a row-wise site becomes the op PolyNorm, whose mathematics it is, so that there is nothing to fit."""

from __future__ import annotations

from actx.exporter.fitting.family import Family

FAMILY = Family("polynorm", (), shape=lambda _: (0, 0), solve=None, tail_degree=lambda _: 0)
