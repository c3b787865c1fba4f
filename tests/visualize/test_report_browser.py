# SPDX-License-Identifier: Apache-2.0
"""The report in a browser: what it does, and that it does nothing else."""

from __future__ import annotations

import base64
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_rdad.visualize import benchmark_report

pytest.importorskip("selenium", reason="needs selenium (extra dev)")

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

WAIT = 120  # seconds: a loaded machine takes long to draw
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser: install chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    try:
        chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    except WebDriverException as error:
        pytest.skip(f"the browser does not start: {error.msg}")
    chrome.set_page_load_timeout(WAIT)
    chrome.set_script_timeout(WAIT)
    yield chrome
    chrome.quit()


@pytest.fixture
def opened(browser: Any, evaluated: Path) -> Any:
    _open(browser, evaluated / "report.html")
    yield browser
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def _open(browser: Any, page: Path) -> None:
    browser.get("about:blank")
    for log in ("browser", "performance"):  # of earlier pages
        browser.get_log(log)
    browser.get(page.as_uri())


def _until(browser: Any, condition: Callable[[Any], Any]) -> Any:
    return WebDriverWait(browser, WAIT).until(condition)


def _width(browser: Any, pixels: int) -> None:
    metrics = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    _until(browser, lambda b: b.execute_script("return innerWidth") == pixels)


def _shown(browser: Any, attribute: str = "name") -> list[str]:
    """A data attribute of the visible cards, in the order of the page."""
    script = (
        "return [...document.querySelectorAll('#gallery .case')].filter(c => c.offsetParent)"
        f".map(c => c.dataset[{json.dumps(attribute)}])"
    )
    return list(browser.execute_script(script))


def _focus(browser: Any) -> str:
    return str(browser.execute_script("return document.activeElement.getAttribute('aria-label') || ''"))


def test_no_error_and_no_request(opened: Any, evaluated: Path) -> None:
    assert opened.find_element(By.TAG_NAME, "h1").text == "SCRD <b>on</b> phantoms"
    assert opened.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    page = (evaluated / "report.html").as_uri()
    requests = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    urls = [r["request"]["url"] for r in requests if r["documentURL"] == page]
    assert [u for u in urls if not u.startswith("data:")] == [page]
    assert opened.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert opened.execute_script("return document.querySelectorAll('script').length") == 1  # a name has brought none


