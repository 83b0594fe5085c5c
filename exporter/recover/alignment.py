"""Move and stretch a form, channel by channel, so that it meets the function where the channel's inputs are.

1. In the place of g(x) stands s g(c x + d) + o. The slope c and the shift d go into the layer before the site, s and o into the
   layers behind it, so it costs nothing. Where the output is a factor of a product, o is 0.
2. c and d are taken from a grid. s and o follow by linear regression of the function on the moved form, under the distribution
   of the channel's inputs. What is far from g itself is penalised: a channel that was seen on one side of zero only would
   otherwise be led astray on the other.
3. Of each channel that is kept which comes closer on held-out inputs.

Inputs are counted per channel in bins of equal width in arsinh(x), as in `Density`; what is beyond `REACH` counts as if it were
there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Function: TypeAlias = Callable[["NDArray[np.float64]"], "NDArray[np.float64]"]

# Activations are near their asymptotes long before this: what is beyond counts in the outermost bins.
REACH = 64.0
BINS = 512
_REACH = float(np.arcsinh(REACH))
SLOPES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4)
SHIFTS = tuple(np.linspace(-1.5, 1.5, 31).tolist())
GAINS = (0.3, 2.0)  # s lies between
# What a move is charged for, in parts of the function's variance.
PENALTY = 0.003


@dataclass(frozen=True)
class Alignment:
    """How the form of every channel is moved, float64 (C,) each: s g(c x + d) + o.

    Attributes:
        slope: c.
        shift: d.
        gain: s.
        offset: o.
    """

    slope: NDArray[np.float64]
    shift: NDArray[np.float64]
    gain: NDArray[np.float64]
    offset: NDArray[np.float64]

    @property
    def moved(self) -> int:
        """How many channels are not as they were."""
        still = (self.slope == 1) & (self.shift == 0) & (self.gain == 1) & (self.offset == 0)
        return int(np.count_nonzero(~still))


class Histogram:
    """Counts inputs per channel.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        self.counts: NDArray[np.int32] = np.zeros((channels, BINS), np.int32)

    @property
    def middles(self) -> NDArray[np.float64]:
        """Middles of the bins, float64 (BINS,)."""
        step = 2 * _REACH / BINS
        middles: NDArray[np.float64] = np.sinh(step * (np.arange(BINS) + 0.5) - _REACH)
        return middles

    def update(self, rows: NDArray[Any]) -> None:
        """Count inputs [places, C]; what is not finite is left out."""
        scale = BINS / (2 * _REACH)
        known = np.isfinite(rows)
        finite = np.where(known, rows, 0).astype(np.float32)
        bins = np.clip((np.arcsinh(finite) + np.float32(_REACH)) * np.float32(scale), 0, BINS - 1).astype(np.int64)
        bins += np.arange(rows.shape[1]) * BINS
        counts = np.bincount(bins[known], minlength=self.counts.size)
        self.counts += counts.reshape(self.counts.shape).astype(np.int32)


def align(function: Function, form: Function, fitted: Histogram, held: Histogram, *, offset: bool) -> Alignment:
    """Move a form.

    Args:
        function: f.
        form: g.
        fitted: inputs to fit on.
        held: inputs to judge on, with the same bins.
        offset: whether o may be other than 0.
    """
    seen = (fitted.counts.any(axis=0)) | (held.counts.any(axis=0))  # elsewhere a function may be infinite
    x, of_fitted, of_held = fitted.middles[seen], _shares(fitted)[:, seen], _shares(held)[:, seen]
    slopes, shifts = (grid.ravel() for grid in np.meshgrid(SLOPES, SHIFTS, indexing="ij"))
    with np.errstate(all="ignore"):  # what is not finite is not chosen
        f, candidates = function(x), form(x[:, None] * slopes + shifts)
        gains, offsets, errors = _regressions(of_fitted, f, candidates, offset=offset)
        variance = np.maximum(of_fitted @ np.square(f) - np.square(of_fitted @ f), 0)
        distance = np.square(gains - 1) + np.square(shifts) + np.square(slopes - 1)
        scores = errors + PENALTY * variance[:, None] * distance
        best = np.where(np.isfinite(scores), scores, np.inf).argmin(axis=1)
        each = np.arange(len(best))
        gain, moved = gains[each, best], offsets[each, best]
        better = _is_closer(of_held, f, form(x), gain[:, None] * candidates[:, best].T + moved[:, None])
    return Alignment(
        np.where(better, slopes[best], 1.0),
        np.where(better, shifts[best], 0.0),
        np.where(better, gain, 1.0),
        np.where(better, moved, 0.0),
    )


def _shares(histogram: Histogram) -> NDArray[np.float64]:
    """Return the distribution of every channel, [C, BINS]; zeros where nothing was counted."""
    shares: NDArray[np.float64] = histogram.counts / np.maximum(histogram.counts.sum(axis=1, keepdims=True), 1)
    return shares


def _regressions(
    shares: NDArray[np.float64], f: NDArray[np.float64], candidates: NDArray[np.float64], *, offset: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return s, o and the mean square error, each [C, candidates]."""
    mean_f, mean_ff = (shares @ f)[:, None], (shares @ np.square(f))[:, None]
    mean_g, mean_gg = shares @ candidates, shares @ np.square(candidates)
    mean_fg = shares @ (f[:, None] * candidates)
    centre = mean_g if offset else np.zeros_like(mean_g)
    spread = np.maximum(mean_gg - centre * mean_g, 0)
    gains = np.clip((mean_fg - centre * mean_f) / np.maximum(spread, 1e-30), *GAINS)
    offsets = mean_f - gains * mean_g if offset else np.zeros_like(gains)
    errors = mean_ff - 2 * gains * mean_fg + np.square(gains) * mean_gg
    errors -= offsets * (2 * (mean_f - gains * mean_g) - offsets)
    return gains, offsets, np.maximum(errors, 0)


def _is_closer(
    shares: NDArray[np.float64], f: NDArray[np.float64], before: NDArray[np.float64], after: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """3. `after` is [C, BINS]; a channel of which nothing was held out is not moved."""
    closer: NDArray[np.bool_] = (shares * np.square(f - after)).sum(axis=1) < shares @ np.square(f - before)
    return closer
