"""The chest X-rays beside the repository; see their README for the counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from medsynth.cohorts import index_scans
from medsynth.cohorts.near import MOST_SCANS
from medsynth.cohorts.splitting import kept_scans, parse_keep
from medsynth.config import IndexOptions

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "chest_xray"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real chest X-rays are not beside the repository")


def test_chest_xray_counts_and_rarity(tmp_path, monkeypatch):
    monkeypatch.setitem(MOST_SCANS, 2, 0)  # near-duplicates among real scans: test_near.py
    result = index_scans(
        IndexOptions(scans=DATA / "images", labels=DATA / "labels.csv", out=tmp_path / "cohort.csv", progress=False)
    )
    assert {label: [count for count, _ in by_split.values()] for label, by_split in result.cohort.counts().items()} == {
        "normal": [781, 133, 426],
        "bacterial_pneumonia": [1510, 311, 696],
        "viral_pneumonia": [796, 155, 392],
    }
    rows = result.cohort.rows
    stays = kept_scans(rows, parse_keep(["viral_pneumonia=40/10"]), seed=0)
    viral = {
        (row.patient_id, row.split) for row, stay in zip(rows, stays, strict=True) if stay and "viral" in row.label
    }
    assert Counter(split for _, split in viral)["train"] == 40
    assert Counter(split for _, split in viral)["val"] == 10
    dropped = Counter((row.label, row.split) for row, stay in zip(rows, stays, strict=True) if not stay)
    assert set(dropped) == {("viral_pneumonia", "train"), ("viral_pneumonia", "val")}
