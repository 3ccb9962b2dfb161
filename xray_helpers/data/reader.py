"""Reading image files: one reader for training and prediction, which honours what a file's header says of its pixels.

What it cannot honour it refuses, with the reason; what a user may want to know of the reading is a note.
"""

import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any
from zipfile import Path as ZipMember

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

RESIZES = ("squash", "pad", "crop")
METHOD = Image.Resampling.BILINEAR
MAX_MEGAPIXELS = 32

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "PPM")  # Pillow's names; DICOM comes on top
DICOM_SUFFIXES = (".dcm", ".dicom")
IMAGE_SUFFIXES = (
    ".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".j2k", ".pgm", ".ppm",
    ".pbm", ".pnm", *DICOM_SUFFIXES,
)  # fmt: skip
# First bytes that no text begins with, and brands of HEIF: images, whether or not they can be read.
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
HEIF = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1", b"ftypavif")

ORIENTATION, TURNED = 274, range(2, 9)  # the tag in TIFF and EXIF, and its values for pixels that do not lie upright
WHITES = (1, 255, 1023, 4095, 16383, 65535)  # levels that may stand for white in images of more than 8 bits
SLIVER = 1 / 8  # an image that uses less of its gray range than this part is named
NOT_AN_IMAGE, EMPTY = "not an image", "empty file"

Source = Path | ZipMember  # a file, or a member of a zip
Whites = tuple[float | None, float | None]  # of integer and of float images of more than 8 bits; None: found per file
UNKNOWN: Whites = (None, None)


class UnreadableError(OSError):
    """A file that is no image, or whose pixels would be misread; the message is the reason.

    `known` holds the width, height and mode of an image that is refused.
    """

    known: dict[str, Any] | None = None


@dataclass
class Film:
    """The pixels of one file, upright, with the gray levels that it stores.

    Attributes:
        levels: uint8 (H, W) for 8 bits and fewer, float32 with the levels as they are for more.
        mode: Pillow's mode of the file, or DICOM's photometric interpretation; where the file declares the depth of its
            levels, with "of 12 bits" behind it.
        inverted: level 0 is white, and `levels` are not inverted yet.
        quantisation: mean step of a JPEG's luminance table, 0 for other formats.
        note: what reading had to do, `""` for nothing.
        low: the lowest level, and `high`, the highest.

    Raises:
        UnreadableError: the levels cannot be those of a gray image.
    """

    levels: NDArray[Any]
    mode: str
    inverted: bool
    quantisation: float
    note: str

    def __post_init__(self) -> None:
        self.low, self.high = float(self.levels.min()), float(self.levels.max())
        if not 0 <= self.low <= self.high <= WHITES[-1]:  # false also where one is not a number
            raise UnreadableError(f"gray levels from {self.low:g} to {self.high:g}, and not within 0 to {WHITES[-1]}")

    def white(self, whites: Whites) -> float:
        """The level that counts as white; where nothing says so, the file's own highest level decides."""
        return white_level(self.mode, whites) or find_white(self.high, self.mode)

    def gray(self, whites: Whites = UNKNOWN) -> Image.Image:
        """As an image of mode `L`, with white as 255."""
        levels = self.levels
        if levels.dtype != np.uint8:
            levels = np.rint(levels * (255 / self.white(whites))).clip(0, 255).astype(np.uint8)
        return Image.fromarray(255 - levels if self.inverted else levels)

    def notes(self, whites: Whites = UNKNOWN) -> str:
        """What reading had to do, and what is unusual about the gray range; `""` for nothing."""
        notes, white = [self.note], self.white(whites)
        if white_level(self.mode, whites) is None:
            notes.append(f"level {white:g} taken for white, from this file alone")
        if self.high - self.low < SLIVER * white:
            notes.append(f"uses only levels {self.low:g} to {self.high:g} of 0 to {white:g}")
        return "; ".join(filter(None, notes))


def white_level(mode: str, whites: Whites) -> float | None:
    """The level that counts as white: 255 of 8 bits; of more, what the file declares, else what the dataset says."""
    if " of " in mode:
        return float(2 ** int(mode.split()[-2]) - 1)
    return whites["IF".index(mode[0])] if mode[0] in "IF" else 255


def find_white(high: float, mode: str) -> float:
    """The smallest level of `WHITES` that is not below the highest one found; 1 only for floats."""
    return next(white for white in WHITES[mode[0] != "F" :] if high <= white)


