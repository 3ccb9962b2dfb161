"""Tiny data for every test, and an environment without the user's own settings and credentials."""

import os
import shutil
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import settings as hypothesis_settings
from torch import nn

from xray_helpers.data.catalog import COLUMNS, build_catalog
from xray_helpers.data.reader import read_image
from xray_helpers.data.synthetic import write_dataset
from xray_helpers.data.transforms import Preprocess
from xray_helpers.files import print_once, project_root
from xray_helpers.training import model as model_module
from xray_helpers.training.checkpoint import ModelInfo

SHARED = project_root().parent / "shared"
LONG = os.environ.get("FAULTS") == "long"  # set by `make faults`
INFO = ModelInfo(
    arch="resnet18", classes=("NORMAL", "PNEUMONIA"), preprocess=Preprocess(64, "pad"), epoch=2, val_loss=0.25,
    calibration={"slope": 0.8, "intercept": 0.1}, operating_points={"0.5": 0.5, "chosen": 0.31}, data="sample",
    fingerprint="abc", weights="none",
)  # fmt: skip


class TinyResNet(nn.Module):
    """A ResNet's parts by their names, with a few thousand parameters: what tests train where nobody looks at skill."""

    def __init__(self) -> None:
        super().__init__()
        widths = [4, 8, 8, 8, 16]
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(2)
        for number, (before, after) in enumerate(pairwise(widths), 1):
            stride = 1 if number == 1 else 2
            block = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            setattr(self, f"layer{number}", block)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 1000)

    def forward(self, images):
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for number in range(1, 5):
            features = getattr(self, f"layer{number}")(features)
        return self.fc(self.avgpool(features).flatten(1))


# The same examples each time, and no clock: a slow machine is no failure.
hypothesis_settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis_settings.load_profile("steady")


@pytest.fixture(autouse=True)
def tiny_networks(request, monkeypatch):
    """`build_model` makes a `TinyResNet` in this process, but in tests marked `real_network`."""
    if not request.node.get_closest_marker("real_network"):
        monkeypatch.setattr(model_module, "get_model", lambda arch, weights=None: TinyResNet())


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
        if name.startswith(("XRAY_", "KAGGLE_", "MAKE")):
            monkeypatch.delenv(name)
    print_once.cache_clear()
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XRAY_HOME", str(home))
    yield
    shutil.rmtree(home, ignore_errors=True)


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
    rest = (0.0, 0.0, 255.0, "", "")  # quantisation, low, high, note, near
    table = [
        (f"{folder}/{label}/{index:05d}.jpeg", label, cause, folder, fine, coarse, 8, 8, "L", 9, pixels, "", *rest)
        for index, (label, cause, fine, coarse, pixels, folder) in enumerate(rows)
    ]
    return pd.DataFrame(table, columns=list(COLUMNS))
