import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ABOUT
from safetensors.torch import load_file, save_file

from xray_helpers import checkpoint, files
from xray_helpers.checkpoint import CARD, LAST, latest_run, load_model, resume, save_best, save_state
from xray_helpers.facts import BEST, FACTS, CheckpointError, write_about
from xray_helpers.files import FullDiskError
from xray_helpers.model import build_model

STATE = {
    "of": {"arch": "resnet18", "classes": ("a", "b"), "image_size": 64}, "epoch": 3, "optimizer": {"state": {}},
    "schedule": {"last_epoch": 7}, "scaler": None, "history": [{"loss": 0.5}], "best_epoch": 2, "best_loss": 0.4,
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model("resnet18", 1, "none").eval()
    torch.nn.init.normal_(model.fc.weight)
    return model


@pytest.fixture
def state():
    return {**STATE, "model": {"weight": torch.rand(5000), "bias": torch.arange(3)}}


@pytest.fixture
def folder(tmp_path, model):
    save_best(tmp_path, model, ABOUT)
    return tmp_path


def flip(file, byte, bit=0):
    with open(file, "r+b") as content:
        content.seek(byte)
        value = content.read(1)[0]
        content.seek(byte)
        content.write(bytes([value ^ 1 << bit]))


class TestBest:
    def test_a_saved_model_predicts_the_same_and_knows_what_it_needs(self, folder, model):
        loaded = load_model(str(folder))  # as the model card says it
        images = torch.rand(2, 3, 64, 64)
        assert torch.equal(loaded(images), model(images))
        assert not loaded.training
        assert loaded.about == ABOUT
        assert loaded.card == ""
        (folder / CARD).write_text("# Modèle", encoding="utf-8")
        assert load_model(folder).card == "# Modèle"

    def test_a_fresh_process_computes_the_same_from_a_copy_elsewhere(self, folder, model, tmp_path):
        copy = tmp_path / "élsewhere here"
        copy.mkdir()
        for name in (BEST, FACTS):
            (folder / name).rename(copy / name)
        code = (
            "import sys, torch; from xray_helpers.checkpoint import load_model; torch.manual_seed(1)\n"
            "torch.save(load_model(sys.argv[1])(torch.rand(2, 3, 64, 64)), sys.argv[2])"
        )
        subprocess.run([sys.executable, "-c", code, str(copy), str(tmp_path / "out.pt")], check=True)
        torch.manual_seed(1)
        torch.testing.assert_close(torch.load(tmp_path / "out.pt"), model(torch.rand(2, 3, 64, 64)))

    def test_it_goes_to_any_device(self, folder):
        moved = load_model(folder, "meta")  # every build of PyTorch has this device
        assert next(moved.parameters()).device.type == "meta"
        assert all(tensor.device.type == "cpu" for tensor in load_file(folder / BEST).values())

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
    def test_it_goes_from_cuda_to_the_cpu_and_back(self, tmp_path, model):
        save_best(tmp_path, model.cuda(), ABOUT)
        images = torch.rand(2, 3, 64, 64)
        there, here = load_model(tmp_path, "cuda")(images.cuda()).cpu(), load_model(tmp_path)(images)
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)

    @pytest.mark.fault("damaged checkpoint")
    @pytest.mark.parametrize("name", [BEST, FACTS])
    @pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "one bit"])
    def test_a_damaged_file_is_one_clear_error(self, folder, name, damage):
        hurt(folder / name, damage)
        with pytest.raises(CheckpointError, match="cannot be read: .* Copy it again .* or delete the folder"):
            load_model(folder)

    def test_a_foreign_file_with_the_right_checksum_is_one_too(self, folder):
        (folder / BEST).write_bytes(b"This is something else. " * 100)
        write_about(folder, ABOUT)
        with pytest.raises(CheckpointError, match="best.safetensors cannot be read"):
            load_model(folder)

    @pytest.mark.fault("a checkpoint of something else")
    def test_weights_of_another_architecture_or_class_count_are_refused(self, folder):
        write_about(folder, replace(ABOUT, arch="resnet34"))
        with pytest.raises(CheckpointError, match=r"does not fit resnet34 for 1 outputs: \d+ entries are missing"):
            load_model(folder)
        write_about(folder, replace(ABOUT, classes=("a", "b", "c")))
        with pytest.raises(CheckpointError, match=r"for 3 outputs: 0 .* 2 of another shape, such as fc\.bias"):
            load_model(folder)
        write_about(folder, replace(ABOUT, arch="vgg11"))
        with pytest.raises(CheckpointError, match="arch='vgg11': expected one of resnet18"):
            load_model(folder)

    @pytest.mark.fault("a checkpoint of something else")
    def test_missing_and_extra_weights_are_counted_and_named(self, folder):
        weights = load_file(folder / BEST)
        del weights["layer1.0.conv1.weight"]
        save_file(weights | {"layer9.weight": torch.zeros(1)}, folder / BEST)
        write_about(folder, ABOUT)
        with pytest.raises(CheckpointError, match=r"1 entries are missing, 1 unknown .* layer1\.0\.conv1\.weight"):
            load_model(folder)

    @pytest.mark.fault("killed while saving")
    @pytest.mark.parametrize("when", range(6))
    def test_at_every_instant_of_saving_a_model_can_be_loaded(self, folder, model, monkeypatch, when):
        """Killed before or after each of the moves that saving a better model makes."""
        real, moves = os.replace, []

        def replace_or_die(source, target):
            if len(moves) == when // 2 and when % 2 == 0:
                raise KeyboardInterrupt
            real(source, target)
            moves.append(target)
            if len(moves) == when // 2 + 1 and when % 2:
                raise KeyboardInterrupt

        before = model.fc.weight.detach().clone()
        torch.nn.init.zeros_(model.fc.weight)
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", replace_or_die)
            with pytest.raises(KeyboardInterrupt):
                save_best(folder, model, replace(ABOUT, epoch=3))
        loaded = load_model(folder)
        assert loaded.about.epoch == (3 if when >= 3 else 2)
        assert torch.equal(loaded.fc.weight, torch.zeros_like(before) if when >= 3 else before)


