"""What ties a run to the images that it learned from, to its first weights, and to what a caller brought."""

import functools
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TinyResNet
from torch import nn

from xray_helpers.data.dataset import make_loaders, prepare_data
from xray_helpers.data.splits import folds, resplit, split_digest, traces
from xray_helpers.data.transforms import Augmentation, RandomFrame
from xray_helpers.evaluation.report import evaluate_run, write_card
from xray_helpers.files import CheckpointError, LeakError, WeightsError
from xray_helpers.inference import classification_loss
from xray_helpers.settings import Settings
from xray_helpers.training.checkpoint import BEST, LAST, describe, load_model, resume
from xray_helpers.training.engine import fit
from xray_helpers.training.model import build_model
from xray_helpers.training.train import train

HERE = {"device": "cpu", "precision": "float32", "verbose": False}
JUDGEMENT = {"predictions-val.csv", "predictions-test.csv", "metrics.json", "model-card.md"}


@pytest.fixture
def settings(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    return Settings(data=str(tiny), image_size=32, weights="none", epochs=1, device="cpu", precision="float32")


@pytest.fixture
def data(settings):
    return prepare_data(settings)


def run(settings, **changes):
    return train(replace(settings, **changes), verbose=False)


def network(seed=0):
    torch.manual_seed(seed)
    return build_model("resnet18", 1, "none")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestSplit:
    def swap(self, manifest):
        return manifest.assign(split=manifest["split"].replace({"train": "test", "test": "train"}))

    def shrink(self, manifest):
        return manifest[manifest["path"] != manifest.loc[manifest["split"] == "test", "path"].iloc[0]]

    def move(self, manifest):
        patient = manifest.loc[manifest["split"] == "train", "patient_coarse"].iloc[0]
        return manifest.assign(split=manifest["split"].where(manifest["patient_coarse"] != patient, "val"))

    def relabel(self, manifest):
        first = manifest["path"] == manifest["path"].iloc[0]
        return manifest.assign(cause=manifest["cause"].where(~first, "unknown"))

    @pytest.mark.fault("a run and its split part")
    @pytest.mark.parametrize("change", ["swap", "shrink", "move", "relabel"])
    def test_an_edited_manifest_is_refused_by_name_and_nothing_is_lost(self, settings, change):
        folder = run(settings).folder
        evaluate_run(folder, "val")
        before = contents(folder)
        file = next(settings.processed_folder.glob("splits-*.csv"))
        manifest = pd.read_csv(file, keep_default_na=False)
        getattr(self, change)(manifest).to_csv(file, index=False)
        for split in ("val", "test"):
            with pytest.raises(CheckpointError, match="was trained with another split: the digest of its manifest"):
                evaluate_run(folder, split)
        with pytest.raises(CheckpointError, match=r"was trained with another split \(\w{12}, now \w{12}\)"):
            run(settings)
        now = {"split": split_digest(getattr(self, change)(manifest))}
        with pytest.raises(CheckpointError, match="trained with another split"):
            resume(folder, now)
        assert contents(folder) == before

    def test_a_split_of_one_s_own_is_the_run_s(self, data, tmp_path):
        mine = resplit(data.manifest.assign(error=""), seed=7)
        loaders = make_loaders(data, manifest=mine)
        made = fit(network(), loaders, tmp_path / "run", 1, **HERE)
        assert made.model.info.split == split_digest(mine) != split_digest(data.manifest)
        assert evaluate_run(made.folder, "val", made.model, data, manifest=mine)["n"] == (mine["split"] == "val").sum()
        with pytest.raises(CheckpointError, match="another split"):
            evaluate_run(made.folder, "val", made.model, data)
        with pytest.raises(CheckpointError, match="trained with another split"):
            fit(network(), make_loaders(data), tmp_path / "run", 1, **HERE)

    def test_one_that_leaks_is_refused(self, data):
        rng = np.random.default_rng(0)
        leaking = data.manifest.assign(split=rng.choice(["train", "val", "test"], len(data.manifest)))
        with pytest.raises(LeakError, match="patients under the coarse key are in more than one split"):
            make_loaders(data, manifest=leaking)

    def test_the_digest_sees_rows_splits_classes_and_patients_but_not_their_order(self, data):
        manifest = data.manifest
        same = split_digest(manifest)
        assert split_digest(manifest.sample(frac=1, random_state=0)) == same
        assert split_digest(manifest.assign(bytes=0)) == same
        first = manifest.index == 0
        columns = ("path", "split", "label", "cause", "patient_fine", "patient_coarse", "pixel_hash")
        others = [manifest.assign(**{name: manifest[name].where(~first, "other")}) for name in columns]
        assert len({same, *map(split_digest, [*others, manifest[1:]])}) == len(columns) + 2


class TestTrainedOn:
    @pytest.mark.parametrize(("split", "key"), [("pooled", "patient_coarse"), ("blocked", "patient_fine")])
    def test_the_run_s_folder_says_by_hashes_what_it_learned_from(self, settings, split, key):
        made = run(settings, split=split, fractions=())
        manifest = prepare_data(replace(settings, split=split, fractions=())).manifest
        rows = manifest[manifest["split"] == "train"]
        table = pd.read_csv(made.folder / "trained-on.csv")
        assert list(table) == ["path", "pixel_hash", key]
        pd.testing.assert_frame_equal(table, traces(rows, key.removeprefix("patient_")).reset_index(drop=True))
        text = (made.folder / "trained-on.csv").read_text()
        assert not any(name in text for name in rows["path"].str.rpartition("/")[2])
        sent = (made.folder / BEST).read_bytes()
        assert not any(value.encode() in sent for value in table["path"])

    @pytest.mark.fault("a run and its split part")
    @pytest.mark.parametrize(
        ("column", "what"), [("path", "file"), ("pixel_hash", "exact pixels"), ("patient_coarse", "patient")]
    )
    def test_what_it_learned_from_cannot_judge_it(self, settings, data, column, what):
        made = run(settings)
        held_out = data.manifest[data.manifest["split"] == "test"]
        table = pd.read_csv(made.folder / "trained-on.csv")
        table.loc[len(table)] = {column: traces(held_out.head(1), "coarse")[column].iloc[0]}
        table.to_csv(made.folder / "trained-on.csv", index=False)
        said = rf"\d of {len(held_out)} images share their {what} with images that {made.folder.name} learned from"
        with pytest.raises(LeakError, match=said):
            evaluate_run(made.folder, "test")
        evaluate_run(made.folder, "val")
        assert not (made.folder / "predictions-test.csv").exists()

    def test_without_the_list_it_is_not_judged(self, settings):
        folder = run(settings).folder
        (folder / "trained-on.csv").unlink()
        with pytest.raises(CheckpointError, match=r"trained-on.csv is missing"):
            evaluate_run(folder, "val")

    def test_batches_of_one_s_own_are_not_claimed_to_be_apart(self, data, tmp_path):
        loaders = make_loaders(data)
        pair = list(loaders.train), list(loaders.val)
        made = fit(network(), pair, tmp_path / "own", 1, preprocess=loaders.preprocess, classes=data.classes, **HERE)
        assert made.model.info.split == ""
        assert not (made.folder / "trained-on.csv").exists()
        made.model.info = replace(made.model.info, fingerprint=data.fingerprint)
        found = evaluate_run(made.folder, "val", made.model, data)
        assert found["protocol"].endswith("trained on batches of your own: which images it learned from is not known")


class TestFolds:
    def test_each_patient_is_held_out_once(self, data):
        made = folds(data.manifest, 4, seed=3)
        assert len(made) == 4
        held_out = pd.concat([fold[fold["split"] == "test"] for fold in made])
        assert sorted(held_out["path"]) == sorted(data.manifest["path"])
        for fold, after in zip(made, [*made[1:], made[0]], strict=True):
            for key in ("patient_coarse", "patient_fine", "pixel_hash"):
                assert fold.groupby(key)["split"].nunique().max() == 1
            assert set(fold.loc[fold["split"] == "val", "path"]) == set(after.loc[after["split"] == "test", "path"])
            assert set(fold.loc[fold["split"] == "test", "label"]) == {"NORMAL", "PNEUMONIA"}

    def test_the_seed_decides_and_the_order_of_the_rows_does_not(self, data):
        one, two = folds(data.manifest, 3), folds(data.manifest.sample(frac=1, random_state=1), 3)
        pd.testing.assert_frame_equal(one[1], two[1])
        assert not one[0]["split"].equals(folds(data.manifest, 3, seed=1)[0]["split"])

    @pytest.mark.parametrize("k", [2, 1000])
    def test_too_few_or_too_many_are_refused(self, data, k):
        with pytest.raises(ValueError, match=rf"k={k}: expected 3 or more, and no more than the smallest class has"):
            folds(data.manifest, k)


def weighted(logits, labels):
    return 2 * classification_loss(logits, labels)


class Sized(nn.Module):
    """A loss with a number and a tensor."""

    def __init__(self, size, weights=(1.0, 2.0)):
        super().__init__()
        self.size = size
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, logits, labels):
        return classification_loss(logits, labels) * self.size


