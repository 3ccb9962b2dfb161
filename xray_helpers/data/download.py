"""Step 1: bring the images to `data/raw/<name>/chest_xray`, from Kaggle, a zip, a folder, or drawn on the spot."""

import errno
import hashlib
import io
import json
import lzma
import os
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

from filelock import FileLock
from tqdm import tqdm

from xray_helpers import files
from xray_helpers.data import synthetic
from xray_helpers.files import FOLDERS, IMAGE_SUFFIXES, CorruptArchiveError, DownloadError
from xray_helpers.settings import SOURCES, Settings

KAGGLE_DATASET = "paultimothymooney/chest-xray-pneumonia"
SAMPLE_STRENGTH = 0.5  # of the lesions: a network trained on the sample makes some mistakes, as on real images
RETRY_WAITS = (1.0, 4.0)  # seconds before the second and third attempt to reach Kaggle
DOWNLOAD_TIMEOUT = 60  # seconds to wait for Kaggle's server
MAX_FILES, MAX_BYTES, MAX_RATIO = 200_000, 50_000_000_000, 200  # Kaggle's archive: 11,712 files, 2.5 GB, about 1


def fetch(settings: Settings) -> Path:
    """Make the dataset complete under `data/raw`, and return its folder; at once when it is already there.

    Args:
        settings: `data` says from where: `sample` is drawn, `kaggle` downloaded, a folder copied, a zip extracted.

    Returns:
        `data/raw/<name>/chest_xray`, with the images in `{train,val,test}/<class>/` and nothing else.

    Raises:
        DownloadError: no network, refused by Kaggle, an unsafe or damaged archive, a folder of another shape.
        OSError: the disk is too small.
    """
    target, name = settings.raw_folder, f"data/raw/{settings.data_name}"
    images, marker, source = target / "chest_xray", target / "complete.json", settings.source()
    with FileLock(files.make_folder(target.parent) / f".{target.name}.lock"):
        files.settle(target)
        kept = json.loads(marker.read_text()) if marker.is_file() else {}
        gone = settings.data not in SOURCES and not source.exists()
        origin = kept.get("origin", "") if gone else _origin(settings)
        if kept == {"origin": origin, "files": len(_list_files(images))}:
            remark = " (their source is gone)" if gone else ""
            files.print_once(f"{name}: complete, {kept['files']:,} images{remark}")
            return images
        if gone:
            problem = f"{name} is not complete, and its source {source.name} is not there"
            raise DownloadError(f"{problem}: give its path as DATA.")
        if target.exists() and not kept:
            raise DownloadError(f"{name} exists, but was not made here. Move it away, and give its path as the data.")
        if kept and kept["origin"] != origin and settings.data != "sample":
            advice = f"Rename the source, or delete {name} and data/processed/{settings.data_name} to replace it."
            raise DownloadError(f"{name} was made from other files than {source.name} now holds. {advice}")
        if kept:
            print(f"{name}: made by another version, or files are missing; making it again")
        _build(settings, target, origin)
    return images


def _build(settings: Settings, target: Path, origin: str) -> None:
    """Fill a temporary folder, mark it complete, and exchange it for the folder in place."""
    staging, start = target.with_name(f".{target.name}.partial"), time.perf_counter()
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    try:
        skipped = _fill(settings, staging)
        names = list(_list_files(staging / "chest_xray"))
        (staging / "complete.json").write_text(json.dumps({"origin": origin, "files": len(names)}) + "\n")
        if hasattr(os, "sync"):
            os.sync()  # one sync for thousands of files, before the rename that makes them count
        files.exchange(staging, target)
    except OSError as error:
        if error.errno in files.FULL:
            raise DownloadError("The disk is full. Nothing was changed; free some space and run this again.") from None
        raise
    finally:
        files.settle(target)
        shutil.rmtree(staging, ignore_errors=True)
    spent = time.perf_counter() - start
    parts = ", ".join(f"{part} {n:,}" for part in FOLDERS if (n := sum(name.startswith(part) for name in names)))
    print(f"data/raw/{target.name}: {len(names):,} images ({parts}) in {spent:.0f} s; {skipped:,} other files left out")


