"""The page of a reader study in a browser: answered by buttons and keys, reloaded, exported, and scored."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medsynth.evaluation.reader import ReaderStudy, score_files
from medsynth.reporting.reader_page import write_reader_study
from tests.browser import Browser, axe_file, start_browser
from tests.evaluation.reader.made import made_study, study_key

CLASSES = ('ground glass, "faint"', "normal", "solid <b>nodule</b> & more")
LABELS = {"g": 0, "n": 1, "s": 2}


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with start_browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


def write_page(folder: Path, name: str, *, shape: tuple[int, ...] = (1, 64, 64)) -> Path:
    """Write a study of eight cases; `name` tells its answers in the browser's storage from those of other tests."""
    key = study_key("rsrssrsr", "gnsgnsgn", classes=CLASSES)
    study = made_study(dataclasses.replace(key, study=name), shape)
    return write_reader_study(folder, ReaderStudy(key=study.key, scans=study.scans))


def press(browser: Browser, selector: str) -> None:
    element = browser.driver.find_element("css selector", selector)
    browser.driver.execute_script("arguments[0].scrollIntoView({block: 'nearest'})", element)
    element.click()


def key(browser: Browser, text: str) -> None:
    browser.driver.switch_to.active_element.send_keys(text)


def text(browser: Browser, name: str) -> str:
    return browser.driver.find_element("id", name).text


def begin(browser: Browser, reader: str = "AB") -> None:
    field = browser.driver.find_element("id", "reader")
    field.clear()
    field.send_keys(reader)
    press(browser, "#begin")


def exported(browser: Browser) -> Path:
    """Press the button and return the file."""
    before = set(browser.downloads.iterdir())
    press(browser, "#export")
    for _ in range(100):
        if new := [path for path in set(browser.downloads.iterdir()) - before if path.suffix == ".csv"]:
            return new[0]
        time.sleep(0.1)
    raise AssertionError("nothing was downloaded in ten seconds")


def check_quiet(browser: Browser) -> None:
    assert browser.console() == []
    assert browser.outside_requests() == []
    assert not browser.overflows()


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_answers_by_buttons_and_keys_survive_a_reload_and_are_scored(browser, tmp_path, width, height):
    from selenium.webdriver.common.keys import Keys

    page = write_page(tmp_path, f"answered{width}")
    browser.console(), browser.outside_requests()
    browser.open(page, width=width, height=height)
    check_quiet(browser)
    begin(browser)
    # The truth is rsrssrsr, gnsgnsgn; this reader is wrong on source in cases 3 and 8 and on class in case 2.
    given, named = "rssssrss", "gssgnsgn"
    for number in range(4):
        assert text(browser, "case-title") == f"Case {number + 1} of 8"
        press(browser, f'[data-answer="{"real" if given[number] == "r" else "synthetic"}"]')
        press(browser, f'[data-class="{LABELS[named[number]]}"]')
        press(browser, '[data-confidence="4"]')
        press(browser, "#next")
    check_quiet(browser)
    browser.driver.refresh()
    assert text(browser, "case-title") == "Case 5 of 8"
    press(browser, "#back")
    pressed = browser.driver.find_elements("css selector", '[aria-pressed="true"]')
    assert [button.text.split("\n")[0] for button in pressed] == ["Synthetic", CLASSES[0], "4"]
    press(browser, "#next")
    for number in range(4, 8):
        key(browser, given[number].upper() if number % 2 else given[number])
        assert text(browser, "status") == {"r": "real", "s": "synthetic"}[given[number]]
        key(browser, str(LABELS[named[number]] + 1))
        key(browser, Keys.ARROW_RIGHT)
    assert text(browser, "count") == "8 of 8 cases answered."
    assert not browser.driver.find_element("id", "open-cases").is_displayed()
    check_quiet(browser)
    file = exported(browser)
    assert file.name == f"reader_study_answered{width}_AB.csv"
    (reader,) = score_files([file], tmp_path).readers
    figures = reader.figures
    assert reader.name == "AB"
    assert (figures.accuracy.right, figures.accuracy.of) == (6, 8)
    assert (figures.sensitivity.right, figures.sensitivity.of) == (4, 4)
    assert (figures.specificity.right, figures.specificity.of) == (2, 4)
    assert (figures.class_on_real.right, figures.class_on_synthetic.right) == (4, 3)
    # Confidence was given on the first four, of which case 3 is wrong.
    assert (reader.confidence_right, reader.confidence_wrong) == (4, 4)
    check_quiet(browser)


def test_open_cases_are_listed_and_can_be_visited(browser, tmp_path):
    browser.open(write_page(tmp_path, "open"))
    begin(browser)
    press(browser, '[data-answer="real"]')  # without a class: not done, but exported
    for _ in range(8):
        press(browser, "#next")
    assert text(browser, "count") == "0 of 8 cases answered."
    assert text(browser, "open-list").split() == [str(number) for number in range(1, 9)]
    (reader,) = score_files([exported(browser)], tmp_path).readers
    assert (reader.figures.accuracy.of, reader.figures.class_on_real.of) == (1, 0)
    press(browser, '#open-list [aria-label="Case 6"]')
    assert text(browser, "case-title") == "Case 6 of 8"


def test_the_next_reader_finds_no_answers(browser, tmp_path):
    page = write_page(tmp_path, "cleared")
    browser.open(page)
    begin(browser)
    press(browser, '[data-answer="real"]')
    for _ in range(8):
        press(browser, "#next")
    press(browser, "#clear")
    assert text(browser, "clear") == "Press again to clear all answers"
    press(browser, "#clear")
    assert browser.driver.find_element("id", "start").is_displayed()
    browser.driver.refresh()
    assert browser.driver.find_element("id", "reader").get_attribute("value") == ""
    begin(browser, "CD")
    assert browser.driver.find_elements("css selector", '[aria-pressed="true"]') == []


