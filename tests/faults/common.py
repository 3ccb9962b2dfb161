"""All steps of a small run, as one user would call them, and what must be the same after a fault."""

import json

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from xray_helpers.data.dataset import prepare_data
from xray_helpers.evaluation.report import evaluate_run, write_card
from xray_helpers.predict import predict_images
from xray_helpers.settings import Settings
from xray_helpers.training.checkpoint import BEST, LAST
from xray_helpers.training.train import train

MEASURED = ["seconds", "images_per_second"]  # columns of the history that depend on the clock


def small(data, **values):
    """Settings of a run of a second or two."""
    defaults = {"image_size": 32, "batch_size": 16, "epochs": 2, "weights": "none", "device": "cpu"}
    return Settings(**{"data": str(data), **defaults, **values})


def everything(settings):
    """From the files to the model card, and predictions of new images; the run's folder."""
    data = prepare_data(settings)
    run = train(settings, data)
    for split in ("val", "test"):
        evaluate_run(run.folder, split)
    write_card(run.folder)
    paths = [settings.raw_folder / "chest_xray" / path for path in data.manifest["path"].head(3)]
    assert (predict_images(paths, run.model)["error"] == "").all()
    return run.folder


def assert_same(folder, whole):
    """Two runs have the same result, bit for bit, and nothing half-written is left."""
    assert json.loads((folder / "settings.json").read_text()) == json.loads((whole / "settings.json").read_text())
    assert (folder / "predictions-val.csv").read_bytes() == (whole / "predictions-val.csv").read_bytes()
    assert_equal(load_file(folder / BEST), load_file(whole / BEST))
    assert facts_of(folder) == facts_of(whole)
    states = [torch.load(run / LAST, weights_only=True) for run in (folder, whole)]
    assert_equal(*(state["model"] for state in states))
    for one, two in zip(*(state["optimizer"]["state"].values() for state in states), strict=True):
        assert_equal(one, two)
    assert states[0]["schedule"] == states[1]["schedule"]
    history, expected = (pd.read_csv(run / "history.csv").drop(columns=MEASURED) for run in (folder, whole))
    pd.testing.assert_frame_equal(history, expected, check_exact=True)
    assert not list(folder.glob(".*.partial*"))


def facts_of(folder):
    """What the header of the model's file says besides its tensors: the facts, and the checksum of both."""
    with safe_open(folder / BEST, "pt") as content:
        return content.metadata()


def assert_equal(weights, expected):
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
