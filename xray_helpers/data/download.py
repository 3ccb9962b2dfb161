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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, ZipInfo

import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from xray_helpers import files
from xray_helpers.data import synthetic
from xray_helpers.data.layout import choose_images
from xray_helpers.data.patients import read_table
from xray_helpers.files import FOLDERS, CorruptArchiveError, DownloadError
from xray_helpers.settings import SOURCES, Settings

KAGGLE_DATASET = "paultimothymooney/chest-xray-pneumonia"
# Where a notebook on Kaggle finds the dataset, once it was added as an input.
KAGGLE_INPUTS = (Path("/kaggle/input/chest-xray-pneumonia"), Path("/kaggle/input/datasets") / KAGGLE_DATASET)
SAMPLE_STRENGTH = 0.5  # of the lesions: a network trained on the sample makes some mistakes, as on real images
DOWNLOAD_TIMEOUT = 60  # seconds to wait for Kaggle's server
MAX_FILES, MAX_BYTES, MAX_RATIO = 200_000, 50_000_000_000, 200  # Kaggle's archive: 11,712 files, 2.5 GB, about 1
LEFT_OUT = "left-out.csv"  # beside the images: reason, class and number of the files that are not among them


def fetch(settings: Settings) -> Path:
    """Make the dataset complete under `data/raw`, and return its folder; at once when it is already there.

    Args:
        settings: `data` says from where: `sample` is drawn, `kaggle` downloaded (on Kaggle's machines copied), a folder
            copied, a zip extracted.

    Returns:
        `data/raw/<name>/chest_xray`, with the images in `{train,val,test}/<class>/` and nothing else; beside it
        `left-out.csv` counts the source's other files by reason and class.

    Raises:
        DownloadError: no network, refused by Kaggle, an unsafe or damaged archive, a folder of another shape.
        OSError: the disk is too small.
    """
    target, name = settings.raw_folder, f"data/raw/{settings.data_name}"
    images, marker, source = target / "chest_xray", target / "complete.json", settings.source()
    with FileLock(files.make_folder(target.parent) / f".{target.name}.lock"):
        files.settle(target)
        kept = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
        gone = settings.data not in SOURCES and not source.exists()
        origin = kept.get("origin", "") if gone else _origin(settings)
        # Version 0.1 left out more, and did not count it; what Kaggle sends was all used then, too.
        counted = gone or settings.data == "kaggle" or (target / LEFT_OUT).is_file()
        if counted and kept == {"origin": origin, "files": len(list(files.list_files(images)))}:
            remark = " (their source is gone)" if gone else ""
            files.print_once(f"{name}: complete, {kept['files']:,} images{remark}")
            return images
        if gone:
            what = f"{name} is not complete, and its source {source.name} is not there"
            raise DownloadError(f"{what}: give its path as DATA.")
        if target.exists() and not kept:
            raise DownloadError(f"{name} exists, but was not made here. Move it away, and give its path as the data.")
        if kept and kept["origin"] != origin and settings.data != "sample":
            advice = f"Rename the source, or delete {name} and data/processed/{settings.data_name} to replace it."
            raise DownloadError(f"{name} was made from other files or labels than {source.name} now has. {advice}")
        if kept:
            print(f"{name}: made by another version, or files are missing; making it again")
        try:
            _build(settings, target, origin)
        except CorruptArchiveError as error:
            if settings.data != "kaggle":
                raise
            print(f"{error} Downloading it again.")
            _build(settings, target, origin)
    return images


def _build(settings: Settings, target: Path, origin: str) -> None:
    """Fill a temporary folder, mark it complete, and exchange it for the folder in place."""
    staging, start = target.with_name(f".{target.name}.partial"), time.perf_counter()
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
    try:
        left_out = _fill(settings, staging)
        left_out.to_csv(staging / LEFT_OUT, index=False)
        found = {part: len(list(files.list_files(staging / "chest_xray" / part))) for part in FOLDERS}
        total = sum(found.values())
        marker = json.dumps({"origin": origin, "files": total}) + "\n"
        (staging / "complete.json").write_text(marker, encoding="utf-8")
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
    parts = ", ".join(f"{part} {number:,}" for part, number in found.items() if number)
    said = f"{total:,} images ({parts}) in {spent:.0f} s; {left_out['files'].sum():,} other files left out"
    counts = left_out.groupby("reason")["files"].sum().sort_values(ascending=False, kind="stable")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.head(6).items())
    more = f" and others (data/raw/{target.name}/{LEFT_OUT})" if len(counts) > 6 else ""
    print(f"data/raw/{target.name}: {said}{': ' if reasons else ''}{reasons}{more}")


