"""Step 1: bring the images to `data/raw/<name>/chest_xray`, from Kaggle, a zip, a folder, or drawn on the spot."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import time
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from filelock import FileLock

from xray_helpers import phantoms
from xray_helpers.archives import CorruptArchiveError, DownloadError, copy_folder, extract
from xray_helpers.files import FOLDERS, FULL, check_disk, make_folder, sync_folder
from xray_helpers.settings import SOURCES, Settings

KAGGLE_DATASET = "paultimothymooney/chest-xray-pneumonia"
SAMPLE_STRENGTH = 0.5  # of the lesions: a network that is trained on the sample makes some mistakes, as on real images
RETRY_WAITS = (1.0, 4.0)  # seconds before the second and third attempt to reach Kaggle
CREDENTIALS_HELP = (
    "Create a token on kaggle.com (your picture > Settings > API), and put it into ~/.kaggle/access_token or the "
    "variable KAGGLE_API_TOKEN, or kaggle.json into ~/.kaggle."
)


def fetch(settings: Settings) -> Path:
    """Make the dataset complete under `data/raw`, and return its folder; at once when it is there already.

    Args:
        settings: `data` says from where: `sample` is drawn, `kaggle` downloaded, a folder copied, a zip extracted.

    Returns:
        `data/raw/<name>/chest_xray`, with the images in `{train,val,test}/<class>/` and nothing else.

    Raises:
        DownloadError: no network, refused by Kaggle, an unsafe or damaged archive, a folder of another shape.
        OSError: the disk is too small.
    """
    target, name = settings.raw_folder, f"data/raw/{settings.data_name}"
    make_folder(target.parent)
    with FileLock(target.parent / f".{settings.data_name}.lock"):
        _put_back(target)
        kept = _read_marker(target)
        intact = kept is not None and _count(target / "chest_xray") == kept["files"]
        gone = settings.data not in SOURCES and not settings.source().exists()
        if gone and not intact:
            raise DownloadError(
                f"{name} is not complete, and its source {settings.source().name} is not there: give its path as DATA."
            )
        origin = kept["origin"] if gone else _origin(settings)
        if intact and kept["origin"] == origin:
            print(f"{name}: complete, {kept['files']:,} images" + (" (their source is gone)" if gone else ""))
            return target / "chest_xray"
        if target.exists() and kept is None:
            raise DownloadError(f"{name} exists, but was not made here. Move it away, and give its path as the data.")
        if kept and kept["origin"] != origin and settings.data != "sample":
            raise DownloadError(
                f"{name} was made from other files than {settings.source().name} now holds. Rename the source, or "
                f"delete {name} (and data/processed/{settings.data_name}) to replace it."
            )
        if kept:
            print(f"{name}: made by another version, or files are missing; making it anew")
        _build(settings, target, origin)
    return target / "chest_xray"


def _put_back(target: Path) -> None:
    """Undo a move that was cut short: the old data is there, the new is not yet."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)


def _build(settings: Settings, target: Path, origin: str) -> None:
    """Fill a folder aside, mark it complete, and move it into place."""
    staging, old = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")
    _remove(staging, old)
    start = time.perf_counter()
    try:
        left_out = _fill(settings, staging)
        files = _count(staging / "chest_xray")
        (staging / "complete.json").write_text(json.dumps({"origin": origin, "files": files}) + "\n")
        if hasattr(os, "sync"):
            os.sync()  # one sync for thousands of files, before the rename that makes them count
        if target.exists():
            target.rename(old)
        staging.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno in FULL:
            raise DownloadError("The disk is full. Nothing was changed; free some space and run this again.") from None
        raise
    finally:
        _put_back(target)
        _remove(staging, old)
    folders = {folder: _count(target / "chest_xray" / folder) for folder in FOLDERS}
    counts = ", ".join(f"{folder} {count:,}" for folder, count in folders.items() if count)
    seconds = time.perf_counter() - start
    print(f"data/raw/{target.name}: {files:,} images ({counts}) in {seconds:.0f} s; {left_out:,} other files left out")


def _fill(settings: Settings, staging: Path) -> int:
    """Bring the images to `staging/chest_xray`; returns how many other files were left out."""
    images = staging / "chest_xray"
    if settings.data == "sample":
        phantoms.write_dataset(staging / "source", strength=SAMPLE_STRENGTH)
        left_out = copy_folder(staging / "source" / "chest_xray", images)
        for truth in ("truth.csv", "masks"):
            (staging / "source" / truth).rename(staging / truth)
        shutil.rmtree(staging / "source")
        return left_out
    if settings.data == "kaggle":
        return _fill_from_kaggle(staging.with_name(".kaggle-download"), images)
    return (copy_folder if settings.source().is_dir() else extract)(settings.source(), images)


