"""The plugins that take the nodes of `embed`, by TensorRT's `tensorrt.plugin`, for ahead-of-time compiled kernels.

1. There is one per number of inputs, because a plugin has a fixed number of them: `actx::Kernel2` to `actx::Kernel5`.
2. What a plugin needs is in its node: the functions here compile nothing, and know no op.
3. No `tensorrt.plugin.autotune`: without it TensorRT asks a plugin for no other than the types of the network and dense
   row-major tensors, and these are what a kernel was compiled for.

Source: NVIDIA, TensorRT documentation, "Adding custom layers using the Python API", and the docstrings of `tensorrt.plugin`.
"""

from __future__ import annotations

import importlib
import math
import warnings
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

from actx.custom_ops.gpu import grid
from actx.custom_ops.ops import DOMAIN
from actx.custom_ops.tensorrt.kernel_node import ATTRIBUTE, INPUT_COUNTS, KernelNode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MINIMUM = (10, 12)
_REMEDY = "install TensorRT 10.12 or newer; TensorRT-RTX has no plugins"
# Members of tensorrt.DataType.
_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int8": "INT8", "uint8": "UINT8"}


class PluginsUnavailable(Exception):  # noqa: N818 - the name states the condition, as GpuUnavailable does
    """The plugins cannot be registered here; the text says why."""


def register() -> None:
    """Register the plugins with TensorRT, for this process; a second call does nothing.

    Raises:
        PluginsUnavailable: TensorRT is not installed, or too old.
    """
    library, plugin = _library()
    registered = plugin.op.define_or_get(DOMAIN)
    for count in INPUT_COUNTS:
        if not hasattr(registered, f"Kernel{count}"):
            _register(library, plugin, count)


def _register(library: Any, plugin: Any, count: int) -> None:
    """1. TensorRT reads names and types of the parameters from the signature."""
    tensors = {f"x{index}": plugin.TensorDesc for index in range(count)}
    identifier = f"{DOMAIN}::Kernel{count}"

    def describe(*arguments: Any, **attributes: str) -> Any:
        return output(library, plugin, arguments[0], KernelNode.parse(attributes[ATTRIBUTE]))

    def implement(*arguments: Any) -> Any:
        text, outputs, _ = arguments[count:]
        return launch(plugin, outputs[0], KernelNode.parse(text))

    described = _with_signature(describe, {**tensors, ATTRIBUTE: str}, plugin.TensorDesc)
    plugin.register(identifier)(described)
    implemented = {**tensors, ATTRIBUTE: str, "outputs": tuple[plugin.TensorDesc], "tactic": int}
    result = tuple[str, str, plugin.KernelLaunchParams, plugin.SymExprs]
    plugin.aot_impl(identifier)(_with_signature(implement, implemented, result))


def output(library: Any, plugin: Any, first: Any, node: KernelNode) -> Any:
    """Return the descriptor of a node's output.

    Args:
        library: `tensorrt`.
        plugin: `tensorrt.plugin`.
        first: the descriptor of the first input.
        node: the node.
    """
    described = first.like()
    described.dtype = getattr(library.DataType, _TYPES[node.output])
    if node.halved is not None:
        sizes = list(first.shape_expr)
        sizes[node.halved] //= 2
        described.shape_expr = plugin.ShapeExprs.from_tuple(sizes)
    return described


def launch(plugin: Any, described: Any, node: KernelNode) -> tuple[str, str, Any, Any]:
    """Return the symbol, the code, and how it is launched: with which grid, block and shared memory, and the integers.

    Args:
        plugin: `tensorrt.plugin`.
        described: the descriptor of the output.
        node: the node.
    """
    sizes = described.shape_expr
    products = [math.prod((sizes[axis] for axis in axes), start=plugin.ShapeExpr(1)) for axes in node.integers]
    parameters = plugin.KernelLaunchParams()
    parameters.grid_x = grid(node.kernel, *products[:2])
    parameters.block_x = 32 * node.kernel.warps
    parameters.shared_mem = node.shared_bytes
    integers = plugin.SymIntExprs.from_tuple([plugin.SymInt32(product) for product in products])
    return node.kernel.name, node.ptx, parameters, integers


def _with_signature(function: Callable[..., Any], parameters: dict[str, Any], result: Any) -> Callable[..., Any]:
    named: Sequence[Parameter] = [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in parameters.items()
    ]
    function.__signature__ = Signature(named, return_annotation=result)  # type: ignore[attr-defined]
    return function


def _library() -> tuple[Any, Any]:
    """Return `tensorrt` and `tensorrt.plugin`."""
    try:
        library = importlib.import_module("tensorrt")
        version = str(library.__version__)
    except (ImportError, AttributeError) as error:
        msg = f"the plugins need TensorRT, which is not installed: {_REMEDY}"
        raise PluginsUnavailable(msg) from error
    if tuple(map(int, version.split(".")[:2])) < MINIMUM:
        msg = f"the plugins need TensorRT 10.12, found {version}: {_REMEDY}"
        raise PluginsUnavailable(msg)
    with warnings.catch_warnings():  # the interface is experimental in TensorRT, and says so
        warnings.simplefilter("ignore")
        return library, importlib.import_module("tensorrt.plugin")
