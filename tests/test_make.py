import os
import shutil
import subprocess
from dataclasses import fields

import pytest
from packaging.requirements import Requirement

from xray_helpers.files import project_root
from xray_helpers.settings import Settings, given_to_make

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
TARGETS = (
    "report", "docs", "test", "test-slow", "test-all", "faults", "lab", "notebook", "train", "evaluate", "predict",
    "render", "benchmark", "clean",
)  # fmt: skip
SHOW = "--eval=show: ; @env | grep ^XRAY_ || true"


def make(*arguments, **environment):
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("XRAY_", "MAKE"))}
    command = ["make", "--no-print-directory", "-C", str(project_root()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**variables, **environment}).stdout


def test_make_alone_prints_the_help_with_every_setting():
    text = make()
    assert text == make("help")
    for target in TARGETS:
        assert f"  {target} " in text
    for field in fields(Settings):
        assert f"  {field.name.upper()} " in text


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_made(target):
    make("--dry-run", target, "IMAGES=folder")


@pytest.mark.parametrize(
    "data",
    [
        "my folder/x.zip",
        "it's",
        'a "quoted" one',
        "a\\b",
        "a#b",
        "a=b",
        "a$b",
        "tab\there",
        "肺",
        r"^(\d+)_",
        r"p([^ ]+)$",
    ],
)
def test_variables_become_settings_whatever_letters_they_hold(monkeypatch, data):
    shown = make(SHOW, "show", f"DATA={data}", "SPLIT=blocked", "PYTHON=python3").rstrip("\n")
    monkeypatch.setenv(*shown.split("=", 1))
    assert given_to_make() == {"XRAY_DATA": data, "XRAY_SPLIT": "blocked"}


def test_a_misspelt_variable_is_passed_on_and_refused(monkeypatch):
    monkeypatch.setenv(*make(SHOW, "show", "SPILT=x").strip().split("=", 1))
    with pytest.raises(ValueError, match="XRAY_SPILT names no setting"):
        Settings.from_env()


def test_the_user_s_own_environment_is_no_setting():
    assert make(SHOW, "show", DATA="elsewhere", SEED="7").strip() in ("", "XRAY_MAKE=")


@pytest.mark.parametrize(
    ("value", "on"),
    [*((off, False) for off in ("", "0", "no", "NO", "No", "false", "False", "FALSE")), ("1", True), ("Yes", True)],
)
def test_a_switch_can_be_off(value, on):
    commands = make("--dry-run", "train", f"FRESH={value}").splitlines()
    assert ("--fresh" in commands[-1].split()) == on
    assert "xray_helpers.training" in commands[-1]
    assert ("/accelerate launch" in make("--dry-run", "train", f"PROCESSES={value}")) == on


def test_training_in_several_processes_goes_through_accelerate():
    assert "/accelerate launch" not in make("--dry-run", "train")
    command = make("--dry-run", "train", "PROCESSES=2")
    assert "/accelerate launch --num_processes 2" in command
    assert "--multi_gpu" in command
    assert "--multi_gpu" not in make("--dry-run", "train", "PROCESSES=1")


def test_a_new_notebook_needs_a_name_on_the_command_line():
    assert make("--dry-run", "notebook", "NAME=my study").splitlines()[-1].endswith('tools/new_notebook.py "my study"')
    for environment in ({}, {"NAME": "of-this-machine"}):  # which some systems set
        assert "name the notebook" in make("--dry-run", "notebook", **environment)


def test_images_are_shared_only_when_the_command_line_says_so():
    for target in ("report", "docs"):
        assert make("--dry-run", target, "SHARE=yes", "PDF=1").splitlines()[-1].endswith(f"{target} --share --pdf")
        for words in (("SHARE=no", "PDF=0"), ()):
            assert "--" not in make("--dry-run", target, *words, SHARE="yes").splitlines()[-1]


def test_nothing_that_is_made_or_secret_can_be_committed():
    root = project_root()
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    names = ["data/raw/x.jpeg", "data/processed/x.csv", "models/run/best.safetensors", "reports/index.html"]
    names += ["kaggle.json", "notebooks/kaggle.json", "access_token", ".env", ".venv/bin/python"]
    names += ["my_notebooks/mine.ipynb"]
    for name in names:
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=root, check=False).returncode == 0, name
    for name in ("data/README.md", "models/README.md", "reports/README.md"):
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=root, check=False).returncode == 1, name


def test_pinned_installs_the_versions_that_the_requirements_allow():
    for words, wanted in ((("PINNED=1",), True), (("PINNED=no",), False), ((), False)):
        commands = make("--dry-run", "-W", "requirements.txt", ".venv/installed", *words)
        assert ("pip install" in commands) and ("--constraint constraints.txt" in commands) == wanted
    root = project_root()
    pins = dict(line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {name.lower().replace("_", "-"): each for name, each in pins.items()}
    for line in (root / "requirements.txt").read_text().splitlines():
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), line
