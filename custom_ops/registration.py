"""Names that the user gives to functions of his own.

The names are the one state of the package, as the catalogue is: what a process has registered, every model it lifts is
named by. They name sites and nothing else: what a site computes, and what is proved of its form, comes from its own graph.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from actx.custom_ops.activations import ACTIVATIONS
from actx.custom_ops.definition import Activation

if TYPE_CHECKING:
    from collections.abc import Callable

    from actx.custom_ops.definition import Array

_Formula = TypeVar("_Formula", bound="Callable[..., Any]")

REGISTERED: dict[str, Activation] = {}
"""What was registered, by name, in the order in which it was."""

RESERVED = frozenset({"scalar", "prelu"})
"""Kinds of sites that are no entries of the catalogue."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PROBE = np.concatenate([np.linspace(-8.0, 8.0, 20), [-65504.0, -300.0, 100.0, 65504.0]])
_ROUNDING = 1e-12  # vector and scalar code may round differently


@overload
def activation(name: str, formula: None = None, *, torch: bool = False) -> Callable[[_Formula], _Formula]: ...
@overload
def activation(name: str, formula: _Formula, *, torch: bool = False) -> _Formula: ...
def activation(name: str, formula: Any = None, *, torch: bool = False) -> Any:
    """Register a scalar function, so that sites which compute it are called by its name.

    As a decorator ``@activation("hard_mish")``, or as a call ``activation("hard_mish", formula)``. A function that the
    catalogue has already keeps the catalogue's name.

    Args:
        name: lower-case letters, digits and underscores; a name of the catalogue is not free.
        formula: takes one array and works element by element, without side effects: float64 numpy arrays, or with `torch`
            float64 tensors; a module in evaluation mode will do.
        torch: whether the formula is written in torch. It is only then imported.

    Returns:
        The formula, unchanged.

    Raises:
        ValueError: the name is malformed or taken, or the formula is not elementwise or not the same twice.
        TypeError: the formula is not callable, or does not give float64.
    """
    if formula is None:
        return lambda function: activation(name, function, torch=torch)
    _check_name(name)
    if not callable(formula):
        msg = f"activation {name!r}: a {type(formula).__name__} is no formula"
        raise TypeError(msg)
    evaluate = _with_torch(name, formula) if torch else formula
    _check_formula(name, evaluate)
    REGISTERED[name] = Activation(name, _quiet(evaluate))
    return formula


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        msg = f"{name!r} is no name of an activation: lower-case letters, digits and underscores, a letter first"
        raise ValueError(msg)
    if name in ACTIVATIONS or name in RESERVED or name in REGISTERED:
        owner = "registered already" if name in REGISTERED else "a name of the catalogue"
        msg = f"activation {name!r} is {owner}: choose another name"
        raise ValueError(msg)


def _with_torch(name: str, formula: Callable[..., Any]) -> Callable[[Array], Any]:
    import torch  # noqa: PLC0415 - slow to import, and not needed for formulas of numpy

    def evaluate(x: Array) -> Any:
        with torch.no_grad():
            y = formula(torch.from_numpy(np.array(x, dtype=np.float64)))
        if not isinstance(y, torch.Tensor):
            msg = f"activation {name!r} gives a {type(y).__name__}, not a tensor"
            raise TypeError(msg)
        return y.numpy()

    return evaluate


def _quiet(evaluate: Callable[[Array], Any]) -> Callable[[Array], Array]:
    """Return the formula for arrays of any layout, without numpy's warnings.

    What implements numpy's ufuncs itself, as the balls of a proof, is handed to it as it is.
    """

    def formula(x: Any) -> Any:
        if isinstance(x, NDArrayOperatorsMixin):
            return evaluate(x)  # type: ignore[arg-type]
        with np.errstate(all="ignore"):
            return np.asarray(evaluate(np.array(x, dtype=np.float64)), dtype=np.float64)

    return formula


def _check_formula(name: str, evaluate: Callable[[Array], Any]) -> None:
    y = _evaluated(name, evaluate, _PROBE)
    backwards = _evaluated(name, evaluate, _PROBE[::-1])
    half = _evaluated(name, evaluate, _PROBE[::2].reshape(-1, 1))
    checks = (
        (_same(backwards[::-1], y) and _same(half[:, 0], y[::2]), "does not work element by element"),
        (_same(_evaluated(name, evaluate, _PROBE), y), "gives another result the second time"),
        (np.isfinite(y).any(), "is finite nowhere"),
    )
    for holds, what in checks:
        if not holds:
            msg = f"activation {name!r} {what}: it must be a function of one number"
            raise ValueError(msg)


def _evaluated(name: str, evaluate: Callable[[Array], Any], x: Array) -> Array:
    """Evaluate on a copy, and check type, shape and that the copy is left alone."""
    given = np.array(x)
    try:
        with np.errstate(all="ignore"):
            y = np.asarray(evaluate(given))
    except Exception as error:
        msg = f"activation {name!r} cannot be evaluated on a float64 array of shape {x.shape}: {error}"
        raise TypeError(msg) from error
    if y.shape != x.shape:
        msg = f"activation {name!r} gives shape {y.shape} for shape {x.shape}: it must keep it"
        raise ValueError(msg)
    if y.dtype != np.float64:
        msg = f"activation {name!r} gives {y.dtype} for float64: its formula must keep the precision"
        raise TypeError(msg)
    if not np.array_equal(given, x):
        msg = f"activation {name!r} changes its input"
        raise ValueError(msg)
    return y


def _same(a: Array, b: Array) -> bool:
    return bool(np.allclose(a, b, rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True))
