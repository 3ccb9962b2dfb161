"""Windows and macOS, as far as Linux can test: an old console, text in UTF-8, no links, strict file names; conda."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import PureWindowsPath

import pytest
import torch
import yaml
from PIL import Image

from xray_helpers.files import project_root
from xray_helpers.settings import Settings
from xray_helpers.training.train import train

LONGEST = 260 - len(r"C:\Users\somebody-with-a-long-name\Documents\xray" + "\\")  # that Windows opens, by default
# The three commands in one process. A text file that is opened in the system's encoding is an error, and so is a link.
COMMANDS = r"""
import os, runpy, sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module="xray_helpers")
def refused(*_, **__):
    raise OSError(1314, "A required privilege is not held by the client")
os.symlink = os.link = refused
for module, *arguments in ["training"], ["evaluation"], ["predict", *sys.argv[1:]]:
    sys.argv = [module, *arguments]
    runpy.run_module(f"xray_helpers.{module}", run_name="__main__")
"""


@pytest.fixture
def films(tmp_path):
    """Noise in two class folders, one of whose names no Western console can print."""
    for place, label in enumerate(("NORMAL", "肺炎")):
        folder = tmp_path / "films" / "train" / label
        folder.mkdir(parents=True)
        for number in range(12):
            noise = torch.randint(0, 128, (40, 50), dtype=torch.uint8) + 60 * place
            Image.fromarray(noise.numpy()).save(folder / f"{label} {number}.png")
    return tmp_path / "films"


def test_the_commands_work_where_text_is_cp1252_and_links_are_not_allowed(films, tmp_path):
    environment = {
        **os.environ, "XRAY_DATA": str(films), "XRAY_TASK": "folders", "XRAY_FINDING": "肺炎", "XRAY_WEIGHTS": "none",
        "XRAY_IMAGE_SIZE": "32", "XRAY_EPOCHS": "1", "PYTHONIOENCODING": "cp1252:strict", "PYTHONUTF8": "0",
        "TQDM_DISABLE": "1",
    }  # fmt: skip
    given = [str(films), "--output", str(tmp_path / "out.csv")]
    command = [sys.executable, "-X", "warn_default_encoding", "-c", COMMANDS, *given]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode("cp1252")
    assert b"AUC" in done.stdout
    assert "肺炎" in (tmp_path / "out.csv").read_text(encoding="utf-8")


def windows_refuses(name):
    """Why Windows cannot hold a file of this relative name; an empty text where it can."""
    parts = PureWindowsPath(name).parts
    if PureWindowsPath(name).is_reserved():
        return "a device's name"
    if any(re.search(r'[<>:"|?*\x00-\x1f]|[. ]$', part) for part in parts):
        return "a character that is not allowed"
    return "too long" if len(name) > LONGEST else ""


@pytest.mark.parametrize(
    ("name", "reason"), [("a/con.png", "device"), ("a:b", "character"), ("end./a", "character"), ("x" * 260, "long")]
)
def test_names_that_windows_refuses_are_found(name, reason):
    assert reason in windows_refuses(name)


def test_every_committed_name_can_be_checked_out_anywhere():
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=project_root(), capture_output=True, text=True, check=False
    ).stdout
    if not names:
        pytest.skip("this is no git checkout: which files are committed is not known")
    names = names.strip("\0").split("\0")
    assert {name: reason for name in names if (reason := windows_refuses(name))} == {}
    assert len({name.casefold() for name in names}) == len(names)  # also where capitals do not count


def test_every_name_that_a_run_writes_can_be_written_anywhere(films, home):
    films = films.rename(films.with_name("films: 1?"))
    train(Settings(data=str(films), task="folders", finding="肺炎", weights="none", image_size=32, epochs=1))
    written = [path.relative_to(home).as_posix() for path in home.rglob("*")]
    assert any("best.safetensors" in name for name in written)
    assert {name: reason for name in written if (reason := windows_refuses(name))} == {}


def test_conda_and_the_dev_container_install_this_package_on_a_python_that_it_supports():
    root = project_root()
    conda = yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    container = json.loads((root / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert {"pip": ["-e ."]} in conda
    wanted = container["postCreateCommand"].split()
    assert wanted[0] == "make"
    subprocess.run([*wanted, "--dry-run"], cwd=root, check=True, capture_output=True)
    classifiers = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    versions = [container["image"].rpartition(":")[2], *(part.partition("=")[2] for part in conda if "python=" in part)]
    assert all(f"Programming Language :: Python :: {version}" in classifiers for version in versions)
