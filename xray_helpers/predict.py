"""Probabilities for new images, preprocessed exactly as those that the model was trained on."""

import argparse
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from warnings import catch_warnings
from zipfile import BadZipFile, ZipFile
from zipfile import Path as ZipMember

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from xray_helpers.data.download import check_archive
from xray_helpers.data.layout import is_hidden
from xray_helpers.data.reader import EMPTY, NOT_AN_IMAGE, Source, UnreadableError, named_as_image
from xray_helpers.data.transforms import gray_statistics
from xray_helpers.files import CorruptArchiveError, exit_on_error, list_files, project_root, write_text
from xray_helpers.inference import probability_table, run_network
from xray_helpers.settings import Settings, choose_device
from xray_helpers.training.checkpoint import ModelInfo, latest_run, load_model

BATCH = 64
TOLERANCE = 20  # gray levels that an image's mean or standard deviation may lie outside of the training images' range
INVERTED = -0.3  # correlation of thumbnails, below which an image looks like a negative: real ones have 0.26 to 0.98
NOTES = 20  # that are printed; the CSV holds all


def find_images(*sources: Path) -> tuple[list[Source], int]:
    """All files that may be images: whether one is, shows when it is read.

    Args:
        sources: files, folders, zips, and folders in a zip (`films.zip/ward`).

    Returns:
        The files, those of a folder sorted; and how many hidden and system files were left out.

    Raises:
        FileNotFoundError: there is no such file or folder, or it holds none that is not hidden.
        DownloadError: a zip is damaged, encrypted or unsafe.
    """
    found, hidden = list[Source](), 0
    for source in sources:
        zips = [path for path in (source, *source.parents) if path.suffix.lower() == ".zip" and path.is_file()]
        if zips:
            files: list[Source] = [file for file in _members(zips[0]) if Path(str(file)).is_relative_to(source)]
        else:
            files = [source] if source.is_file() else list(list_files(source))
        inside = ["/".join(Path(str(file)).relative_to(source).parts) for file in files]  # "" for the source itself
        shown = [file for file, name in zip(files, inside, strict=True) if not is_hidden(name.replace("\\", "/"))]
        if not shown:
            raise FileNotFoundError(f"{source} is neither an image nor a folder or zip with images")
        found, hidden = found + shown, hidden + len(files) - len(shown)
    return found, hidden


def _members(file: Path) -> list[ZipMember]:
    """The files in a zip, after the checks that an archive of training data undergoes."""
    try:
        archive = ZipFile(file)
    except BadZipFile as error:
        raise CorruptArchiveError(f"{file.name} is not a zip archive, or it is damaged ({error}).") from None
    check_archive(archive, file.name)
    return [ZipMember(archive, name) for name in archive.namelist() if not name.endswith("/")]


def predict_images(paths: Iterable[str | Source], model: Any, point: str = "0.5") -> pd.DataFrame:
    """Predict new images of any size, and of the modes and formats that training reads.

    Args:
        paths: of the files, or from `find_images`.
        model: from `load_model`, on any device.
        point: for two classes, which of the model's operating points decides.

    Returns:
        One row per file: path, predicted (name of the class), probability (of the finding), calibrated and finding,
        or for more classes p_<class>…; error: why the file cannot be read, `""` where it can; note: what reading had
        to do, and whether the grays are unlike those of the training images. A path that is not UTF-8 is shown with
        the escapes of its odd bytes.

    Raises:
        ValueError: the model has no such operating point.
    """
    info: ModelInfo = model.info
    files, preprocess = [Path(path) if isinstance(path, str) else path for path in paths], info.preprocess
    if point not in info.operating_points:
        raise ValueError(f"point={point!r}: this model has {', '.join(info.operating_points)}")
    if preprocess is None:
        raise ValueError(f"this {info.arch} was trained on inputs of the caller's own: how to read a file is not known")

    def read(file: Source) -> tuple[Tensor | None, str, str]:
        """The image, or none; why it cannot be read; a note."""
        try:
            image, note = preprocess.read_noted(file)
            return image, "", "; ".join(filter(None, [note, _unlike(image, info.gray)]))
        except UnreadableError as error:
            return None, str(error), ""

    facts, logits = list[tuple[str, str]](), torch.full((len(files), info.num_outputs), torch.nan)
    # A file that Pillow warns of as too large has an error.
    with catch_warnings(action="ignore", category=Image.DecompressionBombWarning), ThreadPoolExecutor() as pool:
        for start in range(0, len(files), BATCH):
            batch = list(pool.map(read, files[start : start + BATCH]))
            facts += [(error, note) for _, error, note in batch]
            images = {start + row: image for row, (image, _, _) in enumerate(batch) if image is not None}
            if images:
                logits[list(images)] = run_network(model, [(torch.stack(list(images.values())), None)], preprocess)
    table = probability_table(logits, info.classes, info.calibration)
    # Two classes: probability and calibrated; else a column per class.
    values = table.select_dtypes("number").to_numpy()
    number = values.argmax(axis=1) if info.num_outputs > 1 else values[:, 0] >= info.operating_points[point]
    names = ["" if error else info.classes[int(index)] for index, (error, _) in zip(number, facts, strict=True)]
    shown = [os.fsencode(str(file)).decode("utf-8", "backslashreplace") for file in files]
    rows = pd.DataFrame({"path": shown, "predicted": names}).join(table)
    return rows.join(pd.DataFrame(facts, columns=["error", "note"]))


