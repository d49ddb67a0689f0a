"""Trainings that are done once: the scores of each (arm, training) lie in a file, and a second call reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medsynth.evaluation.downstream.arms import Arm
from medsynth.evaluation.downstream.judging import Scores
from medsynth.files import atomic_path

FORMAT = 2  # raise it when the same arm would come out with other scores

_ROWS = 4096

# Trains an arm for some trainings, numbered from 0, and returns validation and test scores `(repeats, N)`.
Trainer = Callable[[Arm, range], tuple[np.ndarray, np.ndarray]]


def content_key(*parts: Any) -> str:
    """Return a hash of arrays and plain values; equal parts give equal keys."""
    digest = hashlib.sha256(f"format {FORMAT}".encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            # In parts: features may be a memory map of many scans.
            for start in range(0, len(part), _ROWS):
                digest.update(np.ascontiguousarray(part[start : start + _ROWS]).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()


@dataclass(kw_only=True)
class ScoreBook:
    """The scores of one tier, in memory and below `folder` (None: in memory only); `key` says what they are scores of.

    `sizes` are the numbers of validation and test scans. `together`: the trainer is fast and deterministic for all trainings
    of an arm at once; else it gets one at a time, and each is written when it ends.
    """

    folder: Path | None
    key: str
    train: Trainer
    seeds: int
    sizes: tuple[int, int]
    together: bool
    bar: tqdm
    scores: dict[str, Scores] = field(default_factory=dict)
    arms: dict[str, Arm] = field(default_factory=dict)

    def run(self, arms: Sequence[Arm]) -> None:
        """Train all arms that are not known yet; files of another content, or broken ones, are trained again."""
        for arm in arms:
            if arm.name in self.scores:
                assert self.arms[arm.name] == arm, "two arms have one name"
                continue
            self.bar.set_postfix_str(arm.name, refresh=False)
            files = [self._file(arm, repeat) for repeat in range(self.seeds)]
            found = [self._read(file) for file in files]
            missing = [repeat for repeat in range(self.seeds) if found[repeat] is None]
            batches = [range(self.seeds)] if self.together and missing else [range(one, one + 1) for one in missing]
            self.bar.update(self.seeds - len(missing))
            for batch in batches:
                validation, test = self.train(arm, batch)
                for row, repeat in enumerate(batch):
                    if found[repeat] is None:
                        found[repeat] = validation[row], test[row]
                        self._write(files[repeat], arm, validation[row], test[row])
                        self.bar.update(1)
            rows = [each for each in found if each is not None]
            self.scores[arm.name] = Scores(
                validation=np.stack([row[0] for row in rows]), test=np.stack([row[1] for row in rows])
            )
            self.arms[arm.name] = arm

    def _file(self, arm: Arm, repeat: int) -> Path | None:
        if self.folder is None:
            return None
        # Not the name: the same training under two names is one.
        parts: Mapping[str, Any] = {name: value for name, value in asdict(arm).items() if name not in ("name", "kind")}
        return self.folder / f"scores-{content_key(self.key, parts)[:24]}-{repeat}.npz"

    def _read(self, file: Path | None) -> tuple[np.ndarray, np.ndarray] | None:
        if file is None:
            return None
        try:
            with np.load(file, allow_pickle=False) as stored:
                found = stored["validation"], stored["test"]
        except (OSError, ValueError, KeyError, EOFError):
            return None
        fits = tuple(part.shape for part in found) == tuple((size,) for size in self.sizes)
        return found if fits and all(np.isfinite(part).all() for part in found) else None

    def _write(self, file: Path | None, arm: Arm, validation: np.ndarray, test: np.ndarray) -> None:
        if file is None:
            return
        with atomic_path(file) as temporary:
            # For whoever compares several sets; a second call knows the file by its key.
            np.savez(temporary, validation=validation, test=test, arm=np.array(f"{arm.name} ({arm.network})"))
