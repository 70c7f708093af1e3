"""``report.html`` in a real browser: headless Chromium, driven by Selenium."""

import json
import shutil
import time

import pytest

pytest.importorskip("plotly", reason="plotly is not installed")
pytest.importorskip("selenium", reason="selenium is not installed")
from browser_cases import load
from report_cases import HOSTILE, hand_made, written
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from restormixer_arch.compare.report.page import write_report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")
DESKTOP = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    return write_report(written(hand_made(), folder), folder).as_uri()


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def device():
    return DESKTOP


@pytest.fixture
def without_javascript():
    return False


@pytest.fixture
def page(browser, place, device, without_javascript):
    """The report, loaded again; afterwards, the console must be empty, and only file and data URLs may be requested."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": without_javascript})
    load(browser, place)
    yield browser
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert place in asked
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}, asked


def one(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def every(page, selector):
    return page.find_elements(By.CSS_SELECTOR, selector)


def made(page, article):
    """Scroll to an image and wait until its viewer is created."""
    page.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", article)
    until(lambda: one(article, ".over").get_attribute("src"))
    return article


def first_picture(page):
    return made(page, one(page, ".picture"))


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def style(article, name):
    return float(
        article.parent.execute_script("return arguments[0].style.getPropertyValue(arguments[1])", article, name)
    )


def names(page):
    return [cell.text for cell in every(page, "tbody th")]


def test_table_shows_values_and_escapes_names(page):
    rows = [[cell.text for cell in every(row, "th, td")] for row in every(page, "tbody tr")]
    assert rows[0][:3] == ["input", "20.00", "0.5000"]
    assert rows[1][:3] == ["ours", "31.00", "0.9000"]
    assert rows[2][:3] == ["small", "30.00\n−1.00 (−3.00 to +1.00)", "0.9000\n0.0000"]
    assert rows[3][:2] == [HOSTILE, "31.50\n+0.50"]
    assert [cell.text for cell in every(page, "tbody tr:nth-child(4) strong")] == ["31.50", "25.00", "25.0000"]
    assert page.execute_script("return window.hacked") is None


def test_clicking_a_column_header_sorts_the_table(page):
    psnr = one(page, "thead th:nth-child(2)")
    psnr.find_element(By.TAG_NAME, "button").click()
    assert names(page) == [HOSTILE, "ours", "small", "input"] and psnr.get_attribute("aria-sort") == "descending"
    psnr.find_element(By.TAG_NAME, "button").click()
    assert names(page) == ["input", "small", "ours", HOSTILE] and psnr.get_attribute("aria-sort") == "ascending"


def test_keyboard_sorts_the_table_with_missing_values_last(page):
    latency = next(head for head in every(page, "thead th") if "Latency" in head.text)
    button = latency.find_element(By.TAG_NAME, "button")
    button.send_keys(Keys.ENTER)
    assert names(page) == ["small", "ours", HOSTILE, "input"] and latency.get_attribute("aria-sort") == "ascending"
    button.send_keys(Keys.SPACE)
    assert names(page) == [HOSTILE, "ours", "small", "input"]
    one(page, "thead th:nth-child(1) button").send_keys(Keys.ENTER)
    assert latency.get_attribute("aria-sort") is None
    assert names(page)[1:] == ["input", "ours", "small"]


def test_column_header_shows_a_tooltip_on_focus_and_hover(page):
    button, tip = one(page, "thead th:nth-child(2) button"), one(page, "#tip")
    assert not tip.is_displayed()
    page.execute_script("arguments[0].focus()", button)
    assert tip.is_displayed() and tip.text.startswith("Mean of psnr over the 3 pictures of rain; higher is better.")
    button.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()
    ActionChains(page).move_to_element(one(page, "thead th:nth-child(3) button")).perform()
    assert tip.text.startswith("Mean of ssim")


def test_plots_fit_the_page_and_shorten_long_names(page):
    until(lambda: len(every(page, ".plot svg .textpoint text")) == 4 * 3)  # two datasets; drawn after the page is shown
    plots = every(page, ".plot")
    assert len(plots) == 4
    for plot in plots:
        texts = [text.text for text in every(plot, "svg .textpoint text")]
        assert sorted(texts) == [HOSTILE[:19] + "…", "ours", "small"]
        until(lambda plot=plot: one(plot, "svg.main-svg").size["width"] <= plot.size["width"])


def test_slider_follows_keyboard_and_mouse(page):
    article = first_picture(page)
    over, split, stage = (one(article, selector) for selector in (".over", ".split", ".stage"))
    assert over.value_of_css_property("clip-path") == "inset(0px 0px 0px 50%)"
    split.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert over.value_of_css_property("clip-path") == "inset(0px 0px 0px 52%)"
    assert split.get_attribute("aria-valuetext") == "52% input, the rest ours"
    quarter = stage.size["width"] // 4
    drag = ActionChains(page).move_to_element_with_offset(stage, 0, 20).click_and_hold()
    drag.move_by_offset(-quarter, 0).release().perform()
    assert split.get_attribute("value") == "25"
    assert over.value_of_css_property("clip-path") == "inset(0px 0px 0px 25%)"


def test_slider_follows_touch(page):
    article = first_picture(page)
    page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    place = page.execute_script("return arguments[0].getBoundingClientRect().toJSON()", one(article, ".stage"))
    y = place["top"] + 0.9 * place["height"]
    for kind, part in (("touchStart", 0.5), ("touchMove", 0.6), ("touchMove", 0.8), ("touchEnd", None)):
        points = [] if part is None else [{"x": place["left"] + part * place["width"], "y": y}]
        page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert style(article, "--split") == pytest.approx(80, abs=1)


def test_any_image_can_be_selected_on_the_left_and_right(page):
    article = first_picture(page)
    sources = [image.get_attribute("src") for image in every(article, ".source")]
    left, right = Select(one(article, ".left")), Select(one(article, ".right"))
    assert [option.text for option in left.options] == ["input", "ours", "small", HOSTILE, "truth"]
    assert [one(article, part).get_attribute("src") for part in (".under", ".over")] == sources[:2]
    left.select_by_visible_text("small")
    right.select_by_visible_text("truth")
    assert [one(article, part).get_attribute("src") for part in (".under", ".over")] == [sources[2], sources[4]]
    assert one(article, ".split").get_attribute("aria-valuetext") == "50% small, the rest truth"


def test_zoom_box_moves_all_images_together(page):
    article = first_picture(page)
    box, panes = one(article, ".box"), every(article, ".pane img")
    assert len(panes) == 9  # input, three competitors, ground truth, and four error maps

    def transforms():
        return {pane.value_of_css_property("transform") for pane in panes}

    before = transforms()
    assert len(before) == 1 and before.pop().startswith("matrix(3, 0, 0, 3,")
    x, y = style(article, "--x"), style(article, "--y")
    box.send_keys(Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    assert style(article, "--x") == pytest.approx(x - 0.1 / 3) and style(article, "--y") == pytest.approx(y + 0.1 / 3)
    after = transforms()
    assert len(after) == 1 and after != before
    box.send_keys("+")
    assert next(iter(transforms())).startswith("matrix(3.5, 0, 0, 3.5,") and len(transforms()) == 1
    assert box.size["width"] == pytest.approx(one(article, ".stage").size["width"] / 3.5, abs=1)
    for _ in range(40):
        box.send_keys(Keys.ARROW_RIGHT)
    assert style(article, "--x") == pytest.approx(1 - 1 / 3.5)  # it stops at the edge


def test_dragging_the_zoom_box_does_not_move_the_slider(page):
    article = first_picture(page)
    box, width = one(article, ".box"), one(article, ".stage").size["width"]
    x = style(article, "--x")
    ActionChains(page).click_and_hold(box).move_by_offset(-width // 10, 0).release().perform()
    assert style(article, "--x") == pytest.approx(x - 0.1, abs=0.01)
    assert style(article, "--split") == 50
    pane = one(article, ".pane")
    ActionChains(page).click_and_hold(pane).move_by_offset(30, 0).release().perform()  # the image follows the mouse
    assert style(article, "--x") == pytest.approx(x - 0.1 - 30 / pane.size["width"] / 3, abs=0.01)


def test_zoom_of_one_shows_the_complete_image(page):
    article = first_picture(page)
    zoom = one(article, ".zoom")
    zoom.send_keys(Keys.HOME)
    assert (style(article, "--zoom"), style(article, "--x"), style(article, "--y")) == (1, 0, 0)
    assert one(article, ".box").size["width"] == one(article, ".stage").size["width"]


@pytest.mark.parametrize("device", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_page_fits_the_window_width(page, device):
    for article in every(page, ".picture"):
        made(page, article)
    window, content = page.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert content <= window == device["width"]
    for plot in every(page, ".plot"):
        until(lambda plot=plot: one(plot, "svg.main-svg").size["width"] <= plot.size["width"])


@pytest.mark.parametrize("without_javascript", [True], ids=[""])
def test_table_and_images_are_shown_without_javascript(page):
    tree = page.execute_cdp_cmd("DOM.getDocument", {"depth": 1})["root"]["nodeId"]

    def boxes(selector):
        found = page.execute_cdp_cmd("DOM.querySelectorAll", {"nodeId": tree, "selector": selector})["nodeIds"]
        return [page.execute_cdp_cmd("DOM.getBoxModel", {"nodeId": node})["model"] for node in found]

    assert len(boxes("tbody td")) == 4 * 11
    pictures = boxes(".pane img")
    assert len(pictures) == 3 * 9 + 4 and all(box["width"] > 80 and box["height"] > 50 for box in pictures)
