"""Activations whose number of parameters varies. They are tried where no single activation fits, in this order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actx.custom_ops.families.apl import APL
from actx.custom_ops.families.learnable import LEARNABLE
from actx.custom_ops.families.rational import RATIONALS

if TYPE_CHECKING:
    from actx.custom_ops.definition import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (*RATIONALS, APL, LEARNABLE)}
