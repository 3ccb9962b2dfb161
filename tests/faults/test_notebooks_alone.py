"""Notebooks run out of order, and kernels that are restarted between two cells."""

import os
import signal

import nbformat
import pytest
from conftest import LONG
from nbclient import NotebookClient
from run_notebooks import NotebookError, run

from xray_helpers.files import project_root

pytestmark = pytest.mark.slow
NOTEBOOKS = sorted((project_root() / "notebooks").glob("[0-9]*.ipynb"))
FILES, RUN = "FileNotFoundError.*run notebook 01 first", r"CheckpointError.*train first \(make train, or notebook 05\)"
SAID = {"02_resplit": FILES, "03_eda": FILES, "06_evaluate": RUN, "07_checkpoints": RUN}
RESTARTED = NOTEBOOKS if LONG else NOTEBOOKS[:1]


@pytest.fixture
def quick(tiny, monkeypatch):
    """Little to train, nothing to download."""
    for name, value in {"DATA": tiny, "WEIGHTS": "none", "IMAGE_SIZE": 64, "EPOCHS": 1}.items():
        monkeypatch.setenv(f"XRAY_{name}", str(value))


@pytest.mark.fault("a notebook run before its predecessor")
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if LONG or path.stem in SAID], ids=lambda path: path.stem)
def test_a_notebook_alone_says_which_one_is_missing_or_runs(quick, path):
    if path.stem in SAID:
        with pytest.raises(NotebookError, match=f"{path.stem}: {SAID[path.stem]}"):
            run(path)
    else:
        run(path)


def files(home):
    """What lies on the disk, with sizes and dates."""
    found = (path for path in home.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def play(path, home, done):
    """Run a notebook until a cell that is not among `done` has changed files; kill the kernel then.

    Returns that cell's number, or None at the end of the notebook.
    """
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": path.parent}}
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources=where, shutdown_kernel="immediate")
    before = files(home)
    with client.setup_kernel():
        for number, cell in enumerate(notebook.cells):
            client.execute_cell(cell, number)
            after = files(home)
            if after != before and number not in done:
                os.kill(client.km.provisioner.pid, signal.SIGKILL)
                return number
            before = after
    return None


@pytest.mark.fault("kernel restarted between two cells")
def test_a_kernel_killed_after_any_cell_that_wrote_files_is_no_loss(quick, home, record_property):
    """Between two cells that write nothing, a restart finds the same files as before the first of them."""
    kills = 0
    for path in RESTARTED:
        done = set()
        while (number := play(path, home, done)) is not None:
            done.add(number)
        kills += len(done)
    assert not list(home.rglob(".*.partial*"))
    assert kills >= len(RESTARTED)
    record_property("cases", kills)
