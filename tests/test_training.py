import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from xray_helpers import record, steps, training
from xray_helpers.checkpoint import LAST, resume
from xray_helpers.dataset import make_loaders
from xray_helpers.facts import BEST, CheckpointError
from xray_helpers.files import project_root
from xray_helpers.inference import loss_of, probabilities, run_network, start_accelerator
from xray_helpers.model import WeightsError, build_model
from xray_helpers.settings import Settings
from xray_helpers.steps import NonFiniteLossError, find_learning_rate, start_model
from xray_helpers.training import fit
from xray_helpers.transforms import Preparation

HISTORY = [
    "stage", "epoch", "train_loss", "val_loss", "val_auc", "val_accuracy", "learning_rate", "seconds",
    "images_per_second",
]  # fmt: skip


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """A file of weights, so that a run has a head stage without a network."""
    torch.manual_seed(7)
    file = tmp_path_factory.mktemp("weights") / "pretrained.pth"
    torch.save(build_model("resnet18", 1, "none").state_dict(), file)
    return file


@pytest.fixture
def settings(tiny, pretrained):
    return Settings(
        data=str(tiny), image_size=32, batch_size=16, epochs=3, weights=str(pretrained), device="cpu", augment="none"
    )


def weights_of(run):
    return load_file(run.folder / BEST)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def results(history):
    """A history without what depends on the clock."""
    return history.drop(columns=["seconds", "images_per_second"])


def test_a_run_learns_and_writes_its_files(settings, home):
    # Larger images than elsewhere, so that lesions can be seen, and no weights to start from.
    run = fit(replace(settings, image_size=64, epochs=8, weights="none", learning_rate=1e-3))
    assert list(run.history) == HISTORY
    assert run.history["stage"].tolist() == ["fine-tune"] * 8
    assert run.history["train_loss"].iloc[-1] < 0.7 * run.history["train_loss"].iloc[0]
    assert run.history["val_auc"].max() > 0.85
    assert run.model.about.epoch == run.history.loc[run.history["val_loss"].idxmin(), "epoch"]
    assert {path.name for path in run.folder.iterdir()} == {*record.FILES, ".lock"}
    assert (home / "models" / "latest.txt").read_text().strip() == run.folder.name
    assert run.folder.name == replace(settings, image_size=64, epochs=8, weights="none", learning_rate=1e-3).run_name


def test_the_head_comes_first_when_there_are_weights_to_rest_on(settings):
    run = fit(settings)
    assert run.history["stage"].tolist() == ["head"] + ["fine-tune"] * 3
    assert run.history["epoch"].tolist() == [0, 1, 2, 3]


def test_the_head_stage_moves_the_head_and_nothing_else(settings):
    loaders, accelerator = make_loaders(settings), start_accelerator(settings)
    model, _ = start_model(settings, loaders)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps.train_head(model, loaders, Preparation(32), accelerator)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"fc.weight", "fc.bias"}


def test_the_first_loss_is_the_entropy_of_the_training_labels(settings):
    loaders = make_loaders(settings)
    model, _ = start_model(settings, loaders)
    counts = np.array(list(loaders.train_set.counts().values()))
    shares = counts / counts.sum()
    logits = run_network(model.eval(), torch.utils.data.DataLoader(loaders.train_set, 16), Preparation(32))
    assert float(loss_of(logits, loaders.train_set.labels)) == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(settings):
    first = fit(settings)
    kept, history = weights_of(first), first.history
    again = fit(settings, fresh=True)
    assert same(weights_of(again), kept)
    pd.testing.assert_frame_equal(results(again.history), results(history))
    assert not same(weights_of(fit(replace(settings, seed=1))), kept)


