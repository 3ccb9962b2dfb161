"""What is computed from labels and scores alone, with intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]
DRAWS = 2000


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
    truth: ArrayLike, scores: ArrayLike, patients: Sequence[object] | pd.Series, draws: int = DRAWS, seed: int = 0
) -> dict[str, float]:
    """Area under the ROC curve, with its 95% interval by bootstrap over patients (Efron 1979).

    All images of a patient are drawn together, since they are not independent. For more than two classes the value is
    the mean of the classes' one-versus-rest areas.

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
    labels, table = np.asarray(truth), np.asarray(scores, dtype=float)
    columns = [(labels == 1, table)] if table.ndim == 1 else [(labels == c, table[:, c]) for c in range(table.shape[1])]
    if len({len(labels), len(table), len(patients)}) > 1:
        raise ValueError(f"{len(labels)} labels, {len(table)} scores and {len(patients)} patients: expected one length")
    if not np.isfinite(table).all():
        raise ValueError("a score is not a finite number")
    if any(positive.all() or not positive.any() for positive, _ in columns):
        raise ValueError("AUC needs images of every class, and of another one")
    owner = pd.factorize(pd.Series(patients))[0]  # (N,)
    count, rng = owner.max() + 1, np.random.default_rng(seed)
    value = np.mean([_weighted_auc(positive, column, np.ones((1, len(labels)))) for positive, column in columns])
    drawn = []
    for start in range(0, draws, 200):  # in parts, to hold few weights at once
        picked = rng.multinomial(count, np.full(count, 1 / count), size=min(200, draws - start))  # (draws, patients)
        weights = picked[:, owner].astype(float)  # (draws, N)
        drawn.append(np.mean([_weighted_auc(positive, column, weights) for positive, column in columns], axis=0))
    low, high = np.nanquantile(np.concatenate(drawn), (0.025, 0.975))
    return {"value": float(value), "low": float(low), "high": float(high)}


def _weighted_auc(positive: NDArray[np.bool_], score: Floats, weights: Floats) -> Floats:
    """AUC of each row of weights (D, N), ties counting half, (D,); NaN where a draw holds one class only."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])  # where each level of the score begins
    ranked = weights[:, order]
    ups = np.add.reduceat(ranked * positive[order], starts, axis=1)  # (D, levels)
    downs = np.add.reduceat(ranked * ~positive[order], starts, axis=1)
    wins = (ups * (np.cumsum(downs, axis=1) - 0.5 * downs)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        area: Floats = wins / (ups.sum(axis=1) * downs.sum(axis=1))
    return area


def evaluate(
    truth: ArrayLike, probability: ArrayLike, patients: Sequence[object] | pd.Series, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """The numbers that judge a model's probabilities, over all images at once.

    Args:
        truth: class numbers 0 … C - 1, (N,).
        probability: of class 1, (N,); or one column a class, (N, C).
        patients: whose image each is, (N,).
        draws: bootstrap draws.
        seed: their seed.

    Returns:
        n, patients, prevalence (share of class 1, or of each class), loss (mean negative log-likelihood), auc, and
        `at`: rule → threshold and accuracy (`0.5`, or for more classes `argmax` without a threshold). AUC and
        accuracy have value, low and high: 95% by bootstrap over patients.

    Raises:
        ValueError: as `auc_interval`, or a probability outside of 0 … 1.
    """
    labels, table = np.asarray(truth), np.asarray(probability, dtype=float)
    auc = auc_interval(labels, table, patients, draws, seed)
    binary = table.ndim == 1
    accuracy = mean_interval(_decided(table) == labels, patients, draws, seed)
    rule = {"0.5": {"threshold": 0.5, "accuracy": accuracy}} if binary else {"argmax": {"accuracy": accuracy}}
    shares = np.bincount(labels, minlength=2 if binary else table.shape[1]) / len(labels)
    return {
        "n": len(labels),
        "patients": int(pd.Series(patients).nunique()),
        "prevalence": float(shares[1]) if binary else shares.tolist(),
        "loss": scores(labels, table)["loss"],
        "auc": auc,
        "at": rule,
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
    columns = np.stack([1 - table, table], axis=1) if table.ndim == 1 else table  # (N, C)
    of_truth = columns[np.arange(len(labels)), labels].clip(1e-12)
    once = np.ones((1, len(labels)))
    areas = [
        _weighted_auc(labels == c, columns[:, c], once)[0] for c in range(1 if table.ndim == 1 else 0, columns.shape[1])
    ]
    return {
        "loss": float(-np.log(of_truth).mean()),
        "auc": float(np.mean(areas)),
        "accuracy": float((_decided(table) == labels).mean()),
    }


def _decided(table: Floats) -> NDArray[np.int_]:
    """Class numbers: 1 from a probability of 0.5 upwards, or the likeliest of several, (N,)."""
    return (table >= 0.5).astype(int) if table.ndim == 1 else table.argmax(axis=1)


def mean_interval(
    values: ArrayLike, patients: Sequence[object] | pd.Series, draws: int = DRAWS, seed: int = 0
) -> dict[str, float]:
    """A mean over images with its 95% interval by bootstrap over patients; value, low, high."""
    numbers = np.asarray(values, dtype=float)
    owner = pd.factorize(pd.Series(patients))[0]  # (N,)
    sums, sizes = np.bincount(owner, numbers), np.bincount(owner)
    picked = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=draws)
    low, high = np.quantile((picked @ sums) / (picked @ sizes), (0.025, 0.975))
    return {"value": float(numbers.mean()), "low": float(low), "high": float(high)}


def platt(truth: ArrayLike, logits: ArrayLike) -> dict[str, float]:
    """Slope and intercept that turn logits into calibrated log-odds (Platt 1999); fit on validation only.

    Platt's smoothed targets keep them finite where the classes are told apart without an error.

    Args:
        truth: 0 or 1, (N,).
        logits: log-odds of class 1, (N,).

    Returns:
        slope, intercept.
    """
    labels, column = np.asarray(truth), np.asarray(logits, dtype=float).reshape(-1, 1)
    ones = int(labels.sum())
    target = np.where(labels == 1, (ones + 1) / (ones + 2), 1 / (len(labels) - ones + 2))
    both = np.concatenate([column, column])
    model = LogisticRegression(C=1e6, max_iter=1000)
    model.fit(both, np.repeat([1, 0], len(labels)), sample_weight=np.concatenate([target, 1 - target]))
    return {"slope": float(model.coef_[0, 0]), "intercept": float(model.intercept_[0])}
