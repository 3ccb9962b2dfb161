import json
import os
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from xray_helpers.files import project_root
from xray_helpers.settings import (
    FRACTIONS,
    RECIPES,
    Settings,
    check_fractions,
    choose_device,
    choose_precision,
    seed_everything,
)


def test_defaults_run_the_sample_split_by_patient():
    settings = Settings.from_env()
    assert (settings.data, settings.split, settings.fractions) == ("sample", "pooled", (0.7, 0.15, 0.15))
    assert settings.image_size < Settings(data="kaggle").image_size


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Settings().data = "kaggle"


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("data", "kagle", "sample, kaggle, or a folder or zip that exists"),
        ("split", "random", "pooled, official, blocked"),
        ("fractions", (0.5, 0.5), "70/15/15"),
        ("fractions", (1.0, 0.0, 0.0), "70/15/15"),
        ("split_seed", -1, "0 or more"),
        ("patients", r"\d+", "exactly one group"),
        ("task", "flu", "pneumonia, cause, folders"),
        ("arch", "vgg16", "resnet18"),
        ("weights", "missing.pth", "imagenet, none, or a file or a run's folder that exists"),
        ("image_size", 8, "32 or more"),
        ("resize", "stretch", "squash, pad, crop"),
        ("augment", "wild", "none, light, strong, style"),
        ("recipe", "slow", "default, fast"),
        ("frozen", "layer9", "none, stem, layer1, layer2, layer3, layer4"),
        ("small_size", 8, "32 or more"),
        ("batch_size", -3, "1 or more"),
        ("epochs", -1, "1 or more"),
        ("more_epochs", -1, "0 or more"),
        ("learning_rate", float("nan"), "or more"),
        ("seed", -1, "0 or more"),
        ("device", "tpu", "auto, cuda, mps, cpu"),
        ("precision", "int8", "auto, float32, bf16, fp16"),
        ("workers", -1, "0 or more"),
    ],
)
def test_a_wrong_value_is_refused_with_the_right_ones(field, wrong, right):
    with pytest.raises(ValueError, match=field) as caught:
        Settings(**{field: wrong})
    assert right in str(caught.value)
    assert f"XRAY_{field.upper()}" in str(caught.value)


@pytest.mark.parametrize("wrong", ["(", "(a)(b)", "missing.csv", "missing.CSV"])
def test_patients_are_a_pattern_with_one_group_or_a_file_that_exists(wrong):
    with pytest.raises(ValueError, match=r"patients=.* exactly one group, as \^\(\\d\+\)_, or a file .csv that exists"):
        Settings(patients=wrong)


def test_a_table_of_patients_counts_by_its_content_and_is_found_again_beside_the_split(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("path,patient\na.png,1\n")
    settings = Settings(patients=str(table))
    assert settings.without_paths()["patients"] == "labels.csv"
    name = settings.run_name
    assert name != Settings().run_name
    moved = settings.processed_folder / "labels.csv"
    moved.parent.mkdir(parents=True)
    table.rename(moved)
    again = Settings(patients="labels.csv")
    assert again.patients_table == moved
    assert again.run_name == name
    moved.write_text("path,patient\na.png,2\n")
    assert again.run_name != name


def test_every_field_is_checked_above():
    assert {field.name for field in fields(Settings)} - {"finding"} == {  # which classes there are, the data decides
        mark.args[1][index][0]
        for mark in test_a_wrong_value_is_refused_with_the_right_ones.pytestmark
        for index in range(len(mark.args[1]))
    }


def test_the_environment_wins_over_the_notebook(monkeypatch):
    monkeypatch.setenv("XRAY_SPLIT", "blocked")
    monkeypatch.setenv("XRAY_FRACTIONS", "60/20/20")
    monkeypatch.setenv("XRAY_LEARNING_RATE", "0.01")
    monkeypatch.setenv("XRAY_EPOCHS", "7")
    settings = Settings.from_env(split="official", epochs=2)
    assert (settings.split, settings.fractions, settings.epochs) == ("blocked", (0.6, 0.2, 0.2), 7)
    assert settings.learning_rate == 0.01


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("XRAY_SPLIT", "")
    assert Settings.from_env(split="blocked").split == "blocked"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("XRAY_EPOCHS", "many", "a whole number"),
        ("XRAY_LEARNING_RATE", "fast", "a number"),
        ("XRAY_FRACTIONS", "most/some/few", "numbers as 70/15/15"),
        ("XRAY_SPILT", "blocked", "XRAY_SPILT names no setting; there are XRAY_DATA"),
    ],
)
def test_wrong_text_in_the_environment_is_named(monkeypatch, name, text, message):
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=message):
        Settings.from_env()


