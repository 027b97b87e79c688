"""The page in a real browser, Debian's chromium: every tab, one query each, no error in the console, and no request to
another machine. The screenshots are kept in pytest's folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mmssl.look import page

pytestmark = pytest.mark.slow
NEEDED = "the browser test needs chromium and playwright: apt install chromium; pip install playwright"
PATIENCE = 60_000  # ms


@pytest.fixture(scope="module")
def window(clip_run, vit_run, mae_run, audio_run, bert_run, gpt_run, words_run):
    """(the page in the browser, messages in its console, addresses that it asked)"""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail(NEEDED)
    if chromium is None:
        pytest.fail(NEEDED)
    runs = [clip_run, vit_run, mae_run, audio_run, bert_run, gpt_run, words_run]
    built = page.build(runs)
    address = page.serve(built)
    page.prepare(runs)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": 1280, "height": 1000})
        window.set_default_timeout(PATIENCE)
        errors, asked = [], []
        window.on("console", lambda message: message.type == "error" and errors.append(message.text))
        window.on("pageerror", lambda error: errors.append(str(error)))
        window.on("request", lambda request: asked.append(request.url))
        window.goto(address)
        window.get_by_role("heading", name="7 runs").wait_for()
        yield window, errors, asked
        browser.close()
    built.close()


@pytest.fixture
def picture(tmp_path_factory, request) -> Path:
    name = request.node.name.removeprefix("test_")[:40]
    return tmp_path_factory.getbasetemp() / f"{name}.png"


def go(window, run: str, tab: str) -> None:
    window.get_by_role("tab", name=run, exact=True).click()
    window.get_by_role("tab", name=tab, exact=True).locator("visible=true").click()


def test_a_text_finds_images_and_a_click_their_neighbours(window, picture):
    window = window[0]
    go(window, "clip", "Search images")
    window.get_by_label("Text", exact=True).locator("visible=true").fill("a red square")
    window.get_by_role("button", name="Search", exact=True).locator("visible=true").click()
    answers = window.locator(".gallery-item:visible, .thumbnail-item:visible")
    window.wait_for_function("document.querySelectorAll('.thumbnail-item, .gallery-item').length >= 36")
    answers.first.click()
    window.get_by_text("nearest captions").locator("visible=true").first.wait_for()
    window.get_by_text("a blue circle").locator("visible=true").first.wait_for()
    window.screenshot(path=picture, full_page=True)
    assert window.title().startswith("mmssl")  # the captions and labels of the data are an attack that sets the title


def test_labels_of_ones_own(window, picture):
    window = window[0]
    go(window, "clip", "Zero-shot labels")
    window.get_by_label("Labels, one on each line").locator("visible=true").fill("red square\nblue circle")
    window.locator(".thumbnail-item:visible").first.click()
    window.get_by_text("blue circle").locator("visible=true").last.wait_for()
    window.locator("[data-testid=label-output-value]:visible, .output-class:visible").first.wait_for()
    window.screenshot(path=picture, full_page=True)


def test_a_map_and_what_its_points_are(window, picture):
    window = window[0]
    go(window, "vit", "Map")
    place = window.get_by_test_id("image").locator("img:visible").or_(window.locator("img:visible")).first
    place.wait_for()
    box = place.bounding_box()
    window.mouse.click(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    window.wait_for_function(
        "[...document.querySelectorAll('textarea')].some(e => e.offsetParent && /red|blue/.test(e.value))"
    )
    window.screenshot(path=picture, full_page=True)


def test_an_image_is_reconstructed(window, picture):
    window = window[0]
    go(window, "mae", "Reconstruct")
    window.locator(".thumbnail-item:visible").first.click()
    window.get_by_text("what the encoder sees").locator("visible=true").wait_for()
    window.screenshot(path=picture, full_page=True)


def test_a_recording_finds_similar_ones(window, picture):
    window = window[0]
    go(window, "wav2vec", "Similar sounds")
    window.get_by_text("· ann").locator("visible=true").first.click()
    window.get_by_text(re.compile(r"[01]\.\d\d · [01] · (ann|bob)")).locator("visible=true").nth(3).wait_for()
    window.screenshot(path=picture, full_page=True)


def test_a_mask_is_filled(window, picture):
    window = window[0]
    go(window, "bert", "Fill the mask")
    window.get_by_label("Text", exact=True).locator("visible=true").fill("cat [MASK] bird")
    window.get_by_role("button", name="Guess the word").click()
    window.locator("[data-testid$=confidence-set]:visible, .confidence-set:visible").first.wait_for()
    window.screenshot(path=picture, full_page=True)


def test_a_text_finds_similar_ones(window, picture):
    window = window[0]
    go(window, "bert", "Similar texts")
    window.get_by_label("Text", exact=True).locator("visible=true").fill("cat dog")
    window.get_by_role("button", name="Search", exact=True).locator("visible=true").click()
    window.get_by_text(re.compile(r"^[01]\.\d\d$")).locator("visible=true").first.wait_for()
    window.screenshot(path=picture, full_page=True)


def test_a_text_is_written_on(window, picture):
    window = window[0]
    go(window, "gpt", "Write on")
    window.get_by_role("button", name="Write", exact=True).click()
    window.wait_for_function(
        "[...document.querySelectorAll('textarea')].some(e => e.offsetParent && e.disabled && /^The /.test(e.value))"
    )
    window.screenshot(path=picture, full_page=True)


def test_an_analogy_is_answered(window, picture):
    window = window[0]
    go(window, "words", "Words")
    window.get_by_role("button", name="is to …").click()
    window.get_by_text("queen").locator("visible=true").first.wait_for()
    window.screenshot(path=picture, full_page=True)


def test_the_curves_of_all_runs(window, picture):
    window = window[0]
    window.get_by_role("tab", name="Curves and results", exact=True).click()
    window.locator("img:visible").first.wait_for()
    window.get_by_text("untrained").locator("visible=true").first.wait_for()
    window.screenshot(path=picture, full_page=True)


def test_a_message_is_text_and_no_markup(window, picture):
    window = window[0]
    go(window, "words", "Words")
    window.get_by_label("Word", exact=True).locator("visible=true").first.fill(
        "<img src=x onerror=\"document.title='x'\">"
    )
    window.get_by_role("button", name="Neighbours").click()
    window.get_by_text("is not in the vocabulary").first.wait_for()
    window.screenshot(path=picture)
    assert window.title().startswith("mmssl")


def test_the_console_has_no_error_and_nothing_left_this_machine(window):
    _, errors, asked = window
    assert errors == []
    assert {urlsplit(url).hostname for url in asked if url.startswith("http")} == {"127.0.0.1"}
