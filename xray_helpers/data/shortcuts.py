"""What can be predicted without looking at the lungs: from the file, from the border, or from a blurred glance.

A network uses whatever separates the classes. If the size of a file does, the network may learn the scanner and not the
disease (Geirhos et al. 2020, "Shortcut learning in deep neural networks"). Each audit trains a small model on one kind
of feature, cross-validated by patient, and reports how well it does.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from xray_helpers.metrics import auc_interval, format_interval

Images = NDArray[np.uint8]  # (N, S, S)
FOLDS = 5
FRAME = 0.10  # the outer share of each side that counts as border; burned-in letters lie within it
COLUMNS = ["features", "auc", "low", "high", "n", "meaning", "remedy"]

# For each set of features: what it means if they predict the class, and how to keep that from a network.
ADVICE = pd.read_csv(Path(__file__).with_name("shortcut_advice.csv"), index_col="features")


def cross_validated_auc(features: ArrayLike, truth: pd.Series, patients: pd.Series, seed: int = 0) -> dict[str, float]:
    """How well gradient boosting predicts the class from these features, by patient-grouped cross-validation.

    Args:
        features: (N, F).
        truth: class names, (N,).
        patients: the patient of each image, (N,); a patient is never in two folds.
        seed: seed of the folds, the model and the bootstrap.

    Returns:
        value, low and high of the AUC over all held-out predictions (for more than two classes, the mean of
        one-versus-rest); low and high bound the 95% interval over patients.

    Raises:
        ValueError: fewer than two classes, or a class with too few patients to be in every fold.
    """
    scores = out_of_fold_scores(features, truth, patients, seed)
    if not np.ptp(np.asarray(features, dtype=float), axis=0).any():  # constant features predict nothing, for certain
        return {"value": 0.5, "low": 0.5, "high": 0.5}
    number = pd.factorize(truth, sort=True)[0]
    return auc_interval(number, scores[:, 1] if scores.shape[1] == 2 else scores, patients, seed=seed)


def out_of_fold_scores(
    features: ArrayLike, truth: pd.Series, patients: pd.Series, seed: int = 0
) -> NDArray[np.float64]:
    """What gradient boosting says of each image, learned from other patients' images.

    Args:
        features: (N, F).
        truth: class names, (N,).
        patients: the patient of each image, (N,); a patient is never in two of the five folds.
        seed: seed of the folds and the model.

    Returns:
        A column for each class in alphabetical order, (N, C): the place of its probability among those of the fold,
        above 0 and up to 1. Places, since folds differ a little in prevalence, which would otherwise count as skill.

    Raises:
        ValueError: fewer than two classes, or a class with too few patients to be in every fold.
    """
    table, (number, classes) = np.asarray(features, dtype=float), pd.factorize(truth, sort=True)
    fewest = patients.groupby(truth).nunique().min()
    if len(classes) < 2 or fewest < FOLDS:
        raise ValueError(f"the audit needs two classes of at least {FOLDS} patients each; the smallest has {fewest}")
    scores = np.zeros((len(table), len(classes)))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(table, number, patients)
    for train, held_out in tqdm(folds, "cross-validating", FOLDS, leave=False, unit="fold"):
        model = fit_boosting(table[train], number[train], seed)
        found = model.predict_proba(table[held_out])
        scores[np.ix_(held_out, model.classes_)] = rankdata(found, axis=0) / len(held_out)
    return scores


def fit_boosting(features: ArrayLike, labels: ArrayLike, seed: int = 0) -> HistGradientBoostingClassifier:
    """The small model of every audit: gradient boosting of 60 trees, from features (N, F) and labels (N,)."""
    # One thread: on a busy machine, threads that wait for each other after every small step take minutes for seconds.
    model = HistGradientBoostingClassifier(max_iter=60, early_stopping=False, random_state=seed)
    with threadpool_limits(1, user_api="openmp"):
        return model.fit(features, labels)


def file_shortcuts(catalog: pd.DataFrame, target: str = "label", seed: int = 0) -> pd.DataFrame:
    """Predict the class from facts about the file alone.

    Args:
        catalog: readable rows of a catalog or manifest; leave the test split out.
        target: the column to predict, `label` or `cause`.
        seed: seed of the folds, the model and the bootstrap.

    Returns:
        One row per fact, one for all facts of the header together (all but bytes per pixel) and one for all facts:
        features, auc, low and high (95% over patients), n (images), meaning, remedy.

    Raises:
        ValueError: as `cross_validated_auc`.
    """
    width, height = catalog["width"], catalog["height"]
    header = pd.DataFrame({"width": width, "height": height, "aspect": width / height, "area": width * height})
    header["quantisation"], header["colour mode"] = catalog["quantisation"], catalog["mode"] == "RGB"
    facts = header.assign(**{"bytes per pixel": catalog["bytes"] / header["area"]})
    sets = {name: facts[[name]] for name in facts} | {"file header": header, "all file facts": facts}
    return _audit(sets, catalog, target, seed)


def border_shortcut(images: Images, rows: pd.DataFrame, target: str = "label", seed: int = 0) -> pd.DataFrame:
    """Predict the class from the image's outer frame and corners alone.

    Args:
        images: uint8 (N, S, S).
        rows: the catalog rows of these images, in the same order.
        target: the column to predict, `label` or `cause`.
        seed: seed of the folds, the model and the bootstrap.

    Returns:
        One row, as from `file_shortcuts`.

    Raises:
        ValueError: as `cross_validated_auc`.
    """
    return _audit({"border": border_features(images)}, rows, target, seed)


def border_features(images: Images) -> NDArray[np.float64]:
    """Mean and maximum of each cell in the outer frame of a 20×20 grid.

    Args:
        images: uint8 (N, S, S).

    Returns:
        (N, 2 × cells): the means of all cells, then the maxima.
    """
    edge = round(20 * FRAME)
    frame = np.pad(np.zeros((20 - 2 * edge,) * 2, dtype=bool), edge, constant_values=True)
    return np.concatenate([part[:, frame] for part in _cells(images, 20)], axis=1)


def thumbnail_baseline(images: Images, rows: pd.DataFrame, target: str = "label", seed: int = 0) -> pd.DataFrame:
    """Predict the class from an 8×8 thumbnail, and from the histogram of gray levels: a floor for any model.

    Args:
        images: uint8 (N, S, S).
        rows: the catalog rows of these images, in the same order.
        target: the column to predict, `label` or `cause`.
        seed: seed of the folds, the model and the bootstrap.

    Returns:
        Two rows, as from `file_shortcuts`.

    Raises:
        ValueError: as `cross_validated_auc`.
    """
    sets = {"8×8 thumbnail": _thumbnails(images), "intensity histogram": _histograms(images, 32)}
    return _audit(sets, rows, target, seed)


def folder_drift(images: Images, rows: pd.DataFrame, seed: int = 0) -> dict[str, float]:
    """How well an 8×8 thumbnail tells the source's folder train from its folder test.

    Args:
        images: uint8 (N, S, S).
        rows: the catalog rows of these images, in the same order, of these two folders.
        seed: seed of the folds, the model and the bootstrap.

    Returns:
        As `cross_validated_auc`; empty where a folder is missing or has too few patients.
    """
    patients = rows["patient_fine"].groupby(rows["folder"]).nunique()
    if len(patients) < 2 or patients.min() < FOLDS:
        return {}
    return cross_validated_auc(_thumbnails(images), rows["folder"], rows["patient_fine"], seed)


def audit_table(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Two audits of the same features side by side, before and after a remedy, with what each means.

    Args:
        before: rows as from `file_shortcuts`.
        after: rows of the same kind, not necessarily of all features.

    Returns:
        One row per feature of `before`: AUC and after, each with its interval as text, meaning and remedy.
    """
    before, after = (rows.rename(columns={"auc": "value"}).set_index("features") for rows in (before, after))
    texts = {"AUC": before.apply(format_interval, axis=1), "after": after.apply(format_interval, axis=1)}
    return pd.DataFrame(texts, before.index).fillna("").join(before[["meaning", "remedy"]])


