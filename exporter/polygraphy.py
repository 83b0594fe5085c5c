"""Inputs and outputs as Polygraphy's JSON files, to compare with what `polygraphy run` makes of the same model.

Inputs are what `polygraphy run --save-inputs` writes: a list with one dict of arrays per run. Outputs are what
`polygraphy run --load-outputs` takes. Polygraphy itself reads and writes both.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from actx.exporter.errors import ActxError, TargetUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from actx.exporter.data import Arrays

SUFFIX = ".json"
_INSTALL = "Install it: pip install polygraphy."


def read_inputs(path: Path) -> list[Mapping[str, Any]]:
    """Return the arrays of every run.

    Raises:
        TargetUnavailable: Polygraphy is not installed.
        ActxError: the file does not hold such a list.
    """
    json = _polygraphy(f"'{path}'")
    try:
        with _silent():
            runs = json.load_json(str(path))
    except Exception as error:
        raise ActxError(
            f"'{path}' cannot be read as inputs of Polygraphy", note=str(error), remedy="Save them again."
        ) from error
    if not isinstance(runs, list) or not all(
        isinstance(run, dict) and all(isinstance(array, np.ndarray) for array in run.values()) for run in runs
    ):
        raise ActxError(
            f"'{path}' does not hold inputs of Polygraphy",
            note="expected a list with one dict of arrays per run",
            remedy="Write it with polygraphy run --save-inputs, or polygraphy.json.save_json.",
        )
    return runs


class OutputFile:
    """Collects the outputs of several models, run by run, and writes them at the end.

    Args:
        path: the file to write.
        runners: what the models are called in it.

    Raises:
        TargetUnavailable: Polygraphy is not installed.
    """

    def __init__(self, path: Path, *runners: str) -> None:
        _polygraphy(f"'{path}'")
        self._path = path
        self._runs: list[tuple[str, list[Arrays]]] = [(runner, []) for runner in runners]

    def add(self, *outputs: Arrays) -> None:
        """Add one run's outputs of every model, in the order of the runners."""
        for (_, runs), arrays in zip(self._runs, outputs, strict=True):
            runs.append(arrays)

    def write(self) -> None:
        """Write the file.

        Raises:
            ActxError: it cannot be written.
        """
        with _silent():
            from polygraphy.comparator import IterationResult, RunResults  # noqa: PLC0415 - found by _polygraphy

        results = RunResults(
            [(runner, [IterationResult(arrays, runner_name=runner) for arrays in runs]) for runner, runs in self._runs]
        )
        try:
            with _silent():
                results.save(str(self._path))
        except Exception as error:
            raise ActxError(
                f"cannot write '{self._path}'", note=str(error), remedy="Check the free space and permissions."
            ) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Polygraphy writes its remarks to stdout."""
    from polygraphy.logger import G_LOGGER  # noqa: PLC0415 - found by _polygraphy

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        yield


def _polygraphy(what: str) -> Any:
    try:
        from polygraphy import json  # noqa: PLC0415 - not everybody has it
    except ImportError as error:
        raise TargetUnavailable(f"{what} needs Polygraphy", note=str(error), remedy=_INSTALL) from error
    return json
