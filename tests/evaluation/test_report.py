import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import TinyResNet
from torch import nn

from xray_helpers.data.catalog import read_rows
from xray_helpers.data.dataset import make_loaders, prepare_data
from xray_helpers.data.patients import patients_claim
from xray_helpers.evaluation import __main__ as command_line
from xray_helpers.evaluation import report
from xray_helpers.evaluation.report import (
    evaluate_run,
    folded,
    load_run,
    read_predictions,
    results_table,
    run_settings,
    write_card,
)
from xray_helpers.files import CheckpointError
from xray_helpers.metrics import Bootstrap, calibration, evaluate, format_interval, operating_points
from xray_helpers.predict import predict_images
from xray_helpers.settings import Settings
from xray_helpers.training import model as model_module
from xray_helpers.training.checkpoint import BEST, CARD, load_model
from xray_helpers.training.engine import fit
from xray_helpers.training.train import train


def finished(home, tiny, **changes):
    """Train a tiny network in `home` and judge it on both splits; its settings, its folder and its data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAY_HOME", str(home))
        patch.setattr(model_module, "get_model", lambda arch, weights=None: TinyResNet())
        small = {"image_size": 32, "batch_size": 16, "epochs": 1, "weights": "none", "device": "cpu"}
        settings = Settings(data=str(tiny), **small | changes)
        data = prepare_data(settings)
        folder = train(settings, data, verbose=False).folder
        shutil.copytree(folder, home / "unjudged")
        for split in ("val", "test"):
            evaluate_run(folder, split)
        return settings, folder, data


@pytest.fixture(scope="module")
def binary(tiny, tmp_path_factory):
    """Settings, folder and data of a run of two classes, judged on both splits. Not to be changed."""
    return finished(tmp_path_factory.mktemp("binary"), tiny)


@pytest.fixture(scope="module")
def causes(tiny, tmp_path_factory):
    """The same of a run of three classes."""
    return finished(tmp_path_factory.mktemp("causes"), tiny, task="cause")


@pytest.fixture
def copied(binary, home):
    """A run that was not judged yet, to be changed, in this test's home; its settings, its folder and its data."""
    settings, folder, data = binary
    (home / "models").mkdir()
    shutil.copytree(folder.parent.parent / "unjudged", home / "models" / folder.name)
    (home / "models" / "latest.txt").write_text(folder.name)
    shutil.copytree(folder.parent.parent / "data", home / "data")
    return settings, home / "models" / folder.name, data


def test_the_test_split_is_judged_and_written_beside_validation(binary):
    settings, folder, data = binary
    pd.testing.assert_frame_equal(
        pd.read_csv(folder / "predictions-val.csv"),
        val := pd.read_csv(folder.parent.parent / "unjudged/predictions-val.csv"),
    )
    rows = data.manifest[data.manifest["split"] == "test"]
    table = pd.read_csv(folder / "predictions-test.csv")
    assert table["path"].tolist() == rows["path"].tolist()
    assert table["truth"].tolist() == (rows["label"] == "PNEUMONIA").astype(int).tolist()
    found = json.loads((folder / "metrics.json").read_text())
    points = load_model(folder).info.operating_points
    assert list(points) == ["0.5", "chosen", "sensitivity 0.95"]
    assert points == operating_points(val["truth"], val["probability"])
    expected = evaluate(table["truth"], table["probability"], rows["patient_coarse"], points)
    calibrated = calibration(table["truth"], table["calibrated"], Bootstrap(rows["patient_coarse"]))
    protocol = f"pooled split, {patients_claim(data.manifest)}"
    assert protocol.startswith("pooled split, patients apart; 1 of 103 images")
    assert found["test"] == {"protocol": protocol, **expected, "calibrated": calibrated}
    assert found["val"]["n"] == len(val)
    assert found["weights"] == "none"
    assert found["device"] == "cpu"
    assert found["whose"] == settings.data_description
    assert found["settings"]["arch"] == "resnet18"
    assert found["data_fingerprint"] == data.fingerprint
    assert found["versions"]["torch"]
    assert found["seconds"]["head"] == 0
    trained = pd.read_csv(folder / "history.csv")["seconds"].sum()  # a tenth of a second or less
    assert trained > 0
    assert found["seconds"]["fine_tune"] == round(trained, 1)
    assert found["seconds"]["store"] == data.cache.seconds > 0
    assert str(settings.source().parent) not in (folder / "metrics.json").read_text()


