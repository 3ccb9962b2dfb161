import os
import shutil
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import TinyResNet
from PIL import Image, ImageOps

from xray_helpers import predict
from xray_helpers.data.dataset import prepare_data
from xray_helpers.evaluation.report import evaluate_run
from xray_helpers.files import DownloadError
from xray_helpers.predict import find_images, predict_images
from xray_helpers.settings import Settings
from xray_helpers.training import model as model_module
from xray_helpers.training.checkpoint import BEST, ModelInfo, load_model
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
    assert list(found) == ["path", "predicted", "probability", "calibrated", "finding", "error", "note"]


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
    assert list(found) == ["path", "predicted", "p_normal", "p_bacterial", "p_viral", "error", "note"]
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


def film(runs, number=0):
    """A training image, whose grays are as usual."""
    return Image.open(sorted(runs[1].glob("train/NORMAL/IM-0*.jpeg"))[number])


def test_a_negative_and_unusual_grays_are_named_and_not_changed(runs, model, tmp_path):
    usual = film(runs)
    negative = ImageOps.invert(usual.convert("L"))
    black = Image.fromarray(np.asarray(usual.convert("L")) // 16)
    for name, image in {"usual": usual, "negative": negative, "black": black}.items():
        image.save(tmp_path / f"{name}.png")
    found = predict_images([tmp_path / f"{name}.png" for name in ("usual", "negative", "black")], model)
    assert found["error"].eq("").all()
    assert found["note"][0] == ""
    assert "its grays look inverted" in found["note"][1]
    assert "to 15 of 0 to 255" in found["note"][2]
    assert "mean of its grays" in found["note"][2]
    assert found["probability"].nunique() == 3


def test_each_model_knows_the_grays_of_its_training_images(runs):
    for folder in runs[0].values():
        gray = load_model(folder).info.gray
        assert 0 < gray["mean"][0] < gray["mean"][1] < 255
        assert 0 < gray["standard deviation"][0] < gray["standard deviation"][1]
        assert len(gray["thumbnail"]) == 64
    assert ModelInfo("resnet18", ("A", "B"), None, 1, 0.5).gray is None


def test_a_model_that_does_not_know_its_training_images_notes_nothing_of_them(model, tmp_path, gray):
    model.info = replace(model.info, gray=None)
    Image.fromarray(gray // 4).save(tmp_path / "good.png")
    assert predict_images([tmp_path / "good.png"], model)["note"][0] == ""


def test_deep_films_are_predicted_as_the_training_data_says(runs, model, tmp_path):
    """A model of 12-bit films has learned where white is; another one takes it from the file, and says so."""
    levels = np.asarray(film(runs).convert("L")).astype(np.uint16) * 4
    Image.fromarray(levels).save(tmp_path / "deep.png")
    Image.fromarray((levels // 4).astype(np.uint8)).save(tmp_path / "same.png")
    Image.fromarray((levels // 16).astype(np.uint8)).save(tmp_path / "dark.png")
    paths = [tmp_path / name for name in ("deep.png", "same.png", "dark.png")]
    found = predict_images(paths, model)
    assert found["probability"][0] == pytest.approx(found["probability"][1], abs=1e-3)
    assert found["note"][0] == "level 1023 taken for white, from this file alone"
    model.info = replace(model.info, preprocess=replace(model.info.preprocess, whites=(4095, None)))
    found = predict_images(paths, model)
    assert found["probability"][0] == pytest.approx(found["probability"][2], abs=1e-3)
    assert "taken for white" not in found["note"][0]


def test_an_odd_name_costs_nothing(model, tmp_path, gray):
    odd = os.fsencode(tmp_path) + b"/scan-\xff.png"
    Image.fromarray(gray).save(tmp_path / "good.png")
    shutil.copy(tmp_path / "good.png", odd)
    files, _ = find_images(tmp_path)
    found = predict_images(files, model)
    assert found["error"].eq("").all()
    assert found["path"].str.rpartition("/")[2].tolist() == ["good.png", r"scan-\xff.png"]
    found.to_csv(tmp_path / "out.csv", index=False)


def test_linked_folders_are_followed_and_loops_are_not(tmp_path, gray):
    (tmp_path / "far").mkdir()
    Image.fromarray(gray).save(tmp_path / "far" / "one.png")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "loop").symlink_to(tmp_path / "here")
    files, hidden = find_images(tmp_path / "here")
    assert files == [tmp_path / "here" / "link" / "one.png"]
    assert hidden == 0


class TestZips:
    @pytest.fixture
    def packed(self, tmp_path, gray):
        """A zip with a film in each of two folders, and system files."""
        Image.fromarray(gray).save(tmp_path / "one.png")
        with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
            archive.mkdir("ward")
            for name in ("ward/a.png", "other/b.png", "__MACOSX/ward/._a.png", "ward/Thumbs.db"):
                archive.write(tmp_path / "one.png", name)
        return tmp_path / "films.zip"

    def test_its_images_are_predicted_as_files_are(self, packed, model, tmp_path):
        files, hidden = find_images(packed)
        assert hidden == 2
        found = predict_images([*files, tmp_path / "one.png"], model)
        assert found["path"].tolist() == [f"{packed}/ward/a.png", f"{packed}/other/b.png", str(tmp_path / "one.png")]
        np.testing.assert_allclose(found["probability"], found["probability"][2])

    def test_a_folder_and_a_file_in_it_can_be_named(self, packed):
        for name in ("ward", "ward/a.png"):
            assert [str(file) for file in find_images(packed / name)[0]] == [f"{packed}/ward/a.png"]
        with pytest.raises(FileNotFoundError, match="is neither an image"):
            find_images(packed / "gone")

    def test_one_that_is_unsafe_or_damaged_is_refused(self, tmp_path, packed):
        with zipfile.ZipFile(packed, "a") as archive:
            archive.writestr("../out.png", b"x")
        (tmp_path / "damaged.zip").write_bytes(b"PK no zip")
        for name, reason in (("films.zip", "unsafe name"), ("damaged.zip", "is not a zip archive, or it is damaged")):
            with pytest.raises(DownloadError, match=reason):
                find_images(tmp_path / name)


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
        assert list(table) == ["path", "predicted", "probability", "calibrated", "finding", "note"]
        assert [path.rpartition("/")[2] for path in table["path"]] == ["one.png", "two.JPG"]
        assert "out.csv: 2 images, predicted NORMAL" in (out := capsys.readouterr().out)
        assert f"model {folder.name}. Not a medical device." in out

    def test_one_image_and_a_model_file_that_somebody_sent(self, folder, images, tmp_path, monkeypatch):
        sent = shutil.copy(folder / BEST, tmp_path / "sent.safetensors")
        self.call(monkeypatch, images / "one.png", "--model", sent, "--output", tmp_path / "out.csv")
        found = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
        expected = predict_images([images / "one.png"], load_model(folder)).drop(columns="error")
        pd.testing.assert_frame_equal(found, expected)

    def test_an_unreadable_file_shows_in_the_exit_status(self, folder, images, tmp_path, monkeypatch, capsys):
        (images / "bad.png").write_bytes(b"x")
        with pytest.raises(SystemExit, match="1 of 3 images could not be read"):
            self.call(monkeypatch, images, "--model", folder, "--output", tmp_path / "out.csv")
        assert len(pd.read_csv(tmp_path / "out.csv")) == 2
        assert "not predicted: " in (err := capsys.readouterr().err)
        assert "bad.png" in err

    def test_each_file_without_an_answer_is_named(self, folder, tmp_path, monkeypatch, capsys, gray):
        """A ward's folder: JPEG, DICOM, HEIC, a film without suffix, a text, system files."""
        images = tmp_path / "ward"
        images.mkdir()
        for name in ("a.jpeg", "b.jpeg", "no_suffix"):
            Image.fromarray(gray).save(images / name, "JPEG")
        (images / "c.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
        (images / "d.dcm").write_bytes(bytes(128) + b"DICM" + bytes(9))
        (images / "notes.txt").write_text("P1")
        (images / "empty.csv").touch()
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (images / name).write_bytes(b"x")
        monkeypatch.setitem(sys.modules, "pydicom", None)
        with pytest.raises(SystemExit, match="2 of 5 images could not be read"):
            self.call(monkeypatch, images, "--model", folder, "--output", tmp_path / "out.csv")
        names = pd.read_csv(tmp_path / "out.csv")["path"].str.rpartition("/")[2].tolist()
        assert names == ["a.jpeg", "b.jpeg", "no_suffix"]
        out, err = capsys.readouterr()
        assert "3 images" in out
        assert "3 hidden or system files left out" in out
        assert "c.heic: damaged, or of a kind of image that cannot be read here: save it as PNG" in err
        assert "d.dcm: DICOM: install pydicom with pip install -e '.[dicom]', or save it as PNG" in err
        assert "notes.txt: not an image" in err
        assert "empty.csv: empty file" in err
        assert "DS_Store" not in err

    def test_files_that_are_no_images_do_not_change_the_status(self, folder, images, tmp_path, monkeypatch, capsys):
        self.call(monkeypatch, images, "--model", folder, "--output", tmp_path / "out.csv")
        err = capsys.readouterr().err
        assert "notes.txt: not an image" in err
        assert "letter.pdf: not an image" in err

    def test_several_paths_work_each_for_itself_or_in_one_text(self, folder, images, tmp_path, monkeypatch):
        plain = shutil.copytree(images, tmp_path / "plain")
        calls = {(images, plain / "one.png"): 3, (f"{plain / 'one.png'} {plain / 'sub'}",): 2, (images,): 2}
        for arguments, count in calls.items():
            self.call(monkeypatch, *arguments, "--model", folder, "--output", tmp_path / "out.csv")
            assert len(pd.read_csv(tmp_path / "out.csv")) == count

    def test_notes_are_printed(self, folder, tmp_path, monkeypatch, capsys, gray):
        Image.fromarray(gray).convert("RGBA").save(tmp_path / "alpha.png")
        self.call(monkeypatch, tmp_path / "alpha.png", "--model", folder, "--output", tmp_path / "out.csv")
        assert f"note: {tmp_path / 'alpha.png'}: alpha laid on black" in capsys.readouterr().err
        assert pd.read_csv(tmp_path / "out.csv")["note"][0].startswith("alpha laid on black")

    def test_no_model_and_no_image_are_one_line(self, tmp_path, monkeypatch):
        with pytest.raises(SystemExit, match="error: models/latest.txt is missing: train first"):
            self.call(monkeypatch, tmp_path)
        for place in (tmp_path, tmp_path / "gone"):
            with pytest.raises(FileNotFoundError, match="is neither an image nor a folder or zip with images"):
                find_images(place)
