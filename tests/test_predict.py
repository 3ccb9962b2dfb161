import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import TinyResNet
from PIL import Image

from xray_helpers import predict
from xray_helpers.data.dataset import prepare_data
from xray_helpers.evaluation.report import evaluate_run
from xray_helpers.predict import find_images, predict_images
from xray_helpers.settings import Settings
from xray_helpers.training import model as model_module
from xray_helpers.training.checkpoint import BEST, load_model
from xray_helpers.training.train import train


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Folders of runs by task, judged on test, and the folder of their images. Not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_HOME", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(model_module, "get_model", lambda arch, weights=None: TinyResNet())
        folders = {}
        for task in ("cause", "pneumonia"):
            small = {"image_size": 32, "batch_size": 16, "epochs": 1, "weights": "none", "device": "cpu"}
            settings = Settings(data=str(tiny), task=task, learning_rate=1e-3, **small)
            data = prepare_data(settings)
            folders[task] = train(settings, data, verbose=False).folder
            evaluate_run(folders[task], "test", data=data)
        return folders, data.root


@pytest.fixture
def folder(runs):
    """Of a run of two classes."""
    return runs[0]["pneumonia"]


@pytest.fixture
def model(folder):
    """The model of that run."""
    return load_model(folder)


@pytest.fixture
def gray():
    return np.random.default_rng(0).integers(0, 256, (90, 110), dtype=np.uint8)


def test_a_prediction_equals_the_evaluation_of_the_same_file(runs, folder, model):
    expected = pd.read_csv(folder / "predictions-test.csv")
    found = predict_images([runs[1] / path for path in expected["path"]], model)
    np.testing.assert_allclose(found["probability"], expected["probability"], atol=1e-6)
    np.testing.assert_allclose(found["calibrated"], expected["calibrated"], atol=1e-6)
    assert (found["predicted"] == "PNEUMONIA").tolist() == (expected["probability"] >= 0.5).tolist()
    assert list(found) == ["path", "predicted", "probability", "calibrated", "finding", "error"]


def test_every_mode_and_format_is_read_alike(model, tmp_path, gray):
    image, deep = Image.fromarray(gray), Image.fromarray(gray.astype(np.uint16) * 257)
    saved = {
        "a.png": image, "b.tiff": image, "c.bmp": image, "rgb.png": image.convert("RGB"),
        "rgba.png": image.convert("RGBA"), "palette.gif": image.convert("P"), "alpha.png": image.convert("LA"),
        "deep.png": deep, "deep.tiff": deep,
    }  # fmt: skip
    for name, picture in saved.items():
        picture.save(tmp_path / name)
    found = predict_images([tmp_path / name for name in saved], model).set_index("path")["probability"]
    assert found.notna().all()
    np.testing.assert_allclose(found, found.iloc[0], atol=1e-3)


