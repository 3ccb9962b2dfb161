"""Intervals by bootstrap over patients: all draws at once, from the weight that each image has in each draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Interval = dict[str, Any]  # value, low, high; None where there is no finite number
DRAWS = 2000
PART = 200  # draws held at once


class Bootstrap:
    """Draws of patients with replacement (Efron 1979); all images of a patient are drawn together.

    Images of one patient are alike, so that images drawn one by one would give intervals that are too narrow.

    Args:
        patients: whose image each is, (N,).
        draws: how many.
        seed: their seed.

    Raises:
        ValueError: no image, or an image without a patient.
    """

    def __init__(self, patients: Sequence[object] | pd.Series, draws: int = DRAWS, seed: int = 0) -> None:
        self.owner = pd.factorize(pd.Series(patients))[0]  # (N,)
        if not len(self.owner) or self.owner.min() < 0:
            raise ValueError("an interval over patients needs images, and a patient for each of them")
        self.patients = int(self.owner.max()) + 1
        chances = np.full(self.patients, 1 / self.patients)
        self.picked = np.random.default_rng(seed).multinomial(self.patients, chances, size=draws)  # (draws, patients)

    def weights(self) -> Iterator[Floats]:
        """How often each image is in each draw, some draws at a time, (d, N)."""
        for start in range(0, len(self.picked), PART):
            yield self.picked[start : start + PART][:, self.owner].astype(float)

    def interval(self, value: float, statistic: Callable[[Floats], Floats]) -> Interval:
        """A value with its 95% percentile interval; draws without an answer are left out.

        Args:
            value: of the images themselves.
            statistic: from weights (d, N) to the same statistic in each draw, (d,), NaN where it has none.
        """
        return self._interval(value, np.concatenate([statistic(weights) for weights in self.weights()]))

    def ratio(self, numerator: ArrayLike, denominator: ArrayLike | None = None) -> Interval:
        """A ratio of two sums over images, (N,) each, with its interval; without a denominator, the mean."""
        above = np.asarray(numerator, dtype=float)
        below = np.ones(len(above)) if denominator is None else np.asarray(denominator, dtype=float)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = (self.picked @ np.bincount(self.owner, above)) / (self.picked @ np.bincount(self.owner, below))
            value = above.sum() / below.sum()
        return self._interval(value, drawn)

    def share(self, hits: ArrayLike, of: ArrayLike | None = None) -> Interval:
        """A share with its interval, as `ratio`, for hits 0 or 1.

        Where all images agree, so do all draws; then the interval is Wilson's over the patients.
        """
        found, among = self.ratio(hits, of), np.ones(len(self.owner)) if of is None else np.asarray(of, dtype=float)
        if found["value"] in (0.0, 1.0) and found["low"] is not None:
            asked = len(np.unique(self.owner[among > 0]))
            low, high = binomtest(round(found["value"] * asked), asked).proportion_ci(method="wilson")
            found |= {"low": float(low), "high": float(high)}
        return found

    def _interval(self, value: float, drawn: Floats) -> Interval:
        drawn = drawn[~np.isnan(drawn)]
        # Of a single patient all draws are alike, and an interval would be of no width.
        known = self.patients > 1 and len(drawn) > 0 and not np.isnan(value)
        low, high = np.quantile(drawn, (0.025, 0.975), method="closest_observation") if known else (np.nan, np.nan)
        return {"value": finite(value), "low": finite(low), "high": finite(high)}


def finite(value: float) -> float | None:
    """A number as JSON knows it: None instead of infinity and NaN."""
    return float(value) if np.isfinite(value) else None


def text(interval: Interval, digits: int = 3) -> str:
    """An interval to read: `0.957 (0.941 to 0.970)`, with a dash for what does not exist."""
    value, low, high = (
        "–" if interval.get(name) is None else f"{interval[name]:.{digits}f}" for name in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})" if (low, high) != ("–", "–") else value


def weighted_auc(positive: Bools, score: Floats, weights: Floats) -> Floats:
    """AUC of each row of weights (D, N), ties counting half, (D,); NaN where a draw holds one class only."""
    ups, downs = _levels(positive, score, weights)
    wins = (ups * (np.cumsum(downs, axis=1) - 0.5 * downs)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        area: Floats = wins / (ups.sum(axis=1) * downs.sum(axis=1))
    return area


def weighted_precision(positive: Bools, score: Floats, weights: Floats) -> Floats:
    """Average precision of each row of weights (D, N), as scikit-learn defines it, (D,); NaN without positives."""
    ups, downs = (part[:, ::-1] for part in _levels(positive, score, weights))  # from the highest score down
    hits = np.cumsum(ups, axis=1)
    with np.errstate(invalid="ignore"):
        precision = np.nan_to_num(hits / (hits + np.cumsum(downs, axis=1)))
        mean: Floats = (ups * precision).sum(axis=1) / hits[:, -1]
    return mean


def _levels(positive: Bools, score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives at each level of the score, from low to high, (D, levels) each."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    ranked = weights[:, order]
    ups = np.add.reduceat(ranked * positive[order], starts, axis=1)
    return ups, np.add.reduceat(ranked * ~positive[order], starts, axis=1)
