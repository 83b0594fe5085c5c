"""Valid inputs of every reader, made by the code that writes them."""

# ruff: noqa: PLC0415 - torch and transformers are imported by the targets that need them
from __future__ import annotations

import io
import json
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from actx.custom_ops.ops import DOMAIN, OPS, OPSET
from tests.networks import SPELLINGS, SURROUNDINGS
from tests.op_cases import cases

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

# The opset that seeds are in: local functions and bodies are allowed in all, and most names of ops are in this.
_OPSET = 20


def packed(files: Mapping[str, bytes]) -> bytes:
    """Return a folder as a zip archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return content.getvalue()


def folder(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


# --- ONNX ---


def onnx_models() -> list[bytes]:
    names = ("gelu_legacy", "gelu_op", "prelu_per_channel", "mish_threshold")
    models = [SPELLINGS[name].model(_OPSET) for name in names]
    models += [SURROUNDINGS[name].build(_OPSET) for name in ("conv", "computed_constants", "constants_as_nodes")]
    models += [_actx_node(name) for name in OPS] + [_functions(), _bodies()]
    return [model.SerializeToString() for model in models]


def onnx_folders() -> list[bytes]:
    """Models with external data beside them, and a file outside that they must not read."""
    found = []
    for name in ("gelu_op", "prelu_per_channel"):
        with tempfile.TemporaryDirectory() as place:
            onnx.save(
                SPELLINGS[name].model(_OPSET), f"{place}/model.onnx", save_as_external_data=True, location="weights.data",
                size_threshold=0,
            )  # fmt: skip
            found.append(packed(folder(Path(place))))
    return found


def _actx_node(op_type: str) -> onnx.ModelProto:
    case = next(cases(op_type))
    given = [(p.name, array) for p, array in zip(case.op.INPUTS, case.inputs, strict=True)]
    attributes = {name: value for name, value in case.op.attributes().items() if value is not None and np.size(value)}
    node = helper.make_node(
        op_type, ["" if array is None else name for name, array in given], ["y"], "act", domain=DOMAIN,
        **{name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in attributes.items()},
    )  # fmt: skip
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given
        if array is not None
    ]
    output = helper.make_tensor_value_info("y", values[0].type.tensor_type.elem_type, None)
    imports = [helper.make_opsetid("", _OPSET), helper.make_opsetid(DOMAIN, OPSET)]
    return helper.make_model(helper.make_graph([node], "g", values, [output]), opset_imports=imports, ir_version=9)


def _functions() -> onnx.ModelProto:
    """A function that calls another."""
    imports = [helper.make_opsetid("", _OPSET), helper.make_opsetid("local", 1)]
    square = helper.make_function(
        "local", "square", ["a"], ["b"], [helper.make_node("Mul", ["a", "a"], ["b"])], imports[:1]
    )
    fourth = helper.make_function(
        "local", "fourth", ["a"], ["c"],
        [helper.make_node("square", ["a"], ["b"], domain="local"), helper.make_node("square", ["b"], ["c"], domain="local")],
        imports,
    )  # fmt: skip
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("fourth", ["x"], ["y"], domain="local")], "g", [x], [y])
    return helper.make_model(graph, opset_imports=imports, functions=[square, fourth], ir_version=9)


def _bodies() -> onnx.ModelProto:
    """A Loop whose body holds an If, with computed shapes around it."""
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    x, y, inner, outer = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("x", "y", "inner", "outer")
    )
    branch = helper.make_graph([helper.make_node("Relu", ["inner"], ["branch"])], "branch", [], [
        helper.make_tensor_value_info("branch", TensorProto.FLOAT, ["n", 4])])  # fmt: skip
    body = helper.make_graph(
        [
            helper.make_node("If", ["flag"], ["outer"], then_branch=branch, else_branch=branch),
            helper.make_node("Identity", ["flag"], ["kept"]),
        ],
        "body", [count, flag, inner], [helper.make_tensor_value_info("kept", TensorProto.BOOL, []), outer],
    )  # fmt: skip
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["width"]),
        helper.make_node("Add", ["width", "one"], ["more"]),
        helper.make_node("ConstantOfShape", ["more"], ["zeros"]),
        helper.make_node("Split", ["x"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("Concat", ["right", "left"], ["swapped"], axis=1),
        helper.make_node("Loop", ["", "true", "swapped"], ["y"], body=body),
    ]
    constants = [
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
        helper.make_tensor("true", TensorProto.BOOL, [], [True]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)


# --- torch ---


def tiny() -> nn.Module:
    """The module that weights are put into."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.GELU(), torch.nn.Linear(5, 3)).eval()


