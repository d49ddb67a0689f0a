"""The browser of the page tests sees what it is there to see."""

from __future__ import annotations

from tests.browser import start_browser


def test_requests_errors_overflow_and_barriers_are_seen(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!DOCTYPE html><html><body style='width: 3000px'><img src='http://127.0.0.1:9/outside.png'>"
        "<input type='text'><script>console.error('wrong')</script></body></html>"
    )
    good = tmp_path / "good.html"
    good.write_text(
        "<!DOCTYPE html><html lang='en'><head><meta name='viewport' content='width=device-width'><title>Good</title></head>"
        "<body><main><h1>Good</h1></main></body></html>"
    )
    with start_browser(tmp_path) as browser:
        browser.open(good)
        assert (browser.console(), browser.outside_requests(), browser.overflows()) == ([], [], False)
        browser.open(bad, width=390, height=844)
        assert browser.driver.execute_script("return innerWidth") >= 390
        assert browser.outside_requests() == ["http://127.0.0.1:9/outside.png"]
        assert any("wrong" in said for said in browser.console())
        assert browser.overflows()
        browser.open(good, dark=True)
        assert browser.driver.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
        # Last, since it skips without axe-core.
        assert browser.findings() == []
        browser.open(bad)
        assert {finding.split(": ")[1] for finding in browser.findings()} >= {"image-alt", "label"}
