"""What can be predicted without looking at the lungs: from the file, the border, or a blurred glance.

A network takes whatever tells the classes apart. If the size of a file does, the network may learn the scanner and not
the disease (Geirhos et al. 2020, "Shortcut learning in deep neural networks"). Each audit trains a small model on one
kind of fact, cross-validated by patient, and reports how well it does.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from xray_helpers.metrics import auc_interval

FOLDS = 5
FRAME = 0.10  # the outer share of each side that counts as border; burned-in letters lie within
COLUMNS = ["features", "auc", "low", "high", "n", "meaning", "remedy"]

# What it means when these facts tell the class, and what takes them away from a model.
ADVICE = {
    "width": ("size betrays the class", "resize to one size"),
    "height": ("size betrays the class", "resize to one size"),
    "aspect": (
        "the picture's shape betrays the class; padding or cropping would keep showing it",
        "squash to a square",
    ),
    "area": ("resolution betrays the class, and sharpness with it", "resize to one size; augment sharpness"),
    "bytes per pixel": (
        "compression betrays the class, and its artefacts survive in the pixels; disease itself changes it a little",
        "decode at one size; augment sharpness and compression",
    ),
    "quantisation": ("JPEG settings betray the class, and their artefacts survive in the pixels", "decode at one size"),
    "colour mode": ("the file's colour mode betrays the class", "decode every image to gray"),
    "file header": ("the class can be told from what stands before the first pixel", "decode to gray at one size"),
    "all file facts": ("the class can be told without decoding an image", "decode to gray at one size"),
    "border": (
        "letters, collimation or position betray the class",
        "crop or erase the border; check the trained model",
    ),
    "8×8 thumbnail": (
        "exposure and position tell the class, and so may the disease itself: a floor for any model",
        "compare every model with it; augment brightness and position",
    ),
    "intensity histogram": (
        "exposure tells the class, and so may the disease itself: a floor for any model",
        "compare every model with it; augment brightness and contrast",
    ),
}


def cross_validated_auc(
    features: NDArray[np.float64] | pd.DataFrame, truth: pd.Series, patients: pd.Series, seed: int = 0
) -> dict[str, float]:
    """How well gradient boosting tells the classes from these features, by patient-grouped cross-validation.

    Args:
        features: (N, F).
        truth: class names, (N,).
        patients: whose image each is, (N,); a patient is never in two folds.
        seed: seed of the folds, the model and the bootstrap.

    Returns:
        value, low, high of the AUC over all held-out predictions (more classes: mean of one-versus-rest).

    Raises:
        ValueError: fewer than two classes, or a class with too few patients to be in every fold.
    """
    table, classes = np.asarray(features, dtype=float), sorted(truth.unique())
    fewest = patients.groupby(truth).nunique().min()
    if len(classes) < 2 or fewest < FOLDS:
        raise ValueError(f"the audit needs two classes of at least {FOLDS} patients each; the smallest has {fewest}")
    if (table == table[0]).all():
        return {"value": 0.5, "low": 0.5, "high": 0.5}  # constant features tell nothing
    number = truth.map({name: index for index, name in enumerate(classes)}).to_numpy()
    scores = np.zeros((len(table), len(classes)))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(table, number, patients)
    # One thread: on a busy machine, threads that wait for each other after each small step take minutes for seconds.
    with threadpool_limits(1, user_api="openmp"):
        for train, held_out in tqdm(folds, "cross-validating", FOLDS, leave=False, unit="fold"):
            model = HistGradientBoostingClassifier(max_iter=60, early_stopping=False, random_state=seed)
            model.fit(table[train], number[train])
            # Ranks within the fold: folds differ a little in prevalence, which would count as skill otherwise.
            for column, name in enumerate(model.classes_):
                scores[held_out, name] = rankdata(model.predict_proba(table[held_out])[:, column]) / len(held_out)
    return auc_interval(number, scores[:, 1] if len(classes) == 2 else scores, patients, seed=seed)


def file_shortcuts(catalog: pd.DataFrame, target: str = "label", seed: int = 0) -> pd.DataFrame:
    """Predict the class from facts about the file alone.

    Args:
        catalog: readable rows of a catalog or manifest; leave the test split out.
        target: the column to predict, `label` or `cause`.
        seed: seed of folds, model and bootstrap.

    Returns:
        One row a fact, one for the header's together (all but bytes per pixel), one for all: features, auc, low and
        high (95% over patients), n (images), meaning, remedy.

    Raises:
        ValueError: as `cross_validated_auc`.
    """
    pixels = catalog["width"] * catalog["height"]
    facts = pd.DataFrame(
        {
            "width": catalog["width"],
            "height": catalog["height"],
            "aspect": catalog["width"] / catalog["height"],
            "area": pixels,
            "quantisation": catalog["quantisation"],
            "colour mode": (catalog["mode"] == "RGB").astype(float),
            "bytes per pixel": catalog["bytes"] / pixels,
        }
    ).astype(float)
    sets = {name: facts[[name]].to_numpy() for name in facts}
    sets["file header"] = facts.drop(columns="bytes per pixel").to_numpy()
    sets["all file facts"] = facts.to_numpy()
    return _audit(sets, catalog, target, seed)


def border_shortcut(
    images: NDArray[np.uint8], rows: pd.DataFrame, target: str = "label", seed: int = 0
) -> pd.DataFrame:
    """Predict the class from the image's outer frame and corners only.

    Args:
        images: uint8 (N, S, S).
        rows: the catalog rows of these images, in the same order.
        target: the column to predict.
        seed: seed of folds, model and bootstrap.

    Returns:
        One row, as from `file_shortcuts`.

    Raises:
        ValueError: as `cross_validated_auc`.
    """
    return _audit({"border": border_features(images)}, rows, target, seed)


def border_features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean and maximum of each block of a 20×20 grid that lies in the outer frame, (N, 2 × blocks)."""
    cells, edge = 20, round(20 * FRAME)
    blocks = _blocks(images, cells)  # (N, 20, 20, pixels)
    frame = np.ones((cells, cells), dtype=bool)
    frame[edge:-edge, edge:-edge] = False
    outer = blocks[:, frame]  # (N, blocks, pixels)
    return np.concatenate([outer.mean(axis=2), outer.max(axis=2)], axis=1)


