"""The page of a reader study gives nothing away, and the section of its results shows them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from medsynth.evaluation import Evaluation
from medsynth.evaluation.reader import find_key
from medsynth.evaluation.reader.scoring import score_answers
from medsynth.evaluation.verdict import build_report
from medsynth.reporting.pictures import case_picture
from medsynth.reporting.reader_page import render_reader_page, write_reader_study
from medsynth.reporting.report import render_page
from tests.evaluation.reader.made import made_study, study_key
from tests.evaluation.reader.test_scoring import said
from tests.reporting.test_report import HOSTILE, Page

KEY = study_key("rsrsrs", "iwwiiw", classes=("ill", "well"))


def scripts_of(page: str) -> list[tuple[str, str]]:
    return re.findall(r"<script([^>]*)>(.*?)</script>", page, flags=re.DOTALL)


def content_of(page: str) -> dict:
    (found,) = [text for attributes, text in scripts_of(page) if "application/json" in attributes]
    return json.loads(found)


def chunks_of(png: bytes) -> list[str]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    found, place = [], 8
    while place < len(png):
        found.append(png[place + 4 : place + 8].decode())
        place += 12 + int.from_bytes(png[place : place + 4], "big")
    return found


def test_policy_allows_the_one_script_by_its_hash_and_nothing_from_outside():
    page = render_reader_page(made_study(KEY))
    (policy,) = [about["content"] for _, about in Page(page).elements if "http-equiv" in about]
    (script,) = [text for attributes, text in scripts_of(page) if not attributes]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert "unsafe-inline" not in policy.split("script-src")[1]
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|\beval\b", page)
    assert not [about for _, about in Page(page).elements if any(name.startswith("on") for name in about)]


def test_nothing_in_the_page_depends_on_the_key():
    """The same pictures with the sources the other way round give the same page, byte by byte."""
    study = made_study(KEY)
    turned = study_key("srsrsr", "iwwiiw")
    assert render_reader_page(study) == render_reader_page(type(study)(key=turned, scans=study.scans))
    relabelled = study_key("rsrsrs", "wiiwwi")
    assert render_reader_page(study) == render_reader_page(type(study)(key=relabelled, scans=study.scans))
    page = render_reader_page(study)
    assert set(content_of(page)) == {"study", "classes", "planes", "pictures"}
    assert KEY.sets["real"] not in page
    assert KEY.sets["synthetic"] not in page


def test_pictures_are_alike_in_all_but_their_pixels():
    study = made_study(KEY, (1, 9, 7))
    pictures = [base64.b64decode(text) for text in content_of(render_reader_page(study))["pictures"]]
    assert len(pictures) == 6
    for png, scan in zip(pictures, study.scans, strict=True):
        assert chunks_of(png) == ["IHDR", "IDAT", "IEND"]
        image = Image.open(io.BytesIO(png))
        assert (image.mode, image.size, image.info) == ("L", (7, 9), {})
        assert np.array_equal(np.asarray(image), np.rint((scan[0].astype(np.float32) + 1) * 127.5))


def test_volumes_show_three_planes_as_radiologists_look_at_them():
    # Axes (head, back, left); a mark at the head, one in front, one on the patient's right.
    scan = np.full((1, 5, 7, 9), -1.0, dtype=np.float32)
    scan[0, 4, 3, 4] = 1
    scan[0, 2, 0, 4] = 0.5
    scan[0, 2, 3, 0] = 0
    picture = np.asarray(Image.open(io.BytesIO(case_picture(scan))))
    assert picture.shape == (7, 9 + 4 + 9 + 4 + 7)
    axial, coronal, sagittal = picture[:, :9], picture[1:6, 13:22], picture[1:6, 26:]
    assert (axial[0, 4], axial[3, 0]) == (191, 128), "front up, the patient's right on the left"
    assert (coronal[0, 4], coronal[2, 0]) == (255, 128), "head up, the patient's right on the left"
    assert (sagittal[0, 3], sagittal[2, 0]) == (255, 191), "head up, front on the left"
    assert picture.astype(int).sum() == 2 * (255 + 191 + 128)
    assert content_of(render_reader_page(made_study(KEY, (1, 4, 4, 4))))["planes"] is True


def test_labels_cannot_become_markup():
    key = study_key("rs", "<a", classes=(HOSTILE, 'a, "b"\'</script>&'))
    page = render_reader_page(made_study(key))
    assert HOSTILE not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert content_of(page)["classes"] == [HOSTILE, 'a, "b"\'</script>&']
    assert HOSTILE in Page(page).text


def test_a_study_of_one_class_does_not_ask_for_it():
    one = Page(render_reader_page(made_study(study_key("rs", "ii", classes=("ill",)))))
    assert "hidden" in next(about for tag, about in one.elements if about.get("id") == "classes")
    assert "which class it shows" not in one.text


def test_both_files_are_written(tmp_path):
    page = write_reader_study(tmp_path / "report", made_study(KEY))
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "reader_study.html",
        "reader_study_key.json",
    ]
    assert find_key(tmp_path / "report") == KEY
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("readers", [1, 2])
def test_the_report_has_a_section_with_the_figures(readers):
    answers = [*said("AB", "rsrsss", "iwiiiw", confidence="123454"), *said("CD", "rrrrrr", "iwwii-")]
    result = score_answers([answer for answer in answers if answer.reader == "AB" or readers == 2], KEY)
    page = Page(render_page(Evaluation(report=build_report(reader_study=result.as_dict()))))
    text = re.sub(r"\s+", " ", page.text)
    assert "Can people tell the scans apart?" in text
    assert result.sentence() in text
    assert "5 of 6" in text
    assert "3 real and 3 synthetic scans" in text
    assert ("All together" in text) is (readers == 2)
    assert result.readers[0].power() in text
    assert "97 %" in result.readers[0].power()
    charts = [about["aria-label"] for tag, about in page.elements if tag == "svg"]
    assert any("AB 83 %, 36 % to 100 %" in label for label in charts)


def test_without_answers_there_is_no_section():
    assert "Can people tell" not in render_page(Evaluation(report=build_report()))
