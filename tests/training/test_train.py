import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import xray_helpers.training.train as train_module
from xray_helpers.data import synthetic
from xray_helpers.data.dataset import make_loaders, prepare_data
from xray_helpers.files import WeightsError, XrayError, project_root
from xray_helpers.inference import classification_loss, probabilities, run_network
from xray_helpers.metrics import operating_points, platt
from xray_helpers.settings import Settings
from xray_helpers.training import __main__ as command_line
from xray_helpers.training import engine
from xray_helpers.training import model as model_module
from xray_helpers.training.checkpoint import BEST, LAST, fresh_folder, load_model, resume
from xray_helpers.training.model import GROUPS, build_model
from xray_helpers.training.train import calibrate, expected_minutes, initial_model, train

FILES = {"settings.json", "history.csv", LAST, BEST, "predictions-val.csv", "trained-on.csv"}


@pytest.fixture
def pretrained(tmp_path):
    """A file of weights, so that a run has a head stage without a network."""
    torch.manual_seed(7)
    file = tmp_path / "pretrained.pth"
    torch.save(build_model("resnet18", 1, "none").state_dict(), file)
    return file


@pytest.fixture
def settings(tiny, pretrained):
    return Settings(
        data=str(tiny), image_size=32, batch_size=16, epochs=3, weights=str(pretrained), device="cpu", augment="none",
        precision="float32",
    )  # fmt: skip


@pytest.fixture
def data(settings):
    return prepare_data(settings)


def weights_of(run):
    return load_file(run.folder / BEST)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_writes_its_files_and_what_it_is_says_the_model(settings, home):
    run = train(settings)
    assert run.folder == settings.run_folder
    assert run.folder.name.startswith(f"{settings.data_name}-pooled-pneumonia-resnet18-pretrained-")
    assert {path.name for path in run.folder.iterdir()} == FILES
    assert (home / "models" / "latest.txt").read_text() == run.folder.name + "\n"
    assert json.loads((run.folder / "settings.json").read_text()) == json.loads(json.dumps(settings.without_paths()))
    assert run.history["stage"].tolist() == ["head"] + ["fine-tune"] * 3
    assert run.history["epoch"].tolist() == [0, 1, 2, 3]
    info = run.model.info
    assert (info.arch, info.weights, info.classes) == ("resnet18", "pretrained.pth", ("NORMAL", "PNEUMONIA"))
    assert (info.data, info.preprocess.size, info.preprocess.resize) == (settings.data_name, 32, "squash")
    assert info.fingerprint == prepare_data(settings).fingerprint
    assert info.epoch == run.history.loc[run.history["val_loss"].idxmin(), "epoch"]
    assert resume(run.folder)["identity"]["name"] == run.folder.name
    assert load_model(run.folder).info == info
    assert not run.model.training


@pytest.mark.slow
@pytest.mark.real_network
def test_a_run_learns(settings):
    # Larger images than elsewhere, so that lesions can be seen, and no weights to start from.
    run = train(replace(settings, image_size=64, epochs=8, weights="none", learning_rate=1e-3))
    assert run.history["stage"].tolist() == ["fine-tune"] * 8
    assert run.history["train_loss"].iloc[-1] < 0.7 * run.history["train_loss"].iloc[0]
    assert run.history["val_auc"].max() > 0.85


def test_settings_reach_the_loop(settings, data, monkeypatch):
    given = {}
    monkeypatch.setattr(train_module, "fit", lambda *arguments, **named: given.update(named, plain=arguments) or 1 / 0)
    chosen = replace(settings, epochs=5, learning_rate=0.02, augment="strong", seed=3, precision="bf16", batch_size=8)
    chosen = replace(chosen, more_epochs=2)
    with pytest.raises(ZeroDivisionError):
        train(chosen, data, verbose=False)
    _, loaders, folder, epochs, rate = given["plain"]
    assert (folder, epochs, rate) == (chosen.run_folder, 5, 0.02)
    assert (given["augment"].strength, given["augment"].size) == ("strong", 32)
    assert [given[name] for name in ("name", "seed", "device", "precision", "more_epochs", "verbose")] == [
        chosen.run_name, 3, "cpu", "bf16", 2, False,
    ]  # fmt: skip
    assert next(iter(loaders.train))[0].shape == (8, 1, 32, 32)
    assert loaders.train.sampler.sampler.seed == 3