@pytest.mark.parametrize("augment", ["none", "strong"])
@pytest.mark.parametrize("stop", ["head", 1, 2])
def test_a_run_that_was_stopped_ends_as_if_it_had_not(settings, monkeypatch, stop, augment):
    settings = replace(settings, augment=augment)
    whole = fit(settings)
    kept, last, history = weights_of(whole), resume(whole.folder), whole.history
    real = record.Record.keep

    def keep_then_stop(self, model, stage, epoch, *rest):
        real(self, model, stage, epoch, *rest)
        if stop in (stage, epoch):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(record.Record, "keep", keep_then_stop)
        with pytest.raises(KeyboardInterrupt):
            fit(settings, fresh=True)
    assert resume(whole.folder)["epoch"] == (0 if stop == "head" else stop)
    torch.manual_seed(12345)  # another state than in the first run
    resumed = fit(settings)
    assert same(weights_of(resumed), kept)
    assert same(resume(resumed.folder)["model"], last["model"])
    pd.testing.assert_frame_equal(results(resumed.history), results(history))


def test_a_finished_run_is_returned_and_not_trained_again(settings, monkeypatch):
    first = fit(settings)
    monkeypatch.setattr(training, "_train", lambda *_: pytest.fail("trained again"))
    again = fit(settings)
    assert same(weights_of(again), weights_of(first))
    pd.testing.assert_frame_equal(again.history, first.history)


def test_a_side_comparison_does_not_become_the_latest_run(settings, home):
    main = fit(replace(settings, epochs=1))
    side = fit(replace(settings, epochs=1, seed=5), main=False)
    assert side.folder != main.folder
    assert (home / "models" / "latest.txt").read_text().strip() == main.folder.name


def test_every_validation_image_counts_once_and_test_stays_closed(settings, monkeypatch):
    settings = replace(settings, epochs=1, batch_size=7)
    real = training.make_loaders
    monkeypatch.setattr(training, "make_loaders", lambda s, test=False: pytest.fail("test opened") if test else real(s))
    run = fit(settings)
    manifest = make_loaders(settings).manifest
    rows = manifest[manifest["split"] == "val"]
    table = pd.read_csv(run.folder / "predictions-val.csv")
    assert len(rows) % 7
    assert list(table) == ["path", "truth", "probability", "calibrated"]
    assert table["path"].tolist() == rows["path"].tolist()
    assert table["truth"].tolist() == (rows["label"] == "PNEUMONIA").astype(int).tolist()
    slope, intercept = run.model.about.calibration["slope"], run.model.about.calibration["intercept"]
    logit = np.log(table["probability"] / (1 - table["probability"]))
    np.testing.assert_allclose(table["calibrated"], 1 / (1 + np.exp(-slope * logit - intercept)), atol=1e-6)


def test_three_causes_have_a_probability_each(settings):
    run = fit(replace(settings, task="cause", epochs=1))
    table = pd.read_csv(run.folder / "predictions-val.csv")
    assert list(table) == ["path", "truth", "p_normal", "p_bacterial", "p_viral"]
    np.testing.assert_allclose(table.iloc[:, 2:].sum(axis=1), 1, atol=1e-6)


@pytest.mark.fault("loss that is no number")
def test_a_planted_nan_stops_the_run_and_the_best_model_stays(settings, monkeypatch):
    real, calls = steps.loss_of, []

    def poisoned(logits, labels):
        loss = real(logits, labels)
        if logits.requires_grad and len(logits) == 16 and logits.shape[1] == 1:
            calls.append(1)
            if len(calls) == 6:  # the second batch of the second epoch: there are four an epoch
                return loss * float("nan")
        return loss

    monkeypatch.setattr(steps, "HEAD_BATCH", 15)
    monkeypatch.setattr(steps, "loss_of", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"The loss is nan in batch 2 of epoch 2, at a learning rate of \d"):
        fit(settings)
    folder = settings.run_folder
    assert resume(folder)["epoch"] == 1
    assert all(value.isfinite().all() for value in load_file(folder / BEST).values())