def _fill(settings: Settings, staging: Path) -> pd.DataFrame:
    """Bring the images to `staging/chest_xray`; returns what `extract` does."""
    images, source, temporary = staging / "chest_xray", settings.source(), staging / "source"
    if settings.data == "sample":
        synthetic.write_dataset(staging, strength=SAMPLE_STRENGTH)
        source = images.rename(temporary)
    elif settings.data == "kaggle":
        temporary = staging.with_name(".kaggle-download")  # outside of `staging`: what has arrived is kept
        source = next(filter(Path.is_dir, KAGGLE_INPUTS), None) or _download(temporary)
    try:
        left_out = extract(source, images, _own_table(settings))
    except CorruptArchiveError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(temporary, ignore_errors=True)
    return left_out


def _download(folder: Path) -> Path:
    """Download Kaggle's archive into `folder` through its client, which resumes an interrupted download."""
    import requests  # only those who download pay for this import, and for the client's

    _check_credentials()
    client = _kaggle_client()
    for wait in (0, 1, 4):  # seconds before each attempt to reach Kaggle
        time.sleep(wait)
        try:
            with redirect_stdout(io.StringIO()):  # the client prints absolute paths; its progress bar is on stderr
                client.dataset_download_files(KAGGLE_DATASET, path=str(folder), quiet=False)
            return folder / (KAGGLE_DATASET.split("/")[1] + ".zip")
        except (requests.RequestException, ValueError) as error:  # ValueError: another size than was announced
            response = getattr(error, "response", None)
            status, problem = getattr(response, "status_code", 0), _explain(error, response)
            # Once the download has begun, the client has done its own retries.
            if client.begun if status == 0 else status < 500 and status != 429:
                break
    raise DownloadError(problem)


def _check_credentials() -> None:
    """Read the files with credentials for Kaggle, if there are any, before its client does.

    Raises:
        DownloadError: such a file cannot be read as Kaggle's client reads it, which would go on without it.
    """
    home = Path.home() / ".kaggle"
    folders = {home, home.with_name(".config") / "kaggle", Path(os.environ.get("KAGGLE_CONFIG_DIR") or home)}
    paths = [folder / name for folder in folders for name in ("kaggle.json", "access_token", "access_token.txt")]
    for path in filter(Path.is_file, [*paths, Path(os.environ.get("KAGGLE_API_TOKEN", ""))]):
        try:
            text = path.read_text(encoding="utf-8").strip()
            # JSON begins with no byte order mark; in a token, that and what is left of UTF-16 cannot be printed.
            good = {"username", "key"} <= set(json.loads(text)) if path.suffix == ".json" else text.isprintable()
        except (ValueError, TypeError):  # other bytes, or no JSON
            good = False
        if not good:
            what = f"{path.parent.name}/{path.name} does not hold what Kaggle gives, as plain text in UTF-8"
            advice = "Download it again, or open it in an editor and save it as UTF-8 without a byte order mark"
            raise DownloadError(f"{what}. {advice} (PowerShell's > saves UTF-16).")


