"""Images vanish or change between two steps."""

import shutil
from dataclasses import replace

import pytest
from common import everything, small
from PIL import Image

from xray_helpers.data.dataset import make_loaders, prepare_data
from xray_helpers.evaluation.report import evaluate_run
from xray_helpers.files import CheckpointError, DownloadError
from xray_helpers.training.checkpoint import BEST, save_model
from xray_helpers.training.train import train


@pytest.fixture
def settings(tiny, tmp_path):
    shutil.copytree(tiny / "chest_xray", tmp_path / "mine")
    return small(tmp_path / "mine", epochs=1)


def training_image(settings):
    data = prepare_data(settings)
    return data.root / make_loaders(data).train.dataset.paths[0]


def fingerprint(settings):
    return prepare_data(settings).fingerprint


@pytest.mark.fault("images that change between two steps")
def test_images_that_changed_are_named_by_their_fingerprint(settings, capsys):
    folder, old = train(settings).folder, fingerprint(settings)
    path = training_image(settings)
    with Image.open(path) as image:
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(path)
    capsys.readouterr()
    new = fingerprint(settings)
    assert "note: the images have changed since splits-pooled-70-15-15-seed0-" in capsys.readouterr().out
    assert new != old
    with pytest.raises(CheckpointError, match=f"trained on other files: their fingerprint is {old}, .* is {new}"):
        evaluate_run(folder, "test")
    with pytest.raises(CheckpointError, match=rf"trained with another fingerprint \({old}, now {new}\)"):
        train(settings)


@pytest.mark.fault("images that vanish between two steps")
def test_images_that_vanished_are_brought_back_or_said_to_be_gone(settings, monkeypatch):
    folder, expected = train(settings).folder, fingerprint(settings)
    path = training_image(settings)
    path.unlink()
    with pytest.raises(DownloadError, match="data/raw/mine is not complete, .* give its path as DATA"):
        evaluate_run(folder, "test")  # a run knows its data by name only
    monkeypatch.setenv("XRAY_DATA", settings.data)
    evaluate_run(folder, "test")
    assert path.is_file()
    assert fingerprint(settings) == expected
    path.unlink()
    shutil.rmtree(settings.source())
    with pytest.raises(DownloadError, match="its source mine is not there"):
        evaluate_run(folder, "test")


@pytest.mark.slow
@pytest.mark.fault("images that change between two steps")
def test_a_run_that_was_judged_is_not_judged_again_on_images_that_changed(settings):
    folder = everything(settings)
    path = training_image(settings)
    with Image.open(path) as image:
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(path)
    with pytest.raises(CheckpointError, match="trained on other files"):
        evaluate_run(folder, "test")


@pytest.mark.fault("a checkpoint of something else")
def test_a_model_of_another_run_in_the_folder_is_named(settings):
    run, other = train(settings), train(small(settings.data, epochs=1, image_size=64), latest=False)
    shutil.copy(other.folder / BEST, run.folder / BEST)
    with pytest.raises(CheckpointError, match=r"best.safetensors has image_size 64, .* 32: they are of two runs"):
        evaluate_run(run.folder, "val")
    save_model(run.folder, run.model, replace(run.model.info, classes=("a", "b")))
    with pytest.raises(CheckpointError, match=r"has classes \('a', 'b'\), .* \('NORMAL', 'PNEUMONIA'\)"):
        evaluate_run(run.folder, "val")
