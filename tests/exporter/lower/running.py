"""Running and comparing graphs, for the tests of lower."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from actx.custom_ops.ops import reference_ops, register_schemas
from actx.exporter import Form, fit
from actx.exporter.choose import Choice
from actx.exporter.load.prepare import prepare

if TYPE_CHECKING:
    from actx.exporter.fitting import Fit
    from actx.exporter.lift import Site

UNIT = {"float32": 2.0**-24, "float16": 2.0**-11}


def prepared(model: onnx.ModelProto) -> ir.Model:
    graph = ir.from_proto(model)
    prepare(graph)
    return graph


def checked(model: ir.Model) -> onnx.ModelProto:
    """Return the model as a proto that onnx's checker accepts, shapes and types included."""
    register_schemas()
    proto: onnx.ModelProto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def in_runtime(model: ir.Model, inputs: dict[str, Any]) -> list[np.ndarray]:
    """Run a portable graph in ONNX Runtime."""
    proto = checked(model)
    assert {node.domain for node in proto.graph.node} <= {"", "com.microsoft"}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, inputs)]


def in_reference(model: ir.Model, inputs: dict[str, Any]) -> list[np.ndarray]:
    """Run a graph, actx nodes included, in onnx's own evaluator."""
    with np.errstate(all="ignore"):
        results = ReferenceEvaluator(checked(model), new_ops=reference_ops()).run(None, inputs)
    return [np.asarray(result) for result in results]


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def values_of(model: ir.Model) -> dict[str, ir.Value]:
    graph = model.graph
    found = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
    return found | {str(value.name): value for node in graph for value in node.outputs}


def chosen(site: Site, form: str, *, imitate: bool = False, interval: tuple[float, float] | None = None) -> Choice:
    """Return the site with a form; `imitate` writes the form itself where the source's own mathematics would stand."""
    found: Fit = fit(site.function, Form.parse(form), interval=interval)
    return Choice(site, found.form, dataclasses.replace(found, core_error=1.0) if imitate else found, "")