def hurt(file, damage):
    """A file that is cut, empty, of something else, or has one other bit in its middle."""
    size = file.stat().st_size
    if damage == "one bit":
        flip(file, size // 2)
    elif damage == "foreign":
        file.write_bytes(b"This is something else. " * (size // 24 + 1))
        os.truncate(file, size)
    else:
        os.truncate(file, size // 2 if damage == "cut" else 0)


class TestState:
    def test_a_state_comes_back_as_it_was(self, tmp_path, state):
        assert resume(tmp_path) is None
        save_state(tmp_path, state)
        loaded = resume(str(tmp_path))
        assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
        assert {name: loaded[name] for name in STATE} == STATE

    @pytest.mark.fault("damaged checkpoint")
    @pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "one bit"])
    def test_a_damaged_file_is_one_clear_error(self, tmp_path, state, damage):
        save_state(tmp_path, state)
        hurt(tmp_path / LAST, damage)
        with pytest.raises(CheckpointError, match=r"last.pt cannot be read: .* delete the folder"):
            resume(tmp_path)

    @pytest.mark.fault("damaged checkpoint")
    def test_a_flipped_bit_is_an_error_or_changes_nothing(self, tmp_path, state):
        save_state(tmp_path, state)
        file, whole = tmp_path / LAST, (tmp_path / LAST).read_bytes()
        rng, refused = np.random.default_rng(0), 0
        for bit in rng.choice(8 * len(whole), 200, replace=False):
            file.write_bytes(whole)
            flip(file, bit // 8, bit % 8)
            try:
                loaded = resume(tmp_path)
            except CheckpointError:
                refused += 1
            else:
                assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
                assert torch.equal(loaded["model"]["bias"], state["model"]["bias"])
                assert {name: loaded[name] for name in STATE} == STATE
        assert refused > 150

    @pytest.mark.fault("file with code in it")
    def test_a_pickle_with_code_in_it_never_runs(self, tmp_path, state):
        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'ran'}",)

        (tmp_path / LAST).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(CheckpointError):
            resume(tmp_path)
        torch.save({"version": 1, **state, "optimizer": Evil()}, tmp_path / LAST)
        with pytest.raises(CheckpointError, match="it holds more than tensors .* could run code"):
            resume(tmp_path)
        assert not (tmp_path / "ran").exists()
        torch.load(tmp_path / LAST, weights_only=False)
        assert (tmp_path / "ran").exists()  # the payload is a real one

    @pytest.mark.fault("a checkpoint of something else")
    def test_missing_and_unknown_entries_are_named(self, tmp_path, state):
        torch.save({"version": 1, **state, "optimizer": {}, "future": 1}, tmp_path / LAST)
        with pytest.raises(CheckpointError, match="it holds future, which this package does not know"):
            resume(tmp_path)
        del state["optimizer"], state["schedule"]
        torch.save({"version": 1, **state}, tmp_path / LAST)
        with pytest.raises(CheckpointError, match="it lacks optimizer, schedule"):
            resume(tmp_path)
        torch.save([state], tmp_path / LAST)
        with pytest.raises(CheckpointError, match="something else than a training state"):
            resume(tmp_path)

    @pytest.mark.fault("checkpoint of a newer version")
    def test_a_newer_format_is_named(self, tmp_path, state):
        torch.save({**state, "version": 99}, tmp_path / LAST)
        with pytest.raises(CheckpointError, match="is of format 99; this package reads up to 1"):
            resume(tmp_path)

    @pytest.mark.fault("a checkpoint of something else")
    @pytest.mark.parametrize(("name", "value"), [("arch", "resnet50"), ("classes", ("a", "c")), ("image_size", 96)])
    def test_a_state_of_another_run_is_refused_by_what_differs(self, tmp_path, state, name, value):
        save_state(tmp_path, state)
        assert resume(tmp_path, STATE["of"])
        with pytest.raises(CheckpointError, match=f"trained with another {name} .*now .*Start over with --fresh"):
            resume(tmp_path, STATE["of"] | {name: value})

    def test_a_state_saved_on_cuda_is_read_without_a_gpu(self, tmp_path, state):
        save_state(tmp_path, state)
        with zipfile.ZipFile(tmp_path / LAST) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        here, there = (b"X" + len(name).to_bytes(4, "little") + name for name in (b"cpu", b"cuda:0"))
        with zipfile.ZipFile(tmp_path / LAST, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data.replace(here, there) if name.endswith("data.pkl") else data)
        if not torch.cuda.is_available():
            with pytest.raises(RuntimeError, match="CUDA"):
                torch.load(tmp_path / LAST, weights_only=True)
        assert resume(tmp_path)["model"]["weight"].device.type == "cpu"


class TestFullDisk:
    @pytest.mark.fault("disk full while saving")
    @pytest.mark.parametrize("name", [LAST, BEST])
    def test_the_old_file_stays_and_the_space_needed_is_named(self, folder, model, monkeypatch, name):
        save_state(folder, {"epoch": 1})
        before = (folder / name).read_bytes()

        def full(_, file):
            with open(file, "wb") as target:
                target.write(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint.torch, "save", full)
        monkeypatch.setattr(Path, "write_bytes", lambda path, content: full(content, path))
        with pytest.raises(
            FullDiskError, match=rf"the disk is full: saving .*/{name} needs 45 MB, and .* intact"
        ) as error:
            save_state(folder, {"model": model.state_dict()}) if name == LAST else save_best(folder, model, ABOUT)
        assert error.value.errno == 28
        assert (folder / name).read_bytes() == before
        assert sorted(path.name for path in folder.iterdir()) == sorted([LAST, BEST, FACTS])

    def test_what_pytorch_says_of_it_is_put_plainly(self, folder, model, monkeypatch):
        """A disk of one megabyte, as seen by asking; PyTorch then raises an error of its own kind."""

        def full(_, file):
            file.write_bytes(b"half")
            raise RuntimeError("unexpected pos 576 vs 534")

        monkeypatch.setattr(checkpoint.torch, "save", full)
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
        with pytest.raises(FullDiskError, match=r"the disk is full: .* needs 45 MB, and 1 MB are free"):
            save_state(folder, {"model": model.state_dict()})

    def test_another_failure_is_not_called_a_full_disk(self, folder, monkeypatch):
        def broken(*_):
            raise RuntimeError("something else")

        monkeypatch.setattr(checkpoint.torch, "save", broken)
        with pytest.raises(RuntimeError, match="something else"):
            save_state(folder, {"model": {}})


def test_others_may_read_what_was_saved_as_far_as_the_user_s_mask_lets_them(folder, state):
    save_state(folder, state)
    assert len({(folder / name).stat().st_mode for name in (LAST, BEST, FACTS)}) == 1


def test_the_newest_run_is_found_or_missed_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="train first"):
        latest_run(tmp_path)
    (tmp_path / "latest.txt").write_text("one\n")
    with pytest.raises(CheckpointError, match="names one, which is gone"):
        latest_run(tmp_path)
    (tmp_path / "one").mkdir()
    assert latest_run(tmp_path) == tmp_path / "one"
