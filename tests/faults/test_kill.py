"""A training run killed at random instants, and at each step of saving, ends as if nothing had happened."""

import multiprocessing
import os
import random
import shutil
import signal

import pandas as pd
import pytest
from common import assert_same, small
from conftest import LONG

from xray_helpers import files
from xray_helpers.checkpoint import load_model, resume
from xray_helpers.training import fit

KILLS = 30 if LONG else 5
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
    fit(small(data, epochs=3))


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


@pytest.mark.fault("killed while training")
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


@pytest.mark.fault("killed while saving")
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
