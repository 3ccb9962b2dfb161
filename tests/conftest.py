"""Tiny data for every test, and an environment without the user's own settings and credentials."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock
from hypothesis import settings as hypothesis_settings

from xray_helpers.catalog import COLUMNS, build_catalog
from xray_helpers.decoding import read_image
from xray_helpers.facts import Inference
from xray_helpers.files import project_root
from xray_helpers.phantoms import write_dataset, write_twins
from xray_helpers.settings import Settings
from xray_helpers.training import fit
from xray_helpers.transforms import Preparation

SHARED = project_root().parent / "shared"
LONG = os.environ.get("FAULTS") == "long"  # set by `make faults`
ABOUT = Inference(
    arch="resnet18", classes=("NORMAL", "PNEUMONIA"), preparation=Preparation(64, "pad"), epoch=2, val_loss=0.25,
    calibration={"slope": 0.8, "intercept": 0.1}, operating_points={"0.5": 0.5, "chosen": 0.31}, data="sample",
    fingerprint="abc", weights="none",
)  # fmt: skip

# The same examples each time, and no clock: a slow machine is no failure.
hypothesis_settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis_settings.load_profile("steady")


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("fault"):
            item.user_properties.append(("fault", mark.args[0]))


def pytest_terminal_summary(terminalreporter, config):
    """After `make faults`: what was broken, how often, and how it ended."""
    if config.option.markexpr != "fault":
        return
    rows = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            noted = dict(report.user_properties)
            row = rows.setdefault(noted["fault"], {"cases": 0, "failed": 0, "seconds": 0.0})
            row["cases"] += noted.get("cases", 1) if report.when == "call" else 0
            row["failed"] += outcome != "passed"
            row["seconds"] += report.duration
    width = max(map(len, rows), default=0)
    terminalreporter.write_line(f"\n{'fault':<{width}}  {'cases':>6}  {'tests failed':>12}  {'seconds':>7}")
    for name, row in sorted(rows.items()):
        terminalreporter.write_line(f"{name:<{width}}  {row['cases']:>6,}  {row['failed']:>12}  {row['seconds']:>7.0f}")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path_factory):
    for name in list(os.environ):
        if name.startswith(("XRAY_", "KAGGLE_")):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XRAY_HOME", str(home))
    yield
    shutil.rmtree(home, ignore_errors=True)  # a checkpoint has 180 MB, and there are hundreds of tests


@pytest.fixture
def home() -> Path:
    """Where this test's data/ and models/ lie."""
    return Path(os.environ["XRAY_HOME"])


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A synthetic dataset of 60 patients: chest_xray/, masks/, truth.csv. Not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    write_dataset(folder, seed=3, patients=60)
    return folder


@pytest.fixture(scope="session")
def catalog(tiny) -> pd.DataFrame:
    """The tiny dataset's catalog. Not to be changed."""
    return build_catalog(tiny / "chest_xray")


@pytest.fixture(scope="session")
def learned(tmp_path_factory, worker_id) -> Path:
    """The folder of the run that notebook 06 trains on synthetic twins: a minute that is spent once.

    Where tests run in several processes, they share it: the first trains, the others wait and find it finished.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "learned"
    small = {"image_size": 128, "batch_size": 32, "epochs": 16, "learning_rate": 1e-3}
    with FileLock(f"{folder}.lock"), pytest.MonkeyPatch.context() as patch:
        if not folder.exists():
            write_twins(folder / "twins")
        patch.setenv("XRAY_HOME", str(folder))
        return fit(Settings(data=str(folder / "twins"), weights="none", **small)).folder


@pytest.fixture
def batch(tiny, catalog) -> torch.Tensor:
    """Eight different radiographs, uint8 (8, 1, 128, 128)."""
    paths = catalog.loc[catalog["error"] == "", "path"].head(8)
    return torch.stack([torch.tensor(read_image(tiny / "chest_xray" / path, 128)) for path in paths]).unsqueeze(1)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real radiographs beside the checkout, where there is one."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return SHARED / "data"


def rows_to_catalog(rows) -> pd.DataFrame:
    """A catalog that needs no files, from rows (label, cause, fine key, coarse key, pixel hash, folder)."""
    table = [
        (f"{folder}/{label}/{index:05d}.jpeg", label, cause, folder, fine, coarse, 8, 8, "L", 9, pixels, "", 0.0)
        for index, (label, cause, fine, coarse, pixels, folder) in enumerate(rows)
    ]
    return pd.DataFrame(table, columns=list(COLUMNS))
