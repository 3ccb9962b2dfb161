"""Errors, the project's folder, and writing files so that a crash leaves the old file or the new one, whole."""

import errno
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

FOLDERS = ("train", "val", "test")  # of Kaggle's archive
FULL = (errno.ENOSPC, errno.EDQUOT)  # the error numbers of a full disk and of a used-up quota


class XrayError(Exception):
    """What can go wrong in this package; the message says what happened and what to do."""


class DownloadError(XrayError):
    """The data could not be brought here. What was there before is untouched."""


class CorruptArchiveError(DownloadError):
    """The archive's bytes are damaged; another copy may be intact."""


class LeakError(XrayError):
    """Two splits share a patient or an image, so that a score on one would be too good."""


class WeightsError(XrayError):
    """Pretrained weights could not be downloaded or read, or do not fit the network."""


class CheckpointError(XrayError):
    """A checkpoint is missing, damaged, or belongs to something else."""


@contextmanager
def exit_on_error() -> Iterator[None]:
    """For command lines: what this package raises becomes one line on stderr and status 1, Ctrl-C status 130."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # an old console may lack the letters of a name
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except (XrayError, MemoryError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


@cache
def print_once(text: str) -> None:
    """Print a line, once per process: a notebook reads the same data and weights several times."""
    print(text)


def project_root() -> Path:
    """The folder that holds `pyproject.toml`, found by walking up from this package; else what `XRAY_HOME` names.

    Raises:
        FileNotFoundError: the package was not installed from a checkout, and `XRAY_HOME` is not set.
    """
    for folder in Path(__file__).resolve().parents:
        if (folder / "pyproject.toml").is_file():
            return folder
    if home := os.environ.get("XRAY_HOME"):
        return Path(home).expanduser().resolve()
    advice = "install it with `pip install -e .` there, or set XRAY_HOME to the folder for data/ and models/"
    raise FileNotFoundError(f"xray_helpers is not in a checkout of the project: {advice}")


@contextmanager
def atomic_file(path: Path, needed: int = 0) -> Iterator[Path]:
    """Give a temporary path beside `path`, and move it to `path` when the block ends without an error.

    Args:
        path: the file to write; its folder is made when missing.
        needed: bytes that will be written, for the message about a full disk; 0 where they are few.

    Yields:
        The path to write to, in the same folder and with the same suffix.

    Raises:
        OSError: the disk is full (errno ENOSPC; the message names the file and the space needed, and the old file is
            intact), or the folder cannot be written to.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(path.parent).free
        # PyTorch reports a full disk as a RuntimeError about file positions.
        full = error.errno in FULL if isinstance(error, OSError) else free < needed
        if not full:
            raise
        size = f"{needed / 1e6:,.0f} MB" if needed else "a little space"
        what = f"saving {path.parent.name}/{path.name} needs {size}, and {free / 1e6:,.0f} MB are free"
        advice = "What was saved before is intact; free some space and run this again."
        raise OSError(errno.ENOSPC, f"the disk is full: {what}. {advice}") from None
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all, as `atomic_file`; the ends of its lines stay as they are."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def file_digest(file: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with open(file, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def list_files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Everything below a folder that is not a folder, in order; links are followed.

    Args:
        folder: where to begin; one that is missing holds nothing.
        above: the folders that lead here; a link back to one of them is not followed.

    Raises:
        OSError: a folder cannot be read.
    """
    above = (*above, folder.resolve())
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.is_dir():
            yield path
        elif path.resolve() not in above:
            yield from list_files(path, above)


def make_folder(folder: Path) -> Path:
    """Make a folder where it is missing, and check that it can be written to.

    Raises:
        OSError: it cannot; the message says what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise OSError(errno.EACCES, "not writable")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        name, reason = "/".join(folder.parts[-2:]), os.strerror(error.errno).lower()
        advice = "Change its permissions, or set XRAY_HOME to a folder of your own, and run this again."
        raise OSError(error.errno, f"the folder {name} cannot be written to ({reason}). {advice}") from None
    return folder


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut, where the system allows folders to be synced."""
    if os.name == "nt":  # Windows cannot open folders; its renames are journalled
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exchange(new: Path, target: Path) -> None:
    """Put a finished folder in the place of `target`; `settle` tidies up where this was cut short."""
    if target.exists():
        target.rename(target.with_name(f".{target.name}.old"))
    new.rename(target)
    sync_folder(target.parent)
    settle(target)


def settle(target: Path) -> None:
    """Tidy up after an `exchange`, whole or cut short: without the new folder in its place, the old one comes back."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def check_disk(folder: Path, needed: int, purpose: str) -> None:
    """Raise before anything is written that the disk cannot hold.

    Args:
        folder: a folder on the disk that will be written; need not exist yet.
        needed: bytes that will be written.
        purpose: what they are for, in the message.

    Raises:
        OSError: less than `needed` bytes plus a reserve of 200 MB is free; nothing was written.
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free, total = shutil.disk_usage(existing).free, needed + 200_000_000
    if free < total:
        what = f"{purpose} needs {total / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free on this disk"
        raise OSError(f"{what}. Free some space, or set XRAY_HOME to a folder on a larger disk, and run this again.")
