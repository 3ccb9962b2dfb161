import stat
import zipfile

import pytest

from xray_helpers import archives
from xray_helpers.archives import CorruptArchiveError, DownloadError, choose_images, copy_folder, extract

GOOD = ("chest_xray/train/NORMAL/a.jpeg", "chest_xray/train/PNEUMONIA/b.jpeg")


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in members:
            archive.writestr(name, members[name] if isinstance(members, dict) else name.encode())
    return path


def test_images_are_taken_once_and_nothing_else():
    names = [
        *GOOD,
        "chest_xray/test/NORMAL/c.JPG",
        "chest_xray/chest_xray/train/NORMAL/a.jpeg",
        "chest_xray/__MACOSX/train/NORMAL/._a.jpeg",
        "chest_xray/train/NORMAL/.DS_Store",
        "chest_xray/train/NORMAL/.hidden.jpeg",
        "chest_xray/train/NORMAL/notes.txt",
        "chest_xray/train/a.jpeg",
    ]
    assert choose_images(names, "x") == {
        GOOD[0]: "train/NORMAL/a.jpeg",
        GOOD[1]: "train/PNEUMONIA/b.jpeg",
        "chest_xray/test/NORMAL/c.JPG": "test/NORMAL/c.JPG",
    }


@pytest.mark.parametrize("prefix", ["", "chest_xray/", "Downloads/archive/"])
def test_the_folders_are_found_at_any_depth(prefix):
    chosen = choose_images([f"{prefix}train/cat/1.png", f"{prefix}val/dog/2.tif", f"{prefix}train/cow/3.bmp"], "x")
    assert sorted(chosen.values()) == ["train/cat/1.png", "train/cow/3.bmp", "val/dog/2.tif"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no images in folders such as train/NORMAL"),
        (["a.jpeg", "NORMAL/b.jpeg"], "holds no images in folders such as train/NORMAL"),
        (["train/NORMAL/a.jpeg", "val/NORMAL/b.jpeg"], r"holds one class only \(NORMAL\)"),
    ],
)
def test_another_shape_is_refused_with_the_expected_one(names, message):
    with pytest.raises(DownloadError, match=message):
        choose_images(names, "that folder")


@pytest.mark.fault("unsafe archive")
@pytest.mark.parametrize(
    "name", ["../evil.jpeg", "chest_xray/../../evil.jpeg", "/etc/evil.jpeg", "..\\evil.jpeg", "C:/evil.jpeg", "\\evil"]
)
def test_a_name_that_leads_elsewhere_stops_everything(tmp_path, name):
    path = make_zip(tmp_path / "bad.zip", [*GOOD, name])
    with pytest.raises(DownloadError, match="unsafe name"):
        extract(path, tmp_path / "images")
    assert not (tmp_path / "images").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.zip"]


@pytest.mark.fault("unsafe archive")
def test_a_link_in_an_archive_is_refused(tmp_path):
    link = zipfile.ZipInfo("chest_xray/train/NORMAL/link.jpeg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DownloadError, match="unsafe name"):
        extract(tmp_path / "bad.zip", tmp_path / "images")


@pytest.mark.fault("unsafe archive")
def test_a_bomb_is_refused_before_it_unpacks(tmp_path):
    path = make_zip(tmp_path / "bomb.zip", {GOOD[0]: bytes(30_000_000), GOOD[1]: b"x"})
    with pytest.raises(DownloadError, match=r"would unpack to 2 files of 0\.0 GB"):
        extract(path, tmp_path / "images")
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(("limit", "value"), [("MAX_FILES", 1), ("MAX_BYTES", 10)])
def test_too_many_files_or_bytes_are_refused(tmp_path, monkeypatch, limit, value):
    monkeypatch.setattr(archives, limit, value)
    with pytest.raises(DownloadError, match="more than any set of radiographs needs"):
        extract(make_zip(tmp_path / "big.zip", GOOD), tmp_path / "images")


def test_a_wrong_checksum_is_found(tmp_path):
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
def test_what_is_not_a_zip_is_named(tmp_path, content):
    (tmp_path / "page.zip").write_bytes(content)
    with pytest.raises(CorruptArchiveError, match=r"page\.zip is not a zip archive, or it is damaged"):
        extract(tmp_path / "page.zip", tmp_path / "images")


def test_an_encrypted_archive_is_refused(tmp_path):
    path = make_zip(tmp_path / "locked.zip", GOOD)
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = data.index(magic)
        data[position + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(DownloadError, match="is encrypted"):
        extract(path, tmp_path / "images")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for name in (*GOOD, GOOD[0]):
            archive.writestr(name, name)
    with pytest.raises(DownloadError, match="a name twice"):
        extract(tmp_path / "twice.zip", tmp_path / "images")


def test_a_folder_and_a_zip_of_it_give_the_same_files(tmp_path, tiny):
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w") as archive:
        for path in sorted(tiny.rglob("*")):
            archive.write(path, path.relative_to(tiny))
    left_out = extract(tmp_path / "tiny.zip", tmp_path / "from_zip"), copy_folder(tiny, tmp_path / "from_folder")
    assert left_out[0] == left_out[1] > 100
    contents = [
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.jpeg")}
        for root in (tmp_path / "from_zip", tmp_path / "from_folder")
    ]
    assert contents[0] == contents[1]
    assert len(contents[0]) == len(list((tiny / "chest_xray").glob("[tv]*/*/*.jpeg")))
