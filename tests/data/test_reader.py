"""What files say of their pixels: each is read as the same film, or refused by name."""

import shutil
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from xray_helpers.data.catalog import audit, build_catalog
from xray_helpers.data.image_cache import build_cache
from xray_helpers.data.reader import (
    IMAGE_SUFFIXES,
    UnreadableError,
    find_whites,
    named_as_image,
    read_film,
    read_image,
)
from xray_helpers.data.synthetic import draw

FILM = draw("bacterial", np.random.default_rng(5), 90, 120).image
SIZE = 48
EXPECTED = np.asarray(Image.fromarray(FILM).resize((SIZE, SIZE), Image.Resampling.BILINEAR, reducing_gap=2.0))


def assert_same_film(path, tolerance=1.0, whites=(None, None), expected=EXPECTED):
    found = read_image(path, SIZE, whites=whites)
    assert np.abs(found.astype(int) - expected).mean() <= tolerance


def deep(highest, kind=np.uint16):
    """The film with levels of 0 … about `highest`."""
    return np.rint(FILM / 255.0 * highest).astype(kind) if kind != np.float32 else (FILM / 255 * highest).astype(kind)


def of_the_first_page(image, path, **options):
    image.save(path, save_all=True, append_images=[ImageOps.invert(image), ImageOps.flip(image)], **options)


# --- Orientation


def turned(orientation):
    """The film as a camera stores it that says `orientation`, and the header that says so."""
    undo = turned_back(orientation)
    stored, exif = Image.fromarray(FILM), Image.Exif()
    exif[274] = orientation
    return (stored if undo is None else stored.transpose(undo)), exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp", "tiff"])
def test_what_a_header_says_of_orientation_is_applied(tmp_path, orientation, suffix):
    stored, exif = turned(orientation)
    stored.save(tmp_path / f"film.{suffix}", exif=exif)
    assert_same_film(tmp_path / f"film.{suffix}", 3)
    film = read_film(tmp_path / f"film.{suffix}")
    assert film.levels.shape == (90, 120)
    assert film.note == ("" if orientation == 1 else "turned as its header says")


def test_a_large_jpeg_from_a_phone_is_turned_after_its_fast_decoding(tmp_path):
    stored, exif = turned(6)
    stored.convert("RGB").resize((720, 960)).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    assert_same_film(tmp_path / "phone.jpg", 3)


def test_a_damaged_exif_header_costs_the_header_and_not_the_film(tmp_path):
    Image.fromarray(FILM).save(tmp_path / "film.png", exif=b"Exif\0\0garbage")
    assert read_film(tmp_path / "film.png").note == "its EXIF header is damaged and was left aside"
    assert_same_film(tmp_path / "film.png", 0)


# --- Depth


@pytest.fixture
def twelve_bits(tmp_path):
    """A dataset of 12-bit films saved as 16-bit PNG, one of which is dark, and an 8-bit one."""
    root = tmp_path / "chest_xray"
    for label in ("NORMAL", "PNEUMONIA"):
        (root / "train" / label).mkdir(parents=True)
    Image.fromarray(deep(4095)).save(root / "train/NORMAL/film.png")
    Image.fromarray(deep(500)).save(root / "train/NORMAL/dark.png")
    Image.fromarray(FILM).save(root / "train/PNEUMONIA/shallow.png")
    return root


def test_a_dataset_of_deep_films_has_one_white_for_all(twelve_bits, tmp_path):
    catalog = build_catalog(twelve_bits)
    assert find_whites(catalog) == (4095, None)
    cache = build_cache(twelve_bits, catalog, tmp_path / "cache", SIZE)
    assert cache.whites == (4095, None)
    assert "-white-4095" in cache.file.name
    assert build_cache(twelve_bits, catalog, tmp_path / "cache", SIZE) == cache
    names = ("NORMAL/dark", "NORMAL/film", "PNEUMONIA/shallow")
    dark, film, shallow = cache.read([f"train/{name}.png" for name in names])
    assert np.abs(film.astype(int) - EXPECTED).mean() < 1
    assert np.abs(dark.astype(int) - EXPECTED * (500 / 4095)).mean() < 1
    assert (shallow == EXPECTED).all()


