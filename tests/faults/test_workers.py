"""Processes that load images are killed, or hang."""

import multiprocessing
import os
import signal
import time

import pytest
from common import assert_same, small
from torch.utils.data import get_worker_info

from xray_helpers.data import dataset
from xray_helpers.data.dataset import XrayDataset
from xray_helpers.files import XrayError
from xray_helpers.training.checkpoint import resume
from xray_helpers.training.train import train

pytestmark = pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="workers are not forked here")


@pytest.mark.fault("killed loading process")
def test_a_killed_worker_is_one_clear_error_and_the_run_goes_on(tiny, home, tmp_path, monkeypatch):
    settings, real = small(tiny, workers=2), XrayDataset.__getitem__
    folder = settings.run_folder

    def killed(self, index):
        if get_worker_info() and (folder / "last.pt").exists():  # in the second epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(XrayDataset, "__getitem__", killed)
        with pytest.raises(XrayError, match=r"was killed, .* Set WORKERS to fewer, or to 0 .* epochs are kept"):
            train(settings)
    assert resume(folder)["epoch"] == 1
    train(settings)
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    assert_same(folder, train(small(tiny, workers=2)).folder)


@pytest.mark.slow
@pytest.mark.fault("hung loading process")
def test_a_hung_worker_is_given_up_in_time(tiny, monkeypatch):
    real = XrayDataset.__getitem__

    def hang(self, index):
        if get_worker_info():
            time.sleep(600)
        return real(self, index)

    monkeypatch.setattr(XrayDataset, "__getitem__", hang)
    monkeypatch.setattr(dataset, "BATCH_TIMEOUT", 2)
    with pytest.raises(XrayError, match="gave no batch for 2 s. Set WORKERS to fewer"):
        train(small(tiny, workers=1))
