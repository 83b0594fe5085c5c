"""A folded slope changes no result, and where it cannot be folded the graph is right all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from actx.exporter import Form
from actx.exporter.choose import Choice, choose
from actx.exporter.lift import lift
from actx.exporter.lower import lower
from actx.exporter.lower.fold import OWN
from actx.exporter.targets import TARGETS
from tests.exporter.lower.running import checked, in_reference, in_runtime, op_types, prepared, values_of
from tests.networks import HIDDEN, OUT, SPELLINGS, WIDTH, Graph, feeds

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

UNIT = 2.0**-24
# Of 1 + the largest result: a folded weight is rounded once, and both graphs round sums of a dozen products of order 1.
ROUNDINGS = 256

RNG = np.random.default_rng(0)
UP, BIAS = RNG.uniform(-1, 1, (WIDTH, HIDDEN)), RNG.uniform(-1, 1, HIDDEN)
DOWN, OTHER = (RNG.uniform(-1, 1, (HIDDEN, OUT)) for _ in range(2))
SQUARE = RNG.uniform(-1, 1, (HIDDEN, HIDDEN))


def gelu(g: Graph, x: str) -> str:
    return SPELLINGS["gelu_legacy"].write(g, x)


def network(write: Callable[[Graph, str], str], opset: int = 18, dtype: Any = np.float32) -> onnx.ModelProto:
    g = Graph(opset, dtype)
    g.output(write(g, g.input("x", ["batch", "tokens", WIDTH])), "y", 3)
    return g.model()


def plain(g: Graph, x: str) -> str:
    return g.linear(gelu(g, g.linear(x, "up", UP, BIAS)), "down", DOWN)


def bias_first(g: Graph, x: str) -> str:
    product = g.op("MatMul", x, g.weight("up.weight", UP))
    return g.linear(gelu(g, g.op("Add", g.weight("up.bias", BIAS), product)), "down", DOWN, BIAS[:OUT])


def bias_subtracted(g: Graph, x: str) -> str:
    product = g.op("MatMul", x, g.weight("up.weight", UP))
    one = g.op("Sub", g.weight("up.bias", BIAS), product)
    return g.linear(gelu(g, g.op("Sub", one, 0.25)), "down", DOWN)


def no_bias(g: Graph, x: str) -> str:
    return g.linear(gelu(g, g.linear(x, "up", UP)), "down", DOWN)


def gemm(g: Graph, x: str) -> str:
    rows = g.op("Reshape", x, [-1, WIDTH])
    up = g.op("Gemm", rows, g.weight("up.weight", UP.T), g.weight("up.bias", BIAS), transB=1, alpha=0.5, beta=2.0)
    down = g.op("Gemm", gelu(g, up), g.weight("down.weight", DOWN), g.weight("down.bias", BIAS[:OUT]), alpha=1.5)
    return g.op("Reshape", down, g.op("Concat", g.op("Shape", x, end=2), [OUT], axis=0))


def gemm_without_bias(g: Graph, x: str) -> str:
    up = g.op("Gemm", g.op("Reshape", x, [-1, WIDTH]), g.weight("up.weight", UP))
    down = g.op("Gemm", gelu(g, up), g.weight("down.weight", DOWN))
    return g.op("Reshape", down, g.op("Concat", g.op("Shape", x, end=2), [OUT], axis=0))


def norm(g: Graph, x: str) -> str:
    hidden = g.linear(x, "up", UP, BIAS)
    normed = g.op("LayerNormalization", hidden, g.weight("scale", BIAS + 2), g.weight("shift", BIAS))
    return g.linear(gelu(g, normed), "down", DOWN)


def norm_without_shift(g: Graph, x: str) -> str:
    hidden = g.op("LayerNormalization", g.linear(x, "up", UP, BIAS), g.weight("scale", BIAS + 2))
    return g.linear(gelu(g, hidden), "down", DOWN)


def scaled_before_and_behind(g: Graph, x: str) -> str:
    # per channel, so that it belongs to the layers
    before = g.op("Mul", g.linear(x, "up", UP), g.weight("scale", BIAS + 2))
    return g.linear(g.op("Div", gelu(g, before), g.weight("divisor", BIAS + 2)), "down", DOWN)


def divided_before(g: Graph, x: str) -> str:
    before = g.op("Div", g.linear(x, "up", UP, BIAS), g.weight("divisor", BIAS + 2))
    return g.linear(g.op("Mul", gelu(g, before), g.weight("scale", BIAS + 2)), "down", DOWN)


def through_layout(g: Graph, x: str) -> str:
    hidden = g.op("Transpose", g.op("Reshape", g.linear(x, "up", UP, BIAS), [0, 0, 2, HIDDEN // 2]), perm=[0, 2, 1, 3])
    back = g.op("Reshape", g.op("Transpose", gelu(g, hidden), perm=[0, 2, 1, 3]), [0, 0, HIDDEN])
    return g.linear(g.op("Identity", back), "down", DOWN)


def gated(g: Graph, x: str) -> str:
    product = g.op("Mul", gelu(g, g.linear(x, "gate", UP, BIAS)), g.linear(x, "up", 0.5 * UP, BIAS))
    return g.linear(product, "down", DOWN)


def read_by_two_layers(g: Graph, x: str) -> str:
    hidden = gelu(g, g.linear(x, "up", UP, BIAS))
    return g.op("Add", g.linear(hidden, "down", DOWN), g.linear(hidden, "other", OTHER))


def one_weight_behind_twice(g: Graph, x: str) -> str:
    hidden, weight = gelu(g, g.linear(x, "up", UP, BIAS)), g.weight("down.weight", DOWN)
    return g.op("Add", g.op("MatMul", hidden, weight), g.op("MatMul", g.op("Reshape", hidden, [0, 0, HIDDEN]), weight))


def tied_weight(g: Graph, x: str) -> str:
    # The same tensor before the site, behind it, and in a layer that has nothing to do with it.
    weight = g.weight("square", SQUARE)
    first = g.op("MatMul", g.linear(x, "up", UP), weight)
    second = g.op("MatMul", gelu(g, g.op("MatMul", first, weight)), weight)
    return g.linear(g.op("Softmax", g.op("MatMul", g.op("Softmax", second), weight)), "down", DOWN)


def tied_bias(g: Graph, x: str) -> str:
    bias = g.weight("bias", BIAS)
    first = g.op("Add", g.op("MatMul", x, g.weight("up.weight", UP)), bias)
    second = g.op("Add", g.op("MatMul", gelu(g, first), g.weight("square", SQUARE)), bias)
    return g.linear(second, "down", DOWN)


def two_in_a_row(g: Graph, x: str) -> str:
    middle = g.linear(gelu(g, g.linear(x, "up", UP, BIAS)), "square", SQUARE / 4, BIAS)
    return g.linear(gelu(g, middle), "down", DOWN)


def two_factors(g: Graph, x: str) -> str:
    product = g.op("Mul", gelu(g, g.linear(x, "gate", UP, BIAS)), gelu(g, g.linear(x, "up", -UP, BIAS)))
    return g.linear(product, "down", DOWN)


def times_its_own_layout(g: Graph, x: str) -> str:
    # The product holds the slope twice.
    hidden = gelu(g, g.linear(x, "up", UP, BIAS))
    turned = g.op("Reshape", hidden, [0, 0, HIDDEN])
    return g.linear(g.op("Mul", hidden, turned), "down", DOWN)


def weight_on_the_left(g: Graph, x: str) -> str:
    turned = g.op("MatMul", g.weight("up.weight", UP.T), g.op("Transpose", x, perm=[0, 2, 1]))
    down = g.op("MatMul", g.weight("down.weight", DOWN.T), gelu(g, turned))
    return g.op("Transpose", down, perm=[0, 2, 1])


def einsum(g: Graph, x: str) -> str:
    hidden = g.op("Einsum", x, g.weight("up.weight", UP), equation="btw,wh->bth")
    return g.op("Einsum", g.weight("down.weight", DOWN), gelu(g, hidden), equation="ho,bth->bto")


def one_weight_behind_a_square(g: Graph, x: str) -> str:
    # The layer of the square absorbs the slope twice, the other one once.
    hidden, weight = gelu(g, g.linear(x, "up", UP, BIAS)), g.weight("down.weight", DOWN)
    squared = g.op("Mul", hidden, g.op("Identity", hidden))
    return g.op("Add", g.op("MatMul", squared, weight), g.op("MatMul", hidden, weight))


def one_constant_as_scale_and_shift(g: Graph, x: str) -> str:
    both = g.weight("both", BIAS + 2)
    return g.linear(gelu(g, g.op("LayerNormalization", g.linear(x, "up", UP, BIAS), both, both)), "down", DOWN)


def dropouts_that_drop_nothing(g: Graph, x: str) -> str:
    hidden = g.op("Dropout", g.linear(x, "up", UP, BIAS), 0.5, np.array(False))
    return g.linear(g.op("Dropout", gelu(g, hidden)), "down", DOWN)


FOLDED = (
    plain, bias_first, bias_subtracted, no_bias, gemm, gemm_without_bias, norm, norm_without_shift,
    scaled_before_and_behind, divided_before, through_layout, gated, read_by_two_layers, one_weight_behind_twice,
    tied_weight, tied_bias, two_in_a_row, two_factors, times_its_own_layout, weight_on_the_left,
    einsum, one_weight_behind_a_square, one_constant_as_scale_and_shift, dropouts_that_drop_nothing,
)  # fmt: skip


def input_read_elsewhere(g: Graph, x: str) -> str:
    hidden = g.linear(x, "up", UP, BIAS)
    return g.op("Add", g.linear(gelu(g, hidden), "down", DOWN), g.linear(hidden, "other", OTHER))


def product_read_elsewhere(g: Graph, x: str) -> str:
    product = g.op("MatMul", x, g.weight("up.weight", UP))
    hidden = gelu(g, g.op("Add", product, g.weight("up.bias", BIAS)))
    return g.op("Add", g.linear(hidden, "down", DOWN), g.linear(product, "other", OTHER))


def output_read_by_a_softmax(g: Graph, x: str) -> str:
    hidden = gelu(g, g.linear(x, "up", UP, BIAS))
    return g.op("Add", g.linear(hidden, "down", DOWN), g.linear(g.op("Softmax", hidden), "other", OTHER))


def output_in_a_sum(g: Graph, x: str) -> str:
    hidden = g.linear(x, "inner", UP)
    return g.linear(g.op("Add", hidden, gelu(g, g.linear(x, "up", UP, BIAS))), "down", DOWN)


def residual_before(g: Graph, x: str) -> str:
    both = g.op("Add", g.linear(x, "up", UP, BIAS), g.linear(x, "inner", -UP))
    return g.linear(gelu(g, both), "down", DOWN)


def split_before(g: Graph, x: str) -> str:
    gate, up = g.ops("Split", 2, g.linear(x, "up", np.concatenate([UP, -UP], axis=1)), [HIDDEN, HIDDEN], axis=-1)
    return g.linear(g.op("Mul", gelu(g, gate), up), "down", DOWN)


def weights_that_vary(g: Graph, x: str) -> str:
    hidden = gelu(g, g.linear(x, "up", UP, BIAS))
    scores = g.op("MatMul", hidden, g.op("Transpose", g.linear(x, "keys", UP), perm=[0, 2, 1]))
    return g.op("MatMul", scores, g.linear(x, "values", UP[:, :OUT]))


def no_layer_behind(g: Graph, x: str) -> str:
    return gelu(g, g.linear(x, "up", UP, BIAS))


def as_a_bias(g: Graph, x: str) -> str:
    hidden = g.op("Reshape", gelu(g, g.linear(x, "up", UP, BIAS)), [-1, HIDDEN])
    other = g.op("Reshape", g.linear(x, "inner", UP), [-1, HIDDEN])
    rows = g.op("Gemm", other, g.weight("square", SQUARE), hidden)
    return g.linear(g.op("Reshape", rows, g.op("Concat", g.op("Shape", x, end=2), [HIDDEN], axis=0)), "down", DOWN)


def as_data_and_bias(g: Graph, x: str) -> str:
    hidden = g.op("Reshape", gelu(g, g.linear(x, "up", UP, BIAS)), [-1, HIDDEN])
    rows = g.op("Gemm", hidden, g.weight("square", SQUARE), hidden)
    return g.linear(g.op("Reshape", rows, g.op("Concat", g.op("Shape", x, end=2), [HIDDEN], axis=0)), "down", DOWN)


def twice_in_one_contraction(g: Graph, x: str) -> str:
    hidden = gelu(g, g.linear(x, "up", UP, BIAS))
    return g.op("Einsum", hidden, hidden, g.weight("down.weight", DOWN), equation="bth,btk,ko->bto")


NOT_FOLDED = (
    input_read_elsewhere, product_read_elsewhere, output_read_by_a_softmax, output_in_a_sum, residual_before, split_before,
    weights_that_vary, no_layer_behind, as_a_bias, as_data_and_bias, twice_in_one_contraction,
)  # fmt: skip


def _typed(proto: onnx.ModelProto) -> ir.Model:
    """Return the model where the results of ops that inference says nothing about are float32."""
    model = prepared(proto)
    for value in values_of(model).values():
        value.dtype = value.dtype or ir.DataType.FLOAT
    return model


def choices_of(model: ir.Model, form: str = "hardswish") -> tuple[Choice, ...]:
    choices = choose(lift(model).sites, TARGETS["ort-cpu"], form=Form.parse(form))
    assert choices
    assert all(choice.fit is not None and choice.fit.slope != 1 for choice in choices)
    return choices


def assert_same(result: NDArray[Any], expected: NDArray[Any], unit: float = UNIT) -> None:
    assert np.abs(result.astype(float) - expected).max() <= ROUNDINGS * unit * (1 + np.abs(expected).max())


@pytest.mark.parametrize("write", FOLDED)
def test_folded(write: Callable[[Graph, str], str]) -> None:
    proto = network(write)
    model = prepared(proto)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    choices = choices_of(model)
    folded, composite = lower(model, choices), lower(model, choices, fold=False)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    for choice, place in zip(choices, folded.placements, strict=True):
        assert choice.fit is not None
        assert place.scale == choice.fit.slope
        assert place.lowering == "HardSwish"
    assert all(place.scale == 1 for place in composite.placements)
    inputs = feeds(proto)
    (expected,) = in_reference(_native(composite), inputs)
    assert_same(in_runtime(folded.portable, inputs)[0], expected)
    assert_same(in_runtime(composite.portable, inputs)[0], expected)
    assert_same(in_reference(_native(folded), inputs)[0], expected)
    _assert_taps_are_scaled(proto, folded.portable, choices[0], folded.placements[0].scale, inputs)
    _assert_weights_are_used(folded.portable)
    _assert_weights_are_shared(folded.portable, _native(folded))


def _native(lowered: Any) -> ir.Model:
    assert isinstance(lowered.native, ir.Model)
    return lowered.native


def _assert_taps_are_scaled(
    proto: onnx.ModelProto, portable: ir.Model, choice: Choice, scale: float, inputs: dict[str, Any]
) -> None:
    """What arrives at the site and what leaves it are `scale` times the original's; drift per site is measured there."""

    def tapped(model: onnx.ModelProto) -> list[np.ndarray]:
        del model.graph.output[:]
        names = (choice.site.input, choice.site.output)
        model.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
        return in_reference_unchecked(model, inputs)

    assert choice.fit is not None
    original, result = tapped(ir.to_proto(prepared(proto))), tapped(checked(portable))
    assert_same(result[0] / scale, original[0])
    assert_same(result[1] / scale, choice.fit.spline(original[0]))