def test_identifiers_are_unique_and_links_lead_somewhere(opened: Any) -> None:
    ids = opened.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    targets = opened.execute_script("return [...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
    assert len(targets) >= 6 and set(targets) <= set(ids)
    used = opened.execute_script("return [...document.querySelectorAll('svg use')].map(u => u.getAttribute('href'))")
    assert used and {u.removeprefix("#") for u in used} <= set(ids)


def test_sorting(opened: Any) -> None:
    assert len(_shown(opened)) == 21
    errors = [float(e) for e in _shown(opened, "error")]
    assert errors == sorted(errors, reverse=True)
    assert _shown(opened, "outcome")[:5].count("") == 0 and set(_shown(opened, "outcome")[5:]) == {""}
    menu = Select(opened.find_element(By.ID, "sort"))
    for value, attribute, sign in (("score:-1", "score", -1), ("score:1", "score", 1), ("p:1", "p", 1)):
        menu.select_by_value(value)
        found = [float(v) for v in _shown(opened, attribute)]
        assert found == sorted(found, key=lambda v, sign=sign: sign * v) and len(set(found)) > 5
    menu.select_by_value("name:1")
    names = [name for name in _shown(opened) if "script" not in name]
    assert names == [f"{kind}/{i:02d}.png" for kind in ("bad", "good") for i in range(10)]
    menu.select_by_value("error:-1")
    assert [float(e) for e in _shown(opened, "error")] == errors


def test_filter(opened: Any) -> None:
    menu = Select(opened.find_element(By.ID, "filter"))
    counts = {}
    for value in ("0", "1", "fp", "fn", "all"):
        menu.select_by_value(value)
        counts[value] = len(_shown(opened))
        assert opened.find_element(By.ID, "status").text == f"{counts[value]} of 21 cases"
        if value in ("0", "1"):
            assert set(_shown(opened, "label")) == {value}
    assert counts == {"0": 10, "1": 11, "fp": 2, "fn": 3, "all": 21}


def test_keyboard_alone(opened: Any) -> None:
    """Tab to a case, Enter enlarges, arrows go through, Esc closes and returns to the case last seen."""
    names = _shown(opened)
    press = functools.partial(_press, opened)
    for _ in range(60):
        press(Keys.TAB)
        if _focus(opened) == f"Enlarge {names[0]}":
            break
    assert _focus(opened) == f"Enlarge {names[0]}"
    press(Keys.ENTER)
    dialog = opened.find_element(By.ID, "enlarged")
    heading = lambda: dialog.find_element(By.TAG_NAME, "h3").get_attribute("textContent")  # noqa: E731
    _until(opened, lambda b: dialog.is_displayed())
    assert heading() == names[0] and len(dialog.find_elements(By.TAG_NAME, "img")) == 3
    press(Keys.ARROW_RIGHT)
    assert heading() == names[1]
    press(Keys.ARROW_LEFT)
    press(Keys.ARROW_LEFT)
    assert heading() == names[-1]
    press(Keys.ESCAPE)
    _until(opened, lambda b: not dialog.is_displayed())
    assert _focus(opened) == f"Enlarge {names[-1]}"
    assert opened.get_log("browser") == []


def _press(browser: Any, key: str) -> None:
    webdriver.ActionChains(browser).send_keys(key).perform()


def test_click_enlarges_and_filter_holds(opened: Any) -> None:
    Select(opened.find_element(By.ID, "filter")).select_by_value("fp")
    names = _shown(opened)
    opened.execute_script("document.querySelector('#gallery .case:not([hidden]) .panels').click()")
    dialog = opened.find_element(By.ID, "enlarged")
    _until(opened, lambda b: dialog.is_displayed())
    assert dialog.find_element(By.CSS_SELECTOR, ".bar span").text == "1 of 2"
    dialog.find_element(By.CLASS_NAME, "next").click()
    assert dialog.find_element(By.TAG_NAME, "h3").text == names[1]
    dialog.find_element(By.CLASS_NAME, "next").click()
    assert dialog.find_element(By.TAG_NAME, "h3").text == names[0]
    dialog.find_element(By.CLASS_NAME, "close").click()
    _until(opened, lambda b: not dialog.is_displayed())


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_no_sideways_scrolling(opened: Any, width: int) -> None:
    _width(opened, width)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    script = "return [...document.querySelectorAll('#gallery .stack')].map(s => s.getBoundingClientRect().width)"
    assert min(opened.execute_script(script)) > 100


def test_print_shows_all_and_no_controls(opened: Any) -> None:
    Select(opened.find_element(By.ID, "filter")).select_by_value("fp")
    assert len(_shown(opened)) == 2
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    _until(opened, lambda b: len(_shown(b)) == 21)
    hidden = opened.execute_script(
        "return [...document.querySelectorAll('nav, .controls, button, select, dialog')].every(e => !e.offsetParent)"
    )
    assert hidden
    pdf = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"])
    different = opened.execute_script("return new Set([...document.images].map(i => i.src)).size")
    assert pdf.count(b"/Subtype /Image") >= different > 50  # those far below the window too


def test_dark_and_still(opened: Any) -> None:
    """Dark ground where it is asked for, light text on it; nothing moves, whoever asks."""

    def colors() -> list[float]:
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        return [np.mean([int(c) for c in text[4:-1].split(",")]) for text in opened.execute_script(script)]

    features = lambda scheme: {"features": [{"name": "prefers-color-scheme", "value": scheme}]}  # noqa: E731
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", features("dark"))
    dark = colors()
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", features("light"))
    light = colors()
    assert dark[0] < 60 < 180 < dark[1] and light[1] < 60 < 180 < light[0]
    assert opened.execute_script("return document.getAnimations().length") == 0
    text = opened.execute_script("return document.querySelector('style').textContent")
    assert "transition" not in text and "animation" not in text


def test_all_is_readable_without_scripts(opened: Any) -> None:
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened.refresh()
        cards = opened.find_elements(By.CSS_SELECTOR, "#gallery .case")
        assert len(cards) == 21 and all(card.is_displayed() for card in cards)
        assert not any(e.is_displayed() for e in opened.find_elements(By.CSS_SELECTOR, "button, select"))
    finally:
        opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_outline_lies_on_the_lesion(opened: Any) -> None:
    """The page draws the outline over the block that the mask holds: rows 6 to 12, columns 8 to 15 of 24."""
    box = opened.execute_script(
        """
        const card = [...document.querySelectorAll('.case')].find(c => c.dataset.name === 'bad/09.png');
        const stack = [...card.querySelectorAll('.stack')].pop();
        const whole = stack.getBoundingClientRect();
        const line = stack.querySelector('.lesion').getBoundingClientRect();
        return [line.left - whole.left, line.right - whole.left, line.top - whole.top, line.bottom - whole.top]
            .map((v, i) => v / (i < 2 ? whole.width : whole.height) * 24);
        """
    )
    assert box == pytest.approx([8, 15, 6, 12], abs=0.6)


def test_benchmark(browser: Any, benchmark_folder: Callable[..., Path]) -> None:
    folder = benchmark_folder()
    run = folder / "runs/scrd/lgg/seed1/eval"
    run.mkdir(parents=True)
    (run / "report.html").write_text("<title>a run</title>")
    _open(browser, benchmark_report(folder))
    assert browser.get_log("browser") == []
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids)) > 20
    _width(browser, 390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    (link,) = browser.find_elements(By.CSS_SELECTOR, "#runs a")
    browser.get(link.get_attribute("href"))
    assert browser.title == "a run"
