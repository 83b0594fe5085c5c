"""A corpus of characters that every machine has: the sources of Python's own standard library.

They differ a little between versions of Python, and with them what a network learns and how well it does.
"""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Modules that all versions from 3.11 on have as one file.
TRAINING_MODULES = (
    "argparse", "ast", "calendar", "configparser", "csv", "difflib", "fractions", "functools", "gettext", "http/client",
    "imaplib", "inspect", "ipaddress", "optparse", "pickle", "random", "shutil", "smtplib", "statistics", "subprocess",
    "tarfile", "threading", "typing", "unittest/mock",
)  # fmt: skip
EVALUATION_MODULES = ("bdb", "gzip", "queue", "shlex", "textwrap")
LETTERS = "\n" + "".join(map(chr, range(32, 127)))
"""The characters in the order of their tokens, 96; others are left out."""
MASK = len(LETTERS)
"""The token that stands for a character to guess."""


@dataclass(frozen=True)
class Characters:
    """Tokens int64 [n] of the modules to train on and of others to evaluate on."""

    train: NDArray[np.int64]
    evaluation: NDArray[np.int64]


def load_characters() -> Characters:
    """Read the modules of this machine's Python.

    Raises:
        FileNotFoundError: this Python has no sources of its standard library.
    """
    return Characters(_read(TRAINING_MODULES), _read(EVALUATION_MODULES))


def tokens_of(text: str) -> NDArray[np.int64]:
    """Return the tokens int64 [n] of the characters of a text."""
    codes = np.frombuffer(text.encode("ascii", "ignore"), dtype=np.uint8)
    tokens = np.where(codes == ord("\n"), 0, codes.astype(np.int64) - 31)
    return tokens[(tokens >= 0) & (tokens < MASK)]


def _read(modules: Sequence[str]) -> NDArray[np.int64]:
    library = Path(sysconfig.get_path("stdlib"))
    return np.concatenate([tokens_of((library / f"{name}.py").read_text(encoding="utf-8")) for name in modules])
