import os
import shutil
import string

import numpy as np
import pandas as pd
import pytest
from conftest import rows_to_catalog
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from xray_helpers.catalog import COLUMNS, audit, build_catalog, duplicates, fingerprint, parse_name

NUMBERS = st.integers(0, 99_999)


@pytest.mark.parametrize(
    ("stem", "parsed"),
    [
        ("person78_bacteria_378", ("bacteria", 78)),
        ("person1608_virus_2786", ("virus", 1608)),
        ("person447_virus_921_1", ("virus", 447)),
        ("IM-0115-0001", ("IM", 115)),
        ("IM-0003-0001-0002", ("IM", 3)),
        ("NORMAL2-IM-0381-0001", ("NORMAL2", 381)),
        ("NORMAL2-IM-1406-0001-0001", ("NORMAL2", 1406)),
        ("8f5ce8b6-1d9a-4d0c-9d57-8f4b8e3c1a2b", None),
        ("person78_fungus_1", None),
        ("NORMAL-IM-0001-0001", None),
        ("person٣_virus_1", None),
        ("xIM-0001-0001", None),
        ("", None),
    ],
)
def test_names_of_the_dataset_are_read_and_others_are_not(stem, parsed):
    assert parse_name(stem) == parsed


@given(NUMBERS, st.sampled_from(["bacteria", "virus"]), NUMBERS, st.none() | NUMBERS)
def test_any_pneumonia_name_gives_back_its_counter_and_number(person, counter, image, extra):
    suffix = "" if extra is None else f"_{extra}"
    assert parse_name(f"person{person}_{counter}_{image}{suffix}") == (counter, person)


@given(st.sampled_from(["IM", "NORMAL2"]), NUMBERS, NUMBERS, st.none() | NUMBERS)
def test_any_normal_name_gives_back_its_counter_and_number(counter, person, image, extra):
    prefix = "NORMAL2-" if counter == "NORMAL2" else ""
    suffix = "" if extra is None else f"-{extra:04d}"
    assert parse_name(f"{prefix}IM-{person:04d}-{image:04d}{suffix}") == (counter, person)


@given(st.text(alphabet=string.printable + "é٣", max_size=40))
def test_any_text_is_a_name_or_none_and_never_an_error(text):
    parsed = parse_name(text)
    assert parsed is None or (parsed[0] in ("bacteria", "virus", "IM", "NORMAL2") and parsed[1] >= 0)


def test_one_row_an_image_with_the_promised_columns(tiny, catalog):
    truth = pd.read_csv(tiny / "truth.csv", keep_default_na=False)
    assert tuple(catalog.columns) == COLUMNS
    assert len(catalog) == len(truth) + 2  # the truncated file and the text
    readable = catalog[catalog["error"] == ""].reset_index(drop=True)
    for column in ("path", "label", "cause", "width", "height"):
        assert readable[column].tolist() == truth[column].tolist(), column
    known = ~readable["patient_fine"].str.startswith("file-")
    assert readable.loc[known, "patient_fine"].tolist() == truth.loc[known, "patient"].tolist()
    assert catalog["path"].is_monotonic_increasing
    assert not catalog["path"].str.contains("\\\\").any()


def save(root, name, image, **options):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def gray(value=60, size=(20, 10)):
    return Image.fromarray((np.arange(size[0] * size[1]).reshape(size[1], size[0]) % 90 + value).astype(np.uint8))


def row_of(root, name):
    table = build_catalog(root)
    return table[table["path"] == name].iloc[0]


