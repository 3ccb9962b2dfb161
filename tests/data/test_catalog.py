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

from xray_helpers.data.catalog import (
    CAUSE_OF,
    COLUMNS,
    audit,
    build_catalog,
    duplicates,
    fingerprint,
    parse_name,
)
from xray_helpers.data.download import extract
from xray_helpers.data.reader import read_image, to_square

NUMBERS = st.integers(0, 99_999)


def gray(value=60, size=(20, 10)):
    return Image.fromarray((np.arange(size[0] * size[1]).reshape(size[1], size[0]) % 90 + value).astype(np.uint8))


def save(root, name, image, **options):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def row_of(root, name):
    table = build_catalog(root)
    return table[table["path"] == name].iloc[0]


@pytest.fixture
def halves(tmp_path):
    """A 40×20 PNG, black on the left and white on the right."""
    pixels = np.zeros((20, 40), dtype=np.uint8)
    pixels[:, 20:] = 255
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    return tmp_path / "halves.png"


def test_squash_keeps_the_whole_width(halves):
    image = read_image(halves, 20, "squash")
    assert image.shape == (20, 20)
    assert image.dtype == np.uint8
    assert (image[:, :9] == 0).all()
    assert (image[:, 11:] == 255).all()


def test_pad_keeps_the_shape_between_black_bars(halves):
    image = read_image(halves, 40, "pad")
    assert (image[:10] == 0).all()
    assert (image[30:] == 0).all()
    assert (image[10:30, 20:] == 255).all()
    assert (image[10:30, :20] == 0).all()


def test_crop_keeps_the_shape_and_cuts_the_sides(tmp_path):
    pixels = np.tile(np.arange(40, dtype=np.uint8), (20, 1))
    Image.fromarray(pixels).save(tmp_path / "ramp.png")
    assert (read_image(tmp_path / "ramp.png", 20, "crop") == np.arange(10, 30)).all()


def test_another_way_to_resize_is_refused(halves):
    with pytest.raises(ValueError, match="expected squash, pad or crop"):
        read_image(halves, 20, "stretch")


def test_squashing_is_the_reduction_that_saved_models_have_seen():
    """Models of version 0.1 were trained on these pixels; another filter would feed them slightly different ones."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (310, 403), dtype=np.uint8))
    seen = image.resize((20, 20), Image.Resampling.BILINEAR, reducing_gap=2.0)
    assert (to_square(image, 20) == np.asarray(seen)).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_every_mode_becomes_the_same_gray(halves, tmp_path, mode):
    Image.open(halves).convert(mode).save(tmp_path / "other.png")
    assert (read_image(tmp_path / "other.png", 20) == read_image(halves, 20)).all()


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([[0, 65535], [257, 25700]], np.uint16, [[0, 255], [1, 100]]),
        ([[0, 255], [7, 100]], np.uint16, [[0, 255], [7, 100]]),
        ([[0, 256], [341, 1023]], np.uint16, [[0, 64], [85, 255]]),
        ([[0, 4095], [1365, 257]], np.uint16, [[0, 255], [85, 16]]),
        ([[0, 1], [0.5, 0.2]], np.float32, [[0, 255], [128, 51]]),
        ([[0, 65535], [257, 25700]], np.float32, [[0, 255], [1, 100]]),
    ],
    ids=["16 bits", "8 bits stored in 16", "10 bits", "12 bits", "floats of 0 to 1", "floats of 16 bits"],
)
def test_more_than_eight_bits_become_eight(tmp_path, values, dtype, expected):
    Image.fromarray(np.array(values, dtype=dtype)).save(tmp_path / "deep.tiff")
    assert read_image(tmp_path / "deep.tiff", 2).tolist() == expected


def test_scaled_decoding_of_a_jpeg_is_close_to_the_full_one(tiny):
    path = next((tiny / "chest_xray" / "train" / "NORMAL").glob("NORMAL2*.jpeg"))
    full = Image.open(path).convert("L").resize((64, 64), Image.Resampling.BOX)
    assert np.abs(read_image(path, 64).astype(int) - np.asarray(full)).mean() < 4


def test_a_broken_file_is_an_error(tiny):
    with pytest.raises(OSError):
        read_image(tiny / "chest_xray" / "train" / "PNEUMONIA" / "person9001_bacteria_9001.jpeg", 400)


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
def test_any_text_is_parsed_or_gives_none_and_never_an_error(text):
    parsed = parse_name(text)
    assert parsed is None or (parsed[0] in CAUSE_OF and parsed[1] >= 0)


def test_one_row_per_image_with_the_promised_columns(tiny, catalog):
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


def test_only_visible_files_that_are_named_as_images_are_listed(tmp_path):
    for name in ("train/A/1.PNG", "val/B/2.jpeg", "train/A/.hidden.png", "train/A/deep/3.png", "a/A/4.png", "5.png"):
        save(tmp_path, name, gray())
    (tmp_path / "train" / "A" / "notes.txt").write_text("no image")
    assert build_catalog(tmp_path)["path"].tolist() == ["train/A/1.PNG", "train/A/deep/3.png", "val/B/2.jpeg"]


def test_keys_are_fine_and_coarse_and_unknown_names_are_groups_of_their_own(tmp_path):
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
    assert row["pixel_hash"] == row["mode"] == ""
    assert row["width"] == row["height"] == row["quantisation"] == 0
    assert str(tmp_path) not in row["error"]


def header(root, name, size):
    """A file that says how large its image is and holds no pixel, so that decoding it would be an error."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"P5 %d %d 255\n" % size)  # PGM, which Pillow recognises whatever the file is called


