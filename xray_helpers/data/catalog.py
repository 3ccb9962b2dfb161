"""Step 2: a catalog with one row per image, and an audit of what the files hold."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from warnings import catch_warnings

import pandas as pd
from PIL import Image
from tqdm import tqdm

from xray_helpers.data.layout import unusable_name
from xray_helpers.data.patients import assign_patients
from xray_helpers.data.reader import SLIVER, UnreadableError, find_whites, has_pydicom, read_film, white_level
from xray_helpers.files import FOLDERS, list_files, write_text
from xray_helpers.settings import Settings

VERSION = 3  # raised when the same files give a different catalog, so that an older cached one is not used
# The columns that come from the file itself, and their values as long as it has not been read.
UNREAD: dict[str, object] = {
    "width": 0, "height": 0, "mode": "", "bytes": 0, "pixel_hash": "", "error": "", "quantisation": 0.0,
    "low": 0.0, "high": 0.0, "note": "", "near": "",
}  # fmt: skip
NAMED = ("path", "label", "cause", "folder", "patient_fine", "patient_coarse")  # the columns that its name gives
COLUMNS = (*NAMED, *UNREAD)
# The columns of text, also of a manifest and of predictions.
TEXT = (*NAMED, *(name for name, value in UNREAD.items() if value == ""), "split", "patient", "finding")
KAGGLE_COUNTS = {"train": 5216, "val": 16, "test": 624}  # images per folder in Kaggle's archive

# The dataset numbers its patients with four independent counters, each of which stands for one cause.
CAUSE_OF = {"bacteria": "bacterial", "virus": "viral", "IM": "normal", "NORMAL2": "normal"}
PNEUMONIA = re.compile(r"person([0-9]+)_(bacteria|virus)_[0-9]+(?:_[0-9]+)?")
NORMAL = re.compile(r"(?:(NORMAL2)-)?(IM)-([0-9]+)-[0-9]+(?:-[0-9]+)?")


def parse_name(stem: str) -> tuple[str, int] | None:
    """Read the patient counter and the patient number from a file name of this dataset.

    Args:
        stem: the file name without its suffix, such as `person78_bacteria_378` or `NORMAL2-IM-0381-0001`.

    Returns:
        The counter (`bacteria`, `virus`, `IM` or `NORMAL2`) and the number, or None for any other name.
    """
    if match := PNEUMONIA.fullmatch(stem):
        return match[2], int(match[1])
    if match := NORMAL.fullmatch(stem):
        return match[1] or match[2], int(match[3])
    return None


def build_catalog(root: Path, cache: Path | None = None, settings: Settings | None = None) -> pd.DataFrame:
    """Decode every image once, completely, and describe it in one row.

    Two keys group the images by patient. `patient_fine` is the counter and the number in the file name;
    `patient_coarse` is the class and the number, which also joins different patients that share a number. An image
    whose name follows another pattern is a group of its own under both keys. `settings.patients` can name another
    scheme, as `patients.assign_patients` tells.

    Args:
        root: the folder that holds `{train,val,test}/<class>/`.
        cache: a folder where the catalog is saved, to be read back as long as no file's size or date changes.
        settings: whose `patients` says how patients are known; by default Kaggle's file names are recognised.

    Returns:
        One row per image, sorted by path: path (relative to `root`, with /), label, cause (`normal`, `bacterial`,
        `viral` or `unknown`), folder, patient_fine, patient_coarse, width and height in pixels, mode (Pillow's),
        bytes, pixel_hash (of the gray pixels), error (`""` for a readable image, else the reason), quantisation (mean
        step of the JPEG's luminance table, 0 for other formats), low and high (the lowest and highest gray level as
        stored), note (what reading had to do, `""` for nothing), near (an id that near duplicates share, `""` for an
        image without any).

    Raises:
        ValueError: as `assign_patients`.
        FileNotFoundError: `root` holds no images in such folders.
    """
    found = [path for folder in FOLDERS for path in list_files(root / folder)]
    names = {name: unusable_name(name) for name in (path.relative_to(root).as_posix() for path in found)}
    paths = sorted(name for name, reason in names.items() if not reason and name.count("/") > 1)
    for reason in (reason for reason in names.values() if "UTF-8" in reason):
        print(f"note: a file {reason} is left out; rename it")
    if not paths:
        raise FileNotFoundError(f"no images in {{train,val,test}}/<class>/ under {root.name}; run notebook 01 first")
    # The cache's name holds all files' names, sizes and dates, so that it changes whenever a file does.
    stats = ((path, (root / path).stat()) for path in paths)
    version = f"version {VERSION}, DICOM {has_pydicom()}"
    listing = digest([version, *(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)])
    cached = cache / f"catalog-{listing}.csv" if cache else None
    if cached and cached.is_file():
        return assign_patients(read_rows(cached), settings)
    from xray_helpers.data.near_duplicates import find_near_duplicates  # imports torch, which takes seconds

    # Pillow decodes without holding Python's lock, so threads read on all cores.
    # A file that Pillow warns of as too large becomes a row with an error.
    with catch_warnings(action="ignore", category=Image.DecompressionBombWarning), ThreadPoolExecutor() as pool:
        rows = pool.map(lambda path: _describe(root, path), paths)
        catalog = pd.DataFrame(tqdm(rows, "reading", len(paths), leave=False, unit="image"), columns=list(COLUMNS))
    catalog["near"] = find_near_duplicates(root, catalog)
    if cached:
        write_text(cached, catalog.to_csv(index=False))
    return assign_patients(catalog, settings)


def read_rows(file: Path) -> pd.DataFrame:
    """Read back a CSV table of images: a catalog, a manifest or predictions.

    Names of files, classes and patients stay text, also where they look like numbers (`01`) or like nothing (`NA`).
    """
    return pd.read_csv(file, keep_default_na=False, dtype=dict.fromkeys(TEXT, str))


def digest(lines: Sequence[str]) -> str:
    """A short hash of lines of text; file names that are not valid UTF-8 are hashed by their bytes."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _describe(root: Path, path: str) -> dict[str, object]:
    """One row of the catalog, with the error that the decoder meets in place of what the file's content gives."""
    folder, label, *_, name = path.split("/")
    counter, number = parse_name(name.rpartition(".")[0]) or ("", 0)
    cause = CAUSE_OF.get(counter, "normal" if label == "NORMAL" else "unknown")
    fine, coarse = (f"{counter}-{number}", f"{label}-{number}") if counter else (f"file-{path}", f"file-{path}")
    named = dict(zip(NAMED, (path, label, cause, folder, fine, coarse), strict=True))
    row = named | UNREAD | {"bytes": (root / path).stat().st_size}
    try:
        film = read_film(root / path)
    except UnreadableError as error:
        return row | (error.known or {}) | {"error": str(error)}
    height, width = film.levels.shape
    content = f"{(width, height)}{' inverted' if film.inverted else ''}".encode() + film.levels.tobytes()
    row |= {name: getattr(film, name) for name in ("mode", "quantisation", "low", "high", "note")}
    return row | {"width": width, "height": height, "pixel_hash": hashlib.sha256(content).hexdigest()[:24]}


def fingerprint(catalog: pd.DataFrame) -> str:
    """A hash of every image's path and pixels: the same on every machine, and different once any image changes.

    Args:
        catalog: from `build_catalog`.

    Returns:
        12 hexadecimal digits.
    """
    return digest((catalog["path"] + " " + catalog["pixel_hash"] + " " + catalog["error"].ne("").astype(str)).tolist())


def duplicates(catalog: pd.DataFrame) -> pd.DataFrame:
    """The readable images whose exact pixels occur in more than one file.

    Args:
        catalog: from `build_catalog`.

    Returns:
        Their rows, with the copies of one image next to each other.
    """
    readable = catalog[catalog["error"] == ""].sort_values(["pixel_hash", "path"])
    return readable[readable.duplicated("pixel_hash", keep=False)].reset_index(drop=True)


def audit(
    catalog: pd.DataFrame, expected: Mapping[str, int] = KAGGLE_COUNTS, left_out: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Check by check, what the files hold.

    Args:
        catalog: from `build_catalog`.
        expected: images per folder; by default those of Kaggle's archive. A difference is shown and is not an error.
        left_out: the source's other files as `data/raw/<name>/left-out.csv` counts them (reason, class, files).

    Returns:
        One row per check: check, found, expected (`""` where no value is expected), note.
    """
    broken, readable = catalog[catalog["error"] != ""], catalog[catalog["error"] == ""]
    reasons = "; ".join(f"{row.path}: {row.error}" for row in broken.head(5).itertuples())
    differ = duplicates(catalog).groupby("pixel_hash")[["patient_fine", "folder", "label"]].nunique() > 1
    near = readable[readable["near"] != ""].sort_values(["near", "path"]).groupby("near")
    near = near.filter(lambda group: group[["pixel_hash", "patient_fine"]].nunique().min() > 1)
    colour = readable.loc[readable["mode"] == "RGB", "label"].value_counts()
    unknown = int(catalog["patient_fine"].str.startswith("file-").sum())
    area = readable["width"] * readable["height"]
    ends = readable.loc[[area.idxmin(), area.idxmax()]] if len(area) else readable
    smallest, largest = [f"{row.width} × {row.height}" for row in ends.itertuples()] or ["none", "none"]
    rows: list[tuple[str, object, object, str]] = [
        *((f"images in {name}", int(catalog["folder"].eq(name).sum()), expected.get(name, ""), "") for name in FOLDERS),
        ("unreadable files", len(broken), 0, reasons),
        ("duplicate images", len(differ), "", "the exact same pixels in more than one file"),
        ("  of these, across patients", int(differ["patient_fine"].sum()), "", "by the fine key"),
        ("  of these, across folders", int(differ["folder"].sum()), 0, "would leak"),
        ("  of these, with different labels", int(differ["label"].sum()), 0, "one label must be wrong"),
        ("near duplicates across patients", near["near"].nunique(), "", "; ".join(near["path"].head(6))),
        ("images in colour mode", int(colour.sum()), "", ", ".join(f"{name} {n}" for name, n in colour.items())),
        ("file names of an unknown pattern", unknown, "", "each counts as a patient of its own"),
        ("smallest image", smallest, "", "by area; width × height in pixels"),
        ("largest image", largest, "", "by area; width × height in pixels"),
    ]
    # The gray levels that count as white, and what reading had to do.
    whites = find_whites(readable)
    white = readable["mode"].map(lambda mode: white_level(mode, whites)).astype(float)
    for level, part in readable.groupby(white):
        levels = f"levels {part['low'].min():g} to {part['high'].max():g}"
        rows.append((f"images whose white is level {level:g}", len(part), "", levels))
    sliver = readable.loc[readable["high"] - readable["low"] < SLIVER * white, "path"]
    rows.append(("images that use under 1/8 of their gray range", len(sliver), "", "; ".join(sliver.head(5))))
    for note, part in readable[readable["note"] != ""].groupby("note"):
        rows.append((f"images read with a note: {note}", len(part), "", "; ".join(part["path"].head(5))))
    for reason, part in () if left_out is None else left_out.groupby("reason"):
        counts = part.set_index("class")["files"]
        classes = ", ".join(f"{name or 'no known class'} {n:,}" for name, n in counts.items())
        rows.append((f"files left out: {reason}", int(counts.sum()), "", classes))
    return pd.DataFrame(rows, columns=["check", "found", "expected", "note"])
