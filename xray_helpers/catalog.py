"""Step 2: one row an image, read from the files themselves, and an audit of what is in them."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from xray_helpers.files import CAUSE_OF, FOLDERS, IMAGE_SUFFIXES, atomic_file

VERSION = 2  # raised when the same files give another catalog
MAX_MEGAPIXELS = 32
MODES = ("L", "RGB", "1", "P", "I", "I;16", "I;16B", "I;16L", "F")
KAGGLE_COUNTS = {"train": 5216, "val": 16, "test": 624}
COLUMNS = (
    "path", "label", "cause", "folder", "patient_fine", "patient_coarse",
    "width", "height", "mode", "bytes", "pixel_hash", "error", "quantisation",
)  # fmt: skip
PNEUMONIA = re.compile(r"person([0-9]+)_(bacteria|virus)_[0-9]+(?:_[0-9]+)?")
NORMAL = re.compile(r"(?:(NORMAL2)-)?(IM)-([0-9]+)-[0-9]+(?:-[0-9]+)?")


def parse_name(stem: str) -> tuple[str, int] | None:
    """The case counter and case number that a file name of this dataset holds.

    Args:
        stem: the file name without its suffix, as `person78_bacteria_378` or `NORMAL2-IM-0381-0001`.

    Returns:
        (`bacteria`, `virus`, `IM` or `NORMAL2`; number), or None for any other name.
    """
    if match := PNEUMONIA.fullmatch(stem):
        return match[2], int(match[1])
    if match := NORMAL.fullmatch(stem):
        return match[1] or match[2], int(match[3])
    return None


def build_catalog(root: Path, cache: Path | None = None) -> pd.DataFrame:
    """Read every image once, fully, and describe it in a row.

    Two keys say which images belong to one patient. `patient_fine` is the counter and the number in the name;
    `patient_coarse` the class and the number alone, which joins patients that only share a number. A name of
    another pattern gets a group of its own under both.

    Args:
        root: the folder that holds `{train,val,test}/<class>/`.
        cache: a folder where the catalog is kept, and found again while the files' sizes and dates stay the same.

    Returns:
        One row an image, by path: path (relative to `root`, with /), label, cause (`normal`, `bacterial`, `viral`
        or `unknown`), folder, patient_fine, patient_coarse, width and height in pixels, mode (Pillow's), bytes,
        pixel_hash (of the gray pixels), error (`""` when readable, else the reason), quantisation (mean step of the
        JPEG's luminance table, 0 for other formats).

    Raises:
        FileNotFoundError: `root` holds no images in such folders.
    """
    paths = sorted(
        path.relative_to(root).as_posix()
        for folder in FOLDERS
        for path in (root / folder).glob("*/*")
        if path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith(".")
    )
    if not paths:
        raise FileNotFoundError(f"no images in {{train,val,test}}/<class>/ under {root.name}; run notebook 01 first")
    kept = cache / f"catalog-{_listing(root, paths)}.csv" if cache else None
    if kept and kept.is_file():
        return pd.read_csv(kept, keep_default_na=False)
    with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such files become rows with an error
        read = pool.map(lambda path: _describe(root, path), paths)
        rows = list(tqdm(read, "reading", len(paths), leave=False, unit="image"))
    catalog = pd.DataFrame(rows, columns=list(COLUMNS))
    if kept:
        with atomic_file(kept) as partial:
            catalog.to_csv(partial, index=False)
    return catalog


def _listing(root: Path, paths: list[str]) -> str:
    """A digest of the files' names, sizes and dates: changes when any file does."""
    stats = ((path, (root / path).stat()) for path in paths)
    lines = [f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]
    return hashlib.sha256("\n".join([f"version {VERSION}", *lines]).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _describe(root: Path, path: str) -> dict[str, object]:
    """One row of the catalog."""
    folder, label, name = path.split("/")
    parsed = parse_name(name.rpartition(".")[0])
    fine = f"{parsed[0]}-{parsed[1]}" if parsed else f"file-{path}"
    return {
        "path": path,
        "label": label,
        "cause": CAUSE_OF[parsed[0]] if parsed else "normal" if label == "NORMAL" else "unknown",
        "folder": folder,
        "patient_fine": fine,
        "patient_coarse": f"{label}-{parsed[1]}" if parsed else fine,
        "bytes": (root / path).stat().st_size,
        **{"width": 0, "height": 0, "mode": "", "pixel_hash": "", "error": "", "quantisation": 0.0},
        **_read(root / path),
    }


def _read(path: Path) -> dict[str, object]:
    """What one file holds, decoded to its last row; or the error that stops it."""
    try:
        with Image.open(path) as image:
            size: dict[str, object] = {"width": image.width, "height": image.height, "mode": image.mode}
            megapixels = image.width * image.height / 1e6
            if megapixels > MAX_MEGAPIXELS:
                return {**size, "error": f"{megapixels:.0f} megapixels, over {MAX_MEGAPIXELS}"}
            if image.mode not in MODES:
                return {**size, "error": f"{len(image.getbands())} channels ({image.mode}), not 1 or 3"}
            table = getattr(image, "quantization", {}).get(0, [0])
            # R = G = B becomes exactly that gray, so an RGB copy of a gray image has the same hash.
            pixels = image if image.mode[0] in "IF" else image.convert("L")
            digest = hashlib.sha256(f"{image.size}".encode() + pixels.tobytes()).hexdigest()[:24]
            return {**size, "pixel_hash": digest, "quantisation": round(sum(table) / len(table), 3)}
    except UnidentifiedImageError:
        return {"error": "not an image" if path.stat().st_size else "empty file"}
    except Image.DecompressionBombError:
        return {"error": f"over {MAX_MEGAPIXELS} megapixels"}
    except Exception as error:  # noqa: BLE001 - on damaged bytes decoders raise anything; the row keeps what it was
        return {"error": f"damaged: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"}


def fingerprint(catalog: pd.DataFrame) -> str:
    """A digest of every image's place and pixels: the same on every machine, another when any image changes."""
    lines = catalog["path"] + " " + catalog["pixel_hash"] + " " + catalog["error"].ne("").astype(str)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def duplicates(catalog: pd.DataFrame) -> pd.DataFrame:
    """The readable rows whose exact pixels stand in another file too, side by side."""
    readable = catalog[catalog["error"] == ""]
    repeated = readable[readable.duplicated("pixel_hash", keep=False)]
    return repeated.sort_values(["pixel_hash", "path"], ignore_index=True)


def audit(catalog: pd.DataFrame, expected: Mapping[str, int] = KAGGLE_COUNTS) -> pd.DataFrame:
    """What is in the files, check by check.

    Args:
        catalog: from `build_catalog`.
        expected: images a folder, as Kaggle's archive has them; a difference is shown, and is no error.

    Returns:
        One row a check: check, found, expected (`""` where nothing is), note.
    """
    readable = catalog[catalog["error"] == ""]
    repeated = duplicates(catalog).groupby("pixel_hash")
    broken = catalog[catalog["error"] != ""]
    rows: list[tuple[str, object, object, str]] = [
        (f"images in {folder}", int((catalog["folder"] == folder).sum()), expected.get(folder, ""), "")
        for folder in FOLDERS
    ]
    rows += [
        ("unreadable files", len(broken), 0, "; ".join(f"{row.path}: {row.error}" for row in broken[:5].itertuples())),
        ("pictures that stand in several files", repeated.ngroups, "", "exact same pixels"),
        ("  of these, across patients", int((repeated["patient_fine"].nunique() > 1).sum()), "", "by the fine key"),
        ("  of these, across folders", int((repeated["folder"].nunique() > 1).sum()), 0, "would leak"),
        ("  of these, with two labels", int((repeated["label"].nunique() > 1).sum()), 0, "a label must be wrong"),
        ("images in colour mode", int((readable["mode"] == "RGB").sum()), "", _by_label(readable, "RGB")),
        (
            "names of no known pattern",
            int(catalog["patient_fine"].str.startswith("file-").sum()),
            "",
            "own patient each",
        ),
        ("smallest image", _size(readable, "min"), "", "by area, width × height in pixels"),
        ("largest image", _size(readable, "max"), "", "by area, width × height in pixels"),
    ]
    return pd.DataFrame(rows, columns=["check", "found", "expected", "note"])


def _by_label(readable: pd.DataFrame, mode: str) -> str:
    counts = readable[readable["mode"] == mode]["label"].value_counts()
    return ", ".join(f"{label} {count}" for label, count in counts.items())


def _size(readable: pd.DataFrame, which: str) -> str:
    area = readable["width"] * readable["height"]
    if not len(area):
        return "none"
    row = readable.loc[area.idxmin() if which == "min" else area.idxmax()]
    return f"{row['width']} × {row['height']}"