def test_what_is_returned_is_what_was_written_and_the_model_and_the_data_may_be_given(copied):
    _, folder, data = copied
    model = load_model(folder)
    found = {split: evaluate_run(folder, split, model, data) for split in ("val", "test")}
    written = json.loads((folder / "metrics.json").read_text())
    assert {split: written[split] for split in found} == found
    assert evaluate_run(folder) == evaluate_run(str(folder), "test", model) == found["test"]
    assert evaluate_run(folder, data=data) == found["test"]


class OwnNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
        )

    def forward(self, images):
        return self.layers(images)


def test_a_network_of_your_own_is_judged_like_any_other(copied, home):
    _, _, data = copied
    run = fit(OwnNetwork(), make_loaders(data), home / "models" / "own", epochs=1, device="cpu", verbose=False)
    found = evaluate_run(run.folder, "test", run.model, data)
    table = pd.read_csv(run.folder / "predictions-test.csv")
    patients = data.manifest.set_index("path").loc[table["path"], "patient_coarse"]
    expected = evaluate(table["truth"], table["probability"], patients, run.model.info.operating_points)
    assert found["auc"] == expected["auc"]
    assert found["at"] == expected["at"]
    written = (run.folder / "metrics.json").read_text()
    assert json.loads(written)["test"]["n"] == len(table)
    assert str(data.settings.source().parent) not in written


def test_one_preparation_serves_runs_of_other_architectures(copied):
    settings, _, data = copied
    run = train(replace(settings, arch="resnet34"), data, verbose=False)
    assert evaluate_run(run.folder, "test", run.model, data)["n"] == (data.manifest["split"] == "test").sum()


def test_data_of_another_split_is_refused(copied):
    """Its test split holds images that the run was trained on."""
    settings, folder, _ = copied
    for name, value in {"split": "official", "split_seed": 1, "fractions": (0.6, 0.2, 0.2)}.items():
        other = {"fractions": (), name: value}
        data = prepare_data(replace(settings, **other))
        with pytest.raises(CheckpointError, match="was trained with another split: the digest of its manifest is"):
            evaluate_run(folder, "test", load_model(folder), data)
    assert not (folder / "predictions-test.csv").exists()


def test_starting_over_forgets_what_was_found_for_the_old_model(copied):
    settings, folder, data = copied
    evaluate_run(folder, "test")
    assert train(settings, data, fresh=True, verbose=False).folder == folder
    assert not (folder / "predictions-test.csv").exists()
    assert not (folder / "metrics.json").exists()


def test_more_classes_have_a_column_each(causes):
    _, folder, data = causes
    found = json.loads((folder / "metrics.json").read_text())["val"]
    assert list(found["at"]) == ["argmax"]
    assert list(found["classes"]) == ["normal", "bacterial", "viral"]
    assert "calibrated" not in found
    assert len(found["prevalence"]) == 3
    table = pd.read_csv(folder / "predictions-val.csv")
    assert list(table) == ["path", "truth", "p_normal", "p_bacterial", "p_viral", "patient"]
    assert table["path"].tolist() == data.manifest.loc[data.manifest["split"] == "val", "path"].tolist()


def test_predictions_come_with_the_facts_about_each_image(binary):
    _, folder, data = binary
    found, saved = read_predictions(folder, "val", data), read_rows(folder / "predictions-val.csv")
    assert found[["path", "truth", "probability", "calibrated", "patient"]].equals(
        saved[["path", "truth", "probability", "calibrated", "patient"]]
    )
    assert set(found["class"]) == {"PNEUMONIA"}
    assert found["truth"].tolist() == (found["label"] == "PNEUMONIA").astype(int).tolist()
    assert found["p_true"].to_numpy() == pytest.approx(
        np.where(found["truth"], found["probability"], 1 - found["probability"])
    )
    assert (found["log-odds"] > 0).tolist() == (found["answer"] == "PNEUMONIA").tolist()


