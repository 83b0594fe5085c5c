"""A graph as a network of the library: what it cannot take is found first, and told with the node, its scope and its site.

Found before the parser sees the graph, because it would name no node, or stay silent:

1. An op of another domain than ONNX's own. The parser looks an op up by its name alone. TensorRT takes actx nodes that have
   become plugins.
2. An element type that the library does not have. The parser would compute float64 in float32 and say nothing.
3. Quantization that is not symmetric int8: another type, a zero point that is not 0, an int32 tensor behind DequantizeLinear.
4. Nodes without a name, or with the same one: engines name their layers after nodes.

What the parser itself refuses is one error: the first, and how many more there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from actx.custom_ops.ops import DOMAIN
from actx.custom_ops.tensorrt import is_plugin
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.lift.naming import module_path
from actx.exporter.load.onnx_file import read_onnx
from actx.exporter.lower.emitter import SITE_METADATA

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from actx.exporter.tensorrt.library import Library

# NVIDIA, TensorRT API, DataType: what a tensor of a network can be.
_TYPES = frozenset({
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT8, ir.DataType.INT32, ir.DataType.INT64,
    ir.DataType.BOOL, ir.DataType.UINT8, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E8M0, ir.DataType.FLOAT4E2M1,
    ir.DataType.INT4,
})  # fmt: skip
_QUANTIZED = frozenset({ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1})
_DOMAINS = frozenset({"", "ai.onnx"})
_PORTABLE = "Build model.onnx: it holds standard ops only."
_SYMMETRIC = "Quantize symmetrically: int8 with zero point 0, biases left in floating point."


@dataclass(frozen=True)
class Network:
    """A parsed graph. Each part lives only as long as the ones before it: they are kept together.

    Attributes:
        log: the library's messages (`library.logger`).
        builder: the library's builder.
        definition: the network.
        parser: what parsed it; it holds the weights.
    """

    log: Any
    builder: Any
    definition: Any
    parser: Any


@dataclass(frozen=True)
class Origin:
    """What a node of the graph is.

    Attributes:
        op_type: its operator.
        site: the site that it computes, or None.
    """

    op_type: str
    site: str | None


def origins(graph: Path, owners: Mapping[str, str]) -> dict[str, Origin]:
    """Return what every node of a graph is, by its name.

    Args:
        graph: an ONNX file.
        owners: the site of every value that a site computes, by the value's name.

    Raises:
        ActxError: the file is no ONNX model.
    """
    found = {}
    for node in read_onnx(graph).graph.all_nodes():
        sites = (owners.get(str(value.name)) for value in node.outputs)
        found[str(node.name)] = Origin(node.op_type, next((site for site in sites if site is not None), None))
    return found


def check_graph(graph: Path, title: str, *, takes_plugins: bool = False) -> tuple[str, ...]:
    """Check that a graph has nothing that the libraries are known not to take, rules 1 to 4, and return its plugins' names.

    Args:
        graph: an ONNX file, its external data beside it.
        title: name of the library, for the errors.
        takes_plugins: whether it takes plugins.

    Raises:
        UsageError: a type or a quantization is outside what they take.
        ActxError: an op is, or the file is no complete ONNX model.
    """
    model = read_onnx(graph)
    known = _DOMAINS | {name[0] for name in model.functions}
    nodes = list(_nodes(model))
    plugins = tuple(str(node.name) for node in nodes if takes_plugins and is_plugin(node))
    for node in nodes:
        if node.name not in plugins:
            _check_domain(node, known, title)
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _check_type(value.dtype, f"'{value.name}' is", title)
    for node in nodes:
        _check_types(node, title)
        _check_quantization(node, title)
    _check_names(model)
    return plugins


def parse(library: Library, builder: Any, graph: Path, log: Any) -> Network:
    """Parse a graph that `check_graph` passed, strongly typed.

    Args:
        library: whose parser it is.
        builder: its builder.
        graph: an ONNX file, its external data beside it.
        log: what the builder logs to.

    Raises:
        ActxError: the parser refuses it.
    """
    flags = library.module.NetworkDefinitionCreationFlag
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0  # always so from 11 on
    definition = builder.create_network(typed)
    parser = library.module.OnnxParser(definition, log)
    if not parser.parse_from_file(str(graph.resolve())):
        raise _parse_error(library, parser, read_onnx(graph), log)
    return Network(log, builder, definition, parser)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _check_domain(node: ir.Node, known: frozenset[str], title: str) -> None:
    """1."""
    if node.domain == DOMAIN:
        what = f"{title} has no kernel for {_named(node)}"
        raise ActxError(what, note=_place(node, f"an op of domain {DOMAIN}"), remedy=_PORTABLE)
    if node.domain not in known:
        what = f"{title} does not have {_named(node)}"
        note = _place(node, f"it is of domain {node.domain}, available: ONNX's own ops")
        raise ActxError(what, note=note, remedy="Export the model with standard ops only.")


def _check_types(node: ir.Node, title: str) -> None:
    """2. Of values, constants and casts."""
    for value in node.outputs:
        _check_type(value.dtype, f"{_named(node)} gives", title, _place(node))
    to = node.attributes.get("to") if node.op_type == "Cast" else None
    if to is not None and not to.is_ref():
        _check_type(ir.DataType(to.as_int()), f"{_named(node)} gives", title, _place(node))


def _check_type(dtype: ir.DataType | None, beginning: str, title: str, place: str = "") -> None:
    if dtype is None or dtype in _TYPES or dtype == ir.DataType.UNDEFINED:
        return
    name = "strings" if dtype == ir.DataType.STRING else dtype.numpy().name
    remedy = "Export it in float32." if dtype == ir.DataType.DOUBLE else "Export it with int32 or int64 there."
    note = "; ".join(part for part in (place, "it has float32, float16, bfloat16, int8, int32, int64, bool") if part)
    raise UsageError(f"{beginning} {name}, which {title} does not have", note=note, remedy=remedy)


def _check_quantization(node: ir.Node, title: str) -> None:
    """3."""
    if node.op_type not in {"QuantizeLinear", "DequantizeLinear"} or node.domain not in _DOMAINS:
        return
    dtype = _quantized_type(node)
    if dtype is not None and dtype not in _QUANTIZED:
        what = f"{title} does not quantize to {dtype.numpy().name}, as {_named(node)} does"
        raise UsageError(what, note=_place(node), remedy=_SYMMETRIC)
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    constant = None if zero is None else ir.convenience.get_const_tensor(zero)
    if constant is not None and np.any(constant.numpy().astype(np.float32)):
        what = f"{title} quantizes symmetrically, and {_named(node)} has a zero point that is not 0"
        raise UsageError(what, note=_place(node), remedy=_SYMMETRIC)


def _quantized_type(node: ir.Node) -> ir.DataType | None:
    """Return the quantized element type, None where the graph does not say. ONNX: without a zero point it is uint8."""
    if node.op_type == "DequantizeLinear":
        return node.inputs[0].dtype if node.inputs[0] is not None else None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return node.inputs[2].dtype
    given = node.attributes.get("output_dtype")
    return ir.DataType(given.as_int()) if given is not None and given.as_int() else ir.DataType.UINT8


def _check_names(model: ir.Model) -> None:
    """4."""
    seen: set[str] = set()
    for node in model.graph.all_nodes():
        if not node.name or node.name in seen:
            what = f"two nodes are named '{node.name}'" if node.name else f"a {node.op_type} node has no name"
            note = _place(node, "an engine's layers are told apart by the names of their nodes")
            raise ActxError(what, note=note, remedy="Give every node a name of its own.")
        seen.add(node.name)


def _parse_error(library: Library, parser: Any, model: ir.Model, log: Any) -> ActxError:
    """Say what the parser refused first, and how many errors there are besides."""
    if not parser.num_errors:
        note = log.errors[-1] if log.errors else ""
        return ActxError(
            f"{library} cannot parse the graph", note=note, remedy="Check it with onnx.checker.check_model."
        )
    error = parser.get_error(0)
    node = _find(model, str(error.node_name()), str(error.node_operator()))
    named = f"'{error.node_name()}' ({error.node_operator()})" if error.node_operator() else "the graph"
    within = ", ".join(error.local_function_stack())
    unknown = "it has no such op: " if "Plugin not found" in str(error.desc()) else ""
    facts = [
        f"{unknown}{error.desc()}",
        f"in {within}" if within else "",
        "" if node is None else _place(node),
        f"and {parser.num_errors - 1} more" if parser.num_errors > 1 else "",
    ]
    return ActxError(
        f"{library} does not take {named}",
        note="; ".join(fact for fact in facts if fact),
        remedy="Export the model without that op or setting, or for another target.",
    )


def _find(model: ir.Model, name: str, op_type: str) -> ir.Node | None:
    return next((node for node in _nodes(model) if node.name == name and node.op_type == op_type), None)


def _named(node: ir.Node) -> str:
    return f"'{node.name or node.outputs[0].name}' ({node.op_type})"


def _place(node: ir.Node, fact: str = "") -> str:
    """Return a fact, the scope and the site of a node as far as they are known."""
    scopes, site = module_path(node), node.metadata_props.get(SITE_METADATA)
    parts = (fact, f"scope {scopes[-1]}" if scopes else "", f"site {site}" if site else "")
    return "; ".join(part for part in parts if part)
