"""The interpreter of GPU kernels, one process for a file of tests."""

# ruff: noqa: PLC0415 - Triton may be absent, and is told how to run kernels before its first import
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.custom_ops.gpu.interpreter import Interpreter


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    pytest.importorskip("triton", reason="actx was installed without the extra gpu")
    from tests.custom_ops.gpu.interpreter import Interpreter

    found = Interpreter()
    yield found
    found.close()