class TestDescribe:
    def test_things_that_differ_are_told_apart_and_equal_ones_are_not(self):
        class Plain:
            def __init__(self, rate):
                self.rate, self.other = rate, object()

        def make():
            return [
                None, weighted, classification_loss, nn.CrossEntropyLoss, nn.CrossEntropyLoss(),
                nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(torch.tensor([1.0, 2.0])),
                nn.CrossEntropyLoss(torch.tensor([1.0, 3.0])), Sized(1), Sized(2), Sized(1, (1.0, 1.0)),
                functools.partial(weighted, labels=1), functools.partial(weighted, labels=2), Plain(0.1), Plain(0.2),
                Augmentation("light", 32), Augmentation("strong", 32), Augmentation("light", 32, flip=True),
                nn.Sequential(Augmentation("light", 32), RandomFrame(0.1)),
                nn.Sequential(Augmentation("light", 32), RandomFrame(0.2)),
            ]  # fmt: skip

        texts = [describe(thing, "thing") for thing in make()]
        assert len(set(texts)) == len(texts)
        assert texts == [describe(thing, "thing") for thing in make()]
        assert not any("0x" in text for text in texts)

    def test_being_used_changes_nothing(self):
        augment = Augmentation("light", 32)
        before = describe(augment, "augment")
        augment(torch.zeros(4, 1, 32, 32, dtype=torch.uint8))
        assert describe(augment.eval(), "augment") == before

    def test_a_lambda_is_refused_with_advice(self):
        for thing in (lambda: 0, functools.partial(lambda x: x, 1)):
            with pytest.raises(ValueError, match=r"loss: a lambda has no name .* use def, or fit\(name=…\)"):
                describe(thing, "loss")


