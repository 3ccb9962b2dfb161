import inspect
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from xray_helpers.data.dataset import EpochSampler, make_loaders, prepare_data
from xray_helpers.data.transforms import Augmentation, Preprocess
from xray_helpers.files import CheckpointError, XrayError
from xray_helpers.inference import classification_loss, make_accelerator, run_network
from xray_helpers.metrics import scores
from xray_helpers.settings import Settings
from xray_helpers.training import engine
from xray_helpers.training.checkpoint import BEST, LAST, RUN_FILES, load_model, resume
from xray_helpers.training.engine import (
    epoch_seed,
    fit,
    fit_head,
    train_one_epoch,
    validate,
)
from xray_helpers.training.model import build_model, freeze

HISTORY = [
    "stage", "epoch", "train_loss", "val_loss", "val_auc", "val_accuracy", "learning_rate", "seconds",
    "images_per_second",
]  # fmt: skip
HERE = {"device": "cpu", "precision": "float32"}


class FiveLayers(nn.Sequential):
    """A small convolutional network of the caller's own."""

    def __init__(self, outputs=1, dropout=0.0):
        layers = []
        for before, after in ((3, 8), (8, 8), (8, 16), (16, 16)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(16, outputs))


class Squares(Dataset):
    """Colour images, float (3, 24, 24) of 0…1, with a bright square; its colour is the class."""

    def __init__(self, count, classes=2, seed=0):
        draw = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % classes
        self.images = 0.3 * torch.rand(count, 3, 24, 24, generator=draw)
        for image, label, (row, column) in zip(
            self.images, self.labels, torch.randint(0, 12, (count, 2), generator=draw), strict=True
        ):
            image[label, row : row + 12, column : column + 12] += 0.6

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def colour_loaders(classes=2, **options):
    """A pair of PyTorch's own loaders, which stack images one by one."""
    options = {"batch_size": 8, "shuffle": True} | options
    return DataLoader(Squares(45, classes), **options), DataLoader(Squares(21, classes, seed=1), batch_size=6)


def network(outputs=1, seed=0, weights="none"):
    """A project's network, its weights drawn from this seed; it passes for a pretrained one where `weights` says so."""
    torch.manual_seed(seed)
    model = build_model("resnet18", outputs, "none")
    model.weights = weights
    return model


def own(seed=0, **options):
    torch.manual_seed(seed)
    return FiveLayers(**options)


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory):
    """What the project's loaders read, prepared once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_HOME", str(tmp_path_factory.mktemp("prepared")))
        return prepare_data(Settings(data=str(tiny), image_size=32))


@pytest.fixture
def loaders(data):
    return make_loaders(data, batch_size=16)


@pytest.fixture
def accelerator():
    return make_accelerator("cpu", "float32")


def weights_of(run):
    return load_file(run.folder / BEST)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def copy_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def results(history):
    """A history without what depends on the clock."""
    return history.drop(columns=["seconds", "images_per_second"])


def assert_equal_runs(one, two):
    assert same(weights_of(one), weights_of(two))
    assert same(resume(one.folder)["model"], resume(two.folder)["model"])
    assert one.model.info == two.model.info
    pd.testing.assert_frame_equal(results(one.history), results(two.history), check_exact=True)


def constant(optimizer):
    """A schedule that leaves the rates as they are."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