def in_reference_unchecked(model: onnx.ModelProto, inputs: dict[str, Any]) -> list[np.ndarray]:
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - the only use without a check

    return [np.asarray(v) for v in ReferenceEvaluator(model).run(None, inputs)]


def _assert_weights_are_used(model: ir.Model) -> None:
    for name, value in model.graph.initializers.items():
        assert value.consumers(), f"{name} is stored and never read"


def _assert_weights_are_shared(portable: ir.Model, native: ir.Model) -> None:
    common = set(portable.graph.initializers) & set(native.graph.initializers)
    assert any(name.endswith(OWN) for name in common)
    for name in common:
        assert portable.graph.initializers[name].const_value is native.graph.initializers[name].const_value


@pytest.mark.parametrize("write", NOT_FOLDED)
def test_not_folded(write: Callable[[Graph, str], str]) -> None:
    proto = network(write)
    model = prepared(proto)
    choices = choices_of(model)
    lowered = lower(model, choices)
    assert [place.scale for place in lowered.placements] == [1] * len(choices)
    assert set(model.graph.initializers) >= {
        n for n in lowered.portable.graph.initializers if not n.startswith("actx/")
    }
    inputs = feeds(proto)
    (expected,) = in_reference(_native(lowered), inputs)
    assert_same(in_runtime(lowered.portable, inputs)[0], expected)
    composite = lower(model, choices, fold=False)
    assert op_types(composite.portable) == op_types(lowered.portable)


