"""The source's own mathematics as one standard op, where the graph's opset has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actx.exporter.lift import Site


def _none(_: Mapping[str, float]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class StandardOp:
    """An op of the default domain, the opset it came with and its attributes for a site's parameters."""

    op_type: str
    since: int
    attributes: Callable[[Mapping[str, float]], dict[str, Any]] = _none


STANDARD_OPS: Mapping[str, StandardOp] = {
    "relu": StandardOp("Relu", 6),
    "sigmoid": StandardOp("Sigmoid", 6),
    "tanh": StandardOp("Tanh", 6),
    "erf": StandardOp("Erf", 9),
    "exp": StandardOp("Exp", 6),
    "softplus": StandardOp("Softplus", 1),
    "softsign": StandardOp("Softsign", 1),
    "selu": StandardOp("Selu", 6),
    "elu": StandardOp("Elu", 6, lambda p: {"alpha": p["alpha"]}),
    "celu": StandardOp("Celu", 12, lambda p: {"alpha": p["alpha"]}),
    "leaky_relu": StandardOp("LeakyRelu", 6, lambda p: {"alpha": p["slope"]}),
    "hard_sigmoid": StandardOp("HardSigmoid", 6, lambda _: {"alpha": 1 / 6, "beta": 0.5}),
    "hardswish": StandardOp("HardSwish", 14),
    "mish": StandardOp("Mish", 18),
    "gelu": StandardOp("Gelu", 20),
    "gelu_tanh": StandardOp("Gelu", 20, lambda _: {"approximate": "tanh"}),
}


def standard_op(site: Site, opset: int) -> tuple[str, dict[str, Any]] | None:
    """Return op type and attributes of the one op that computes the site's function, or None."""
    op = STANDARD_OPS.get(site.kind)
    if op is None or opset < op.since or site.axis is not None:
        return None
    return op.op_type, op.attributes({name: float(value) for name, value in site.parameters.items()})