class TestOneEpoch:
    @pytest.fixture
    def batches(self):
        torch.manual_seed(0)
        return [(torch.rand(size, 3, 16, 16), torch.randint(0, 2, (size,))) for size in (6, 3)]

    @pytest.fixture
    def model(self):
        return own().eval()

    def sgd(self, model, rate):
        return torch.optim.SGD(model.parameters(), rate)

    def test_its_loss_is_the_mean_over_images_and_not_over_batches(self, model, batches, accelerator):
        optimizer = accelerator.prepare(self.sgd(model, 0.0))
        with torch.no_grad():
            every = [float(classification_loss(model(images), labels)) for images, labels in batches]
        loss, count = train_one_epoch(
            model, batches, optimizer, constant(optimizer), accelerator, update_statistics=False
        )
        assert count == 9
        assert loss == pytest.approx((6 * every[0] + 3 * every[1]) / 9, rel=1e-5)

    def test_each_batch_moves_the_weights_against_its_gradient(self, model, batches, accelerator):
        expected = own().eval()
        for images, labels in batches:
            expected.zero_grad()
            classification_loss(expected(images), labels).backward()
            with torch.no_grad():
                for parameter in expected.parameters():
                    parameter.sub_(0.1 * parameter.grad)
        optimizer = accelerator.prepare(self.sgd(model, 0.1))
        train_one_epoch(model, batches, optimizer, constant(optimizer), accelerator, update_statistics=False)
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, msg=name)
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_images_are_augmented_as_they_come_and_then_preprocessed(self, model, accelerator):
        images, labels = torch.full((4, 3, 16, 16), 3, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
        seen = []

        def augment(batch):
            seen.append((batch.dtype, float(batch.float().mean())))
            return batch.float() + 1

        def preprocess(batch):
            seen.append((batch.dtype, float(batch.mean())))
            return batch * 10

        model.register_forward_pre_hook(lambda _, inputs: seen.append(("network", float(inputs[0].mean()))))
        optimizer = accelerator.prepare(self.sgd(model, 0.1))
        train_one_epoch(model, [(images, labels)], optimizer, constant(optimizer), accelerator, preprocess, augment)
        assert seen == [(torch.uint8, 3), (torch.float32, 4), ("network", 40)]

    @pytest.mark.parametrize("update", [True, False])
    def test_statistics_follow_the_batches_or_stay(self, model, batches, accelerator, update):
        optimizer, before = accelerator.prepare(self.sgd(model, 0.1)), model[1].running_mean.clone()
        train_one_epoch(model, batches, optimizer, constant(optimizer), accelerator, update_statistics=update)
        assert model.training
        assert torch.equal(model[1].running_mean, before) is not update

    def test_the_schedule_moves_once_per_batch(self, model, batches, accelerator):
        optimizer = accelerator.prepare(self.sgd(model, 1.0))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        train_one_epoch(model, batches * 2, optimizer, schedule, accelerator)
        assert optimizer.param_groups[0]["lr"] == 0.5**4

    def test_own_losses_see_float32_logits_whatever_the_arithmetic(self, model, batches):
        accelerator, seen = make_accelerator("cpu", "bf16"), []

        def loss(logits, labels):
            seen.append((logits.dtype, logits.shape, labels.tolist()))
            return (logits**2).mean()

        optimizer = accelerator.prepare(self.sgd(model, 0.1))
        train_one_epoch(model, batches, optimizer, constant(optimizer), accelerator, loss=loss)
        assert seen == [(torch.float32, (len(labels), 1), labels.tolist()) for _, labels in batches]

    def test_no_batch_is_an_error(self, model, accelerator):
        optimizer = accelerator.prepare(self.sgd(model, 0.1))
        with pytest.raises(ValueError, match="no batch to train on: the training images are fewer than the batch size"):
            train_one_epoch(model, [], optimizer, constant(optimizer), accelerator)

    @pytest.mark.fault("loss that is no number")
    def test_a_loss_that_is_no_number_is_named_within_twenty_batches(self, model, batches, accelerator):
        given = []

        def many():
            for number in range(1, 60):
                given.append(number)
                yield batches[0]

        def loss(logits, labels):
            return classification_loss(logits, labels) * (math.inf if len(given) in (13, 14) else 1)

        optimizer = accelerator.prepare(torch.optim.SGD([
            {"params": [*model.parameters()][:2], "lr": 0.0}, {"params": [*model.parameters()][2:], "lr": 0.025},
        ]))  # fmt: skip
        what = (
            r"^The loss is inf in batch 13 of epoch 4, at a learning rate of 0.025. Lower LEARNING_RATE; the best mod"
        )
        with pytest.raises(XrayError, match=what):
            train_one_epoch(model, many(), optimizer, constant(optimizer), accelerator, loss=loss, epoch=4)
        assert given[-1] == 20

    @pytest.mark.fault("loss that is no number")
    def test_the_last_batches_are_looked_at_too(self, model, batches, accelerator):
        def loss(logits, labels):
            return classification_loss(logits, labels) * (math.nan if len(labels) == 3 else 1)

        optimizer = accelerator.prepare(self.sgd(model, 0.1))
        with pytest.raises(XrayError, match="The loss is nan in batch 2 of epoch 1"):
            train_one_epoch(model, batches, optimizer, constant(optimizer), accelerator, loss=loss)

    @pytest.mark.fault("GPU memory too small")
    def test_a_batch_too_small_for_batch_normalisation_names_the_setting(self, accelerator):
        """Field case 7."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        one = [(torch.rand(1, 1, 2, 2), torch.tensor([1]))]
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        with pytest.raises(ValueError, match="A batch of one image is too small .* Set BATCH_SIZE to 2 or more"):
            train_one_epoch(model, one, optimizer, schedule, accelerator)

    def test_too_little_gpu_memory_names_a_smaller_batch(self, model, accelerator):
        def out_of_memory(*_):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        optimizer = accelerator.prepare(self.sgd(model, 0.1))
        for size, smaller in ((16, 8), (1, 1)):
            batch = torch.zeros(size, 1, 32, 32), torch.zeros(size)
            what = rf"small for batches of {size} images of \(1, 32, 32\). Set BATCH_SIZE to {smaller} or less; .* kept"
            with pytest.raises(MemoryError, match=what):
                train_one_epoch(model, [batch], optimizer, constant(optimizer), accelerator, augment=out_of_memory)

    def process(self, index, count, skipped=False):
        """As `accelerator`, seen from one of several processes, without any other."""
        return SimpleNamespace(
            process_index=index, num_processes=count, is_main_process=index == 0, device=torch.device("cpu"),
            mixed_precision="no", autocast=torch.no_grad, optimizer_step_was_skipped=skipped,
            backward=lambda loss: None, reduce=lambda value, how: value,
        )  # fmt: skip

    @pytest.mark.parametrize("sizes", [(6, 7), (5, 2), (1, 4)])
    def test_several_processes_share_each_batch_so_that_their_mean_is_that_of_one(self, model, sizes):
        torch.manual_seed(3)
        batches = [(torch.rand(size, 3, 16, 16), torch.randint(0, 2, (size,))) for size in sizes]
        found = []
        for count in (1, 2):
            shares, seen = [], []
            for index in range(count):

                def loss(logits, labels, seen=seen):
                    seen.append(len(labels))
                    return classification_loss(logits, labels)

                optimizer = self.sgd(model, 0.0)
                shares.append(
                    train_one_epoch(
                        model, batches, optimizer, constant(optimizer), self.process(index, count), loss=loss,
                        update_statistics=False,
                    )
                )  # fmt: skip
            assert {images for _, images in shares} == {sum(size for size in sizes if size >= count)}
            assert sum(seen) == sum(size for size in sizes if size >= count)
            found.append(np.mean([loss for loss, _ in shares]))
        if min(sizes) > 1:
            assert found[1] == pytest.approx(found[0], rel=1e-5)
        assert math.isfinite(found[1])  # a batch of fewer images than processes is left out

    @pytest.mark.parametrize("index", [0, 1])
    def test_one_process_shows_how_far_it_is(self, model, batches, capsys, index):
        optimizer = self.sgd(model, 0.0)
        process = self.process(index, 2)
        train_one_epoch(model, batches, optimizer, constant(optimizer), process, epoch=7, update_statistics=False)
        assert ("epoch 7:" in capsys.readouterr().err) is (index == 0)

    def test_a_step_that_float16_skipped_is_none_of_the_schedule_s(self, model, batches):
        optimizer = self.sgd(model, 1.0)
        for skipped, rate in ((True, 1.0), (False, 0.25)):
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
            optimizer.step()
            train_one_epoch(model, batches, optimizer, schedule, self.process(0, 1, skipped))
            assert optimizer.param_groups[0]["lr"] == rate


class TestValidate:
    @pytest.fixture
    def batches(self):
        torch.manual_seed(0)
        return [(torch.rand(size, 3, 16, 16), torch.arange(size) % 2) for size in (5, 4)]

    @pytest.mark.parametrize("alone", [True, False])
    def test_all_images_are_judged_at_once_in_their_order(self, batches, accelerator, alone):
        model, images = own(), torch.cat([images for images, _ in batches])
        found, logits, truth = validate(model, batches, None if alone else accelerator, preprocess=lambda x: 2 * x)
        assert not model.training
        assert truth.tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 1]
        with torch.no_grad():
            torch.testing.assert_close(logits, model(2 * images))
        assert found == scores(truth.numpy(), logits.squeeze(1).sigmoid().numpy()) | {
            "loss": float(classification_loss(logits, truth))
        }

    def test_own_loss_and_metrics_are_used(self, batches):
        def share(truth, probability):
            return {"share": (probability > 0.5).mean(), "n": len(truth), "loss_of_mine": 0.25}

        found, _, _ = validate(own(), batches, loss=lambda logits, labels: (labels == 1).sum() + 0.5, metrics=share)
        assert found["loss"] == 4.5
        assert (found["n"], found["loss_of_mine"]) == (9, 0.25)
        assert list(found)[:2] == ["loss", "auc"]

    def test_logits_that_are_no_numbers_have_no_score(self, batches):
        model = own()
        nn.init.constant_(model[-1].bias, math.nan)
        found, logits, truth = validate(model, batches, metrics=lambda *_: pytest.fail("nothing to measure"))
        assert list(found) == ["loss", "auc", "accuracy"]
        assert all(math.isnan(value) for value in found.values())
        assert len(logits) == len(truth) == 9


class TestAnyNetwork:
    """`fit` with networks, images, losses and the rest of the caller's own."""

    def test_a_network_of_one_s_own_learns_from_the_shared_loaders(self, loaders, tmp_path):
        model = own()
        run = fit(model, loaders, tmp_path / "mine", epochs=4, learning_rate=3e-3, **HERE)
        assert list(run.history) == HISTORY
        assert run.history["stage"].tolist() == ["fine-tune"] * 4
        assert run.history["epoch"].tolist() == [1, 2, 3, 4]
        assert run.history["train_loss"].iloc[-1] < run.history["train_loss"].iloc[0]
        assert {path.name for path in run.folder.iterdir()} == {BEST, LAST, "history.csv", "trained-on.csv"}
        info = run.model.info
        assert run.model is model
        assert (info.arch, info.classes, info.weights) == ("FiveLayers", ("NORMAL", "PNEUMONIA"), "none")
        assert (info.preprocess, info.fingerprint, info.data) == (Preprocess(32), loaders.fingerprint, "tiny0")
        assert info.epoch == run.history.loc[run.history["val_loss"].idxmin(), "epoch"]
        assert info.val_loss == run.history["val_loss"].min()
        loaded = load_model(run.folder / BEST, into=FiveLayers())
        assert not run.model.training
        assert next(run.model.parameters()).device.type == "cpu"
        expected = run_network(run.model, loaders.val, info.preprocess)
        assert torch.equal(run_network(loaded, loaders.val, info.preprocess), expected)
        assert float(classification_loss(expected, loaders.val.dataset.labels)) == pytest.approx(
            info.val_loss, rel=1e-5
        )

    @pytest.mark.parametrize(("classes", "outputs"), [(2, 1), (2, 2), (3, 3)])
    def test_colour_images_of_one_s_own_loaders_need_nothing_of_this_package(self, tmp_path, classes, outputs):
        loaders = colour_loaders(classes)
        run = fit(own(outputs=outputs), loaders, tmp_path, epochs=6, learning_rate=1e-2, **HERE)
        assert run.history["train_loss"].iloc[-1] < 0.7 * run.history["train_loss"].iloc[0]
        assert run.history["val_accuracy"].max() > 1 / classes
        assert run.model.info.classes == tuple("012"[:classes])
        assert run.model.info.preprocess is None
        loaded = load_model(tmp_path / BEST, into=FiveLayers(outputs))
        images = Squares(5, classes, seed=2).images
        assert torch.equal(loaded(images), run.model(images))

    def test_what_one_gives_is_what_is_used(self, tmp_path):
        used = {"steps": [], "callback": [], "losses": 0}
        model, loaders = own(), colour_loaders()

        def loss(logits, labels):
            used["losses"] += 1
            return classification_loss(logits, labels) + 10

        def optimizer(network):
            assert network is model
            return torch.optim.SGD(network.parameters(), 0.5, momentum=0.9)

        def schedule(optimizer, steps):
            used["steps"].append(steps)
            return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)

        def metrics(truth, probability):
            assert truth.shape == probability.shape == (21,)
            return {"mean": probability.mean(), "positives": int(truth.sum())}

        def tell(row, network):
            assert network is model
            assert resume(tmp_path)["epoch"] == row["epoch"]
            assert pd.read_csv(tmp_path / "history.csv")["epoch"].iloc[-1] == row["epoch"]
            used["callback"].append(row)

        run = fit(
            model, loaders, tmp_path, 2, loss=loss, optimizer=optimizer, schedule=schedule, metrics=metrics,
            callbacks=[tell, tell], classes=("red", "green"), preprocess=lambda images: 2 * images - 1,
            augment=lambda images: images.flip(-1), name="mine", **HERE,
        )  # fmt: skip
        assert used["steps"] == [12]  # two epochs of six batches
        assert used["losses"] == 14  # and one per validation
        assert list(run.history) == [*HISTORY[:6], "val_mean", "val_positives", *HISTORY[6:]]
        assert run.history["val_positives"].tolist() == [10, 10]
        assert (run.history[["train_loss", "val_loss"]] > 10).all(axis=None)
        assert run.history["learning_rate"].tolist() == pytest.approx([0.25, 0])
        assert [row["epoch"] for row in used["callback"]] == [1, 1, 2, 2]
        assert run.model.info.classes == ("red", "green")
        assert resume(tmp_path)["identity"]["name"] == "mine"

    def test_numbers_of_numpy_can_be_given(self, tmp_path):
        def schedule(optimizer, _):
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: np.float64(1.0))

        def go_on():
            return fit(
                own(), colour_loaders(), tmp_path, 1, np.float64(1e-3),
                metrics=lambda truth, probability: {"mean": np.float32(probability.mean())}, schedule=schedule,
                classes=[*np.array(["red", "green"])], **HERE,
            )  # fmt: skip

        first = go_on()
        assert_equal_runs(go_on(), first)
        assert first.model.info.classes == ("red", "green")

    def test_an_error_in_a_callback_stops_the_run_and_loses_nothing(self, tmp_path):
        whole = fit(own(), colour_loaders(), tmp_path / "whole", **HERE)

        def stop(row, _):
            if row["epoch"] == 2:
                raise ZeroDivisionError("of the caller's own")

        with pytest.raises(ZeroDivisionError, match="of the caller's own"):
            fit(own(), colour_loaders(), tmp_path / "run", callbacks=[stop], **HERE)
        assert resume(tmp_path / "run")["epoch"] == 2
        assert_equal_runs(fit(own(), colour_loaders(), tmp_path / "run", **HERE), whole)

    def test_what_is_not_chosen_is_the_project_s(self, loaders, tmp_path, monkeypatch):
        defaults = {name: entry.default for name, entry in inspect.signature(fit).parameters.items()}
        assert {name: defaults[name] for name in ("epochs", "learning_rate", "seed", "device", "precision")} == {
            "epochs": 3, "learning_rate": 3e-4, "seed": 0, "device": "auto", "precision": "auto",
        }  # fmt: skip
        used = []
        monkeypatch.setattr(engine, "train_one_epoch", lambda *given: used.append(given) or (0.5, 10))
        for given in (loaders, (loaders.train, loaders.val), SimpleNamespace(train=loaders.train, val=loaders.val)):
            whole = given is loaders
            preprocess = None if whole else loaders.preprocess
            run = fit(own(), given, tmp_path, 1, preprocess=preprocess, fresh=True, **HERE)
            (_, _, optimizer, schedule, _, preprocess, augment, loss, epoch, update) = used.pop()
            assert preprocess == loaders.preprocess
            assert (isinstance(augment, Augmentation) and augment.strength == "style") if whole else augment is None
            assert loss is classification_loss
            assert (epoch, update) == (1, True)
            assert isinstance(schedule, torch.optim.lr_scheduler.OneCycleLR)
            assert schedule.total_steps == len(loaders.train)
            assert isinstance(optimizer.optimizer, torch.optim.AdamW)
            assert [group["max_lr"] for group in optimizer.param_groups] == [3e-4]
            assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01}
            assert run.model.info.classes == (loaders.classes if whole else ("0", "1"))
            assert run.model.info.fingerprint == (loaders.fingerprint if whole else "")

    def test_all_epochs_but_the_last_of_a_cycle_see_small_images(self, loaders, tmp_path, monkeypatch):
        seen = []
        real = engine.inference.network_input

        def watched(images, preprocess, accelerator):
            inputs = real(images, preprocess, accelerator)
            seen.append((torch.is_inference_mode_enabled(), tuple(inputs.shape[1:])))
            return inputs

        monkeypatch.setattr(engine.inference, "network_input", watched)
        model = network(weights="start.pth")
        run = fit(model, loaders, tmp_path, 3, small=24, more_epochs=0, **HERE)
        steps, size = len(loaders.train), [shape for learning, shape in seen if not learning]
        assert size == [(3, 24, 24)] * 2 * steps + [(3, 32, 32)] * steps
        assert seen[0] == (True, (3, 24, 24))  # the head is fitted on small ones, too
        val = [shape for judging, shape in seen[len(loaders.train) :] if judging]
        assert set(val) == {(3, 32, 32)}  # validation images keep their size
        assert run.model.info.preprocess == loaders.preprocess
        seen.clear()
        fit(network(weights="start.pth"), loaders, tmp_path, 3, small=24, more_epochs=2, **HERE)
        size = [shape for judging, shape in seen if not judging]
        assert size == [(3, 24, 24)] * steps + [(3, 32, 32)] * steps

    def test_small_images_go_through_the_same_augmentation_at_their_size(self, loaders, tmp_path, monkeypatch):
        used = []
        monkeypatch.setattr(engine, "train_one_epoch", lambda *given: used.append(given[5:7]) or (0.5, 10))
        own_step = nn.Hardtanh(0, 1)
        for augment in (Augmentation("strong", 32, flip=True), own_step):
            fit(own(), loaders, tmp_path, 2, augment=augment, small=24, fresh=True, **HERE)
        (_, first), (_, last), (_, own_first), (preprocess, own_last) = used
        assert (first.step.strength, first.step.size, first.step.flip) == ("strong", 24, True)
        assert (last.strength, last.size) == ("strong", 32)
        assert own_first is own_last is own_step  # at full size; the preprocessing shrinks what it made
        assert preprocess == loaders.preprocess

    def test_small_needs_to_know_the_preprocessing(self, tmp_path):
        with pytest.raises(ValueError, match="small=16 needs preprocess to be a Preprocess"):
            fit(own(), colour_loaders(), tmp_path, small=16, **HERE)

    def test_frozen_layers_and_small_images_make_another_run(self, loaders, tmp_path):
        fit(network(), loaders, tmp_path, 1, **HERE)
        with pytest.raises(CheckpointError, match="small"):
            fit(network(), loaders, tmp_path, 1, small=24, **HERE)
        model = network()
        freeze(model, "layer1")
        with pytest.raises(CheckpointError, match="frozen parameters"):
            fit(model, loaders, tmp_path, 1, **HERE)

    def test_pretrained_layers_learn_the_slower_the_nearer_they_are_to_the_input(self):
        optimizer = engine._default_optimizer(network(), 0.08, pretrained=True)
        assert [group["lr"] for group in optimizer.param_groups] == [0.08, 0.04, 0.02, 0.01, 0.005, 0.0025]
        assert engine._learning_rate(optimizer) == 0.08
        optimizer.param_groups[-1]["lr"] = 0.5
        assert engine._learning_rate(optimizer) == 0.5

    def test_batches_need_no_length(self, tmp_path):
        class Stream:
            """Batches in one order, of which nobody says how many there are."""

            def __iter__(self):
                yield from colour_loaders(shuffle=False)[0]

        steps = []

        def schedule(optimizer, total):
            steps.append(total)
            return constant(optimizer)

        run = fit(own(), (Stream(), colour_loaders()[1]), tmp_path, 2, schedule=schedule, **HERE)
        assert steps == [12]
        assert len(run.history) == 2

    def test_what_can_be_read_only_once_is_refused(self, tmp_path):
        train, val = colour_loaders()
        for pair in ((iter(train), val), (train, (batch for batch in val))):
            with pytest.raises(ValueError, match="can be read only once: give a list, a DataLoader"):
                fit(own(), pair, tmp_path, 2, **HERE)


