"""Each file that a run saves meets a full disk once."""

import errno
import os

import pytest
from common import assert_same, everything, small

from xray_helpers import files
from xray_helpers.training.train import train

MADE = {"catalog", "splits", "images"}  # from the data; their names go on with a fingerprint
TRAINED = {"settings.json", "history.csv", "last.pt", "best.safetensors", "predictions-val.csv", "latest.txt"}
JUDGED = {"predictions-test.csv", "metrics.json", "model-card.md"}


@pytest.mark.fault("disk full while saving")
@pytest.mark.parametrize(
    ("steps", "saved"),
    [
        pytest.param(lambda settings: train(settings).folder, TRAINED, id="training"),
        pytest.param(everything, TRAINED | JUDGED, id="everything", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_clear_error_at_each_step_and_nothing_is_lost(
    tiny, tmp_path, home, monkeypatch, record_property, steps, saved
):
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    whole = steps(small(tiny))
    monkeypatch.setenv("XRAY_HOME", str(home))
    real, failed, done = os.replace, [], None

    def full(source, target):
        if target.name not in failed:
            failed.append(target.name)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    while done is None:
        before = len(failed)
        try:
            done = steps(small(tiny))
        except OSError as error:
            assert error.errno == errno.ENOSPC
            what = f"the disk is full: saving [^ ]*/{failed[-1]} needs .* What was saved before is intact"
            with pytest.raises(OSError, match=what):
                raise
            assert len(failed) == before + 1
            assert not list(home.rglob(".*.partial*"))
    assert set(failed) >= saved
    assert {name.split("-")[0] for name in failed} >= MADE
    assert_same(done, whole)
    record_property("cases", len(failed))
