"""Contact sheets, and the volumes of a report."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
from dataclasses import replace
from importlib.resources import files

import nibabel
import numpy as np
import pytest
from PIL import Image

import medsynth
from medsynth.cohorts import Cohort, Row, write_cohort
from medsynth.config import GridOptions, IntensityOptions
from medsynth.reporting.pictures import contact_sheet, page_volume, view_volumes
from medsynth.reporting.report import render_page
from medsynth.scans import Scan, write_scan
from tests.reporting.made_volumes import bare_evaluation, marked_volume, volume_sheet

HOSTILE = "</script><script>alert(1)</script>"
NIIVUE = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"  # dist/niivue.umd.js of npm's 0.69.0


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


def opened(text: str) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def content_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="volumes">(.*?)</script>', page, re.S)[1])


def test_a_volume_of_the_page_has_the_intensities_size_and_directions_of_its_scan():
    scan = np.random.default_rng(0).uniform(-1, 1, size=(1, 4, 6, 8)).astype(np.float32)
    image = page_volume(scan, volume_sheet("a"))
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.shape == (8, 6, 4)
    assert image.header.get_zooms() == (1, 1, 2)
    np.testing.assert_allclose(image.affine @ [3.5, 2.5, 1.5, 1], [0, 0, 0, 1], atol=1e-6)
    stored = nibabel.Nifti1Image.from_bytes(image.to_bytes())
    assert stored.get_data_dtype() == np.uint8
    # Voxel (slice to the head, row to the back, column to the left) of the grid, in HU between -1000 and 400.
    found = stored.get_fdata()
    for head, back, left in ((0, 0, 0), (3, 1, 2), (2, 5, 7)):
        expected = -1000 + (scan[0, head, back, left] + 1) / 2 * 1400
        assert found[7 - left, 5 - back, head] == pytest.approx(expected, abs=1400 / 255 / 2 + 1e-3)
    assert (stored.header["cal_min"], stored.header["cal_max"]) == (-1000, 400)


def test_large_volumes_are_averaged_and_keep_their_size_in_millimetres():
    volume = marked_volume(192)
    image = page_volume(volume[:, :, :100, :50], volume_sheet("a"))
    assert image.shape == (50, 96, 96)
    assert np.array(image.shape) * image.header.get_zooms() == pytest.approx([50, 100, 384])
    assert np.asarray(image.dataobj)[:, :, 48:].max() == 255
    assert np.asarray(image.dataobj)[:, :, :48].max() == 0


def test_an_empty_range_and_values_that_are_none_do_not_spoil_a_volume():
    scan = np.full((1, 4, 4, 4), np.nan)
    image = page_volume(scan, replace(volume_sheet("a"), ends=(7.0, 7.0), spacing=None))
    assert (image.header["cal_min"], image.header["cal_max"]) == (-1, 1)
    assert image.header.get_zooms() == (1, 1, 1)
    assert set(np.asarray(image.dataobj).ravel().tolist()) == {128}


def test_up_to_ten_volumes_are_taken_from_the_classes_in_turn_and_each_says_what_it_is():
    sheets = [volume_sheet("common", 8), volume_sheet("rare", 3)]
    alone = view_volumes(sheets, real_pictures=False)
    assert [volume["name"] for volume in alone["content"]["volumes"]] == [
        f"SYNTHETIC: {label}, number {number}"
        for label, number in [*((label, row) for row in (1, 2, 3) for label in ("common", "rare"))]
        + [("common", row) for row in (4, 5, 6, 7)]
    ]
    beside = view_volumes(sheets, real_pictures=True)
    assert [volume["name"] for volume in beside["content"]["volumes"]][:4] == [
        "SYNTHETIC: common, number 1",
        "REAL: common, number 1",
        "SYNTHETIC: rare, number 1",
        "REAL: rare, number 1",
    ]
    assert len(beside["content"]["volumes"]) == 10
    for volume in beside["content"]["volumes"]:
        image = opened(volume["nifti"])
        synthetic = volume["kind"] == "SYNTHETIC"
        assert bytes(image.header["descrip"].item()).startswith(b"SYNTHETIC" if synthetic else b"real scan")
        assert image.get_fdata().max() == pytest.approx(400 if synthetic else -300, abs=3)


def test_the_page_of_volumes_runs_only_its_own_scripts_and_names_their_makers():
    page = render_page(bare_evaluation(sheets=[volume_sheet("rare")]))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src " + " ".join(
        f"'sha256-{found}'" for found in hashes
    )
    assert hashlib.sha256(scripts[0].encode()).hexdigest() == NIIVUE
    assert all("</script" not in text.lower() and "<!--" not in text for text in scripts)
    licenses = files("medsynth.reporting").joinpath("assets", "niivue.LICENSES.txt").read_text(encoding="utf-8")
    assert NIIVUE in licenses
    for notice in ("Copyright (c) 2021, Niivue", "Redistributions in binary form must reproduce", "nifti-reader-js"):
        assert notice in licenses
        assert notice in page
    assert page.count("NiiVue 0.69.0, Copyright (c) 2021, Niivue, under the BSD 2-Clause License") == 1


def test_labels_cannot_become_markup():
    page = render_page(bare_evaluation(sheets=[volume_sheet(HOSTILE)]))
    assert HOSTILE not in page
    assert content_of(page)["volumes"][0]["name"] == f"SYNTHETIC: {HOSTILE}, number 1"


def test_pages_of_pictures_carry_no_viewer():
    sheet = volume_sheet("rare")
    flat = replace(sheet, **{name: getattr(sheet, name)[:, :, 0] for name in ("real", "nearest", "synthetic")})
    page = render_page(bare_evaluation(sheets=[flat]))
    assert "<script" not in page
    assert "niivue" not in page.lower()
    assert "script-src" not in page
    assert len(page) < 100_000
    assert view_volumes([], real_pictures=True) is None


def test_without_real_pictures_no_real_volume_is_in_the_page():
    sheets = [volume_sheet("rare")]
    page = render_page(bare_evaluation(sheets=sheets), real_pictures=False)
    assert {volume["kind"] for volume in content_of(page)["volumes"]} == {"SYNTHETIC"}
    assert "all of them synthetic" in page
    assert "random real ones" in render_page(bare_evaluation(sheets=sheets))


def test_an_evaluation_of_volumes_shows_them_in_proportion_and_in_their_own_intensities(tmp_path):
    """Real scans with axes to right, front and head; their octant towards head, front and left is at 300 HU."""
    random = np.random.default_rng(0)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    for name, splits in (("real", ("train", "test")), ("made", ("train",))):
        rows = []
        for number in range(6):
            array = random.normal(-900, 5, size=(1, 16, 16, 8)).astype(np.float32)
            array[:, :8, 8:, 4:] = 300
            path, split = f"scans/secret-name-{number}.nii.gz", splits[number % len(splits)]
            write_scan(Scan(array=array, affine=affine), tmp_path / name / path)
            rows.append(Row(path=path, label="rare", patient_id=f"secret-patient-{number}", split=split))
        write_cohort(Cohort(folder=tmp_path / name, rows=tuple(rows), roots={}), tmp_path / name / "cohort.csv")
    found = medsynth.evaluate(
        real=tmp_path / "real" / "cohort.csv",
        synthetic=tmp_path / "made",
        out=tmp_path / "report",
        parts=["fidelity"],
        grid=GridOptions(size=(8, 16, 16), fit="stretch"),
        intensity=IntensityOptions(method="range", low=-1000, high=400),
        progress=False,
    )
    page = found.html.read_text(encoding="utf-8")
    assert "secret" not in page
    content = content_of(page)
    assert (content["low"], content["high"]) == (-1000, 400)
    assert [volume["kind"] for volume in content["volumes"]] == ["SYNTHETIC", "REAL"] * 5
    for volume in content["volumes"]:
        image = opened(volume["nifti"])
        assert image.header.get_zooms() == pytest.approx((1, 1, 2))
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        values = image.get_fdata()
        assert values[:8, 8:, 4:].mean() == pytest.approx(300, abs=4)
        values[:8, 8:, 4:] = -900
        assert values.max() < -850
    sheet = re.search(r'src="data:image/png;base64,([^"]*)" alt="Contact sheet of rare', page)[1]
    assert Image.open(io.BytesIO(base64.b64decode(sheet))).width == 3 * (3 * 96 + 2 * 2) + 2 * 4
