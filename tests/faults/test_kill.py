"""A training run killed at random instants ends as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from xray_helpers.checkpoint import BEST, LAST, load_state

KILLS = 30 if os.environ.get("FAULTS") == "long" else 5
TRAIN = """
import sys
from xray_helpers.settings import Settings
from xray_helpers.training import fit
settings = Settings(data=sys.argv[1], image_size=32, batch_size=16, epochs=3, weights="none", device="cpu")
print("ready", flush=True)
print(fit(settings).folder, flush=True)
"""
MEASURED = ["seconds", "images_per_second"]


def train(data, home, patience=None):
    """Train in a process of its own, killed `patience` seconds after its imports; its folder, None when killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(data)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "XRAY_HOME": str(home)},
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    try:
        output, errors = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None
    assert process.returncode == 0, errors
    return Path(output.splitlines()[-1])


def test_sigkill_at_any_instant_loses_at_most_an_epoch_and_changes_nothing(tiny, tmp_path):
    whole, home = train(tiny, tmp_path / "whole"), tmp_path / "killed"
    lasting = pd.read_csv(whole / "history.csv")["seconds"].sum()
    rng, folder, killed, reached = random.Random(5), home / "models" / whole.name, 0, 0
    while killed < KILLS:
        if train(tiny, home, rng.uniform(0.1, 1.2 * lasting)):
            assert_same(folder, whole)
            shutil.rmtree(folder)  # the kills that are left begin anew
            reached = 0
        else:
            killed += 1
            state = load_state(folder)  # readable, whenever it was
            assert (state["epoch"] if state else 0) >= reached
            reached = state["epoch"] if state else 0
    train(tiny, home)
    assert_same(folder, whole)
    assert not list(folder.glob(".*.partial*"))


def assert_same(folder, whole):
    for name in ("best.json", "settings.json"):
        assert json.loads((folder / name).read_text()) == json.loads((whole / name).read_text())
    assert_equal(load_file(folder / BEST), load_file(whole / BEST))
    states = [torch.load(run / LAST, weights_only=True) for run in (folder, whole)]
    assert_equal(*(state["model"] for state in states))
    history, expected = (pd.read_csv(run / "history.csv").drop(columns=MEASURED) for run in (folder, whole))
    pd.testing.assert_frame_equal(history, expected, check_exact=True)


def assert_equal(weights, expected):
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
