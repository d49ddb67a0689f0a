from __future__ import annotations

import io

import numpy as np
from PIL import Image

from medsynth.scans import Scan
from medsynth.scans.picture import captioned_rows, stretch_contrast, to_grey, write_picture


def test_grey_levels_of_the_model_range():
    levels = to_grey(np.array([[[-1.0, 0.0, 1.0], [-7.0, 3.0, np.nan]]]))
    assert levels.dtype == np.uint8
    assert levels.tolist() == [[0, 128, 255], [0, 255, 128]]


def levels_of(plane: np.ndarray) -> np.ndarray:
    return np.rint((plane + 1) * 127.5).astype(np.uint8)


def test_a_volume_is_shown_by_its_three_middle_planes_front_or_head_up_and_right_or_front_on_the_left():
    """Axes of a prepared volume run to head, back and left. Each voxel becomes 3 x 3 pixels, whose middle is its own level."""
    volume = np.random.default_rng(0).uniform(-1, 1, size=(1, 32, 32, 32)).astype(np.float32)
    picture = to_grey(volume)
    assert picture.shape == (96, 3 * 96 + 2 * 2)
    shown = [picture[1::3, left + 1 : left + 96 : 3] for left in (0, 98, 196)]
    np.testing.assert_array_equal(shown[0], levels_of(volume[0, 16]))
    np.testing.assert_array_equal(shown[1], levels_of(volume[0, ::-1, 16]))
    np.testing.assert_array_equal(shown[2], levels_of(volume[0, ::-1, :, 16]))
    assert (picture[:, 96:98] == 0).all()


def test_no_plane_is_upside_down_or_mirrored():
    """The corner of a patient towards head, front and right is bright: it is at the upper left of every plane."""
    volume = np.full((1, 32, 32, 32), -1.0)
    volume[0, 16:, :17, :17] = 1.0
    picture = to_grey(volume)
    for left in (0, 98, 196):
        plane = picture[:, left : left + 96]
        assert (plane[:45, :45] == 255).all()
        assert (plane[54:] == 0).all()
        assert (plane[:, 54:] == 0).all()


def test_voxels_of_unequal_size_are_shown_in_proportion():
    head, back, left = (np.arange(length) + 0.5 for length in (8, 32, 32))
    ball = (4 * head[:, None, None] - 16) ** 2 + (back[:, None] - 16) ** 2 + (left - 16) ** 2 < 12**2
    volume = np.where(ball, 1.0, -1.0)[None]
    picture = to_grey(volume, spacing=(4.0, 1.0, 1.0))
    assert picture.shape == (96, 3 * 96 + 2 * 2)
    for start in (0, 98, 196):
        inside = picture[:, start : start + 96] > 127
        high, wide = (int(inside.any(axis=axis).sum()) for axis in (1, 0))
        assert abs(wide - 72) <= 3
        assert abs(high - 72) <= 12, "to one of the thick slices"
    squashed = to_grey(volume)
    assert (squashed[:36][:, 98:] == 0).all(), "without spacing a slice is as thick as a pixel is wide"
    assert (squashed[60:][:, 98:] == 0).all()


def test_planes_of_other_heights_stand_in_the_middle_and_large_ones_are_made_smaller():
    picture = to_grey(np.ones((1, 48, 24, 24)), spacing=(2.0, 1.0, 1.0))
    assert picture.shape == (96, 24 + 2 + 24 + 2 + 24)
    assert (picture[:36, :24] == 0).all()
    assert (picture[36:60, :24] == 255).all()
    assert (picture[60:, :24] == 0).all()
    assert (picture[:, 26:50] == 255).all()
    assert to_grey(np.ones((1, 4, 6, 6)), spacing=(1.0, 1e-4, 1e-4)).shape == (1024, 3 + 2 * 2)
    assert to_grey(np.ones((1, 2, 2048, 4))).shape == (1024, 2 + 2 + 2 + 2 + 1024)


def test_pictures_do_not_change_with_spacing():
    scan = np.random.default_rng(1).uniform(-1, 1, size=(1, 5, 7))
    np.testing.assert_array_equal(to_grey(scan, spacing=(3.0, 1.0)), levels_of(scan[0].astype(np.float32)))


def test_volumes_lie_in_rows_by_their_planes():
    scans = np.stack([np.full((1, 16, 16, 16), level) for level in (-1.0, 1.0)])
    picture = captioned_rows([("volumes", scans)], spacing=(2.0, 2.0, 2.0))
    assert picture.shape == (16 + 96, 2 * 292 + 2)
    assert (picture[16:, :292] == 0).all()
    assert (picture[16:, 294 : 294 + 96] == 255).all()


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


def test_a_notebook_shows_a_picture_stretched_to_its_percentiles():
    array = np.arange(101 * 100).reshape(1, 101, 100).astype(np.float32) - 5000
    array[0, 0, 0], array[0, -1, -1] = -1e9, 1e9  # outliers do not matter
    low, high = np.percentile(array, (1, 99))
    expected = np.rint(np.clip((array[0].astype(np.float64) - low) / (high - low), 0, 1) * 255)
    shown = np.asarray(Image.open(io.BytesIO(Scan(array=array)._repr_png_())))
    assert shown.shape == (101, 100)
    np.testing.assert_array_equal(shown, expected)
    np.testing.assert_array_equal(shown.ravel()[[0, 101, 5050, -1]], [0, 0, 128, 255])


def test_a_notebook_shows_the_middle_slice_of_a_volume():
    volume = np.random.default_rng(0).integers(0, 4000, size=(2, 5, 6, 7)).astype(np.int16)
    shown = np.asarray(Image.open(io.BytesIO(Scan(array=volume)._repr_png_())))
    np.testing.assert_array_equal(shown, stretch_contrast(volume[0, 2]))
    constant = Scan(array=np.full((1, 4, 5), 7, np.uint8))
    assert (np.asarray(Image.open(io.BytesIO(constant._repr_png_()))) == 0).all()


def test_written_pictures_are_read_back(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, size=(5, 7), dtype=np.uint8)
    colour = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1)
    for name, pixels in (("grey.png", grey), ("colour.png", colour)):
        write_picture(tmp_path / name, pixels)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), pixels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["colour.png", "grey.png"]
