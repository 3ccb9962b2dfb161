"""The archive's facts, the project's root, and writing so that a crash leaves the old file or the new one whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDERS = ("train", "val", "test")  # of Kaggle's archive
CAUSE_OF = {"bacteria": "bacterial", "virus": "viral", "IM": "normal", "NORMAL2": "normal"}  # its case counters
FULL = (errno.ENOSPC, errno.EDQUOT)  # what a full disk, or a used-up quota, is called
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".tif", ".tiff")


class FullDiskError(OSError):
    """The disk is full; the message names the file and the space needed. What was saved before is intact."""


def project_root() -> Path:
    """The folder that holds `pyproject.toml`, found by walking up from this package.

    Raises:
        FileNotFoundError: the package was not installed from a checkout; `XRAY_HOME` can name a folder instead.
    """
    for folder in Path(__file__).resolve().parents:
        if (folder / "pyproject.toml").is_file():
            return folder
    raise FileNotFoundError(
        "xray_helpers does not lie in a checkout of the project: install it with `pip install -e .` there, "
        "or set XRAY_HOME to the folder that should hold data/ and models/."
    )


@contextmanager
def atomic_file(path: Path, needed: int = 0) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it into place when the block ends without an error.

    Args:
        path: the file to write; its folder is made when missing.
        needed: bytes that will be written, for the message of a full disk; 0 where they are few.

    Yields:
        The path to write to, in the same folder and with the same suffix.

    Raises:
        FullDiskError: the disk is full.
        OSError: the folder cannot be written to; the message says what to do.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in FULL or isinstance(error, FullDiskError):
            raise
        raise FullDiskError(error.errno, _full(path, needed)) from None
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def _full(path: Path, needed: int) -> str:
    size, free = f"{needed / 1e6:,.0f} MB" if needed else "a little", shutil.disk_usage(path.parent).free
    return (
        f"the disk is full: saving {path.parent.name}/{path.name} needs {size}, and {free / 1e6:,.0f} MB are free. "
        "What was saved before is intact; free some space and run this again."
    )


def make_folder(folder: Path) -> Path:
    """Make a folder where it is missing, and see that it can be written to.

    Raises:
        OSError: it cannot; the message says what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        why = 0 if os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids) else errno.EACCES
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        why = error.errno
    if why:
        name = "/".join(folder.parts[-2:])
        raise OSError(
            why,
            f"the folder {name} cannot be written to ({os.strerror(why).lower()}). Give yourself the right to, or set "
            "XRAY_HOME to a folder of your own, and run this again.",
        )
    return folder


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut, where the system lets a folder be synced."""
    if os.name == "nt":  # Windows cannot open folders; its renames are journalled
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_disk(folder: Path, needed: int, purpose: str) -> None:
    """Refuse to start what the disk cannot hold.

    Args:
        folder: a folder on the disk that will be written; need not exist yet.
        needed: bytes that will be written.
        purpose: what they are for, in the message.

    Raises:
        OSError: less than `needed` bytes plus a reserve of 200 MB is free; nothing was written.
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + 200_000_000:
        raise OSError(
            f"{purpose} needs {(needed + 200_000_000) / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free on this "
            "disk. Free some space, or set XRAY_HOME to a folder on a larger disk, and run this again."
        )