def test_a_model_of_no_finite_validation_loss_is_never_the_best(settings, monkeypatch):
    monkeypatch.setattr(record, "run_network", lambda *_: torch.full((16, 1), float("nan")))
    with pytest.raises(CheckpointError, match="no epoch of .* had a finite validation loss; lower LEARNING_RATE"):
        fit(settings)
    assert not (settings.run_folder / BEST).exists()


@pytest.mark.fault("GPU memory too small")
def test_too_little_gpu_memory_names_a_smaller_batch(settings, monkeypatch):
    def out_of_memory(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    fit_head = replace(settings, epochs=1)
    monkeypatch.setattr(steps.Augmentation, "forward", out_of_memory)
    with pytest.raises(MemoryError, match="too small for 16 images of 32 × 32 pixels a step. Set BATCH_SIZE to 8"):
        fit(fit_head)


@pytest.mark.fault("two runs in one folder")
def test_two_runs_never_write_to_one_folder(settings):
    held = record.alone(settings.run_folder, start_accelerator(settings))
    with held, pytest.raises(CheckpointError, match="another process is training in models/"):
        fit(settings)


@pytest.mark.fault("a checkpoint of something else")
def test_the_state_of_another_run_is_refused(settings):
    fit(replace(settings, epochs=1))
    folder = replace(settings, epochs=1).run_folder
    state = resume(folder)
    for name in ("arch", "classes", "image_size", "resize", "fingerprint", "run"):
        torch.save({**state, "of": state["of"] | {name: "other"}}, folder / LAST)
        with pytest.raises(CheckpointError, match=rf"trained with another {name} \(other, now .*--fresh"):
            fit(replace(settings, epochs=1))
    del state["model"]["fc.bias"]
    torch.save({**state, "epoch": 0}, folder / LAST)
    with pytest.raises(CheckpointError, match=r"last.pt does not fit resnet18: 1 entries are missing.*fc\.bias"):
        fit(replace(settings, epochs=1))


class TestWithoutWeights:
    @pytest.fixture(autouse=True)
    def no_network(self, monkeypatch):
        def unreachable(arch, outputs, weights):
            if weights == "imagenet":
                raise WeightsError("cannot be reached")
            return build_model(arch, outputs, weights)

        monkeypatch.setattr(steps, "build_model", unreachable)
        steps._say_once.cache_clear()

    @pytest.mark.fault("no network")
    def test_real_data_is_an_error(self, settings):
        with pytest.raises(WeightsError, match="cannot be reached"):
            fit(replace(settings, weights="imagenet"))

    def test_the_sample_goes_on_from_random_weights_and_says_so(self, settings, tiny, monkeypatch, capsys):
        import xray_helpers.download

        real = xray_helpers.download.phantoms.write_dataset
        monkeypatch.setattr(xray_helpers.download.phantoms, "write_dataset", lambda folder, **_: real(folder, 3, 60))
        run = fit(replace(settings, data="sample", weights="imagenet", epochs=1))
        assert "The sample is trained from random weights instead." in capsys.readouterr().out
        steps.start_model(replace(settings, data="sample", weights="imagenet"), make_loaders(settings))
        assert "random weights" not in capsys.readouterr().out  # said once
        assert run.model.about.weights == "none"
        monkeypatch.undo()
        state = build_model("resnet18", 1, "none").state_dict()
        monkeypatch.setattr("xray_helpers.model.imagenet_weights", lambda _: state)
        monkeypatch.setattr(training, "can_have_weights", lambda _: True)
        monkeypatch.setenv("XRAY_HOME", str(run.folder.parent.parent))
        again = fit(replace(settings, data="sample", weights="imagenet", epochs=1))
        assert "the pretrained ones can be had now, so it starts over" in capsys.readouterr().out
        assert again.model.about.weights == "imagenet"


def test_the_learning_rate_finder_sweeps_and_keeps_nothing(settings):
    loaders = make_loaders(settings)
    found = find_learning_rate(settings, loaders, start_accelerator(settings), steps=12)
    assert list(found) == ["learning_rate", "loss", "smoothed"]
    assert found["learning_rate"].iloc[0] == pytest.approx(1e-6)
    assert found["learning_rate"].is_monotonic_increasing
    assert not settings.run_folder.exists()


def test_the_learning_rate_finder_begins_where_fine_tuning_does(settings, monkeypatch):
    settings = replace(settings, weights="none", batch_size=40)
    loaders, used = make_loaders(settings), []
    real = steps.Augmentation
    monkeypatch.setattr(steps, "Augmentation", lambda strength, size: used.append(strength) or real(strength, size))
    monkeypatch.setattr(steps, "train_head", lambda *_: pytest.fail("random features are nothing to rest on"))
    found = find_learning_rate(settings, loaders, start_accelerator(settings), steps=2)
    shares = np.array(list(loaders.train_set.counts().values())) / len(loaders.train_set)
    assert found["loss"].iloc[0] == pytest.approx(-(shares * np.log(shares)).sum(), abs=0.1)
    assert used == ["none"]


def test_bf16_learns_too(settings):
    run = fit(replace(settings, precision="bf16", epochs=1))
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights_of(run).values())


