"""What an entry of the catalogue is: one activation, or a family whose number of parameters varies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
# A function to be named: it takes a float or an array, and what implements numpy's ufuncs itself.
Probe: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class Activation:
    """A named scalar activation.

    Attributes:
        name: the field's standard term.
        formula: ``formula(x, *parameters)`` in float64, elementwise.
        parameters: names of the formula's parameters after x.
        defaults: the values that the parameters have in the literature, one per parameter.
        infer: recovers the parameters from the function, or None where there are none.
        text: the formula for people.
        source: the paper, or the standard or library that defines it.
    """

    name: str
    formula: Callable[..., Array]
    parameters: tuple[str, ...] = ()
    defaults: tuple[float, ...] = ()
    infer: Callable[[Probe], tuple[float, ...]] | None = None
    text: str = ""
    source: str = ""

    def __call__(self, x: Array) -> Array:
        """Evaluate with the default parameters."""
        return self.formula(x, *self.defaults)


@dataclass(frozen=True)
class Family:
    """Activations of one name that differ in the number of their parameters: degrees, hinges, entries of a dictionary.

    Attributes:
        name: the field's standard term.
        formula: ``formula(x, **parameters)`` in float64, elementwise; a parameter that is not given is 0.
        infer: ``infer(f, tolerance)`` returns the parameters by name where f is of the family, else None. The tolerance is
            how far values of f may be off, relative to ``1 + |x| + |f(x)|``; what can be found exactly ignores it.
        defaults: the parameters of a member from the literature.
        text: the formula for people.
        source: the paper that defines it.
        per_channel: whether the parameters may differ per channel.
    """

    name: str
    formula: Callable[..., Array]
    infer: Callable[[Probe, float], Mapping[str, float] | None]
    defaults: Mapping[str, float]
    text: str
    source: str
    per_channel: bool = True

    def member(self, parameters: Sequence[str], defaults: Sequence[float] = ()) -> Activation:
        """Return the activation that has these parameters."""
        names = tuple(parameters)

        def formula(x: Array, *values: Any) -> Array:
            return self.formula(x, **dict(zip(names, values, strict=True)))

        return Activation(self.name, formula, names, tuple(defaults), text=self.text, source=self.source)

    @property
    def default(self) -> Activation:
        """The member from the literature."""
        return self.member(tuple(self.defaults), tuple(self.defaults.values()))