def thumbnail_baseline(
    images: NDArray[np.uint8], rows: pd.DataFrame, target: str = "label", seed: int = 0
) -> pd.DataFrame:
    """Predict the class from an 8×8 thumbnail, and from the histogram of gray levels: a floor for any model.

    Args:
        images: uint8 (N, S, S).
        rows: the catalog rows of these images, in the same order.
        target: the column to predict.
        seed: seed of folds, model and bootstrap.

    Returns:
        Two rows, as from `file_shortcuts`.

    Raises:
        ValueError: as `cross_validated_auc`.
    """
    histograms = np.stack([np.histogram(image, bins=32, range=(0, 256))[0] for image in images])  # (N, 32)
    return _audit({"8×8 thumbnail": _thumbnails(images), "intensity histogram": histograms}, rows, target, seed)


def _thumbnails(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """8×8 thumbnails of images (N, S, S), as rows (N, 64)."""
    small: NDArray[np.float64] = _blocks(images, 8).mean(axis=3).reshape(len(images), -1)
    return small


def as_decoded(images: NDArray[np.uint8], rows: pd.DataFrame) -> pd.DataFrame:
    """The same catalog rows, as if the decoded images were saved alike: what is left of the file's facts.

    Args:
        images: uint8 (N, S, S), decoded to one size.
        rows: the catalog rows of these images, in the same order.
    """
    saved = [io.BytesIO() for _ in images]
    for image, buffer in zip(images, saved, strict=True):
        Image.fromarray(image).save(buffer, "JPEG", quality=90)
    size = images.shape[1]
    left = {"width": size, "height": size, "mode": "L", "quantisation": 0.0}
    return rows.assign(**left, bytes=[buffer.tell() for buffer in saved])


def _blocks(images: NDArray[np.uint8], cells: int) -> NDArray[np.float64]:
    """The pixels of each cell of a `cells` × `cells` grid, (N, cells, cells, pixels a cell); the rest is cut off."""
    step = images.shape[1] // cells
    grid = images[:, : step * cells, : step * cells].reshape(len(images), cells, step, cells, step)
    return grid.transpose(0, 1, 3, 2, 4).reshape(len(images), cells, cells, step * step).astype(float)


def _audit(sets: Mapping[str, NDArray[np.float64]], rows: pd.DataFrame, target: str, seed: int) -> pd.DataFrame:
    """One row a set of features."""
    found = []
    for name, features in sets.items():
        auc = cross_validated_auc(features, rows[target], rows["patient_coarse"], seed)
        advice = ADVICE[name] if auc["low"] > 0.5 else ("tells nothing reliable here", "none needed")
        found.append((name, auc["value"], auc["low"], auc["high"], len(rows), *advice))
    return pd.DataFrame(found, columns=COLUMNS)
