"""One round of a measurement, where sessions take turns (rules 1 and 2 of `latency`).

It needs the standard library of Python 3.8 alone: it is sent to devices, which measure their rounds by the same code.
"""

from __future__ import annotations

import heapq
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Opened = tuple[Callable[[], object], Callable[[], Callable[[], int]]]

MIN_TURNS = 3
MAX_TURNS = 40
MAX_TURNS_NS = 2_000_000_000
AGREEMENT = 0.02


def take_turns(run: Callable[[int], int], orders: Iterable[Sequence[int]], most: int) -> list[list[int]]:
    """Let the sessions take turns.

    Args:
        run: runs the session of that number and returns the nanoseconds.
        orders: the numbers of the sessions, in the order of every turn; `MAX_TURNS` + 1 at most are taken.
        most: nanoseconds after which no turn begins but the least number of them.

    Returns:
        The nanoseconds of every session in every turn, without the first, which is for warm-up.
    """
    following = iter(orders)
    _turn(run, following)
    turns = [_turn(run, following) for _ in range(MIN_TURNS)]
    while not _settled(turns, most):
        turns.append(_turn(run, following))
    return turns


def take_round(
    start: Callable[[int], Opened], orders: Iterable[Sequence[int]], most: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Open sessions anew, run each once, and let them take turns.

    Args:
        start: opens the session of that number; returns what runs it first, and what gives its timer.
        orders: the order in which they are opened, and then those of `take_turns`.
        most: as in `take_turns`.

    Returns:
        The nanoseconds to open each session and to run it first, by session; and what `take_turns` returns.
    """
    following = iter(orders)
    times, sessions, timers = {}, {}, {}
    for which in next(following):
        begin = time.perf_counter_ns()
        sessions[which] = first, timer = start(which)
        opened = time.perf_counter_ns()
        first()
        times[which] = [opened - begin, time.perf_counter_ns() - opened]
        timers[which] = timer()
    return [times[which] for which in sorted(times)], take_turns(lambda which: timers[which](), following, most)


def _turn(run: Callable[[int], int], orders: Iterator[Sequence[int]]) -> list[int]:
    times = {which: run(which) for which in next(orders)}
    return [times[which] for which in sorted(times)]


def _settled(turns: Sequence[Sequence[int]], most: int) -> bool:
    """Tell whether the turns so far are enough: rule 2."""
    if len(turns) >= MAX_TURNS or sum(map(sum, turns)) > most:
        return True
    pairs = (heapq.nsmallest(2, times) for times in zip(*turns))
    return all(second <= (1 + AGREEMENT) * least for least, second in pairs)
