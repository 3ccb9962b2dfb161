import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from xray_helpers import evaluation
from xray_helpers.bootstrap import Bootstrap
from xray_helpers.calibration import calibration, operating_points
from xray_helpers.dataset import make_loaders
from xray_helpers.evaluation import evaluate_run, run_settings
from xray_helpers.facts import CheckpointError, read_about
from xray_helpers.metrics import evaluate
from xray_helpers.settings import Settings
from xray_helpers.training import fit


@pytest.fixture
def settings(tiny):
    return Settings(data=str(tiny), image_size=32, batch_size=16, epochs=1, weights="none", device="cpu")


def test_the_test_split_is_judged_once_and_written_beside_validation(settings):
    folder = fit(settings).folder
    val = pd.read_csv(folder / "predictions-val.csv")
    for split in ("val", "test"):
        evaluate_run(folder, split)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "predictions-val.csv"), val)
    manifest = make_loaders(settings).manifest
    rows = manifest[manifest["split"] == "test"]
    table = pd.read_csv(folder / "predictions-test.csv")
    assert table["path"].tolist() == rows["path"].tolist()
    found = json.loads((folder / "metrics.json").read_text())
    points = read_about(folder).operating_points
    assert list(points) == ["0.5", "chosen", "sensitivity 0.95"]
    assert points == operating_points(val["truth"], val["probability"])
    expected = evaluate(table["truth"], table["probability"], rows["patient_coarse"], points)
    calibrated = calibration(table["truth"], table["calibrated"], Bootstrap(rows["patient_coarse"]))
    assert found["test"] == {"protocol": "pooled split, patients apart", **expected, "calibrated": calibrated}
    assert found["val"]["n"] == len(val)
    assert found["weights"] == "none"
    assert found["device"] == "cpu"
    assert found["data_fingerprint"] == make_loaders(settings).fingerprint
    assert found["versions"]["torch"]
    assert found["seconds"]["fine_tune"] > 0
    assert found["seconds"]["store"] == make_loaders(settings).val_set.store.seconds > 0
    assert str(settings.source().parent) not in (folder / "metrics.json").read_text()


def test_starting_over_forgets_what_was_said_of_the_old_model(settings):
    folder = fit(settings).folder
    evaluate_run(folder, "test")
    fit(settings, fresh=True)
    assert not (folder / "predictions-test.csv").exists()
    assert not (folder / "metrics.json").exists()


def test_more_classes_have_a_column_each(settings):
    folder = fit(replace(settings, task="cause")).folder
    found = evaluate_run(folder, "val")
    assert list(found["at"]) == ["argmax"]
    assert list(found["classes"]) == ["normal", "bacterial", "viral"]
    assert "calibrated" not in found
    assert len(found["prevalence"]) == 3


def test_other_files_than_those_of_the_run_are_refused(settings, monkeypatch):
    folder = fit(settings).folder
    real = evaluation.make_loaders
    monkeypatch.setattr(evaluation, "make_loaders", lambda *a, **k: replace(real(*a, **k), fingerprint="other"))
    with pytest.raises(CheckpointError, match="was trained on other files: their fingerprint is .*, and that of"):
        evaluate_run(folder, "test")
    assert not (folder / "predictions-test.csv").exists()


def test_damaged_settings_and_other_splits_are_refused(settings):
    folder = fit(settings).folder
    with pytest.raises(ValueError, match="split='train': expected val or test"):
        evaluate_run(folder, "train")
    assert run_settings(folder).fractions == settings.fractions
    (folder / "settings.json").write_text("{")
    with pytest.raises(CheckpointError, match="settings.json cannot be read"):
        evaluate_run(folder, "val")


def test_the_command_line_reports_both_splits(settings, monkeypatch, capsys):
    fit(settings)
    monkeypatch.setattr(sys, "argv", ["evaluation"])
    evaluation.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith(("val", "test"))] == ["val", "test"]
    assert "Not a medical device." in lines[-1]
    np.testing.assert_equal(sum("pooled split, patients apart" in line for line in lines), 2)
