"""Step 6: judge a finished run. The only place that opens the test split."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from xray_helpers.archives import DownloadError
from xray_helpers.bootstrap import Bootstrap, text
from xray_helpers.calibration import calibration
from xray_helpers.card import write_card
from xray_helpers.checkpoint import CARD, latest_run, load_model
from xray_helpers.dataset import Loaders, LoadingError, loading, make_loaders
from xray_helpers.device import choose_device, choose_precision
from xray_helpers.facts import CheckpointError, Inference
from xray_helpers.files import atomic_file
from xray_helpers.inference import predictions, run_network
from xray_helpers.metrics import evaluate
from xray_helpers.settings import Settings
from xray_helpers.splits import LeakError

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scikit-learn", "accelerate", "kornia")


def run_settings(folder: Path) -> Settings:
    """The settings that a run was trained with, for reading its data; where that lies, the environment may say.

    Raises:
        CheckpointError: `settings.json` is missing or damaged.
    """
    try:
        values = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        given = Settings.from_env()
        data = given.data if given.data_name == values["data"] else values["data"]
        # The weights that training began with are not needed any more, and may be gone.
        return Settings(**{**values, "data": data, "weights": "none", "device": "auto", "precision": "auto"})
    except (FileNotFoundError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder.name}/settings.json cannot be read ({error}); train again") from None


def evaluate_run(folder: Path, split: str = "test") -> dict[str, Any]:
    """Predict a split with a run's best model, in float32, and judge it; writes the predictions and `metrics.json`.

    Args:
        folder: of a finished run.
        split: `val` or `test`.

    Returns:
        What `metrics.json` holds for this split, as from `metrics.evaluate`.

    Raises:
        CheckpointError: the run is not finished, or was trained on other files.
        ValueError: another split.
    """
    if split not in ("val", "test"):
        raise ValueError(f"split={split!r}: expected val or test")
    settings = run_settings(folder)
    model = load_model(folder, choose_device(settings.device).value)
    about = model.about
    loaders = make_loaders(settings, test=split == "test")
    check_run(folder, about, settings, loaders)
    loader, dataset = (loaders.test, loaders.test_set) if split == "test" else (loaders.val, loaders.val_set)
    with loading():
        logits = run_network(model, loader, about.preparation)
    table = predictions(dataset.paths, dataset.labels, logits, about.classes, about.calibration)
    with atomic_file(folder / f"predictions-{split}.csv") as partial:
        table.to_csv(partial, index=False)
    patients = loaders.manifest.set_index("path").loc[dataset.paths, "patient_coarse"]
    probability = table["probability"] if about.num_outputs == 1 else table.iloc[:, 2:]
    judged = evaluate(table["truth"], probability, patients, about.operating_points, about.classes)
    found = {"protocol": f"{settings.split} split, patients apart", **judged}
    if about.num_outputs == 1:
        found["calibrated"] = calibration(table["truth"], table["calibrated"], Bootstrap(patients))
    _write_metrics(folder, split, found, settings, about, dataset.store.seconds)
    return found


def check_run(folder: Path, about: Inference, settings: Settings, loaders: Loaders) -> None:
    """Refuse to judge a model on other files than it was trained on, or in a folder of another run.

    Raises:
        CheckpointError: the files changed or are others; or `best.json` and `settings.json` tell of different runs.
    """
    if loaders.fingerprint != about.fingerprint:
        raise CheckpointError(
            f"{folder.name} was trained on other files: their fingerprint is {about.fingerprint}, and that of "
            f"data/raw/{settings.data_name} is {loaders.fingerprint}. Bring the old files back, or train again."
        )
    had = {"arch": about.arch, "classes": about.classes, "image_size": about.preparation.size}
    for name, value in {"arch": settings.arch, "classes": loaders.classes, "image_size": settings.image_size}.items():
        if had[name] != value:
            raise CheckpointError(
                f"{folder.name}/best.json tells of {name} {had[name]}, and settings.json of {value}: they are of two "
                "runs. Copy the folder again, or train again."
            )


def _write_metrics(
    folder: Path, split: str, found: dict[str, Any], settings: Settings, about: Inference, decoding: float | None
) -> None:
    """Put a split's numbers into `metrics.json`, beside those of the other split, and what they depend on."""
    file = folder / "metrics.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"val": {}, "test": {}}
    history = pd.read_csv(folder / "history.csv")
    saved = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    content |= {
        split: found,
        "whose": settings.whose,
        "settings": saved,
        "data_fingerprint": about.fingerprint,
        "weights": about.weights,
        "device": choose_device(settings.device).value,
        "precision": choose_precision(saved["precision"], choose_device(saved["device"]).value).value,
        "versions": {name: version(name) for name in PACKAGES},
        "seconds": {
            "store": decoding,
            "head": round(history.loc[history["stage"] == "head", "seconds"].sum(), 1),
            "fine_tune": round(history.loc[history["stage"] == "fine-tune", "seconds"].sum(), 1),
        },
    }
    with atomic_file(file) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Command line: `python -m xray_helpers.evaluation [FOLDER]`, by default the run that `models/latest.txt` names."""
    try:
        settings = Settings.from_env()
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else latest_run(settings.home / "models")
        for split in ("val", "test"):
            found = evaluate_run(folder, split)
            rule, at = next(iter(found["at"].items()))
            print(
                f"{split}: n = {found['n']:,} of {found['patients']:,} patients, {found['protocol']}; "
                f"AUC {text(found['auc'], 4)}, accuracy at {rule} {text(at['accuracy'], 4)}"
            )
        write_card(folder)
        whose = run_settings(folder).whose
        print(f"models/{folder.name}: metrics.json, {CARD}. These are {whose}. Not a medical device.")
    except (CheckpointError, LeakError, DownloadError, LoadingError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
