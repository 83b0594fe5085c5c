"""Row-wise and token-wise sites after lower: structure, numbers and validity at once."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from actx.exporter import Form
from actx.exporter.choose import Choice, choose
from actx.exporter.errors import ActxError
from actx.exporter.lift import lift
from actx.exporter.lower import lower
from actx.exporter.targets import TARGETS
from tests.exporter.lift import test_mixture as mixtures
from tests.exporter.lift import test_polynorm as rows
from tests.exporter.lower.running import in_reference, in_runtime, prepared
from tests.exporter.lower.running import op_types as listed

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from tests.networks import Graph

X = np.random.default_rng(7).standard_normal((2, rows.TOKENS, rows.WIDTH)).astype(np.float32)
# Of the largest output: sums of twelve numbers twice over, and a polynomial of rows, in float32; and in float16.
ROUNDINGS = {"float32": 64 * 2.0**-24, "float16": 64 * 2.0**-11}


def op_types(model: ir.Model) -> Counter[str]:
    return Counter(listed(model))


def chosen(model: ir.Model, form: str = "spline:16x3", target: str = "ort-cpu") -> tuple[Choice, ...]:
    return choose(lift(model).sites, TARGETS[target], form=Form.parse(form))


def differences(proto: onnx.ModelProto, form: str = "spline:16x3", **inputs: Any) -> tuple[float, float, ir.Model]:
    """Lower, and return how far the portable and the native graph are from the original, relative to its largest output."""
    model = prepared(proto)
    x = X.astype(onnx.helper.tensor_dtype_to_np_dtype(proto.graph.input[0].type.tensor_type.elem_type))
    feeds = {"x": x, **inputs}
    lowered = lower(model, chosen(model, form))
    assert lowered.native is not None
    (y,) = in_runtime(model, feeds)
    found = [in_runtime(lowered.portable, feeds)[0], in_reference(lowered.native, feeds)[0]]
    largest = np.abs(y).max()
    portable, native = (float(np.abs(other.astype(np.float64) - y).max() / largest) for other in found)
    return portable, native, lowered.native


def _gated(write: Callable[[Graph, str], str]) -> Callable[[Graph, str], str]:
    def written(g: Graph, x: str) -> str:
        up = g.linear("x", "gate_up", np.random.default_rng(3).standard_normal((rows.WIDTH, rows.HIDDEN)))
        return g.op("Mul", write(g, x), up)

    return written


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("opset", [13, 18])
def test_polynorm_is_one_node_and_exact(opset: int, *, gated: bool) -> None:
    write = _gated(rows.polynorm) if gated else rows.polynorm
    portable, native, graph = differences(rows.network(write, opset))
    assert max(portable, native) <= ROUNDINGS["float32"]
    (node,) = (node for node in graph.graph if node.domain == "actx")
    assert node.op_type == "PolyNorm"
    assert [v is not None for v in node.inputs] == [True] * (4 if gated else 3)
    assert op_types(graph) == {"MatMul": 3 if gated else 2, "Add": 1, "PolyNorm": 1, "Identity": 1}


def test_the_portable_polynorm_has_three_row_sums_and_a_cubic() -> None:
    model = prepared(rows.network(rows.polynorm))
    lowered = lower(model, chosen(model))
    types = op_types(lowered.portable)
    assert (types["ReduceMean"], types["Sqrt"], types["Div"]) == (3, 3, 3)
    wide = types["Mul"] + types["Add"] - 3 - 1  # without epsilon and the bias of the layer
    assert wide == 9


def test_polynorm_in_half_precision() -> None:
    def write(g: Graph, x: str) -> str:
        wide = g.op("Cast", g.op("Mul", x, 8.0), to=onnx.TensorProto.FLOAT)  # its sixth power leaves float16
        g.dtype = np.dtype(np.float32)
        y = rows.polynorm(g, wide)
        g.dtype = np.dtype(np.float16)
        return g.op("Cast", y, to=onnx.TensorProto.FLOAT16)

    portable, native, graph = differences(rows.network(write, dtype=np.float16))
    assert max(portable, native) <= ROUNDINGS["float16"]
    assert "Cast" not in op_types(graph)


def test_a_row_wise_site_takes_its_one_form() -> None:
    model = prepared(rows.network(rows.polynorm))
    (site,) = lift(model).sites
    target = TARGETS["ort-cpu"]
    for form in (None, "pwl:8", "polynorm"):
        (choice,) = choose([site], target, form=None if form is None else Form.parse(form))
        assert (str(choice.form), choice.fit, choice.rewritten) == ("polynorm", None, True)
    (kept,) = choose([site], target, form=Form("keep"))
    assert not kept.rewritten
    assert op_types(lower(model, [kept]).portable) == op_types(model)
    with pytest.raises(ActxError, match="cannot take the form pwl:8") as caught:
        choose([site], target, pins={site.name: Form.parse("pwl:8")})
    assert "row-wise" in caught.value.note


def test_a_scalar_site_is_not_row_wise() -> None:
    (site,) = lift(prepared(rows.network(lambda g, x: g.op("Tanh", x)))).sites
    (choice,) = choose([site], TARGETS["ort-cpu"], form=Form("polynorm"))
    assert (choice.rewritten, choice.reason) == (False, "kept: tanh is not row-wise")
    with pytest.raises(ActxError, match="cannot take the form polynorm"):
        choose([site], TARGETS["ort-cpu"], pins={"*": Form("polynorm")})


# --- mixtures ---


@pytest.mark.parametrize("way", [mixtures.by_loop, mixtures.by_stack, mixtures.by_matmul])
def test_a_mixture_is_one_node(way: Callable[[Graph, str, str], str]) -> None:
    proto = mixtures.network(lambda g, x: way(g, x, mixtures.projected(g)))
    portable, native, graph = differences(proto)
    assert portable <= ROUNDINGS["float32"]
    # Certified to 1e-4 per entry, six of them with gates below 1, before a layer that adds up twelve of these.
    assert native <= 6e-4
    assert op_types(graph) == {"MatMul": 3, "Add": 1, "Spline": 1, "SplineMix": 1, "Identity": 1}


def test_the_entries_are_within_their_certificate() -> None:
    model = prepared(mixtures.network(lambda g, x: mixtures.by_loop(g, x, mixtures.projected(g))))
    (choice,) = (c for c in chosen(model) if c.site.kind == "moa")
    fit = choice.fit
    assert fit is not None
    assert fit.certificate is not None
    assert fit.certificate.error <= 1e-4
    x = np.linspace(-20, 20, 4001)
    for name, entry in zip(mixtures.ENTRIES, fit.entries, strict=True):
        exact = x if name == "identity" else mixtures.ACTIVATIONS[name](x)
        assert np.abs(entry(x) - exact).max() <= fit.certificate.error
        assert np.array_equal(entry.knots, fit.entries[0].knots)


def test_a_coarse_mixture_becomes_its_entries_in_the_portable_graph() -> None:
    proto = mixtures.network(lambda g, x: mixtures.by_stack(g, x, mixtures.projected(g, "Softmax")))
    model = prepared(proto)
    lowered = lower(model, chosen(model, "spline:6x2"))
    assert lowered.native is not None
    feeds = {"x": X}
    (y,), (portable,), (native,) = (
        run(m, feeds)
        for run, m in ((in_runtime, model), (in_runtime, lowered.portable), (in_reference, lowered.native))
    )
    assert "Concat" not in op_types(lowered.portable)
    assert np.abs(portable - native).max() <= ROUNDINGS["float32"] * np.abs(y).max()
    assert 1e-4 < np.abs(portable - y).max() / np.abs(y).max() < 1e-1


def test_gates_of_positions_are_repeated_for_the_batch() -> None:
    def write(g: Graph, x: str) -> str:
        table = g.weight("positions", np.random.default_rng(2).standard_normal((rows.TOKENS, len(mixtures.ENTRIES))))
        nothing = g.op("Mul", g.op("ReduceMax", "kind", [0, 1], keepdims=0), 0.0)
        return mixtures.by_loop(g, x, g.op("Add", table, nothing))

    proto = mixtures.network(write, inputs=[("kind", np.float32)])
    portable, native, graph = differences(proto, kind=np.zeros((2, rows.TOKENS), np.float32))
    assert portable <= ROUNDINGS["float32"]
    assert native <= 2e-3
    assert op_types(graph)["Expand"] == 1


def test_gates_in_another_order_or_from_several_places() -> None:
    def write(g: Graph, x: str) -> str:
        first, second = mixtures.projected(g), mixtures.projected(g, "Tanh")
        terms = [
            g.op("Mul", mixtures.column(g, first, 3), g.op("Relu", x)),
            g.op("Mul", mixtures.column(g, second, 0), g.op("Tanh", x)),
            g.op("Mul", mixtures.column(g, first, 1), g.op("Sigmoid", x)),
        ]
        return g.op("Sub", g.op("Add", terms[0], terms[1]), terms[2])

    portable, native, graph = differences(mixtures.network(write))
    assert portable <= ROUNDINGS["float32"]
    assert native <= 6e-4
    assert op_types(graph)["SplineMix"] == 1


def test_a_permutation_of_columns_orders_the_entries() -> None:
    order = (2, 0, 1)

    def write(g: Graph, x: str) -> str:
        gates = g.op("Sigmoid", g.linear("x", "gates", np.random.default_rng(5).standard_normal((rows.WIDTH, 3))))
        terms = [
            g.op("Mul", mixtures.column(g, gates, i), g.op(op, x))
            for i, op in zip(order, ("Relu", "Tanh", "Sigmoid"), strict=True)
        ]
        return g.op("Add", g.op("Add", terms[0], terms[1]), terms[2])

    portable, native, graph = differences(mixtures.network(write))
    assert portable <= ROUNDINGS["float32"]
    assert native <= 6e-4
    assert not {"Concat", "Slice"} & set(op_types(graph))


def test_other_forms_keep_a_mixture() -> None:
    model = prepared(mixtures.network(lambda g, x: mixtures.by_loop(g, x, mixtures.projected(g))))
    (choice,) = (c for c in chosen(model, "pwl:16") if c.site.kind == "moa")
    assert not choice.rewritten
    assert "no knots that the entries of a mixture could share" in choice.reason