@pytest.mark.parametrize("opset", [13, 18, 25])
def test_half_precision(opset: int) -> None:
    for write in (plain, gated, gemm if opset >= 15 else no_bias):
        proto = network(write, opset, np.float16)
        model = prepared(proto)
        lowered = lower(model, choices_of(model))
        assert lowered.placements[0].scale != 1
        inputs = feeds(proto)
        (expected,) = in_reference(_native(lower(model, choices_of(model), fold=False)), inputs)
        # Sums in half precision round at every product: 8 and 12 of them.
        assert_same(in_runtime(lowered.portable, inputs)[0], expected.astype(float), 2.0**-11 / 8)


def test_convolutions() -> None:
    g = Graph(18)
    x = g.input("x", ["batch", WIDTH, 6, 6])
    up = g.weight("up.weight", RNG.standard_normal((HIDDEN, WIDTH, 3, 3)) / 8)
    hidden = g.op("Conv", x, up, g.weight("up.bias", BIAS), pads=[1, 1, 1, 1])
    norms = [g.weight(f"norm.{i}", row) for i, row in enumerate((BIAS + 2, BIAS, BIAS, BIAS + 2))]
    normed = g.op("BatchNormalization", hidden, *norms)
    first = g.op("Conv", gelu(g, normed), g.weight("mid.weight", RNG.standard_normal((HIDDEN, HIDDEN, 1, 1)) / 3))
    weight = g.weight("down.weight", RNG.standard_normal((HIDDEN, OUT, 2, 2)))
    g.output(g.op("ConvTranspose", gelu(g, first), weight, g.weight("down.bias", BIAS[:OUT])), "y", 4)
    proto = g.model()
    model = prepared(proto)
    choices = choices_of(model)
    folded = lower(model, choices)
    assert [place.scale for place in folded.placements] == [c.fit.slope for c in choices if c.fit]
    (expected,) = in_reference(_native(lower(model, choices, fold=False)), feeds(proto))
    assert_same(in_runtime(folded.portable, feeds(proto))[0], expected)


