"""Each file that a run saves meets a full disk once."""

import errno
import os

import pytest
from common import assert_same, everything, small

from xray_helpers import files

SAVED = {
    "settings.json", "history.csv", "last.pt", "best.safetensors", "best.json", "predictions-val.csv", "latest.txt",
    "predictions-test.csv", "metrics.json", "model-card.md",
}  # fmt: skip


@pytest.mark.fault("disk full while saving")
def test_a_full_disk_is_one_clear_error_at_each_step_and_nothing_is_lost(
    tiny, tmp_path, home, monkeypatch, record_property
):
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    whole = everything(small(tiny))
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
            done = everything(small(tiny))
        except OSError as error:
            assert error.errno == errno.ENOSPC
            what = f"the disk is full: saving [^ ]*/{failed[-1]} needs .* What was saved before is intact"
            with pytest.raises(OSError, match=what):
                raise
            assert len(failed) == before + 1
            assert not list(home.rglob(".*.partial*"))
    assert set(failed) >= SAVED
    assert {name.split("-")[0] for name in failed} >= {"catalog", "splits", "images"}
    assert_same(done, whole)
    record_property("cases", len(failed))
