"""Figures that judge a model, for all images and for groups of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import confusion_matrix
from sklearn.utils import check_array, check_consistent_length

from xray_helpers.metrics.bootstrap import DRAWS, Array, Bootstrap, Interval, weighted_auc, weighted_precision
from xray_helpers.metrics.calibration import calibration, check_binary

Columns = list[tuple[Array, Array]]


def auc_interval(
    truth: ArrayLike, scores: ArrayLike, patients: ArrayLike, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Area under the ROC curve, with its 95% interval by bootstrap over patients.

    For more than two classes the value is the mean of the classes' one-versus-rest areas.

    Args:
        truth: class numbers 0 … C - 1, (N,).
        scores: higher for class 1, (N,); or one column per class, (N, C).
        patients: patient of each image, (N,).
        draws: number of bootstrap draws.
        seed: seed of the draws.

    Returns:
        value, low, high.

    Raises:
        ValueError: a class without images, a score that is not a number, or lengths that differ.
    """
    return _macro(weighted_auc, _columns(*check_scores(truth, scores, patients)), Bootstrap(patients, draws, seed))


def evaluate(
    truth: ArrayLike,
    probability: ArrayLike,
    patients: ArrayLike | None = None,
    points: Mapping[str, float] = {"0.5": 0.5},
    classes: Sequence[str] = (),
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """The figures that judge a model's probabilities, over all images at once.

    Args:
        truth: class numbers 0 … C - 1, (N,).
        probability: probability of class 1, (N,); or one column per class, (N, C).
        patients: patient of each image, (N,). Without them, each image counts as independent of all others; where
            patients have several images, the intervals are then too narrow.
        points: two classes: name → threshold of the probability, chosen on other images.
        classes: more classes: their names, by default their numbers.
        draws: number of bootstrap draws.
        seed: seed of the draws.

    Returns:
        n (images), patients (their number, None where not given), intervals ("over patients" or "over images"),
        prevalence (share of class 1, or of each class), loss (mean negative log-likelihood), auc, average_precision.
        For two classes also what `calibration` returns, and `at`: name → threshold and what `decisions` returns. For
        more classes auc and average_precision are means of one-versus-rest; `at` has `argmax` (accuracy, and confusion
        with one row per true class), and `classes` has name → auc, average_precision and what `decisions` returns.
        Each figure has value, low and high: a 95% bootstrap interval, None where it does not exist.

    Raises:
        ValueError: a class without images, a label that is not a class number, a probability that is not between 0
            and 1, or lengths that differ.
    """
    labels, table = check_scores(truth, probability, patients)
    bootstrap = Bootstrap(range(len(labels)) if patients is None else patients, draws, seed)
    columns = _columns(labels, table)
    found = {
        "n": len(labels),
        "patients": None if patients is None else bootstrap.patients,
        "intervals": "over images" if patients is None else "over patients",
        "prevalence": float(labels.mean()) if table.ndim == 1 else [float(positive.mean()) for positive, _ in columns],
        "loss": scores(labels, table)["loss"],
        **_ranking(columns, bootstrap),
    }
    if table.ndim == 1:
        at = {name: {"threshold": t} | decisions(labels == 1, table >= t, bootstrap) for name, t in points.items()}
        return found | calibration(labels, table, bootstrap) | {"at": at}
    decided = table.argmax(axis=1)
    answers = {"accuracy": bootstrap.share(decided == labels), "confusion": confusion_matrix(labels, decided).tolist()}
    each = {
        name: _ranking([columns[number]], bootstrap) | decisions(labels == number, decided == number, bootstrap)
        for number, name in enumerate(classes or map(str, range(len(columns))))
    }
    return found | {"at": {"argmax": answers}, "classes": each}


def decisions(positive: Array, decided: Array, bootstrap: Bootstrap) -> dict[str, Any]:
    """Shares of right and wrong decisions.

    Args:
        positive: whether each image is of the class, (N,).
        decided: whether the model says so, (N,).
        bootstrap: bootstrap of the same images.

    Returns:
        accuracy, sensitivity, specificity, ppv, npv and f1 with value, low and high (None where there is nothing to
        divide by); confusion: counts tn, fp, fn, tp.
    """
    hits, passes = positive & decided, ~positive & ~decided
    counts = confusion_matrix(positive, decided, labels=[False, True]).ravel().tolist()
    return {
        "accuracy": bootstrap.share(positive == decided),
        "sensitivity": bootstrap.share(hits, positive),
        "specificity": bootstrap.share(passes, ~positive),
        "ppv": bootstrap.share(hits, decided),
        "npv": bootstrap.share(passes, ~decided),
        "f1": bootstrap.ratio(2.0 * hits, positive.astype(float) + decided),
        "confusion": dict(zip(("tn", "fp", "fn", "tp"), counts, strict=True)),
    }


def scores(truth: ArrayLike, probability: ArrayLike) -> dict[str, float]:
    """Loss, AUC and accuracy (at 0.5, or of the most likely class) over all images at once, without intervals.

    Args:
        truth: class numbers, (N,).
        probability: probability of class 1, (N,); or one column per class, (N, C).

    Returns:
        loss, auc (NaN where a class has no image), accuracy.

    Raises:
        ValueError: a probability that is not between 0 and 1.
    """
    labels, table = np.asarray(truth).astype(int), np.asarray(probability, dtype=float)
    if not (table.min() >= 0 and table.max() <= 1):
        raise ValueError(f"probabilities from {table.min():.3g} to {table.max():.3g}: expected 0 to 1")
    chances = np.stack([1 - table, table], axis=1) if table.ndim == 1 else table  # (N, C)
    decided = table >= 0.5 if table.ndim == 1 else table.argmax(axis=1)
    return {
        "loss": float(-np.log(chances[np.arange(len(labels)), labels].clip(1e-12)).mean()),
        "auc": float(np.mean([weighted_auc(*column, np.ones((1, len(labels)))) for column in _columns(labels, table)])),
        "accuracy": float((decided == labels).mean()),
    }


def check_scores(truth: ArrayLike, values: ArrayLike, patients: ArrayLike | None) -> tuple[Array, Array]:
    """Labels and scores as arrays, of the same length as the patients, finite, with images of every class."""
    labels, table = np.asarray(truth), check_array(values, ensure_2d=False, dtype=float, input_name="scores")
    check_consistent_length(labels, table, patients)
    classes = list(range(2 if table.ndim == 1 else table.shape[1]))
    if np.unique(labels).tolist() != classes or len(classes) < 2:
        raise ValueError(f"labels must be the class numbers {classes}: two at least, with images of every class")
    return labels, table


def subgroups(
    table: pd.DataFrame, groups: Mapping[str, ArrayLike], threshold: float = 0.5, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """The same figures for groups of the images.

    Args:
        table: one row per image, with columns truth (0 or 1), probability and patient.
        groups: name of a grouping → group of each image, (N,).
        threshold: threshold of the probability.
        draws: number of bootstrap draws.
        seed: seed of the draws.

    Returns:
        One row per group: by (name of the grouping), group, n, patients, positive (images of class 1), and auc,
        accuracy, sensitivity and specificity, each with value, low and high; None where it does not exist, as the AUC
        of a group with one class only.

    Raises:
        ValueError: a label is not 0 or 1, a probability is not between 0 and 1, or a patient is missing.
    """
    rows: list[dict[str, object]] = []
    for by, names in groups.items():
        for name, part in table.groupby(np.asarray(names), sort=True):
            positive, chance = check_binary(part["truth"], part["probability"])
            bootstrap = Bootstrap(part["patient"], draws, seed)
            counts = {"n": len(part), "patients": bootstrap.patients, "positive": int(positive.sum())}
            auc = bootstrap.interval(partial(weighted_auc, positive, chance))
            answers = decisions(positive, chance >= threshold, bootstrap)
            rows.append({"by": by, "group": name, **counts, "auc": auc, **answers})
    return pd.DataFrame(rows).drop(columns=["ppv", "npv", "f1", "confusion"], errors="ignore")


def _columns(labels: Array, table: Array) -> Columns:
    """Truth and score of class 1, or of each class against the rest, (N,) each."""
    columns = {1: table} if table.ndim == 1 else dict(enumerate(table.T))
    return [(labels == number, column) for number, column in columns.items()]


def _macro(figure: Callable[[Array, Array, Array], Array], columns: Columns, bootstrap: Bootstrap) -> Interval:
    """The mean over classes of a figure that is computed for many draws at once."""
    return bootstrap.interval(lambda weights: np.mean([figure(*column, weights) for column in columns], axis=0))


def _ranking(columns: Columns, bootstrap: Bootstrap) -> dict[str, Any]:
    """AUC and average precision, means over classes."""
    figures = {"auc": weighted_auc, "average_precision": weighted_precision}
    return {name: _macro(figure, columns, bootstrap) for name, figure in figures.items()}