def test_more_classes_have_a_row_for_each_class(causes):
    _, folder, data = causes
    found, saved = read_predictions(folder, "test", data), read_rows(folder / "predictions-test.csv")
    assert len(found) == 3 * len(saved)
    for name, part in found.groupby("class"):
        assert part["probability"].tolist() == saved[f"p_{name}"].tolist()
        assert (part["truth"] == 1).tolist() == (part["cause"] == name).tolist()
        own = part[part["truth"] == 1]
        assert own["probability"].tolist() == own["p_true"].tolist()
        assert (part["probability"][part["answer"] == name] > 1 / 3).all()


def test_where_patients_are_unknown_each_image_is_its_own(binary):
    _, folder, data = binary
    unknown = replace(data, manifest=data.manifest.assign(patient_fine="file-1"))
    found = read_predictions(folder, "val", unknown)
    assert found["patient"].equals(found["path"])


def test_the_headline_is_part_of_all_results(binary, causes):
    rule = {"accuracy", "sensitivity", "specificity"}
    for (_, folder, _), first, groups in (
        (binary, "all thresholds", {"at 0.5": rule, "at chosen": rule}),
        (causes, "mean over the classes", {"likeliest class": {"accuracy"}}
         | {name: {"AUC", *rule} for name in ("normal", "bacterial", "viral")}),
    ):  # fmt: skip
        judged = json.loads((folder / "metrics.json").read_text())
        found = {"validation": judged["val"], "test": judged["test"]}
        table, whole = results_table(found), results_table(found, whole=True)
        assert list(table) == list(whole)
        test = judged["test"]
        assert list(table)[1] == f"test: {test['n']} images, {test['patients']} patients"
        expected = {first: {"AUC"}} | groups
        assert {(where, name) for where, names in expected.items() for name in names} == set(table.index)
        assert table.loc[(first, "AUC")].iloc[1] == format_interval(test["auc"])
        assert whole.loc[table.index].equals(table)
        assert len(whole) > len(table)
    shown = folded(table, "All figures").data
    assert shown.startswith("<details><summary>All figures</summary><table")
    assert format_interval(test["auc"]) in shown


def test_other_files_than_those_of_the_run_are_refused(copied, monkeypatch):
    _, folder, data = copied
    others = replace(data, cache=replace(data.cache, fingerprint="other"))
    monkeypatch.setattr(report, "prepare_data", lambda _: others)
    for call in (
        lambda: evaluate_run(folder, "test"),
        lambda: evaluate_run(folder, "test", load_model(folder), others),
    ):
        with pytest.raises(
            CheckpointError, match="was trained on other files: their fingerprint is .*, and that of .* other"
        ):
            call()
    with pytest.raises(CheckpointError, match="was trained on other files"):
        load_run(folder)
    assert not (folder / "predictions-test.csv").exists()


@pytest.mark.parametrize("name", ["arch", "classes", "image_size"])
def test_a_model_of_another_run_in_the_folder_is_refused(copied, causes, name):
    _, folder, _ = copied
    content = json.loads((folder / "settings.json").read_text())
    if name == "classes":
        shutil.copy(causes[1] / BEST, folder / BEST)
    else:
        content[name] = {"arch": "resnet34", "image_size": 40}[name]
        (folder / "settings.json").write_text(json.dumps(content))
    with pytest.raises(
        CheckpointError, match=f"{BEST} has {name} .*, its settings or data have .*: they are of two runs"
    ):
        evaluate_run(folder, "val")


def test_a_run_is_loaded_with_its_model_and_its_data(copied):
    _, folder, data = copied
    model, found = load_run(folder)
    assert model.info.classes == ("NORMAL", "PNEUMONIA")
    assert not model.training
    pd.testing.assert_frame_equal(found.manifest, data.manifest)
    assert found.cache.fingerprint == data.cache.fingerprint


