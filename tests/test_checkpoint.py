import json
import os
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from xray_helpers import checkpoint
from xray_helpers.checkpoint import (
    BEST,
    CARD,
    LAST,
    CheckpointError,
    Inference,
    latest_run,
    load_model,
    load_state,
    read_about,
    save_best,
    save_state,
    write_about,
)
from xray_helpers.model import build_model
from xray_helpers.transforms import Preparation

ABOUT = Inference(
    arch="resnet18",
    classes=("NORMAL", "PNEUMONIA"),
    preparation=Preparation(64, "pad"),
    epoch=2,
    val_loss=0.25,
    calibration={"slope": 0.9, "intercept": 0.1},
    operating_points={"0.5": 0.5},
    data="sample",
    fingerprint="abc",
    weights="none",
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model("resnet18", 1, "none").eval()
    torch.nn.init.normal_(model.fc.weight)
    return model


@pytest.fixture
def folder(tmp_path, model):
    save_best(tmp_path, model, ABOUT)
    return tmp_path


def test_a_saved_model_predicts_the_same_and_knows_what_it_needs(folder, model):
    loaded = load_model(str(folder))  # as the model card says it
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded(images), model(images))
    assert not loaded.training
    assert loaded.about == ABOUT
    assert loaded.about.num_outputs == 1


def test_what_is_known_goes_to_json_and_back_with_infinities(folder):
    write_about(folder, replace(ABOUT, val_loss=float("inf"), classes=("a", "b", "c")))
    about = read_about(folder)
    assert about.val_loss == float("inf")
    assert about.num_outputs == 3


def test_a_state_comes_back_as_it_was(tmp_path):
    state = {"epoch": 3, "model": {"weight": torch.rand(5)}, "history": [{"loss": 0.5}], "classes": ("a", "b")}
    assert load_state(tmp_path) is None
    save_state(tmp_path, state)
    loaded = load_state(tmp_path)
    assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
    assert {name: loaded[name] for name in ("epoch", "history", "classes")} == {
        "epoch": 3, "history": [{"loss": 0.5}], "classes": ("a", "b"),
    }  # fmt: skip


@pytest.mark.parametrize("name", [LAST, BEST])
def test_a_full_disk_keeps_the_old_file_and_names_the_space_needed(folder, model, monkeypatch, name):
    save_state(folder, {"epoch": 1})
    before = (folder / name).read_bytes()

    def full(_, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=rf"the disk is full: saving .*/{name} needs 45 MB, and .* intact") as error:
        save_state(folder, {"model": model.state_dict()}) if name == LAST else save_best(folder, model, ABOUT)
    assert error.value.errno == 28
    assert (folder / name).read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == sorted([LAST, BEST, CARD])


@pytest.mark.parametrize("name", [LAST, BEST])
def test_what_pytorch_and_safetensors_say_of_a_full_disk_is_put_plainly(folder, model, monkeypatch, name):
    """A disk of one megabyte, as seen by asking; both libraries then raise errors of their own kinds."""

    def full(*_):
        raise RuntimeError("unexpected pos 576 vs 534") if name == LAST else SafetensorError("I/O error")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(OSError, match="the disk is full: .* and 1 MB are free"):
        save_state(folder, {"model": model.state_dict()}) if name == LAST else save_best(folder, model, ABOUT)


def test_another_failure_is_not_called_a_full_disk(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(checkpoint.torch, "save", broken)
    with pytest.raises(RuntimeError, match="something else"):
        save_state(tmp_path, {"model": {}})


@pytest.mark.parametrize("name", [LAST, BEST, CARD])
@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_a_damaged_file_is_one_clear_error(folder, name, damage):
    save_state(folder, {"epoch": 1, "model": {"weight": torch.rand(1000)}})
    file = folder / name
    size = file.stat().st_size
    if damage == "foreign":
        file.write_bytes(b"This is something else. " * (size // 24 + 1))
        os.truncate(file, size)
    else:
        os.truncate(file, size // 2 if damage == "cut" else 0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(folder) if name == LAST else load_model(folder)


def test_a_pickle_with_code_in_it_never_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / LAST).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        load_state(tmp_path)
    torch.save({"version": 1, "model": Evil()}, tmp_path / LAST)
    with pytest.raises(CheckpointError):
        load_state(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_architecture_or_class_count_are_refused(folder, model):
    write_about(folder, replace(ABOUT, arch="resnet34"))
    with pytest.raises(CheckpointError, match="does not fit resnet34"):
        load_model(folder)
    write_about(folder, replace(ABOUT, classes=("a", "b", "c")))
    with pytest.raises(CheckpointError, match="does not fit resnet18"):
        load_model(folder)


def test_a_newer_format_is_refused(folder):
    content = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**content, "version": 99}))
    with pytest.raises(CheckpointError, match="is of format 99; this package reads up to 1"):
        load_model(folder)
    save_state(folder, {})
    torch.save({"version": 99}, folder / LAST)
    with pytest.raises(CheckpointError, match="is of format 99"):
        load_state(folder)


def test_a_folder_without_a_model_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="holds no finished model .* Train it first"):
        load_model(tmp_path)


def test_the_newest_run_is_found_or_missed_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="train first"):
        latest_run(tmp_path)
    (tmp_path / "latest.txt").write_text("one\n")
    with pytest.raises(CheckpointError, match="names one, which is gone"):
        latest_run(tmp_path)
    (tmp_path / "one").mkdir()
    assert latest_run(tmp_path) == tmp_path / "one"