def launch(processes, *arguments):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    options += ["--multi_gpu"] if processes > 1 else ["--cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, *options, *arguments], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_two_processes_compute_what_one_does(tiny, tmp_path):
    script = str(project_root() / "tests" / "two_processes.py")
    found = []
    for processes in (1, 2):
        launch(processes, script, str(tiny), str(tmp_path / f"{processes}.pt"))
        found.append(torch.load(tmp_path / f"{processes}.pt"))
    one, two = found
    assert one["seen"] == [8]
    assert two["seen"] == [4, 4]
    assert one["outputs"].shape == two["outputs"].shape
    torch.testing.assert_close(probabilities(one["outputs"]), probabilities(two["outputs"]), rtol=0, atol=1e-6)
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-3, atol=1e-5)


def test_two_processes_train_like_one_on_the_sample():
    settings = Settings(image_size=64, epochs=6, weights="none", learning_rate=1e-3, device="cpu", precision="float32")
    one = fit(settings).history
    given = "--image-size 64 --epochs 6 --weights none --learning-rate 1e-3 --device cpu --precision float32"
    printed = launch(2, "-m", "xray_helpers.training", "--fresh", *given.split())
    assert printed.count("best in epoch") == 1  # one process speaks
    two = pd.read_csv(settings.run_folder / "history.csv")
    assert len(two) == 6
    kept = [history.loc[history["val_loss"].idxmin(), "val_auc"] for history in (one, two)]
    assert min(kept) > 0.95
    assert kept[1] == pytest.approx(kept[0], abs=0.03)


def test_the_command_line_does_what_fit_does(settings, tiny, pretrained, monkeypatch, capsys):
    expected = fit(replace(settings, epochs=1))
    kept = weights_of(expected)
    arguments = f"--fresh --image-size 32 --batch-size 16 --epochs 1 --device cpu --augment none --data {tiny}"
    monkeypatch.setattr(sys, "argv", ["training", *arguments.split(), "--weights", str(pretrained)])
    training.main()
    assert same(load_file(expected.folder / BEST), kept)
    assert f"models/{expected.folder.name}: best in epoch" in capsys.readouterr().out


def test_the_command_line_ends_with_one_clear_line(tiny, monkeypatch, tmp_path):
    (tmp_path / "wrong.pth").write_text("no weights")
    monkeypatch.setattr(sys, "argv", ["training", "--data", str(tiny), "--weights", str(tmp_path / "wrong.pth")])
    with pytest.raises(SystemExit, match=r"error: wrong.pth cannot be read"):
        training.main()


def test_a_full_disk_ends_the_command_line_with_one_clear_line_too(tiny, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "the disk is full: saving last.pt needs 45 MB")

    monkeypatch.setattr(training, "fit", full)
    monkeypatch.setattr(sys, "argv", ["training", "--data", str(tiny)])
    with pytest.raises(SystemExit, match="error: .*the disk is full"):
        training.main()
