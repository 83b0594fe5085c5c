"""The texts are written after NVIDIA's documentation of the inspector; none was printed by an engine here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actx.exporter.errors import ActxError
from actx.exporter.tensorrt.inspector import Layer, parse_layers, site_of, sites_of
from actx.exporter.tensorrt.network import Origin

NODES = {
    "mm": Origin("MatMul", None),
    "bias": Origin("Add", None),
    "erf": Origin("Erf", "ffn.0"),
    "mul": Origin("Mul", "ffn.0"),
    "gelu": Origin("Gelu", "ffn.1"),
    "act[2]": Origin("HardSwish", "ffn.2"),
    "gone": Origin("Relu", "ffn.3"),
}


def layer(
    name: str, nodes: list[str], given: str = "Half", gives: str = "Half", between: str = "\x1f"
) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": "kgen",
        "Inputs": [{"Name": "a", "Dimensions": [1, 8], "Format/Datatype": given}],
        "Outputs": [{"Name": "b", "Dimensions": [1, 8], "Format/Datatype": gives}],
        "TacticName": "t",
        "Metadata": between.join(f"[ONNX Layer: {node}]" for node in nodes),
    }


def text(*layers: Any, **more: Any) -> str:
    return json.dumps({"Layers": layers, **more})


def test_a_detailed_layer() -> None:
    read = parse_layers(text(layer("__myl_Erf", ["erf", "mul"], "Float"), Bindings=["x", "z"]))
    assert read == (Layer("__myl_Erf", "kgen", ("erf", "mul"), ("float32",), ("float16",)),)


@pytest.mark.parametrize("between", ["\x1f", "", " "])
def test_nodes_of_a_layer(between: str) -> None:
    (read,) = parse_layers(text(layer("a", ["mm", "act[2]", "mm", "gelu"], between=between)))
    assert read.nodes == ("mm", "act[2]", "gelu")


def test_more_is_said_of_a_node_after_its_name() -> None:
    entry = {**layer("a", []), "Metadata": "[ONNX Layer: erf | Local Function: call (F)]\x1f[ONNX Layer: mul | a | b]"}
    assert parse_layers(text(entry))[0].nodes == ("erf", "mul")


@pytest.mark.parametrize(
    ("tensor", "dtype"),
    [
        ({"Format/Datatype": "Row major linear FP32"}, "float32"),
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "float16"),
        ({"Format/Datatype": "Four wide channel vectorized row major Int8 format"}, "int8"),
        ({"Format/Datatype": "BF16"}, "bfloat16"),
        ({"Format/Datatype": "Float"}, "float32"),
        ({"Format": "Row major linear FP32 format (kLINEAR)", "DataType": "Half"}, "float16"),
        ({"DataType": "Int64"}, "int64"),
        ({"DataType": "Bool"}, "bool"),
        ({"DataType": "UInt8"}, "uint8"),
        ({"DataType": "FP8"}, "float8"),
        ({"DataType": "Elsewhat"}, "unknown"),
        ({}, "unknown"),
        ("x", "unknown"),
    ],
)
def test_types_in_the_old_and_the_new_format(tensor: Any, dtype: str) -> None:
    (read,) = parse_layers(text({"Name": "a", "Inputs": [tensor], "Outputs": []}))
    assert read.inputs == (dtype,)


def test_names_alone() -> None:
    read = parse_layers(text("mm", "act"))
    assert read == (Layer("mm"), Layer("act"))
    assert sites_of(read, NODES)["ffn.0"].layers == ()


@pytest.mark.parametrize(
    "bad", ["", "[]", "{}", '{"Layers": [{"LayerType": "x"}]}', '{"Layers": [1]}', '{"Layers": null}']
)
def test_what_is_no_listing(bad: str) -> None:
    with pytest.raises(ActxError, match="inspector"):
        parse_layers(bad)


def test_a_site_in_a_layer_of_its_own_and_one_in_a_matmul() -> None:
    layers = parse_layers(
        text(
            layer("own", ["bias", "erf", "mul"]),
            layer("fused", ["mm", "bias", "gelu"], "Int8"),
            layer("rest", ["bias"]),
        )
    )
    assert [site_of(one, NODES) for one in layers] == ["ffn.0", None, None]
    found = sites_of(layers, NODES)
    assert found["ffn.0"].one
    assert not found["ffn.0"].shared
    assert found["ffn.1"].layers == ("fused",)
    assert found["ffn.1"].one
    assert found["ffn.1"].shared
    assert (found["ffn.1"].inputs, found["ffn.1"].outputs) == (("int8",), ("float16",))
    assert found["ffn.3"].layers == ()
    assert not found["ffn.3"].one


def test_a_site_in_two_layers_and_two_sites_in_one() -> None:
    layers = parse_layers(text(layer("a", ["erf"], "Float"), layer("b", ["mul"]), layer("c", ["gelu", "act[2]"])))
    found = sites_of(layers, NODES)
    assert found["ffn.0"].layers == ("a", "b")
    assert not found["ffn.0"].one
    assert found["ffn.0"].inputs == ("float32", "float16")
    assert found["ffn.1"].shared
    assert found["ffn.2"].shared
    assert site_of(layers[2], NODES) is None