class TestGivenToMake:
    """`make` passes its command line on as one variable: NAME=value …, with spaces escaped and dollars doubled."""

    def test_names_in_capitals_are_settings_and_win_over_the_environment(self, monkeypatch):
        monkeypatch.setenv("XRAY_SPLIT", "official")
        monkeypatch.setenv("XRAY_SEED", "5")
        monkeypatch.setenv("XRAY_MAKE", "SPLIT=blocked FRACTIONS=60/20/20 LEARNING_RATE=0.01")
        settings = Settings.from_env(split="pooled", epochs=2)
        assert (settings.split, settings.fractions, settings.learning_rate) == ("blocked", (0.6, 0.2, 0.2), 0.01)
        assert (settings.seed, settings.epochs) == (5, 2)

    def test_flags_win_over_it(self, monkeypatch):
        monkeypatch.setenv("XRAY_MAKE", "SPLIT=blocked SEED=3")
        settings = Settings.from_args(["--split", "official"])
        assert (settings.split, settings.seed) == ("official", 3)

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            (r"DATA=my\ folder", "my folder"),
            (r"SEED=1 DATA=two\ \ spaces TASK=cause", "two  spaces"),
            (r"DATA=a\\b", "a\\b"),
            ("DATA=it's", "it's"),
            ('DATA=a"b', 'a"b'),
            ("DATA=a#b", "a#b"),
            ("DATA=a=b", "a=b"),
            ("DATA=a$$b", "a$b"),
        ],
    )
    def test_a_path_may_have_any_letter(self, home, monkeypatch, text, name):
        (home / name).mkdir()
        monkeypatch.setenv("XRAY_MAKE", text)
        assert Settings.from_env().data == name

    def test_options_that_are_no_settings_are_left_to_make(self, monkeypatch):
        options = "PYTHON=python3 ORIGINALS=x.zip PROCESSES=2 MODEL=models/x FRESH=1 IMAGES=my\\ images OUTPUT=o.csv"
        monkeypatch.setenv("XRAY_MAKE", options)
        assert Settings.from_env() == Settings()

    @pytest.mark.parametrize("text", ["SPILT=x", "SEED=1 SPILT=x", "MODEL=x SPILT="])
    def test_a_misspelt_one_is_named(self, monkeypatch, text):
        monkeypatch.setenv("XRAY_MAKE", text)
        with pytest.raises(ValueError, match="XRAY_SPILT names no setting; there are XRAY_DATA"):
            Settings.from_env()

    def test_a_wrong_value_is_named(self, monkeypatch):
        monkeypatch.setenv("XRAY_MAKE", "EPOCHS=many")
        with pytest.raises(ValueError, match="epochs='many': expected a whole number"):
            Settings.from_env()

    @pytest.mark.parametrize("text", ["", "SPLIT="])
    def test_nothing_counts_as_unset(self, monkeypatch, text):
        monkeypatch.setenv("XRAY_MAKE", text)
        assert Settings.from_env(split="blocked").split == "blocked"


def test_flags_win_over_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("XRAY_SPLIT", "official")
    monkeypatch.setenv("XRAY_SEED", "5")
    settings = Settings.from_args(["--split", "blocked", "--split-seed", "4"])
    assert (settings.split, settings.split_seed, settings.seed) == ("blocked", 4, 5)
    with pytest.raises(SystemExit):
        Settings.from_args(["--split", "random"])
    assert "expected one of pooled, official, blocked" in capsys.readouterr().err


