"""Probabilities for new images, preprocessed exactly as those that the model was trained on."""

import argparse
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from xray_helpers.files import exit_on_error, project_root, write_text
from xray_helpers.inference import probability_table, run_network
from xray_helpers.settings import Settings, choose_device
from xray_helpers.training.checkpoint import ModelInfo, latest_run, load_model

BATCH = 64


def find_images(source: Path) -> list[Path]:
    """A file, or all files under a folder of the kinds that Pillow reads, sorted; hidden ones are left out.

    Raises:
        FileNotFoundError: there is no such file or folder, or the folder holds no image.
    """
    if source.is_file():
        return [source]
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in known)
    found = [path for path in files if not any(part.startswith(".") for part in path.relative_to(source).parts)]
    if not found:
        raise FileNotFoundError(f"{source} is neither an image nor a folder with images")
    return found


def predict_images(paths: Iterable[str | Path], model: Any, point: str = "0.5") -> pd.DataFrame:
    """Predict new images of any size, mode or format that Pillow reads.

    Args:
        paths: of the files.
        model: from `load_model`, on any device.
        point: for two classes, which of the model's operating points decides.

    Returns:
        One row per file: path, predicted (name of the class), probability (of the second class) and calibrated, or for
        more classes p_<class>…; error: why the file cannot be read, `""` where it can.

    Raises:
        ValueError: the model has no such operating point.
    """
    info: ModelInfo = model.info
    files, preprocess = [Path(path) for path in paths], info.preprocess
    if point not in info.operating_points:
        raise ValueError(f"point={point!r}: this model has {', '.join(info.operating_points)}")
    if preprocess is None:
        raise ValueError(f"this {info.arch} was trained on inputs of the caller's own: how to read a file is not known")

    def read(file: Path) -> Tensor | str:
        try:
            return preprocess.read(file)
        except Exception as error:  # noqa: BLE001 - on damaged bytes decoders raise anything; the row says what
            return str(error) or type(error).__name__

    errors, logits = [], torch.full((len(files), info.num_outputs), torch.nan)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), BATCH):
            found = list(pool.map(read, files[start : start + BATCH]))
            errors += [item if isinstance(item, str) else "" for item in found]
            images = {start + row: item for row, item in enumerate(found) if not isinstance(item, str)}
            if images:
                logits[list(images)] = run_network(model, [(torch.stack(list(images.values())), None)], preprocess)
    table = probability_table(logits, info.classes, info.calibration)
    values = table.to_numpy()  # two classes: probability and calibrated; else a column per class
    number = values.argmax(axis=1) if info.num_outputs > 1 else values[:, 0] >= info.operating_points[point]
    names = ["" if error else info.classes[int(index)] for index, error in zip(number, errors, strict=True)]
    return pd.DataFrame({"path": [str(file) for file in files], "predicted": names}).join(table).assign(error=errors)


def main() -> None:
    """Command line: `python -m xray_helpers.predict IMAGES [--model FOLDER] [--output FILE]`.

    The status is 1 where a file could not be read.
    """
    parser = argparse.ArgumentParser(description="Predict new images. Not a medical device.", allow_abbrev=False)
    parser.add_argument("images", type=Path, help="an image, or a folder of images")
    parser.add_argument("--model", type=Path, default="latest", help="a run's folder or model file (default: newest)")
    parser.add_argument("--output", type=Path, default=project_root() / "reports" / "predictions.csv", help="CSV file")
    given = parser.parse_args()
    with exit_on_error():
        models = Settings.from_env().home / "models"
        source = latest_run(models) if given.model.name == "latest" and not given.model.exists() else given.model
        model: Any = load_model(source, choose_device().value)
        table = predict_images(find_images(given.images), model)
        good, broken = table[table["error"] == ""], table[table["error"] != ""]
        write_text(given.output, good.drop(columns="error").to_csv(index=False))
    counts = ", ".join(f"{name} {(good['predicted'] == name).sum():,}" for name in model.info.classes)
    print(f"{given.output.name}: {len(good):,} images, predicted {counts}; model {source.name}. Not a medical device.")
    for row in broken.itertuples():
        print(f"unreadable: {row.path}: {row.error}", file=sys.stderr)
    if len(broken):
        sys.exit(f"{len(broken):,} of {len(table):,} files could not be read")


if __name__ == "__main__":
    main()
