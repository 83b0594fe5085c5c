"""What every op of domain `actx` says of itself: one class per op, whose instances are nodes with checked attributes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import ml_dtypes
import numpy as np
from onnx import AttributeProto, TypeProto, defs, helper
from onnx.reference.op_run import OpRun
from onnx.shape_inference import InferenceError

from actx.custom_ops.ops import cuda
from actx.custom_ops.ops.rounding import overflow_threshold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

DOMAIN = "actx"
OPSET = 1

# A size, the name of one, None where nothing is known of it, or what torch has in place of a size while it traces.
Dim: TypeAlias = Any
Shape: TypeAlias = "tuple[Dim, ...]"
Array: TypeAlias = "NDArray[Any]"
Attribute = defs.OpSchema.Attribute
AttributeKind = defs.OpSchema.AttrType

FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
CODES = (np.dtype(np.int8), np.dtype(np.uint8))


def with_default(name: str, value: float | str, doc: str) -> Attribute:
    """Declare an attribute with a default."""
    return Attribute(name, helper.make_attribute(name, value), doc)


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of a tensor; None where the rank is not known."""

    dtype: np.dtype[Any]
    shape: Shape | None

    @classmethod
    def of(cls, array: Array) -> TensorType:
        """Return the type of an array."""
        return cls(array.dtype, array.shape)


@dataclass(frozen=True)
class Parameter:
    """An input or the output: its name, the type parameter it is of, what it is, and whether it may be absent."""

    name: str
    type_name: str
    doc: str
    optional: bool = False


class Op(ABC):
    """An operator; an instance is a node of it.

    Subclasses are frozen dataclasses of the checked attributes. All methods take the inputs in the order of `INPUTS`, None
    for an optional one that is absent.

    Attributes:
        NAME: the op type.
        TORCH_NAME: what it is called in ``torch.ops.actx``.
        DOC: one sentence of what it computes.
        INPUTS: the optional ones last.
        OUTPUT: the one output.
        TYPES: the element types of each type parameter.
        ATTRIBUTES: their names, kinds and defaults.
        ON_GPU: whether there are kernels of it for GPUs.
    """

    NAME: ClassVar[str]
    TORCH_NAME: ClassVar[str]
    DOC: ClassVar[str]
    INPUTS: ClassVar[tuple[Parameter, ...]]
    OUTPUT: ClassVar[Parameter]
    TYPES: ClassVar[Mapping[str, tuple[np.dtype[Any], ...]]]
    ATTRIBUTES: ClassVar[tuple[Attribute, ...]]
    ON_GPU: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Self:
        """Check the attributes of a node; one that is None counts as absent.

        Raises:
            ValueError: one is missing, out of range, or they do not fit together.
        """

    @abstractmethod
    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the node."""

    @abstractmethod
    def shape_rule(self, inputs: Sequence[TensorType | None]) -> TensorType:
        """Return the type and shape of the output, as far as those of the inputs are known; their types fit.

        Raises:
            ValueError: the shapes do not fit.
        """

    def output(self, inputs: Sequence[TensorType | None]) -> TensorType:
        """Return the type and shape of the output, as far as those of the inputs are known.

        Raises:
            ValueError: types or shapes do not fit.
        """
        found: dict[str, np.dtype[Any]] = {}
        for parameter, tensor in zip(self.INPUTS, inputs, strict=True):
            if tensor is None:
                continue
            kind = parameter.type_name
            allowed = (found[kind],) if kind in found else self.TYPES[kind]
            if tensor.dtype not in allowed:
                names = " or ".join(dtype.name for dtype in allowed)
                msg = f"actx::{self.NAME} takes {parameter.name} of {names} here, got {tensor.dtype}"
                raise ValueError(msg)
            found[kind] = tensor.dtype
        return self.shape_rule(inputs)

    @abstractmethod
    def evaluate(self, inputs: Sequence[Array | None]) -> NDArray[np.float64]:
        """Return the exact result: evaluated in float64, before it is rounded to the element type."""

    @abstractmethod
    def tolerance(self, inputs: Sequence[Array | None]) -> NDArray[np.float64]:
        """Return the accuracy contract: how far each element of a kernel's result may be from `evaluate`.

        It is infinite where the definition leaves the result open.
        """

    def reference(self, inputs: Sequence[Array | None]) -> Array:
        """Return the result rounded to the element type of the output.

        Raises:
            ValueError: types or shapes of the inputs do not fit.
        """
        output = self.output([None if array is None else TensorType.of(array) for array in inputs])
        with np.errstate(all="ignore"):
            return np.asarray(self.evaluate(inputs), output.dtype)

    def agrees(self, result: Array, inputs: Sequence[Array | None]) -> NDArray[np.bool_]:
        """Tell for each element whether a kernel's result keeps the contract.

        NaN and infinities must be those of the exact result, but that what may round to an infinity may be one.
        """
        with np.errstate(all="ignore"):
            exact, allowed, value = self.evaluate(inputs), self.tolerance(inputs), result.astype(np.float64)
            close = np.abs(value - exact) <= allowed
            overflows = np.isinf(value) & (np.sign(value) == np.sign(exact))
            overflows &= np.isfinite(exact) & (np.abs(exact) + allowed >= overflow_threshold(result.dtype))
        same = (value == exact) | (np.isnan(value) & np.isnan(exact))
        return np.asarray(same | close | overflows | np.isinf(allowed))

    @classmethod
    def schema(cls) -> defs.OpSchema:
        """Return the operator schema, with its shape inference."""
        option = defs.OpSchema.FormalParameterOption
        schema = defs.OpSchema(
            cls.NAME,
            DOMAIN,
            OPSET,
            doc=cls.DOC,
            inputs=[
                defs.OpSchema.FormalParameter(
                    p.name, p.type_name, p.doc, param_option=option.Optional if p.optional else option.Single
                )
                for p in cls.INPUTS
            ],
            outputs=[defs.OpSchema.FormalParameter(cls.OUTPUT.name, cls.OUTPUT.type_name, cls.OUTPUT.doc)],
            type_constraints=[
                (name, [_onnx_name(dtype) for dtype in dtypes], "element types") for name, dtypes in cls.TYPES.items()
            ],
            attributes=[*cls.ATTRIBUTES, *cuda.ATTRIBUTES],
        )
        schema.set_type_and_shape_inference_function(cls._infer)
        return schema

    @classmethod
    def _infer(cls, context: Any) -> None:
        """Infer for onnx: what is not known of the inputs stays unknown."""
        attributes = {a.name: attribute_value(context.get_attribute(a.name)) for a in cls.ATTRIBUTES}
        given = context.get_num_inputs()
        inputs = [_from_onnx(context.get_input_type(i)) if i < given else None for i in range(len(cls.INPUTS))]
        if inputs[0] is None:
            return
        try:
            output = cls.from_attributes(attributes).output(inputs)
        except ValueError as error:
            raise InferenceError(str(error)) from error
        context.set_output_type(0, _to_onnx(output))

    @classmethod
    def reference_op(cls) -> type[OpRun]:
        """Return the op as onnx's `ReferenceEvaluator` takes it."""

        def run(_: OpRun, *inputs: Array | None, **attributes: Any) -> tuple[Array]:
            absent = [None] * (len(cls.INPUTS) - len(inputs))
            return (cls.from_attributes(attributes).reference([*inputs, *absent]),)

        # The evaluator finds an op by the name of its class.
        return type(cls.NAME, (OpRun,), {"op_domain": DOMAIN, "_run": run})


