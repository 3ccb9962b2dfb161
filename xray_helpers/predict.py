"""Step 6: probabilities for new images, prepared exactly as those that the model was trained on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import ResNet

from xray_helpers.checkpoint import latest_run, load_model
from xray_helpers.device import choose_device
from xray_helpers.facts import CheckpointError, Inference
from xray_helpers.files import atomic_file, project_root
from xray_helpers.inference import probability_table, run_network
from xray_helpers.settings import Settings

BATCH = 64


def find_images(source: Path) -> list[Path]:
    """A file, or all files under a folder of the kinds that Pillow reads, sorted; hidden ones are left out.

    Raises:
        FileNotFoundError: there is no such file or folder, or the folder holds no image.
    """
    if source.is_file():
        return [source]
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = sorted(
        path
        for path in source.rglob("*")
        if path.suffix.lower() in known and not any(part.startswith(".") for part in path.relative_to(source).parts)
    )
    if not found:
        raise FileNotFoundError(f"{source} is no image and no folder with images")
    return found


def predict_images(paths: Iterable[str | Path], model: ResNet, point: str = "0.5") -> pd.DataFrame:
    """Predict new images of any size, mode or format that Pillow reads.

    Args:
        paths: of the files.
        model: from `load_model`, on any device.
        point: for two classes, which of the model's operating points decides.

    Returns:
        One row a file: path, predicted (name of the class), probability (of the second class) and calibrated, or for
        more classes p_<class>…; error: why the file cannot be read, `""` where it can.

    Raises:
        ValueError: the model has no such operating point.
    """
    about: Inference = model.about
    files = [Path(path) for path in paths]
    if point not in about.operating_points:
        raise ValueError(f"point={point!r}: this model has {', '.join(about.operating_points)}")

    def read(file: Path) -> Tensor | str:
        try:
            return about.preparation.read(file)
        except Exception as error:  # noqa: BLE001 - on damaged bytes decoders raise anything; it is told
            return str(error) or type(error).__name__

    errors, logits = [], []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), BATCH):
            found = list(pool.map(read, files[start : start + BATCH]))
            errors += [item if isinstance(item, str) else "" for item in found]
            images = [item for item in found if not isinstance(item, str)]
            if images:
                logits.append(run_network(model, [(torch.stack(images), None)], about.preparation))
    outputs = torch.cat(logits) if logits else torch.zeros(0, about.num_outputs)
    table = probability_table(outputs, about.classes, about.calibration)
    if about.num_outputs == 1:
        number = (table["probability"] >= about.operating_points[point]).astype(int)
    else:
        number = table.to_numpy().argmax(axis=1)
    table.insert(0, "predicted", [about.classes[index] for index in number])
    whole = pd.DataFrame({"path": [str(file) for file in files], "error": errors})
    readable = whole.index[whole["error"] == ""]
    joined = whole[["path"]].join(table.set_index(readable)).assign(error=whole["error"])
    return joined.fillna({"predicted": ""})


def main() -> None:
    """Command line: `python -m xray_helpers.predict IMAGES [--model FOLDER] [--output FILE]`.

    The status is 1 where a file could not be read.
    """
    parser = argparse.ArgumentParser(description="Predict new images. Not a medical device.", allow_abbrev=False)
    parser.add_argument("images", type=Path, help="an image, or a folder of images")
    parser.add_argument("--model", type=Path, help="folder of a run (default: the one that models/latest.txt names)")
    parser.add_argument("--output", type=Path, default=project_root() / "reports" / "predictions.csv", help="CSV file")
    given = parser.parse_args()
    try:
        models = Settings.from_env().home / "models"
        newest = given.model is None or (given.model.name == "latest" and not given.model.exists())
        folder = latest_run(models) if newest else given.model
        model = load_model(folder, choose_device().value)
        table = predict_images(find_images(given.images), model)
    except (CheckpointError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    good = table[table["error"] == ""]
    with atomic_file(given.output) as partial:
        good.drop(columns="error").to_csv(partial, index=False)
    counts = ", ".join(f"{name} {(good['predicted'] == name).sum():,}" for name in model.about.classes)
    print(f"{given.output.name}: {len(good):,} images, predicted {counts}; model {folder.name}. Not a medical device.")
    broken = table[table["error"] != ""]
    for row in broken.itertuples():
        print(f"unreadable: {row.path}: {row.error}", file=sys.stderr)
    if len(broken):
        sys.exit(f"{len(broken):,} of {len(table):,} files could not be read")


if __name__ == "__main__":
    main()
