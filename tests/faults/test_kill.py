"""A training run killed at random instants, and at each step of saving, ends as if nothing had happened."""

import json
import multiprocessing
import os
import random
import shutil
import signal

import pandas as pd
import pytest
import torch
from conftest import LONG
from safetensors.torch import load_file

from xray_helpers import files
from xray_helpers.checkpoint import LAST, load_model, resume
from xray_helpers.facts import BEST
from xray_helpers.settings import Settings
from xray_helpers.training import fit

KILLS = 30 if LONG else 5
MEASURED = ["seconds", "images_per_second"]
# A server that has imported everything forks the runs, so that the instants fall into training and not into imports.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["xray_helpers.training"])


def die_at(move):
    """Kill this process at the n-th file that is saved: half of the times before it has its name, else right after."""
    real, moves = os.replace, []

    def replace_and_die(source, target):
        moves.append(target)
        if len(moves) == move // 2 and move % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if len(moves) == move // 2 and move % 2:
            os.kill(os.getpid(), signal.SIGKILL)

    files.os.replace = replace_and_die


def train(data, home, move=None):
    os.environ["XRAY_HOME"] = str(home)
    if move is not None:
        die_at(move)
    fit(Settings(data=str(data), image_size=32, batch_size=16, epochs=3, weights="none", device="cpu"))


def finished(data, home, patience=None, move=None):
    """Train in a process of its own, killed after `patience` seconds or at a move; whether it came to its end."""
    process = CONTEXT.Process(target=train, args=(data, home, move))
    process.start()
    process.join(patience)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode == 0


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run that nobody killed."""
    home = tmp_path_factory.mktemp("whole")
    assert finished(tiny, home)
    (folder,) = (home / "models").glob("*-*")
    return folder


@pytest.fixture
def killed(tmp_path, whole):
    """Where the runs that are killed write."""
    return tmp_path / "models" / whole.name


def check(killed, reached):
    """Whatever the instant: what was kept can be loaded, and no finished epoch is lost; returns the last of them."""
    state = resume(killed)
    epoch = state["epoch"] if state else 0
    assert epoch >= reached
    if state:
        assert load_model(killed).about.epoch >= 1
    return epoch


@pytest.mark.fault("killed while training (SIGKILL at random instants)")
def test_sigkill_at_any_instant_loses_at_most_an_epoch_and_changes_nothing(
    tiny, tmp_path, whole, killed, record_property
):
    lasting = pd.read_csv(whole / "history.csv")["seconds"].sum()
    rng, count, reached = random.Random(5), 0, 0
    while count < KILLS:
        if finished(tiny, tmp_path, rng.uniform(0.2, 1.5 * lasting)):
            assert_same(killed, whole)
            shutil.rmtree(killed)  # the kills that are left begin anew
            reached = 0
        else:
            count += 1
            reached = check(killed, reached)
    assert finished(tiny, tmp_path)
    assert_same(killed, whole)
    record_property("cases", KILLS)


@pytest.mark.fault("killed while saving (SIGKILL before and after each file takes its name)")
def test_sigkill_while_saving_leaves_the_old_file_or_the_new_one(tiny, tmp_path, whole, killed, record_property):
    count = 0
    # After four files of the data, the first epoch saves six (best.json twice, around the weights), later ones three or
    # six, the end five. 21: the last state has its name, and the tables do not know of it yet.
    for move in range(2, 60) if LONG else (4, 5, 9, 21, 26):
        if finished(tiny, tmp_path, move=move):
            break
        count += 1
        check(killed, 0)
        assert finished(tiny, tmp_path)
        assert_same(killed, whole)
        shutil.rmtree(killed)
    assert count >= (20 if LONG else 5)
    record_property("cases", count)


def assert_same(folder, whole):
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
