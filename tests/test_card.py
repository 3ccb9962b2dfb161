import json
from dataclasses import replace

import pytest

from xray_helpers.bootstrap import text
from xray_helpers.card import write_card
from xray_helpers.checkpoint import CARD
from xray_helpers.evaluation import evaluate_run
from xray_helpers.facts import CheckpointError
from xray_helpers.settings import Settings
from xray_helpers.training import fit


@pytest.fixture
def settings(tiny):
    return Settings(data=str(tiny), image_size=32, batch_size=16, epochs=1, weights="none", device="cpu")


def judged(settings):
    folder = fit(settings).folder
    for split in ("val", "test"):
        evaluate_run(folder, split)
    return folder


def test_a_card_says_whose_images_how_judged_and_what_not_to_do(settings):
    folder = judged(settings)
    card = write_card(folder)
    assert (folder / CARD).read_text(encoding="utf-8") == card
    found = json.loads((folder / "metrics.json").read_text())
    assert f"| AUC | {text(found['val']['auc'])} | {text(found['test']['auc'])} |" in card
    for point in ("0.5", "chosen", "sensitivity 0.95"):
        assert f"({point}) | {text(found['val']['at'][point]['sensitivity'])} |" in card
    assert f"| test | {found['test']['n']} | {found['test']['patients']} |" in card
    for words in (
        "Not a medical device", "children of one to five years from one hospital", "Pooled split, patients apart",
        found["data_fingerprint"], "random weights", f'load_model("models/{folder.name}")',
    ):  # fmt: skip
        assert words in card
    assert str(settings.home) not in card


def test_the_sample_s_card_says_that_it_is_synthetic(settings):
    folder = judged(settings)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["settings"]["data"] = "sample"
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert "The sample is synthetic" in write_card(folder)


def test_more_classes(settings):
    card = write_card(judged(replace(settings, task="cause")))
    assert "Tells normal, bacterial, viral on chest X-rays." in card
    assert "| sensitivity of viral |" in card
    assert "| accuracy at the likeliest class |" in card


def test_a_run_that_was_not_judged_has_no_card(settings):
    folder = fit(settings).folder
    with pytest.raises(CheckpointError, match="was not judged yet: run make evaluate"):
        write_card(folder)
    evaluate_run(folder, "val")
    with pytest.raises(CheckpointError, match="was not judged yet"):
        write_card(folder)
