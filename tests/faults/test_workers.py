"""Processes that load images are killed, or hang."""

import multiprocessing
import os
import signal
import time

import pytest
from common import assert_same, small
from torch.utils.data import get_worker_info

from xray_helpers import dataset
from xray_helpers.checkpoint import resume
from xray_helpers.dataset import LoadingError, XrayDataset
from xray_helpers.training import fit

pytestmark = pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="workers are not forked here")


@pytest.mark.fault("killed loading process")
def test_a_killed_worker_is_one_clear_error_and_the_run_goes_on(tiny, home, tmp_path, monkeypatch):
    settings, real = small(tiny, workers=2), XrayDataset.__getitems__
    folder = settings.run_folder

    def killed(self, indices):
        if get_worker_info() and (folder / "last.pt").exists():  # in the second epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(XrayDataset, "__getitems__", killed)
        with pytest.raises(LoadingError, match=r"was killed, .* Set WORKERS to fewer, or to 0 .* epochs are kept"):
            fit(settings)
    assert resume(folder)["epoch"] == 1
    fit(settings)
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    assert_same(folder, fit(small(tiny, workers=2)).folder)


@pytest.mark.fault("hung loading process")
def test_a_hung_worker_is_given_up_in_time(tiny, monkeypatch):
    real = XrayDataset.__getitems__

    def hang(self, indices):
        if get_worker_info():
            time.sleep(600)
        return real(self, indices)

    monkeypatch.setattr(XrayDataset, "__getitems__", hang)
    monkeypatch.setattr(dataset, "PATIENCE", 2)
    with pytest.raises(LoadingError, match="gave no batch for 2 s. Set WORKERS to fewer"):
        fit(small(tiny, workers=1))