@cache
def archives() -> list[bytes]:
    import torch

    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says about its own code
        program = torch.export.export(tiny(), (torch.zeros(2, 4),), dynamic_shapes=({0: torch.export.Dim("n")},))
        torch.export.save(program, content)
    return [content.getvalue()]


def weights() -> list[bytes]:
    import torch

    state = tiny().state_dict()
    found = []
    for value in (state, {"state_dict": state, "epoch": 3}, tiny()):
        for new in (True, False):
            content = io.BytesIO()
            torch.save(value, content, _use_new_zipfile_serialization=new)
            found.append(content.getvalue())
    return found


def safetensors() -> list[bytes]:
    from safetensors.torch import save

    return [save(tiny().state_dict()), save({f"model.{name}": value for name, value in tiny().state_dict().items()})]


@cache
def hugging_face_folders() -> list[bytes]:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    found = []
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 10,
    }
    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=8))
        for shard in ("5GB", "2KB"):
            model.save_pretrained(Path(place) / shard, max_shard_size=shard)
            found.append(packed(folder(Path(place) / shard)))
    return found


# --- bundles ---


@cache
def bundles() -> list[bytes]:
    from actx.exporter import Form, export

    with tempfile.TemporaryDirectory() as place:
        onnx.save(SPELLINGS["gelu_op"].model(_OPSET), f"{place}/model.onnx")
        export(Path(place) / "model.onnx", Path(place) / "out", form=Form.parse("pwl:8"), runs=2)
        files = folder(Path(place) / "out")
    files.pop("report.html")
    return [packed(files)]


@cache
def manifests() -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(bundles()[0])) as archive:
        return [archive.read("manifest.json")]


def reports() -> list[bytes]:
    """What `--json` prints of the verbs, and what `compare` takes."""
    manifest = json.loads(manifests()[0])
    return [manifests()[0], json.dumps(manifest["drift"][0]).encode(), json.dumps(manifest["latency"]).encode()]


# --- data ---


def arrays() -> list[bytes]:
    found = []
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    for save in (np.savez, np.savez_compressed):
        content = io.BytesIO()
        save(content, x=x, label=np.arange(4), ids=np.array(["a", "b", "c", "d"]))
        found.append(content.getvalue())
    bare = io.BytesIO()
    np.save(bare, x)
    return [*found, bare.getvalue()]


def polygraphy_inputs() -> list[bytes]:
    from polygraphy.json import save_json

    with tempfile.TemporaryDirectory() as place:
        save_json([{"x": np.ones((2, 6), np.float32)}, {"x": np.zeros((1, 6), np.float32)}], f"{place}/inputs.json")
        return [(Path(place) / "inputs.json").read_bytes()]


# --- text ---

DEVICES = b"""\
[devices.pi]
address = "ssh://pi@raspberrypi.local:22"
python = "~/actx/bin/python"

[devices.jetson]
address = "ssh://[fe80::1%eth0]"

[groups]
bench = ["pi", "jetson"]
"""

LOG = b"".join(
    json.dumps({"key": key * 64, "kind": "sensitivity", "about": {"site": "a"}, "value": {"drift": 0.5}}).encode()
    + b"\n"
    for key in "abc"
)
