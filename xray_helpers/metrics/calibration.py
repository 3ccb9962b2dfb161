"""Whether probabilities mean what they say, how to correct them, and which thresholds to use; chosen on validation."""

from functools import partial

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve

from xray_helpers.metrics.bootstrap import Array, Bootstrap, Interval


def platt(truth: ArrayLike, logits: ArrayLike) -> dict[str, float]:
    """Slope and intercept that turn logits into calibrated log-odds (Platt 1999); fit on validation only.

    Platt's smoothed targets keep them finite where the logits separate the classes without error.

    Args:
        truth: 0 or 1, (N,).
        logits: log-odds of class 1, (N,).

    Returns:
        slope, intercept.
    """
    labels, column = np.asarray(truth), np.asarray(logits, dtype=float)
    ones = int(labels.sum())
    target = np.where(labels == 1, (ones + 1) / (ones + 2), 1 / (len(labels) - ones + 2))
    # Each image counts as class 1 with its target's weight, and as class 0 with the rest.
    model = LogisticRegression(C=1e6, max_iter=1000)
    model.fit(np.tile(column, 2)[:, None], np.repeat([1, 0], len(labels)), np.concatenate([target, 1 - target]))
    return {"slope": float(model.coef_[0, 0]), "intercept": float(model.intercept_[0])}


def check_binary(truth: ArrayLike, probability: ArrayLike) -> tuple[Array, Array]:
    """Truth and probability of class 1 as arrays, (N,) each.

    Raises:
        ValueError: lengths that differ, a label other than 0 and 1, or a probability that is not between 0 and 1.
    """
    labels, chance = np.asarray(truth), np.asarray(probability, dtype=float)
    if labels.shape != chance.shape or labels.ndim != 1:
        raise ValueError(f"labels of shape {labels.shape}, probabilities of {chance.shape}: expected (N,) for both")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("a label is neither 0 nor 1")
    if not ((chance >= 0) & (chance <= 1)).all():
        raise ValueError("a probability is not a number between 0 and 1")
    return labels == 1, chance


def operating_points(truth: ArrayLike, probability: ArrayLike, target: float = 0.95) -> dict[str, float]:
    """Thresholds of the probability, to be chosen on validation.

    Args:
        truth: 0 or 1, (N,).
        probability: probability of class 1, (N,).
        target: sensitivity that the last threshold keeps, above 0 and up to 1.

    Returns:
        `0.5`; `chosen`: the largest sensitivity + specificity (Youden 1950); `sensitivity 0.95`: the highest threshold
        that still finds that share. Each lies midway between two scores. Where nothing is better than chance,
        `chosen` is 0.5.

    Raises:
        ValueError: a class without images, or as `check_binary`.
    """
    labels, chance = check_binary(truth, probability)
    if len(np.unique(labels)) < 2:
        raise ValueError("an operating point needs images of both classes")
    misses, hits, levels = roc_curve(labels, chance, drop_intermediate=False)
    thresholds = (levels + np.append(levels[1:], 0)) / 2  # the threshold of a level lies midway to the next
    thresholds[0] = 0.5  # roc_curve's first level is infinity, where nothing is found
    chosen, sensitive = (float(thresholds[np.argmax(quality)]) for quality in (hits - misses, hits >= target))
    return {"0.5": 0.5, "chosen": chosen, f"sensitivity {target:g}": sensitive}


def ece(truth: ArrayLike, probability: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: the mean gap between probability and frequency, in bins of equal width.

    Naeini et al. 2015, for the probability of class 1. It is biased upward, and more so in bootstrap draws, so it has
    no interval.
    """
    labels, chance = check_binary(truth, probability)
    bin_index = np.minimum((chance * bins).astype(int), bins - 1)
    return float(np.abs(np.bincount(bin_index, chance - labels)).sum() / len(labels))


def calibration(truth: ArrayLike, probability: ArrayLike, bootstrap: Bootstrap) -> dict[str, Interval]:
    """How far probabilities of class 1 can be taken at face value.

    Args:
        truth: 0 or 1, (N,).
        probability: probability of class 1, (N,).
        bootstrap: bootstrap of the same images.

    Returns:
        brier (mean squared error), ece (without interval), calibration_slope (1 is right, below is overconfident) and
        calibration_intercept (0 is right, above means probabilities are too low), both as Van Calster et al. 2019
        define them, with intervals from the first 200 draws. The slope is None where it does not exist: one class,
        constant probabilities, or classes separated without error; where many draws are separated, only its upper end
        is None. The intercept is None where there is one class only.

    Raises:
        ValueError: as `check_binary`.
    """
    labels, chance = check_binary(truth, probability)
    logits = logit(chance.clip(1e-12, 1 - 1e-12))
    figures = {"brier": bootstrap.ratio((chance - labels) ** 2), "ece": {"value": ece(labels, chance)}}
    for name, fit in (("calibration_slope", _slope), ("calibration_intercept", _intercept)):
        fit_each_draw = partial(np.apply_along_axis, partial(fit, labels, logits), 1)
        figures[name] = bootstrap.interval(fit_each_draw, draws=200)  # fits are slow
    return figures


def _slope(positive: Array, logits: Array, weights: Array) -> float:
    """Slope of a logistic regression of the truth on the logits; all arguments (N,).

    Infinite where the logits separate the classes without error; NaN for one class, or for constant logits.
    """
    x, y, weights = (values[weights > 0] for values in (logits, positive, weights))
    if len(np.unique(y)) < 2 or np.ptp(x) == 0:
        return np.nan
    if x[y].min() >= x[~y].max() or x[y].max() <= x[~y].min():
        return float(np.copysign(np.inf, x[y].mean() - x[~y].mean()))
    # Without a penalty (C=inf); on standardized logits, where the solver converges fast.
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000, solver="newton-cholesky").fit(
        ((x - x.mean()) / x.std())[:, None], y, weights
    )
    return float(model.coef_[0, 0] / x.std())


def _intercept(positive: Array, logits: Array, weights: Array) -> float:
    """What to add to the logits so that the mean probability equals the frequency; NaN for one class."""
    share = np.average(positive, weights=weights)
    if share in (0, 1):
        return np.nan
    return float(brentq(lambda shift: np.average(expit(logits + shift), weights=weights) - share, -60, 60))
