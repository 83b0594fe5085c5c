"""Which of several ways to write a quantized graph: the one with the least drift, and the one that stays within a budget.

1. Drift is measured on one sample in four, which nothing was calibrated on.
2. With `recover`: every calibrator; magnitude moved out of activations or not; the mean error of weights put into the biases or
   not. What has the least drift is taken, so that the result is never worse than the plain one on these samples.
3. With a budget that is broken, layers stay in a finer precision: in the order of the drift that each causes by itself, as
   few as it takes. Where all of them are not enough, all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from actx.exporter.data import hold_out
from actx.exporter.drift import check
from actx.exporter.quantize.dynamic import to_dynamic_int8
from actx.exporter.quantize.lookups import find_lookups
from actx.exporter.quantize.nbits import ranked_layers, to_int4
from actx.exporter.quantize.products import name_of, products
from actx.exporter.quantize.ranges import CALIBRATORS, DEFAULT_CALIBRATOR
from actx.exporter.quantize.source import Quantized
from actx.exporter.quantize.static import EXCLUDED, Settings, Style, excluded, observe, write
from actx.exporter.save import save
from actx.exporter.scratch import scratch

if TYPE_CHECKING:
    from actx.exporter.data import Data
    from actx.exporter.quantize.nbits import Style as Int4Style
    from actx.exporter.quantize.source import Source
    from actx.exporter.quantize.static import Observed
    from actx.exporter.runtimes.base import Runtime

# What is built with some layers, by name, in a finer precision.
Build: TypeAlias = Callable[[Sequence[str]], Quantized]

# Where none is asked for. Entropy is not among them: what it cuts off is what an encoder cannot do without, and it is slow.
_TRIED = tuple(name for name in CALIBRATORS if name != "entropy")
WIDE = "the budget asks for 8 bits"
_QUANTIZED = "quantized.onnx"


def static_int8(source: Source, style: Style, runtime: Runtime | None) -> Quantized:
    """Return a target's graph in static int8.

    Args:
        source: what is quantized.
        style: what the runtime has kernels for.
        runtime: what runs the result here; None where nothing does, and nothing can be chosen by drift.

    Raises:
        UsageError, ActxError: see `observe` and `write`.
    """
    settings = Settings(style, source.calibrator or DEFAULT_CALIBRATOR, exclude=source.exclude)
    if runtime is None or not (source.recover or source.max_drift is not None):
        return write(_look(source, source.data, settings), settings)
    calibration, held = hold_out(source.data)
    judge = _Judge(source, runtime, held)
    if source.recover:
        settings = _least_drift(source, judge, calibration, settings)
    seen = _look(source, calibration, settings)
    left = _left(judge, lambda names: write(seen, settings, names))
    return write(_look(source, source.data, settings), settings, left)


def dynamic_int8(source: Source, runtime: Runtime | None) -> Quantized:
    """Return a target's graph with int8 layers whose ranges are found at run time.

    Raises:
        UsageError, ActxError: see `to_dynamic_int8`, and `excluded`.
    """
    names = _names(source)
    fixed = excluded(names, source.exclude)

    def build(left: Sequence[str]) -> Quantized:
        reasons = fixed | dict.fromkeys(left, EXCLUDED)
        return Quantized(
            to_dynamic_int8(source.own, exclude=set(reasons)), {name: reasons.get(name, "") for name in names}
        )

    return build(_left(_judge(source, runtime), build))


def int4(source: Source, style: Int4Style, runtime: Runtime | None) -> Quantized:
    """Return a target's graph with weights in blocks of 4 bits; those of some layers in 8, where the budget asks for it.

    Raises:
        UsageError, ActxError: see `to_int4`, and `excluded`.
    """
    names = _names(source)
    fixed = excluded(names, source.exclude)

    def build(wide: Sequence[str]) -> Quantized:
        reasons = fixed | dict.fromkeys(wide, WIDE)
        model = to_int4(source.own, style=style, exclude=set(fixed), wide=set(wide))
        return Quantized(model, {name: reasons.get(name, "") for name in names})

    judge = _judge(source, runtime)
    if judge is None or source.max_drift is None or judge.accepts(build(())):
        return build(())
    batches = [batch.feeds for batch in judge.held.batches()]
    ranked = ranked_layers(source.lowered.portable, batches, style=style, exclude=set(fixed), options=source.options)
    return build(_fewest(ranked, lambda wide: judge.accepts(build(wide))))


def _names(source: Source) -> list[str]:
    """Return what multiplies by a constant matrix, and what looks rows up in one."""
    own = source.own
    return [product.name for product in products(own, ())] + [name_of(node) for node in find_lookups(own.graph)]


def _look(source: Source, data: Data, settings: Settings) -> Observed:
    return observe(
        source.own, source.sites, data, settings, observed=source.lowered.portable, options=source.options,
        progress=source.progress,
    )  # fmt: skip


def _least_drift(source: Source, judge: _Judge, calibration: Data, plain: Settings) -> Settings:
    """2."""
    names = (plain.calibrator,) if source.calibrator is not None else _TRIED
    corrections = (False, True) if plain.style.rows else (False,)
    found: list[tuple[float, Settings]] = []
    for migrate in (False, True):
        settings = replace(plain, migrate=migrate, correct=corrections[-1])
        seen = _look(source, calibration, settings)
        tried = [replace(settings, calibrator=name, correct=correct) for name in names for correct in corrections]
        found += [(judge.drift(write(seen, one)), one) for one in tried]
    return min(found, key=lambda pair: pair[0])[1]


def _judge(source: Source, runtime: Runtime | None) -> _Judge | None:
    if runtime is None or source.max_drift is None or source.data.synthetic:
        return None
    return _Judge(source, runtime, hold_out(source.data)[1])


@dataclass(frozen=True)
class _Judge:
    """Measures the drift on held-out samples (1).

    Attributes:
        source: what is quantized.
        runtime: what runs the result.
        held: the samples.
    """

    source: Source
    runtime: Runtime
    held: Data

    def drift(self, quantized: Quantized) -> float:
        with scratch() as folder:
            save({_QUANTIZED: quantized.model}, folder)
            report = check(
                self.source.original, folder / _QUANTIZED, self.held, metric=self.source.metric,
                runtime=self.runtime, original_runtime=self.source.options,
            )  # fmt: skip
        return report.drift

    def accepts(self, quantized: Quantized) -> bool:
        return self.source.max_drift is None or self.drift(quantized) <= self.source.max_drift


def _left(judge: _Judge | None, build: Build) -> tuple[str, ...]:
    """3. Return the names of the layers that are to stay in floating point."""
    if judge is None or judge.source.max_drift is None:
        return ()
    whole = build(())
    if judge.accepts(whole):
        return ()
    names = [name for name, reason in whole.layers.items() if not reason]
    alone = {name: judge.drift(build([other for other in names if other != name])) for name in names}
    ranked = sorted(names, key=lambda name: -alone[name])
    return _fewest(ranked[:-1], lambda left: judge.accepts(build(left)))


def _fewest(ranked: Sequence[str], enough: Callable[[Sequence[str]], bool]) -> tuple[str, ...]:
    """Return the shortest beginning that is enough, by bisection; all of it where none is."""
    least, most = 1, len(ranked)
    while least < most:
        middle = (least + most) // 2
        if enough(ranked[:middle]):
            most = middle
        else:
            least = middle + 1
    return tuple(ranked[:most])
