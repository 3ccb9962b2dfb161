"""Step 2: reading image files, a catalog with one row per image, and an audit of what the files hold."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from warnings import catch_warnings

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from xray_helpers.files import FOLDERS, IMAGE_SUFFIXES, write_text

RESIZES = ("squash", "pad", "crop")
METHOD = Image.Resampling.BILINEAR

VERSION = 2  # raised when the same files give a different catalog, so that an older cached one is not used
MAX_MEGAPIXELS = 32
MODES = ("L", "RGB", "1", "P", "I", "I;16", "I;16B", "I;16L", "F")  # Pillow's modes with one or three channels
# The columns that come from the file itself, and their values as long as it has not been read.
UNREAD = {"width": 0, "height": 0, "mode": "", "bytes": 0, "pixel_hash": "", "error": "", "quantisation": 0.0}
COLUMNS = ("path", "label", "cause", "folder", "patient_fine", "patient_coarse", *UNREAD)
TEXT = (
    "path", "label", "cause", "folder", "patient_fine", "patient_coarse", "mode", "pixel_hash", "error", "note", "near",
    "split", "patient", "finding",
)  # fmt: skip
KAGGLE_COUNTS = {"train": 5216, "val": 16, "test": 624}  # images per folder in Kaggle's archive

# The dataset numbers its patients with four independent counters, each of which stands for one cause.
CAUSE_OF = {"bacteria": "bacterial", "virus": "viral", "IM": "normal", "NORMAL2": "normal"}
PNEUMONIA = re.compile(r"person([0-9]+)_(bacteria|virus)_[0-9]+(?:_[0-9]+)?")
NORMAL = re.compile(r"(?:(NORMAL2)-)?(IM)-([0-9]+)-[0-9]+(?:-[0-9]+)?")


def read_image(path: Path, size: int, resize: str = "squash") -> NDArray[np.uint8]:
    """Decode one file to a square gray image.

    JPEG files are decoded at a half, a quarter or an eighth of their size where that is still at least `size`, which
    is several times faster.

    Args:
        path: a file that Pillow can read, gray or colour, 8 or 16 bits per channel.
        size: side of the result in pixels.
        resize: `squash` changes the aspect ratio, `pad` adds black borders, `crop` cuts off both ends of the longer
            side.

    Returns:
        uint8 (size, size).

    Raises:
        ValueError: `resize` is unknown.
        OSError: the file cannot be decoded.
    """
    with Image.open(path) as image:
        image.draft("L", (size, size))
        if image.mode[0] not in "IF":
            return to_square(image.convert("L"), size, resize)
        levels = np.asarray(image, dtype=np.float32)  # more than 8 bits: 0 … 65535 becomes 0 … 255
    gray = (levels / (257 if levels.max() > 255 else 1)).clip(0, 255).astype(np.uint8)
    return to_square(Image.fromarray(gray), size, resize)


def to_square(gray: Image.Image, size: int, resize: str = "squash") -> NDArray[np.uint8]:
    """Resize a gray image of any shape to a square, as `read_image` does.

    Args:
        gray: an image in Pillow's mode `L`.
        size: side of the result in pixels.
        resize: `squash`, `pad` or `crop`, as for `read_image`.

    Returns:
        uint8 (size, size).

    Raises:
        ValueError: `resize` is unknown.
    """
    if resize not in RESIZES:
        raise ValueError(f"resize={resize!r}: expected squash, pad or crop")
    if resize == "squash":
        return np.asarray(gray.resize((size, size), METHOD, reducing_gap=2.0))
    return np.asarray((ImageOps.pad if resize == "pad" else ImageOps.fit)(gray, (size, size), METHOD))


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


def build_catalog(root: Path, cache: Path | None = None) -> pd.DataFrame:
    """Decode every image once, completely, and describe it in one row.

    Two keys group the images by patient. `patient_fine` is the counter and the number in the file name;
    `patient_coarse` is the class and the number, which also joins different patients that share a number. An image
    whose name follows another pattern is a group of its own under both keys.

    Args:
        root: the folder that holds `{train,val,test}/<class>/`.
        cache: a folder where the catalog is saved, to be read back as long as no file's size or date changes.

    Returns:
        One row per image, sorted by path: path (relative to `root`, with /), label, cause (`normal`, `bacterial`,
        `viral` or `unknown`), folder, patient_fine, patient_coarse, width and height in pixels, mode (Pillow's),
        bytes, pixel_hash (of the gray pixels), error (`""` for a readable image, else the reason), quantisation (mean
        step of the JPEG's luminance table, 0 for other formats).

    Raises:
        FileNotFoundError: `root` holds no images in such folders.
    """
    visible = [path for folder in FOLDERS for path in (root / folder).glob("*/[!.]*")]
    paths = sorted(path.relative_to(root).as_posix() for path in visible if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no images in {{train,val,test}}/<class>/ under {root.name}; run notebook 01 first")
    # The cache's name holds all files' names, sizes and dates, so that it changes whenever a file does.
    stats = ((path, (root / path).stat()) for path in paths)
    listing = digest([f"version {VERSION}", *(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)])
    cached = cache / f"catalog-{listing}.csv" if cache else None
    if cached and cached.is_file():
        return read_rows(cached)
    # Pillow decodes without holding Python's lock, so threads read on all cores.
    # A file that Pillow warns of as too large becomes a row with an error.
    with catch_warnings(action="ignore", category=Image.DecompressionBombWarning), ThreadPoolExecutor() as pool:
        rows = pool.map(lambda path: _describe(root, path), paths)
        catalog = pd.DataFrame(tqdm(rows, "reading", len(paths), leave=False, unit="image"), columns=list(COLUMNS))
    if cached:
        write_text(cached, catalog.to_csv(index=False))
    return catalog


def read_rows(file: Path) -> pd.DataFrame:
    """Read back a CSV table of images: a catalog, a manifest or predictions.

    Names of files, classes and patients stay text, also where they look like numbers (`01`) or like nothing (`NA`).
    """
    return pd.read_csv(file, keep_default_na=False, dtype=dict.fromkeys(TEXT, str))


def digest(lines: Sequence[str]) -> str:
    """A short hash of lines of text; file names that are not valid UTF-8 are hashed by their bytes."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _describe(root: Path, path: str) -> dict[str, object]:
    """One row of the catalog."""
    folder, label, name = path.split("/")
    counter, number = parse_name(name.rpartition(".")[0]) or ("", 0)
    cause = CAUSE_OF.get(counter, "normal" if label == "NORMAL" else "unknown")
    fine, coarse = (f"{counter}-{number}", f"{label}-{number}") if counter else (f"file-{path}", f"file-{path}")
    keys = {"label": label, "cause": cause, "folder": folder, "patient_fine": fine, "patient_coarse": coarse}
    return {"path": path, **keys, **UNREAD, "bytes": (root / path).stat().st_size, **_decode(root / path)}


def _decode(path: Path) -> dict[str, object]:
    """The catalog's columns that need the file's content, or the error that its decoder meets."""
    try:
        with Image.open(path) as image:
            size: dict[str, object] = {"width": image.width, "height": image.height, "mode": image.mode}
            megapixels = image.width * image.height / 1e6
            if megapixels > MAX_MEGAPIXELS:
                return {**size, "error": f"{megapixels:.0f} megapixels, over {MAX_MEGAPIXELS}"}
            if image.mode not in MODES:
                return {**size, "error": f"{len(image.getbands())} channels ({image.mode}), not 1 or 3"}
            table = getattr(image, "quantization", {}).get(0, [0])
            # Where R = G = B, conversion gives exactly that gray, so an RGB copy of a gray image has the same hash.
            pixels = image if image.mode[0] in "IF" else image.convert("L")
            pixel_hash = hashlib.sha256(f"{image.size}".encode() + pixels.tobytes()).hexdigest()[:24]
            return {**size, "pixel_hash": pixel_hash, "quantisation": round(sum(table) / len(table), 3)}
    except UnidentifiedImageError:
        return {"error": "not an image" if path.stat().st_size else "empty file"}
    except Image.DecompressionBombError:
        return {"error": f"over {MAX_MEGAPIXELS} megapixels"}
    except Exception as error:  # noqa: BLE001 - on damaged files decoders raise anything; the row records what it was
        return {"error": f"damaged: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"}


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


def audit(catalog: pd.DataFrame, expected: Mapping[str, int] = KAGGLE_COUNTS) -> pd.DataFrame:
    """Check by check, what the files hold.

    Args:
        catalog: from `build_catalog`.
        expected: images per folder; by default those of Kaggle's archive. A difference is shown and is not an error.

    Returns:
        One row per check: check, found, expected (`""` where no value is expected), note.
    """
    broken, readable = catalog[catalog["error"] != ""], catalog[catalog["error"] == ""]
    reasons = "; ".join(f"{row.path}: {row.error}" for row in broken.head(5).itertuples())
    differ = duplicates(catalog).groupby("pixel_hash")[["patient_fine", "folder", "label"]].nunique() > 1
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
        ("images in colour mode", int(colour.sum()), "", ", ".join(f"{name} {n}" for name, n in colour.items())),
        ("file names of an unknown pattern", unknown, "", "each counts as a patient of its own"),
        ("smallest image", smallest, "", "by area; width × height in pixels"),
        ("largest image", largest, "", "by area; width × height in pixels"),
    ]
    return pd.DataFrame(rows, columns=["check", "found", "expected", "note"])
