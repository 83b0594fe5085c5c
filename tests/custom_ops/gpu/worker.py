"""Functions of a module of the tests, run in a process of their own, which starts as the module's `serve` says."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).parents[3]


class Worker:
    """The process.

    Args:
        module: its name.
        arguments: in `sys.argv` there.
        environment: what is set there beside what is here.
    """

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-c", f"from {module} import serve; serve()", *arguments]
        pipe = subprocess.PIPE
        environment = {**os.environ, **(environment or {})}
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, env=environment)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function of the module there; what it raises is raised here."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((function.__name__, arguments), self._process.stdin)
        self._process.stdin.flush()
        result = pickle.load(self._process.stdout)
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait() == 0


def answer(functions: Mapping[str, Any], as_they_are: type[Exception] = Exception) -> None:
    """In the process: run functions by their names, until there are no more.

    Args:
        functions: the module's `globals()`.
        as_they_are: exceptions of other types may not be known here, and become a RuntimeError of the same text.
    """
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            result = functions[name](*arguments)
        except Exception as error:  # noqa: BLE001 - the test raises it
            result = error if isinstance(error, as_they_are) else RuntimeError(str(error))
        pickle.dump(result, sys.stdout.buffer)
        sys.stdout.buffer.flush()
