"""The numbers that judge a model, from labels, probabilities and patients alone; intervals are over patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from xray_helpers.bootstrap import (
    DRAWS,
    Bools,
    Bootstrap,
    Floats,
    Interval,
    weighted_auc,
    weighted_precision,
)
from xray_helpers.calibration import calibration

Patients: TypeAlias = "Sequence[object] | pd.Series"
HALF = {"0.5": 0.5}


def share_interval(hits: int, n: int) -> dict[str, float]:
    """A share with its 95% Wilson interval (Wilson 1927), for independent trials.

    Args:
        hits: how many of them.
        n: of how many, 1 at least.

    Returns:
        value, low, high.

    Raises:
        ValueError: `n` is 0, or `hits` is not among them.
    """
    test = binomtest(hits, n)
    low, high = test.proportion_ci(method="wilson")
    return {"value": float(test.statistic), "low": float(low), "high": float(high)}


def auc_interval(
    truth: ArrayLike, scores: ArrayLike, patients: Patients, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Area under the ROC curve, with its 95% interval by bootstrap over patients.

    For more than two classes the value is the mean of the classes' one-versus-rest areas.

    Args:
        truth: class numbers 0 … C - 1, (N,).
        scores: higher for class 1, (N,); or one column a class, (N, C).
        patients: whose image each is, (N,).
        draws: bootstrap draws.
        seed: their seed.

    Returns:
        value, low, high.

    Raises:
        ValueError: a class without images, a score that is not a number, or lengths that differ.
    """
    labels, table = check_scores(truth, scores, patients)
    return _macro(_columns(labels, table), Bootstrap(patients, draws, seed), roc_auc_score, weighted_auc)