def test_every_field_has_a_flag_and_a_help_line(capsys):
    with pytest.raises(SystemExit):
        Settings.from_args(["--help"])
    text = capsys.readouterr().out
    for field in fields(Settings):
        assert f"--{field.name.replace('_', '-')} VALUE" in text
        assert field.metadata["meaning"].split()[0] in text


def test_a_path_is_found_from_the_working_directory_and_from_home(tmp_path, home, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "My X-rays.zip").touch()
    here = Settings(data="My X-rays.zip")
    assert here.source() == Path("My X-rays.zip")
    assert here.data_name == "My-X-rays"
    assert here.raw_folder == home / "data" / "raw" / "My-X-rays"
    (home / "other").mkdir()
    assert Settings(data="other").source() == home / "other"


@pytest.mark.parametrize("name", ["sample.zip", "kaggle.zip"])
def test_a_zip_cannot_take_a_built_in_name(tmp_path, name):
    (tmp_path / name).touch()
    assert Settings(data=str(tmp_path / name)).data_name == f"my-{name[:-4]}"


def test_no_path_of_the_machine_is_shown(tmp_path):
    (tmp_path / "weights.pth").touch()
    settings = Settings(data=str(tmp_path), weights=str(tmp_path / "weights.pth"))
    assert str(tmp_path.parent) not in str(settings)
    assert str(tmp_path.parent) not in settings.run_name


def test_the_run_name_tells_what_ran_and_changes_with_every_setting_that_matters(tmp_path):
    plain = Settings(device="cpu", precision="float32")
    name = plain.run_name
    assert name.startswith("sample-pooled-pneumonia-resnet18-imagenet-")
    assert len(name.rsplit("-", 1)[1]) == 8
    assert replace(plain, workers=4, more_epochs=2).run_name == name  # in the same folder
    file = tmp_path / "weights.pth"
    file.write_bytes(b"one")
    others = {
        "data": "kaggle", "split": "blocked", "fractions": (0.6, 0.2, 0.2), "split_seed": 1, "task": "cause",
        "finding": "NORMAL", "patients": r"^(\d+)_",
        "arch": "resnet34", "weights": str(file), "image_size": 64, "resize": "pad", "augment": "none",
        "frozen": "layer3", "small_size": 64,
        "batch_size": 8, "epochs": 9, "learning_rate": 0.1, "seed": 1, "precision": "bf16",
    }  # fmt: skip
    assert set(others) == {field.name for field in fields(Settings)} - {"workers", "device", "more_epochs", "recipe"}
    names = {replace(plain, **{field: value}).run_name for field, value in others.items()}
    assert len(names | {name}) == len(others) + 1
    with_one = replace(plain, weights=str(file)).run_name
    file.write_bytes(b"two")
    assert replace(plain, weights=str(file)).run_name != with_one
    earlier = tmp_path / "sample-pooled-pneumonia-resnet18-none-0123abcd"
    earlier.mkdir()
    (earlier / "best.safetensors").write_bytes(b"one")
    from_one = replace(plain, weights=str(earlier)).run_name
    assert from_one.startswith("sample-pooled-pneumonia-resnet18-from-0123abcd-")
    (earlier / "best.safetensors").write_bytes(b"two")
    assert replace(plain, weights=str(earlier)).run_name != from_one


def test_a_recipe_fills_in_what_is_not_given(monkeypatch):
    plain, fast = Settings(), Settings(recipe="fast")
    assert (plain.epochs, plain.frozen) == tuple(RECIPES["default"].values())
    assert (fast.epochs, fast.frozen, fast.small_size) == tuple(RECIPES["fast"].values())
    assert fast.run_name != plain.run_name
    assert fast.run_name == Settings(**RECIPES["fast"]).run_name  # what counts is what it fills in
    monkeypatch.setenv("XRAY_RECIPE", "fast")
    monkeypatch.setenv("XRAY_FROZEN", "none")
    given = Settings.from_env(epochs=7)
    assert (given.epochs, given.frozen) == (7, "none")


