"""95% intervals by bootstrap over patients, computed for many draws at once from the weight of each image per draw."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

Array = NDArray[Any]
Interval = dict[str, Any]  # value, low, high; None where there is no finite number
DRAWS = 2000
BATCH, WEIGHTS = 200, 300_000  # the most draws, and weights of images, that are computed at once: they fit the cache
LABELS = {"auc": "AUC", "brier": "Brier score", "ece": "ECE", "ppv": "PPV", "npv": "NPV", "f1": "F1"}


class Bootstrap:
    """Draws of patients with replacement (Efron 1979); all images of a patient are drawn together.

    Images of one patient resemble each other, so drawing single images would give intervals that are too narrow.

    Args:
        patients: patient of each image, (N,).
        draws: number of draws.
        seed: seed of the draws.

    Raises:
        ValueError: there is no image, or an image has no patient.
    """

    def __init__(self, patients: ArrayLike, draws: int = DRAWS, seed: int = 0) -> None:
        self.patient_index = pd.factorize(pd.Series(patients))[0]  # (N,)
        if not len(self.patient_index) or self.patient_index.min() < 0:
            raise ValueError("a bootstrap over patients needs at least one image, and a patient for each image")
        self.patients = int(self.patient_index.max()) + 1
        counts = np.random.default_rng(seed).multinomial(self.patients, [1 / self.patients] * self.patients, draws)
        self.counts = counts.astype(float)  # how often each patient occurs in each draw, (draws, patients)

    @np.errstate(invalid="ignore", divide="ignore")
    def interval(self, statistic: Callable[[Array], Array], draws: int | None = None) -> Interval:
        """A statistic of the images with its 95% percentile interval; draws where it is undefined are left out.

        The difference of two models on the same images is such a statistic, and draws the patients of both alike:
        `lambda weights: weighted_auc(positive, second, weights) - weighted_auc(positive, first, weights)`.

        Args:
            statistic: function from weights of the images (d, N), which say how often each image occurs in each draw,
                to the statistic of each draw, (d,), with NaN where it is undefined.
            draws: use only the first draws, for a statistic that is slow to compute.

        Returns:
            value, low, high; None for what is undefined or infinite.
        """
        counts = self.counts[:draws]
        size = max(1, min(BATCH, WEIGHTS // len(self.patient_index)))
        batches = np.split(counts, range(size, len(counts), size))
        drawn = np.concatenate([statistic(np.take(batch, self.patient_index, axis=1)) for batch in batches])
        value = statistic(np.ones((1, len(self.patient_index))))[0]
        # With a single patient all draws are the same, and the interval would have no width.
        known = self.patients > 1 and not np.isnan(value) and not np.isnan(drawn).all()
        low, high = np.nanquantile(drawn, (0.025, 0.975), method="closest_observation") if known else (np.nan, np.nan)
        numbers = {"value": value, "low": low, "high": high}
        return {name: float(number) if np.isfinite(number) else None for name, number in numbers.items()}

    def ratio(self, numerator: ArrayLike, denominator: ArrayLike = 1) -> Interval:
        """The ratio of two sums over images, (N,) each, with its interval; without a denominator, the mean."""
        above, below = (part.astype(float) for part in np.broadcast_arrays(numerator, denominator))
        return self.interval(lambda weights: (weights @ above) / (weights @ below))

    def share(self, hits: ArrayLike, denominator: ArrayLike = 1) -> Interval:
        """A share with its interval, as `ratio`, for hits and denominators that are 0 or 1.

        Where all images agree, so do all draws; then the interval is Wilson's, counting patients.
        """
        found = self.ratio(hits, denominator)
        if found["value"] in (0.0, 1.0) and found["low"] is not None:
            counted = np.broadcast_to(np.asarray(denominator) > 0, self.patient_index.shape)
            patients = len(np.unique(self.patient_index[counted]))
            return share_interval(round(found["value"] * patients), patients)
        return found


def share_interval(hits: int, n: int) -> Interval:
    """A share with its 95% Wilson interval (Wilson 1927), for independent trials.

    Args:
        hits: number of hits.
        n: number of trials, at least 1.

    Returns:
        value, low, high.

    Raises:
        ValueError: `n` is 0, or `hits` is not between 0 and `n`.
    """
    low, high = binomtest(hits, n).proportion_ci(method="wilson")
    return {"value": hits / n, "low": float(low), "high": float(high)}


def format_interval(interval: Interval, digits: int = 3) -> str:
    """An interval as text: `0.957 (0.941 to 0.970)`, with a dash for what does not exist."""
    numbers = map(interval.get, ("value", "low", "high"))
    value, low, high = ("–" if number is None else f"{number:.{digits}f}" for number in numbers)
    return f"{value} ({low} to {high})" if (low, high) != ("–", "–") else value


def format_table(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """A table to be shown: intervals and numbers as text, and the names of figures in words."""

    def as_text(cell: Any) -> Any:
        if isinstance(cell, dict):
            return format_interval(cell, digits)
        return f"{cell:.{digits}f}" if isinstance(cell, float) else cell

    return table.map(as_text).rename(columns=lambda name: LABELS.get(name, str(name).replace("_", " ")))


@np.errstate(invalid="ignore")
def weighted_auc(positive: Array, score: Array, weights: Array) -> Array:
    """Area under the ROC curve per row of weights; ties count half.

    Args:
        positive: whether each image is of class 1, (N,).
        score: score of each image, (N,).
        weights: weight of each image, (D, N).

    Returns:
        One area per row, (D,); NaN where a row has weight on one class only.
    """
    ups, downs = _weight_per_level(positive, score, weights)
    wins = ups * (np.cumsum(downs, axis=1) - downs / 2)
    return np.asarray(wins.sum(axis=1) / (ups.sum(axis=1) * downs.sum(axis=1)))


@np.errstate(invalid="ignore")
def weighted_precision(positive: Array, score: Array, weights: Array) -> Array:
    """Average precision per row of weights, as scikit-learn defines it; arguments as for `weighted_auc`.

    Returns:
        One figure per row, (D,); NaN where a row has no weight on class 1.
    """
    ups, downs = (part[:, ::-1] for part in _weight_per_level(positive, score, weights))  # highest score first
    hits = np.cumsum(ups, axis=1)
    return np.asarray(np.nan_to_num(ups * hits / (hits + np.cumsum(downs, axis=1))).sum(axis=1) / hits[:, -1])


def _weight_per_level(positive: Array, score: Array, weights: Array) -> list[Array]:
    """Weight of class 1 and of class 0 at each distinct score, lowest score first, (D, levels) each."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
    return [np.add.reduceat((weights * part)[:, order], starts, axis=1) for part in (positive, ~positive)]