def test_an_image_too_large_is_named_before_it_is_decoded(tmp_path):
    header(tmp_path, "train/A/large.png", (4, 8_000_001))
    (tmp_path / "train" / "A" / "largest.png").write_bytes(b"P4 8000 4000\n" + bytes(4_000_000))
    large, largest = build_catalog(tmp_path).itertuples()
    assert large.error == "32 megapixels, over 32"
    assert (large.width, large.height) == (4, 8_000_001)
    assert largest.error == ""


def test_a_decompression_bomb_is_named_without_a_warning(tmp_path, recwarn):
    header(tmp_path, "train/A/bomb.png", (20000, 10000))
    header(tmp_path, "train/A/small_bomb.png", (10000, 10000))
    errors = build_catalog(tmp_path)["error"].tolist()
    assert errors == ["over 32 megapixels", "100 megapixels, over 32"]
    assert not recwarn.list


def test_the_hash_is_of_the_pixels_and_not_of_the_file(tmp_path):
    image = gray()
    save(tmp_path, "train/A/one.png", image)
    save(tmp_path, "train/A/two.png", image, compress_level=0)
    save(tmp_path, "train/A/colour.png", image.convert("RGB"))
    save(tmp_path, "train/A/other.png", gray(61))
    reshaped = Image.fromarray(np.asarray(image).reshape(20, 10))
    save(tmp_path, "train/A/reshaped.png", reshaped)
    hashes = build_catalog(tmp_path).set_index("path")["pixel_hash"]
    assert set(hashes.str.len()) == {24}
    same = hashes[[f"train/A/{name}.png" for name in ("one", "two", "colour")]]
    assert same.nunique() == 1
    assert hashes.nunique() == 3


def test_the_quantisation_is_the_mean_step_of_the_luminance_table(tmp_path):
    path = save(tmp_path, "train/A/rough.jpeg", gray().convert("RGB"), quality=31)
    save(tmp_path, "train/A/plain.png", gray())
    with Image.open(path) as image:
        expected = round(sum(image.quantization[0]) / 64, 3)
    assert build_catalog(tmp_path)["quantisation"].tolist() == [0, expected]


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
        patch.setattr("xray_helpers.data.catalog._describe", lambda *_: pytest.fail("read again"))
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


def test_the_fingerprint_is_short_and_takes_any_file_name(catalog):
    names = [fingerprint(catalog.assign(path=name)) for name in ("train/A/é.png", "train/A/\udcff.png")]
    assert {len(name) for name in names} == {12}
    assert len({*names, fingerprint(catalog)}) == 3


def test_no_images_says_which_notebook_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="run notebook 01 first"):
        build_catalog(tmp_path / "chest_xray")


def test_the_audit_counts_what_was_planted(catalog):
    table = audit(catalog).set_index("check")
    found = {check.strip(): row["found"] for check, row in table.iterrows()}
    assert found["unreadable files"] == 2
    assert "IM-9002-0001.jpeg: not an image" in table.loc["unreadable files", "note"]
    assert found["duplicate images"] == duplicates(catalog)["pixel_hash"].nunique() >= 2
    assert found["of these, across patients"] == 1
    assert found["of these, with different labels"] == found["of these, across folders"] == 0
    assert found["file names of an unknown pattern"] == 1
    assert found["images in val"] == table.loc["images in val", "expected"] == 16
    assert table.loc["images in train", "expected"] == 5216
    assert table.loc["images in test", "expected"] == 624
    assert found["images in train"] == (catalog["folder"] == "train").sum()
    assert table.loc["images in colour mode", "note"].startswith("PNEUMONIA")


def test_the_audit_in_a_case_worked_out_by_hand():
    table = rows_to_catalog(
        [
            ("A", "unknown", "p1", "A-1", "same", "train"),
            ("B", "unknown", "p2", "B-2", "same", "test"),
            ("B", "unknown", "file-b", "file-b", "own", "test"),
            *[("B", "unknown", "p9", "B-9", "", "val")] * 6,
        ]
    )
    table["error"] = [""] * 3 + ["empty file"] * 6
    table["mode"] = ["RGB", "L", "RGB"] + [""] * 6
    table["width"], table["height"] = [20, 10, 4] + [0] * 6, [10, 30, 7] + [0] * 6
    broken = "; ".join(f"val/B/0000{number}.jpeg: empty file" for number in range(3, 8))
    assert list(audit(table, {"train": 2}).itertuples(index=False, name=None)) == [
        ("images in train", 1, 2, ""),
        ("images in val", 6, "", ""),
        ("images in test", 2, "", ""),
        ("unreadable files", 6, 0, broken),
        ("duplicate images", 1, "", "the exact same pixels in more than one file"),
        ("  of these, across patients", 1, "", "by the fine key"),
        ("  of these, across folders", 1, 0, "would leak"),
        ("  of these, with different labels", 1, 0, "one label must be wrong"),
        ("near duplicates across patients", 0, "", ""),
        ("images in colour mode", 2, "", "A 1, B 1"),
        ("file names of an unknown pattern", 1, "", "each counts as a patient of its own"),
        ("smallest image", "4 × 7", "", "by area; width × height in pixels"),
        ("largest image", "10 × 30", "", "by area; width × height in pixels"),
        ("images whose white is level 255", 3, "", "levels 0 to 255"),
        ("images that use under 1/8 of their gray range", 0, "", ""),
    ]


def test_the_audit_of_files_that_are_all_broken_finds_no_sizes(catalog):
    found = audit(catalog[catalog["error"] != ""]).set_index("check")["found"]
    assert found["smallest image"] == found["largest image"] == "none"
    assert found["duplicate images"] == 0


def test_the_real_images_agree_with_the_known_facts(shared_data, tmp_path):
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