class Listed:
    """The same batches each time, in an order that the epoch gives."""

    def __init__(self, batches):
        self.batches, self.epochs, self.epoch = batches, [], 0

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.epochs.append(epoch)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        yield from self.batches[self.epoch :] + self.batches[: self.epoch]


def every_kind_of_loaders(loaders):
    """Loaders whose order follows from the seed."""
    torch.manual_seed(0)
    shuffled, val = colour_loaders()
    dataset, batches = shuffled.dataset, list(shuffled)
    return {
        "project": loaders,
        "shuffled": (shuffled, val),
        "sampler with epochs": (DataLoader(dataset, batch_size=8, sampler=EpochSampler(45, 5)), val),
        "batches of a sampler with epochs": (
            DataLoader(dataset, batch_sampler=BatchSampler(EpochSampler(45, 5), 8, drop_last=True)), val
        ),
        "list": (batches, val),
        "own": (Listed(batches), val),
    }  # fmt: skip


class Stop(Exception):
    pass


def stop_after(*epochs):
    def stop(row, _):
        if row["epoch"] in epochs:
            raise Stop

    return [stop]


class TestResume:
    @pytest.mark.parametrize("kind", every_kind_of_loaders(None))
    def test_a_run_that_was_stopped_ends_as_if_it_had_not(self, kind, loaders, tmp_path):
        def train(folder, callbacks=()):
            every = every_kind_of_loaders(loaders)[kind]
            model = own(dropout=0.5)  # its noise is drawn anew for each batch
            return fit(model, every, tmp_path / folder, callbacks=callbacks, learning_rate=1e-2, **HERE)

        whole = train("whole")
        with pytest.raises(Stop):
            train("run", stop_after(1))
        torch.manual_seed(12345)  # another state than in the first run
        np.random.seed(12345)
        with pytest.raises(Stop):
            train("run", stop_after(2))
        assert resume(tmp_path / "run")["epoch"] == 2
        assert_equal_runs(train("run"), whole)

    @pytest.mark.parametrize("augment", ["none", "strong"])
    @pytest.mark.parametrize("epoch", [0, 1, 2])
    def test_a_pretrained_one_does_too_also_after_its_head(self, loaders, tmp_path, epoch, augment):
        def train(folder, callbacks=()):
            changes = Augmentation(augment, 32)
            model = network(weights="start.pth")
            return fit(model, loaders, tmp_path / folder, augment=changes, callbacks=callbacks, **HERE)

        whole = train("whole")
        assert whole.history["stage"].tolist() == ["head", *["fine-tune"] * 3]
        with pytest.raises(Stop):
            train("run", stop_after(epoch))
        assert_equal_runs(train("run"), whole)

    def test_an_epoch_that_was_not_finished_is_done_again(self, tmp_path):
        calls = []

        def loss(logits, labels):
            calls.append(len(labels))
            if len(calls) == 10:  # in the second epoch: an epoch has six batches, and a validation
                raise Stop
            return classification_loss(logits, labels)

        whole = fit(own(), colour_loaders(), tmp_path / "whole", **HERE)
        with pytest.raises(Stop):
            fit(own(), colour_loaders(), tmp_path / "run", loss=loss, **HERE)
        assert resume(tmp_path / "run")["epoch"] == 1
        assert_equal_runs(fit(own(), colour_loaders(), tmp_path / "run", loss=loss, **HERE), whole)

    def test_a_finished_run_is_returned_and_not_trained_again(self, tmp_path, monkeypatch):
        first = fit(own(), colour_loaders(), tmp_path, **HERE)
        monkeypatch.setattr(engine, "train_one_epoch", lambda *_: pytest.fail("trained again"))
        again = fit(own(), colour_loaders(), tmp_path, **HERE)
        assert same(copy_of(again.model), copy_of(first.model))
        pd.testing.assert_frame_equal(again.history, first.history)

    def test_the_table_is_completed_where_a_kill_left_it_a_row_short(self, tmp_path):
        first = fit(own(), colour_loaders(), tmp_path, **HERE)
        table = (tmp_path / "history.csv").read_text()
        (tmp_path / "history.csv").unlink()
        fit(own(), colour_loaders(), tmp_path, **HERE)
        assert (tmp_path / "history.csv").read_text() == table
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), first.history)

    def test_epochs_are_counted_from_zero_for_the_order(self, tmp_path):
        batches = Listed(list(colour_loaders()[0]))
        fit(own(), (batches, colour_loaders()[1]), tmp_path, **HERE)
        assert batches.epochs == [0, 1, 2]
        fit(network(weights="start.pth"), (batches, colour_loaders()[1]), tmp_path / "pretrained", **HERE)
        assert batches.epochs[3:] == [0, 0, 1, 2]  # for the head, and then for each epoch

    def test_the_same_seed_gives_the_same_weights_and_another_does_not(self, loaders, tmp_path):
        runs = [
            fit(network(weights="start.pth"), loaders, tmp_path / str(number), seed=seed, **HERE)
            for number, seed in enumerate((0, 0, 1))
        ]
        assert_equal_runs(*runs[:2])
        assert not same(weights_of(runs[2]), weights_of(runs[0]))

    def test_every_epoch_of_every_seed_has_a_seed_of_its_own(self):
        seeds = {epoch_seed(seed, epoch) for seed in range(20) for epoch in range(20)}
        assert len(seeds) == 400
        assert epoch_seed(3, 4) == epoch_seed(3, 4)

    @pytest.mark.parametrize("verbose", [True, False])
    def test_an_order_that_cannot_be_repeated_is_said_so(self, tmp_path, capsys, verbose):
        class Stream:
            def __iter__(self):
                return iter(colour_loaders()[0])

        note = "note: the order of these training batches cannot be repeated: a resumed run will see another one\n"
        own_order, (_, val) = torch.Generator().manual_seed(0), colour_loaders()
        dataset = Squares(45)
        picked = RandomSampler(dataset, generator=own_order)
        for number, batches in enumerate((
            Stream(),
            DataLoader(dataset, 8, shuffle=True, generator=own_order),
            DataLoader(dataset, 8, sampler=picked),
            DataLoader(dataset, batch_sampler=BatchSampler(picked, 8, drop_last=True)),
        )):  # fmt: skip
            fit(own(), (batches, val), tmp_path / str(number), 1, verbose=verbose, **HERE)
            assert capsys.readouterr().out.startswith(note) is verbose, number

    def test_one_that_can_is_not(self, loaders, tmp_path, capsys):
        for kind, given in every_kind_of_loaders(loaders).items():
            fit(own(), given, tmp_path / kind, 1, **HERE)
            said = capsys.readouterr().out
            assert "cannot be repeated" not in said, kind
            assert said.startswith("fine-tune 1/1: loss "), kind

    @pytest.mark.fault("a checkpoint of something else")
    def test_the_state_of_another_run_is_refused_by_what_differs(self, loaders, tmp_path):
        def go_on(model=None, given=loaders, **changes):
            return fit(model or network(), given, tmp_path, **{"epochs": 1, "name": "a"} | HERE | changes)

        go_on()
        other = network()
        other.arch = "resnet34"
        fewer = SimpleNamespace(
            train=[*loaders.train][:3], val=loaders.val, classes=loaders.classes, fingerprint=loaders.fingerprint,
            preprocess=loaders.preprocess, manifest=loaders.manifest,
        )  # fmt: skip
        for name, changes in {
            "arch": {"model": other},
            "weights": {"model": network(weights="imagenet")},
            "classes": {"classes": ("a", "b")},
            "fingerprint": {"given": replace(loaders, fingerprint="other")},
            "preprocess": {"preprocess": Preprocess(32, "pad")},
            "epochs": {"epochs": 2},
            "learning_rate": {"learning_rate": 1e-3},
            "seed": {"seed": 1},
            "name": {"name": None},
            "batches per epoch": {"given": fewer},
        }.items():
            with pytest.raises(CheckpointError, match=rf"trained with another {name} \(.*, now .*--fresh"):
                go_on(**changes)
        with pytest.raises(CheckpointError, match=r"last.pt does not fit this resnet18: 0 entries .* such as fc\.bias"):
            go_on(network(outputs=3))
        assert len(go_on().history) == 1

    @pytest.mark.fault("two runs in one folder")
    def test_two_runs_never_write_to_one_folder(self, loaders, tmp_path, accelerator):
        with (
            FileLock(tmp_path / ".run.lock"),
            pytest.raises(CheckpointError, match="another process is training in models/run"),
        ):
            fit(network(), loaders, tmp_path / "run", **HERE)

    def test_a_fresh_run_takes_the_place_of_the_earlier_one_when_it_is_whole(self, tmp_path):
        folder = tmp_path / "run"
        fit(own(), colour_loaders(), folder, **HERE)
        old = {*RUN_FILES} - {BEST, LAST, "history.csv", "trained-on.csv"}
        assert len(old) == 4
        for name in old:
            (folder / name).touch()
        (folder / "mine.txt").touch()
        again = fit(own(), colour_loaders(), folder, **HERE)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert old < before.keys()  # nothing was trained

        def stop(row, model):
            if row["epoch"] == 2:
                assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
                raise Stop

        with pytest.raises(Stop):
            fit(own(seed=4), colour_loaders(), folder, callbacks=[stop], fresh=True, **HERE)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        other = fit(own(seed=4), colour_loaders(), folder, **HERE)  # goes on with the fresh run
        assert other.folder == folder
        assert not same(weights_of(other), copy_of(again.model))
        assert same(weights_of(other), weights_of(fit(own(seed=4), colour_loaders(), tmp_path / "another", **HERE)))
        assert {path.name for path in folder.iterdir()} == {BEST, LAST, "history.csv", "mine.txt"}
        assert {path.name for path in tmp_path.glob("*run*")} == {"run", ".run.lock"}

    def test_a_fresh_run_that_was_stopped_can_be_fresh_again(self, tmp_path):
        fit(own(), colour_loaders(), tmp_path / "run", 1, **HERE)

        def stop(row, model):
            raise Stop

        with pytest.raises(Stop):
            fit(own(), colour_loaders(), tmp_path / "run", 2, callbacks=[stop], fresh=True, **HERE)
        with pytest.raises(CheckpointError, match="another epochs"):
            fit(own(), colour_loaders(), tmp_path / "run", 3, **HERE)
        assert len(fit(own(), colour_loaders(), tmp_path / "run", 3, fresh=True, **HERE).history) == 3

    @pytest.mark.parametrize("instant", ["before", "between"])
    def test_killed_while_the_folders_change_places_one_run_is_there(self, tmp_path, monkeypatch, instant):
        first = fit(own(), colour_loaders(), tmp_path / "run", 1, **HERE)
        real, renamed = Path.rename, []

        def rename(path, target):
            if len(renamed) == (instant == "between"):
                raise Stop
            renamed.append(path)
            return real(path, target)

        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(Path, "rename", rename)
            fit(own(), colour_loaders(), tmp_path / "run", 2, fresh=True, **HERE)
        assert (tmp_path / "run").exists() is (instant == "before")
        again = fit(own(), colour_loaders(), tmp_path / "run", 2, **HERE)
        assert len(again.history) == 2
        assert again.model.info.epoch >= first.model.info.epoch
        assert {path.name for path in tmp_path.iterdir()} == {"run", ".run.lock"}

    def test_a_model_without_its_state_is_not_overwritten(self, tmp_path):
        """Somebody deleted the state, or received the model alone."""
        first = fit(own(), colour_loaders(), tmp_path / "run", 1, **HERE)
        (first.folder / LAST).unlink()
        for remove in ((), ("history.csv",)):
            for name in remove:
                (first.folder / name).unlink()
            with pytest.raises(CheckpointError, match="run holds a model, and no last.pt to go on from"):
                fit(own(), colour_loaders(), tmp_path / "run", 1, **HERE)
        assert load_model(first.folder, into=own()).info == first.model.info
        assert len(fit(own(), colour_loaders(), tmp_path / "run", 2, fresh=True, **HERE).history) == 2

    def test_a_new_start_does_not_read_a_damaged_state(self, tmp_path):
        (tmp_path / LAST).write_text("broken")
        with pytest.raises(CheckpointError, match=r"last.pt cannot be read"):
            fit(own(), colour_loaders(), tmp_path, 1, **HERE)
        assert len(fit(own(), colour_loaders(), tmp_path, 1, fresh=True, **HERE).history) == 1

    def test_half_files_of_a_killed_run_are_removed(self, tmp_path):
        (tmp_path / ".last.77.partial.pt").touch()
        fit(own(), colour_loaders(), tmp_path, 1, **HERE)
        assert not list(tmp_path.glob(".*.partial*"))


