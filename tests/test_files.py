import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from xray_helpers import files
from xray_helpers.files import (
    CheckpointError,
    CorruptArchiveError,
    DownloadError,
    LeakError,
    WeightsError,
    XrayError,
    atomic_file,
    check_disk,
    exit_on_error,
    make_folder,
)

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


@pytest.mark.fault("disk full while saving")
@pytest.mark.parametrize(
    ("error", "free", "needed", "size"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 10**9, 0, "a little space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 10**9, 45_000_000, "45 MB"),
        (RuntimeError("unexpected pos 64 vs 0"), 1_000_000, 45_000_000, "45 MB"),  # what PyTorch says
    ],
)
def test_a_full_disk_is_named_with_the_space_that_is_needed(tmp_path, monkeypatch, error, free, needed, size):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free))
    path = tmp_path / "run" / "last.pt"
    path.parent.mkdir()
    path.write_text("old")
    expected = f"disk is full: saving run/last.pt needs {size}, and .* intact"
    with pytest.raises(OSError, match=expected) as caught, atomic_file(path, needed):
        raise error
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["last.pt"]


def test_other_errors_while_writing_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 45_000_000))
    for error in (RuntimeError("shapes do not match"), PermissionError(errno.EACCES, "no"), KeyError("name")):
        with pytest.raises(type(error)) as caught, atomic_file(tmp_path / "file", 45_000_000):
            raise error
        assert caught.value is error
    assert not os.listdir(tmp_path)


@pytest.mark.fault("read-only folder")
def test_a_folder_on_a_disk_that_is_read_only_is_named_with_what_to_do(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    assert make_folder(tmp_path / "one" / "two").is_dir()
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(
        OSError, match=r"folder one/two cannot be written to \(read-only file system\).*XRAY_HOME"
    ) as caught:
        make_folder(tmp_path / "one" / "two")
    assert caught.value.errno == errno.EROFS


def test_a_file_in_the_place_of_a_folder_has_its_own_message(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


def test_command_lines_end_in_one_line_and_keep_the_traceback_of_bugs(tmp_path):
    for error in (
        CheckpointError("train first"),
        MemoryError("train first"),
        ValueError("train first"),
        OSError("train first"),
    ):
        with pytest.raises(SystemExit) as caught, exit_on_error():
            raise error
        assert caught.value.code == "error: train first"
    with pytest.raises(SystemExit) as caught, exit_on_error():
        raise KeyboardInterrupt
    assert caught.value.code == 130
    with pytest.raises(TypeError), exit_on_error():
        raise TypeError("a bug of ours")


def test_one_class_catches_every_error_of_the_package():
    for error in (CheckpointError, CorruptArchiveError, DownloadError, LeakError, WeightsError):
        assert issubclass(error, XrayError)
    assert issubclass(CorruptArchiveError, DownloadError)


@pytest.mark.fault("disk too small for what comes")
def test_a_disk_too_small_is_refused_with_what_is_needed_and_free(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 1_000_000_000))
    check_disk(tmp_path / "not" / "there" / "yet", 700_000_000, "This")
    with pytest.raises(OSError, match=r"This needs 2\.2 GB, but only 1\.0 GB are free.*XRAY_HOME"):
        check_disk(tmp_path, 2_000_000_000, "This")


def test_without_a_checkout_the_project_is_where_xray_home_says(tmp_path, monkeypatch):
    """Field case 19: the package installed, and nothing else."""
    package = tmp_path / "site-packages" / "xray_helpers"
    shutil.copytree(files.project_root() / "xray_helpers", package, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from xray_helpers.files import project_root; print(project_root())"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "XRAY_HOME": str(tmp_path / "mine")}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert run.stdout.strip() == str(tmp_path / "mine")
    command[-1:] = ["import sys; sys.argv[1:] = ['x.png']; from xray_helpers.predict import main; main()"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert run.stderr.startswith("error: models/latest.txt is missing")
    del environment["XRAY_HOME"]
    run = subprocess.run(
        [*command[:2], code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert "set XRAY_HOME" in run.stderr


def test_files_are_listed_through_links_without_going_round(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "1").touch()
    (tmp_path / "a" / "b" / "2").touch()
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "a" / "b")
    found = [path.relative_to(tmp_path).as_posix() for path in files.list_files(tmp_path)]
    assert found == ["a/1", "a/b/2", "c/2"]
