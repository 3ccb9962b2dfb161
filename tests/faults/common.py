"""All steps of a small run, as one user would call them."""

import json

import pandas as pd
import torch
from safetensors.torch import load_file

from xray_helpers.card import write_card
from xray_helpers.checkpoint import LAST
from xray_helpers.dataset import prepare
from xray_helpers.evaluation import evaluate_run
from xray_helpers.facts import BEST
from xray_helpers.predict import predict_images
from xray_helpers.settings import Settings
from xray_helpers.training import fit

MEASURED = ["seconds", "images_per_second"]  # columns of the history that depend on the clock


def small(data, **values):
    """Settings of a run of a second or two."""
    defaults = {"image_size": 32, "batch_size": 16, "epochs": 2, "weights": "none", "device": "cpu"}
    return Settings(**{"data": str(data), **defaults, **values})


def everything(settings):
    """From the files to the model card, and predictions of new images; the run's folder."""
    manifest = prepare(settings)
    run = fit(settings)
    for split in ("val", "test"):
        evaluate_run(run.folder, split)
    write_card(run.folder)
    found = predict_images([settings.raw_folder / "chest_xray" / path for path in manifest["path"].head(3)], run.model)
    assert (found["error"] == "").all()
    return run.folder


def assert_same(folder, whole):
    """Two runs have the same result, bit for bit, and nothing half-written is left."""
    for name in ("best.json", "settings.json"):
        assert json.loads((folder / name).read_text()) == json.loads((whole / name).read_text())
    assert_equal(load_file(folder / BEST), load_file(whole / BEST))
    states = [torch.load(run / LAST, weights_only=True) for run in (folder, whole)]
    assert_equal(*(state["model"] for state in states))
    for one, two in zip(*(state["optimizer"]["state"].values() for state in states), strict=True):
        assert_equal(one, two)
    history, expected = (pd.read_csv(run / "history.csv").drop(columns=MEASURED) for run in (folder, whole))
    pd.testing.assert_frame_equal(history, expected, check_exact=True)
    assert not list(folder.glob(".*.partial*"))


def assert_equal(weights, expected):
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