class TestBestModel:
    def fit_with_validation_losses(self, folder, losses, **options):
        """A run whose validation losses are given; and its weights after each epoch."""
        given, after = iter(losses), {}

        def loss(logits, labels):
            if logits.requires_grad:
                return classification_loss(logits, labels)
            return torch.tensor(next(given))

        def keep(row, model):
            after[row["epoch"]] = copy_of(model)

        run = fit(own(), colour_loaders(), folder, len(losses), loss=loss, callbacks=[keep], **HERE, **options)
        return run, after

    @pytest.mark.parametrize(
        ("losses", "best"),
        [((0.9, 0.5, 0.7), 2), ((0.5, 0.5, 0.5), 1), ((math.nan, 0.9, math.nan), 2), ((math.inf, 0.8, 0.3), 3)],
    )
    def test_it_is_the_first_of_lowest_validation_loss(self, tmp_path, losses, best):
        run, after = self.fit_with_validation_losses(tmp_path, losses)
        assert run.model.info.epoch == best
        assert run.model.info.val_loss == pytest.approx(losses[best - 1])
        assert same(weights_of(run), after[best])
        assert same(copy_of(run.model), after[best])
        assert same(resume(tmp_path)["model"], after[3])
        assert resume(tmp_path)["best_epoch"] == best

    def test_what_was_best_before_a_stop_is_still_to_be_beaten(self, tmp_path):
        given = iter((0.5, 0.9))

        def loss(logits, labels):
            if logits.requires_grad:
                return classification_loss(logits, labels)
            if (value := next(given, None)) is None:  # in the third validation
                raise Stop
            return torch.tensor(value)

        with pytest.raises(Stop):
            fit(own(), colour_loaders(), tmp_path, 3, loss=loss, name="planned", **HERE)
        assert load_model(tmp_path, into=own()).info.epoch == 1
        assert resume(tmp_path)["epoch"] == 2
        run, _ = self.fit_with_validation_losses(tmp_path, (0.7, 0.8, 0.9), name="planned")
        assert run.model.info.epoch == 1
        assert run.history["val_loss"].tolist() == pytest.approx([0.5, 0.9, 0.7])

    def test_it_may_be_that_of_the_head_alone(self, tmp_path):
        given, after = iter((0.4, 0.5, 0.6)), []

        def loss(logits, labels):
            return classification_loss(logits, labels) if logits.requires_grad else torch.tensor(next(given))

        def keep(_, model):
            after.append(copy_of(model))

        run = fit(network(weights="start.pth"), colour_loaders(), tmp_path, 2, loss=loss, callbacks=[keep], **HERE)
        assert run.model.info.epoch == 0
        assert same(weights_of(run), after[0])

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_no_finite_validation_loss_is_an_error(self, tmp_path, value):
        what = f"no epoch of {tmp_path.name} had a finite validation loss; lower LEARNING_RATE"
        with pytest.raises(CheckpointError, match=what):
            self.fit_with_validation_losses(tmp_path, (value, value))
        assert not (tmp_path / BEST).exists()

    @pytest.mark.fault("loss that is no number")
    def test_a_planted_nan_stops_the_run_and_the_best_model_stays(self, tmp_path):
        calls = []

        def poisoned(logits, labels):
            calls.append(logits.requires_grad)
            nan = sum(calls) == 8  # the second batch of the second epoch, of six each
            return classification_loss(logits, labels) * (math.nan if nan and calls[-1] else 1)

        with pytest.raises(XrayError, match=r"The loss is nan in batch 2 of epoch 2, at a learning rate of \d"):
            fit(own(), colour_loaders(), tmp_path, loss=poisoned, **HERE)
        assert resume(tmp_path)["epoch"] == 1
        assert load_model(tmp_path, into=own()).info.epoch == 1
        assert all(value.isfinite().all() for value in load_file(tmp_path / BEST).values())

    @pytest.mark.fault("GPU memory too small")
    def test_too_little_gpu_memory_keeps_what_was_saved(self, tmp_path):
        batches = []

        def augment(images):
            batches.append(len(images))
            if len(batches) > 6:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return images

        with pytest.raises(MemoryError, match="too small for batches of 8 images .* Set BATCH_SIZE to 4 or less"):
            fit(own(), colour_loaders(), tmp_path, augment=augment, **HERE)
        assert resume(tmp_path)["epoch"] == 1


