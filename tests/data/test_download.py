import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from xray_helpers.data import download, synthetic
from xray_helpers.data.catalog import audit, build_catalog
from xray_helpers.data.download import extract, fetch
from xray_helpers.data.splits import resplit
from xray_helpers.files import CorruptArchiveError, DownloadError
from xray_helpers.settings import Settings

COMMAND = [sys.executable, "-m", "xray_helpers.data.download"]
GOOD = ("chest_xray/train/NORMAL/a.jpeg", "chest_xray/train/PNEUMONIA/b.jpeg")


@pytest.fixture(scope="module")
def few(tiny, tmp_path_factory):
    """A few files of the tiny dataset: two of each class and folder, twice, and the Mac's leftovers."""
    root = tmp_path_factory.mktemp("few") / "chest_xray"
    for folder in sorted((tiny / "chest_xray").glob("[tv]*/*")):
        for file in sorted(folder.iterdir())[:2]:
            for copy in (root, root / "chest_xray"):
                target = copy / file.relative_to(tiny / "chest_xray")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
    (root / ".DS_Store").write_bytes(b"\0")
    return root.parent


@pytest.fixture
def folder(few, tmp_path):
    """A Kaggle-shaped folder that a test may change."""
    return shutil.copytree(few, tmp_path / "My data ü")


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Without waiting for all that this machine has to write."""
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.fixture
def small_sample(tiny, monkeypatch):
    """Instead of being drawn, the sample is copied from the tiny dataset; yields the strength asked for, each time."""
    strengths = []

    def write(folder, strength):
        strengths.append(strength)
        shutil.copytree(tiny, folder)

    monkeypatch.setattr(synthetic, "write_dataset", write)
    return strengths


def snapshot(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def raw(home):
    return sorted(path.name for path in (home / "data" / "raw").iterdir() if path.suffix != ".lock")


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in members:
            archive.writestr(name, members[name] if isinstance(members, dict) else name.encode())
    return path


class TestFetch:
    def test_the_sample_arrives_with_its_truth_and_without_the_second_copy(self, small_sample, home, capsys):
        root = fetch(Settings())
        assert root == home / "data/raw/sample/chest_xray"
        assert sorted(path.name for path in root.iterdir()) == ["test", "train", "val"]
        assert sorted(path.name for path in root.parent.iterdir()) == [
            "chest_xray",
            "complete.json",
            "left-out.csv",
            "masks",
            "truth.csv",
        ]
        said = capsys.readouterr().out
        number = len(snapshot(root))
        assert f"data/raw/sample: {number} images (train " in said
        assert f"{number + 1} other files left out: {number} in a second copy, 1 hidden or system file" in said
        counts = pd.read_csv(root.parent / "left-out.csv", keep_default_na=False)
        assert list(counts) == ["reason", "class", "files"]
        assert set(counts["class"]) == {"NORMAL", "PNEUMONIA", ""}
        assert counts["files"].sum() == number + 1
        assert raw(home) == ["sample"]
        assert small_sample == [download.SAMPLE_STRENGTH]

    def test_all_is_on_the_disk_before_it_takes_its_name(self, folder, home, monkeypatch):
        seen = []
        monkeypatch.setattr(os, "sync", lambda: seen.append(raw(home)))
        root = fetch(Settings(data=str(folder)))
        assert seen == [[".My-data-ü.partial"]]
        assert (root.parent / "complete.json").is_file()

    def test_a_rerun_returns_at_once_and_touches_nothing(self, small_sample, capsys):
        root = fetch(Settings())
        before = snapshot(root)
        assert fetch(Settings()) == root
        assert len(small_sample) == 1
        assert "complete" in capsys.readouterr().out
        assert snapshot(root) == before

    def test_folder_and_zip_end_in_the_same_files(self, folder, tmp_path, home, capsys):
        from_folder = fetch(Settings(data=str(folder)))
        from_zip = fetch(Settings(data=str(zipped(folder, tmp_path / "packed.zip"))))
        assert snapshot(from_folder) == snapshot(from_zip)
        assert raw(home) == ["My-data-ü", "packed"]
        said = capsys.readouterr().out
        assert said.count("12 images (train 4, val 4, test 4) in ") == said.count("s; 13 other files left out") == 2

    def test_a_dataset_that_kaggle_has_mounted_is_copied_and_not_downloaded(self, few, home, monkeypatch):
        monkeypatch.setattr(download, "KAGGLE_INPUTS", (few / "missing", few))
        monkeypatch.setattr(download, "_download", lambda folder: pytest.fail("it was downloaded"))
        before = snapshot(few)
        images = fetch(Settings(data="kaggle"))
        assert images == home / "data" / "raw" / "kaggle" / "chest_xray"
        assert len(list(images.rglob("*.jpeg"))) == len(list((few / "chest_xray").glob("[tv]*/*/*.jpeg")))
        assert snapshot(few) == before

    def test_any_kaggle_shaped_folder_of_several_classes_works(self, tiny, tmp_path):
        source = tmp_path / "animals"
        files = sorted((tiny / "chest_xray" / "train").glob("*/*.jpeg"))[:60]
        for index, file in enumerate(files):
            target = source / "train" / ("cat", "dog", "cow")[index % 3] / f"{index}.jpeg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
        catalog = build_catalog(fetch(Settings(data=str(source))))
        assert set(catalog["label"]) == {"cat", "dog", "cow"}
        assert set(resplit(catalog)["split"]) == {"train", "val", "test"}

    def test_missing_files_are_noticed_and_the_data_is_made_again(self, folder, capsys):
        settings = Settings(data=str(folder))
        root = fetch(settings)
        before = snapshot(root)
        shutil.rmtree(root / "val")
        assert snapshot(fetch(settings)) == before
        assert "files are missing; making it again" in capsys.readouterr().out

    def test_a_new_version_of_the_phantoms_replaces_the_sample(self, small_sample, monkeypatch, capsys):
        fetch(Settings())
        monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
        fetch(Settings())
        assert "made by another version" in capsys.readouterr().out
        assert len(small_sample) == 2

    @pytest.mark.parametrize("packed", [False, True])
    def test_other_files_under_the_same_name_are_refused_and_the_first_kept(self, folder, tmp_path, packed):
        source = zipped(folder, tmp_path / "packed.zip") if packed else folder
        root = fetch(Settings(data=str(source)))
        before = snapshot(root)
        if packed:  # another image of the same size: a zip holds checksums
            image = next((folder / "chest_xray" / "train" / "NORMAL").iterdir())
            image.write_bytes(image.read_bytes()[:-1] + b"!")
            zipped(folder, source)
        else:
            (folder / "chest_xray" / "train" / "NORMAL" / "new.jpeg").write_bytes(b"new")
        with pytest.raises(
            DownloadError, match=f"was made from other files or labels than {source.name} now has. Rename the"
        ):
            fetch(Settings(data=str(source)))
        assert snapshot(root) == before

    def test_the_copy_is_used_when_its_source_is_gone(self, folder, capsys):
        settings = Settings(data=str(folder))
        root = fetch(settings)
        shutil.rmtree(folder)
        assert fetch(Settings(data=str(folder))) == root
        assert "their source is gone" in capsys.readouterr().out
        next(root.glob("*/*/*")).unlink()
        with pytest.raises(DownloadError, match="data/raw/My-data-ü is not complete, and its source My data ü is not"):
            fetch(settings)

    def test_a_folder_that_somebody_else_put_there_is_left_alone(self, home):
        mine = home / "data/raw/kaggle/chest_xray/train/NORMAL/mine.jpeg"
        mine.parent.mkdir(parents=True)
        mine.write_bytes(b"mine")
        with pytest.raises(DownloadError, match="was not made here. Move it away"):
            fetch(Settings(data="kaggle"))
        assert mine.read_bytes() == b"mine"

    @pytest.mark.parametrize("names", [[], ["train/NORMAL/a.jpeg"], ["a.jpeg", "b.jpeg"]])
    def test_a_folder_of_another_structure_is_refused_and_nothing_is_left_behind(self, tmp_path, home, names):
        source = tmp_path / "source"
        source.mkdir()
        for name in names:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(b"x")
        with pytest.raises(DownloadError, match="source holds"):
            fetch(Settings(data=str(source)))
        assert raw(home) == []

    def test_a_file_that_is_no_zip_is_refused_without_naming_the_machine(self, tmp_path, home):
        (tmp_path / "page.zip").write_text("<html>")
        with pytest.raises(CorruptArchiveError, match=r"^page\.zip is not a zip archive"):
            fetch(Settings(data=str(tmp_path / "page.zip")))
        assert raw(home) == []

    @pytest.mark.fault("disk full while saving")
    def test_a_full_disk_while_writing_leaves_what_was_there(self, folder, home, monkeypatch):
        settings = Settings(data=str(folder))
        before = snapshot(fetch(settings))
        (home / "data/raw/My-data-ü/chest_xray/val/NORMAL").joinpath("extra.jpeg").write_bytes(b"x")

        def full(source, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(DownloadError, match="The disk is full. Nothing was changed"):
            fetch(settings)
        kept = snapshot(home / "data/raw/My-data-ü/chest_xray")
        assert before.items() <= kept.items()
        assert raw(home) == ["My-data-ü"]

    def test_an_exchange_that_fails_or_was_cut_short_puts_the_old_data_back(self, folder, home, monkeypatch):
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

    def test_an_exchange_that_was_cut_short_after_the_new_data_came_is_finished(self, folder, home):
        settings = Settings(data=str(folder))
        root = fetch(settings)
        before = snapshot(root)
        root.parent.with_name(".My-data-ü.old").mkdir()  # killed after the second rename
        assert snapshot(fetch(settings)) == before
        assert raw(home) == ["My-data-ü"]

    @pytest.mark.fault("disk too small for what comes")
    def test_a_disk_too_small_is_refused_before_anything_is_written(self, folder, home, monkeypatch):
        usage = shutil.disk_usage(home)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000_000))
        with pytest.raises(OSError, match="Copying the images needs 0.2 GB, but only 0.1 GB are free"):
            fetch(Settings(data=str(folder)))
        assert raw(home) == []

    def test_the_marker_names_no_path_of_the_machine(self, folder, home):
        root = fetch(Settings(data=str(folder)))
        marker = home / "data/raw/My-data-ü/complete.json"
        assert str(folder.parent) not in marker.read_text()
        assert json.loads(marker.read_text())["files"] == len(snapshot(root)) == 12

    def test_the_marker_of_the_first_release_is_still_understood(self, tmp_path, home):
        """What was made by version 0.1 must not be refused as made from other files."""
        source = tmp_path / "mine"
        for name in GOOD:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(b"x")
        with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
            archive.writestr("chest_xray/", b"")
            for name in GOOD:
                archive.writestr(name, b"x")
        origins = []
        for data in (source, tmp_path / "packed.zip"):
            origins.append(json.loads((fetch(Settings(data=str(data))).parent / "complete.json").read_text())["origin"])
        assert origins == ["mine 03ec8beffb770342", "packed.zip ba8ff0c264dbe1fc"]

    def test_a_kill_while_drawing_leaves_no_half_sample_and_the_next_run_completes_it(self, home, small_sample):
        run = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
        partial = home / "data/raw/.sample.partial/chest_xray/train"
        deadline = time.monotonic() + 60
        while not list(partial.rglob("*.jpeg")) and time.monotonic() < deadline:
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert list(partial.rglob("*.jpeg"))
        assert not (home / "data/raw/sample").exists()
        root = fetch(Settings())
        truth = (root.parent / "truth.csv").read_text().splitlines()
        assert len(snapshot(root)) == len(truth) - 1 + 2  # and the two broken files
        assert raw(home) == ["sample"]

    def test_two_at_once_both_get_the_whole_dataset(self, folder, home):
        command = [*COMMAND, "--data", str(folder)]
        runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) for _ in range(2)]
        said = sorted(run.communicate(timeout=60)[0] for run in runs)
        assert [run.returncode for run in runs] == [0, 0]
        assert "complete" in said[1] or "complete" in said[0]
        assert len(list((home / "data/raw/My-data-ü/chest_xray").glob("*/*/*"))) == 12

    def test_the_command_line_ends_with_one_message(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "page.zip").write_text("<html>")
        monkeypatch.setattr(sys, "argv", ["download", "--data", str(tmp_path / "page.zip")])
        with pytest.raises(SystemExit) as error:
            download.main()
        assert str(error.value).startswith("error: page.zip is not a zip archive")
        assert len(str(error.value).splitlines()) == 1
        assert capsys.readouterr().err == ""


class TestExtracting:
    @pytest.mark.fault("unsafe archive")
    @pytest.mark.parametrize(
        "name",
        ["../evil.jpeg", "chest_xray/../../evil.jpeg", "/etc/evil.jpeg", "..\\evil.jpeg", "C:/evil.jpeg", "\\evil"],
    )
    def test_a_name_that_leads_elsewhere_stops_everything(self, tmp_path, name):
        path = make_zip(tmp_path / "bad.zip", [*GOOD, name])
        with pytest.raises(DownloadError, match="unsafe name"):
            extract(path, tmp_path / "images")
        assert not (tmp_path / "images").exists()
        assert [entry.name for entry in tmp_path.iterdir()] == ["bad.zip"]

    @pytest.mark.fault("unsafe archive")
    def test_a_link_in_an_archive_is_refused(self, tmp_path):
        link = zipfile.ZipInfo("chest_xray/train/NORMAL/link.jpeg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
            archive.writestr(link, "/etc/passwd")
        with pytest.raises(DownloadError, match="unsafe name"):
            extract(tmp_path / "bad.zip", tmp_path / "images")

    @pytest.mark.fault("unsafe archive")
    def test_a_bomb_is_refused_before_it_unpacks(self, tmp_path):
        path = make_zip(tmp_path / "bomb.zip", {GOOD[0]: bytes(30_000_000), GOOD[1]: b"x"})
        with pytest.raises(DownloadError, match=r"would unpack to 2 files of 0\.0 GB"):
            extract(path, tmp_path / "images")
        assert not (tmp_path / "images").exists()

    @pytest.mark.parametrize(("limit", "value"), [("MAX_FILES", 1), ("MAX_BYTES", 10)])
    def test_too_many_files_or_bytes_are_refused(self, tmp_path, monkeypatch, limit, value):
        monkeypatch.setattr(download, limit, value)
        with pytest.raises(DownloadError, match="more than any set of radiographs needs"):
            extract(make_zip(tmp_path / "big.zip", GOOD), tmp_path / "images")

    def test_a_wrong_checksum_is_found(self, tmp_path):
        path = tmp_path / "bad.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name in GOOD:
                archive.writestr(name, b"pixels" * 50)
        data = bytearray(path.read_bytes())
        data[data.index(b"pixels") + 30] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptArchiveError, match="damaged.*Bad CRC"):
            extract(path, tmp_path / "images")

    @pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 and then nothing"])
    def test_what_is_not_a_zip_is_named(self, tmp_path, content):
        (tmp_path / "page.zip").write_bytes(content)
        with pytest.raises(CorruptArchiveError, match=r"page\.zip is not a zip archive, or it is damaged"):
            extract(tmp_path / "page.zip", tmp_path / "images")

    def test_an_encrypted_archive_is_refused(self, tmp_path):
        path = make_zip(tmp_path / "locked.zip", GOOD)
        data = bytearray(path.read_bytes())
        for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            position = data.index(magic)
            data[position + offset] |= 1
        path.write_bytes(data)
        with pytest.raises(DownloadError, match="is encrypted"):
            extract(path, tmp_path / "images")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_two_members_of_the_same_name_are_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
            for name in (*GOOD, GOOD[0]):
                archive.writestr(name, name)
        with pytest.raises(DownloadError, match="contains the same name twice"):
            extract(tmp_path / "twice.zip", tmp_path / "images")

    def test_a_folder_and_a_zip_of_it_give_the_same_files(self, tmp_path, few):
        zipped(few, tmp_path / "few.zip")
        left_out = extract(tmp_path / "few.zip", tmp_path / "from_zip"), extract(few, tmp_path / "from_folder")
        assert left_out[0].equals(left_out[1])
        assert left_out[0].groupby("reason")["files"].sum().to_dict() == {
            "hidden or system file": 1,
            "in a second copy": 12,
        }
        assert snapshot(tmp_path / "from_zip") == snapshot(tmp_path / "from_folder")
        images = sorted(path.relative_to(few / "chest_xray") for path in (few / "chest_xray").glob("[tv]*/*/*.jpeg"))
        assert sorted(snapshot(tmp_path / "from_zip")) == [path.as_posix() for path in images]
        assert len(images) == 12

    @pytest.mark.fault("archive of another kind")
    def test_backslashes_in_a_zip_separate_folders(self, tmp_path):
        """Field case 6: a zip made on Windows."""
        path = make_zip(tmp_path / "windows.zip", ["x\\", *(name.replace("/", "\\") for name in GOOD)])
        extract(path, tmp_path / "images")
        assert sorted(snapshot(tmp_path / "images")) == ["train/NORMAL/a.jpeg", "train/PNEUMONIA/b.jpeg"]
        path = make_zip(tmp_path / "twice.zip", [*GOOD, GOOD[0].replace("/", "\\")])
        with pytest.raises(DownloadError, match="contains the same name twice"):
            extract(path, tmp_path / "more")

    @pytest.mark.fault("archive of another kind")
    @pytest.mark.parametrize("method", [9, 93, 97])  # Deflate64, Zstandard, WavPack
    def test_unsupported_compression_is_called_so(self, tmp_path, method):
        """Field case 12."""
        path = make_zip(tmp_path / "packed.zip", GOOD)
        data = bytearray(path.read_bytes())
        for magic, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            start = 0
            while (start := data.find(magic, start)) >= 0:
                data[start + offset] = method
                start += 1
        path.write_bytes(data)
        with pytest.raises(
            DownloadError, match=r"packed.zip is packed in a way that is not supported .* 7-Zip"
        ) as error:
            extract(path, tmp_path / "images")
        assert not isinstance(error.value, CorruptArchiveError)  # another download would not help


class TestNothingVanishes:
    def test_linked_folders_are_followed_and_loops_are_not(self, few, tmp_path):
        """Field case 18."""
        source = tmp_path / "source"
        source.mkdir()
        for name in ("train", "val"):
            (source / name).symlink_to(few / "chest_xray" / name, target_is_directory=True)
        shutil.copytree(few / "chest_xray" / "test", source / "test")
        (source / "test" / "NORMAL" / "back").symlink_to(source, target_is_directory=True)
        (source / "test" / "NORMAL" / "self.png").symlink_to(source / "test" / "NORMAL" / "self.png")
        (source / "test" / "NORMAL" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        left_out = extract(source, tmp_path / "images")
        assert len(snapshot(tmp_path / "images")) == 12
        assert left_out.to_numpy().tolist() == [["broken link or no regular file", "", 2]]

    @pytest.mark.skipif(sys.platform != "linux", reason="these systems have no such names")
    @pytest.mark.fault("file name that is not UTF-8")
    def test_a_file_name_that_is_not_utf8_costs_itself_alone(self, folder, home, capsys):
        """Field case 11."""
        odd = os.fsencode(folder / "chest_xray" / "train" / "NORMAL") + b"/caf\xe9.jpeg"
        strange = Path(os.fsdecode(os.fsencode(folder / "chest_xray" / "train") + b"/\xff"))
        strange.mkdir()
        (strange / "notes.txt").write_text("x")
        shutil.copy(next((folder / "chest_xray" / "train" / "NORMAL").iterdir()), odd)
        root = fetch(Settings(data=str(folder)))
        assert "1 with a name that is not UTF-8: caf\\xe9.jpeg" in capsys.readouterr().out
        table = build_catalog(root, home / "cache")
        assert len(table) == 12
        shutil.copy(odd, os.fsencode(root / "train" / "NORMAL") + b"/caf\xe9.jpeg")  # put there by somebody else
        assert build_catalog(root, home / "cache")["path"].tolist() == table["path"].tolist()
        assert "caf\\xe9.jpeg is left out" in capsys.readouterr().out

    def test_what_is_left_out_stands_in_the_audit(self, folder, tmp_path):
        (folder / "chest_xray" / "train" / "NORMAL" / "notes.txt").write_text("x")
        left_out = extract(folder, tmp_path / "images")
        table = audit(build_catalog(tmp_path / "images"), left_out=left_out).set_index("check")
        assert table.loc["files left out: in a second copy", "found"] == 12
        assert table.loc["files left out: in a second copy", "note"] == "NORMAL 6, PNEUMONIA 6"
        assert table.loc["files left out: not an image format: .txt", "note"] == "NORMAL 1"
        assert table.loc["files left out: hidden or system file", "note"] == "no known class 1"

    def test_a_copy_of_version_0_1_is_made_again_and_counted(self, folder, capsys):
        root = fetch(Settings(data=str(folder)))
        (root.parent / "left-out.csv").unlink()
        assert fetch(Settings(data=str(folder))) == root
        assert "making it again" in capsys.readouterr().out
        assert (root.parent / "left-out.csv").is_file()
        shutil.rmtree(folder)
        (root.parent / "left-out.csv").unlink()
        assert fetch(Settings(data=str(folder))) == root  # there is nothing to make it from

    @pytest.mark.parametrize("packed", [False, True])
    def test_folders_and_a_table_of_labels_are_a_dataset(self, few, tmp_path, home, packed):
        """Field case 13: as NIH and RSNA come."""
        source = tmp_path / "nih"
        rows = ["path,patient,label,split"]
        for number, file in enumerate(sorted((few / "chest_xray").glob("[tv]*/*/*"))):
            (source / f"images_{number % 2}").mkdir(parents=True, exist_ok=True)
            shutil.copy(file, source / f"images_{number % 2}" / f"{number:03}.jpeg")
            rows.append(
                f"{number:03}.jpeg,{number // 2},{'ill' if number % 4 < 2 else 'well'},{('train', 'test')[number % 2]}"
            )
        labels = tmp_path / "labels.csv"
        labels.write_text("\n".join(rows))
        source = zipped(source, tmp_path / "nih.zip") if packed else source
        settings = Settings(data=str(source), patients=str(labels))
        table = build_catalog(fetch(settings))
        assert table.groupby(["folder", "label"]).size().to_dict() == {
            ("train", "ill"): 3, ("train", "well"): 3, ("test", "ill"): 3, ("test", "well"): 3,
        }  # fmt: skip
        assert table["path"][0] == "test/ill/images_1/001.jpeg"
        assert fetch(settings).is_dir()
        labels.write_text("\n".join(rows).replace("ill", "sick"))
        with pytest.raises(DownloadError, match="nih was made from other files or labels than"):
            fetch(settings)