def test_auto_and_the_device_it_chooses_are_one_run():
    auto = Settings()
    device = choose_device().value
    assert replace(auto, device=device, precision=choose_precision("auto", device)).run_name == auto.run_name


def test_the_run_name_is_the_same_in_another_process():
    code = "from xray_helpers.settings import Settings; print(Settings(device='cpu', precision='float32').run_name)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert run.stdout.strip() == Settings(device="cpu", precision="float32").run_name


def test_seeding_repeats_python_numpy_and_torch():
    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    seed_everything(4)
    first = draws()
    seed_everything(4)
    assert draws() == first
    seed_everything(5)
    assert draws() != first


def test_home_defaults_to_the_project(monkeypatch):
    monkeypatch.delenv("XRAY_HOME")
    assert Settings().home == project_root()
    assert (project_root() / "pyproject.toml").is_file()


def test_every_strategy_has_default_shares_that_add_up():
    for strategy, shares in FRACTIONS.items():
        assert sum(shares) == pytest.approx(1)
        assert Settings(split=strategy).fractions == shares


def test_settings_can_be_written_as_json():
    settings = Settings()
    assert json.loads(json.dumps({field.name: getattr(settings, field.name) for field in fields(settings)}))


def test_the_description_says_whose_images_they_are(tmp_path):
    assert Settings().data_description == "synthetic sample, no patients"
    assert "children of one to five years, one hospital" in Settings(data="kaggle").data_description
    (tmp_path / "mine").mkdir()
    assert Settings(data=str(tmp_path / "mine")).data_description == "images of mine"


def test_shares_in_any_unit_add_up_to_1():
    assert check_fractions((6, 2, 2), "pooled") == (0.6, 0.2, 0.2)
    assert check_fractions((80, 20), "official") == (0.8, 0.2)
    for wrong, strategy in (
        ((1, 1), "pooled"),
        ((1, 1, 1), "official"),
        ((1, 1, 0), "blocked"),
        ((1, 1, -1), "pooled"),
    ):
        with pytest.raises(ValueError, match="expected positive shares of train/val"):
            check_fractions(wrong, strategy)
    with pytest.raises(ValueError, match="expected positive shares"):
        check_fractions((1, float("nan"), 1), "pooled")
    with pytest.raises(ValueError, match="expected positive shares"):
        check_fractions((1, float("inf"), 1), "pooled")


def pretend(monkeypatch, cuda=False, mps=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "value", "reason"),
    [
        (True, True, "cuda", "cuda: Test GPU"),
        (False, True, "mps", "mps: Apple GPU"),
        (False, False, "cpu", "cpu: no GPU was found"),
    ],
)
def test_auto_takes_cuda_then_mps_then_cpu(monkeypatch, cuda, mps, value, reason):
    pretend(monkeypatch, cuda, mps)
    assert choose_device() == (value, reason)


def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    pretend(monkeypatch)
    with pytest.raises(ValueError, match="device='cuda': this machine has cpu"):
        choose_device("cuda")
    assert choose_device("cpu").value == "cpu"


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "avx2": True}, "float32"),
    ],
)
def test_a_cpu_computes_in_bf16_only_where_its_hardware_does(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision("auto", "cpu") == expected
    assert choose_precision("auto", "mps") == "float32"


def test_a_torch_that_cannot_tell_means_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("auto", "cpu") == "float32"


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_without_bf16_takes_fp16(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert choose_precision("auto", "cuda") == expected


def test_what_is_asked_for_is_kept_and_fp16_stays_on_cuda():
    assert choose_precision("auto", "mps") == "float32"
    assert choose_precision("float32", "cuda") == "float32"
    with pytest.raises(ValueError, match="fp16' needs device='cuda'"):
        choose_precision("fp16", "cpu")