class TestHead:
    def test_it_comes_first_when_there_are_weights_to_rest_on(self, loaders, tmp_path):
        run = fit(network(weights="start.pth"), loaders, tmp_path, 1, **HERE)
        assert run.history["stage"].tolist() == ["head", "fine-tune"]
        assert run.history["epoch"].tolist() == [0, 1]
        assert run.history["learning_rate"].tolist()[0] == 0.01
        counts = np.array(list(loaders.train.dataset.counts().values()))
        rates = run.history["images_per_second"] * run.history["seconds"]
        assert rates.tolist() == pytest.approx([16 * (counts.sum() // 16)] * 2)
        assert run.model.info.weights == "start.pth"

    def test_it_needs_a_linear_layer_of_that_name_and_pretrained_weights(self, loaders, tmp_path):
        model = own()
        model.weights = "imagenet"
        cases = {"random": network(), "other": network(weights="imagenet")}
        cases["other"].fc = nn.Sequential(cases["other"].fc)

        def sgd(model):
            return torch.optim.SGD(model.parameters(), 0.1)

        for name, each in cases.items():
            optimizer = None if name == "random" else sgd
            run = fit(each, (loaders.train, loaders.val), tmp_path / name, 1, preprocess=loaders.preprocess,
                      optimizer=optimizer, **HERE)  # fmt: skip
            assert run.history["stage"].tolist() == ["fine-tune"], name

    def test_its_fitting_moves_the_head_and_nothing_else(self, loaders, accelerator):
        model = network()
        before = copy_of(model)
        loss, count = fit_head(model, loaders.train, accelerator, loaders.preprocess, classification_loss)
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert moved == {"fc.weight", "fc.bias"}
        assert count == 16 * len(loaders.train)
        assert 0 < loss < math.log(2) + 0.05

    def test_it_takes_a_hundred_passes_over_the_features_in_batches_of_256(self, accelerator, monkeypatch):
        sizes, steps, real, images = [], [], engine.OneCycleLR, torch.rand(300, 3, 8, 8)
        batches = [(part, torch.arange(len(part)) % 2) for part in images.split(100)]

        def loss(logits, labels):
            sizes.append(len(labels))
            return classification_loss(logits, labels) + 1

        def schedule(optimizer, rate, total_steps):
            steps.append((rate, total_steps))
            return real(optimizer, rate, total_steps)

        monkeypatch.setattr(engine, "OneCycleLR", schedule)
        model = network()
        found, count = fit_head(model, batches, accelerator, None, loss)
        assert count == 300
        assert sizes == [256, 44] * 100
        assert steps == [(0.01, 200)]
        assert 1 < found < 1 + math.log(2) + 0.05

    def test_the_last_mean_loss_is_over_images(self, accelerator):
        batches = [(torch.rand(300, 3, 8, 8), torch.arange(300) % 2)]

        def loss(logits, labels):
            return 0 * logits.sum() + len(labels)

        assert fit_head(network(), batches, accelerator, None, loss)[0] == pytest.approx((256**2 + 44**2) / 300)

    def test_it_learns_in_place_what_its_features_tell(self, accelerator):
        model, (train, _) = network(), colour_loaders()
        with torch.no_grad():
            before = float(classification_loss(model.eval()(train.dataset.images), train.dataset.labels))
        fit_head(model, train, accelerator, None, classification_loss)
        with torch.no_grad():
            after = float(classification_loss(model.eval()(train.dataset.images), train.dataset.labels))
        assert after < before

    def test_pretrained_statistics_stay_and_others_follow_the_batches(self, loaders, tmp_path):
        for weights, stays in (("start.pth", True), ("none", False)):
            model = network(weights=weights)
            before = model.bn1.running_mean.clone()
            fit(model, loaders, tmp_path / weights, 1, **HERE)
            assert torch.equal(model.bn1.running_mean, before) is stays

    def test_a_new_head_starts_at_the_log_odds_of_the_training_labels(self, loaders, tmp_path):
        def nothing(model):
            return torch.optim.SGD(model.parameters(), 0.0)

        def constant_schedule(optimizer, _):
            return constant(optimizer)

        normal, pneumonia = loaders.train.dataset.counts().values()
        options = {"epochs": 1, "optimizer": nothing, "schedule": constant_schedule} | HERE
        model = network()
        fit(model, loaders, tmp_path / "new", **options)
        assert model.fc.bias.item() == pytest.approx(math.log(pneumonia / normal), rel=1e-5)
        known = network()
        nn.init.ones_(known.fc.weight)
        fit(known, loaders, tmp_path / "known", **options)
        assert known.fc.bias.item() == 0
        of_the_caller = own()
        bias = of_the_caller[-1].bias.item()
        fit(of_the_caller, loaders, tmp_path / "own", **options)
        assert of_the_caller[-1].bias.item() == bias


class TestOutput:
    def test_a_line_per_epoch_or_nothing(self, tmp_path, capsys):
        history = fit(own(), colour_loaders(), tmp_path / "a", 2, **HERE).history
        expected = [
            f"fine-tune {row.epoch}/2: loss {row.train_loss:.4f}, validation loss {row.val_loss:.4f}, AUC "
            f"{row.val_auc:.4f}, accuracy {row.val_accuracy:.4f}; {row.seconds:.0f} s, "
            f"{row.images_per_second:.0f} images/s"
            for row in history.itertuples()
        ]
        assert capsys.readouterr().out.splitlines() == expected
        fit(own(), colour_loaders(), tmp_path / "b", 2, verbose=False, **HERE)
        assert capsys.readouterr().out == ""

    def test_images_per_second_are_those_that_were_trained_on(self, tmp_path):
        start = time.perf_counter()
        history = fit(own(), colour_loaders(), tmp_path, 2, **HERE).history
        assert 0 < history["seconds"].sum() < time.perf_counter() - start
        assert (history["images_per_second"] * history["seconds"]).tolist() == pytest.approx([45, 45])

    def test_bf16_learns_too_and_saves_float32(self, loaders, tmp_path):
        run = fit(network(weights="start.pth"), loaders, tmp_path, 1, device="cpu", precision="bf16")
        assert all(value.dtype in (torch.float32, torch.int64) for value in weights_of(run).values())
        assert all(value.is_contiguous() for value in run.model.state_dict().values())