def test_the_audit_names_gray_ranges_slivers_and_notes(twelve_bits):
    Image.fromarray(FILM // 10).save(twelve_bits / "train/PNEUMONIA/black.png")
    Image.fromarray(FILM).convert("LA").save(twelve_bits / "train/PNEUMONIA/alpha.png")
    catalog = build_catalog(twelve_bits)
    assert catalog.set_index("path").loc["train/NORMAL/film.png", "high"] == deep(4095).max()
    rows = audit(catalog).set_index("check")
    assert rows.loc["images whose white is level 255", "found"] == 3
    assert rows.loc["images whose white is level 4095", "found"] == 2
    assert rows.loc["images whose white is level 4095", "note"] == f"levels {deep(500).min()} to {deep(4095).max()}"
    sliver = rows.loc["images that use under 1/8 of their gray range"]
    assert (sliver["found"], sliver["note"]) == (2, "train/NORMAL/dark.png; train/PNEUMONIA/black.png")
    assert rows.loc["images read with a note: alpha laid on black", "found"] == 1


@pytest.mark.parametrize("highest", [255, 1023, 4095, 16383, 65535])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_without_a_dataset_the_file_itself_decides_and_says_so(tmp_path, highest, suffix):
    level = deep(highest)
    level[0, 0] = highest
    Image.fromarray(level).save(tmp_path / f"film.{suffix}")
    assert_same_film(tmp_path / f"film.{suffix}")
    assert read_film(tmp_path / f"film.{suffix}").notes() == f"level {highest} taken for white, from this file alone"
    assert read_film(tmp_path / f"film.{suffix}").notes((highest, None)) == ""


@pytest.mark.parametrize("highest", [1, 255, 4095])
def test_floats_are_read_in_the_range_that_they_have(tmp_path, highest):
    Image.fromarray(deep(highest, np.float32)).save(tmp_path / "film.tiff")
    assert_same_film(tmp_path / "film.tiff")


def test_a_portable_graymap_of_twelve_bits_is_read(tmp_path):
    """Pillow scales it to 16 bits, since its header says its highest level."""
    (tmp_path / "film.pgm").write_bytes(b"P5 120 90 4095\n" + deep(4095).astype(">u2").tobytes())
    assert_same_film(tmp_path / "film.pgm")


def test_a_tiff_of_twelve_bits_has_a_white_of_its_own(tmp_path):
    """Two levels share three bytes; Pillow reads such files and writes none."""
    dark = deep(1000)
    packed = (dark[:, ::2].astype(np.uint32) << 12 | dark[:, 1::2]).astype(">u4").tobytes()
    body = np.frombuffer(packed, np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    entries = {256: 120, 257: 90, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 90, 279: len(body)}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    header = b"II*\0" + struct.pack("<I", 8 + len(body)) + body
    (tmp_path / "film.tiff").write_bytes(header + struct.pack("<H", len(entries)) + table + bytes(4))
    assert read_film(tmp_path / "film.tiff").mode == "I;16 of 12 bits"
    assert_same_film(tmp_path / "film.tiff", whites=(65535, None), expected=EXPECTED * (1000 / 4095))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([[-1, 200]], "gray levels from -1 to 200, and not within 0 to 65535"),
        ([[0, np.nan]], "gray levels from nan to nan"),
        ([[0, np.inf]], "gray levels from 0 to inf"),
        ([[0, 70_000]], "gray levels from 0 to 70000"),
    ],
)
def test_levels_that_cannot_be_gray_are_refused_by_name(tmp_path, values, reason):
    (tmp_path / "train" / "A").mkdir(parents=True)
    Image.fromarray(np.array(values, dtype=np.float32)).save(tmp_path / "train" / "A" / "film.tiff")
    with pytest.raises(UnreadableError, match=reason):
        read_image(tmp_path / "train" / "A" / "film.tiff", SIZE)
    row = build_catalog(tmp_path).iloc[0]
    assert row["error"].startswith(reason)
    assert (row["low"], row["high"]) == (0, 0)


def test_deep_colour_of_which_half_would_be_lost_is_refused(tmp_path):
    body = (np.dstack([deep(4095)] * 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in body)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 120, 90, 16, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "film.png").write_bytes(content)
    with pytest.raises(UnreadableError, match="16 bits in each of several channels"):
        read_image(tmp_path / "film.png", SIZE)


