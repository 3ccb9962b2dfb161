"""Whose image is whose: patients from Kaggle's file names, from a pattern, or from a table; and what that proves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xray_helpers.files import print_once
from xray_helpers.settings import Settings

UNKNOWN = 0.05  # share of the images without a known patient from which on patients count as unknown


def read_table(path: Path) -> pd.DataFrame:
    """Read a table that names the patient of each image, and maybe its label and its split.

    Args:
        path: a CSV file in UTF-8, separated by commas, with the columns path and patient, and maybe label and split;
            others are left out.

    Returns:
        One row per image, all columns text without spaces at its ends (`""` where nothing is given): path (with /),
        patient, and label and split where the file has them.

    Raises:
        ValueError: the file cannot be read as such a table, lacks a column or a path, or names a path twice.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not a text file in UTF-8: save it as 'CSV UTF-8'") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path.name} is no table of values separated by commas: {error}") from None
    table = table.set_axis(table.columns.str.strip().str.lower(), axis=1).apply(lambda column: column.str.strip())
    if missing := [name for name in ("path", "patient") if name not in table]:
        found = f"{path.name} has no column {missing[0]}, its columns are {', '.join(table.columns)}"
        raise ValueError(f"{found}. Expected path, patient and maybe label and split, separated by commas.")
    table["path"] = table["path"].str.replace("\\", "/").str.removeprefix("./")
    if table.empty:
        raise ValueError(f"{path.name} names no image: below the names of its columns there is no line")
    for wrong, what in ((table["path"] == "", "names no image"), (table["path"].duplicated(), "names an image again")):
        if wrong.any():
            line, name = int(wrong.argmax()) + 2, table.loc[wrong, "path"].iloc[0]
            raise ValueError(f"line {line} of {path.name} {what}: {name!r}. Give each image one line.")
    return table[[name for name in ("path", "patient", "label", "split") if name in table]]


def match_rows(paths: Sequence[str], table: pd.DataFrame) -> NDArray[np.int_]:
    """Find the row of each image in a table: by its path, or by as much of the path's end as is unique on both sides.

    Args:
        paths: of the images, with /.
        table: from `read_table`.

    Returns:
        The number of each image's row, -1 where there is none, (N,).
    """
    images, rows = pd.Series(paths).str.split("/"), table["path"].str.split("/")
    found = np.full(len(images), -1)
    for parts in range(max(images.str.len().max(), rows.str.len().max()), 0, -1):
        ends, keys = (names.str[-parts:].str.join("/") for names in (images, rows))
        known = pd.Series(np.arange(len(keys)), keys)[~keys.duplicated(keep=False).to_numpy()]
        matched = ends.map(known).where(~ends.duplicated(keep=False)).fillna(-1).to_numpy(int)
        found = np.where(found < 0, matched, found)
    return found


def assign_patients(catalog: pd.DataFrame, settings: Settings | None = None) -> pd.DataFrame:
    """Fill in the catalog's columns `patient_fine` and `patient_coarse` as the setting `patients` says.

    Without it, the patients in Kaggle's file names count where at least half of the names are such, with pneumonia
    among them; the names for normal films alone are those that DICOM viewers give. With a pattern or a table, both keys
    are `patient-` and what it gives. An image without a patient is a group of its own, `file-` and its path.

    Args:
        catalog: from `build_catalog`.
        settings: `patients` is a pattern with one group, searched for in the files' names; a CSV file as for
            `read_table`; or `""`, as without settings.

    Raises:
        ValueError: the pattern matches no file or the table names none, or the table is not as `read_table` expects.
    """
    own = "file-" + catalog["path"]
    if not settings or not settings.patients:
        known = catalog["patient_fine"] != own
        kaggle = known.mean() >= 0.5 and catalog["patient_fine"].str.startswith(("bacteria-", "virus-")).any()
        return catalog if kaggle else catalog.assign(patient_fine=own, patient_coarse=own)
    if settings.patients_table:
        table = read_table(settings.patients_table)
        patients = np.append(table["patient"], "")[match_rows(catalog["path"], table)]  # row -1 is the last
        given = pd.Series(patients, catalog.index, dtype=str)
    else:
        names = catalog["path"].str.rpartition("/")[2]
        given = names.str.extract(settings.patients, expand=False).fillna("")
    known = given != ""
    if not known.any():
        example = catalog["path"].iloc[0]
        raise ValueError(f"patients={settings.patients!r} gives no image a patient, such as {example}: mend it")
    if unknown := int((~known).sum()):
        print_once(f"note: patients={settings.patients!r} gives {unknown:,} of {len(known):,} images no patient")
    keys = ("patient-" + given).where(known, own)
    return catalog.assign(patient_fine=keys, patient_coarse=keys)


def patients_known(manifest: pd.DataFrame) -> bool:
    """Whether no more than 5% of the images lack a known patient."""
    return bool(manifest["patient_fine"].str.startswith("file-").mean() <= UNKNOWN)


def patients_claim(manifest: pd.DataFrame) -> str:
    """What may be said of the patients of a split, in words.

    Args:
        manifest: catalog rows; it has to have passed `splits.check_manifest`.
    """
    unknown = int(manifest["patient_fine"].str.startswith("file-").sum())
    if not patients_known(manifest):
        return "patients unknown: split by image"
    rest = "has no patient number and counts as a patient of its own"
    if unknown > 1:
        rest = "have no patient number and count as patients of their own"
    return f"patients apart; {unknown:,} of {len(manifest):,} images {rest}" if unknown else "patients apart"