@pytest.mark.parametrize(("frozen", "learn"), [("none", 6), ("layer1", 4), ("layer4", 1)])
def test_frozen_layers_keep_their_weights(settings, pretrained, frozen, learn):
    run = train(replace(settings, frozen=frozen, epochs=1, image_size=48, small_size=32))
    before, after = torch.load(pretrained), resume(run.folder)["model"]  # the last weights, best or not
    groups = [name for name in GROUPS if name != "head"]
    prefixes = {"stem": ("conv1.", "bn1.")} | {name: (f"{name}.",) for name in groups[1:]}
    moved = [
        name for name in groups
        if any(not torch.equal(after[key], before[key]) for key in after if key.startswith(prefixes[name]))
    ]  # fmt: skip
    assert moved == groups[len(groups) - learn + 1 :]
    again = train(replace(settings, frozen=frozen, epochs=1, image_size=48, small_size=32))
    pd.testing.assert_frame_equal(again.history, run.history)


def test_a_long_training_in_float32_says_how_long_before_it_begins(settings, data, monkeypatch, capsys):
    monkeypatch.setattr(train_module.os, "cpu_count", lambda: 2)
    large = replace(settings, image_size=224)
    assert expected_minutes(large, 3663) == pytest.approx(0.06 / 2 * 1.814 * 3663 * 3 / 60, rel=0.01)
    assert expected_minutes(replace(large, arch="resnet50", epochs=6), 3663) > 4 * expected_minutes(large, 3663)

    def stop(*_, **__):
        raise InterruptedError("here training would begin")

    monkeypatch.setattr(train_module, "fit", stop)
    monkeypatch.setattr(train_module, "FLOAT32_SECONDS", 600.0)
    for precision, said in (("float32", True), ("bf16", False)):
        with pytest.raises(InterruptedError):
            train(replace(settings, precision=precision), data)
        assert ("in float32 on 2 cores, training may take" in capsys.readouterr().out) == said


def test_random_weights_are_not_frozen(settings):
    before = initial_model(replace(settings, weights="none"), make_loaders(prepare_data(settings), 16))[0].state_dict()
    run = train(replace(settings, weights="none", epochs=1, frozen="layer4"))
    assert not torch.equal(resume(run.folder)["model"]["conv1.weight"], before["conv1.weight"])


def test_the_first_loss_is_the_entropy_of_the_training_labels(settings, data):
    loaders = make_loaders(data, 16)
    model, same_settings = initial_model(settings, loaders)
    assert same_settings == settings
    counts = np.array(list(loaders.train.dataset.counts().values()))
    shares = counts / counts.sum()
    everything = [loaders.train.dataset[list(range(counts.sum()))]]
    logits = run_network(model.eval(), everything, loaders.preprocess)
    entropy = -(shares * np.log(shares)).sum()
    assert float(classification_loss(logits, loaders.train.dataset.labels)) == pytest.approx(entropy, abs=1e-4)


def test_a_run_that_was_stopped_goes_on_even_without_the_weights_it_began_with(settings, data, pretrained, monkeypatch):
    whole = train(settings, data)
    kept, history = weights_of(whole), whole.history
    real, epochs = engine.train_one_epoch, []

    def stop_in_third(*given):
        epochs.append(given[8])
        if given[8] == 3:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_one_epoch", stop_in_third)
        with pytest.raises(KeyboardInterrupt):
            train(settings, data, fresh=True)
    assert epochs == [1, 2, 3]
    aside = fresh_folder(whole.folder)
    assert resume(aside)["epoch"] == 2
    assert {path.name for path in aside.iterdir()} == FILES - {"predictions-val.csv", "settings.json"}
    assert resume(whole.folder)["epoch"] == 3  # the earlier run stays until the fresh one is whole
    assert {path.name for path in whole.folder.iterdir()} == FILES
    monkeypatch.setattr(model_module, "_read", lambda _: pytest.fail("the weights were read again"))
    again = train(settings, data)
    assert same(weights_of(again), kept)
    assert again.model.info == whole.model.info
    columns = ["stage", "epoch", "train_loss", "val_loss", "val_auc", "learning_rate"]
    pd.testing.assert_frame_equal(again.history[columns], history[columns], check_exact=True)


