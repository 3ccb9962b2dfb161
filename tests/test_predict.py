import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from xray_helpers import predict
from xray_helpers.evaluation import evaluate_run
from xray_helpers.predict import find_images, predict_images
from xray_helpers.settings import Settings
from xray_helpers.training import fit


@pytest.fixture
def settings(tiny):
    return Settings(
        data=str(tiny), image_size=32, batch_size=16, epochs=1, weights="none", device="cpu", learning_rate=1e-3
    )


@pytest.fixture
def run(settings):
    return fit(settings)


@pytest.fixture
def gray():
    return np.random.default_rng(0).integers(0, 256, (90, 110), dtype=np.uint8)


def test_a_prediction_equals_the_evaluation_of_the_same_file(run, settings):
    evaluate_run(run.folder, "test")
    expected = pd.read_csv(run.folder / "predictions-test.csv")
    root = settings.raw_folder / "chest_xray"
    found = predict_images([root / path for path in expected["path"]], run.model)
    np.testing.assert_allclose(found["probability"], expected["probability"], atol=1e-6)
    np.testing.assert_allclose(found["calibrated"], expected["calibrated"], atol=1e-6)
    assert (found["predicted"] == "PNEUMONIA").tolist() == (expected["probability"] >= 0.5).tolist()
    assert list(found) == ["path", "predicted", "probability", "calibrated", "error"]


def test_every_mode_and_format_is_read_alike(run, tmp_path, gray):
    image, deep = Image.fromarray(gray), Image.fromarray(gray.astype(np.uint16) * 257)
    saved = {
        "a.png": image, "b.tiff": image, "c.bmp": image, "rgb.png": image.convert("RGB"),
        "rgba.png": image.convert("RGBA"), "palette.gif": image.convert("P"), "alpha.png": image.convert("LA"),
        "deep.png": deep, "deep.tiff": deep,
    }  # fmt: skip
    for name, picture in saved.items():
        picture.save(tmp_path / name)
    found = predict_images([tmp_path / name for name in saved], run.model).set_index("path")["probability"]
    assert found.notna().all()
    np.testing.assert_allclose(found, found.iloc[0], atol=1e-3)


def test_unreadable_files_are_named_and_the_others_predicted(run, tmp_path, gray):
    Image.fromarray(gray).save(tmp_path / "good.png")
    (tmp_path / "cut.jpeg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(50))
    (tmp_path / "empty.png").touch()
    found = predict_images([tmp_path / name for name in ("cut.jpeg", "good.png", "empty.png", "gone.png")], run.model)
    assert (found["error"] != "").tolist() == [True, False, True, True]
    assert found["probability"].notna().tolist() == [False, True, False, False]
    assert found["predicted"].tolist()[1] in ("NORMAL", "PNEUMONIA")
    nothing = predict_images([tmp_path / "empty.png"], run.model)
    assert len(nothing) == 1


def test_another_operating_point_decides_otherwise(run, tmp_path, gray):
    Image.fromarray(gray).save(tmp_path / "good.png")
    chance = predict_images([tmp_path / "good.png"], run.model)["probability"][0]
    for threshold, expected in ((chance - 0.01, "PNEUMONIA"), (chance + 0.01, "NORMAL")):
        run.model.about = replace(run.model.about, operating_points={"mine": threshold})
        assert predict_images([tmp_path / "good.png"], run.model, "mine")["predicted"][0] == expected
    with pytest.raises(ValueError, match="this model has mine"):
        predict_images([tmp_path / "good.png"], run.model)


def test_more_classes_have_a_column_each(settings, tmp_path, gray):
    run = fit(replace(settings, task="cause"))
    Image.fromarray(gray).save(tmp_path / "good.png")
    found = predict_images([tmp_path / "good.png"], run.model)
    assert list(found) == ["path", "predicted", "p_normal", "p_bacterial", "p_viral", "error"]
    assert found[["p_normal", "p_bacterial", "p_viral"]].sum(axis=1)[0] == pytest.approx(1)


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
    def test_a_folder_is_predicted_with_the_newest_run(self, run, images, tmp_path, monkeypatch, capsys, model):
        monkeypatch.chdir(tmp_path)
        self.call(monkeypatch, images, "--output", tmp_path / "out.csv", *model)
        table = pd.read_csv(tmp_path / "out.csv")
        assert list(table) == ["path", "predicted", "probability", "calibrated"]
        assert [path.rpartition("/")[2] for path in table["path"]] == ["one.png", "two.JPG"]
        assert "out.csv: 2 images, predicted NORMAL" in capsys.readouterr().out

    def test_an_unreadable_file_shows_in_the_exit_status(self, run, images, tmp_path, monkeypatch, capsys):
        (images / "bad.png").write_bytes(b"x")
        with pytest.raises(SystemExit, match="1 of 3 files could not be read"):
            self.call(monkeypatch, images, "--model", run.folder, "--output", tmp_path / "out.csv")
        assert len(pd.read_csv(tmp_path / "out.csv")) == 2
        assert "unreadable: " in (err := capsys.readouterr().err)
        assert "bad.png" in err

    def test_no_model_and_no_image_are_one_line(self, tmp_path, monkeypatch):
        with pytest.raises(SystemExit, match="error: models/latest.txt is missing: train first"):
            self.call(monkeypatch, tmp_path)
        with pytest.raises(FileNotFoundError, match="no folder with images"):
            find_images(tmp_path)