def find_whites(catalog: pd.DataFrame) -> Whites:
    """The dataset's one white level for integer images of more than 8 bits, and the one for float images.

    Args:
        catalog: from `build_catalog`.

    Returns:
        The smallest of 255, 1023, 4095, 16383 and 65535 (for floats also 1) that is not below the highest level of
        these images; None where there are none. Files that declare their depth are left aside: they have their own.
    """
    rows = catalog[catalog["error"].eq("") & ~catalog["mode"].str.contains(" of ", regex=False)]
    highest = rows.groupby(rows["mode"].str[:1])["high"].max()
    deep, floats = (find_white(highest[kind], kind) if kind in highest else None for kind in "IF")
    return deep, floats


def read_image(path: Source, size: int, resize: str = "squash", whites: Whites = UNKNOWN) -> NDArray[np.uint8]:
    """Decode one file to a square gray image, upright, with black as 0 and white as 255.

    JPEG files are decoded at a half, a quarter or an eighth of their size where that is still at least `size`, which
    is several times faster.

    Args:
        path: a file of one of `IMAGE_SUFFIXES`' formats, or a `zipfile.Path`.
        size: side of the result in pixels.
        resize: `squash` changes the aspect ratio, `pad` adds black borders, `crop` cuts off both ends of the longer
            side.
        whites: from `find_whites`, for images of more than 8 bits that do not declare their depth; by default each
            file's own highest level decides.

    Returns:
        uint8 (size, size).

    Raises:
        ValueError: `resize` is unknown.
        UnreadableError: the file cannot be decoded, or would be misread; an OSError.
    """
    return to_square(read_film(path, size).gray(whites), size, resize)


def to_square(gray: Image.Image, size: int, resize: str = "squash") -> NDArray[np.uint8]:
    """Resize a gray image of any shape to a square, as `read_image` does.

    Args:
        gray: an image in Pillow's mode `L`.
        size: side of the result in pixels.
        resize: `squash`, `pad` or `crop`, as for `read_image`.

    Returns:
        uint8 (size, size).

    Raises:
        ValueError: `resize` is unknown.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize={resize!r}: expected squash, pad or crop")
    if resize == "squash":
        return np.asarray(gray.resize((size, size), METHOD, reducing_gap=2.0))
    return np.asarray((ImageOps.pad if resize == "pad" else ImageOps.fit)(gray, (size, size), METHOD))


def read_film(path: Source, size: int | None = None) -> Film:
    """Decode one file.

    Args:
        path: of the file.
        size: a JPEG may be decoded at a fraction of its size, with no side below this; None decodes it whole.

    Raises:
        UnreadableError: with the reason.
    """
    known, head, dicom = dict[str, Any](), b"", path.name.lower().endswith(DICOM_SUFFIXES)
    try:
        with path.open("rb") as file:
            head = file.read(132)
            file.seek(0)
            dicom = dicom or head[128:] == b"DICM"
            if dicom:
                return _read_dicom(file, known)
            with Image.open(file, formats=FORMATS) as image:
                known |= {"width": image.width, "height": image.height, "mode": image.mode}
                return _read_picture(image, size)
    except UnreadableError as error:
        error.known = known
        raise
    except Image.DecompressionBombError:
        raise UnreadableError(f"over {MAX_MEGAPIXELS} megapixels") from None
    except Exception as error:  # on damaged files decoders raise anything; the reason says what it was
        image_by_content = dicom or head.startswith(MAGIC) or head[8:12] == b"WEBP" or head[4:12] in HEIF
        reason = f"damaged: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"
        if isinstance(error, UnidentifiedImageError):
            reason = "damaged, or of a kind of image that cannot be read here: save it as PNG" if head else EMPTY
        if head and not (image_by_content or known):
            reason = NOT_AN_IMAGE
        raise UnreadableError(reason) from error


def named_as_image(name: str) -> bool:
    """Whether a file's name says that it is an image, also one of a format that cannot be read here."""
    kind = mimetypes.guess_type(name, strict=False)[0] or ""
    return kind.startswith("image/") or name.lower().endswith(IMAGE_SUFFIXES)


def _check_size(width: int, height: int) -> None:
    if (megapixels := width * height / 1e6) > MAX_MEGAPIXELS:
        raise UnreadableError(f"{megapixels:.0f} megapixels, over {MAX_MEGAPIXELS}")


