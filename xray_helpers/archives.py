"""Taking the images out of a zip or a folder that somebody else made, safely and without the rest."""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from xray_helpers.files import FOLDERS, IMAGE_SUFFIXES, check_disk

MAX_FILES, MAX_BYTES, MAX_RATIO = 200_000, 50_000_000_000, 200  # Kaggle's archive: 11,712 files, 2.5 GB, about 1


class DownloadError(Exception):
    """The data could not be had; the message says why and what to do. What was there before is untouched."""


class CorruptArchiveError(DownloadError):
    """The archive's bytes are damaged; another copy may be sound."""


def copy_folder(source: Path, images: Path) -> int:
    """Copy a Kaggle-shaped folder's images to `images`; returns how many other files were left out.

    Raises:
        DownloadError: the folder has another shape.
        OSError: the disk is too small.
    """
    names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    chosen = choose_images(names, source.name)
    check_disk(images, sum((source / name).stat().st_size for name in chosen), "Copying the images")
    for name, place in _progress(chosen, "copying"):
        shutil.copyfile(source / name, _make_room(images / place))
    return len(names) - len(chosen)


def extract(path: Path, images: Path) -> int:
    """Extract a Kaggle-shaped zip's images to `images`; returns how many other files were left out.

    Raises:
        CorruptArchiveError: not a zip, or a byte of it is wrong.
        DownloadError: an unsafe archive, or one of another shape.
        OSError: the disk is too small.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in check_archive(archive, path.name) if not info.is_dir()}
            chosen = choose_images(members, path.name)
            check_disk(images, sum(members[name].file_size for name in chosen), "Extracting the images")
            for name, place in _progress(chosen, "extracting"):
                with archive.open(members[name]) as packed, open(_make_room(images / place), "xb") as file:
                    shutil.copyfileobj(packed, file)  # reading to the end also checks the CRC
            return len(members) - len(chosen)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise CorruptArchiveError(f"{path.name} is not a zip archive, or it is damaged ({error}).") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # zipfile, sent to a place before the start
            raise
        raise CorruptArchiveError(f"{path.name} is damaged: a place that it names does not exist.") from None


def check_archive(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """Refuse an archive that could write outside its folder or fill the disk, before anything is extracted.

    Raises:
        DownloadError: an absolute name or one with `..`, a link, encryption, a name that stands twice, too many
            files, too many bytes, or a compression ratio that no set of images has.
    """
    members = archive.infolist()
    for info in members:
        parts = info.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0] or stat.S_ISLNK(info.external_attr >> 16):
            raise DownloadError(f"{name} holds the unsafe name {info.filename!r}; nothing was extracted.")
        if info.flag_bits & 1:
            raise DownloadError(f"{name} is encrypted; extract it yourself and give the folder instead.")
    total, packed = sum(info.file_size for info in members), sum(info.compress_size for info in members)
    if len(members) > MAX_FILES or total > MAX_BYTES or total > MAX_RATIO * max(packed, 1):
        raise DownloadError(
            f"{name} would unpack to {len(members):,} files of {total / 1e9:.1f} GB from {packed / 1e9:.3f} GB: "
            "more than any set of radiographs needs. Nothing was extracted."
        )
    if len({info.filename for info in members}) < len(members):
        raise DownloadError(f"{name} holds a name twice; extract it yourself and give the folder instead.")
    return members


def choose_images(names: Iterable[str], source: str) -> dict[str, str]:
    """Which files are the dataset's images, and where each belongs.

    The images are those in `{train,val,test}/<class>/` nearest to the top; a second copy further down, hidden
    files, `__MACOSX` and files that are not named as images are left out.

    Args:
        names: paths relative to the source, with `/`.
        source: what to call the source in a message.

    Returns:
        name → `<folder>/<class>/<file>`.

    Raises:
        DownloadError: no such folders, or fewer than two classes.
    """
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if len(parts) >= 3 and parts[-3] in FOLDERS and parts[-1].lower().endswith(IMAGE_SUFFIXES) and not hidden:
            found.setdefault(parts[:-3], {})[name] = "/".join(parts[-3:])
    if not found:
        raise DownloadError(
            f"{source} holds no images in folders such as train/NORMAL and train/PNEUMONIA. Expected: "
            "{train,val,test}/<class>/<image>, with images as " + ", ".join(IMAGE_SUFFIXES) + "."
        )
    chosen = found[min(found, key=lambda prefix: (len(prefix), prefix))]
    classes = sorted({place.split("/")[1] for place in chosen.values()})
    if len(classes) < 2:
        raise DownloadError(f"{source} holds one class only ({classes[0]}); at least two are needed to tell apart.")
    return chosen


def _progress(chosen: Mapping[str, str], what: str) -> Iterator[tuple[str, str]]:
    yield from tqdm(chosen.items(), desc=what, unit="image", leave=False)


def _make_room(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