def evaluate(
    truth: ArrayLike,
    probability: ArrayLike,
    patients: Patients,
    points: Mapping[str, float] = HALF,
    classes: Sequence[str] = (),
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """The numbers that judge a model's probabilities, over all images at once.

    Args:
        truth: class numbers 0 … C - 1, (N,).
        probability: of class 1, (N,); or one column a class, (N, C).
        patients: whose image each is, (N,).
        points: two classes: name → threshold of the probability, chosen elsewhere.
        classes: more classes: their names, by default their numbers.
        draws: bootstrap draws.
        seed: their seed.

    Returns:
        n, patients, prevalence (share of class 1, or of each class), loss (mean negative log-likelihood), auc,
        average_precision; for two classes what `calibration` gives, and `at`: name → threshold and what `decisions`
        gives; for more classes auc and average_precision are means of one-versus-rest, and `at` has `argmax`
        (accuracy, confusion with the truth in rows) and `classes` (name → auc, average_precision, `decisions`).
        Each figure has value, low and high: 95% by bootstrap over patients, None where there is none.

    Raises:
        ValueError: a class without images, a label of no class, a probability outside of 0 … 1 or no number, lengths
            that differ.
    """
    labels, table = check_scores(truth, probability, patients)
    bootstrap, columns, loss = Bootstrap(patients, draws, seed), _columns(labels, table), scores(labels, table)["loss"]
    shares = [float(positive.mean()) for positive, _ in columns]
    found = {
        "n": len(labels),
        "patients": bootstrap.patients,
        "prevalence": shares[0] if table.ndim == 1 else shares,
        "loss": loss,
        "auc": _macro(columns, bootstrap, roc_auc_score, weighted_auc),
        "average_precision": _macro(columns, bootstrap, average_precision_score, weighted_precision),
    }
    if table.ndim == 1:
        at = {
            name: {"threshold": threshold, **decisions(labels == 1, table >= threshold, bootstrap)}
            for name, threshold in points.items()
        }
        return found | calibration(labels, table, bootstrap) | {"at": at}
    decided = table.argmax(axis=1)
    names = classes or [str(number) for number in range(table.shape[1])]
    each = {
        name: {
            "auc": _macro([columns[number]], bootstrap, roc_auc_score, weighted_auc),
            "average_precision": _macro([columns[number]], bootstrap, average_precision_score, weighted_precision),
            **decisions(columns[number][0], decided == number, bootstrap),
        }
        for number, name in enumerate(names)
    }
    confusion = confusion_matrix(labels, decided, labels=range(table.shape[1])).tolist()
    whole = {"accuracy": bootstrap.share(decided == labels), "confusion": confusion}
    return found | {"at": {"argmax": whole}, "classes": each}


def decisions(positive: Bools, decided: Bools, bootstrap: Bootstrap) -> dict[str, Any]:
    """What follows from deciding: shares of right and wrong answers.

    Args:
        positive: the truth, (N,).
        decided: the answer, (N,).
        bootstrap: of these images.

    Returns:
        accuracy, sensitivity, specificity, ppv, npv and f1 with value, low and high (None where there is nothing to
        divide by); confusion: counts tn, fp, fn, tp.
    """
    hits, passes = positive & decided, ~positive & ~decided
    tn, fp, fn, tp = confusion_matrix(positive, decided, labels=[False, True]).ravel().tolist()
    return {
        "accuracy": bootstrap.share(positive == decided),
        "sensitivity": bootstrap.share(hits, positive),
        "specificity": bootstrap.share(passes, ~positive),
        "ppv": bootstrap.share(hits, decided),
        "npv": bootstrap.share(passes, ~decided),
        "f1": bootstrap.ratio(2.0 * hits, positive.astype(float) + decided),
        "confusion": {"tn": tn, "fp": fp, "fn": fn, "tp": tp},
    }


def scores(truth: ArrayLike, probability: ArrayLike) -> dict[str, float]:
    """Loss, AUC and accuracy (at 0.5, or of the likeliest class) over all images at once, without intervals.

    The AUC is NaN where a class has no image.

    Args:
        truth: class numbers, (N,).
        probability: of class 1, (N,); or one column a class, (N, C).

    Raises:
        ValueError: a probability outside of 0 … 1.
    """
    labels, table = np.asarray(truth), np.asarray(probability, dtype=float)
    if not (table.min() >= 0 and table.max() <= 1):
        raise ValueError(f"probabilities from {table.min():.3g} to {table.max():.3g}: expected 0 to 1")
    chances = np.stack([1 - table, table], axis=1) if table.ndim == 1 else table  # (N, C)
    decided = (table >= 0.5).astype(int) if table.ndim == 1 else table.argmax(axis=1)
    columns = _columns(labels, table)
    missing = any(positive.all() or not positive.any() for positive, _ in columns)
    return {
        "loss": float(-np.log(chances[np.arange(len(labels)), labels].clip(1e-12)).mean()),
        "auc": float("nan") if missing else float(np.mean([roc_auc_score(*column) for column in columns])),
        "accuracy": float((decided == labels).mean()),
    }


def check_scores(truth: ArrayLike, values: ArrayLike, patients: Patients) -> tuple[NDArray[Any], Floats]:
    """Labels and scores as arrays, of one length, finite, with images of every class."""
    labels, table = np.asarray(truth), np.asarray(values, dtype=float)
    if len({len(labels), len(table), len(patients)}) > 1:
        raise ValueError(f"{len(labels)} labels, {len(table)} scores and {len(patients)} patients: expected one length")
    if not np.isfinite(table).all():
        raise ValueError("a score is not a finite number")
    if not np.isin(labels, range(2 if table.ndim == 1 else table.shape[1])).all():
        raise ValueError("a label is no number of a class")
    if any(positive.all() or not positive.any() for positive, _ in _columns(labels, table)):
        raise ValueError("AUC needs images of every class, and of another one")
    return labels, table


def _columns(labels: NDArray[Any], table: Floats) -> list[tuple[Bools, Floats]]:
    """Truth and score of class 1, or of each class against the rest, (N,) each."""
    if table.ndim == 1:
        return [(labels == 1, table)]
    return [(labels == number, table[:, number]) for number in range(table.shape[1])]


def _macro(columns: list[tuple[Bools, Floats]], bootstrap: Bootstrap, point: Any, weighted: Any) -> Interval:
    """The mean over classes of a figure that scikit-learn computes once, and we for all draws at once."""
    value = float(np.mean([point(positive, column) for positive, column in columns]))
    return bootstrap.interval(
        value, lambda weights: np.mean([weighted(positive, column, weights) for positive, column in columns], axis=0)
    )