class TestOtherObjects:
    """`fit` in the folder of a run with anything else than that run had."""

    @pytest.fixture
    def loaders(self, data):
        return make_loaders(data, batch_size=16)

    @pytest.mark.fault("a run and what a caller brought part")
    def test_they_are_refused_by_name_and_the_run_stays(self, loaders, tmp_path):
        def go_on(model=None, **changes):
            return fit(model or network(), loaders, tmp_path / "run", 1, **HERE, **{"loss": Sized(1)} | changes)

        def sgd(model):
            return torch.optim.SGD(model.parameters(), 0.1)

        first = go_on()
        before = contents(first.folder)
        wider = network()
        wider.layer1[0] = nn.Conv2d(4, 8, 1)
        for name, changes in {
            "loss": {"loss": Sized(2)},
            "optimizer": {"optimizer": sgd},
            "schedule": {"schedule": torch.optim.lr_scheduler.CosineAnnealingLR},
            "augment": {"augment": RandomFrame(0.1)},
            "starting weights": {"model": network(seed=1)},
        }.items():
            with pytest.raises(CheckpointError, match=rf"was trained with another {name} \(.*, now .*\)\. Start over"):
                go_on(**changes)
        with pytest.raises(CheckpointError, match="was trained with another arch"):
            go_on(nn.Sequential(TinyResNet(), nn.Linear(1000, 1)))
        with pytest.raises(CheckpointError, match="another starting weights"):
            go_on(wider)
        with pytest.raises(ValueError, match="augment: a lambda has no name"):
            go_on(augment=lambda images: images)
        assert contents(first.folder) == before
        again = go_on()
        assert again.model.info == first.model.info

    def test_long_descriptions_are_shown_where_they_differ(self, loaders, tmp_path):
        fit(network(), loaders, tmp_path / "run", 1, augment=Augmentation("light", 32), **HERE)
        with pytest.raises(CheckpointError) as caught:
            fit(network(), loaders, tmp_path / "run", 1, augment=Augmentation("strong", 32), **HERE)
        assert "strength=light" in str(caught.value)
        assert "now" in str(caught.value)
        assert "strength=strong" in str(caught.value)
        assert len(str(caught.value)) < 500

    def test_a_name_stands_for_them_all(self, loaders, tmp_path):
        first = fit(network(), loaders, tmp_path / "run", 1, name="mine", loss=lambda *x: 2 * weighted(*x), **HERE)
        again = fit(network(3), loaders, tmp_path / "run", 1, name="mine", loss=lambda *x: weighted(*x) / 2, **HERE)
        assert again.model.info == first.model.info
        with pytest.raises(CheckpointError, match=r"another name \(mine, now other\)"):
            fit(network(), loaders, tmp_path / "run", 1, name="other", **HERE)

    def test_the_same_call_again_with_the_trained_model_is_the_same_run(self, loaders, tmp_path):
        model = network()
        first = fit(model, loaders, tmp_path / "run", 2, **HERE)
        assert first.model is model
        again = fit(model, loaders, tmp_path / "run", 2, **HERE)
        assert again.model.info == first.model.info
        assert len(again.history) == 2

    @pytest.mark.parametrize("stopped_in", [1, 2])
    def test_a_run_that_was_stopped_goes_on_with_the_same_model(self, loaders, tmp_path, stopped_in):
        whole = fit(network(), loaders, tmp_path / "whole", 2, loss=weighted, name="a", **HERE)
        model, calls = network(), []
        begun = {name: value.clone() for name, value in model.state_dict().items()}

        def stop(logits, labels):
            calls.append(logits.requires_grad)
            if sum(calls) == 2 + (stopped_in - 1) * len(loaders.train):
                raise KeyboardInterrupt
            return weighted(logits, labels)

        with pytest.raises(KeyboardInterrupt):
            fit(model, loaders, tmp_path / "run", 2, loss=stop, name="a", **HERE)
        assert all(torch.equal(value, begun[name]) for name, value in model.state_dict().items())
        assert (resume(tmp_path / "run") is None) is (stopped_in == 1)
        made = fit(model, loaders, tmp_path / "run", 2, loss=weighted, name="a", **HERE)
        assert all(
            torch.equal(one, two) for one, two in zip(made.model.parameters(), whole.model.parameters(), strict=True)
        )


