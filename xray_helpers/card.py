"""The model card (Mitchell et al. 2019): what a model was trained on, how it was judged, what it is not for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xray_helpers.bootstrap import text
from xray_helpers.checkpoint import CARD
from xray_helpers.facts import CheckpointError, Inference, read_about
from xray_helpers.files import atomic_file

WHOLE = {
    "auc": "AUC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "ece": "expected calibration error (no interval: it is biased upward)",
    "calibration_slope": "calibration slope (1 is right)",
    "calibration_intercept": "calibration intercept (0 is right)",
}
DECIDED = {
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
}
CHILDREN = (
    "Kaggle's images show children of one to five years from one hospital (Guangzhou Women and Children's Medical "
    "Center): nothing here says anything about adults, other hospitals or other machines."
)
SYNTHETIC = "The sample is synthetic: these figures show that the code works, and say nothing about patients."
USE = """\
- **Not a medical device.** Made for teaching and research; not for the diagnosis or the care of anybody.
- Not for adults, other hospitals, other diseases, nor images that are no frontal chest X-rays: it answers all the same.
- The label can be told from these files without looking at lungs (notebook 03); part of the skill may come from that.
- Thresholds and calibration were fitted on validation. On images of another share of pneumonia, or of other machines,
  they do not hold."""


def write_card(folder: Path) -> str:
    """Write `model-card.md` of a judged run.

    Args:
        folder: of a run that `evaluate_run` judged on both splits.

    Returns:
        The card, as Markdown.

    Raises:
        CheckpointError: the run was not judged yet.
    """
    about, file = read_about(folder), folder / "metrics.json"
    if not file.is_file() or not (found := json.loads(file.read_text(encoding="utf-8")))["test"]:
        raise CheckpointError(f"{folder.name} was not judged yet: run make evaluate, or notebook 06")
    settings = found["settings"]
    seconds = ", ".join(f"{name.replace('_', '-')} {value:.0f} s" for name, value in found["seconds"].items() if value)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    weights = "random" if about.weights == "none" else Path(about.weights).name
    size, rate = about.preparation.size, settings["learning_rate"]
    card = f"""\
# Model card: {folder.name}

Tells {" from ".join(reversed(about.classes)) if about.num_outputs == 1 else ", ".join(about.classes)} on chest X-rays.

## Data

{found["whose"].capitalize()}. {SYNTHETIC if settings["data"] == "sample" else CHILDREN} Fingerprint of the files:
{found["data_fingerprint"]}. {found["test"]["protocol"].capitalize()}.

| split | images | patients | share of {about.classes[-1] if about.num_outputs == 1 else "each class"} |
| --- | --- | --- | --- |
{_counts("val", found["val"])}
{_counts("test", found["test"])}

## Model

{about.arch} from {weights} weights, gray images of {size} × {size} pixels ({about.preparation.resize}), augmentation
{settings["augment"]}, {settings["epochs"]} epochs, batches of {settings["batch_size"]}, highest learning rate {rate:g},
seed {settings["seed"]}. Kept: epoch {about.epoch}, of the lowest validation loss ({about.val_loss:.4f}). Trained on
{found["device"]} in {found["precision"]} ({seconds}), judged in float32. {versions}.

## Results

With 95% intervals by bootstrap over patients. The model, its calibration and its thresholds were chosen on validation,
so those figures flatter it; test was used for nothing but this table.

| figure | validation | test |
| --- | --- | --- |
{chr(10).join(_rows(found["val"], found["test"], about))}

## Limits

{USE}

## Loading it

```python
from xray_helpers.checkpoint import load_model
from xray_helpers.predict import predict_images

model = load_model("models/{folder.name}")  # runs no code of the file
table = predict_images(["image.jpeg"], model)
```
"""
    with atomic_file(folder / CARD) as partial:
        partial.write_text(card, encoding="utf-8")
    return card


def _counts(split: str, found: dict[str, Any]) -> str:
    shares = found["prevalence"] if isinstance(found["prevalence"], list) else [found["prevalence"]]
    return f"| {split} | {found['n']:,} | {found['patients']:,} | {', '.join(f'{share:.1%}' for share in shares)} |"


def _rows(val: dict[str, Any], test: dict[str, Any], about: Inference) -> Iterator[str]:
    """The lines of the table of results."""
    for key, name in WHOLE.items():
        if key in test:
            yield f"| {name} | {text(val[key])} | {text(test[key])} |"
    for key in ("brier", "ece", "calibration_slope", "calibration_intercept"):
        if "calibrated" in test:
            yield f"| {WHOLE[key]}, calibrated | {text(val['calibrated'][key])} | {text(test['calibrated'][key])} |"
    for point, at in test["at"].items():
        where = f"threshold {at['threshold']:.3g} ({point})" if "threshold" in at else "the likeliest class"
        for key, name in DECIDED.items():
            if key in at:
                yield f"| {name} at {where} | {text(val['at'][point][key])} | {text(at[key])} |"
    for name in about.classes if "classes" in test else ():
        for key in ("auc", "sensitivity", "specificity"):
            figure = "AUC" if key == "auc" else key
            yield f"| {figure} of {name} | {text(val['classes'][name][key])} | {text(test['classes'][name][key])} |"
