"""Every network that the tests share is valid, runs, and computes what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from actx.custom_ops.activations import ACTIVATIONS
from tests.networks import (
    MANY_SITES_KINDS,
    NOT_SITES,
    OPSETS,
    SPELLINGS,
    SURROUNDINGS,
    UNNAMED,
    Gate,
    Spelling,
    cosine,
    feeds,
    many_sites,
    mean_embedding,
    mlp_reference,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNIT = {"float32": 2.0**-24, "float16": 2.0**-11}
# Of the magnitudes: two MatMuls of length 8 and 12 and at most a dozen nodes between them, each of which rounds once.
ROUNDINGS = 8


def _run(model: onnx.ModelProto, inputs: dict[str, Any] | None = None) -> NDArray[Any]:
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs or feeds(model))[0])


def _assert_is_the_formula(spelling: Spelling, model: onnx.ModelProto, dtype: str, gated: Gate | None = None) -> None:
    inputs = feeds(model)
    expected, magnitude = mlp_reference(model, spelling, inputs["x"], gated)
    assert (np.abs(_run(model, inputs) - expected) <= ROUNDINGS * UNIT[dtype] * magnitude).all()


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling_is_its_formula_at_every_opset(name: str) -> None:
    spelling = SPELLINGS[name]
    for opset in spelling.opsets:
        model = spelling.model(opset)
        assert model.opset_import[0].version == opset
        _assert_is_the_formula(spelling, model, spelling.dtypes[0])


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling_is_its_formula_in_every_type(name: str) -> None:
    spelling = SPELLINGS[name]
    for dtype in spelling.dtypes:
        _assert_is_the_formula(spelling, spelling.model(spelling.opsets[-1], dtype), dtype)


@pytest.mark.parametrize("gated", get_args(Gate))
@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling_is_its_formula_when_gated(name: str, gated: Gate) -> None:
    spelling = SPELLINGS[name]
    _assert_is_the_formula(spelling, spelling.model(gated=gated), spelling.dtypes[0], gated)


def test_spellings_reach_both_sides_of_zero() -> None:
    model = SPELLINGS["relu"].model()
    inputs = feeds(model)["x"].astype(np.float64)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    hidden = inputs @ weights["up.weight"] + weights["up.bias"]
    assert hidden.min() < -2
    assert hidden.max() > 2


def test_every_entry_of_the_catalogue_has_a_spelling() -> None:
    assert set(ACTIVATIONS) == {spelling.kind for spelling in SPELLINGS.values()} - {UNNAMED, "prelu"}


@pytest.mark.parametrize("name", NOT_SITES)
def test_not_a_site_runs_at_every_opset(name: str) -> None:
    for opset in OPSETS:
        model = NOT_SITES[name].build(opset)
        assert np.isfinite(_run(model)).all()
        assert set(NOT_SITES[name].forbidden) <= {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings_run_from_opset_17_on(name: str) -> None:
    assert len(SURROUNDINGS[name].kinds) == len(SURROUNDINGS[name].gated)
    for opset in OPSETS[4:]:
        result = _run(SURROUNDINGS[name].build(opset))
        assert np.isfinite(result).all()
        assert result.std() > 0


@pytest.mark.parametrize("n", [1, 4, 50])
def test_many_sites_runs_and_stays_alive(n: int) -> None:
    model = many_sites(n)
    assert sum(node.op_type == "MatMul" for node in model.graph.node) == n + 1 + n // len(MANY_SITES_KINDS)
    result = _run(model)
    assert 0.01 < result.std() < 100


def test_mean_embedding_leaves_padding_out() -> None:
    hidden = np.array([[[1.0, 2.0], [3.0, 4.0], [1e6, 1e6]]])
    np.testing.assert_array_equal(mean_embedding(hidden, np.array([[1, 1, 0]])), [[2.0, 3.0]])


def test_cosine_is_one_for_parallel_rows() -> None:
    rows = np.array([[3.0, 4.0], [1.0, 0.0]])
    np.testing.assert_allclose(cosine(rows, rows * [[2.0], [-5.0]]), [1.0, -1.0], rtol=1e-15)