# --- Photometric interpretation


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("kind", ["1", "8 bits", "16 bits", "floats"])
def test_white_is_zero_is_honoured_at_every_depth(tmp_path, kind, compression):
    negative = ImageOps.invert(Image.fromarray(FILM))
    black_and_white = Image.fromarray(np.where(FILM > 100, 255, 0).astype(np.uint8))
    image, expected = {
        "1": (ImageOps.invert(black_and_white).convert("1"), black_and_white),
        "8 bits": (negative, Image.fromarray(FILM)),
        "16 bits": (Image.fromarray(4095 - deep(4095)), Image.fromarray(FILM)),
        "floats": (Image.fromarray(1 - deep(1, np.float32)), Image.fromarray(FILM)),
    }[kind]
    # Pillow writes what it is given, and says 1, BlackIsZero: the tag is changed in the file.
    image.save(tmp_path / "film.tiff", compression=compression)
    set_tag(tmp_path / "film.tiff", 262, 0)
    film = read_film(tmp_path / "film.tiff")
    assert film.note == "inverted as its header says"
    whites = (4095.0, 1.0)
    assert np.abs(np.asarray(film.gray(whites)).astype(int) - np.asarray(expected)).mean() < 1
    assert "inverted" in read_film(tmp_path / "film.tiff").notes(whites)


def set_tag(path, tag, value):
    """Change a tag of one short number in a little-endian TIFF file."""
    content = bytearray(path.read_bytes())
    assert content[:4] == b"II*\0"
    start = int.from_bytes(content[4:8], "little")
    for entry in range(start + 2, start + 2 + 12 * int.from_bytes(content[start : start + 2], "little"), 12):
        if int.from_bytes(content[entry : entry + 2], "little") == tag:
            content[entry + 8 : entry + 10] = value.to_bytes(2, "little")
            path.write_bytes(content)
            return
    raise AssertionError(f"no tag {tag}")


def test_a_film_and_its_negative_with_the_same_numbers_are_no_duplicates(tmp_path):
    (tmp_path / "train" / "A").mkdir(parents=True)
    for name in ("film", "negative"):
        Image.fromarray(deep(4095)).save(tmp_path / "train" / "A" / f"{name}.tiff")
    set_tag(tmp_path / "train" / "A" / "negative.tiff", 262, 0)
    assert build_catalog(tmp_path)["pixel_hash"].nunique() == 2


# --- Palette, alpha, colour, pages


def test_alpha_is_laid_on_black_and_said(tmp_path):
    alpha = Image.fromarray(np.where(np.arange(120) < 60, 255, 0).astype(np.uint8)[None].repeat(90, axis=0))
    for mode in ("LA", "RGBA"):
        image = Image.fromarray(FILM).convert(mode)
        image.putalpha(alpha)
        image.save(tmp_path / "film.png")
        film = read_film(tmp_path / "film.png")
        gray = film.gray()
        assert film.note == "alpha laid on black"
        assert (np.asarray(gray)[:, :60] == FILM[:, :60]).all()
        assert not np.asarray(gray)[:, 60:].any()


def test_a_transparent_palette_is_laid_on_black(tmp_path):
    image = Image.fromarray(np.where(FILM > 100, 1, 0).astype(np.uint8))
    image.putpalette([200] * 3 + [100] * 3)
    image.save(tmp_path / "film.png", transparency=0)
    film = read_film(tmp_path / "film.png")
    gray = film.gray()
    assert film.note == "alpha laid on black"
    assert (np.asarray(gray) == np.where(FILM > 100, 100, 0)).all()