def _read_picture(image: Any, size: int | None) -> Film:
    """The film in an image that Pillow has opened."""
    _check_size(*image.size)
    mode, deep, tags = image.mode, image.mode[0] in "IF", getattr(image, "tag_v2", {})
    table = getattr(image, "quantization", {}).get(0, [0])
    if reason := _misread(image, tags):
        raise UnreadableError(f"{reason}: save it as gray PNG")
    negative = tags.get(262) == 0  # the photometric interpretation, 0 for WhiteIsZero
    notes = _header_notes(getattr(image, "n_frames", 1), negative)
    if size:
        image.draft("L", (size, size))
    turned = tags.get(ORIENTATION) in TURNED
    image.load()  # turns a TIFF too, and inverts one of at most 8 bits
    try:
        if image.getexif().get(ORIENTATION) in TURNED:
            image, turned = ImageOps.exif_transpose(image), True
    except Exception:  # noqa: BLE001 - damaged headers raise anything; the pixels are as they are without one
        notes.append("its EXIF header is damaged and was left aside")
    if turned:
        notes.append("turned as its header says")
    if image.has_transparency_data:
        notes.append("its transparent level is ignored" if deep else "alpha laid on black")
        if not deep:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    # Where R = G = B, conversion gives exactly that gray, so an RGB copy of a gray image has the same pixels.
    levels = np.asarray(image, dtype=np.float32) if deep else np.asarray(image.convert("L"))
    mode = f"{mode} of 12 bits" if tags.get(258) == (12,) else mode
    return Film(levels, mode, deep and negative, round(sum(table) / len(table), 3), "; ".join(notes))


def _header_notes(pages: int, inverted: bool) -> list[str]:
    """What a header says that reading has followed."""
    notes = [f"the first of {pages} pages"] if pages > 1 else []
    return [*notes, "inverted as its header says"] if inverted else notes


def _misread(image: Any, tags: Mapping[int, Any]) -> str:
    """Why Pillow's view of a file would not be the film; `""` where it is."""
    shallow, bands = image.mode[0] not in "IF", len(image.getbands())
    reasons = {
        "16 bits in each of several channels, of which 8 would be lost": shallow and ";16" in str(image.tile[:1]),
        "LAB colours, which cannot be turned into gray here": image.mode == "LAB",
        "signed 8-bit levels": image.mode == "L" and 2 in tags.get(339, ()),  # the sample format, 2 for signed
        "YCbCr without compression": tags.get(262) == 6 and image.info.get("compression") == "raw",
        "a bare JPEG 2000 stream, which does not name its channels": getattr(image, "codec", "") == "j2k" and bands > 1,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def has_pydicom() -> bool:
    """Whether DICOM files can be read."""
    return find_spec("pydicom") is not None


def _read_dicom(file: IO[bytes], known: dict[str, Any]) -> Film:
    """The first frame of a DICOM file, with its rescaling and window applied, over the range of its stored bits."""
    if not has_pydicom():
        raise UnreadableError("DICOM: install pydicom with pip install -e '.[dicom]', or save it as PNG")
    import pydicom  # an extra
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    from pydicom.pixels.utils import pixel_array

    header = pydicom.dcmread(file)
    kind, bits = str(header.PhotometricInterpretation), int(header.BitsStored)
    known |= {"width": int(header.Columns), "height": int(header.Rows), "mode": f"{kind} of {bits} bits"}
    _check_size(known["width"], known["height"])
    note = "; ".join(_header_notes(int(header.get("NumberOfFrames") or 1), kind == "MONOCHROME1"))
    stored = pixel_array(header, index=0)
    if header.SamplesPerPixel == 3 and bits == 8:
        return Film(np.asarray(Image.fromarray(stored).convert("L")), known["mode"], False, 0.0, note)
    if not kind.startswith("MONOCHROME"):
        raise UnreadableError(f"DICOM pixels of the kind {known['mode']}, which are not read here: save it as PNG")
    lowest = -(2 ** (bits - 1)) if header.PixelRepresentation else 0
    black, white = apply_modality_lut(np.array([lowest, lowest + 2**bits - 1]), header)
    if black > white and "WindowCenter" not in header:  # a window runs from the one to the other, whatever their order
        black, white = white, black
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        if table := header.get(name):
            black, white = 0, 2 ** table[0].LUTDescriptor[2] - 1
    levels = apply_voi_lut(apply_modality_lut(stored, header), header)
    levels = ((levels.astype(np.float64) - black) * ((2**bits - 1) / (white - black))).round(3)
    return Film(levels.astype(np.float32), known["mode"], kind == "MONOCHROME1", 0.0, note)
