"""The forms that exist. To add one, write its file and name it here."""

from __future__ import annotations

from types import MappingProxyType

from actx.exporter.fitting import hardswish, keep, poly, polynorm, pwl, relu, spline

FAMILIES = MappingProxyType(
    {module.FAMILY.name: module.FAMILY for module in (keep, relu, hardswish, pwl, poly, spline, polynorm)}
)
