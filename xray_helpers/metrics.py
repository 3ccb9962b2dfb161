"""What is computed from labels and scores alone, with intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

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