def test_a_finished_run_is_returned_and_neither_trained_nor_calibrated_again(settings, data, monkeypatch):
    first = train(settings, data)
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    monkeypatch.setattr(engine, "train_one_epoch", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(train_module, "calibrate", lambda *_: pytest.fail("calibrated again"))
    again = train(settings, data)
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before
    pd.testing.assert_frame_equal(again.history, first.history)


def test_a_side_comparison_does_not_become_the_latest_run(settings, data, home):
    first = train(replace(settings, epochs=1), data)
    side = train(replace(settings, epochs=1, seed=5), data, latest=False)
    assert side.folder != first.folder
    assert not same(weights_of(side), weights_of(first))
    assert (home / "models" / "latest.txt").read_text().strip() == first.folder.name


def test_every_validation_image_counts_once_and_test_stays_closed(settings, monkeypatch):
    settings, real = replace(settings, epochs=1, batch_size=7), make_loaders

    def closed(*given, test=False, **named):
        assert not test
        return real(*given, **named)

    monkeypatch.setattr(train_module, "make_loaders", closed)
    run = train(settings)
    manifest = prepare_data(settings).manifest
    rows = manifest[manifest["split"] == "val"]
    table = pd.read_csv(run.folder / "predictions-val.csv")
    assert len(rows) % 7
    assert list(table) == ["path", "truth", "probability", "calibrated", "patient", "finding"]
    assert table["path"].tolist() == rows["path"].tolist()
    assert table["truth"].tolist() == (rows["label"] == "PNEUMONIA").astype(int).tolist()
    slope, intercept = run.model.info.calibration["slope"], run.model.info.calibration["intercept"]
    logit = np.log(table["probability"] / (1 - table["probability"]))
    np.testing.assert_allclose(table["calibrated"], 1 / (1 + np.exp(-slope * logit - intercept)), atol=1e-6)


def test_calibration_and_thresholds_are_those_of_validation_and_part_of_the_model(settings, data):
    run = train(settings, data)
    table, info = pd.read_csv(run.folder / "predictions-val.csv"), load_model(run.folder).info
    logit = np.log(table["probability"] / (1 - table["probability"]))
    fitted = platt(table["truth"].to_numpy(), logit.to_numpy())
    assert info.calibration == pytest.approx(fitted, rel=1e-3)
    assert info.operating_points == pytest.approx(operating_points(table["truth"], table["probability"]), rel=1e-5)
    assert info.calibration != {"slope": 1.0, "intercept": 0.0}
    assert "chosen" in info.operating_points
    assert run.model.info == info


def test_a_kill_between_calibration_and_its_table_is_made_good(settings, data):
    run = train(settings, data)
    table, kept = (run.folder / "predictions-val.csv").read_bytes(), weights_of(run)
    (run.folder / "predictions-val.csv").unlink()
    train(settings, data)
    assert (run.folder / "predictions-val.csv").read_bytes() == table
    assert same(weights_of(run), kept)
    assert load_model(run.folder).info == run.model.info
    calibrate(run.folder, make_loaders(data, 5))  # and again: it begins from the outputs, not from what is there
    assert load_model(run.folder).info.calibration == pytest.approx(run.model.info.calibration, rel=1e-3)


@pytest.mark.parametrize("task", ["pneumonia", "cause"])
def test_probabilities_are_those_of_equally_frequent_classes(settings, data, task):
    run = train(replace(settings, weights="none", epochs=1, task=task))
    counts = torch.bincount(make_loaders(prepare_data(replace(settings, task=task))).train.dataset.labels)
    logs = counts.log() - counts.sum().log()
    shift = logs[1:] - logs[:1] if task == "pneumonia" else logs
    trained, saved = resume(run.folder)["model"], weights_of(run)
    torch.testing.assert_close(saved["fc.bias"], trained["fc.bias"] - shift)
    torch.testing.assert_close(saved["fc.weight"], trained["fc.weight"])


def test_three_causes_have_a_probability_each(settings):
    run = train(replace(settings, task="cause", epochs=1))
    table = pd.read_csv(run.folder / "predictions-val.csv")
    assert list(table) == ["path", "truth", "p_normal", "p_bacterial", "p_viral", "patient"]
    np.testing.assert_allclose(table.filter(like="p_").sum(axis=1), 1, atol=1e-6)
    assert run.model.info.calibration == {"slope": 1.0, "intercept": 0.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 64}, {"resize": "pad"}, {"task": "cause"}, {"split_seed": 1}, {"data": "sample"},
        {"split": "blocked", "fractions": ()}, {"fractions": (60, 20, 20)},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_data_for_other_settings_are_refused(settings, data, changes, home):
    name = {"data": "data_name"}.get(next(iter(changes)), next(iter(changes)))
    with pytest.raises(ValueError, match=f"data was prepared with {name}="):
        train(replace(settings, **changes), data)
    assert not (home / "models").exists()


class TestWithoutWeights:
    @pytest.fixture(autouse=True)
    def no_network(self, monkeypatch):
        def unreachable(arch):
            raise WeightsError(f"the weights of {arch} cannot be reached")

        monkeypatch.setattr(model_module, "imagenet_weights", unreachable)

    @pytest.fixture
    def sample(self, settings, monkeypatch):
        real = synthetic.write_dataset
        monkeypatch.setattr(synthetic, "write_dataset", lambda folder, **_: real(folder, 3, 60))
        return replace(settings, data="sample", weights="imagenet", epochs=1)

    @pytest.mark.fault("no network")
    def test_real_data_are_an_error(self, settings):
        with pytest.raises(WeightsError, match="cannot be reached"):
            train(replace(settings, weights="imagenet"))

    @pytest.mark.fault("no network")
    def test_a_file_that_does_not_fit_is_one_on_the_sample_too(self, sample, tmp_path):
        torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
        with pytest.raises(WeightsError, match="does not fit"):
            train(replace(sample, weights=str(tmp_path / "other.pth")))

    def test_the_sample_goes_on_from_random_weights_and_its_name_says_so(self, sample, home, monkeypatch, capsys):
        run = train(sample)
        said = capsys.readouterr().out
        assert "note: the weights of resnet18 cannot be reached\nThe sample is trained from random weights" in said
        assert run.folder == replace(sample, weights="none").run_folder
        assert run.folder.name.startswith("sample-pooled-pneumonia-resnet18-none-")
        assert [path.name for path in (home / "models").glob("sample-*")] == [run.folder.name]
        assert json.loads((run.folder / "settings.json").read_text())["weights"] == "none"
        assert run.model.info.weights == "none"
        assert (home / "models" / "latest.txt").read_text().strip() == run.folder.name
        initial_model(sample, make_loaders(prepare_data(sample)))
        assert "random weights" not in capsys.readouterr().out  # said once

        # The same again is the same run; and with the weights at hand, it is another.
        kept = weights_of(run)
        assert same(weights_of(train(sample)), kept)
        state = build_model("resnet18", 1, "none").state_dict()
        monkeypatch.setattr(model_module, "imagenet_weights", lambda _: state)
        other = train(sample)
        assert other.folder.name.startswith("sample-pooled-pneumonia-resnet18-imagenet-")
        assert other.model.info.weights == "imagenet"
        assert same(weights_of(run), kept)

    def test_asked_for_random_weights_it_is_the_same_run(self, sample):
        fallen = train(sample)
        kept = weights_of(fallen)
        asked = train(replace(sample, weights="none"), fresh=True)
        assert asked.folder == fallen.folder
        assert same(weights_of(asked), kept)


class TestCommandLine:
    OPTIONS = "--image-size 32 --batch-size 16 --epochs 1 --device cpu --precision float32 --augment none"

    @pytest.fixture
    def call(self, monkeypatch):
        def call(*arguments):
            monkeypatch.setattr(sys, "argv", ["training", *self.OPTIONS.split(), *map(str, arguments)])
            command_line.main()

        return call

    def test_it_does_what_train_does(self, call, settings, tiny, pretrained, capsys):
        expected = train(replace(settings, epochs=1))
        kept = weights_of(expected)
        (expected.folder / BEST).unlink()
        call("--fresh", "--data", tiny, "--weights", pretrained)
        assert same(weights_of(expected), kept)
        said = capsys.readouterr().out
        assert f"models/{expected.folder.name}: best in epoch" in said
        assert "image_size    32" in said

    def test_of_several_processes_one_speaks(self, call, tiny, monkeypatch, capsys):
        monkeypatch.setenv("RANK", "1")
        call("--data", tiny, "--weights", "none")
        assert capsys.readouterr().out == ""

    def test_it_ends_with_one_clear_line(self, call, tiny, tmp_path):
        (tmp_path / "wrong.pth").write_text("no weights")
        with pytest.raises(SystemExit, match=r"error: wrong.pth cannot be read"):
            call("--data", tiny, "--weights", tmp_path / "wrong.pth")

    @pytest.mark.parametrize("kind", [XrayError, MemoryError, ValueError])
    def test_whatever_is_expected_does(self, call, tiny, monkeypatch, kind):
        def fail(*_, **__):
            raise kind("what is wrong")

        monkeypatch.setattr(command_line, "train", fail)
        with pytest.raises(SystemExit, match="error: what is wrong"):
            call("--data", tiny)

    @pytest.mark.fault("disk full while saving")
    def test_a_full_disk_does_too(self, call, tiny, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "the disk is full: saving last.pt needs 45 MB")

        monkeypatch.setattr(command_line, "train", full)
        with pytest.raises(SystemExit, match="error: .*the disk is full"):
            call("--data", tiny)


def launch(processes, *arguments):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    options += ["--multi_gpu"] if processes > 1 else ["--cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([*command, *options, *arguments], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path):
    script = str(project_root() / "tests" / "two_processes.py")
    found = []
    for processes in (1, 2):
        launch(processes, script, str(tmp_path / f"{processes}.pt"), str(tmp_path / f"run {processes}"))
        found.append(torch.load(tmp_path / f"{processes}.pt"))
    one, two = found
    assert one["seen"] == [7]
    assert two["seen"] == [4, 3]
    assert one["outputs"].shape == two["outputs"].shape == (16, 1)
    torch.testing.assert_close(probabilities(one["outputs"]), probabilities(two["outputs"]), rtol=0, atol=1e-6)
    assert two["validated"] == pytest.approx(one["validated"], rel=1e-5)
    assert two["trained"] == pytest.approx(one["trained"], rel=1e-5)
    assert any(gradient.any() for gradient in one["gradients"].values())
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-4)
    for name, value in one["best"].items():
        torch.testing.assert_close(two["best"][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.real_network
def test_two_processes_train_like_one_on_the_sample():
    settings = Settings(
        image_size=64, epochs=6, weights="none", learning_rate=1e-3, device="cpu", precision="float32", augment="light"
    )
    one = train(settings).history
    given = "--image-size 64 --epochs 6 --weights none --learning-rate 1e-3 --device cpu --precision float32"
    given += " --augment light"
    printed = launch(2, "-m", "xray_helpers.training", "--fresh", *given.split())
    assert printed.count("best in epoch") == 1  # one process speaks
    two = pd.read_csv(settings.run_folder / "history.csv")
    assert len(two) == 6
    kept = [history.loc[history["val_loss"].idxmin(), "val_auc"] for history in (one, two)]
    assert min(kept) > 0.95
    assert kept[1] == pytest.approx(kept[0], abs=0.03)
