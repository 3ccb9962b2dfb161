import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from xray_helpers import archives, phantoms
from xray_helpers.archives import CorruptArchiveError, DownloadError
from xray_helpers.catalog import build_catalog
from xray_helpers.download import fetch
from xray_helpers.settings import Settings
from xray_helpers.splits import resplit


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of the tiny dataset that a test may change."""
    return shutil.copytree(tiny, tmp_path / "My data ü")


@pytest.fixture
def small_sample(monkeypatch):
    write = phantoms.write_dataset
    monkeypatch.setattr(phantoms, "write_dataset", lambda folder, **_: write(folder, patients=60))


def snapshot(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def raw(home):
    return sorted(path.name for path in (home / "data" / "raw").iterdir() if path.suffix != ".lock")


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def test_the_sample_arrives_with_its_truth_and_without_the_second_copy(small_sample, home, capsys):
    root = fetch(Settings())
    assert root == home / "data/raw/sample/chest_xray"
    assert sorted(path.name for path in root.iterdir()) == ["test", "train", "val"]
    assert (root.parent / "truth.csv").is_file()
    assert (root.parent / "masks").is_dir()
    assert "other files left out" in capsys.readouterr().out
    assert raw(home) == ["sample"]


def test_a_rerun_returns_at_once_and_touches_nothing(small_sample, home, monkeypatch, capsys):
    root = fetch(Settings())
    before = snapshot(root)
    monkeypatch.setattr(phantoms, "write_dataset", lambda folder, **_: pytest.fail("drawn again"))
    assert fetch(Settings()) == root
    assert "complete" in capsys.readouterr().out
    assert snapshot(root) == before


def test_folder_and_zip_end_in_the_same_files(folder, tmp_path, home):
    from_folder = fetch(Settings(data=str(folder)))
    from_zip = fetch(Settings(data=str(zipped(folder, tmp_path / "packed.zip"))))
    assert snapshot(from_folder) == snapshot(from_zip)
    assert raw(home) == ["My-data-ü", "packed"]


def test_any_kaggle_shaped_folder_of_several_classes_works(tiny, tmp_path):
    source = tmp_path / "animals"
    files = sorted((tiny / "chest_xray" / "train").glob("*/*.jpeg"))[:60]
    for index, file in enumerate(files):
        target = source / "train" / ("cat", "dog", "cow")[index % 3] / f"{index}.jpeg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    catalog = build_catalog(fetch(Settings(data=str(source))))
    assert set(catalog["label"]) == {"cat", "dog", "cow"}
    assert set(resplit(catalog)["split"]) == {"train", "val", "test"}


def test_missing_files_are_noticed_and_the_data_is_made_anew(folder, capsys):
    settings = Settings(data=str(folder))
    root = fetch(settings)
    before = snapshot(root)
    shutil.rmtree(root / "val")
    assert snapshot(fetch(settings)) == before
    assert "files are missing; making it anew" in capsys.readouterr().out


def test_a_new_version_of_the_phantoms_replaces_the_sample(small_sample, monkeypatch, capsys):
    fetch(Settings())
    monkeypatch.setattr(phantoms, "VERSION", phantoms.VERSION + 1)
    fetch(Settings())
    assert "made by another version" in capsys.readouterr().out


def test_other_files_under_the_same_name_are_refused_and_the_first_kept(folder, home):
    root = fetch(Settings(data=str(folder)))
    before = snapshot(root)
    (folder / "chest_xray" / "train" / "NORMAL" / "new.jpeg").write_bytes(b"new")
    with pytest.raises(DownloadError, match=r"was made from other files than My data ü now holds. Rename the source"):
        fetch(Settings(data=str(folder)))
    assert snapshot(root) == before


def test_the_copy_goes_on_when_its_source_is_gone(folder, capsys):
    settings = Settings(data=str(folder))
    root = fetch(settings)
    shutil.rmtree(folder)
    assert fetch(Settings(data=str(folder))) == root
    assert "their source is gone" in capsys.readouterr().out
    next(root.glob("*/*/*")).unlink()
    with pytest.raises(DownloadError, match="data/raw/My-data-ü is not complete, and its source My data ü is not"):
        fetch(settings)


def test_a_folder_that_somebody_else_put_there_is_left_alone(home, folder):
    mine = home / "data/raw/kaggle/chest_xray/train/NORMAL/mine.jpeg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DownloadError, match="was not made here. Move it away"):
        fetch(Settings(data="kaggle"))
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize("names", [[], ["train/NORMAL/a.jpeg"], ["NORMAL/a.jpeg", "PNEUMONIA/b.jpeg"]])
def test_a_folder_of_another_shape_is_refused_and_nothing_is_left_behind(tmp_path, home, names):
    source = tmp_path / "source"
    source.mkdir()
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"x")
    with pytest.raises(DownloadError, match="source holds"):
        fetch(Settings(data=str(source)))
    assert raw(home) == []


def test_a_file_that_is_no_zip_is_refused_without_naming_the_machine(tmp_path, home):
    (tmp_path / "page.zip").write_text("<html>")
    with pytest.raises(CorruptArchiveError, match=r"^page\.zip is not a zip archive"):
        fetch(Settings(data=str(tmp_path / "page.zip")))
    assert raw(home) == []


@pytest.mark.fault("disk full while saving")
def test_a_full_disk_while_writing_leaves_what_was_there(folder, home, monkeypatch):
    settings = Settings(data=str(folder))
    before = snapshot(fetch(settings))
    (home / "data/raw/My-data-ü/chest_xray/val/NORMAL").joinpath("extra.jpeg").write_bytes(b"x")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives.shutil, "copyfile", full)
    with pytest.raises(DownloadError, match="The disk is full. Nothing was changed"):
        fetch(settings)
    kept = snapshot(home / "data/raw/My-data-ü/chest_xray")
    assert before.items() <= kept.items()
    assert raw(home) == ["My-data-ü"]


def test_a_move_that_fails_or_was_cut_short_puts_the_old_data_back(folder, home, monkeypatch):
    settings = Settings(data=str(folder))
    root = fetch(settings)
    before = snapshot(root)
    root.parent.rename(root.parent.with_name(".My-data-ü.old"))  # killed between the two renames
    assert snapshot(fetch(settings)) == before
    (root / "val" / "NORMAL" / "extra.jpeg").write_bytes(b"x")
    rename = Path.rename

    def fail(path, target):
        if path.name.endswith(".partial"):
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError):
        fetch(settings)
    assert before.items() <= snapshot(root).items()
    assert raw(home) == ["My-data-ü"]


@pytest.mark.fault("disk too small for what comes")
def test_a_disk_too_small_is_refused_before_anything_is_written(folder, home, monkeypatch):
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000_000))
    with pytest.raises(OSError, match="Copying the images needs 0.2 GB, but only 0.1 GB are free"):
        fetch(Settings(data=str(folder)))
    assert raw(home) == []


def test_the_marker_names_no_path_of_the_machine(folder, home):
    fetch(Settings(data=str(folder)))
    marker = home / "data/raw/My-data-ü/complete.json"
    assert str(folder.parent) not in marker.read_text()
    assert json.loads(marker.read_text())["files"] > 100


def test_a_kill_while_drawing_leaves_no_half_sample_and_the_next_run_completes_it(home):
    command = [sys.executable, "-m", "xray_helpers.download"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    partial = home / "data/raw/.sample.partial/source/chest_xray/train"
    deadline = time.monotonic() + 60
    while not list(partial.rglob("*.jpeg")) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert list(partial.rglob("*.jpeg"))
    assert not (home / "data/raw/sample").exists()
    root = fetch(Settings())
    assert len(build_catalog(root)) > 500
    assert raw(home) == ["sample"]


def test_two_at_once_both_get_the_whole_dataset(folder, home):
    command = [sys.executable, "-m", "xray_helpers.download", "--data", str(folder)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) for _ in range(2)]
    said = sorted(run.communicate(timeout=60)[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert "complete" in said[1] or "complete" in said[0]
    assert len(list((home / "data/raw/My-data-ü/chest_xray").glob("*/*/*"))) > 100


def test_the_command_line_ends_with_one_message(tmp_path, home):
    (tmp_path / "page.zip").write_text("<html>")
    command = [sys.executable, "-m", "xray_helpers.download", "--data", str(tmp_path / "page.zip")]
    run = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("error: page.zip is not a zip archive")
    assert len(run.stderr.splitlines()) == 1
