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
        fast: kinds of sites that it runs as one op about as fast as an actx node, so that they are not rewritten unasked.
    """

    name: str
    native: bool
    fast: frozenset[str]


# What ONNX Runtime's own op for a kind costs on a CPU, as a multiple of the actx node that would replace it: float32, one
# thread, on AVX-512 or AVX2, whichever is less (`python -m tests.benchmarks.kernels isas`), because the device may have
# either. A kind that is not here has no op that comes near.
_COST_OF_OWN_OP = {
    "relu": 0.7, "relu6": 0.5, "hardtanh": 0.6, "leaky_relu": 0.8, "prelu": 0.8, "relu2": 1.7, "hard_sigmoid": 0.7,
    "hardswish": 2.4, "sigmoid": 0.4, "tanh": 0.3, "silu": 0.3, "gelu": 0.7, "gelu_tanh": 0.6, "quick_gelu": 0.7,
}  # fmt: skip
# Outputs are not changed unasked for less than this.
_WORTH_A_REWRITE = 1.5
_FAST_ON_CPU = frozenset(kind for kind, cost in _COST_OF_OWN_OP.items() if cost < _WORTH_A_REWRITE)

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