def attribute_value(attribute: AttributeProto | None) -> Any:
    """Return the value of an attribute as plain Python, None where it is absent."""
    if attribute is None or attribute.type == AttributeProto.UNDEFINED:
        return None
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _onnx_name(dtype: np.dtype[Any]) -> str:
    return f"tensor({'float' if dtype == np.float32 else dtype.name})"


def _from_onnx(proto: TypeProto | None) -> TensorType | None:
    if proto is None or not proto.tensor_type.elem_type:
        return None
    tensor = proto.tensor_type
    dims = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim
    )  # fmt: skip
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return TensorType(dtype, dims if tensor.HasField("shape") else None)


def _to_onnx(tensor: TensorType) -> TypeProto:
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(tensor.dtype), tensor.shape)


def same_shape(op: str, names: str, first: Shape | None, second: Shape | None) -> Shape | None:
    """Return what is known of a shape from two tensors of it.

    Raises:
        ValueError: they surely have different shapes.
    """
    if first is None or second is None:
        return second if first is None else first
    pairs = list(zip(first, second, strict=False))
    if len(first) != len(second) or any(is_known(a) and is_known(b) and a != b for a, b in pairs):
        msg = f"actx::{op} needs {names} of one shape, got {first} and {second}"
        raise ValueError(msg)
    return tuple(a if is_known(a) else b for a, b in pairs)


def is_known(dim: Dim) -> bool:
    """Tell whether the dimension is a size."""
    return dim is not None and not isinstance(dim, str)


def dim_of(op: str, shape: Shape, axis: int) -> Dim:
    """Return a dimension by its axis.

    Raises:
        ValueError: there is no such axis.
    """
    if not -len(shape) <= axis < len(shape):
        msg = f"actx::{op} has axis {axis}, and its input has rank {len(shape)}"
        raise ValueError(msg)
    return shape[axis]


def check_channels(op: str, shape: Shape | None, axis: int | None, channels: int | None) -> None:
    """Check that a table per channel fits.

    Raises:
        ValueError: the axis is missing, or has another size.
    """
    if shape is None or axis is None or channels is None:
        return
    size = dim_of(op, shape, axis)
    if is_known(size) and size != channels:
        msg = f"axis {axis} has {size} elements, actx::{op} has {channels} channels"
        raise ValueError(msg)


def integer(op: str, attributes: Mapping[str, Any], name: str, default: int, allowed: range | None = None) -> int:
    """Return an integer attribute.

    Raises:
        ValueError: it is out of range.
    """
    given = attributes.get(name)
    value = default if given is None else int(given)
    if allowed is not None and value not in allowed:
        msg = f"actx::{op} attribute {name} must be from {allowed[0]} to {allowed[-1]}, got {value}"
        raise ValueError(msg)
    return value


def required(op: str, attributes: Mapping[str, Any], name: str) -> Any:
    """Return an attribute.

    Raises:
        ValueError: it is absent.
    """
    value = attributes.get(name)
    if value is None:
        msg = f"actx::{op} needs the attribute {name}"
        raise ValueError(msg)
    return value
