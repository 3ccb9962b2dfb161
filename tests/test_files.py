import os
import shutil
from collections import namedtuple

import pytest

from xray_helpers import files
from xray_helpers.files import atomic_file, check_disk

Usage = namedtuple("Usage", "total used free")


def test_a_file_appears_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with atomic_file(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
        assert partial.parent == path.parent
        assert partial.suffix == ".csv"
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["table.csv"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="no space"), atomic_file(path) as partial:
        partial.write_text("ha")
        raise OSError("no space")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_the_bytes_are_synced_before_the_file_moves_into_place(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: done.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda *names: (done.append("replace"), replace(*names)))
    with atomic_file(tmp_path / "file") as partial:
        partial.touch()
    assert done[:2] == ["fsync", "replace"]


@pytest.mark.fault("disk too small for what comes")
def test_a_disk_too_small_is_refused_with_what_is_needed_and_free(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 1_000_000_000))
    check_disk(tmp_path / "not" / "there" / "yet", 700_000_000, "This")
    with pytest.raises(OSError, match=r"This needs 2\.2 GB, but only 1\.0 GB are free.*XRAY_HOME"):
        check_disk(tmp_path, 2_000_000_000, "This")
