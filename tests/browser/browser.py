"""What the browser tests share: Debian's (or another) Chromium, driven by Playwright."""

import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: the browser tests are skipped")


def launch(playwright):
    """A headless browser."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
