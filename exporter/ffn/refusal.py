"""Why a product is no gated FFN that can be packed."""

from __future__ import annotations


class Refusal(Exception):  # noqa: N818 - the graph is as it should be
    """It cannot be packed, and the reason in words.

    Attributes:
        reason: a clause that can follow "kept: ".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