def test_unreadable_files_are_named_and_the_others_predicted(model, tmp_path, gray):
    Image.fromarray(gray).save(tmp_path / "good.png")
    (tmp_path / "cut.jpeg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(50))
    (tmp_path / "empty.png").touch()
    found = predict_images([tmp_path / name for name in ("cut.jpeg", "good.png", "empty.png", "gone.png")], model)
    assert (found["error"] != "").tolist() == [True, False, True, True]
    assert found["probability"].notna().tolist() == [False, True, False, False]
    assert found["predicted"].tolist()[1] in ("NORMAL", "PNEUMONIA")
    nothing = predict_images([tmp_path / "empty.png"], model)
    assert len(nothing) == 1


def test_another_operating_point_decides_otherwise(model, tmp_path, gray):
    Image.fromarray(gray).save(tmp_path / "good.png")
    chance = predict_images([tmp_path / "good.png"], model)["probability"][0]
    for threshold, expected in ((chance - 0.01, "PNEUMONIA"), (chance + 0.01, "NORMAL")):
        model.info = replace(model.info, operating_points={"mine": threshold})
        assert predict_images([tmp_path / "good.png"], model, "mine")["predicted"][0] == expected
    with pytest.raises(ValueError, match="this model has mine"):
        predict_images([tmp_path / "good.png"], model)


def test_more_classes_have_a_column_each(runs, tmp_path, gray):
    model = load_model(runs[0]["cause"])
    Image.fromarray(gray).save(tmp_path / "good.png")
    found = predict_images([tmp_path / "good.png"], model)
    assert list(found) == ["path", "predicted", "p_normal", "p_bacterial", "p_viral", "error"]
    assert found[["p_normal", "p_bacterial", "p_viral"]].sum(axis=1)[0] == pytest.approx(1)


def test_a_model_of_inputs_of_the_caller_s_own_is_refused(model, tmp_path):
    model.info = replace(model.info, preprocess=None)
    with pytest.raises(
        ValueError, match="resnet18 was trained on inputs of the caller's own: how to read a file is not"
    ):
        predict_images([tmp_path / "good.png"], model)


def test_more_files_than_a_batch_keep_their_order(model, tmp_path, gray, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        Image.fromarray(np.roll(gray, 9 * number) // (number + 1)).save(path)
    paths[4].write_bytes(b"x")
    whole = predict_images(paths, model)
    monkeypatch.setattr(predict, "BATCH", 2)
    parts = predict_images(paths, model)
    assert parts["path"].tolist() == [str(path) for path in paths]
    assert (parts["error"] != "").tolist() == [False] * 4 + [True] + [False] * 2
    np.testing.assert_allclose(parts["probability"], whole["probability"], atol=1e-5)
    assert whole["probability"].nunique() == 6


class TestCommandLine:
    @pytest.fixture
    def images(self, tmp_path, gray):
        folder = tmp_path / "my images é"
        (folder / "sub").mkdir(parents=True)
        Image.fromarray(gray).save(folder / "one.png")
        Image.fromarray(gray[::-1]).save(folder / "sub" / "two.JPG")
        (folder / ".hidden.png").touch()
        (folder / "notes.txt").write_text("no image")
        (folder / "letter.pdf").write_text("nor is this")
        return folder

    def call(self, monkeypatch, *arguments):
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
        predict.main()

    @pytest.mark.parametrize("model", [(), ("--model", "models/latest")])
    def test_a_folder_is_predicted_with_the_newest_run(self, folder, images, tmp_path, monkeypatch, capsys, model):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("XRAY_HOME", str(folder.parent.parent))
        self.call(monkeypatch, images, "--output", tmp_path / "out.csv", *model)
        table = pd.read_csv(tmp_path / "out.csv")
        assert list(table) == ["path", "predicted", "probability", "calibrated", "finding"]
        assert [path.rpartition("/")[2] for path in table["path"]] == ["one.png", "two.JPG"]
        assert "out.csv: 2 images, predicted NORMAL" in (out := capsys.readouterr().out)
        assert f"model {folder.name}. Not a medical device." in out

    def test_one_image_and_a_model_file_that_somebody_sent(self, folder, images, tmp_path, monkeypatch):
        sent = shutil.copy(folder / BEST, tmp_path / "sent.safetensors")
        self.call(monkeypatch, images / "one.png", "--model", sent, "--output", tmp_path / "out.csv")
        found = pd.read_csv(tmp_path / "out.csv")
        expected = predict_images([images / "one.png"], load_model(folder)).drop(columns="error")
        pd.testing.assert_frame_equal(found, expected)

    def test_an_unreadable_file_shows_in_the_exit_status(self, folder, images, tmp_path, monkeypatch, capsys):
        (images / "bad.png").write_bytes(b"x")
        with pytest.raises(SystemExit, match="1 of 3 files could not be read"):
            self.call(monkeypatch, images, "--model", folder, "--output", tmp_path / "out.csv")
        assert len(pd.read_csv(tmp_path / "out.csv")) == 2
        assert "unreadable: " in (err := capsys.readouterr().err)
        assert "bad.png" in err

    def test_no_model_and_no_image_are_one_line(self, tmp_path, monkeypatch):
        with pytest.raises(SystemExit, match="error: models/latest.txt is missing: train first"):
            self.call(monkeypatch, tmp_path)
        for place in (tmp_path, tmp_path / "gone"):
            with pytest.raises(FileNotFoundError, match="is neither an image nor a folder with images"):
                find_images(place)
