"""No network, folders that cannot be written to, names that are not plain English."""

import contextlib
import errno
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from common import everything, small

from xray_helpers import files
from xray_helpers.data.download import fetch
from xray_helpers.training.checkpoint import save_model
from xray_helpers.training.train import train

NOBODY = 65534


@pytest.mark.slow
@pytest.mark.fault("no network")
def test_only_the_download_and_pretrained_weights_need_a_network(tiny, home, monkeypatch):
    def unreachable(*_, **__):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    assert (everything(small(tiny)) / "model-card.md").is_file()


@contextlib.contextmanager
def without_rights():
    """As a user to whom access rights apply: root would write anywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder(tiny, monkeypatch):
    """A folder that any user may enter, unlike pytest's own: source/ with images, home/ for data and models."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        shutil.copytree(tiny / "chest_xray", Path(name, "source"))
        Path(name, "home").mkdir()
        monkeypatch.setenv("XRAY_HOME", str(Path(name, "home")))
        yield Path(name)
        for folder, _, _ in os.walk(name):
            Path(folder).chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="other access rights")
class TestReadOnly:
    @pytest.mark.fault("read-only folder")
    @pytest.mark.parametrize("part", ["data", "models"])
    def test_it_is_named_with_what_to_do(self, open_folder, part):
        settings = small(open_folder / "source", epochs=1)
        model = train(settings).model
        for where, _, _ in os.walk(open_folder / "home" / part):
            Path(where).chmod(0o555)
        what = rf"the folder {part}/.* cannot be written to \(permission denied\).* set XRAY_HOME to a folder of your"
        with without_rights(), pytest.raises(PermissionError, match=what) as error:
            fetch(settings) if part == "data" else save_model(settings.run_folder, model, model.info)
        assert str(open_folder) not in str(error.value)

    @pytest.mark.fault("read-only folder")
    def test_a_new_home_that_cannot_be_made_is_named_too(self, open_folder, monkeypatch):
        monkeypatch.setenv("XRAY_HOME", str(open_folder / "new"))
        open_folder.chmod(0o555)
        with without_rights(), pytest.raises(PermissionError, match=r"the folder data/raw cannot be written to"):
            fetch(small(open_folder / "source"))

    @pytest.mark.fault("read-only folder")
    def test_a_source_need_not_be_writable(self, open_folder):
        (open_folder / "home").chmod(0o777)
        for where, _, _ in os.walk(open_folder / "source"):
            Path(where).chmod(0o555)
        with without_rights():
            root = fetch(small(open_folder / "source"))
            (root / "train" / "mine").mkdir()  # the copy is the user's own

    def test_a_file_in_the_place_of_a_folder_is_no_matter_of_rights(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(FileExistsError):
            files.make_folder(tmp_path / "file")


@pytest.mark.slow
@pytest.mark.fault("non-ASCII and spaced paths")
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_any_name_of_a_folder_will_do(tiny, tmp_path, monkeypatch, kind):
    place = tmp_path / "mes données, été 数据"
    monkeypatch.setenv("XRAY_HOME", str(place / "à la maison"))
    data = place / "côte d'Azur 肺"
    shutil.copytree(tiny / "chest_xray", data)
    if kind == "zip":
        data = Path(shutil.make_archive(str(data), "zip", data))
    folder = everything(small(data, epochs=1))
    assert folder.name.startswith("côte-d-Azur-肺-pooled-pneumonia")
    assert len(pd.read_csv(folder / "predictions-test.csv"))
