"""Which files of a dataset are its images, and the split and class of each: from folders, or from a table of labels."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TypeAlias

import pandas as pd

from xray_helpers.data.patients import match_rows
from xray_helpers.data.reader import IMAGE_SUFFIXES
from xray_helpers.files import DownloadError

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test", "tests": "test",
}  # fmt: skip
SYSTEM_FILES = ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin")  # beside those that begin with a dot
MAX_CLASSES = 20  # more folders beside each other are patients

Places: TypeAlias = dict[str, tuple[tuple[str, ...], str]]  # name → the folders above the dataset, and the place in it


def choose_images(
    names: Iterable[str], source: str, table: pd.DataFrame | None = None
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Which files are the dataset's images, where each belongs, and why the others are left out.

    The images are those in `<split>/<class>/` nearest to the top, at any depth, where a split is named train, training,
    val, valid, validation, test, testing or tests, in any case. Without such folders, those beside each other are the
    classes, and all images belong to `train`, but for those in a folder inside a class that is named as a split.
    Folders inside a class are kept.

    Args:
        names: paths relative to the source, with `/`.
        source: what to call the source in a message.
        table: from `patients.read_table`. Where it has a column `label`, folders mean nothing but the split, and that
            only where the table gives none.

    Returns:
        name → `<split>/<class>/<file>`, with the split as `train`, `val` or `test`; and for each other file the reason
        and its class, `""` where that is not known.

    Raises:
        DownloadError: no such folders, fewer than two classes, more than can be classes, or a label or split in the
            table that is not possible.
    """
    files = {name: PurePosixPath(name).parts for name in names if not name.endswith("/")}
    unusable = {name: reason for name in files if (reason := unusable_name(name))}
    images, with_labels = [name for name in files if name not in unusable], table is not None and "label" in table
    places = _by_table(images, table, source) if with_labels else _by_folder(files, images)
    tops = [above for above, place in map(places.__getitem__, images) if place]
    top = min(tops, key=lambda above: (len(above), above), default=())
    chosen = {places[name][1]: name for name in reversed(images) if places[name][0] == top and places[name][1]}
    left_out = {}
    for name, parts in files.items():
        above, place = places.get(name, ((), ""))
        folder = (*parts[len(top) if parts[: len(top)] == top else 0 : -1], source)[0]
        reason = "without a label in the table" if with_labels else f"in no class folder, but in {folder}"
        if place in chosen:
            reason = "in a second copy" if above != top else "of the same folder and name as another"
        label = place.split("/")[1] if place in chosen or (place and above == top) else ""
        if chosen.get(place) != name:
            left_out[name] = unusable.get(name, reason), _shown(label)
    reasons = [reason for reason, _ in left_out.values()]
    _check_classes(sorted({place.split("/")[1] for place in chosen}), source, with_labels, reasons)
    return {name: place for place, name in chosen.items()}, left_out


def _check_classes(classes: Sequence[str], source: str, with_labels: bool, reasons: Iterable[str]) -> None:
    """Refuse what cannot be the classes of a dataset."""
    problem = ""
    if not classes:
        found = ", ".join(sorted(set(reasons))[:5]) or "nothing"
        shapes = "<split>/<class>/<image> or <class>/<image>, with images as " + ", ".join(IMAGE_SUFFIXES)
        problem = f"no images in folders such as train/NORMAL. Expected: {shapes}. Found: files {found}"
    elif len(classes) == 1:
        problem = f"only one class ({classes[0]}); at least two are needed"
    elif len({name.casefold() for name in classes}) < len(classes):
        problem = f"classes that differ only in capitals ({', '.join(classes)}): rename them"
    elif len(classes) > MAX_CLASSES and not with_labels:
        problem = f"{len(classes)} folders of images beside each other, such as {classes[0]}: too many for classes"
    if problem:
        advice = "Folders may be any where a table gives the labels: PATIENTS=labels.csv"
        raise DownloadError(f"{source} holds {problem}. {advice}.")


def unusable_name(name: str) -> str:
    """Why a file cannot be one of a dataset's images, by its path alone; `""` where it can."""
    shown = _shown(name)
    parts = shown.lower().split("/")
    suffix = os.path.splitext(parts[-1])[1]  # noqa: PTH122 - for thousands of names
    if is_hidden(shown):
        return "hidden or system file"
    if suffix not in IMAGE_SUFFIXES:
        return f"not an image format: {suffix or 'no suffix'}"
    if "masks" in parts[:-1]:
        return "in a folder of masks"
    return f"with a name that is not UTF-8: {shown.rpartition('/')[2]}" if shown != name else ""


def is_hidden(name: str) -> bool:
    """Whether a path (with `/`) leads to a hidden file or one that a system leaves behind, or into such a folder."""
    return any(part.startswith(".") or part in SYSTEM_FILES for part in name.lower().split("/"))


def _shown(name: str) -> str:
    """A name as it can be printed and saved, also where it is not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _split_depth(parts: Sequence[str]) -> int:
    """Where among a file's parts the last folder is that is named as a split and holds another one."""
    return max((depth for depth, part in enumerate(parts[:-2]) if part.lower() in SPLIT_NAMES), default=len(parts))


def _by_folder(files: Mapping[str, tuple[str, ...]], images: Sequence[str]) -> Places:
    """The places of files by their folders, (name → its parts)."""
    pooled, places = all(_split_depth(files[name]) == len(files[name]) for name in images), {}
    # Without splits, the classes are where folders first lie beside each other.
    depth, inside = 0, [files[name] for name in images if len(files[name]) > 1]
    while len(classes := {parts[depth] for parts in inside}) == 1:
        depth, inside = depth + 1, [parts for parts in inside if len(parts) > depth + 2]
    for name, parts in files.items():
        at = _split_depth(parts)
        split, *rest = parts[at:] or ("",)
        if pooled:  # one of them that holds another of them is a copy of all
            at = depth + (len(parts) > depth + 2 and parts[depth + 1] in classes - {parts[depth]})
            rest = list(parts[at:])
            split = next((part for part in rest[1:-1] if part.lower() in SPLIT_NAMES), "train")
        places[name] = parts[:at], "/".join((SPLIT_NAMES[split.lower()], *rest)) if len(rest) > 1 else ""
    return places


def _by_table(images: Sequence[str], table: pd.DataFrame, source: str) -> Places:
    """The places of images by their labels in a table, and their splits there or in the names of their folders."""
    splits = table["split"].str.lower().tolist() if "split" in table else [""] * len(table)
    for path, label, split in zip(table["path"], table["label"], splits, strict=True):
        if split not in (*SPLIT_NAMES, "") or label.startswith(".") or set(label) & set("/\\:"):
            expected = "splits are train, val or test, and labels must do as names of folders"
            raise DownloadError(f"the table has the label {label!r} and the split {split!r} for {path}: {expected}")
    numbers = match_rows(images, table).tolist() if images else []
    if rows := len(table) - len({*numbers} - {-1}):
        print(f"note: {rows:,} of the {len(table):,} rows of the table name no image of {source}")
    places: Places = {}
    for name, number in zip(images, numbers, strict=True):
        label, split = (table["label"].iat[number], splits[number]) if number >= 0 else ("", "")
        folders = [part.lower() for part in name.split("/")[:-1]]
        split = SPLIT_NAMES[split or next((part for part in folders if part in SPLIT_NAMES), "train")]
        places[name] = (), f"{split}/{label}/{name}" if label else ""
    return places
