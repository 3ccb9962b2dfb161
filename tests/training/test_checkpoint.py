import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import INFO
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save
from torch import nn

from xray_helpers import files
from xray_helpers.data.transforms import Preprocess
from xray_helpers.files import CheckpointError
from xray_helpers.inference import make_accelerator
from xray_helpers.training import checkpoint
from xray_helpers.training.checkpoint import (
    BEST,
    CARD,
    LAST,
    latest_run,
    load_model,
    lock_run_folder,
    resume,
    save_history,
    save_model,
    save_state,
    tensor_bytes,
)
from xray_helpers.training.model import build_model

IDENTITY = {"arch": "resnet18", "classes": ("a", "b"), "image_size": 64}
STATE = {
    "identity": IDENTITY, "epoch": 3, "optimizer": {"state": {}}, "schedule": {"last_epoch": 7}, "scaler": None,
    "history": [{"loss": 0.5}], "best_epoch": 2, "best_loss": 0.4, "cycles": [3],
}  # fmt: skip
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


class Own(nn.Sequential):
    """A network of the caller's own."""

    def __init__(self, outputs=3):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.append(nn.Linear(4, outputs))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model("resnet18", 1, "none").eval()
    nn.init.normal_(model.fc.weight)
    return model


@pytest.fixture
def state():
    return {**STATE, "model": {"weight": torch.rand(5000), "bias": torch.arange(3)}}


@pytest.fixture
def folder(tmp_path, model):
    save_model(tmp_path / "run", model, INFO)
    return tmp_path / "run"


def write(file, weights, facts):
    """A model's file with these facts (text), which its checksum matches."""
    file.write_bytes(save(weights, {"facts": facts, "sha256": checkpoint._digest(weights, facts)}))


def facts(**changes):
    return json.dumps({"version": 1, **asdict(INFO), **changes})


def flip(file, byte, bit=0):
    with open(file, "r+b") as content:
        content.seek(byte)
        value = content.read(1)[0]
        content.seek(byte)
        content.write(bytes([value ^ 1 << bit]))