def test_a_weight_that_is_an_input_is_not_folded() -> None:
    g = Graph(18)
    x, weight = g.input("x", ["batch", "tokens", WIDTH]), g.input("weight", [WIDTH, HIDDEN])
    g.output(g.linear(gelu(g, g.op("MatMul", x, weight)), "down", DOWN), "y", 3)
    proto = g.model()
    model = prepared(proto)
    lowered = lower(model, choices_of(model))
    assert lowered.placements[0].scale == 1
    (expected,) = in_reference(_native(lowered), feeds(proto))
    assert_same(in_runtime(lowered.portable, feeds(proto))[0], expected)


def test_an_intermediate_that_is_an_output_is_not_scaled() -> None:
    for index in (0, 1):  # the product, and the site's input
        proto = network(plain)
        proto.graph.output.append(
            helper.make_tensor_value_info(proto.graph.node[index].output[0], 1, ["a", "b", HIDDEN])
        )
        model = prepared(proto)
        lowered = lower(model, choices_of(model))
        assert lowered.placements[0].scale == 1
        results = in_runtime(lowered.portable, feeds(proto))
        for y, expected in zip(results, in_reference(_native(lowered), feeds(proto)), strict=True):
            assert_same(y, expected)


def test_weights_of_constant_nodes_are_folded() -> None:
    proto = network(plain)
    weights = {t.name: t for t in proto.graph.initializer if t.name in {"up.weight", "down.weight"}}
    for name, tensor in weights.items():
        proto.graph.initializer.remove(tensor)
        proto.graph.node.insert(0, helper.make_node("Constant", [], [name], f"constant_{name}", value=tensor))
    model = prepared(proto)
    lowered = lower(model, choices_of(model))
    assert lowered.placements[0].scale != 1
    assert "Constant" not in op_types(lowered.portable)
    (expected,) = in_reference(_native(lower(model, choices_of(model), fold=False)), feeds(proto))
    assert_same(in_runtime(lowered.portable, feeds(proto))[0], expected)


