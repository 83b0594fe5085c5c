"""Compare the native `Spline` with its float64 reference on every one of the 2^32 patterns of float32.

    python -m tests.exhaustive gelu spline:24x3

Takes some minutes per table. It uses the best instruction set of this machine, or the one that ACTX_ISA names. The patterns
are taken in blocks within which x is monotone, so that each segment is one slice; what is allowed is the contract of the op.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import polynomial
from rich.progress import track

from actx.custom_ops import ACTIVATIONS, Spline, cpu
from actx.custom_ops.ops import OPS
from actx.custom_ops.ops.rounding import LARGEST, SUBNORMAL, UNIT, terms
from actx.exporter import Form, fit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BLOCK = 2**22


def segments(spline: Spline, x: NDArray[np.float32]) -> Iterator[tuple[int, slice]]:
    """Yield the slice of each segment of finite numbers that ascend, or descend."""
    ascends = x[-1] >= x[0]
    ends = np.searchsorted(x if ascends else x[::-1], spline.knots)
    bounds = np.array([0, *ends, len(x)])
    for segment in range(spline.segments):
        low, high = bounds[segment : segment + 2]
        if high > low:
            yield segment, slice(low, high) if ascends else slice(len(x) - high, len(x) - low)


def excess(spline: Spline, x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Return the largest error of finite x as a share of what is allowed; infinite where a number is missing."""
    worst = 0.0
    for segment, part in segments(spline, x):
        t = x[part].astype(np.float64) - float(spline.origins[segment])
        coefficients = spline.coefficients[segment].astype(np.float64)
        exact = polynomial.polyval(t, coefficients)
        magnitude = polynomial.polyval(np.abs(t), np.abs(coefficients) + SUBNORMAL / UNIT)
        allowed = terms(spline.degree) * UNIT * magnitude
        share = np.abs(y[part] - exact) / allowed
        share[magnitude * (1 + 1e-3) >= LARGEST] = 0  # open: an intermediate result may leave float32
        worst = max(worst, np.nan_to_num(share, nan=np.inf).max())
    return float(worst)


def main() -> None:
    """Compare, and print the worst share of the contract."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("activation", choices=sorted(ACTIVATIONS))
    parser.add_argument("form", type=Form.parse)
    arguments = parser.parse_args()
    spline = fit(ACTIVATIONS[arguments.activation], arguments.form).spline
    op = OPS["Spline"](spline)
    kernel = cpu.load().create("Spline", op.attributes())
    worst, special = 0.0, True
    for first in track(range(0, 2**32, BLOCK)):
        x = np.arange(first, first + BLOCK, dtype=np.uint32).view(np.float32)
        y = kernel.run([x, None])
        finite = np.isfinite(x)
        if not finite.all():
            special = special and bool(op.agrees(y[~finite], [x[~finite], None]).all())
            x, y = x[finite], y[finite]
        if len(x):
            worst = max(worst, excess(spline, x, y))
    verdict = "holds" if worst <= 1 and special else "FAILS"
    sys.stdout.write(
        f"{arguments.activation} {arguments.form}, {kernel.kernel} of {cpu.load().isas[0]}: the contract {verdict} for all "
        f"2^32 patterns; worst error {worst:.3f} of what is allowed; NaN and infinities {'right' if special else 'WRONG'}\n"
    )


if __name__ == "__main__":
    main()
