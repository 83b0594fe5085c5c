"""Conditions on what was measured, such as `latency.p50 > 1.05 * base`.

    condition  = quantity ("<" | "<=" | ">" | ">=" | "==" | "!=") expression
    expression = numbers, quantities, `base` and `base.QUANTITY` with + - * / and parentheses
    quantity   = NAME {"." NAME} ["[" TEXT "]"]

1. Python's parser reads it. Only the nodes listed here are accepted, and they are computed here: no code is run.
2. `base` is the condition's own quantity in the base, `base.QUANTITY` another one of it.
3. What was not measured, and what is no number, is an error: a condition never passes for lack of a measurement.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from actx.exporter.errors import ActxError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

Values: TypeAlias = "Mapping[str, float | None]"

BASE = "base"
_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_ACCEPTED = (ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Load, ast.BinOp, ast.UnaryOp, ast.USub,
             *_ARITHMETIC)  # fmt: skip
_LONGEST = 500  # letters: the parser and what follows it descend once per operator


@dataclass(frozen=True)
class Condition:
    """A condition that was read.

    Attributes:
        text: as it was written.
        quantity: what stands on its left.
        comparison: the operator.
        bound: what stands on its right.
    """

    text: str
    quantity: str
    comparison: type[ast.cmpop]
    bound: ast.expr

    def holds(self, values: Values, base: Values, known: Collection[str]) -> tuple[bool, float, float]:
        """Tell whether it holds, with the quantity and what it was compared with.

        Args:
            values: quantities by name; those that were not measured are None or missing.
            base: those of the base.
            known: names of all that could have been measured.

        Raises:
            UsageError: a name in it is not known.
            ActxError: something in it was not measured, or there is no number to compare with.
        """

        def look_up(name: str) -> float:
            of_base = name == BASE or name.startswith(f"{BASE}.")
            name = self.quantity if name == BASE else name.removeprefix(f"{BASE}.")
            if name not in known:
                raise UsageError(
                    f"condition {self.text!r} names the unknown quantity {name}",
                    note=f"known are {_listed(known)}",
                    remedy="Name one of these.",
                )
            value = (base if of_base else values).get(name)
            if value is None:
                raise ActxError(
                    f"condition {self.text!r} cannot be judged",
                    note=f"{name} was not measured{' in the base' if of_base else ''}",
                    remedy="Measure it, or leave the condition out.",
                )
            return value

        value = look_up(self.quantity)
        try:
            bound = _evaluate(self.bound, look_up)
        except ZeroDivisionError:
            bound = math.nan
        if math.isnan(bound):
            raise ActxError(
                f"condition {self.text!r} compares with no number",
                note="its right side divides by 0, or takes infinity from itself",
                remedy="Compare with a fixed number.",
            )
        return _COMPARISONS[self.comparison](value, bound), value, bound


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Raises:
        UsageError: it is none.
    """
    tree = _parsed(text)
    if isinstance(tree, ast.Compare) and len(tree.ops) == 1 and type(tree.ops[0]) in _COMPARISONS:
        name, bound = _name(tree.left), tree.comparators[0]
        if name is not None and name.partition(".")[0] != BASE and _is_accepted(bound):
            return Condition(text, name, type(tree.ops[0]), bound)
    raise _malformed(text, "a quantity is compared with numbers, quantities and base, by + - * / and parentheses")


def keyed(name: str, key: str) -> str:
    """Return the name of a quantity that there is one of for each output, file or metric."""
    return f"{name}[{json.dumps(key, ensure_ascii=False)}]"


def _parsed(text: str) -> ast.expr:
    if len(text) > _LONGEST:
        raise _malformed(text, f"it has {len(text)} letters, at most {_LONGEST} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of escapes in a text that mean nothing
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise _malformed(text, str(getattr(error, "msg", error))) from error


def _malformed(text: str, why: str) -> UsageError:
    return UsageError(f"{text!r} is no condition", note=why, remedy="Write for example 'latency.p50 > 1.05 * base'.")


def _is_accepted(bound: ast.expr) -> bool:
    """Tell whether a tree has nothing but arithmetic of numbers and names."""
    if not all(isinstance(node, _ACCEPTED) for node in ast.walk(bound)):
        return False
    try:
        _evaluate(bound, lambda _: 1.0)
    except ZeroDivisionError:
        return True
    except (TypeError, OverflowError):
        return False
    return True


def _evaluate(node: ast.expr, look_up: Callable[[str], float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.UnaryOp(operand=operand):
            return -_evaluate(operand, look_up)
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_evaluate(left, look_up), _evaluate(right, look_up))
    name = _name(node)
    if name is None:
        raise TypeError(ast.dump(node))
    return look_up(name)


def _name(node: ast.expr) -> str | None:
    """Return the name of a quantity; None for what is none."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            before = _name(value)
            return None if before is None else f"{before}.{attribute}"
        case ast.Subscript(value=value, slice=ast.Constant(value=str() as key)):
            before = _name(value)
            return None if before is None else keyed(before, key)
    return None


def _listed(names: Collection[str]) -> str:
    """Return names in the order given, those of one kind together: `latency.{p50, p90}`."""
    kinds: dict[str, list[str]] = {}
    for name in dict.fromkeys(re.sub(r"\[.*", '["..."]', name, flags=re.DOTALL) for name in names):
        kind, _, rest = name.rpartition(".") if "[" not in name else (name, "", "")
        kinds.setdefault(kind or rest, []).extend([rest] if kind and rest else [])
    return ", ".join(f"{kind}.{{{', '.join(rest)}}}" if rest else kind for kind, rest in kinds.items())