def test_names_of_scaled_weights_are_new() -> None:
    proto = network(plain)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "up.weight/actx/own"))
    proto.graph.output.append(helper.make_tensor_value_info("copy", 1, [3]))
    proto.graph.node.append(helper.make_node("Identity", ["up.weight/actx/own"], ["copy"], "copy"))
    model = prepared(proto)
    lowered = lower(model, choices_of(model))
    np.testing.assert_array_equal(in_runtime(lowered.portable, feeds(proto))[1], np.ones(3))
    assert len(values_of(lowered.portable)) == len({id(v) for v in values_of(lowered.portable).values()})


@pytest.mark.parametrize("op_type", ["GroupNormalization", "InstanceNormalization"])
def test_normalisations_of_channels(op_type: str) -> None:
    g = Graph(21)
    x = g.input("x", ["batch", WIDTH, 6, 6])
    hidden = g.op("Conv", x, g.weight("up.weight", RNG.standard_normal((HIDDEN, WIDTH, 1, 1))))
    settings = {"num_groups": 3} if op_type == "GroupNormalization" else {}
    normed = g.op(op_type, hidden, g.weight("scale", BIAS + 2), g.weight("shift", BIAS), **settings)
    g.output(g.op("Conv", gelu(g, normed), g.weight("down.weight", RNG.standard_normal((OUT, HIDDEN, 1, 1)))), "y", 4)
    proto = g.model()
    model = _typed(proto)
    folded, composite = (lower(model, choices_of(model), fold=fold) for fold in (True, False))
    assert folded.placements[0].scale != 1
    (expected,) = in_runtime(composite.portable, feeds(proto))
    assert_same(in_runtime(folded.portable, feeds(proto))[0], expected)


