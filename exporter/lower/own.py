"""The source's own mathematics as one standard op, where the graph's opset has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actx.exporter.lift import Site
    from actx.exporter.lower.emitter import Emitter


def _none(_: Mapping[str, float]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class StandardOp:
    """An op of the default domain and its attributes for a site's parameters."""

    op_type: str
    attributes: Callable[[Mapping[str, float]], dict[str, Any]] = _none


STANDARD_OPS: Mapping[str, StandardOp] = {
    "relu": StandardOp("Relu"),
    "sigmoid": StandardOp("Sigmoid"),
    "tanh": StandardOp("Tanh"),
    "erf": StandardOp("Erf"),
    "exp": StandardOp("Exp"),
    "softplus": StandardOp("Softplus"),
    "softsign": StandardOp("Softsign"),
    "selu": StandardOp("Selu"),
    "elu": StandardOp("Elu", lambda p: {"alpha": p["alpha"]}),
    "celu": StandardOp("Celu", lambda p: {"alpha": p["alpha"]}),
    "leaky_relu": StandardOp("LeakyRelu", lambda p: {"alpha": p["slope"]}),
    "hard_sigmoid": StandardOp("HardSigmoid", lambda _: {"alpha": 1 / 6, "beta": 0.5}),
    "hardswish": StandardOp("HardSwish"),
    "mish": StandardOp("Mish"),
    "gelu": StandardOp("Gelu"),
    "gelu_tanh": StandardOp("Gelu", lambda _: {"approximate": "tanh"}),
}


def standard_op(site: Site, emit: Emitter) -> tuple[str, dict[str, Any]] | None:
    """Return op type and attributes of the one op that computes the site's function, or None."""
    op = STANDARD_OPS.get(site.kind)
    if op is None or site.axis is not None or not emit.takes(op.op_type):
        return None
    return op.op_type, op.attributes({name: float(value) for name, value in site.parameters.items()})
