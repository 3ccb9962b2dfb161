"""The image store: each image decoded once to the training size, in one array that is mapped from disk."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import loky
import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import NDArray
from tqdm import tqdm

from xray_helpers.catalog import fingerprint
from xray_helpers.decoding import RESIZES, decode_into
from xray_helpers.files import atomic_file, check_disk, make_folder

VERSION = 1  # raised when the same files give other pixels
CHUNK = 4_000_000  # bytes a task: 79 images at 224 pixels
PROCESSES = 3  # at most: they are through Kaggle's originals in seconds, and stay under 1 GB with their parent


@dataclass(frozen=True)
class ImageStore:
    """Decoded images, read from disk as they are used; as small as a path when it is sent to another process.

    Attributes:
        file: the array's file.
        size: side of the images in pixels.
        resize: how they became square.
        rows: path → row of the array.
        left_out: path → why this image could not be decoded.
        fingerprint: of the catalog that it was built from.
        checksum: CRC-32 of the file.
        seconds: that decoding took, where it is known.
    """

    file: Path
    size: int
    resize: str
    rows: dict[str, int]
    left_out: dict[str, str]
    fingerprint: str
    checksum: int
    seconds: float | None = field(default=None, compare=False)

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
            KeyError: an image is not in this store.
        """
        return np.asarray(self.images[self.find(paths)])

    def find(self, paths: Sequence[str]) -> NDArray[np.int64]:
        """The rows of some images, (n,).

        Raises:
            KeyError: an image is not in this store; the message names it.
        """
        missing = [path for path in paths if path not in self.rows]
        if missing:
            why = self.left_out.get(missing[0], "these are other files than it was built from; build it anew")
            raise KeyError(f"{len(missing)} images are not in {self.file.name}, such as {missing[0]}: {why}")
        return np.array([self.rows[path] for path in paths], dtype=np.int64)

    def __repr__(self) -> str:
        return f"ImageStore({len(self.rows):,} images, uint8 {self.size} × {self.size}, {self.resize})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "images"}


def build_store(root: Path, catalog: pd.DataFrame, folder: Path, size: int, resize: str = "squash") -> ImageStore:
    """Decode every readable image of a catalog to `folder`, unless that was done before.

    Several processes decode, and write to a file aside that takes its name when it is complete. The name carries the
    catalog's fingerprint, so that other images make another store; one that was cut or changed on disk is made anew.

    Args:
        root: the folder that the catalog's paths are relative to.
        catalog: from `build_catalog`, or any rows of it.
        folder: where the store lies, such as `Settings.processed_folder`.
        size: side in pixels.
        resize: `squash`, `pad` or `crop`, as for `read_image`.

    Returns:
        The store. One line is printed when it was built, and one for each image that could not be decoded.

    Raises:
        ValueError: an unknown way to resize, or no image that can be decoded.
        FileNotFoundError: an image is gone since the catalog was made.
        OSError: the disk is too small.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize={resize!r}: expected {', '.join(RESIZES)}")
    paths = catalog.loc[catalog["error"] == "", "path"].tolist()
    if not paths:
        raise ValueError("the catalog holds no readable image")
    kind = f"images-{resize}-{size}"
    of = fingerprint(catalog)
    file = folder / f"{kind}-{of}-v{VERSION}.npy"
    make_folder(folder)
    with FileLock(folder / ".images.lock"):
        store = open_store(file)
        if store is None:
            for leftover in folder.glob(".images-*.partial*"):  # of a process that was killed
                leftover.unlink()
            store = _build(root, paths, file, size, resize, of)
            for old in folder.glob(f"{kind}-*"):  # of files that are no longer these
                if old.stem != file.stem:
                    old.unlink()
    return store


def open_store(file: Path) -> ImageStore | None:
    """The store in this file, when it is there, whole and unchanged; None otherwise, with the reason printed."""
    index = file.with_suffix(".json")
    if not (file.is_file() and index.is_file()):
        return None
    try:
        store = ImageStore(file=file, **json.loads(index.read_text(encoding="utf-8")))
        whole = checksum(file) == store.checksum and len(store.images) >= len(store.rows)
    except (ValueError, TypeError, OSError) as error:
        print(f"{file.name} cannot be read ({error}) and is made anew")
        return None
    if not whole:
        print(f"{file.name} was changed or cut on disk and is made anew")
        return None
    return store


def checksum(file: Path) -> int:
    """CRC-32 of a file, read in pieces."""
    value = 0
    with open(file, "rb") as source:
        while piece := source.read(1 << 24):
            value = zlib.crc32(piece, value)
    return value


def _build(root: Path, paths: list[str], file: Path, size: int, resize: str, of: str) -> ImageStore:
    """Decode all images; first the array takes its name, then the index that vouches for it."""
    start = time.perf_counter()
    check_disk(file.parent, len(paths) * size * size, "the image store")
    with atomic_file(file) as partial:
        errors = _decode(root, paths, partial, size, resize)
        left_out = {path: error for path, error in zip(paths, errors, strict=True) if error}
        if len(left_out) == len(paths):
            raise ValueError(f"none of {len(paths):,} images could be decoded, such as {paths[0]}: {errors[0]}")
        value = checksum(partial)
    rows = {path: row for row, path in enumerate(paths) if path not in left_out}
    seconds = time.perf_counter() - start
    store = ImageStore(file, size, resize, rows, left_out, of, value, round(seconds, 3))
    with atomic_file(file.with_suffix(".json")) as partial:
        content = {name: value for name, value in asdict(store).items() if name != "file"}
        partial.write_text(json.dumps(content, indent=0), encoding="utf-8")
    print(f"{file.name}: {len(rows):,} images, {file.stat().st_size / 1e6:.0f} MB, decoded in {seconds:.1f} s")
    for path, error in left_out.items():
        print(f"left out: {path}: {error}")
    return store


def _decode(root: Path, paths: list[str], file: Path, size: int, resize: str) -> list[str]:
    """Fill a new array file, in parallel; returns for each path why it could not be decoded, or `""`."""
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(len(paths), size, size))
    header = array.offset
    del array  # processes write to the file itself: pages of a map would count as everybody's memory
    chunk = max(1, CHUNK // (size * size))
    starts = range(0, len(paths), chunk)
    tasks = [(file, header + first * size * size, root, paths[first : first + chunk], size, resize) for first in starts]
    processes = min(PROCESSES, loky.cpu_count(), len(tasks))
    errors: list[str] = []
    with tqdm(total=len(paths), desc="decoding", leave=False, unit="image") as bar, ExitStack() as stack:
        # Loky's processes need no `if __name__ == "__main__"` in the script that calls this, on any system.
        pool = stack.enter_context(loky.ProcessPoolExecutor(processes)) if processes > 1 else None
        for done in (pool.map if pool else map)(decode_into, *zip(*tasks, strict=True)):
            errors += done
            bar.update(len(done))
    return errors
