from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from medsynth.reporting.sheets import contact_sheet


def read(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_columns_hold_their_scans_in_order_enlarged_by_a_whole_factor():
    left = np.stack([np.full((1, 60, 60), level) for level in (-1.0, 0.0)])
    right = np.full((1, 1, 60, 60), 0.5)
    sheet = read(contact_sheet([("real", left), ("synthetic", right)]))
    side = 180  # the smallest multiple of 60 that is at least 128
    assert sheet.shape[1] == 2 * side + 4
    pictures = sheet[sheet.shape[0] - 2 * side - 4 :]
    assert set(pictures[:side, :side].ravel().tolist()) == {0}
    assert set(pictures[side + 4 :, :side].ravel().tolist()) == {128}
    assert set(pictures[:side, side + 4 :].ravel().tolist()) == {191}
    assert set(pictures[side + 4 :, side + 4 :].ravel().tolist()) == {255}


def test_every_column_has_a_heading():
    sheet = read(contact_sheet([(name, np.ones((1, 1, 64, 64))) for name in ("real", "nearest real", "synthetic")]))
    for column in range(3):
        assert sheet[:, column * 132 : column * 132 + 128].min() < 100


def test_refuses_nothing_to_show_and_mixed_grids():
    with pytest.raises(ValueError, match="one shape"):
        contact_sheet([("real", np.zeros((0, 1, 4, 4)))])
    with pytest.raises(ValueError, match="one shape"):
        contact_sheet([("real", np.zeros((1, 1, 4, 4))), ("synthetic", np.zeros((1, 1, 4, 5)))])


def test_volumes_show_three_planes_in_proportion():
    volume = np.full((1, 1, 8, 32, 32), -1.0)
    volume[..., 4:, :17, :17] = 1.0
    sheet = read(contact_sheet([("real", volume), ("synthetic", volume)], spacing=(4.0, 1.0, 1.0)))
    assert sheet.shape[1] == 2 * 292 + 4
    picture = sheet[-96:, 296:]
    for left in (0, 98, 196):
        assert (picture[:36, left : left + 45] == 255).all()
        assert (picture[60:, left : left + 96] == 0).all()
