"""Every image decoded once to the training size, in one array that is mapped from disk."""

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from xray_helpers.data.catalog import fingerprint
from xray_helpers.data.reader import RESIZES, Whites, find_whites, read_image
from xray_helpers.files import XrayError, atomic_file, check_disk, file_digest, make_folder, write_text

VERSION = 3  # raised when the same files give other pixels
BLOCK = 64  # images that are decoded before the next ones begin, so that memory does not grow with their number


@dataclass(frozen=True)
class ImageCache:
    """Decoded images, read from disk as they are used; pickled, it is as small as its list of paths.

    Attributes:
        file: the array's file.
        size: side of the images in pixels.
        resize: how they became square.
        whites: the level that counts as white in images of more than 8 bits, from `find_whites`.
        rows: path → row of the array.
        fingerprint: of the catalog that it was built from.
        checksum: SHA-256 of the file.
        seconds: that decoding took.
    """

    file: Path
    size: int
    resize: str
    whites: Whites
    rows: dict[str, int]
    fingerprint: str
    checksum: str = ""
    seconds: float = field(default=0.0, compare=False)

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """All images, uint8 (N, S, S), mapped from disk and read-only."""
        images: NDArray[np.uint8] = np.load(self.file, mmap_mode="r")
        if images.dtype != np.uint8 or images.shape[1:] != (self.size, self.size):
            raise ValueError(f"{self.file.name} holds {images.dtype} {images.shape}, not uint8 (N, {self.size}, …)")
        return images

    def read(self, paths: Sequence[str]) -> NDArray[np.uint8]:
        """Copies of some images, uint8 (n, S, S), in the order asked for.

        Raises:
            KeyError: an image is not in this cache.
        """
        return np.asarray(self.images[self.find(paths)])

    def find(self, paths: Sequence[str]) -> NDArray[np.int64]:
        """The rows of some images, (n,).

        Raises:
            KeyError: an image is not in this cache; the message names it.
        """
        if missing := [path for path in paths if path not in self.rows]:
            raise KeyError(f"{len(missing)} images are not in {self.file.name}, such as {missing[0]}")
        return np.array([self.rows[path] for path in paths], dtype=np.int64)

    def __repr__(self) -> str:
        return f"ImageCache({len(self.rows):,} images, uint8 {self.size} × {self.size}, {self.resize})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "images"}


def build_cache(root: Path, catalog: pd.DataFrame, folder: Path, size: int, resize: str = "squash") -> ImageCache:
    """Decode every readable image of a catalog to `folder`, unless that was done before.

    Threads decode, into a temporary file that takes its name when it is complete. The name carries
    the catalog's fingerprint, so that other images make another cache; one that was cut or changed on disk is rebuilt.

    Args:
        root: the folder that the catalog's paths are relative to.
        catalog: from `build_catalog`, or any rows of it.
        folder: where the cache lies, such as `Settings.processed_folder`.
        size: side in pixels.
        resize: `squash`, `pad` or `crop`, as for `read_image`.

    Returns:
        The cache. One line is printed when it was built.

    Raises:
        ValueError: an unknown way to resize, or no readable image.
        XrayError: an image was changed or removed since the catalog was made.
        OSError: the disk is too small.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize={resize!r}: expected {', '.join(RESIZES)}")
    rows = {path: row for row, path in enumerate(catalog.loc[catalog["error"] == "", "path"])}
    if not rows:
        raise ValueError("the catalog holds no readable image")
    whites = find_whites(catalog)
    levels = "".join(f"-white-{white:g}" for white in whites if white)
    file = make_folder(folder) / f"images-{resize}-{size}-{fingerprint(catalog)}-v{VERSION}{levels}.npy"
    cache = ImageCache(file, size, resize, whites, rows, fingerprint(catalog))
    with FileLock(folder / ".images.lock"):
        cache = _open(cache) or _build(cache, root)
        for old in folder.glob(f"images-{resize}-{size}-*"):  # of earlier versions of these files
            if old.stem != file.stem:
                old.unlink()
    return cache


def _open(cache: ImageCache) -> ImageCache | None:
    """The cache with its checksum, if its file is whole and unchanged; None otherwise, with the reason printed."""
    try:
        kept = json.loads(cache.file.with_suffix(".json").read_text(encoding="utf-8"))
        if kept.keys() != {"checksum", "seconds"}:
            raise ValueError("its index has other entries")
        if file_digest(cache.file) != kept["checksum"]:
            raise ValueError("its checksum does not match")
        return replace(cache, **kept)
    except FileNotFoundError:  # not built so far, or not to its end
        pass
    except (ValueError, TypeError, AttributeError, OSError) as error:
        print(f"{cache.file.name} cannot be used ({error}) and is rebuilt")
    return None


def _build(cache: ImageCache, root: Path) -> ImageCache:
    """Decode all images; first the array takes its name, then the file with its checksum."""
    start, file, paths, size = time.perf_counter(), cache.file, list(cache.rows), cache.size
    for leftover in file.parent.glob(".images-*.partial*"):  # of a process that was killed
        leftover.unlink()
    check_disk(file.parent, len(paths) * size * size, "the image cache")

    def decode(path: str) -> bytes:
        try:
            return read_image(root / path, size, cache.resize, cache.whites).tobytes()
        except Exception as error:  # on damaged bytes decoders raise anything
            what = f"{path} can no longer be read ({str(error) or type(error).__name__})"
            raise XrayError(f"{what}: it has changed since the catalog was made. Bring the file back.") from error

    # Threads are enough: Pillow lets go of Python's lock while it decodes and resizes.
    with atomic_file(file) as partial, open(partial, "wb") as target, ThreadPoolExecutor(os.cpu_count()) as pool:
        shape = (len(paths), size, size)
        np.lib.format.write_array_header_1_0(target, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for first in tqdm(range(0, len(paths), BLOCK), "decoding", leave=False, unit="block"):
            target.writelines(pool.map(decode, paths[first : first + BLOCK]))
    seconds = round(time.perf_counter() - start, 3)
    checksum = file_digest(file)
    write_text(file.with_suffix(".json"), json.dumps({"checksum": checksum, "seconds": seconds}))
    print(f"{file.name}: {len(paths):,} images, {file.stat().st_size / 1e6:.0f} MB, decoded in {seconds:.1f} s")
    return replace(cache, checksum=checksum, seconds=seconds)