def _fill(settings: Settings, staging: Path) -> int:
    """Bring the images to `staging/chest_xray`; returns how many other files were left out."""
    images, source, kaggle = staging / "chest_xray", settings.source(), settings.data == "kaggle"
    temporary = staging.with_name(".kaggle-download") if kaggle else staging / "source"
    if settings.data == "sample":
        synthetic.write_dataset(staging, strength=SAMPLE_STRENGTH)
        source = images.rename(temporary)
    for retry in (kaggle, False):  # Kaggle's archive is downloaded once more if it turns out to be damaged
        try:
            left_out = extract(_download(temporary) if kaggle else source, images)
            break
        except CorruptArchiveError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(images, ignore_errors=True)
            if not retry:
                raise
            print(f"{error} Downloading it again.")
    shutil.rmtree(temporary, ignore_errors=True)
    return left_out


def _download(folder: Path) -> Path:
    """Download Kaggle's archive into `folder` through its client, which resumes an interrupted download."""
    import requests  # only those who download pay for this import, and for the client's

    for wait in (0, *RETRY_WAITS):
        time.sleep(wait)
        client = _kaggle_client()
        try:
            with redirect_stdout(io.StringIO()):  # the client prints absolute paths; its progress bar is on stderr
                client.dataset_download_files(KAGGLE_DATASET, path=str(folder), quiet=False)
            return folder / (KAGGLE_DATASET.split("/")[1] + ".zip")
        except (requests.RequestException, ValueError) as error:  # ValueError: another size than was announced
            status = getattr(getattr(error, "response", None), "status_code", 0)
            problem = _explain(error, status, client.signed_in)
            # Once the download has begun, the client has done its own retries.
            if client.begun if status == 0 else status < 500 and status != 429:
                break
    raise DownloadError(problem)


def _kaggle_client() -> Any:
    """Kaggle's client, signed in if there are credentials; silent, since without any it prints help and exits."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        from kaggle.api.kaggle_api_extended import KaggleApi  # importing it signs in, so not at the top

        class Client(KaggleApi):  # type: ignore[misc]
            """Checks that the archive fits on the disk before its first byte is written."""

            signed_in = begun = False

            def download_file(self, response: Any, outfile: str, *args: Any, **options: Any) -> None:
                size, path = int(response.headers.get("Content-Length") or 0), Path(outfile)
                have = path.stat().st_size if path.exists() else 0
                files.check_disk(path.parent, 2 * size - have, "Downloading and extracting Kaggle's archive")
                self.begun = True
                super().download_file(response, outfile, *args, **options, max_retries=3, timeout=DOWNLOAD_TIMEOUT)

        client = Client()
        # NameError: its exit() does not exist in a Jupyter kernel. OSError: no network; the download will say so.
        with suppress(SystemExit, NameError, OSError):
            client.authenticate()
            client.signed_in = True
    return client


def _explain(error: Exception, status: int, signed_in: bool) -> str:
    """What an HTTP status of Kaggle's, or 0 for no answer, means; without its text, which may hold a signed address."""
    if status in (401, 403):
        problem = "refused your credentials" if signed_in else "asks for credentials"
        advice = "Renew them, or remove them: this dataset can be downloaded without any. " if signed_in else ""
        steps = "Create a token on kaggle.com (your picture > Settings > API), and put it into ~/.kaggle/access_token"
        return f"Kaggle {problem} (HTTP {status}). {advice}{steps} or the variable KAGGLE_API_TOKEN."
    if status == 404:
        return f"Kaggle has no dataset {KAGGLE_DATASET} (HTTP 404). It may have moved; give a zip or folder instead."
    if status:
        return f"Kaggle answered HTTP {status}. Try again later; what has arrived is kept."
    advice = "What has arrived is kept: run this again to continue from there. With no network, use data='sample'."
    return f"Kaggle could not be reached, or the connection was cut ({type(error).__name__}). {advice}"


