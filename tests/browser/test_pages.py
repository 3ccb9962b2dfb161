"""The report's pages in a real browser: offline, on a phone and on a desk, light and dark, by keyboard, on paper."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import launch, needs_chromium

from xray_helpers.files import project_root

pytest.importorskip("playwright", reason="Playwright is not installed: the browser tests are skipped")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

pytestmark = [needs_chromium, pytest.mark.slow]

SIZES = {"desk": {"width": 1400, "height": 900}, "phone": {"width": 390, "height": 844}}
THEMES = ("light", "dark")
NO_FETCHING = {"preload": False}  # axe-core would fetch the style sheets, which a page opened as a file may not
MINOR = {"empty-table-header"}  # the corner of a pandas table
# Pictures that did not load or have no description; how far the page is wider than the window; focus that is lost.
BROKEN = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt.trim()).map(i => i.src)"
WIDER = "() => document.documentElement.scrollWidth - window.innerWidth"
ROWS = "() => [...document.querySelectorAll('main a[href], nav a[href]')].filter(a => a.tabIndex < 0).map(a => a.href)"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the committed notebooks."""
    home = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(project_root() / "tools" / "run_notebooks.py"), "docs"]
    subprocess.run(command, check=True, env={**os.environ, "XRAY_HOME": str(home)}, capture_output=True)
    return home / "reports"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        opened = launch(playwright)
        yield opened
        opened.close()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
def test_every_page_is_whole_offline_and_fits(site, browser, size, theme):
    context = browser.new_context(viewport=SIZES[size], color_scheme=theme)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 15
    for path in pages:
        page.goto(path.as_uri())
        assert page.title()
        assert page.evaluate(BROKEN) == [], path.name
        assert page.evaluate(WIDER) <= 0, f"{path.name} is {page.evaluate(WIDER)} pixels too wide"
        assert page.evaluate(ROWS) == [], path.name
        background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(",")[:3])) > 384) == (theme == "light"), background
        if size == "desk":
            serious = [
                each for each in Axe().run(page, options=NO_FETCHING).response["violations"] if each["id"] not in MINOR
            ]
            assert not serious, f"{path.name}: {[(each['id'], each['nodes'][0]['html'][:120]) for each in serious]}"
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    context.close()


def test_links_lead_to_pages_and_places_that_exist(site, browser):
    page = browser.new_page()
    found = {}
    for path in sorted(site.glob("*.html")):
        page.goto(path.as_uri())
        links = page.evaluate("() => [...document.querySelectorAll('a[href]')].map(a => a.href)")
        places = page.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
        found[path.name] = {link for link in links if link.startswith("file:")}, set(places)
    for name, (links, _) in found.items():
        for link in links:
            target, _, place = link.partition("#")
            file = Path(target.removeprefix("file://"))
            assert file.is_file(), f"{name}: {link}"
            if place and file.name in found:
                assert place in found[file.name][1] | {""}, f"{name}: {link}"
    page.close()


def test_code_is_folded_until_the_switch_is_used_and_that_is_remembered(site, browser):
    context = browser.new_context(viewport=SIZES["desk"])
    page = context.new_page()
    shown = (
        "() => [...document.querySelectorAll('div.cell_input, details pre')].filter(e => e.checkVisibility()).length"
    )
    page.goto((site / "05_finetune.html").as_uri())
    folded = page.evaluate(shown)
    page.get_by_role("button", name="Show code").press("Enter")  # by keyboard
    assert page.evaluate(shown) > folded
    page.goto((site / "06_evaluate.html").as_uri())
    assert page.get_by_role("button", name="Hide code").is_visible()
    context.close()


def test_the_search_finds_a_word(site, browser):
    page = browser.new_page()
    page.goto((site / "search.html").as_uri() + "?q=shortcut")
    page.wait_for_selector("#search-results li", timeout=20_000)
    assert page.locator("#search-results li").count() > 2
    page.close()


def test_the_index_answers_on_one_screen_and_prints(site, browser, tmp_path):
    page = browser.new_page(viewport=SIZES["desk"])
    page.goto((site / "index.html").as_uri())
    pictures = page.locator("main img")
    assert pictures.count() >= 3
    assert max(pictures.nth(number).bounding_box()["y"] for number in range(3)) < SIZES["desk"]["height"]
    for name in ("index", "06_evaluate"):
        page.goto((site / f"{name}.html").as_uri())
        page.pdf(path=tmp_path / f"{name}.pdf")
        assert (tmp_path / f"{name}.pdf").read_bytes().count(b"/Type /Page\n") >= 1
    page.close()