def _fill_from_kaggle(folder: Path, images: Path) -> int:
    """Download and extract; an archive that turns out damaged is thrown away and fetched once more."""
    for last in (False, True):
        archive = _download(folder)
        try:
            left_out = extract(archive, images)
            break
        except CorruptArchiveError as error:
            _remove(folder, images)
            if last:
                raise
            print(f"{error} Downloading it again.")
    _remove(folder)
    return left_out


def _download(folder: Path) -> Path:
    """Download Kaggle's archive into `folder` through its client, which resumes what a cut left there."""
    import requests  # like the client below: only who downloads pays for the import

    folder.mkdir(parents=True, exist_ok=True)
    api, known = None, True
    for wait in (*RETRY_WAITS, None):
        try:
            api, known = _kaggle_api()
            with redirect_stdout(io.StringIO()):  # the client prints absolute paths; its progress bar is on stderr
                api.dataset_download_files(KAGGLE_DATASET, path=str(folder), quiet=False)
            return folder / (KAGGLE_DATASET.split("/")[1] + ".zip")
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 500
            if wait is None or (status < 500 and status != 429):
                raise DownloadError(_explain(status, known)) from None
        except (requests.RequestException, ValueError) as error:  # ValueError: the client found another size
            if wait is None or (api and api.begun):  # once begun, the client has done its own retries
                raise DownloadError(
                    f"Kaggle could not be reached, or the connection was cut ({type(error).__name__}). What has "
                    "arrived is kept: run this again to go on from there. With no network, use data='sample'."
                ) from None
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _kaggle_api() -> tuple[Any, bool]:
    """Kaggle's client, and whether it has credentials; silent, since without any it prints help and exits."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        from kaggle.api.kaggle_api_extended import KaggleApi  # importing it signs in, so not at the top

        class Client(KaggleApi):  # type: ignore[misc]
            """Knows the archive's size before its first byte is written."""

            begun = False

            def download_file(self, response: Any, outfile: str, *args: Any, **options: Any) -> None:
                size, path = int(response.headers.get("Content-Length") or 0), Path(outfile)
                have = path.stat().st_size if path.exists() else 0
                check_disk(path.parent, max(2 * size - have, 0), "Downloading and extracting Kaggle's archive")
                self.begun = True
                super().download_file(response, outfile, *args, **options, max_retries=3, timeout=60)

        api = Client()
        try:
            api.authenticate()
        except (SystemExit, NameError):  # NameError: its exit() does not exist in a Jupyter kernel
            return api, False
    return api, True


def _explain(status: int, known: bool) -> str:
    """What an HTTP status of Kaggle's means; without its text, which may hold a signed address."""
    if status in (401, 403) and known:
        return (
            f"Kaggle refused your credentials (HTTP {status}). Renew them, or remove them: this dataset can be had "
            f"without any. {CREDENTIALS_HELP}"
        )
    if status in (401, 403):
        return f"Kaggle wants to know who downloads (HTTP {status}). {CREDENTIALS_HELP}"
    if status == 404:
        return f"Kaggle has no dataset {KAGGLE_DATASET} (HTTP 404). It may have moved; give a zip or folder instead."
    return f"Kaggle answered HTTP {status}. Try again later; what has arrived is kept."


def _origin(settings: Settings) -> str:
    """What the data is made from, so that a change is noticed: never a path, which would name the machine."""
    if settings.data == "sample":
        return f"phantoms version {phantoms.VERSION}"
    if settings.data == "kaggle":
        return f"kaggle {KAGGLE_DATASET}"
    source, digest = settings.source(), hashlib.sha256()
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.is_file())
        lines = [f"{path.relative_to(source).as_posix()} {path.stat().st_size}" for path in paths]
    else:
        try:
            with zipfile.ZipFile(source) as archive:
                lines = [f"{info.filename} {info.file_size} {info.CRC}" for info in archive.infolist()]
        except zipfile.BadZipFile as error:
            raise CorruptArchiveError(f"{source.name} is not a zip archive, or it is damaged ({error}).") from None
    digest.update("\n".join(lines).encode("utf-8", "surrogateescape"))
    return f"{source.name} {digest.hexdigest()[:16]}"


def _read_marker(target: Path) -> Any:
    marker = target / "complete.json"
    return json.loads(marker.read_text()) if marker.is_file() else None


def _count(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if path.is_file())


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def main() -> None:
    """`python -m xray_helpers.download --data …`: fetch the data and say where it is."""
    settings = Settings.from_args(description=main.__doc__ or "")
    try:
        fetch(settings)
    except (DownloadError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