def test_keys_are_fine_and_coarse_and_strangers_stay_alone(tmp_path):
    for name in (
        "train/PNEUMONIA/person7_bacteria_1.jpeg",
        "train/PNEUMONIA/person7_virus_9.jpeg",
        "train/NORMAL/IM-0007-0001.jpeg",
        "train/NORMAL/NORMAL2-IM-0007-0001.jpeg",
        "train/NORMAL/stranger.jpeg",
        "test/NORMAL/stranger.jpeg",
    ):
        save(tmp_path, name, gray())
    table = build_catalog(tmp_path).set_index("path")
    assert table["patient_fine"].nunique() == 6
    assert table["patient_coarse"].value_counts().to_dict()["PNEUMONIA-7"] == 2
    assert table["patient_coarse"].value_counts().to_dict()["NORMAL-7"] == 2
    assert table["patient_coarse"].nunique() == 4
    assert table["cause"].to_dict()["train/NORMAL/stranger.jpeg"] == "normal"


def test_other_class_names_work_and_have_no_known_cause(tmp_path):
    for label in ("cat", "dog", "Łoś"):
        save(tmp_path, f"train/{label}/1.png", gray())
    table = build_catalog(tmp_path)
    assert table["label"].tolist() == ["cat", "dog", "Łoś"]
    assert set(table["cause"]) == {"unknown"}


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("empty.jpeg", b"", "empty file"),
        ("text.jpeg", b"This is not an image.", "not an image"),
        ("cut.jpeg", None, "damaged: image file is truncated"),
        ("header.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "damaged|not an image"),
    ],
)
def test_a_broken_file_is_a_row_with_its_reason(tmp_path, name, content, error):
    if content is None:
        whole = save(tmp_path, "train/A/whole.jpeg", gray(size=(200, 200))).read_bytes()
        content = whole[: len(whole) // 2]
    save(tmp_path, "train/A/good.jpeg", gray())
    (tmp_path / "train" / "A" / name).write_bytes(content)
    row = row_of(tmp_path, f"train/A/{name}")
    assert pd.Series([row["error"]]).str.contains(error).all()
    assert row["bytes"] == len(content)
    assert row["pixel_hash"] == ""
    assert str(tmp_path) not in row["error"]


def test_an_image_too_large_is_named_before_it_is_decoded(tmp_path):
    save(tmp_path, "train/A/large.png", Image.new("1", (8000, 4001)))
    row = row_of(tmp_path, "train/A/large.png")
    assert row["error"] == "32 megapixels, over 32"
    assert (row["width"], row["height"]) == (8000, 4001)


def test_a_decompression_bomb_is_named_and_warns_nobody(tmp_path, recwarn):
    save(tmp_path, "train/A/bomb.png", Image.new("1", (20000, 10000)))
    save(tmp_path, "train/A/small_bomb.png", Image.new("1", (10000, 10000)))
    errors = build_catalog(tmp_path)["error"].tolist()
    assert errors == ["over 32 megapixels", "100 megapixels, over 32"]
    assert not recwarn.list


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "LA"])
def test_a_wrong_number_of_channels_is_named(tmp_path, mode):
    suffix = "tiff" if mode == "CMYK" else "png"
    save(tmp_path, f"train/A/odd.{suffix}", Image.new(mode, (9, 9)))
    channels = len(Image.new(mode, (1, 1)).getbands())
    assert row_of(tmp_path, f"train/A/odd.{suffix}")["error"] == f"{channels} channels ({mode}), not 1 or 3"


def test_the_hash_is_of_the_pixels_and_not_of_the_file(tmp_path):
    image = gray()
    save(tmp_path, "train/A/one.png", image)
    save(tmp_path, "train/A/two.png", image, compress_level=0)
    save(tmp_path, "train/A/colour.png", image.convert("RGB"))
    save(tmp_path, "train/A/other.png", gray(61))
    reshaped = Image.fromarray(np.asarray(image).reshape(20, 10))
    save(tmp_path, "train/A/reshaped.png", reshaped)
    hashes = build_catalog(tmp_path).set_index("path")["pixel_hash"]
    same = hashes[[f"train/A/{name}.png" for name in ("one", "two", "colour")]]
    assert same.nunique() == 1
    assert hashes.nunique() == 3


