"""The report of volumes in a browser that draws in 3D by software, and in one that cannot."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsynth.reporting import write_report
from tests.browser import FLAGS, Browser, start_browser
from tests.reporting.made_volumes import bare_evaluation, volume_sheet

pytest.importorskip("selenium", reason="need selenium, got none; try the extra dev")
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

_DRAWS = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
_NEVER = ("--disable-3d-apis",)
_SHOWN = "return document.getElementById('volume-view').dataset.shown"
_SET = """
const [name, value] = arguments;
const control = document.getElementById(name);
control.value = value;
control.dispatchEvent(new Event(control.tagName === 'SELECT' ? 'change' : 'input', {bubbles: true}));
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    return write_report(tmp_path_factory.mktemp("report"), bare_evaluation([volume_sheet("rare")])).html


def started(folder: Path, flags: tuple[str, ...]):
    with start_browser(folder, flags=(*(flag for flag in FLAGS if flag != "--disable-gpu"), *flags)) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    yield from started(tmp_path_factory.mktemp("browser"), _DRAWS)


def show(browser: Browser, page: Path, **how) -> None:
    browser.open(page, **how)
    WebDriverWait(browser.driver, 120).until(lambda driver: driver.execute_script(_SHOWN) == "0")


def drawn(browser: Browser) -> np.ndarray:
    """Return the canvas as the screen shows it, `(height, width)` grey."""
    canvas = browser.driver.find_element("id", "volume-canvas")
    browser.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("L"), dtype=float)


def said(browser: Browser, name: str) -> str:
    return browser.driver.find_element("id", name).text


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)], ids=["wide and light", "narrow and dark"])
def test_the_volumes_are_drawn_silently_and_the_page_is_accessible(page, browser, width, dark):
    show(browser, page, width=width, dark=dark)
    picture = drawn(browser)
    assert (picture > 200).mean() > 0.02, "bright octants"
    assert (picture < 30).mean() > 0.3, "on black"
    assert not browser.overflows()
    assert not browser.driver.find_element("id", "volume-missing").is_displayed()
    assert "SYNTHETIC, not for diagnosis" in said(browser, "volume-kind")
    browser.driver.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.findings() == []
    assert browser.console() == []
    assert browser.outside_requests() == []


def test_no_view_is_upside_down_or_mirrored(page, browser):
    """The octant towards head, front and right is bright: it is at the upper left of every plane."""
    show(browser, page, height=600)
    for view in ("Axial", "Coronal", "Sagittal"):
        Select(browser.driver.find_element("id", "volume-planes")).select_by_visible_text(view)
        for name in ("axial", "coronal", "sagittal"):
            browser.driver.execute_script(_SET, f"volume-{name}", 14)
        picture = drawn(browser)
        height, width = picture.shape
        # Coronal and sagittal planes are twice as high as wide, axial ones square; all fill the height and stand in the middle.
        across = height if view == "Axial" else height / 2
        for down, right in ((0.3, 0.3), (0.3, 0.75), (0.75, 0.3), (0.75, 0.75)):
            row, column = int(down * height), int((width - across) / 2 + right * across)
            spot = np.median(picture[row - 4 : row + 4, column - 4 : column + 4])
            assert bool(spot > 200) is (down < 0.5 and right < 0.5), (view, down, right)


def test_every_control_works_by_keyboard_and_says_what_it_shows(page, browser):
    show(browser, page, height=600)
    assert [said(browser, f"volume-{name}-said") for name in ("axial", "coronal", "sagittal")] == ["9 of 16"] * 3
    assert said(browser, "volume-value") == "400"
    browser.driver.find_element("id", "volume-sagittal").send_keys(Keys.ARROW_LEFT)
    assert said(browser, "volume-sagittal-said") == "8 of 16"
    assert said(browser, "volume-value") == "-1000"
    browser.driver.find_element("id", "volume-sagittal").send_keys(Keys.ARROW_RIGHT)
    bright = (drawn(browser) > 230).mean()
    chooser = browser.driver.find_element("id", "volume-chooser")
    assert [option.text for option in Select(chooser).options] == [
        "SYNTHETIC: rare, number 1",
        "REAL: rare, number 1",
        "SYNTHETIC: rare, number 2",
        "REAL: rare, number 2",
    ]
    chooser.send_keys(Keys.ARROW_DOWN)
    WebDriverWait(browser.driver, 30).until(lambda driver: driver.execute_script(_SHOWN) == "1")
    assert said(browser, "volume-kind") == "REAL scan of a patient"
    assert said(browser, "volume-name") == "rare, number 1"
    grey = (drawn(browser) > 230).mean()
    assert grey < bright / 2, "its octant is grey"
    browser.driver.execute_script(_SET, "volume-brightest", "-405")
    assert (drawn(browser) > 230).mean() > grey + 0.05
    browser.driver.execute_script(_SET, "volume-darkest", "300")
    assert float(said(browser, "volume-darkest-said")) < float(said(browser, "volume-brightest-said"))
    browser.driver.find_element("id", "volume-whole").send_keys(Keys.ENTER)
    assert (said(browser, "volume-darkest-said"), said(browser, "volume-brightest-said")) == ("-1000", "400")
    browser.driver.find_element("id", "volume-brightest").send_keys(Keys.PAGE_DOWN)
    assert float(said(browser, "volume-brightest-said")) < 400
    before = said(browser, "volume-turn-said")
    browser.driver.find_element("id", "volume-turn").send_keys(Keys.ARROW_RIGHT)
    assert said(browser, "volume-turn-said") == f"{int(before[:-1]) + 1}°"
    assert browser.console() == []


def test_without_webgl_a_sentence_leads_to_the_planes(page, tmp_path):
    for found in started(tmp_path, _NEVER):
        found.open(page)
        assert not found.driver.find_element("id", "volume-view").is_displayed()
        missing = found.driver.find_element("id", "volume-missing")
        assert "does not show volumes in 3D" in missing.text
        assert missing.find_element("tag name", "a").get_attribute("href").endswith("#sheets")
        assert (
            found.driver.execute_script("return document.querySelector('.gallery.planes img').naturalWidth")
            == 3 * 148 + 2 * 4
        )
        assert found.console() == []
        assert found.findings() == []
