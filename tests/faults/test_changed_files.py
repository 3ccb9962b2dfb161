"""Images vanish or change between two steps."""

import shutil
from dataclasses import replace

import pytest
from common import everything, small
from PIL import Image

from xray_helpers.archives import DownloadError
from xray_helpers.dataset import make_loaders, prepare
from xray_helpers.evaluation import evaluate_run
from xray_helpers.facts import CheckpointError, write_about
from xray_helpers.training import fit


@pytest.fixture
def settings(tiny, tmp_path):
    shutil.copytree(tiny / "chest_xray", tmp_path / "mine")
    return small(tmp_path / "mine", epochs=1)


def change_an_image(settings):
    path = settings.raw_folder / "chest_xray" / make_loaders(settings).train_set.paths[0]
    with Image.open(path) as image:
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(path)


@pytest.mark.fault("images that change between two steps")
def test_images_that_changed_are_named_by_their_fingerprint(settings, capsys):
    folder = everything(settings)
    old = make_loaders(settings).fingerprint
    change_an_image(settings)
    capsys.readouterr()
    prepare(settings)
    assert "note: the images have changed since splits-pooled-70-15-15-seed0-" in capsys.readouterr().out
    new = make_loaders(settings).fingerprint
    assert new != old
    with pytest.raises(CheckpointError, match=f"trained on other files: their fingerprint is {old}, .* is {new}"):
        evaluate_run(folder, "test")
    with pytest.raises(CheckpointError, match=rf"trained with another fingerprint \({old}, now {new}\)"):
        fit(settings)


@pytest.mark.fault("images that vanish between two steps")
def test_images_that_vanished_are_brought_back_or_said_to_be_gone(settings, monkeypatch):
    folder = everything(settings)
    expected = make_loaders(settings).fingerprint
    path = settings.raw_folder / "chest_xray" / make_loaders(settings).train_set.paths[0]
    path.unlink()
    with pytest.raises(DownloadError, match="data/raw/mine is not complete, .* give its path as DATA"):
        evaluate_run(folder, "test")  # a run knows its data by name only
    monkeypatch.setenv("XRAY_DATA", settings.data)
    evaluate_run(folder, "test")
    assert path.is_file()
    assert make_loaders(settings).fingerprint == expected
    path.unlink()
    shutil.rmtree(settings.source())
    with pytest.raises(DownloadError, match="its source mine is not there"):
        evaluate_run(folder, "test")


@pytest.mark.fault("a checkpoint of something else")
def test_a_model_of_another_run_in_the_folder_is_named(settings):
    folder, other = everything(settings), fit(small(settings.data, epochs=1, image_size=64), main=False)
    for name in ("best.safetensors", "best.json"):
        shutil.copy(other.folder / name, folder / name)
    with pytest.raises(CheckpointError, match="best.json tells of image_size 64, and settings.json of 32"):
        evaluate_run(folder, "val")
    shutil.rmtree(other.folder)
    write_about(folder, replace(other.model.about, classes=("a", "b")))
    with pytest.raises(CheckpointError, match=r"tells of classes \('a', 'b'\)"):
        evaluate_run(folder, "val")
