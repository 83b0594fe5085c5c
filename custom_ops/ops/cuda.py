"""The attributes that a node has beside its op's where its kernel was compiled for GPUs: what a launcher needs, as plain data.

1. The kernel takes the inputs whose places `cuda_inputs` has (an absent one is never read), the output, the table, then its
   integers: rows, columns and, where there are three, channels, as int32; at the end two null pointers.
2. Of the output's dimensions the first `cuda_rows` are rows and the others columns, by their products; the one at
   `cuda_channel_axis` is channels, 1 where that is absent. Both count from the end where they are negative.
3. The grid is one-dimensional: cdiv(rows, tile[0]) * cdiv(columns, tile[1]), the second factor 1 where tile[1] is 0.
4. `cuda_code` holds images one behind the other: cubins, each for one compute capability, and PTX, which ends with a null and
   is for its compute capability and all newer ones. An image that is aligned needs columns in multiples of 16.

An op whose node has none of them is the same op: they say how it is computed, not what.
"""

from __future__ import annotations

from onnx import defs

_Attribute = defs.OpSchema.Attribute
_Kind = defs.OpSchema.AttrType

ATTRIBUTES = tuple(
    _Attribute(f"cuda_{name}", kind, description=doc, required=False)
    for name, kind, doc in (
        ("code", _Kind.TENSOR, "uint8, the images"),
        ("code_sizes", _Kind.INTS, "bytes of each image"),
        ("architectures", _Kind.INTS, "compute capability of each image, times 10"),
        ("aligned", _Kind.INTS, "1 for each image that needs columns in multiples of 16, else 0"),
        ("shared_bytes", _Kind.INTS, "bytes of shared memory of each image"),
        ("symbol", _Kind.STRING, "name of the kernel in its images"),
        ("threads", _Kind.INT, "of a program"),
        ("table", _Kind.TENSOR, "what the kernel takes as its table"),
        ("inputs", _Kind.INTS, "places of the inputs that the kernel takes"),
        ("rows", _Kind.INT, "how many of the output's dimensions are rows"),
        ("channel_axis", _Kind.INT, "dimension of the output that is channels"),
        ("integers", _Kind.INT, "2 or 3"),
        ("tile", _Kind.INTS, "rows and columns of a program, 0 for all columns"),
    )
)