class TestMoreEpochs:
    def test_a_finished_run_goes_on_in_its_folder_and_says_so(self, settings):
        settings = replace(settings, batch_size=4)
        first = run(settings)
        for split in ("val", "test"):
            evaluate_run(first.folder, split)
        write_card(first.folder)
        judged = {name: (first.folder / name).read_bytes() for name in JUDGEMENT}
        weights = (first.folder / BEST).read_bytes()

        longer = run(settings, more_epochs=2)
        assert longer.folder == first.folder
        assert longer.history["stage"].tolist() == ["fine-tune", "more epochs", "more epochs"]
        assert longer.history["epoch"].tolist() == [1, 2, 3]
        pd.testing.assert_frame_equal(longer.history.head(1), first.history)
        rates = longer.history["learning_rate"]
        assert rates.iloc[[0, -1]].max() < 1e-5  # a cycle of its own, to its end
        assert rates.iloc[1] > 1e-4
        earlier = {path.name: path.read_bytes() for path in (first.folder / "earlier").iterdir()}
        assert earlier == judged | {BEST: weights}
        assert JUDGEMENT & {path.name for path in first.folder.iterdir()} == {"predictions-val.csv"}

        for split in ("val", "test"):
            evaluate_run(first.folder, split)
        assert (first.folder / "earlier").exists()
        card = write_card(first.folder)
        assert "1 epoch and 2 more after these had ended" in " ".join(card.split())
        assert not (first.folder / "earlier").exists()
        assert json.loads((first.folder / "settings.json").read_text())["more_epochs"] == 2

    def test_once_is_enough_and_without_them_the_longer_run_stays(self, settings):
        run(settings)
        longer = run(settings, more_epochs=1)
        before = contents(longer.folder)
        for more in (1, 0):
            again = run(settings, more_epochs=more)
            pd.testing.assert_frame_equal(again.history, longer.history)
        assert contents(longer.folder) == before
        assert run(settings, more_epochs=3).history["epoch"].tolist() == [1, 2, 3, 4]

    def test_stopped_in_them_it_goes_on_to_the_same_result(self, data, tmp_path):
        loaders = make_loaders(data, batch_size=16)

        def go_on(folder, more=2, callbacks=()):
            return fit(network(), loaders, tmp_path / folder, 1, more_epochs=more, callbacks=callbacks, **HERE)

        def stop(row, model):
            if row["epoch"] == 2:
                raise KeyboardInterrupt

        for folder in ("whole", "stopped"):
            go_on(folder, more=0)
        whole = go_on("whole")
        with pytest.raises(KeyboardInterrupt):
            go_on("stopped", callbacks=[stop])
        made = go_on("stopped")
        one, two = (resume(each.folder) for each in (whole, made))
        assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
        assert one["schedule"] == two["schedule"]
        assert one["cycles"] == two["cycles"] == [1, 3]

    def test_a_schedule_of_one_s_own_begins_anew(self, data, tmp_path):
        loaders, rates = make_loaders(data, batch_size=16), []

        def halve(optimizer, steps):
            return torch.optim.lr_scheduler.StepLR(optimizer, max(1, steps // 2), 0.5)

        def keep(row, model):
            rates.append(row["learning_rate"])

        for more in (0, 1):
            fit(network(), loaders, tmp_path / "run", 1, more_epochs=more, schedule=halve, callbacks=[keep], **HERE)
        assert rates[0] == rates[1] < 3e-4

    def test_what_is_not_finished_is_finished_first(self, settings):
        with pytest.raises(CheckpointError, match="has finished 0 of 1 epochs: train it to its end first"):
            run(settings, more_epochs=2)


class TestFromAnEarlierRun:
    def test_it_begins_with_the_earlier_run_s_weights_and_names_it(self, settings):
        first = run(settings)
        second = run(settings, weights=str(first.folder), seed=1)
        assert second.folder != first.folder
        assert f"-from-{first.folder.name[-8:]}-" in second.folder.name
        assert second.history["stage"].tolist() == ["fine-tune"]  # its head is fitted
        assert second.model.info.weights == first.folder.name
        assert resume(second.folder)["identity"]["weights"] == first.folder.name
        table = [pd.read_csv(each.folder / "trained-on.csv") for each in (first, second)]
        assert set(table[0]["path"]) == set(table[1]["path"])
        evaluate_run(second.folder, "test")
        assert str(first.folder.parent) not in (second.folder / "settings.json").read_text()

    @pytest.mark.fault("a run and its split part")
    def test_its_training_images_are_not_judged_on(self, settings, tmp_path):
        first = run(settings)
        for weights in (first.folder, first.folder / BEST):
            said = f"images share their .* with images that {first.folder.name} learned from"
            with pytest.raises(LeakError, match=said):
                run(settings, weights=str(weights), split_seed=1)
        assert len([path for path in (tmp_path / "models").iterdir() if (path / BEST).is_file()]) == 1

    def test_a_model_that_was_loaded_begins_a_new_run(self, data, settings, tmp_path):
        first = run(settings)
        loaded = load_model(first.folder)
        made = fit(loaded, make_loaders(data), tmp_path / "models" / "second", 1, **HERE)
        assert made.model.info.weights == first.folder.name
        assert made.model.info.arch == "resnet18"
        other = resplit(data.manifest.assign(error=""), seed=9)
        with pytest.raises(LeakError, match="learned from"):
            fit(load_model(made.folder), make_loaders(data, manifest=other), tmp_path / "models" / "third", 1, **HERE)

    def test_of_a_file_alone_it_is_said_that_nothing_is_known(self, data, settings, tmp_path, capsys):
        first = run(settings)
        (tmp_path / "received").mkdir()
        shutil.copy(first.folder / BEST, tmp_path / "received")
        fit(load_model(tmp_path / "received" / BEST), make_loaders(data), tmp_path / "new", 1, **HERE)
        assert (
            "comes without trained-on.csv: whether it learned from val or test is not known" in capsys.readouterr().out
        )

    def test_one_of_another_kind_is_refused(self, settings, tmp_path):
        first = run(settings)
        with pytest.raises(WeightsError, match="is a resnet18 for NORMAL, PNEUMONIA; this run is a resnet34 for"):
            run(settings, weights=str(first.folder), arch="resnet34")
        with pytest.raises(WeightsError, match="this run is a resnet18 for normal, bacterial, viral"):
            run(settings, weights=str(first.folder), task="cause")
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / BEST).write_bytes(b"nothing")
        with pytest.raises(CheckpointError, match="cannot be read"):
            run(settings, weights=str(tmp_path / "empty"))


def test_another_number_of_epochs_is_another_run_and_names_the_first(settings, capsys):
    first = run(settings)
    capsys.readouterr()
    second = run(settings, epochs=2)
    assert second.folder != first.folder
    assert f"note: models/{first.folder.name} holds a run that differs only in EPOCHS" in capsys.readouterr().out
    run(settings, seed=1)
    assert "differs only" not in capsys.readouterr().out
    assert (first.folder / LAST).is_file()
