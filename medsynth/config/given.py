"""Options of channels that are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class GivenOptions:
    """Channels that new scans take from real ones: masks to fill, or sequences from which a missing one is made.

    Args:
        cohort: Cohort CSV whose scans give the channels, each to a scan of its class, in random order and once before any again.
        channels: The channels that are given, such as `mask` or `t1,t2`, for a run trained with `condition.given`; the others are
            generated to fit.
        split: Split whose scans give them; the new scans belong to it, so that nothing of a test patient is trained on.
        change: Turn, scale and shift each given mask a little, so that it is not that of a patient any more.
    """

    cohort: str = ""
    channels: str = ""
    split: Literal["train", "val", "test"] = "train"
    change: bool = False
