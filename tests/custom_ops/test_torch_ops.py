"""The ops in torch: values, gradients, tracing and export, each asked of every op."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import checker
from onnx.reference import ReferenceEvaluator
from torch import nn

from actx.custom_ops import Spline, cpu, torch_ops
from actx.custom_ops.ops import DOMAIN, OPS, reference_ops
from tests.op_cases import Case, attention_inputs, cases, channel_table, gelu_table, linear_inputs, numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

COMPILED = ("Spline", "Lut")  # Inductor builds a library for each
ALL = pytest.mark.parametrize("op_type", OPS)


def tensor(array: NDArray[Any]) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def array(of: torch.Tensor) -> NDArray[Any]:
    if of.dtype is torch.bfloat16:
        return of.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return of.detach().numpy()


def function(case: Case) -> Callable[..., torch.Tensor]:
    op, attributes = getattr(torch.ops.actx, case.op.TORCH_NAME), case.op.attributes()
    return lambda *tensors: op(*tensors, **attributes)


def tensors(case: Case) -> list[torch.Tensor | None]:
    return [None if given is None else tensor(given) for given in case.inputs]


def some(op_type: str, count: int = 40) -> list[Case]:
    found = list(cases(op_type))
    return found[:: max(1, len(found) // count)]


# One ordinary node of each op, with its inputs.
PLAIN = {
    case.op.NAME: case
    for case in (
        Case("plain", OPS["Spline"](gelu_table(16, 3)), (numbers(1, (4, 6), np.float32), numbers(2, (4, 6), np.float32))),
        Case(
            "plain",
            OPS["GatedSpline"](channel_table(1, 3, -1), gelu_table(8, 2), -1, "interleaved", 1),
            (numbers(3, (4, 6), np.float32),),
        ),
        Case(
            "plain",
            OPS["SplineMix"]((gelu_table(8, 3), Spline.of(gelu_table(8, 3).knots, np.ones((8, 4)), gelu_table(8, 3).origins))),
            (numbers(4, (4, 6), np.float32), numbers(5, (4, 2), np.float32), numbers(6, (4, 6), np.float32)),
        ),
        Case(
            "plain",
            OPS["PolyNorm"](1e-3),
            (
                numbers(7, (4, 6), np.float32), np.array([0.5, -1, 2], np.float32), np.array([0.3], np.float32),
                numbers(8, (4, 6), np.float32),
            ),
        ),
        Case("plain", OPS["Lut"](tuple(range(256)), 2), (np.arange(24).astype(np.int8).reshape(4, 6),)),
        Case(
            "plain",
            OPS["GatedLut"](tuple(np.linspace(-1, 1, 256).tolist()), 3, 5),
            (np.arange(24).astype(np.int8).reshape(4, 6), np.arange(24).astype(np.uint8).reshape(4, 6)),
        ),
        Case("plain", OPS["QAttention"](2, 2**-10, 0.5, 1, 2, 3, 4), attention_inputs(11, (2, 4, 5, 6, 8), (2, 1, 1, 5))),
        Case("plain", OPS["QLinear"](7, tuple(range(256))), linear_inputs(9, (4,), 6, 5, "narrow")),
        Case("plain", OPS["QLinearToFloat"](), linear_inputs(10, (4,), 6, 5, "narrow")),
    )
}  # fmt: skip
ANY_SIZE = {"QAttention": 1}  # the axis of the first input that others do not have; elsewhere the first one
FLOAT_OPS = [name for name, case in PLAIN.items() if case.inputs[0].dtype == np.float32]  # type: ignore[union-attr]


@pytest.fixture
def _no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cpu, "find", lambda: None)
    torch_ops._library.cache_clear()
    yield
    torch_ops._library.cache_clear()


# --- values ---


@ALL
def test_it_keeps_the_contract(op_type: str) -> None:
    for case in some(op_type, 80):
        result = array(function(case)(*tensors(case)))
        output = case.op.reference(case.inputs)
        assert (result.dtype, result.shape) == (output.dtype, output.shape), str(case)
        assert case.op.agrees(result, case.inputs).all(), str(case)


@ALL
@pytest.mark.usefixtures("_no_library")
def test_without_the_library_it_is_the_reference(op_type: str) -> None:
    for case in some(op_type):
        result, expected = array(function(case)(*tensors(case))), case.op.reference(case.inputs)
        np.testing.assert_array_equal(result.astype(np.float64), expected.astype(np.float64), str(case))


@ALL
def test_tensors_may_be_strided(op_type: str) -> None:
    case = PLAIN[op_type]
    strided = [given if given.dim() < 2 else given.mT.contiguous().mT for given in tensors(case) if given is not None]
    result = function(case)(*strided)
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(result, function(case)(*tensors(case)), rtol=0, atol=0)


def test_what_does_not_fit_is_refused() -> None:
    table = gelu_table(8, 1).attributes()
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"actx::Spline takes no tensors of torch.float64"):
        torch.ops.actx.spline(x.double(), **table)
    with pytest.raises(ValueError, match=r"shape.*\[2, 1\] and \[2, 3\]"):
        torch.ops.actx.spline(x, torch.zeros(2, 1), **table)
    with pytest.raises(ValueError, match="axis -1"):
        torch.ops.actx.gated_spline(x, **table)
    with pytest.raises(ValueError, match="do not fit together"):
        torch.ops.actx.spline(x, **{**table, "degree": 2})
    with pytest.raises(ValueError, match="even size along axis -1"):
        torch.ops.actx.gated_spline(x.to("meta"), **table)


@ALL
def test_meta_tensors_have_the_shape(op_type: str) -> None:
    for case in some(op_type):
        result = function(case)(*(None if given is None else given.to("meta") for given in tensors(case)))
        expected = case.op.reference(case.inputs)
        assert tuple(result.shape) == expected.shape
        assert array(torch.empty(0, dtype=result.dtype)).dtype == expected.dtype


def test_the_other_packages_do_not_import_torch() -> None:
    code = "import sys, actx.custom_ops, actx.custom_ops.ops, actx.custom_ops.cpu; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- gradients ---


@pytest.mark.parametrize("op_type", FLOAT_OPS)
@pytest.mark.parametrize("layout", ["whole", "without U"])
def test_gradients_are_those_of_the_reference(op_type: str, layout: str) -> None:
    """Along random directions, against central differences in float64; float32 leaves 1e-5 of the sum of magnitudes."""
    case = PLAIN[op_type]
    optional = case.op.INPUTS[-1].optional and layout == "without U"
    inputs = [given for given in case.inputs[: len(case.inputs) - optional] if given is not None]
    absent = [None] * optional
    given = [tensor(one).requires_grad_() for one in inputs]
    result = function(case)(*given, *absent)
    upstream = numbers(11, tuple(result.shape), np.float32)
    gradients = torch.autograd.grad(result, given, tensor(upstream))
    for i, gradient in enumerate(gradients):
        direction = np.random.default_rng(i).normal(0, 1, inputs[i].shape)

        def moved(step: float, i: int = i, direction: NDArray[Any] = direction) -> NDArray[Any]:
            wide = [one.astype(np.float64) for one in inputs]
            wide[i] = wide[i] + step * direction
            return case.op.evaluate([*wide, *absent])

        slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
        terms = array(gradient).astype(np.float64) * direction
        assert abs(terms.sum() - (slope * upstream).sum()) <= 1e-5 * (
            np.abs(terms).sum() + np.abs(slope * upstream).sum()
        )


@pytest.mark.parametrize("gate", [0, 1])
@pytest.mark.parametrize("layout", ["split", "interleaved"])
def test_gradients_go_to_the_right_half(layout: str, gate: int) -> None:
    x = tensor(numbers(1, (3, 8, 2), np.float32)).requires_grad_()
    table = gelu_table(16, 3).attributes()
    halves = x.chunk(2, 1) if layout == "split" else (x[:, 0::2], x[:, 1::2])
    expected = torch.ops.actx.spline(halves[gate], halves[1 - gate], **table)
    result = torch.ops.actx.gated_spline(x, **table, axis=1, layout=layout, gate=gate)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    (found,), (wanted,) = (torch.autograd.grad(y.sum(), x, retain_graph=True) for y in (result, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op_type", FLOAT_OPS)
def test_gradients_have_the_type_of_their_tensor(op_type: str, dtype: torch.dtype) -> None:
    case = PLAIN[op_type]
    given = [one.to(dtype).requires_grad_() for one in tensors(case) if one is not None]
    function(case)(*given).sum().backward()
    for one in given:
        assert one.grad is not None
        assert (one.grad.dtype, one.grad.shape) == (dtype, one.shape)


# --- tracing and export ---


class Net(nn.Module):
    """The op of a case, behind a layer that gives its first input where that is of floats."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.call = function(case)
        first, *others = tensors(case)
        assert first is not None
        self.layer = nn.Linear(first.shape[-1], first.shape[-1]) if first.is_floating_point() else nn.Identity()
        self.rows = [other is not None and other.dim() == 2 for other in others]
        for i, other in enumerate(others):
            self.register_buffer(f"other{i}", other)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        others = []
        for i, by_row in enumerate(self.rows):
            other = getattr(self, f"other{i}")
            others.append(other[:1].expand(x.shape[0], other.shape[1]) if by_row else other)
        return self.call(self.layer(x), *others)


