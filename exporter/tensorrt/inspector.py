"""What an engine computes where: the layers that its inspector lists, and the sites that they compute.

The inspector's JSON depends on how an engine was built and on the version (NVIDIA, TensorRT, "Engine Inspector" and "Migrating
IEngineInspector Usage from TensorRT 10.x to 11.x"):

1. Built with detailed verbosity, a layer is an object: `Name`, `LayerType`, `Inputs`, `Outputs`, `Metadata`. Metadata holds
   ``[ONNX Layer: NAME]`` or ``[ONNX Layer: NAME | ...]`` for every node that went into the layer.
2. Otherwise a layer is its name alone, and nothing is known of its nodes.
3. A tensor's type stands in `Format/Datatype` up to version 10, with or without its layout around it, and from 11 in
   `DataType`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actx.exporter.documents import parse_json
from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actx.exporter.tensorrt.network import Origin

# Ops whose time is not that of an activation that was fused into them.
LINEAR = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger", "Einsum", "Attention", "LSTM", "GRU", "RNN"}
)
_NODE = re.compile(r"\[ONNX Layer: (?P<name>.*?)(?: \| .*?)?\](?=\s*(?:\[ONNX Layer: |\x1f|$))", re.DOTALL)
# How the formats spell element types, to numpy's names; the first that is found counts.
_TYPES = (
    (r"BF16|BFLOAT16", "bfloat16"), (r"FP16|HALF|FLOAT16", "float16"), (r"FP8|FLOAT8", "float8"), (r"FP4", "float4"),
    (r"FP32|FLOAT32|FLOAT", "float32"), (r"UINT8", "uint8"), (r"INT8", "int8"), (r"INT4", "int4"), (r"INT32", "int32"),
    (r"INT64", "int64"), (r"BOOL", "bool"),
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One layer of an engine: what runs as one kernel or a few.

    Attributes:
        name: as the profiler reports it.
        kind: as the library calls it; empty where it does not say.
        nodes: names of the ONNX nodes that it computes, as far as they are known.
        inputs: element types of what it reads, numpy's names, "unknown" for others.
        outputs: element types of what it gives.
    """

    name: str
    kind: str = ""
    nodes: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class SiteLayers:
    """How an engine computes a site.

    Attributes:
        layers: names of the layers that compute it, in the engine's order; none where it was folded away.
        one: whether it is one layer.
        shared: whether one of these also computes a linear op or another site, so that its time is not the site's alone.
        inputs: element types that these layers read, each once.
        outputs: element types that they give, each once.
    """

    layers: tuple[str, ...]
    one: bool
    shared: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def parse_layers(text: str) -> tuple[Layer, ...]:
    """Read the inspector's JSON of an engine, in any of its formats.

    Raises:
        ActxError: it is in none of them.
    """
    try:
        listed = parse_json(text)["Layers"]
        return tuple(_layer(entry) for entry in listed)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        note = f"{type(error).__name__}: {error}"
        raise ActxError(
            "the engine's inspector gave what cannot be read", note=note, remedy="Report the library's version."
        ) from error


def site_of(layer: Layer, nodes: Mapping[str, Origin]) -> str | None:
    """Return the site whose time a layer's time is; None where it has none, or shares the layer with a linear op or another.

    What is no linear op, such as the bias in front, is counted to the site.

    Args:
        layer: the layer.
        nodes: what every node of the graph is (`network.origins`).
    """
    known = [nodes[name] for name in layer.nodes if name in nodes]
    sites = {node.site for node in known if node.site is not None}
    return sites.pop() if len(sites) == 1 and not any(node.op_type in LINEAR for node in known) else None


def sites_of(layers: Sequence[Layer], nodes: Mapping[str, Origin]) -> dict[str, SiteLayers]:
    """Return how the engine computes every site of the graph.

    Args:
        layers: the engine's (`parse_layers`).
        nodes: what every node of the graph is (`network.origins`).
    """
    found: dict[str, list[Layer]] = {node.site: [] for node in nodes.values() if node.site is not None}
    for layer in layers:
        for site in {nodes[name].site for name in layer.nodes if name in nodes}:
            if site is not None:
                found[site].append(layer)
    return {site: _site_layers(site, own, nodes) for site, own in found.items()}


def _site_layers(site: str, layers: Sequence[Layer], nodes: Mapping[str, Origin]) -> SiteLayers:
    return SiteLayers(
        layers=tuple(layer.name for layer in layers),
        one=len(layers) == 1,
        shared=any(site_of(layer, nodes) != site for layer in layers),
        inputs=tuple(dict.fromkeys(dtype for layer in layers for dtype in layer.inputs)),
        outputs=tuple(dict.fromkeys(dtype for layer in layers for dtype in layer.outputs)),
    )


def _layer(entry: Any) -> Layer:
    if isinstance(entry, str):  # 2.
        return Layer(entry)
    nodes = dict.fromkeys(match["name"] for match in _NODE.finditer(str(entry.get("Metadata", ""))))
    return Layer(
        name=str(entry["Name"]),
        kind=str(entry.get("LayerType", "")),
        nodes=tuple(nodes),
        inputs=tuple(map(_dtype, entry.get("Inputs", ()))),
        outputs=tuple(map(_dtype, entry.get("Outputs", ()))),
    )


def _dtype(tensor: Any) -> str:
    """3."""
    if not isinstance(tensor, dict):
        return "unknown"
    text = str(tensor.get("DataType") or tensor.get("Datatype") or tensor.get("Format/Datatype", ""))
    return next((name for pattern, name in _TYPES if re.search(rf"(?<![A-Z])(?:{pattern})", text.upper())), "unknown")
