from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medsynth.scans.picture import captioned_rows, tile, to_grey, write_picture


def test_grey_levels_of_the_model_range():
    levels = to_grey(np.array([[[-1.0, 0.0, 1.0], [-7.0, 3.0, np.nan]]]))
    assert levels.dtype == np.uint8
    assert levels.tolist() == [[0, 128, 255], [0, 255, 128]]


def test_a_volume_is_shown_by_its_central_axial_plane_front_up_and_right_on_the_left():
    """Axes of a prepared volume run to head, back and left: rows of the picture to the back, columns to the left."""
    volume = np.full((1, 5, 6, 4), -1.0)
    volume[0, 2, :, 0] = 0.0  # the patient's right
    volume[0, 2, 0, :] = 1.0  # the patient's front
    picture = to_grey(volume)
    assert picture.shape == (6, 4)
    assert (picture[0] == 255).all(), "the front is at the top"
    assert (picture[1:, 0] == 128).all(), "the patient's right is on the left side"
    assert (picture[1:, 1:] == 0).all()


def test_captions_stand_above_their_rows():
    scans = np.zeros((2, 1, 32, 32))
    picture = captioned_rows([("normal", scans), ("viral_pneumonia", scans[:1])])
    assert picture.shape == (2 * (16 + 32), 2 * 32 + 2)
    for top in (0, 48):
        caption = picture[top : top + 16]
        assert caption.min() < 100, "dark letters"
        assert (caption == 255).mean() > 0.5, "on white"
    assert (picture[16:48, :32] == 128).all()
    assert (picture[64:, 34:] == 255).all(), "a shorter row ends in white"


def test_tiles_lie_row_by_row_on_white():
    scans = np.stack([np.full((1, 2, 3), level) for level in (-1.0, 0.0, 1.0)])
    sheet = tile(scans, 2, gap=1)
    expected = [[0, 0, 0, 255, 128, 128, 128]] * 2 + [[255] * 7] * 3
    assert sheet.tolist() == expected


def test_no_scans_make_no_sheet():
    with pytest.raises(ValueError, match="0 scans"):
        tile(np.zeros((0, 1, 4, 4)), 2)


def test_written_pictures_are_read_back(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, size=(5, 7), dtype=np.uint8)
    colour = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1)
    for name, pixels in (("grey.png", grey), ("colour.png", colour)):
        write_picture(tmp_path / name, pixels)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), pixels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["colour.png", "grey.png"]
