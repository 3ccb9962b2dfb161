"""What the browser tests share: Debian's (or another) Chromium, driven by Playwright."""

import shutil

import pytest
from build_site import BROWSERS, HEADLESS

CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), "")

needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: the browser tests are skipped")


def launch(playwright):
    """A headless browser."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=list(HEADLESS))