@ALL
def test_torch_checks_its_registration(op_type: str) -> None:
    case = PLAIN[op_type]
    given = [one if one is None else one.requires_grad_(op_type in FLOAT_OPS) for one in tensors(case)]
    torch.library.opcheck(getattr(torch.ops.actx, case.op.TORCH_NAME), tuple(given), case.op.attributes())


@pytest.mark.parametrize(
    "op_type", [pytest.param(one, marks=[pytest.mark.slow] * (one not in COMPILED)) for one in OPS]
)
def test_torch_compiles_it_for_any_batch(op_type: str) -> None:
    torch._dynamo.reset()  # it refuses to compile one function for more than eight ops
    net = Net(PLAIN[op_type])
    compiled = torch.compile(net, backend="aot_eager", dynamic=True, fullgraph=True)
    (x, *_) = tensors(PLAIN[op_type])
    assert x is not None
    for count in (4, 3, 2):
        part = x.narrow(ANY_SIZE.get(op_type, 0), 0, count)
        torch.testing.assert_close(compiled(part), net(part), rtol=0, atol=0)


@ALL
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's, of its own code
def test_onnx_export_gives_the_one_node(op_type: str) -> None:
    case = PLAIN[op_type]
    net, x = Net(case), tensors(case)[0]
    assert x is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own code
        exported = torch.onnx.export(
            net, (x,), dynamo=True, verbose=False, dynamic_shapes=({ANY_SIZE.get(op_type, 0): torch.export.Dim.DYNAMIC},),
            custom_translation_table=torch_ops.onnx_translations(),
        )  # fmt: skip
    assert exported is not None
    model = exported.model_proto
    checker.check_model(model, full_check=True)
    (node,) = [node for node in model.graph.node if node.domain == DOMAIN]
    assert node.op_type == op_type
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    found = {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}
    assert type(case.op).from_attributes(found).attributes() == case.op.attributes()
    session = ReferenceEvaluator(model, new_ops=reference_ops())
    part = x.narrow(ANY_SIZE.get(op_type, 0), 0, 3)
    (result,) = session.run(None, {model.graph.input[0].name: array(part)})
    # Both round the layer in front, which the steepest piece magnifies.
    np.testing.assert_allclose(result, array(net(part)), rtol=1e-4, atol=1e-3)