def _unlike(image: Tensor, usual: dict[str, list[float]] | None) -> str:
    """How the grays of an image, uint8 (1, S, S), are unlike those of the training images (`ModelInfo.gray`)."""
    if usual is None:
        return ""
    mean, std, thumbnail = (value[0] for value in gray_statistics(image.unsqueeze(0)))
    notes = []
    for name, value in (("mean", float(mean)), ("standard deviation", float(std))):
        low, high = usual[name]
        if not low - TOLERANCE <= value <= high + TOLERANCE:
            notes.append(f"{name} of its grays {value:.0f}, far from the training images' {low:.0f} to {high:.0f}")
    if torch.corrcoef(torch.stack([thumbnail, torch.tensor(usual["thumbnail"])]))[0, 1] < INVERTED:
        notes.append("its grays look inverted")
    return "; ".join(notes)


def main() -> None:
    """Command line: `python -m xray_helpers.predict IMAGES… [--model FOLDER] [--output FILE]`.

    Each file without an answer is named. The status is 1 where one of them is an image, by its name or its content.
    """
    parser = argparse.ArgumentParser(description="Predict new images. Not a medical device.", allow_abbrev=False)
    parser.add_argument("images", nargs="+", help="images, folders or zips, also in one text with spaces between")
    parser.add_argument("--model", type=Path, default="latest", help="a run's folder or model file (default: newest)")
    parser.add_argument("--output", type=Path, default=project_root() / "reports" / "predictions.csv", help="CSV file")
    given = parser.parse_args()
    with exit_on_error():
        models = Settings.from_env().home / "models"
        source = latest_run(models) if given.model.name == "latest" and not given.model.exists() else given.model
        model: Any = load_model(source, choose_device().value)
        texts = [[text] if Path(text).exists() else text.split() for text in given.images]  # make gives one text
        files, hidden = find_images(*(Path(text) for part in texts for text in part))
        table = predict_images(files, model)
        good, broken = table[table["error"] == ""], table[table["error"] != ""]
        write_text(given.output, good.drop(columns="error").to_csv(index=False))
    counts = ", ".join(f"{name} {(good['predicted'] == name).sum():,}" for name in model.info.classes)
    counts += f"; {hidden:,} hidden or system files left out" if hidden else ""
    print(f"{given.output.name}: {len(good):,} images, predicted {counts}; model {source.name}. Not a medical device.")
    noted = good[good["note"] != ""]
    for row in noted.head(NOTES).itertuples():
        print(f"note: {row.path}: {row.note}", file=sys.stderr)
    if len(noted) > NOTES:
        print(f"note: {len(noted) - NOTES:,} more in the column note of {given.output.name}", file=sys.stderr)
    for row in broken.itertuples():
        print(f"not predicted: {row.path}: {row.error}", file=sys.stderr)
    lost = [row for row in broken.itertuples() if row.error not in (NOT_AN_IMAGE, EMPTY) or named_as_image(row.path)]
    if lost:
        sys.exit(f"{len(lost):,} of {len(good) + len(lost):,} images could not be read")


if __name__ == "__main__":
    main()
