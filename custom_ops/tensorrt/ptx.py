"""The parameters of a kernel in PTX, in the order in which TensorRT passes them.

PTX names its parameters, and passes them by their place in the declaration: to permute the declarations is to permute what the
kernel is called with, and one that the body does not name can be left out.
Source: NVIDIA, PTX ISA, "Kernel Function Parameters".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def with_parameters(ptx: str, symbol: str, places: Sequence[int]) -> str:
    """Return a kernel that takes some of its parameters, in this order.

    Args:
        ptx: of one kernel.
        symbol: its name.
        places: places of the parameters as they are declared; those left out must be unused.

    Raises:
        ValueError: a parameter is used and not among the places.
    """
    entry = re.search(rf"(?<=\.entry {re.escape(symbol)}\()[^)]*(?=\))", ptx)
    assert entry is not None, f"{symbol} is not a kernel of this PTX"
    declared = [text.strip() for text in entry[0].split(",")]
    names = [text.split()[-1] for text in declared]
    used = set(re.findall(rf"\[({re.escape(symbol)}_param_\d+)\]", ptx))
    lost = used - {names[place] for place in places}
    if lost:
        msg = f"the kernel {symbol} uses {min(lost)}, which it would not be given"
        raise ValueError(msg)
    chosen = ",\n".join(f"\t{declared[place]}" for place in places)
    return f"{ptx[: entry.start()]}\n{chosen}\n{ptx[entry.end() :]}"