def _origin(settings: Settings) -> str:
    """What the data is made from, so that a change is noticed; never a path, which would name the machine."""
    if settings.data in SOURCES:
        return f"phantoms version {synthetic.VERSION}" if settings.data == "sample" else f"kaggle {KAGGLE_DATASET}"
    with _open_source(settings.source()) as (members, _):
        text = "\n".join(" ".join(map(str, (name, *facts))) for name, facts in members.items())
    return f"{settings.source().name} {hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def extract(source: Path, images: Path) -> int:
    """Copy the images of a zip or folder with Kaggle's structure to `images`.

    Args:
        source: the zip or folder.
        images: where to write `{train,val,test}/<class>/`; created when missing.

    Returns:
        How many other files were left out.

    Raises:
        CorruptArchiveError: not a zip, or a byte of it is wrong.
        DownloadError: an unsafe archive, or another structure.
        OSError: the disk is too small.
    """
    with _open_source(source) as (members, read):
        chosen = choose_images(members, source.name)
        files.check_disk(images, sum(members[name][0] for name in chosen), "Copying the images")
        for name, place in tqdm(chosen.items(), "copying", unit="image", leave=False):
            (images / place).parent.mkdir(parents=True, exist_ok=True)
            with read(name) as original, open(images / place, "xb") as copy:
                shutil.copyfileobj(original, copy)  # reading a zip's member to its end also checks its CRC
    return sum(not name.endswith("/") for name in members) - len(chosen)


def _list_files(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every file below a folder, by its path relative to the folder, with its size in bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_size,) for path in paths}


@contextmanager
def _open_source(source: Path) -> Iterator[tuple[dict[str, tuple[int, ...]], Callable[[str], IO[bytes]]]]:
    """Open a folder or zip: its members' names with their size (and CRC in a zip), and a function that opens one.

    Whatever Python raises when a zip is damaged becomes a CorruptArchiveError.
    """
    if source.is_dir():
        yield _list_files(source), lambda name: (source / name).open("rb")
        return
    try:
        with ZipFile(source) as archive:
            check_archive(archive, source.name)
            yield {info.filename: (info.file_size, info.CRC) for info in archive.infolist()}, archive.open
    except (BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: an offset before the file's start
            raise
        raise CorruptArchiveError(f"{source.name} is not a zip archive, or it is damaged ({error}).") from None


def check_archive(archive: ZipFile, name: str) -> None:
    """Refuse an archive that could write outside its folder or fill the disk, before anything is extracted.

    Args:
        archive: the open zip.
        name: what to call it in a message.

    Raises:
        DownloadError: an absolute name or one with `..`, a link, encryption, two members of the same name, too many
            files, too many bytes, or a compression ratio that no set of images has.
    """
    members = archive.infolist()
    for info in members:
        first, *rest = info.filename.replace("\\", "/").split("/")
        if ".." in (first, *rest) or not first or ":" in first or stat.S_ISLNK(info.external_attr >> 16):
            raise DownloadError(f"{name} contains the unsafe name {info.filename!r}; nothing was extracted.")
        if info.flag_bits & 1:
            raise DownloadError(f"{name} is encrypted; extract it yourself and give the folder instead.")
    total, packed = sum(info.file_size for info in members), sum(info.compress_size for info in members)
    if len(members) > MAX_FILES or total > MAX_BYTES or total > MAX_RATIO * max(packed, 1):
        problem = f"would unpack to {len(members):,} files of {total / 1e9:.1f} GB from {packed / 1e9:.3f} GB"
        raise DownloadError(f"{name} {problem}: more than any set of radiographs needs. Nothing was extracted.")
    if len({info.filename for info in members}) < len(members):
        raise DownloadError(f"{name} contains the same name twice; extract it yourself and give the folder instead.")


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
        if len(parts) >= 3 and parts[-3] in FOLDERS and name.lower().endswith(IMAGE_SUFFIXES) and not hidden:
            found.setdefault(parts[:-3], {})[name] = "/".join(parts[-3:])
    if not found:
        expected = "{train,val,test}/<class>/<image>, with images as " + ", ".join(IMAGE_SUFFIXES)
        raise DownloadError(f"{source} holds no images in folders such as train/NORMAL. Expected: {expected}.")
    chosen = found[min(found, key=lambda prefix: (len(prefix), prefix))]
    classes = {place.split("/")[1] for place in chosen.values()}
    if len(classes) < 2:
        raise DownloadError(f"{source} holds only one class ({classes.pop()}); at least two are needed.")
    return chosen


def main() -> None:
    """`python -m xray_helpers.data.download --data …`: fetch the data and say where it is."""
    with files.exit_on_error():
        fetch(Settings.from_args(description=main.__doc__ or ""))


if __name__ == "__main__":
    main()