def test_damaged_settings_and_other_splits_are_refused(copied):
    settings, folder, _ = copied
    with pytest.raises(ValueError, match="split='train': expected val or test"):
        evaluate_run(folder, "train")
    assert run_settings(folder).fractions == settings.fractions
    (folder / "settings.json").write_text("{")
    with pytest.raises(CheckpointError, match="settings.json cannot be read"):
        evaluate_run(folder, "val")
    (folder / "settings.json").unlink()
    with pytest.raises(CheckpointError, match="settings.json cannot be read"):
        run_settings(folder)


def test_the_environment_may_say_where_the_data_of_a_run_lies(copied, tiny, monkeypatch):
    _, folder, _ = copied
    assert run_settings(folder).data == tiny.name  # found in data/raw
    monkeypatch.setenv("XRAY_DATA", str(tiny))
    assert run_settings(folder).data == str(tiny)


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    command_line.main()


def test_the_command_line_reports_both_splits(copied, monkeypatch, capsys):
    settings, folder, _ = copied
    call(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith(("val", "test"))] == ["val", "test"]
    assert f"models/{folder.name}: metrics.json, {CARD}. Data: {settings.data_description}." in lines[-1]
    assert "Not a medical device." in lines[-1]
    np.testing.assert_equal(sum("pooled split, patients apart" in line for line in lines), 2)
    found = json.loads((folder / "metrics.json").read_text())["test"]
    assert f"test: n = {found['n']} of {found['patients']} patients" in lines[-2]
    assert f"for PNEUMONIA: AUC {format_interval(found['auc'], 4)}, accuracy at 0.5 " in lines[-2]
    assert (folder / CARD).is_file()


def test_the_command_line_takes_the_run_that_is_named(copied, monkeypatch):
    _, folder, _ = copied
    (folder.parent / "latest.txt").write_text("another")
    (folder / BEST).unlink()
    with pytest.raises(SystemExit, match=f"^error: {folder.name} holds no finished model"):
        call(monkeypatch, folder)


@pytest.mark.parametrize("name", ["best.safetensors", "last.pt", "settings.json"])
def test_a_file_of_a_run_stands_for_its_folder(copied, monkeypatch, capsys, name):
    """Field case 9."""
    _, folder, _ = copied
    assert load_model(folder / name).info == load_model(folder).info
    call(monkeypatch, folder / name)
    assert f"models/{folder.name}: metrics.json" in capsys.readouterr().out


def test_the_command_line_says_in_one_line_what_is_missing(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="^error: models/latest.txt is missing: train first"):
        call(monkeypatch)
    with pytest.raises(SystemExit, match=r"^error: .* holds no finished model \(best.safetensors\). Train it first"):
        call(monkeypatch, tmp_path)