def test_a_palette_in_any_order_is_looked_up(tmp_path):
    image = Image.fromarray(255 - FILM)
    image.putpalette([255 - level // 3 for level in range(768)])
    for name in ("film.png", "film.bmp", "film.gif", "film.tiff"):
        image.save(tmp_path / name)
        assert_same_film(tmp_path / name, 0)


def test_cmyk_is_read_and_lab_is_refused_by_name(tmp_path):
    for suffix in ("tiff", "jpeg"):
        Image.fromarray(FILM).convert("CMYK").save(tmp_path / f"film.{suffix}")
        assert_same_film(tmp_path / f"film.{suffix}", 3)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    to_lab = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    ImageCms.applyTransform(Image.fromarray(FILM).convert("RGB"), to_lab).save(tmp_path / "lab.tiff")
    with pytest.raises(UnreadableError, match="LAB colours, which cannot be turned into gray here"):
        read_image(tmp_path / "lab.tiff", SIZE)


@pytest.mark.parametrize("suffix", ["tiff", "gif", "webp", "png"])
def test_pages_beyond_the_first_are_said(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    of_the_first_page(Image.fromarray(FILM), tmp_path / f"film.{suffix}", **options)
    assert_same_film(tmp_path / f"film.{suffix}", 2)
    assert read_film(tmp_path / f"film.{suffix}").note.startswith("the first of 3 pages")


# --- DICOM


def dicom(path, levels, bits, kind="MONOCHROME2", **elements):
    """Write a small DICOM file."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    header = pydicom.dataset.FileMetaDataset()
    header.TransferSyntaxUID, header.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, generate_uid()
    header.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    film = pydicom.Dataset()
    film.file_meta, film.SOPInstanceUID = header, header.MediaStorageSOPInstanceUID
    film.SOPClassUID, film.SamplesPerPixel, film.PhotometricInterpretation = header.MediaStorageSOPClassUID, 1, kind
    film.Rows, film.Columns = levels.shape[-2:]
    film.BitsAllocated, film.BitsStored, film.HighBit = levels.itemsize * 8, bits, bits - 1
    film.PixelRepresentation = int(levels.dtype.kind == "i")
    film.PixelData = levels.tobytes()
    for name, value in elements.items():
        setattr(film, name, value)
    film.save_as(path, enforce_file_format=True)


def test_dicom_is_read_over_its_stored_bits(tmp_path):
    for bits, levels in ((12, deep(4095)), (16, deep(65535)), (8, FILM)):
        dicom(tmp_path / "film.dcm", levels, bits)
        assert_same_film(tmp_path / "film.dcm")
        film = read_film(tmp_path / "film.dcm")
        assert (film.mode, film.note) == (f"MONOCHROME2 of {bits} bits", "")
    shutil.copy(tmp_path / "film.dcm", tmp_path / "no_suffix")
    assert_same_film(tmp_path / "no_suffix")


def test_dicom_s_negative_rescaling_window_and_frames_are_honoured(tmp_path):
    dicom(tmp_path / "film.dcm", 4095 - deep(4095), 12, "MONOCHROME1")
    assert_same_film(tmp_path / "film.dcm")
    assert read_film(tmp_path / "film.dcm").note == "inverted as its header says"

    dicom(tmp_path / "film.dcm", deep(4095).astype(np.int16) - 2048, 12, RescaleSlope=1, RescaleIntercept=0)
    assert_same_film(tmp_path / "film.dcm")

    dicom(tmp_path / "film.dcm", 4095 - deep(4095), 12, RescaleSlope=-1, RescaleIntercept=4095)
    assert_same_film(tmp_path / "film.dcm")

    odd = {"RescaleSlope": 0.3, "RescaleIntercept": -1024.1}
    dicom(tmp_path / "film.dcm", deep(4095), 12, **odd)
    assert_same_film(tmp_path / "film.dcm")

    window = {"WindowCenter": 512, "WindowWidth": 1024}
    dicom(tmp_path / "film.dcm", deep(1023), 12, **window)
    assert_same_film(tmp_path / "film.dcm")
    dicom(tmp_path / "film.dcm", 4095 - deep(1023), 12, RescaleSlope=-1, RescaleIntercept=4095, **window)
    assert_same_film(tmp_path / "film.dcm")

    dicom(tmp_path / "film.dcm", np.stack([deep(4095), deep(100)]), 12, NumberOfFrames=2)
    assert_same_film(tmp_path / "film.dcm")
    assert read_film(tmp_path / "film.dcm").note == "the first of 2 pages"


def test_a_dicom_s_depth_leaves_the_dataset_s_white_alone(tmp_path, twelve_bits):
    dicom(twelve_bits / "train/NORMAL/deep.dcm", deep(65535), 16)
    catalog = build_catalog(twelve_bits)
    assert find_whites(catalog) == (4095, None)
    cache = build_cache(twelve_bits, catalog, tmp_path / "cache", SIZE)
    for image in cache.read(["train/NORMAL/deep.dcm", "train/NORMAL/film.png"]):
        assert np.abs(image.astype(int) - EXPECTED).mean() < 1


def test_without_pydicom_the_way_out_is_named_and_the_catalog_is_made_anew_with_it(tmp_path, monkeypatch):
    (tmp_path / "train" / "A").mkdir(parents=True)
    dicom(tmp_path / "train" / "A" / "film.dcm", FILM, 8)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pydicom", None)
        error = build_catalog(tmp_path, tmp_path / "cache")["error"][0]
    assert error == "DICOM: install pydicom with pip install -e '.[dicom]', or save it as PNG"
    assert build_catalog(tmp_path, tmp_path / "cache")["error"][0] == ""


# --- Files that are no images


def test_each_file_says_why_it_cannot_be_read(tmp_path):
    for name, content, reason in (
        ("notes.txt", b"P1,BMI\n1,2", "not an image"),
        ("empty", b"", "empty file"),
        (
            "film.heic",
            b"\0\0\0\x18ftypheic" + bytes(200),
            "of a kind of image that cannot be read",
        ),
        ("gone.png", None, "damaged: No such file or directory"),
        ("film.dcm", b"nothing", "DICM|DICOM|preamble"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableError, match=reason):
            read_image(tmp_path / name, SIZE)
    assert named_as_image("a/scan.HEIC")
    assert all(named_as_image(f"scan{suffix}") for suffix in IMAGE_SUFFIXES)
    assert not any(map(named_as_image, ("notes.txt", "table.csv", "scan", "report.pdf")))


# --- Any film in any mode, depth, format and orientation


def written(kind):
    """The film in a mode of Pillow's."""
    if kind in ("I;16", "I;16B"):
        return Image.fromarray(deep(65535).astype("<u2" if kind == "I;16" else ">u2"))
    if kind == "12 bits":
        return Image.fromarray(deep(4095))
    if kind == "I":
        return Image.fromarray(deep(65535, np.int32))
    if kind == "F":
        return Image.fromarray(deep(1, np.float32))
    if kind == "PA":
        return Image.fromarray(FILM).convert("P").convert("PA")
    return Image.fromarray(FILM).convert("RGB").convert(kind)


KINDS = ("L", "P", "PA", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "I;16B", "12 bits", "F")
SHALLOW = {"gif": 12, "jpeg": 3, "jfif": 3, "webp": 6, "jp2": 2}  # lossy, or with a palette made anew


SUFFIXES = sorted({suffix[1:] for suffix in IMAGE_SUFFIXES} - {"dcm", "dicom"})


@settings(max_examples=300)
@given(st.sampled_from(KINDS), st.sampled_from(SUFFIXES), st.integers(1, 8))
def test_any_film_is_read_as_the_same_film_or_refused_by_name(tmp_path_factory, kind, suffix, orientation):
    path = tmp_path_factory.mktemp("any") / f"film.{suffix}"
    image, exif = written(kind), Image.Exif()
    exif[274] = orientation
    has_header = suffix in ("jpeg", "jpg", "jpe", "jfif", "png", "webp", "tif", "tiff")
    undo = turned_back(orientation)
    if has_header and undo is not None:
        image = image.transpose(undo)
    try:
        image.save(path, **({"exif": exif} if has_header else {}))
    except (OSError, ValueError, KeyError):  # Pillow does not write this mode in this format
        return
    with Image.open(path) as stored:
        lost = kind in ("I", "I;16", "I;16B", "12 bits", "F") and stored.mode[0] not in "IF"
    if lost:  # Pillow cut the levels when it wrote them
        return
    try:
        assert_same_film(path, SHALLOW.get(suffix, 2))
    except UnreadableError as error:
        assert "save it as" in str(error)


def turned_back(orientation):
    ways = Image.Transpose
    return {
        2: ways.FLIP_LEFT_RIGHT, 3: ways.ROTATE_180, 4: ways.FLIP_TOP_BOTTOM, 5: ways.TRANSPOSE,
        6: ways.ROTATE_90, 7: ways.TRANSVERSE, 8: ways.ROTATE_270,
    }.get(orientation)  # fmt: skip