def style_features(images: Images) -> NDArray[np.float64]:
    """What an image looks like without its anatomy: no lung can be made out in any of these.

    Args:
        images: uint8 (N, S, S).

    Returns:
        (N, F): an 8×8 thumbnail, a histogram of 16 bins, the mean of each of 16 rings from the border inwards, the
        bytes that it takes as JPEG of quality 75, sharpness (the mean step from pixel to pixel), mean, deviation.
    """
    count, size = images.shape[:2]
    distance = np.minimum(np.arange(size), np.arange(size)[::-1])
    rings = np.minimum.outer(distance, distance) * 32 // size  # (S, S), the border is ring 0
    share = np.stack([rings == ring for ring in range(16)], axis=-1).reshape(size * size, 16).astype(np.float32)
    levels = images.reshape(count, -1)
    profiles = levels.astype(np.float32) @ (share / share.sum(axis=0))  # (N, 16)
    steps = [np.abs(np.diff(images.astype(np.int16), axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
    saved = [_saved_bytes(image, quality=75) for image in images]
    single = [saved, *steps, levels.mean(axis=1), levels.std(axis=1)]  # (N,) each
    return np.column_stack([_thumbnails(images), _histograms(images, 16), profiles, *single])


def as_decoded(images: Images, rows: pd.DataFrame) -> pd.DataFrame:
    """The catalog rows as they would be if all decoded images were saved in the same way.

    `file_shortcuts` of these rows shows which facts about the file survive decoding.

    Args:
        images: uint8 (N, S, S), decoded to one size.
        rows: the catalog rows of these images, in the same order.

    Returns:
        A copy of `rows` with width, height, mode, quantisation and bytes changed.
    """
    same = {"width": images.shape[2], "height": images.shape[1], "mode": "L", "quantisation": 0.0}
    return rows.assign(**same, bytes=[_saved_bytes(image, quality=90) for image in images])


def _saved_bytes(image: NDArray[np.uint8], quality: int) -> int:
    """The bytes that an image, (S, S), takes as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.tell()


def _thumbnails(images: Images) -> NDArray[np.float64]:
    """The mean of each cell of an 8 × 8 grid, (N, 64)."""
    return _cells(images, 8)[0].reshape(len(images), -1)


def _histograms(images: Images, bins: int) -> NDArray[np.int_]:
    """How many pixels of each image have a gray level in each bin, (N, bins)."""
    return np.stack([np.histogram(image, bins, (0, 256))[0] for image in images])


def _cells(images: Images, cells: int) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Mean and maximum of each cell of a `cells` × `cells` grid over the whole image, (N, cells, cells) each."""
    starts = np.arange(cells) * images.shape[1] // cells  # cells differ by a pixel where the side is no multiple
    sums = np.add.reduceat(np.add.reduceat(images, starts, axis=1, dtype=np.float64), starts, axis=2)
    sides = np.diff(starts, append=images.shape[1])
    highest = np.maximum.reduceat(np.maximum.reduceat(images, starts, axis=1), starts, axis=2)
    return sums / np.outer(sides, sides), highest


def _audit(sets: Mapping[str, ArrayLike], rows: pd.DataFrame, target: str, seed: int) -> pd.DataFrame:
    """One row per set of features."""
    found = []
    for name, features in sets.items():
        auc = cross_validated_auc(features, rows[target], rows["patient_coarse"], seed)
        advice = ADVICE.loc[name] if auc["low"] > 0.5 else ("no reliable signal here", "none needed")
        found.append((name, auc["value"], auc["low"], auc["high"], len(rows), *advice))
    return pd.DataFrame(found, columns=COLUMNS)
