"""Nothing that is written names the user, the machine or a token."""

import shutil
import subprocess
import sys

import pytest
import torch
from planted import USER, environment, leaks

from xray_helpers.training.checkpoint import latest_run
from xray_helpers.training.model import build_model


@pytest.fixture
def place(tiny, tmp_path):
    """A user's home, with data, weights and new images in it."""
    place = tmp_path / USER
    place.mkdir()
    shutil.make_archive(str(place / "scans"), "zip", tiny / "chest_xray")
    torch.save(build_model("resnet18", 1, "none").state_dict(), place / "start.pth")
    (place / "new").mkdir()
    for file in sorted((tiny / "chest_xray" / "test").glob("*/*"))[:2]:
        shutil.copy(file, place / "new")
    (place / "new" / "broken.png").write_bytes(b"x")
    return place


@pytest.mark.slow
@pytest.mark.real_network
@pytest.mark.fault("secrets, user name, machine paths: a search")
def test_no_command_writes_or_prints_a_secret_a_name_or_a_path(place, home, record_property):
    files = f"--data {place}/scans.zip --weights {place}/start.pth"
    small = "--image-size 32 --batch-size 16 --epochs 1 --device cpu"
    log = ""
    for command in (
        f"training {files} {small}", "evaluation", f"predict new --output {home}/reports/predictions.csv",
        f"training --data {place}/gone.zip", f"training --data {place}/scans.zip --weights {place}/new/broken.png",
    ):  # fmt: skip
        run = subprocess.run(
            [sys.executable, "-m", *f"xray_helpers.{command}".split()],
            cwd=place, env=environment(place), capture_output=True, text=True, check=False,
        )  # fmt: skip
        log += run.stdout + run.stderr.replace(f"{place}/gone.zip", "what the user typed")
    assert "best in epoch" in log
    assert "2 images, predicted" in log
    assert "start.pth" in (latest_run(home / "models") / "settings.json").read_text()
    assert leaks(home, place, log) == set()
    record_property("cases", sum(path.is_file() for path in home.rglob("*")))