def test_sixteen_bit_images_are_told_apart_beyond_eight_bits(tmp_path):
    save(tmp_path, "train/A/one.png", Image.fromarray(np.full((5, 5), 1000, dtype=np.uint16)))
    save(tmp_path, "train/A/two.png", Image.fromarray(np.full((5, 5), 1001, dtype=np.uint16)))
    table = build_catalog(tmp_path)
    assert set(table["error"]) == {""}
    assert table["pixel_hash"].nunique() == 2


def test_the_cache_is_used_until_a_file_changes(tiny, tmp_path, monkeypatch):
    root, cache = tmp_path / "chest_xray", tmp_path / "cache"
    shutil.copytree(tiny / "chest_xray" / "val", root / "val")
    first = build_catalog(root, cache)
    path = root / first["path"][0]
    with monkeypatch.context() as patch:
        patch.setattr("xray_helpers.catalog._describe", lambda *_: pytest.fail("read again"))
        pd.testing.assert_frame_equal(build_catalog(root, cache), first)
    stat = path.stat()
    Image.open(path).point(lambda value: 255 - value).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    second = build_catalog(root, cache)
    assert second["pixel_hash"][0] != first["pixel_hash"][0]
    assert fingerprint(second) != fingerprint(first)
    path.unlink()
    assert len(build_catalog(root, cache)) == len(first) - 1


def test_the_fingerprint_depends_on_content_and_not_on_place_or_time(tiny, tmp_path, catalog):
    shutil.copytree(tiny / "chest_xray", tmp_path / "elsewhere")
    assert fingerprint(build_catalog(tmp_path / "elsewhere")) == fingerprint(catalog)


def test_no_images_says_which_notebook_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="run notebook 01 first"):
        build_catalog(tmp_path / "chest_xray")


def test_the_audit_counts_what_was_planted(catalog):
    table = audit(catalog).set_index("check")
    found = {check.strip(): row["found"] for check, row in table.iterrows()}
    assert found["unreadable files"] == 2
    assert "IM-9002-0001.jpeg: not an image" in table.loc["unreadable files", "note"]
    assert found["pictures that stand in several files"] == duplicates(catalog)["pixel_hash"].nunique() >= 2
    assert found["of these, across patients"] == 1
    assert found["of these, with two labels"] == found["of these, across folders"] == 0
    assert found["names of no known pattern"] == 1
    assert found["images in val"] == table.loc["images in val", "expected"] == 16
    assert table.loc["images in train", "expected"] == 5216
    assert found["images in train"] == (catalog["folder"] == "train").sum()
    assert table.loc["images in colour mode", "note"].startswith("PNEUMONIA")


def test_the_audit_finds_label_conflicts_and_copies_across_folders():
    table = rows_to_catalog(
        [
            ("A", "unknown", "p1", "A-1", "same", "train"),
            ("B", "unknown", "p2", "B-2", "same", "test"),
            ("B", "unknown", "p3", "B-3", "own", "test"),
        ]
    )
    found = audit(table).assign(check=lambda rows: rows["check"].str.strip()).set_index("check")["found"]
    assert found["of these, with two labels"] == 1
    assert found["of these, across folders"] == 1
    assert found["of these, across patients"] == 1


def test_the_real_images_agree_with_the_known_facts(shared_data, tmp_path):
    from xray_helpers.archives import extract

    extract(shared_data / "chest-xray-pneumonia-224.zip", tmp_path / "chest_xray")
    table = build_catalog(tmp_path / "chest_xray")
    found = audit(table).set_index("check")["found"]
    assert (found["images in train"], found["images in val"], found["unreadable files"]) == (5216, 16, 0)
    train = table[table["folder"] == "train"]
    assert train["label"].value_counts().to_dict() == {"PNEUMONIA": 3875, "NORMAL": 1341}
    sick = train[train["label"] == "PNEUMONIA"]["patient_fine"]
    group = sick.map(sick.value_counts())
    assert round(100 * (group > 1).mean(), 1) == 51.7
    assert group.max() == 30
    assert duplicates(table).groupby("pixel_hash")["patient_fine"].nunique().max() == 1
