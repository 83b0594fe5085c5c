"""Where the two sites, or one and the identity, of an `actx::GatedSpline` are found: in the halves of what it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from actx.custom_ops.ops import DOMAIN
from actx.custom_ops.ops.gated_spline import GatedSplineOp
from actx.exporter.lower.emitter import SITE_METADATA
from actx.exporter.lower.packing import OTHER_SITE_METADATA

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Half:
    """One of the two factors of a node.

    Attributes:
        op: the node.
        packed: name of what it reads.
        product: name of what it gives.
        is_gate: whether the factor is that of the gate.
    """

    op: GatedSplineOp
    packed: str
    product: str
    is_gate: bool

    def of(self, packed: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the factor's input, and the other factor, in float64."""
        gate, other = (half.astype(np.float64) for half in self.op.halves(packed))
        if self.is_gate:
            return gate, other if self.op.other is None else self.op.other(other)
        return other, self.op.spline(gate)


def halves_by_site(model: onnx.ModelProto) -> dict[str, Half]:
    """Return the half of every site that a node of a graph stands for, by the site's name."""
    found = {}
    for node in model.graph.node:
        if node.domain != DOMAIN or node.op_type != GatedSplineOp.NAME:
            continue
        names = {prop.key: prop.value for prop in node.metadata_props}
        op = GatedSplineOp.from_attributes({a.name: _plain(a) for a in node.attribute})
        for key, is_gate in ((SITE_METADATA, True), (OTHER_SITE_METADATA, False)):
            if key in names:
                found[names[key]] = Half(op, node.input[0], node.output[0], is_gate)
    return found


def _plain(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value