def test_a_reader_needs_a_pseudonym_that_the_scorer_takes(browser, tmp_path):
    browser.open(write_page(tmp_path, "named"))
    for name in ("", "Jane Doe", "=1+1", "-x"):
        begin(browser, name)
        assert browser.driver.find_element("id", "reader-problem").is_displayed()
        assert browser.driver.switch_to.active_element.get_attribute("id") == "reader"
    # Letters in the field are no shortcuts, and the same pseudonyms are allowed on either side.
    begin(browser, "Rß.s-1_2")
    assert browser.driver.find_elements("css selector", '[aria-pressed="true"]') == []
    press(browser, '[data-answer="synthetic"]')
    for _ in range(8):
        press(browser, "#next")
    assert score_files([exported(browser)], tmp_path).readers[0].name == "Rß.s-1_2"


def test_keys_can_be_switched_off_and_leave_sliders_alone(browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    browser.open(write_page(tmp_path, "keys"))
    begin(browser)
    browser.driver.find_element("id", "contrast").send_keys(Keys.ARROW_RIGHT)
    assert text(browser, "case-title") == "Case 1 of 8"
    assert browser.driver.find_element("id", "scan").value_of_css_property("filter") == "brightness(1) contrast(1.01)"
    press(browser, "#reset")
    assert browser.driver.find_element("id", "scan").value_of_css_property("filter") == "brightness(1) contrast(1)"
    press(browser, "summary")
    press(browser, "#keys")
    key(browser, "r")
    assert browser.driver.find_elements("css selector", '[aria-pressed="true"]') == []
    press(browser, "#keys")
    key(browser, "r")
    assert len(browser.driver.find_elements("css selector", '[aria-pressed="true"]')) == 1


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 64, 64), (64, 64)), ((1, 6, 28, 20), (20 + 4 + 20 + 4 + 28, 28)), ((3, 40, 30), (30, 40))]
)
def test_every_picture_is_shown_enlarged_and_inside_the_window(browser, tmp_path, shape, size):
    browser.open(write_page(tmp_path, f"pictures{len(shape)}-{shape[-1]}", shape=shape), width=390, height=844)
    begin(browser)
    for number in range(8):
        picture = browser.driver.find_element("id", "scan")
        browser.driver.execute_async_script("document.getElementById('scan').decode().then(arguments[0])")
        natural = tuple(picture.get_property(name) for name in ("naturalWidth", "naturalHeight"))
        assert natural == size
        assert picture.rect["width"] > 2 * size[0]
        assert picture.get_attribute("alt").startswith(f"Scan of case {number + 1}")
        press(browser, "#next")
    check_quiet(browser)


def test_a_browser_that_stores_nothing_says_so_and_works(browser, tmp_path):
    command = "Page.addScriptToEvaluateOnNewDocument"
    refused = (
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }});"
    )
    script = browser.driver.execute_cdp_cmd(command, {"source": refused})
    try:
        browser.open(write_page(tmp_path, "unkept"))
        begin(browser)
        press(browser, '[data-answer="real"]')
        assert browser.driver.find_element("id", "unkept").is_displayed()
        for _ in range(8):
            press(browser, "#next")
        assert score_files([exported(browser)], tmp_path).readers[0].figures.accuracy.right == 1
    finally:
        browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_nonsense_in_the_storage_is_ignored(browser, tmp_path):
    page = write_page(tmp_path, "nonsense")
    cases = '[{"answer":"<img>","label":9,"confidence":"x","seconds":-1},null,1,2,3,4,5,{"answer":"real","label":1}]'
    for content in ("{", "null", "[1]", '{"reader":"AB","place":99,"cases":[]}', f'{{"reader":7,"cases":{cases}}}'):
        browser.open(page)
        # The page would write its own answers when it is left.
        stop = "window.addEventListener('pagehide', (event) => event.stopImmediatePropagation(), true);"
        browser.driver.execute_script(
            f"{stop} localStorage.setItem('medsynth-reader-study-nonsense', arguments[0])", content
        )
        browser.driver.execute_script("Storage.prototype.setItem = () => {}")
        browser.driver.refresh()
        assert browser.driver.find_element("id", "start").is_displayed()
    begin(browser)
    assert browser.driver.find_elements("css selector", '[aria-pressed="true"]') == []
    for _ in range(7):
        press(browser, "#next")
    assert len(browser.driver.find_elements("css selector", '[aria-pressed="true"]')) == 2
    check_quiet(browser)


def test_scans_are_not_printed(browser, tmp_path):
    browser.open(write_page(tmp_path, "printed"))
    begin(browser)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not browser.driver.find_element("id", "scan").is_displayed()
        assert "not to be printed" in browser.driver.find_element("tag name", "body").text
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_page_is_accessible(browser, tmp_path, width, height, dark):
    if axe_file() is None:
        pytest.skip("need axe-core, got none; try npm install axe-core, or AXE_CORE=.../axe.min.js")
    browser.open(write_page(tmp_path, f"axe{width}{dark}"), width=width, height=height, dark=dark)
    assert browser.findings() == []
    begin(browser, "")
    assert browser.findings() == []
    begin(browser)
    press(browser, '[data-answer="real"]')
    press(browser, '[data-class="1"]')
    press(browser, "summary")
    assert browser.findings() == []
    for _ in range(8):
        press(browser, "#next")
    assert browser.findings() == []
    check_quiet(browser)