class TestCard:
    @pytest.fixture
    def judged(self, binary, tmp_path):
        """A copy of the folder, to be changed."""
        return shutil.copytree(binary[1], tmp_path / binary[1].name)

    def test_it_says_whose_images_how_judged_and_what_not_to_do(self, judged, binary):
        card = write_card(judged)
        assert (judged / CARD).read_text(encoding="utf-8") == card
        found = json.loads((judged / "metrics.json").read_text())
        assert f"| AUC | {format_interval(found['val']['auc'])} | {format_interval(found['test']['auc'])} |" in card
        for point in ("0.5", "chosen", "sensitivity 0.95"):
            assert f"({point}) | {format_interval(found['val']['at'][point]['sensitivity'])} |" in card
        assert f"| test | {found['test']['n']} | {found['test']['patients']} |" in card
        slopes = (format_interval(found[split]["calibrated"]["calibration_slope"]) for split in ("val", "test"))
        assert "| calibration slope (1 is right), calibrated | {} | {} |".format(*slopes) in card
        for words in (
            "Not a medical device", "children of one to five years from one hospital", "Pooled split, patients apart",
            found["data_fingerprint"], "random weights", f'load_model("models/{judged.name}")',
            "Tells PNEUMONIA from NORMAL on chest X-rays.", "counts as ill, is **PNEUMONIA**", "figure for PNEUMONIA |",
            "another share of PNEUMONIA",
        ):  # fmt: skip
            assert words in card
        assert str(binary[1].parent.parent) not in card

    def test_it_lies_beside_the_model_that_is_loaded(self, judged):
        assert load_model(judged).card == ""
        card = write_card(judged)
        assert load_model(judged).card == load_model(judged / BEST).card == card

    def test_the_sample_s_card_says_that_it_is_synthetic(self, judged):
        metrics = json.loads((judged / "metrics.json").read_text())
        metrics["settings"]["data"] = "sample"
        (judged / "metrics.json").write_text(json.dumps(metrics))
        assert "The sample is synthetic" in write_card(judged)

    def test_more_classes(self, causes, tmp_path):
        card = write_card(shutil.copytree(causes[1], tmp_path / "causes"))
        assert "Tells normal, bacterial, viral on chest X-rays." in card
        assert "means over the classes, each against the rest" in card
        assert "counts as ill" not in card
        assert "| sensitivity of viral |" in card
        assert "| accuracy at the likeliest class |" in card

    def test_a_run_that_was_not_judged_on_both_splits_has_no_card(self, causes, tmp_path, monkeypatch):
        home = causes[1].parent.parent
        folder = shutil.copytree(home / "unjudged", tmp_path / "unjudged")
        with pytest.raises(CheckpointError, match="was not judged yet: run make evaluate"):
            write_card(folder)
        monkeypatch.setenv("XRAY_HOME", str(home))
        evaluate_run(folder, "val")
        with pytest.raises(CheckpointError, match="was not judged yet"):
            write_card(folder)


def in_folders(tiny, root, **names):
    """The tiny dataset with its class folders named otherwise, such as NORMAL="0"."""
    for folder in ("train", "test"):
        for old, new in names.items():
            shutil.copytree(tiny / "chest_xray" / folder / old, root / folder / new)
    return root


QUICK = {"task": "folders", "image_size": 32, "batch_size": 16, "epochs": 1, "weights": "none", "device": "cpu"}


class TestTheFinding:
    """Field cases 8 and 5: the class that counts as ill is named, and labels are text in every file."""

    def test_it_is_covid_though_normal_comes_later_in_the_alphabet(self, tiny, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["evaluation"])
        data = in_folders(tiny, tmp_path / "covid", NORMAL="NORMAL", PNEUMONIA="COVID")
        run = train(Settings(data=str(data), **QUICK), verbose=False)
        command_line.main()
        assert run.model.info.classes == ("NORMAL", "COVID")
        assert "; for COVID: AUC" in capsys.readouterr().out.splitlines()[-2]
        table = read_rows(run.folder / "predictions-test.csv")
        assert list(table) == ["path", "truth", "probability", "calibrated", "patient", "finding"]
        assert set(table["finding"]) == {"COVID"}
        assert (table["truth"] == 1).tolist() == table["path"].str.contains("/COVID/").tolist()
        assert json.loads((run.folder / "metrics.json").read_text())["finding"] == "COVID"
        card = (run.folder / CARD).read_text(encoding="utf-8")
        assert "Tells COVID from NORMAL" in card
        assert "children" not in card
        assert "pneumonia" not in card.lower()
        found = predict_images([data / "test" / "COVID" / name for name in ("no.jpeg",)], run.model)
        assert found["finding"].tolist() == ["COVID"]

    @pytest.mark.parametrize(("well", "ill"), [("0", "1"), ("01", "002"), ("NA", "true"), ("None", "1e5")])
    def test_labels_that_look_like_numbers_or_nothing_stay_text(self, tiny, tmp_path, well, ill):
        data = in_folders(tiny, tmp_path / "odd", NORMAL=well, PNEUMONIA=ill)
        settings = Settings(data=str(data), finding=ill, **QUICK)
        first = train(settings, prepare_data(settings), verbose=False)
        again = train(settings, prepare_data(settings), verbose=False)  # the catalog and the split are read back
        assert again.model.info == first.model.info
        assert first.model.info.classes == (well, ill)
        for split in ("val", "test"):
            evaluate_run(first.folder, split)
        manifest = prepare_data(settings).manifest
        table = read_rows(first.folder / "predictions-test.csv").merge(manifest, on="path", how="left")
        assert set(table["finding"]) == {ill}
        assert table["label"].tolist() == [(well, ill)[number] for number in table["truth"]]
        assert table["patient"].tolist() == table["patient_coarse"].tolist()
        assert f"Tells {ill} from {well}" in write_card(first.folder)

    def test_three_classes_have_no_finding_and_no_headline_of_the_first(self, causes, monkeypatch, capsys):
        _, folder, _ = causes
        monkeypatch.setenv("XRAY_HOME", str(folder.parent.parent))
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["finding"] == ""
        assert list(metrics["test"]["classes"]) == ["normal", "bacterial", "viral"]
        table = pd.read_csv(folder / "predictions-test.csv")
        assert list(table) == ["path", "truth", "p_normal", "p_bacterial", "p_viral", "patient"]
        call(monkeypatch, folder)
        line = capsys.readouterr().out.splitlines()[-2]
        assert "; mean over normal, bacterial, viral, each against the rest: AUC" in line
        assert "accuracy at the likeliest class" in line

    def test_data_that_was_prepared_for_another_finding_is_refused(self, binary):
        settings, _, data = binary
        with pytest.raises(ValueError, match="data was prepared with finding=''"):
            train(replace(settings, finding="NORMAL"), data)


