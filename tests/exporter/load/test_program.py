"""Modules that are traced here: the names, types and dimensions of their inputs are those that were stated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.load.inputs import apply_specs, input_specs
from actx.exporter.load.program import to_onnx, trace
from actx.exporter.load.quiet import quiet

PATH = Path("model.pt")


class Gated(nn.Module):
    """Two float inputs of one batch and length, and a third that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hiddenStates: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: N803
        result: Tensor = self.linear(hiddenStates).relu() * mask[..., None]
        return result if bias is None else result + bias


def traced(*texts: str) -> ir.Model:
    inputs = [InputSpec.parse(text) for text in texts]
    with quiet():
        model = to_onnx(PATH, trace(PATH, Gated().train(), inputs), [spec.name for spec in inputs])
        apply_specs(model, inputs)
    return model


def test_inputs_keep_their_names_in_any_order() -> None:
    texts = ("mask:float32[rows,tokens]", "hiddenStates:float32[rows,tokens,4]")
    model = traced(*texts)
    assert tuple(map(str, input_specs(model))) == texts
    session = InferenceSession(ir.to_proto(model).SerializeToString())
    for rows, tokens in ((1, 1), (3, 7)):
        feeds = {"mask": np.zeros((rows, tokens), np.float32), "hiddenStates": np.ones((rows, tokens, 4), np.float32)}
        assert session.run(None, feeds)[0].tolist() == np.zeros((rows, tokens, 4)).tolist()


class Small(nn.Module):
    """Constants that are nearly 0 and nearly 1, and count."""

    def forward(self, x: Tensor) -> Tensor:
        norm: Tensor = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-12)
        return 1e6 * (norm * (1 + 4e-6) - norm)


def test_small_constants_are_kept() -> None:
    """A row of zeros has no norm but for its epsilon."""
    inputs = [InputSpec.parse("x:float32[rows,4]")]
    with quiet():
        model = to_onnx(PATH, trace(PATH, Small(), inputs), ["x"])
    session = InferenceSession(ir.to_proto(model).SerializeToString())
    x = np.concatenate([np.zeros((1, 4)), np.ones((2, 4))]).astype(np.float32)
    # The result is about 4: a difference of numbers near 1, each rounded to 2**-24, times a million.
    assert session.run(None, {"x": x})[0] == pytest.approx(Small()(torch.from_numpy(x)).numpy(), abs=0.2)


def test_an_input_that_may_be_left_out() -> None:
    model = traced("hiddenStates:float32[2,tokens,4]", "mask:float32[2,tokens]", "bias:float32[4]")
    assert [spec.dims for spec in input_specs(model)] == [(2, "tokens", 4), (2, "tokens"), (4,)]


@pytest.mark.parametrize("texts", [(), ("hiddenStates:float32[2,3,4]",), ("x:float32[2,3,4]", "mask:float32[2,3]")])
def test_inputs_that_forward_does_not_take(texts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        traced(*texts)
    assert "it takes hiddenStates, mask, bias" in caught.value.note


def test_a_dimension_that_the_module_fixes() -> None:
    with pytest.raises(ActxError, match="torch cannot trace"):
        traced("hiddenStates:float32[rows,tokens,width]", "mask:float32[rows,tokens]")


def test_the_module_is_traced_in_evaluation_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9)).train()
    with quiet():
        program = trace(PATH, module, [InputSpec.parse("input:float32[n,4]")])
    x = torch.ones(2, 4)
    assert torch.equal(program.module()(input=x), module[0](x))


class Experts(nn.Module):
    """The product that transformers runs experts by: rows sorted by expert, and the row that each of them ends before."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(60.0).reshape(3, 4, 5))

    def forward(self, rows: Tensor, ends: Tensor) -> Tensor:
        result: Tensor = torch.ops.transformers.grouped_mm_fallback(rows, self.weight, ends)
        return result


@pytest.mark.parametrize("ends", [[2, 5, 7], [0, 7, 7], [7, 7, 7], [0, 0, 7]])
def test_the_product_of_experts_is_one_for_each(ends: list[int]) -> None:
    pytest.importorskip("transformers.integrations.moe")
    specs = [InputSpec.parse("rows:float32[tokens,4]"), InputSpec.parse("ends:int32[3]")]
    module = Experts()
    with quiet():
        model = to_onnx(PATH, trace(PATH, module, specs), ["rows", "ends"])
    assert sum(node.op_type == "MatMul" for node in model.graph) == len(module.weight)
    feeds = {"rows": np.arange(28, dtype=np.float32).reshape(7, 4), "ends": np.array(ends, np.int32)}
    (found,) = InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)
    expected = module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    np.testing.assert_array_equal(found, expected.detach().numpy())


class Attention(nn.Module):
    """Attention of keys that are computed; what is not said is as by default."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        chosen = mask > 0 if mask is not None and mask.dtype is torch.int32 else mask
        result: Tensor = nn.functional.scaled_dot_product_attention(
            query, 2 * key, value, attn_mask=chosen, **self.settings
        )
        return result


SIZES = {"query": "[rows,4,length,8]", "key": "[rows,4,tokens,8]", "value": "[rows,4,tokens,6]"}
ATTENTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, ""),
    "scale": ({"scale": 0.3}, ""),
    "causal": ({"is_causal": True}, ""),
    "mask of numbers": ({}, "float32"),
    "mask of booleans": ({}, "int32"),
    "few heads of keys": ({"enable_gqa": True}, ""),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_is_that_of_torch(name: str) -> None:
    """For other sizes than it was traced with, and for queries all of whose keys are masked."""
    settings, masks = ATTENTIONS[name]
    module = Attention(**settings).eval()
    heads = 2 if "enable_gqa" in settings else 4
    texts = [f"{key}:float32{size.replace('4', str(heads)) if key != 'query' else size}" for key, size in SIZES.items()]
    inputs = [InputSpec.parse(text) for text in [*texts, *([f"mask:{masks}[rows,1,length,tokens]"] if masks else [])]]
    with quiet():
        model = to_onnx(PATH, trace(PATH, module, inputs), [spec.name for spec in inputs])
        apply_specs(model, inputs)
    session = InferenceSession(ir.to_proto(model).SerializeToString())
    rng = np.random.default_rng(0)
    for rows, length, tokens in ((1, 1, 1), (2, 5, 7), (3, 6, 6)):
        sizes = ((rows, 4, length, 8), (rows, heads, tokens, 8), (rows, heads, tokens, 6))
        feeds = {key: rng.standard_normal(size).astype(np.float32) for key, size in zip(SIZES, sizes, strict=True)}
        if masks:
            mask = rng.standard_normal((rows, 1, length, tokens)).astype(masks)
            if masks == "int32":
                mask[0, 0, 0] = 0
            feeds["mask"] = mask
        expected = module(*map(torch.from_numpy, feeds.values())).numpy()
        # Scores are sums of 8 products, below 50, and move weights by as many roundings; a result is a mean of values below 4.
        np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=0, atol=4 * 8 * np.finfo(np.float32).eps)


def test_attention_is_written_in_few_nodes() -> None:
    inputs = [InputSpec.parse(f"{key}:float32{size}") for key, size in SIZES.items()]
    with quiet():
        model = to_onnx(PATH, trace(PATH, Attention().eval(), inputs), list(SIZES))
    assert Counter(node.op_type for node in model.graph) == {"Mul": 2, "Transpose": 1, "MatMul": 2, "Softmax": 1}
