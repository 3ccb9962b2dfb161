"""The recipes of docs/reuse.md, run as they are printed."""

import ast
import re

import numpy as np
import pytest
import torch
from PIL import Image

from xray_helpers.data.splits import check_manifest
from xray_helpers.data.transforms import Augmentation
from xray_helpers.files import CheckpointError, project_root
from xray_helpers.training.checkpoint import load_model, resume

PAGE = (project_root() / "docs" / "reuse.md").read_text(encoding="utf-8")
SECTIONS = {
    int(number): re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    for number, text in re.findall(r"^## (\d+)\. (.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}
SETUP = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
AT_MOST = 15  # lines of code, without imports


def lines_of_code(code):
    imported = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= set(range(node.lineno, node.end_lineno + 1))
    kept = (line.strip() for number, line in enumerate(code.splitlines(), 1) if number not in imported)
    return sum(bool(line) and not line.startswith("#") for line in kept)


def test_the_page_has_eight_sections():
    assert list(SECTIONS) == list(range(1, 9))


@pytest.mark.parametrize("number", SECTIONS)
def test_each_takes_few_lines_and_no_private_name(number):
    code = SECTIONS[number]
    assert lines_of_code(code) <= AT_MOST
    names = {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)}
    names |= {
        name.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom) for name in node.names
    }
    assert not {name for name in names if name.startswith("_") and name != "__name__"}
    assert "monkeypatch" not in code


@pytest.fixture
def example(tiny, tmp_path, monkeypatch):
    """Run the block of a section, after the first of the page, in an empty folder; returns the names that it made."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"HOME": tmp_path, "DATA": tiny, "IMAGE_SIZE": 32, "DEVICE": "cpu", "WEIGHTS": "none"}.items():
        monkeypatch.setenv(f"XRAY_{name}", str(value))

    def run(number):
        names = {"__name__": "example"}
        exec(SETUP, names)
        exec(SECTIONS[number], names)
        return names

    return run


def test_1_a_network_of_one_s_own_is_trained_kept_loaded_and_judged(example):
    names = example(1)
    assert len(names["run"].history) == 3
    assert sum(isinstance(module, torch.nn.Conv2d) for module in names["model"].modules()) == 5
    assert names["model"].info.arch == "Sequential"
    for one, two in zip(names["model"].parameters(), names["run"].model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert names["found"]["n"] == (names["data"].manifest["split"] == "val").sum()
    assert 0 <= names["found"]["auc"]["low"] <= names["found"]["auc"]["value"] <= 1


def test_2_batches_of_one_s_own(example):
    names = example(2)
    run = names["run"]
    assert run.model.info.classes == names["data"].classes
    assert run.model.info.preprocess is None
    assert run.model.info.split == ""  # nothing is known about whose images these are
    with pytest.raises(ValueError, match=r"Augmentation takes gray images of shape \(B, 1, S, S\), got \(2, 3,"):
        Augmentation("light", 32)(torch.zeros(2, 3, 32, 32))


def test_3_another_loss_optimizer_schedule_and_augmentation(example):
    names = example(3)
    for loss in ("weighted", "focal"):
        identity = resume(f"models/{loss}")["identity"]
        assert identity["loss"] == f"example.{loss}"
        assert identity["optimizer"] == "example.sgd"
        assert identity["schedule"].endswith("CosineAnnealingLR")
        assert "widest=0.15" in identity["augment"]
    state = resume("models/focal")
    assert state["schedule"]["T_max"] == len(names["loaders"].train)
    assert state["optimizer"]["param_groups"][0]["momentum"] == 0.9


def test_4_each_epoch_goes_to_a_logger(example):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names = example(4)
    events = EventAccumulator("models/logged/tensorboard").Reload()
    for name in ("train_loss", "val_loss", "val_auc"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(row["epoch"], pytest.approx(row[name])) for _, row in names["run"].history.iterrows()]


def test_5_cross_validation_by_patient(example):
    names = example(5)
    rows = names["data"].manifest[names["data"].manifest["split"] != "test"]
    assert len(names["tables"]) == 5
    assert sorted(names["pooled"]["path"]) == sorted(rows["path"])
    assert names["found"]["n"] == len(rows)
    assert names["found"]["patients"] == rows["patient_coarse"].nunique()
    assert names["found"]["intervals"] == "over patients"
    check_manifest(names["fold"], "coarse")


def test_6_more_epochs_and_a_new_run_from_an_earlier_one(example):
    names = example(6)
    assert names["longer"].folder == names["run"].folder
    assert names["longer"].history["stage"].tolist() == ["fine-tune", "more epochs", "more epochs"]
    assert names["other"].folder != names["run"].folder
    assert names["other"].model.info.weights == names["run"].folder.name


def test_7_a_heat_map_of_one_file(example):
    example(7)
    picture = Image.open("models/heat-map.png")
    assert picture.format == "PNG"
    colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (np.ptp(colours, axis=1) > 40).any()  # colour over the gray image


def test_8_export_with_the_preprocessing_inside(example):
    names = example(8)
    images = names["images"]
    program = torch.export.load("models/model.pt2").module()
    for part in (images, images[:1]):
        chance = program(part)
        assert chance.shape == (len(part),)
        expected = names["run"].model(names["run"].model.info.preprocess(part))[:, 0].sigmoid()
        torch.testing.assert_close(chance, expected)


def test_8_onnx_answers_the_same(example):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    names = example(8)
    images = names["images"][:3]
    session = runtime.InferenceSession("models/model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.tensor(found), names["network"](images), rtol=1e-4, atol=1e-5)


def test_a_lambda_is_refused_with_advice(example):
    names = example(1)
    with pytest.raises(ValueError, match=r"loss: a lambda has no name .* use def, or fit\(name=…\)"):
        names["fit"](names["make_cnn"](), names["loaders"], "models/other", loss=lambda logits, labels: logits.sum())
    with pytest.raises(CheckpointError, match="no finished model"):
        load_model("models/other", into=names["make_cnn"]())
