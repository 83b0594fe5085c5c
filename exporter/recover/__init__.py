"""Give back, without training, what a coarse form costs: the layers around every rewritten site are fitted anew."""

from __future__ import annotations

from actx.exporter.recover.recovery import Recovered, SiteRecovery, recover

__all__ = ["Recovered", "SiteRecovery", "recover"]