@pytest.fixture(scope="module")
def renamed(tiny, tmp_path_factory):
    """The tiny dataset with names that say nothing of patients, and a table of its patients beside it."""
    root, rows = tmp_path_factory.mktemp("renamed"), []
    for number, file in enumerate(sorted((tiny / "chest_xray").glob("t*/*/*"))):
        place = root / "images" / file.relative_to(tiny / "chest_xray").with_name(f"{number:04d}.jpeg")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
        rows.append({"path": place.name, "patient": file.name.split("_")[0][:12]})
    pd.DataFrame(rows).to_csv(root / "labels.csv", index=False)
    return root


@pytest.mark.fault("patients that are not known")
def test_where_patients_are_unknown_nothing_is_said_to_be_over_patients(renamed, tmp_path, monkeypatch, capsys):
    """Field case 10: the command line, `metrics.json` and the card said "patients apart" and "over patients"."""
    _, folder, _ = finished(tmp_path, renamed / "images")
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    found = json.loads((folder / "metrics.json").read_text())["test"]
    assert found["protocol"] == "pooled split, patients unknown: split by image"
    assert found["patients"] is None
    assert found["intervals"] == "over images"
    capsys.readouterr()
    call(monkeypatch, str(folder))
    shown = capsys.readouterr().out
    assert f"test: n = {found['n']} images, pooled split, patients unknown: split by image; " in shown
    assert "(over images)" in shown
    card = (folder / CARD).read_text()
    assert "Pooled split, patients unknown: split by image." in card
    assert f"| test | {found['n']} | unknown |" in card
    assert "intervals by bootstrap over images" in card
    assert "over patients" not in shown + card


def test_a_run_with_a_table_of_patients_is_judged_also_when_the_table_is_gone(renamed, tmp_path, monkeypatch):
    table = tmp_path / "who.csv"
    shutil.copy(renamed / "labels.csv", table)
    _, folder, _ = finished(tmp_path / "home", renamed / "images", patients=str(table))
    monkeypatch.setenv("XRAY_HOME", str(tmp_path / "home"))
    elsewhere = shutil.move(table, tmp_path / "home" / "models")
    assert json.loads((folder / "settings.json").read_text())["patients"] == "who.csv"
    found = evaluate_run(folder, "test")
    assert found["protocol"] == "pooled split, patients apart"
    assert found["intervals"] == "over patients"
    monkeypatch.setenv("XRAY_PATIENTS", elsewhere)
    assert run_settings(folder).patients == elsewhere
