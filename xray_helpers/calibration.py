"""Whether probabilities mean what they say, how to mend them, and where to draw the line; all chosen on validation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve

from xray_helpers.bootstrap import Bools, Bootstrap, Floats, Interval

BINS = 10  # of the expected calibration error
TARGET = 0.95  # sensitivity that the third operating point keeps
STEPS, NEAR = 60, 1e-8  # of Newton's method, and when it has arrived


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


def check_binary(truth: ArrayLike, probability: ArrayLike) -> tuple[Bools, Floats]:
    """Truth and probability of class 1 as arrays, (N,) each.

    Raises:
        ValueError: lengths that differ, a label other than 0 and 1, a probability outside of 0 … 1 or no number.
    """
    labels, chance = np.asarray(truth), np.asarray(probability, dtype=float)
    if labels.shape != chance.shape or labels.ndim != 1:
        raise ValueError(f"labels of shape {labels.shape} and probabilities of {chance.shape}: expected one of each")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("a label is neither 0 nor 1")
    if not ((chance >= 0) & (chance <= 1)).all():
        raise ValueError("a probability is no number from 0 to 1")
    return labels == 1, chance


def operating_points(truth: ArrayLike, probability: ArrayLike, target: float = TARGET) -> dict[str, float]:
    """Thresholds of the probability, to be chosen on validation.

    Args:
        truth: 0 or 1, (N,).
        probability: of class 1, (N,).
        target: sensitivity that the last one keeps, above 0 and up to 1.

    Returns:
        `0.5`; `chosen`: the largest sensitivity + specificity (Youden 1950); `sensitivity 0.95`: the highest threshold
        that still finds that share. Each lies midway between two scores. Where nothing is better than chance,
        `chosen` is 0.5.

    Raises:
        ValueError: a class without images, or as `check_binary`.
    """
    labels, scores = check_binary(truth, probability)
    if len(np.unique(labels)) < 2:
        raise ValueError("an operating point needs images of both classes")
    misses, hits, levels = roc_curve(labels, scores, drop_intermediate=False)
    between = np.append((levels[1:-1] + levels[2:]) / 2, levels[-1] / 2)  # below each level but the first, infinity
    best = int(np.argmax(hits - misses))
    enough = int(np.argmax(hits >= target))
    return {
        "0.5": 0.5,
        "chosen": float(between[best - 1]) if best else 0.5,
        f"sensitivity {target:g}": float(between[enough - 1]),
    }


def ece(truth: ArrayLike, probability: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: the mean gap between probability and frequency, in bins of equal width.

    Naeini et al. 2015, for the probability of class 1. It is biased upward, and more so in bootstrap draws: it has no
    interval.
    """
    labels, scores = check_binary(truth, probability)
    bin_of = np.minimum((scores * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, scores - labels, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def calibration(truth: ArrayLike, probability: ArrayLike, bootstrap: Bootstrap) -> dict[str, Interval]:
    """How far probabilities of class 1 can be taken at their word.

    Args:
        truth: 0 or 1, (N,).
        probability: of class 1, (N,).
        bootstrap: of these images.

    Returns:
        brier (mean squared error), ece (without interval), calibration_slope (1 is right, below is overconfident) and
        calibration_intercept (0 is right, above means probabilities are too low), both as Van Calster et al. 2019
        define them. The slope is None where it does not exist: one class, constant scores, classes told apart
        without an error (or only its upper end, where that happens in many draws).

    Raises:
        ValueError: as `check_binary`.
    """
    labels, scores = check_binary(truth, probability)
    clipped = scores.clip(1e-12, 1 - 1e-12)
    logits, once = np.log(clipped / (1 - clipped)), np.ones((1, len(labels)))
    return {
        "brier": bootstrap.ratio((scores - labels) ** 2),
        "ece": {"value": ece(labels, scores)},
        "calibration_slope": bootstrap.interval(
            weighted_slope(labels, logits, once)[0], lambda weights: weighted_slope(labels, logits, weights)
        ),
        "calibration_intercept": bootstrap.interval(
            weighted_intercept(labels, logits, once)[0], lambda weights: weighted_intercept(labels, logits, weights)
        ),
    }


def weighted_slope(positive: Bools, logits: Floats, weights: Floats) -> Floats:
    """Slope of a logistic regression of the truth on the logits, for each row of weights (D, N), (D,).

    Infinite where the logits tell the classes apart without an error; NaN for one class, or for constant logits.
    """
    slopes = np.full(len(weights), np.nan)
    up, down = (weights > 0) & positive, (weights > 0) & ~positive
    low_up, low_down = (np.where(there, logits, np.inf).min(axis=1) for there in (up, down))
    high_up, high_down = (np.where(there, logits, -np.inf).max(axis=1) for there in (up, down))
    varied = up.any(axis=1) & down.any(axis=1) & (np.minimum(low_up, low_down) < np.maximum(high_up, high_down))
    slopes[varied & (low_up >= high_down)] = np.inf
    slopes[varied & (high_up <= low_down)] = -np.inf
    overlap = varied & (low_up < high_down) & (high_up > low_down)
    if overlap.any():
        slopes[overlap] = _logistic_slope(positive, logits, weights[overlap])
    return slopes


def _logistic_slope(positive: Bools, logits: Floats, weights: Floats) -> Floats:
    """Newton's method for all rows at once, (D,); the classes overlap, so that there is a finite answer."""
    spread = logits.std()
    x = (logits - logits.mean()) / spread
    intercept, slope = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(STEPS):
        chance = expit(intercept[:, None] + slope[:, None] * x)  # (D, N)
        left, curve = weights * (positive - chance), weights * chance * (1 - chance)
        pull, turn = left.sum(axis=1), left @ x
        a, b, c = curve.sum(axis=1), curve @ x, curve @ x**2
        area = np.maximum(a * c - b**2, 1e-12)
        up, more = (c * pull - b * turn) / area, (a * turn - b * pull) / area
        intercept, slope = intercept + up.clip(-2, 2), slope + more.clip(-2, 2)
        if max(np.abs(up).max(), np.abs(more).max()) < NEAR:
            break
    found: Floats = slope / spread
    return found


def weighted_intercept(positive: Bools, logits: Floats, weights: Floats) -> Floats:
    """What must be added to the logits for the mean probability to equal the frequency, for each row of weights, (D,).

    NaN for one class.
    """
    both = (weights[:, positive].sum(axis=1) > 0) & (weights[:, ~positive].sum(axis=1) > 0)
    low, high, found = np.full(len(weights), -40.0), np.full(len(weights), 40.0), np.zeros(len(weights))
    for _ in range(STEPS):
        chance = expit(found[:, None] + logits)  # (D, N)
        left = (weights * (positive - chance)).sum(axis=1)  # falls as the intercept grows
        low, high = np.where(left > 0, found, low), np.where(left > 0, high, found)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = found + left / (weights * chance * (1 - chance)).sum(axis=1)
        following = np.where((newton > low) & (newton < high), newton, (low + high) / 2)
        if np.abs(following - found)[both].max(initial=0) < NEAR:
            break
        found = following
    return np.where(both, found, np.nan)