def test_a_statistic_is_not_scaled_with_its_normalisation() -> None:
    def mean_of(g: Graph, x: str) -> str:
        scale, shift = g.weight("scale", BIAS + 2), g.weight("shift", BIAS)
        normed, mean = g.ops("LayerNormalization", 2, g.linear(x, "up", UP, BIAS), scale, shift)
        return g.op("Add", g.linear(gelu(g, mean), "down", DOWN[:1]), g.linear(normed, "other", OTHER))

    model = prepared(network(mean_of))
    assert [place.scale for place in lower(model, choices_of(model)).placements] == [1]


def wide_silu(g: Graph, x: str) -> str:
    return g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, 0.5)))


# The slope of gelu, above 1, multiplies what is before the site; that of a wide silu, below 1, divides what is behind it.
@pytest.mark.parametrize(("name", "write"), [("up.weight", gelu), ("up.bias", gelu), ("down.weight", wide_silu)])
def test_a_constant_that_would_overflow_is_not_folded(name: str, write: Callable[[Graph, str], str]) -> None:
    def lowered(number: float) -> Any:
        weights = {"up.weight": UP.copy(), "up.bias": BIAS.copy(), "down.weight": DOWN.copy()}
        weights[name][..., 3] = number

        def between(g: Graph, x: str) -> str:
            hidden = g.linear(x, "up", weights["up.weight"], weights["up.bias"])
            return g.linear(write(g, hidden), "down", weights["down.weight"])

        model = prepared(network(between, 18, np.float16))
        return lower(model, choices_of(model))

    largest = float(np.finfo(np.float16).max)
    kept, folded = lowered(largest), lowered(largest / 4)
    assert kept.placements[0].scale == 1
    assert not any(constant.endswith(OWN) for constant in kept.portable.graph.initializers)
    assert folded.placements[0].scale != 1


def test_a_constant_that_is_infinite_stays_so() -> None:
    bias = BIAS.copy()
    bias[0] = -np.inf
    model = prepared(network(lambda g, x: g.linear(gelu(g, g.linear(x, "up", UP, bias)), "down", DOWN)))
    assert lower(model, choices_of(model)).placements[0].scale != 1


def _is_folded(behind: Callable[[Graph, str], str]) -> bool:
    """Tell whether the slope is folded where an op stands between the site and the layer behind it."""
    model = _typed(network(lambda g, x: g.linear(behind(g, gelu(g, g.linear(x, "up", UP, BIAS))), "down", DOWN)))
    return lower(model, choices_of(model)).placements[0].scale != 1


@pytest.mark.parametrize("domain", ["", "ai.onnx", "custom"])
def test_an_op_is_told_by_its_domain_too(domain: str) -> None:
    known = domain != "custom"
    assert _is_folded(lambda g, x: g.op("Reshape", x, [0, 0, HIDDEN], domain=domain)) == known
    assert _is_folded(lambda g, x: g.op("MatMul", x, g.weight("square", SQUARE), domain=domain)) == known
    assert _is_folded(lambda g, x: g.op("Mul", x, g.weight("factor", BIAS), domain=domain)) == known


def test_a_dropout_that_trains_ends_the_way() -> None:
    assert not _is_folded(lambda g, x: g.op("Dropout", x, 0.5, np.array(True)))
