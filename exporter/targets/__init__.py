"""The runtimes that a model can be exported to: one file each."""

from __future__ import annotations

from actx.exporter import quantize
from actx.exporter.errors import UsageError
from actx.exporter.targets.base import Abilities, BuildRequest, Files, Graph, Target
from actx.exporter.targets.openvino import OpenVino
from actx.exporter.targets.ort_cpu import OrtCpu
from actx.exporter.targets.ort_cuda import OrtCuda
from actx.exporter.targets.portable import Portable
from actx.exporter.targets.tensorrt import Trt, TrtRtx

__all__ = [
    "TARGETS",
    "Abilities",
    "BuildRequest",
    "Files",
    "Graph",
    "Target",
    "check_scheme",
    "find_target",
]

TARGETS: dict[str, Target] = {
    target.name: target for target in (OrtCpu(), OpenVino(), OrtCuda(), Trt(), TrtRtx(), Portable())
}


def find_target(name: str) -> Target:
    """Return a target by name.

    Raises:
        UsageError: there is no such target.
    """
    if name not in TARGETS:
        raise UsageError(
            f"unknown target {name!r}", note=f"available: {', '.join(TARGETS)}", remedy="Choose one of these."
        )
    return TARGETS[name]


def check_scheme(target: Target, scheme: str | None, *, data: bool) -> None:
    """Check that a target has a quantization scheme, and that there is data to calibrate it on where it needs some.

    Raises:
        UsageError: the target has it not, the note is then the table of what there is; or data is missing.
    """
    if scheme is None:
        return
    if scheme not in target.schemes:
        table = "; ".join(f"{other.name}: {', '.join(other.schemes)}" for other in TARGETS.values() if other.schemes)
        remedy = "Choose one of these, or leave --quant out."
        raise UsageError(f"target {target.name} has no scheme {scheme!r}", note=table, remedy=remedy)
    quantize.check_data(scheme, data=data)