def hurt(file, damage):
    """Cut a file, empty it, fill it with something else, or change one bit in its middle."""
    size = file.stat().st_size
    if damage == "one bit":
        flip(file, size // 2)
    elif damage == "foreign":
        file.write_bytes(b"This is something else. " * (size // 24 + 1))
        os.truncate(file, size)
    else:
        os.truncate(file, size // 2 if damage == "cut" else 0)


class TestBest:
    def test_a_saved_model_predicts_the_same_and_knows_what_it_needs(self, folder, model):
        loaded = load_model(str(folder))  # as the model card says it
        assert torch.equal(loaded(IMAGES), model(IMAGES))
        assert not loaded.training
        assert loaded.info == INFO
        assert loaded.card == ""
        (folder / CARD).write_text("# Modèle", encoding="utf-8")
        assert load_model(folder).card == "# Modèle"
        assert load_model(folder / BEST).card == "# Modèle"

    def test_it_is_one_file_of_tensors_and_facts(self, folder):
        assert [path.name for path in folder.iterdir()] == [BEST]

    def test_facts_of_every_kind_come_back_as_they_were(self, folder, model):
        other = replace(INFO, val_loss=float("inf"), preprocess=None, classes=("a", "b"), operating_points={"0.5": 0.5})
        save_model(folder, model, other)
        assert load_model(folder).info == other

    def test_saving_leaves_the_network_as_it_is(self, tmp_path, model):
        model.train().to(memory_format=torch.channels_last)
        save_model(tmp_path, model, INFO)
        assert model.training
        assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
        assert load_model(tmp_path).conv1.weight.is_contiguous()

    @pytest.mark.slow
    def test_a_fresh_process_computes_the_same_from_a_copy_of_the_file_elsewhere(self, tmp_path):
        network = Own().eval()
        save_model(tmp_path, network, replace(INFO, arch="Own", classes=("a", "b", "c")))
        copy = tmp_path / "élsewhere here" / "a model.safetensors"
        copy.parent.mkdir()
        shutil.move(tmp_path / BEST, copy)
        code = (
            "import sys, torch; from test_checkpoint import Own, load_model, IMAGES\n"
            "torch.save(load_model(sys.argv[1], into=Own())(IMAGES), sys.argv[2])"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        out = tmp_path / "out.pt"
        subprocess.run([sys.executable, "-c", code, str(copy), str(out)], check=True, env=environment)
        torch.testing.assert_close(torch.load(out), network(IMAGES))

    def test_it_goes_to_any_device(self, folder):
        moved = load_model(folder, "meta")  # every build of PyTorch has this device
        assert next(moved.parameters()).device.type == "meta"
        assert all(tensor.device.type == "cpu" for tensor in load_file(folder / BEST).values())

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
    def test_it_goes_from_cuda_to_the_cpu_and_back(self, tmp_path, model):
        save_model(tmp_path, model.cuda(), INFO)
        there, here = load_model(tmp_path, "cuda")(IMAGES.cuda()).cpu(), load_model(tmp_path)(IMAGES)
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)

    def test_random_numbers_are_left_alone(self, folder):
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        load_model(folder)
        assert torch.rand(1) == expected

    def test_a_folder_without_a_model_says_what_to_do(self, tmp_path):
        (tmp_path / "run").mkdir()
        for path in (tmp_path / "run", tmp_path / "gone"):
            with pytest.raises(CheckpointError, match=rf"{path.name} holds no finished model .* Train it first"):
                load_model(path)

    @pytest.mark.fault("damaged checkpoint")
    @pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "one bit"])
    def test_a_damaged_file_is_one_clear_error(self, folder, damage):
        hurt(folder / BEST, damage)
        with pytest.raises(
            CheckpointError, match=r"^run/best.safetensors cannot be read: .* Copy it again .* or delete"
        ):
            load_model(folder)

    @pytest.mark.fault("damaged checkpoint")
    def test_every_flipped_bit_is_an_error_or_changes_nothing(self, folder, model):
        file, whole = folder / BEST, (folder / BEST).read_bytes()
        start = 8 + int.from_bytes(whole[:8], "little")  # of the tensors: before them stand names, shapes and facts
        padding = start - len(whole[:start].rstrip(b" "))
        rng, expected, refused = np.random.default_rng(0), model.state_dict(), {"facts": 0, "tensors": 0}
        bits = {
            "facts": [*range(64), *rng.choice(range(64, 8 * (start - padding)), 250, replace=False)],
            "tensors": rng.choice(range(8 * start, 8 * len(whole)), 150, replace=False),
            "padding": range(8 * (start - padding), 8 * start),
        }
        for part, places in bits.items():
            for bit in places:
                file.write_bytes(whole)
                flip(file, bit // 8, bit % 8)
                try:
                    loaded = load_model(folder)
                except CheckpointError:
                    refused[part] = refused.get(part, 0) + 1
                else:
                    assert loaded.info == INFO, f"bit {bit}"
                    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items()), bit
        assert refused["tensors"] == 150
        assert refused["facts"] > 300

    def test_a_threshold_that_somebody_changed_is_noticed(self, folder):
        content = (folder / BEST).read_bytes()
        (folder / BEST).write_bytes(content.replace(b"0.31", b"0.81"))
        with pytest.raises(CheckpointError, match=r"best.safetensors cannot be read: its checksum does not match"):
            load_model(folder)

    def test_facts_are_bound_to_their_weights(self, folder):
        weights = load_file(folder / BEST)
        weights["fc.bias"] += 1
        digest = checkpoint._digest(load_file(folder / BEST), facts())
        (folder / BEST).write_bytes(save(weights, {"facts": facts(), "sha256": digest}))
        with pytest.raises(CheckpointError, match="its checksum does not match"):
            load_model(folder)

    def test_the_checksum_sees_names_types_and_shapes(self):
        weights = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
        others = [
            {"c": weights["a"], "b": weights["b"]},
            {"a": weights["a"].view(torch.int32), "b": weights["b"]},
            {"a": weights["a"].view(3, 2), "b": weights["b"]},
        ]
        assert checkpoint._digest(dict(reversed(weights.items())), "x") == checkpoint._digest(weights, "x")
        assert len({checkpoint._digest(each, "x") for each in [weights, *others]}) == 4
        assert checkpoint._digest(weights, "y") != checkpoint._digest(weights, "x")

    @pytest.mark.fault("damaged checkpoint")
    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', "3", "\x01", facts(surprise=1)])
    def test_facts_that_are_something_else_are_one_clear_error(self, folder, text):
        write(folder / BEST, load_file(folder / BEST), text)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_model(folder)

    def test_weights_of_another_program_are_one_too(self, folder):
        (folder / BEST).write_bytes(save(load_file(folder / BEST)))
        with pytest.raises(CheckpointError, match="cannot be read: it was not saved by this package"):
            load_model(folder)

    @pytest.mark.fault("checkpoint of a newer version")
    def test_a_newer_format_is_named(self, folder):
        write(folder / BEST, load_file(folder / BEST), facts(version=99))
        with pytest.raises(CheckpointError, match="run/best.safetensors is of format 99; this package reads up to 1"):
            load_model(folder)

    @pytest.mark.real_network
    @pytest.mark.fault("a checkpoint of something else")
    def test_weights_of_another_architecture_or_class_count_are_refused(self, folder, model):
        save_model(folder, model, replace(INFO, arch="resnet34"))
        with pytest.raises(CheckpointError, match=r"does not fit resnet34 for 1 outputs: \d+ entries are missing"):
            load_model(folder)
        save_model(folder, model, replace(INFO, classes=("a", "b", "c")))
        with pytest.raises(CheckpointError, match=r"for 3 outputs: 0 .* 2 of another shape, such as fc\.bias"):
            load_model(folder)

    @pytest.mark.fault("a checkpoint of something else")
    def test_missing_and_extra_weights_are_counted_and_named(self, folder):
        weights = load_file(folder / BEST)
        del weights["layer1.0.weight"]
        write(folder / BEST, weights | {"layer9.weight": torch.zeros(1)}, facts())
        with pytest.raises(CheckpointError, match=r"1 entries are missing, 1 unknown .* layer1\.0\.weight"):
            load_model(folder)

    def test_a_network_of_one_s_own_takes_its_weights_back(self, tmp_path):
        network = Own().eval()
        save_model(tmp_path, network, replace(INFO, arch="Own", classes=("a", "b", "c"), preprocess=None))
        with pytest.raises(
            CheckpointError, match=r"was trained as Own: make one, and call load_model\(file, into=model"
        ):
            load_model(tmp_path / BEST)
        own = Own()
        loaded = load_model(tmp_path / BEST, into=own)
        assert loaded is own
        assert not loaded.training
        assert loaded.info.classes == ("a", "b", "c")
        assert loaded.info.preprocess is None
        assert torch.equal(loaded(IMAGES), network(IMAGES))
        with pytest.raises(CheckpointError, match=r"does not fit Own for 3 outputs: .* such as 4\.bias"):
            load_model(tmp_path / BEST, into=Own(2))

    @pytest.mark.fault("killed while saving")
    @pytest.mark.parametrize("instant", ["half written", "before the rename", "after the rename"])
    def test_at_every_instant_of_saving_a_model_can_be_loaded(self, folder, model, monkeypatch, instant):
        class Killed(BaseException):
            pass

        def write_half(path, content):
            with open(path, "wb") as file:
                file.write(content[: len(content) // 2])
            raise Killed

        def rename(source, target, real=os.replace):
            if instant == "after the rename":
                real(source, target)
            raise Killed

        before = model.fc.weight.detach().clone()
        nn.init.zeros_(model.fc.weight)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", lambda *_, **__: None)  # a process that was killed does not tidy up
            patch.setattr(
                *((Path, "write_bytes", write_half) if instant == "half written" else (os, "replace", rename))
            )
            with pytest.raises(Killed):
                save_model(folder, model, replace(INFO, epoch=3))
        loaded, saved = load_model(folder), instant == "after the rename"
        assert loaded.info.epoch == (3 if saved else 2)
        assert torch.equal(loaded.fc.weight, torch.zeros_like(before) if saved else before)

    def test_a_file_that_cannot_be_read_is_no_obstacle_to_saving(self, folder, model):
        (folder / BEST).write_text("broken")
        save_model(folder, model, INFO)
        assert load_model(folder).info == INFO


def test_threshold_temperature_and_outputs_follow_from_the_facts():
    assert INFO.threshold == 0.31
    assert INFO.temperature == pytest.approx(1.25)
    assert INFO.num_outputs == 1
    assert replace(INFO, operating_points={"0.5": 0.5}).threshold == 0.5
    assert replace(INFO, classes=("a", "b", "c")).num_outputs == 3
    bare = checkpoint.ModelInfo("resnet18", ("a", "b"), Preprocess(64), 1, 0.5)
    assert bare.calibration == {"slope": 1, "intercept": 0}
    assert bare.operating_points == {"0.5": 0.5}
    assert bare.weights == "none"


class TestState:
    def test_a_state_comes_back_as_it_was(self, tmp_path, state):
        assert resume(tmp_path) is None
        save_state(tmp_path, state)
        loaded = resume(str(tmp_path))
        assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
        assert {name: loaded[name] for name in STATE} == STATE

    def test_numbers_of_numpy_come_back_as_plain_ones(self, tmp_path, state):
        """A schedule or a metric of the caller's own may give them; and what cannot be resumed must not be saved."""
        given = {"lr": np.float64(0.5), "steps": [np.int64(3), (np.float32(0.25), np.bool_(True))]}
        save_state(tmp_path, state | {"schedule": given})
        loaded = resume(tmp_path)["schedule"]
        assert loaded == {"lr": 0.5, "steps": [3, (0.25, True)]}
        assert [type(value) for value in (loaded["lr"], loaded["steps"][0])] == [float, int]

    @pytest.mark.fault("damaged checkpoint")
    @pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "one bit"])
    def test_a_damaged_file_is_one_clear_error(self, tmp_path, state, damage):
        save_state(tmp_path / "run", state)
        hurt(tmp_path / "run" / LAST, damage)
        with pytest.raises(CheckpointError, match=r"^run/last.pt cannot be read: .* delete the folder run and train"):
            resume(tmp_path / "run")

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
    def test_missing_entries_are_named(self, tmp_path, state):
        del state["optimizer"], state["schedule"]
        torch.save({"version": 1, **state}, tmp_path / LAST)
        with pytest.raises(CheckpointError, match="it lacks optimizer, schedule"):
            resume(tmp_path)
        for content in ([state], state):
            torch.save(content, tmp_path / LAST)
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
        assert resume(tmp_path, IDENTITY)
        with pytest.raises(CheckpointError, match=f"trained with another {name} .*now .*Start over with --fresh"):
            resume(tmp_path, IDENTITY | {name: value})

    def test_the_history_is_a_table_beside_it(self, tmp_path):
        rows = [{"epoch": 1, "val_auc": 0.5}, {"epoch": 2, "val_auc": 0.75}]
        for count in (1, 2):
            save_history(tmp_path / "run", rows[:count])
            assert pd.read_csv(tmp_path / "run" / "history.csv").to_dict("records") == rows[:count]

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
    def test_the_old_file_stays_and_the_space_needed_is_named(self, folder, monkeypatch, name):
        save_state(folder, {"epoch": 1})
        before = (folder / name).read_bytes()

        def full(_, file):
            with open(file, "wb") as target:
                target.write(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint.torch, "save", full)
        monkeypatch.setattr(Path, "write_bytes", lambda path, content: full(content, path))
        large = nn.Linear(3000, 4000, bias=False)
        with pytest.raises(OSError, match=rf"the disk is full: saving run/{name} needs 48 MB, and .* intact") as error:
            save_state(folder, {"model": large.state_dict()}) if name == LAST else save_model(folder, large, INFO)
        assert error.value.errno == 28
        assert (folder / name).read_bytes() == before
        assert sorted(path.name for path in folder.iterdir()) == sorted([LAST, BEST])

    def test_what_pytorch_says_of_it_is_put_plainly(self, folder, monkeypatch):
        """A disk of one megabyte, as seen by asking; PyTorch then raises an error of its own kind."""

        def full(_, file):
            file.write_bytes(b"half")
            raise RuntimeError("unexpected pos 576 vs 534")

        monkeypatch.setattr(checkpoint.torch, "save", full)
        monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
        with pytest.raises(OSError, match=r"the disk is full: .* needs 45 MB, and 1 MB are free") as error:
            save_state(folder, {"model": [torch.zeros(45_000_000, dtype=torch.uint8)]})
        assert error.value.errno == 28

    def test_another_failure_is_not_called_a_full_disk(self, folder, monkeypatch):
        def broken(*_):
            raise RuntimeError("something else")

        monkeypatch.setattr(checkpoint.torch, "save", broken)
        with pytest.raises(RuntimeError, match="something else"):
            save_state(folder, {"model": {}})

    def test_the_bytes_of_tensors_are_counted_wherever_they_are(self):
        content = {"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.int64), ({"c": torch.zeros(5)}, 7)], "d": "x"}
        assert tensor_bytes(content) == 12 + 16 + 20


class TestFolder:
    @pytest.fixture
    def accelerator(self):
        return make_accelerator("cpu", "float32")

    def test_one_process_at_a_time_holds_it(self, tmp_path, accelerator):
        with lock_run_folder(tmp_path / "new" / "run", accelerator):
            with pytest.raises(Timeout):  # as in another process
                FileLock(tmp_path / "new" / ".run.lock", timeout=0).acquire()
            with lock_run_folder(tmp_path / "new" / "run", accelerator):  # `train` holds it around `fit`
                pass
            other = SimpleNamespace(is_main_process=False)  # of the same run
            with lock_run_folder(tmp_path / "new" / "run", other):
                pass
        with (
            FileLock(tmp_path / "new" / ".run.lock"),
            pytest.raises(CheckpointError, match="another process is training in models/run; wait for it"),
        ):
            lock_run_folder(tmp_path / "new" / "run", accelerator).__enter__()

    def test_half_files_of_a_process_that_was_killed_are_removed(self, tmp_path, accelerator):
        for name in (".last.77.partial.pt", ".best.77.partial.safetensors", "last.pt"):
            (tmp_path / name).touch()
        with lock_run_folder(tmp_path, accelerator):
            assert {path.name for path in tmp_path.iterdir()} == {"last.pt"}

    @pytest.mark.parametrize(("main", "said"), [(True, 1), (False, 0)])
    def test_ctrl_c_says_once_what_is_kept(self, tmp_path, capsys, main, said):
        with pytest.raises(KeyboardInterrupt), lock_run_folder(tmp_path / "run", SimpleNamespace(is_main_process=main)):
            raise KeyboardInterrupt
        text = "stopped; models/run keeps the finished epochs, and the next run goes on from there\n"
        assert capsys.readouterr().out == text * said

    def test_other_errors_pass_without_a_word(self, tmp_path, capsys, accelerator):
        with pytest.raises(ZeroDivisionError), lock_run_folder(tmp_path, accelerator):
            raise ZeroDivisionError
        assert capsys.readouterr().out == ""
        with lock_run_folder(tmp_path, accelerator):  # it was let go of
            pass


def test_others_may_read_what_was_saved_as_far_as_the_user_s_mask_lets_them(folder, state):
    save_state(folder, state)
    assert len({(folder / name).stat().st_mode for name in (LAST, BEST)}) == 1


def test_the_newest_run_is_found_or_missed_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="train first"):
        latest_run(tmp_path)
    (tmp_path / "latest.txt").write_text("one\n")
    with pytest.raises(CheckpointError, match="names one, which is gone"):
        latest_run(tmp_path)
    (tmp_path / "one").mkdir()
    assert latest_run(tmp_path) == tmp_path / "one"
