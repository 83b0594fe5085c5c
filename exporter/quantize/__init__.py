"""Put the precision of a scheme into the graph: strongly typed runtimes take it from there alone.

`quantize` is a pure function of the lowered graph. The result is standard ONNX and runs in ONNX Runtime too, where its
drift can be measured before an engine exists. A scheme is one line of `SCHEMES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from actx.exporter.collection import no_garbage_collection
from actx.exporter.errors import UsageError
from actx.exporter.quantize.half import to_half
from actx.exporter.quantize.inference import infer_types
from actx.exporter.quantize.qdq import FP8, HALF_OPSET, INT8, Code, to_codes
from actx.exporter.runtimes.onnxruntime import DEFAULT, RuntimeOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir

    from actx.exporter.data import Arrays

__all__ = ["SCHEMES", "Scheme", "check_data", "check_scheme", "quantize"]


@dataclass(frozen=True)
class Scheme:
    """What a scheme does to a graph.

    Attributes:
        layers: what the linear layers compute in, None for what the rest does. It needs data.
        half: whether everything else computes in float16, as far as that holds it.
        summary: in words.
    """

    layers: Code | None
    half: bool
    summary: str


SCHEMES: dict[str, Scheme] = {
    "fp16": Scheme(None, half=True, summary="float16; sums, norms that are written out and masks in float32"),
    "int8": Scheme(INT8, half=False, summary="linear layers in int8, the rest in float32"),
    "int8-fp16": Scheme(INT8, half=True, summary="linear layers in int8, the rest as in fp16"),
    "fp8": Scheme(FP8, half=False, summary="linear layers in float8 (E4M3FN), the rest in float32"),
    "fp8-fp16": Scheme(FP8, half=True, summary="linear layers in float8 (E4M3FN), the rest as in fp16"),
}

# Schemes of which scales of activations are measured.
NEED_DATA = frozenset({"int8-bf16", *(name for name, scheme in SCHEMES.items() if scheme.layers)})


def check_scheme(name: str, *, data: bool) -> Scheme:
    """Return a scheme by name, before any work is done.

    Args:
        name: from `SCHEMES`.
        data: whether there is data of the user's to calibrate on.

    Raises:
        UsageError: there is no such scheme, or it needs data and there is none.
    """
    if name not in SCHEMES:
        raise UsageError(
            f"unknown scheme {name!r}", note=f"available: {', '.join(SCHEMES)}", remedy="Choose one of these."
        )
    check_data(name, data=data)
    return SCHEMES[name]


def check_data(scheme: str, *, data: bool) -> None:
    """Check before any work that there is data for a scheme that needs it.

    Raises:
        UsageError: there is none.
    """
    if scheme in NEED_DATA and not data:
        raise UsageError(
            f"the scheme {scheme} needs data",
            note="the scales of activations are measured, and those of random input would be wrong",
            remedy="Give representative samples with --data, or choose a scheme that needs none.",
        )


def quantize(
    model: ir.Model,
    scheme: str,
    *,
    batches: Iterable[Arrays] | None = None,
    options: RuntimeOptions = DEFAULT,
) -> ir.Model:
    """Return a model typed as the scheme says. The given one is not changed.

    Names of values stay, and so do the types of the graph's inputs and outputs.

    Args:
        model: the lowered graph of standard ops, with types and shapes; sites are known by their `SITE_METADATA`.
        scheme: a name from `SCHEMES`.
        batches: feeds to calibrate on, of one shape or several; those of the user, and not random ones.
        options: how the model is run for that.

    Raises:
        UsageError: the scheme is unknown or does not apply to the model, or data is missing (see `check_scheme`, `to_codes`).
        ActxError: the model cannot be run on the data, or the type of a value cannot be inferred.
    """
    wanted = check_scheme(scheme, data=batches is not None)
    opset = model.opset_imports[""]
    if wanted.layers and wanted.half and opset < HALF_OPSET:
        raise UsageError(
            f"the scheme {scheme} needs opset {HALF_OPSET}",
            note=f"the model's is {opset}, whose QuantizeLinear takes no float16",
            remedy="Export with a newer --opset, or choose the scheme int8.",
        )
    with no_garbage_collection():
        typed = model.clone()
        infer_types(typed)
        if wanted.layers and batches is not None:
            typed = to_codes(typed, wanted.layers, batches, options)
        return to_half(typed) if wanted.half else typed