def _kaggle_client() -> Any:
    """Kaggle's client, signed in if there are credentials; silent, since without any it prints help and exits."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        from kaggle.api.kaggle_api_extended import KaggleApi  # importing it signs in, so not at the top

        class Client(KaggleApi):  # type: ignore[misc]
            """Checks that the archive fits on the disk before its first byte is written."""

            begun = False

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
    return client


def _explain(error: Exception, response: Any) -> str:
    """What an answer of Kaggle's means, or none; without the error's text, which may hold a signed address."""
    if response is None:
        advice = "What has arrived is kept: run this again to continue from there. With no network, use data='sample'."
        return f"Kaggle could not be reached, or the connection was cut ({type(error).__name__}). {advice}"
    status = response.status_code
    if status in (401, 403):
        given = any("Authorization" in answer.request.headers for answer in (*response.history, response))
        problem = "refused your credentials" if given else "asks for credentials"
        advice = "Renew them, or remove them: this dataset can be downloaded without any. " if given else ""
        steps = "Create a token on kaggle.com (your picture > Settings > API), and put it into ~/.kaggle/access_token"
        return f"Kaggle {problem} (HTTP {status}). {advice}{steps} or the variable KAGGLE_API_TOKEN."
    if status == 404:
        return f"Kaggle has no dataset {KAGGLE_DATASET} (HTTP 404). It may have moved; give a zip or folder instead."
    return f"Kaggle answered HTTP {status}. Try again later; what has arrived is kept."


def _origin(settings: Settings) -> str:
    """What the data is made from, so that a change is noticed; never a path, which would name the machine."""
    if settings.data in SOURCES:
        return f"phantoms version {synthetic.VERSION}" if settings.data == "sample" else f"kaggle {KAGGLE_DATASET}"
    with _open_source(settings.source()) as (members, _):
        text = "\n".join(" ".join(map(str, (name, *facts))) for name, facts in members.items())
    if (table := _own_table(settings)) is not None and "label" in table:
        text += table.to_csv()
    return f"{settings.source().name} {hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def _own_table(settings: Settings) -> pd.DataFrame | None:
    """The table of patients, which may give labels, too; built-in data has them from its folders."""
    file = None if settings.data in SOURCES else settings.patients_table
    return read_table(file) if file else None


def extract(source: Path, images: Path, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """Copy the images of a zip or folder to `images`.

    Args:
        source: the zip or folder, of a shape that `choose_images` knows.
        images: where to write `{train,val,test}/<class>/`; created when missing.
        table: as for `choose_images`.

    Returns:
        The other files, counted: reason, class (`""` where it is not known), files.

    Raises:
        CorruptArchiveError: not a zip, or a byte of it is wrong.
        DownloadError: an unsafe archive, one that Python cannot unpack, or another structure.
        OSError: the disk is too small, or a file cannot be read.
    """
    with _open_source(source) as (members, read):
        chosen, left_out = choose_images([name for name, facts in members.items() if facts], source.name, table)
        files.check_disk(images, sum(members[name][0] for name in chosen), "Copying the images")
        for name, place in tqdm(chosen.items(), "copying", unit="image", leave=False):
            (images / place).parent.mkdir(parents=True, exist_ok=True)
            with read(name) as original, open(images / place, "xb") as copy:
                shutil.copyfileobj(original, copy)  # reading a zip's member to its end also checks its CRC
    reasons = [*left_out.values(), *(("broken link or no regular file", "") for facts in members.values() if not facts)]
    return pd.DataFrame(reasons, columns=["reason", "class"]).value_counts(sort=False).reset_index(name="files")


@contextmanager
def _open_source(source: Path) -> Iterator[tuple[Mapping[str, tuple[int, ...]], Callable[[str], IO[bytes]]]]:
    """Open a folder or zip: its files' names with their size (and CRC in a zip), and a function that opens one.

    A name without a size is no regular file. Whatever Python raises when a zip is damaged becomes a
    CorruptArchiveError.
    """
    if source.is_dir():
        paths = {path.relative_to(source).as_posix(): path for path in files.list_files(source)}
        facts = {name: (path.stat().st_size,) if path.is_file() else () for name, path in paths.items()}
        yield facts, lambda name: paths[name].open("rb")
        return
    try:
        with ZipFile(source) as archive:
            members = check_archive(archive, source.name)
            sizes = {name: (info.file_size, info.CRC) for name, info in members.items()}
            yield sizes, lambda name: archive.open(members[name])
    except NotImplementedError as error:  # Deflate64, as Windows packs large folders, and other rare ones
        advice = "Unpack it with the program that made it, or 7-Zip, and give the folder; or pack it as ordinary zip"
        raise DownloadError(f"{source.name} is packed in a way that is not supported ({error}). {advice}.") from None
    except (BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: an offset before the file's start
            raise
        raise CorruptArchiveError(f"{source.name} is not a zip archive, or it is damaged ({error}).") from None


def check_archive(archive: ZipFile, name: str) -> dict[str, ZipInfo]:
    """Refuse an archive that could write outside its folder or fill the disk, before anything is extracted.

    Args:
        archive: the open zip.
        name: what to call it in a message.

    Returns:
        Its members by name, with `/` also where it was made with backslashes.

    Raises:
        DownloadError: an absolute name or one with `..`, a link, encryption, two members of the same name, too many
            files, too many bytes, or a compression ratio that no set of images has.
    """
    infos = archive.infolist()
    members = {info.filename.replace("\\", "/"): info for info in infos}
    if len(members) < len(infos):
        raise DownloadError(f"{name} contains the same name twice; extract it yourself and give the folder instead.")
    for member, info in members.items():
        first, *rest = member.split("/")
        if ".." in (first, *rest) or not first or ":" in first or stat.S_ISLNK(info.external_attr >> 16):
            raise DownloadError(f"{name} contains the unsafe name {info.filename!r}; nothing was extracted.")
        if info.flag_bits & 1:
            raise DownloadError(f"{name} is encrypted; extract it yourself and give the folder instead.")
    total, packed = sum(info.file_size for info in infos), sum(info.compress_size for info in infos)
    if len(members) > MAX_FILES or total > MAX_BYTES or total > MAX_RATIO * max(packed, 1):
        problem = f"would unpack to {len(members):,} files of {total / 1e9:.1f} GB from {packed / 1e9:.3f} GB"
        raise DownloadError(f"{name} {problem}: more than any set of radiographs needs. Nothing was extracted.")
    return members


def main() -> None:
    """`python -m xray_helpers.data.download --data …`: fetch the data and say where it is."""
    with files.exit_on_error():
        fetch(Settings.from_args(description=main.__doc__ or ""))


if __name__ == "__main__":
    main()
