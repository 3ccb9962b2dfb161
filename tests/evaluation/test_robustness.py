from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TinyResNet
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from xray_helpers.data.dataset import PreparedData, make_loaders, prepare_data
from xray_helpers.data.synthetic import draw
from xray_helpers.data.transforms import Preprocess
from xray_helpers.evaluation.robustness import (
    CORRUPTIONS,
    FIGURES,
    LEVELS,
    bed,
    bed_table,
    bench,
    conflicting,
    corrupt,
    corrupted_logits,
    hold_out_conflicting,
)
from xray_helpers.settings import Settings
from xray_helpers.training import model as model_module
from xray_helpers.training.checkpoint import load_model

COUNT = 360
TRUTH = np.arange(COUNT) % 2


def framed(images, chosen):
    """The images with a bright bar at the top and bottom of the chosen ones."""
    found = images.copy()
    found[chosen, :3] = found[chosen, -3:] = 250
    return found


def phantom_data(images):
    """Plain objects in the place of `prepare_data`'s: every third pair of images is val or test, each a patient."""
    split = np.select([np.arange(COUNT) // 2 % 6 == 0, np.arange(COUNT) // 2 % 6 == 5], ["test", "val"], "train")
    names = [str(number) for number in range(COUNT)]
    keys = dict.fromkeys(("path", "patient_coarse", "patient_fine", "pixel_hash"), names)
    manifest = pd.DataFrame(keys | {"label": np.where(TRUTH, "PNEUMONIA", "NORMAL"), "split": split, "near": ""})
    cache = SimpleNamespace(images=images, find=lambda paths: [int(path) for path in paths])
    return PreparedData(Settings(), None, manifest, ("NORMAL", "PNEUMONIA"), cache)


def rows_of(manifest, split):
    return manifest.loc[manifest["split"] == split, "path"].astype(int).to_numpy()


def as_input(images):
    return torch.tensor(images).unsqueeze(1).float() / 255 - 0.45


def trained(images, rows, seed):
    """A small convolutional network after 25 epochs."""
    torch.manual_seed(seed)
    layers = []
    for before, after in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    inputs, labels = as_input(images[rows]), torch.tensor(TRUTH[rows]).float()
    for _ in range(25):
        for batch in torch.randperm(len(rows)).split(32):
            binary_cross_entropy_with_logits(network(inputs[batch]).squeeze(1), labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return network.eval()


@pytest.fixture
def one_thread():
    """Small convolutions are faster in one thread, on a busy machine above all."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_network_that_learned_the_shortcut_fails_on_conflicting_images_and_one_that_did_not_does_not():
    drawn = [draw(("normal", "bacterial")[k], np.random.default_rng((5, i)), 48, 48, None, 5.0).image
             for i, k in enumerate(TRUTH)]  # fmt: skip
    drawn, rng = np.stack(drawn), np.random.default_rng(0)
    follows = rng.random(COUNT) < 0.85  # the bars tell the class in 85% of the images
    planted = framed(drawn, np.where(follows, TRUTH, 1 - TRUTH) == 1)
    unplanted = framed(drawn, rng.random(COUNT) < 0.5)

    manifest = hold_out_conflicting(phantom_data(planted))
    train, held_out, val = (rows_of(manifest, split) for split in ("train", "test", "val"))
    assert (~follows)[held_out].mean() > 3 * (~follows)[train].mean()  # what contradicts the style was found

    rows = []  # of several networks each: a single one's skill depends on its draw, and the draw on the processor
    for name, images, seeds in (("with", planted, range(4)), ("without", unplanted, range(2))):
        for network in (trained(images, train, seed) for seed in seeds):
            for place, judged in (("conflicting", held_out), ("val", val)):
                with torch.no_grad():
                    answers = network(as_input(planted[judged])).squeeze(1).sigmoid().numpy()
                rows.append((name, place, bed(TRUTH[judged], answers, draws=20)["auc"]["value"]))
    found = pd.DataFrame(rows, columns=["shortcut", "place", "auc"]).groupby(["shortcut", "place"])["auc"].mean()
    assert found["with", "val"] > 0.8  # ordinary validation does not tell
    assert found["with", "conflicting"] < 0.5  # worse than chance
    assert found["without", "conflicting"] > found["with", "conflicting"] + 0.2


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_HOME", str(tmp_path_factory.mktemp("robustness")))
        yield prepare_data(Settings(data=str(tiny), image_size=32))


def test_conflicting_images_are_training_images_and_a_share_of_each_class(prepared):
    train = prepared.manifest[prepared.manifest["split"] == "train"]
    found = conflicting(prepared, share=0.2)
    assert set(found["split"]) == {"train"}
    assert set(found["path"]) <= set(train["path"])
    for label, count in train["label"].value_counts().items():
        assert (found["label"] == label).sum() == pytest.approx(0.2 * count, abs=1)


def test_val_and_test_do_not_change_what_is_conflicting(prepared):
    """They could only do so by being looked at: their images are replaced by noise."""
    noise = np.random.default_rng(0).integers(0, 256, prepared.cache.images.shape, dtype=np.uint8)
    train = prepared.manifest.loc[prepared.manifest["split"] == "train", "path"].tolist()
    rows = prepared.cache.find(train)
    noise[rows] = prepared.cache.images[rows]
    cache = SimpleNamespace(images=noise, find=prepared.cache.find)
    other = PreparedData(prepared.settings, prepared.root, prepared.manifest, prepared.classes, cache)
    pd.testing.assert_frame_equal(conflicting(prepared), conflicting(other))


def test_who_has_a_conflicting_image_is_not_trained_on(prepared):
    manifest, held_out = hold_out_conflicting(prepared), conflicting(prepared)
    before = prepared.manifest.set_index("path")["split"]
    assert set(manifest.loc[manifest["split"] == "test", "path"]) == set(held_out["path"])
    assert set(before[manifest.loc[manifest["split"] == "train", "path"]]) == {"train"}
    assert set(manifest.loc[manifest["split"] == "val", "path"]) == set(before.index[before == "val"])
    train = manifest[manifest["split"] == "train"]
    for column in ("patient_coarse", "patient_fine", "pixel_hash"):
        ours = {label: set(rows[column]) for label, rows in train.groupby("label")}
        theirs = {label: set(rows[column]) for label, rows in held_out.groupby("label")}
        assert not any(ours[label] & theirs[label] for label in ours)
    loaders = make_loaders(prepared, manifest=manifest, test=True)  # and it is a split as any other
    assert len(loaders.test.dataset) == len(held_out)


@pytest.mark.parametrize("task", ["pneumonia", "cause"])
def test_a_bench_model_learns_from_no_conflicting_image_and_is_judged_on_both_beds(prepared, monkeypatch, task):
    monkeypatch.setattr(model_module, "get_model", lambda arch, weights=None: TinyResNet())
    settings = replace(prepared.settings, task=task, device="cpu")
    found = bench(settings, epochs=1)
    beds = ("validation", "conflicting images")
    judged = ("PNEUMONIA",) if task == "pneumonia" else ("normal", "bacterial", "viral")
    assert found.index.tolist() == [*(f"{name}, {each}" for name in beds for each in judged), "worst"]
    learned = load_model(settings.processed_folder / "bench").trained_on
    held_out = conflicting(prepare_data(settings))
    assert found.loc[f"conflicting images, {judged[0]}", "n"] == len(held_out)
    assert not set(learned["pixel_hash"]) & set(held_out["pixel_hash"])
    assert not set(learned["patient_coarse"]) & set(held_out["patient_coarse"])


def test_a_bed_has_each_figure_with_its_interval():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 80)
    chance = np.clip(0.5 * truth + 0.5 * rng.random(80), 0.01, 0.99)
    found = bed(truth, chance, np.arange(80) // 2, draws=50)
    assert found["n"] == 80
    for name in FIGURES:
        assert name == "loss" or found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    assert found["loss"]["value"] == pytest.approx(-np.log(np.where(truth, chance, 1 - chance)).mean())


def test_the_worst_of_each_figure_is_the_last_row():
    def figures(**values):
        return {"n": 9} | {name: {"value": values.get(name, 0.5)} for name in FIGURES}

    beds = {
        "a": figures(auc=0.9, loss=0.3, calibration_intercept=-1.5),
        "b": figures(auc=0.7, loss=0.2, calibration_intercept=1.0) | {"n": 4},
    }
    table = bed_table(beds)
    assert table.index.tolist() == ["a", "b", "worst"]
    assert [table.loc["worst", name]["value"] for name in ("auc", "loss", "calibration_intercept")] == [0.7, 0.3, -1.5]
    assert table.loc["worst", "n"] == 4


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_images_the_more_the_higher_its_level(name, batch):
    changed = [corrupt(batch, name, level) for level in LEVELS]
    for images in changed:
        assert images.shape == batch.shape
        assert images.dtype == torch.float32
        assert images.min() >= 0
        assert images.max() <= 1
    distances = [float((images - batch / 255).abs().mean()) for images in changed]
    assert 0 < 0.9 * distances[0] < distances[1] < distances[2]
    assert torch.equal(changed[0], corrupt(batch, name, 1))  # the same for every model
    assert torch.equal(changed[0], torch.cat([corrupt(part, name, 1) for part in batch.split(3)]))


@pytest.mark.parametrize(("name", "level"), [("rain", 1), ("blur", 4)])
def test_an_unknown_corruption_is_named(name, level, batch):
    with pytest.raises(ValueError, match=f"'{name}' at level {level}: expected one of darker, .*border erased"):
        corrupt(batch, name, level)


def test_corrupted_logits_are_those_of_corrupted_images(batch):
    network, preprocess = nn.Sequential(nn.Flatten(), nn.Linear(3 * 128 * 128, 2)).eval(), Preprocess(128)
    found = corrupted_logits(network, batch, preprocess, "noise", 2, batch=3)
    with torch.no_grad():
        torch.testing.assert_close(found, network(preprocess(corrupt(batch, "noise", 2))))
