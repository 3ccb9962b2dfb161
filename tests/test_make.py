import os
import shutil
import subprocess
from dataclasses import fields

import pytest

from xray_helpers.files import project_root
from xray_helpers.settings import Settings

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
SHOW = "--eval=show: ; @env | grep ^XRAY_ || true"


def make(*arguments, **environment):
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("XRAY_", "MAKE"))}
    command = ["make", "--no-print-directory", "-C", str(project_root()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**variables, **environment}).stdout


def test_make_alone_prints_the_help_with_every_setting():
    text = make()
    assert text == make("help")
    for target in ("report", "test", "faults", "lab", "train", "evaluate", "predict", "render", "benchmark", "clean"):
        assert f"  {target} " in text
    for field in fields(Settings):
        assert f"  {field.name.upper()} " in text


def test_variables_become_settings_even_with_spaces_and_misspelt_ones_are_passed_on():
    lines = make(SHOW, "show", "DATA=my folder/x.zip", "SPLIT=blocked", "SPILT=x", "PYTHON=python3").splitlines()
    assert sorted(lines) == ["XRAY_DATA=my folder/x.zip", "XRAY_SPILT=x", "XRAY_SPLIT=blocked"]


def test_the_user_s_own_environment_is_no_setting():
    assert make(SHOW, "show", DATA="elsewhere", SEED="7") == ""


def test_nothing_that_is_made_or_secret_can_be_committed():
    root = project_root()
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    names = ["data/raw/x.jpeg", "data/processed/x.csv", "models/run/best.safetensors", "reports/index.html"]
    names += ["kaggle.json", "notebooks/kaggle.json", "access_token", ".env", ".venv/bin/python"]
    for name in names:
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=root, check=False).returncode == 0, name
    for name in ("data/README.md", "models/README.md", "reports/README.md"):
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=root, check=False).returncode == 1, name
