"""From a file to the pixels that everything computes with: one gray image of a square size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

RESIZES = ("squash", "pad", "crop")
METHOD = Image.Resampling.BILINEAR


def read_image(path: Path, size: int, resize: str = "squash") -> NDArray[np.uint8]:
    """Decode one file to a square gray image.

    JPEG files are decoded at a half, a quarter or an eighth of their size where that still covers `size`, which is
    several times faster.

    Args:
        path: a file that Pillow reads, gray or colour, of 8 or 16 bits.
        size: side in pixels.
        resize: `squash` changes the aspect ratio, `pad` adds black borders, `crop` cuts the longer side.

    Returns:
        uint8 (size, size).

    Raises:
        ValueError: an unknown way to resize.
        OSError: the file cannot be decoded.
    """
    with Image.open(path) as image:
        image.draft("L", (size, size))
        if image.mode[0] in "IF":
            levels = np.asarray(image, dtype=np.float32)
            gray = Image.fromarray((levels / (257 if levels.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
        else:
            gray = image.convert("L")
    return to_square(gray, size, resize)


def to_square(gray: Image.Image, size: int, resize: str = "squash") -> NDArray[np.uint8]:
    """A gray image of any shape as `read_image` gives it, uint8 (size, size); ValueError for an unknown `resize`."""
    if resize == "squash":
        gray = gray.resize((size, size), METHOD, reducing_gap=2.0)
    elif resize == "pad":
        gray = ImageOps.pad(gray, (size, size), METHOD)
    elif resize == "crop":
        gray = ImageOps.fit(gray, (size, size), METHOD)
    else:
        raise ValueError(f"resize={resize!r}: expected squash, pad or crop")
    return np.asarray(gray)


def decode_into(file: Path, offset: int, root: Path, paths: Sequence[str], size: int, resize: str) -> list[str]:
    """Decode some images and write them, one after another, into a file; a task for a process of its own.

    Args:
        file: an existing file, large enough.
        offset: where the first image goes, in bytes.
        root: the folder that `paths` are relative to.
        paths: the images.
        size: side in pixels.
        resize: as for `read_image`.

    Returns:
        For each path the reason why it could not be decoded, `""` where it could; such images are left black.

    Raises:
        FileNotFoundError: an image is gone.
    """
    block, errors = np.zeros((len(paths), size, size), dtype=np.uint8), [""] * len(paths)
    for index, path in enumerate(paths):
        try:
            block[index] = read_image(root / path, size, resize)
        except FileNotFoundError:
            raise
        except Exception as error:  # noqa: BLE001 - on damaged bytes decoders raise anything; the caller names it
            errors[index] = str(error) or type(error).__name__
    with open(file, "r+b") as target:
        target.seek(offset)
        target.write(block.data)
    return errors
