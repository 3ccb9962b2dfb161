"""Whose image is whose: patients from Kaggle's file names, from a pattern, or from a table; and what that proves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray


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
