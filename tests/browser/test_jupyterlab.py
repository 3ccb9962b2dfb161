"""Each notebook in a real JupyterLab: Restart Kernel and Run All Cells, without an error."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from browser import launch, needs_chromium

from xray_helpers.files import project_root

pytest.importorskip("playwright", reason="Playwright is not installed: the browser tests are skipped")
from playwright.sync_api import sync_playwright

pytestmark = [needs_chromium, pytest.mark.slow]

NOTEBOOKS = sorted((project_root() / "notebooks").glob("[0-9]*.ipynb"))
QUICK = {"XRAY_WEIGHTS": "none", "XRAY_IMAGE_SIZE": "64", "XRAY_EPOCHS": "1"}
TOKEN, SECONDS = "only-for-this-test", 240
# What the open notebook is doing: the kernel's status, and the execution counts and errors of its code cells.
STATE = """() => {
    const panel = window.jupyterapp.shell.currentWidget
    const cells = panel.content.model.sharedModel.cells.filter(cell => cell.cell_type === 'code')
    return {
        status: panel.sessionContext.session?.kernel?.status,
        counts: cells.map(cell => cell.execution_count),
        errors: cells.flatMap(cell => cell.outputs).filter(each => each.output_type === 'error'),
    }
}"""


@pytest.fixture(scope="module")
def lab(tiny, tmp_path_factory):
    """A server with copies of the notebooks, on tiny data; its address and its folder."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("lab")
    for path in NOTEBOOKS:
        shutil.copy(path, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}", "--no-browser"]
    environment = {
        **os.environ,
        **QUICK,
        "XRAY_DATA": str(tiny),
        "XRAY_HOME": str(home),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    command = [sys.executable, "-m", "jupyterlab", *options, "--expose-app-in-browser", "--allow-root"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/api/status?token={TOKEN}")
                break
            except urllib.error.URLError:
                assert server.poll() is None, "the server has ended"
                time.sleep(0.2)
        yield address, folder
    finally:
        server.terminate()
        server.wait(30)


def test_each_notebook_runs_from_top_to_bottom_by_the_menu(lab):
    address, folder = lab
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page()
        for path in NOTEBOOKS:
            page.goto(f"{address}/lab/tree/{path.name}?token={TOKEN}&reset")
            page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.content?.model", timeout=60_000)
            page.wait_for_function(f"() => ({STATE})().status === 'idle'", timeout=60_000)
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_text("Restart Kernel and Run All Cells").click()
            page.get_by_role("button", name="Confirm Kernel Restart").or_(
                page.locator(".jp-Dialog button.jp-mod-accept")
            ).first.click()
            began, state = time.monotonic(), {}
            while time.monotonic() - began < SECONDS:
                page.wait_for_timeout(500)
                state = page.evaluate(STATE)
                assert not state["errors"], f"{path.stem}: {state['errors']}"
                if state["status"] == "idle" and state["counts"] == list(range(1, len(state["counts"]) + 1)):
                    break
            else:
                pytest.fail(f"{path.stem} did not end in {SECONDS} s: {state}")
            page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
            check_saved(folder / path.name)
            page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        browser.close()


def check_saved(path: Path):
    """What the notebook saved has no trace of a progress bar, nor of an error."""
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            text = output.get("text", "").rpartition("\r")[2]
            assert output.output_type != "error"
            assert "%|" not in text or "100%|" in text, f"{path.stem}: a progress bar is left at {text[:40]!r}"
