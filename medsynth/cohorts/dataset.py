"""Prepared scans as a torch Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medsynth.cohorts.cache import PreparedCohort


class ScanDataset(Dataset[dict[str, Any]]):
    """Scans of a prepared cohort, all or those of `indices` (as `PreparedCohort.indices` gives them).

    An item is `{"scan": float32 (C, *spatial) in [-1, 1], "label": class number, "index": row of the cohort}`, with
    `"attributes": float32 (attributes,)` where the prepared cohort has them.
    """

    def __init__(self, prepared: PreparedCohort, indices: Sequence[int] | np.ndarray | None = None) -> None:
        self.prepared = prepared
        self.rows = np.arange(len(prepared.scans)) if indices is None else np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = int(self.rows[position])
        scan = torch.from_numpy(np.array(self.prepared.scans[index], dtype=np.float32))
        item = {"scan": scan, "label": int(self.prepared.labels[index]), "index": index}
        if self.prepared.attributes is not None:
            item["attributes"] = torch.from_numpy(self.prepared.attributes[index])
        return item
