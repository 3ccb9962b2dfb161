"""A training run killed at any instant, and at each step of saving, ends as if nothing had happened."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from multiprocessing.forkserver import ensure_running

import pandas as pd
import pytest
from common import assert_same, small
from conftest import LONG
from networks import use_tiny_networks

from xray_helpers import files
from xray_helpers.training import engine
from xray_helpers.training.checkpoint import load_model, resume
from xray_helpers.training.train import train

KILLS = 30 if LONG else 5
EPOCHS = 3
# A server that has imported everything forks the runs, so that the instants fall into training and not into imports.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_file(move):
    """Kill this process at a file that is saved: before it has its name (even numbers, from 2), or right after."""
    real, moves = os.replace, []

    def replace_and_die(source, target):
        moves.append(target)
        if len(moves) == move // 2 and move % 2 == 0:
            die()
        real(source, target)
        if len(moves) == move // 2 and move % 2:
            die()

    files.os.replace = replace_and_die


def die_at_batch(number):
    """Kill this process in its n-th batch of training."""
    real, batches = engine.classification_loss, []

    def loss(logits, labels):
        if logits.requires_grad:
            batches.append(len(labels))
            if len(batches) == number:
                die()
        return real(logits, labels)

    engine.classification_loss = loss


def train_until_killed(data, home, begun, move, batch):
    os.environ["XRAY_HOME"] = str(home)
    use_tiny_networks()
    if move:
        die_at_file(move)
    if batch:
        die_at_batch(batch)
    real = engine.fit

    def fit(*given, **named):
        begun.set()
        return real(*given, **named)

    train.__globals__["fit"] = fit
    train(small(data, epochs=EPOCHS), verbose=False)


def finished(data, home, seconds=None, move=None, batch=None):
    """Train in a process of its own, killed so long after training began, or in a batch, or at a file that is saved.

    Returns:
        Whether it came to its end.
    """
    begun = CONTEXT.Event()
    process = CONTEXT.Process(target=train_until_killed, args=(data, home, begun, move, batch))
    process.start()
    if seconds is not None:
        begun.wait()
        time.sleep(seconds)
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode == 0


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run that nobody killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where the server finds what it imports
        ensure_running()
    home = tmp_path_factory.mktemp("whole")
    assert finished(tiny, home)
    (folder,) = (home / "models").glob("[!.]*-*")
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
        assert load_model(killed).info.epoch >= 1
    return epoch


@pytest.mark.fault("killed while training")
def test_sigkill_in_a_batch_loses_at_most_its_epoch_and_changes_nothing(tiny, tmp_path, whole, killed, record_property):
    # Each goes on from the one before. An epoch has four batches.
    for batch, epoch in ((2, 0), (7, 1), (4, 1), (5, 2)):
        assert not finished(tiny, tmp_path, batch=batch)
        assert check(killed, epoch) == epoch
    assert finished(tiny, tmp_path)
    assert_same(killed, whole)
    record_property("cases", 4)


@pytest.mark.slow
@pytest.mark.fault("killed while training")
def test_sigkill_at_any_instant_loses_at_most_an_epoch_and_changes_nothing(
    tiny, tmp_path, whole, killed, record_property
):
    lasting = pd.read_csv(whole / "history.csv")["seconds"].sum()
    rng, count, reached = random.Random(5), 0, 0
    while count < KILLS:
        if finished(tiny, tmp_path, seconds=rng.uniform(0, 1.5 * lasting)):
            assert_same(killed, whole)
            shutil.rmtree(killed)  # the kills that are left begin anew
            reached = 0
        else:
            count += 1
            reached = check(killed, reached)
    assert finished(tiny, tmp_path)
    assert_same(killed, whole)
    record_property("cases", KILLS)


# Six files of the data come first. An epoch saves its model where it is better, its state and its history; after the
# last come the history again, settings, the calibrated model, its predictions and latest.txt.
QUICK = (14, 17, 19)


@pytest.mark.fault("killed while saving")
@pytest.mark.parametrize("moves", [QUICK, pytest.param(range(2, 70), marks=pytest.mark.slow)], ids=["some", "all"])
def test_sigkill_while_saving_leaves_the_old_file_or_the_new_one(tiny, tmp_path, whole, killed, record_property, moves):
    count = 0
    for move in moves:
        if finished(tiny, tmp_path, move=move):
            break
        count += 1
        check(killed, 0)
        assert finished(tiny, tmp_path)
        assert_same(killed, whole)
        shutil.rmtree(killed)
    assert count >= (len(QUICK) if moves is QUICK else 20)
    record_property("cases", count)
