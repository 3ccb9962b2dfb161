import numpy as np
import pytest
from PIL import Image

from xray_helpers.decoding import decode_into, read_image


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


def test_another_policy_is_refused(halves):
    with pytest.raises(ValueError, match="expected squash, pad or crop"):
        read_image(halves, 20, "stretch")


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
def test_every_mode_becomes_the_same_gray(halves, tmp_path, mode):
    Image.open(halves).convert(mode).save(tmp_path / "other.png")
    assert (read_image(tmp_path / "other.png", 20) == read_image(halves, 20)).all()


def test_sixteen_bits_become_eight(tmp_path):
    Image.fromarray(np.array([[0, 65535], [257, 25700]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", 2).tolist() == [[0, 255], [1, 100]]


def test_scaled_decoding_of_a_jpeg_is_close_to_the_full_one(tiny):
    path = next((tiny / "chest_xray" / "train" / "NORMAL").glob("NORMAL2*.jpeg"))
    full = Image.open(path).convert("L").resize((64, 64), Image.Resampling.BOX)
    assert np.abs(read_image(path, 64).astype(int) - np.asarray(full)).mean() < 4


def test_a_task_writes_its_images_where_they_belong_and_names_what_it_cannot_decode(tiny, catalog, tmp_path):
    root, good = tiny / "chest_xray", catalog.loc[catalog["error"] == "", "path"].tolist()[:2]
    broken = catalog.loc[catalog["error"] != "", "path"].iloc[0]
    (tmp_path / "array").write_bytes(bytes(5 * 32 * 32))
    errors = decode_into(tmp_path / "array", 32 * 32, root, [good[0], broken, good[1]], 32, "squash")
    assert [bool(error) for error in errors] == [False, True, False]
    images = np.fromfile(tmp_path / "array", dtype=np.uint8).reshape(5, 32, 32)
    assert (images[1] == read_image(root / good[0], 32)).all()
    assert (images[3] == read_image(root / good[1], 32)).all()
    assert not images[[0, 2, 4]].any()


def test_a_broken_file_is_an_error(tiny):
    with pytest.raises(OSError):
        read_image(tiny / "chest_xray" / "train" / "PNEUMONIA" / "person9001_bacteria_9001.jpeg", 400)
