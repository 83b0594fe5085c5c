"""The runtimes that a model can be exported to."""

from __future__ import annotations

from dataclasses import dataclass

from actx.exporter.errors import TargetUnavailable, UsageError


@dataclass(frozen=True)
class Target:
    """A runtime on a device class.

    Attributes:
        name: as it is called on the command line.
        native: whether a graph of bare actx nodes is written beside the portable one.
        fast: kinds of sites that it runs as one fast op, and that nothing is gained by rewriting unasked.
    """

    name: str
    native: bool
    fast: frozenset[str]


# Measured on ONNX Runtime 1.31's CPU kernels: within 2.5 times the cost of the cheapest op on the same tensor.
_FAST_ON_CPU = frozenset({
    "relu", "relu2", "relu6", "hardtanh", "leaky_relu", "prelu", "hard_sigmoid", "hardswish", "sigmoid", "tanh", "silu",
    "gelu", "gelu_tanh", "quick_gelu",
})  # fmt: skip

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (Target("ort-cpu", native=True, fast=_FAST_ON_CPU), Target("onnx", native=False, fast=frozenset()))
}
PLANNED = ("openvino", "ort-cuda", "trt", "trt-rtx")


def find_target(name: str) -> Target:
    """Return a target by name.

    Raises:
        TargetUnavailable: the target is known, but this version cannot build it.
        UsageError: there is no such target.
    """
    if name in PLANNED:
        raise TargetUnavailable(
            f"target {name} cannot be built by this version",
            note=f"available: {', '.join(TARGETS)}",
            remedy="Export with --target onnx: model.onnx holds standard ops only, which other runtimes' own builders take.",
        )
    if name not in TARGETS:
        raise UsageError(
            f"unknown target {name!r}", note=f"available: {', '.join(TARGETS)}", remedy="Choose one of these."
        )
    return TARGETS[name]
