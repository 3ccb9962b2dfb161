"""Figures beside figures: parts of the images, and two runs on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from xray_helpers.bootstrap import DRAWS, Bootstrap, Floats, Interval, weighted_auc
from xray_helpers.calibration import check_binary
from xray_helpers.metrics import Patients, check_scores, decisions

NOTHING: Interval = {"value": None, "low": None, "high": None}
SHOWN = ("auc", "accuracy", "sensitivity", "specificity")


def subgroups(
    table: pd.DataFrame, groups: Mapping[str, ArrayLike], threshold: float = 0.5, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """The same figures for parts of the images.

    Args:
        table: one row an image, with columns truth (0 or 1), probability and patient.
        groups: what the images are grouped by → group of each image, (N,).
        threshold: of the probability.
        draws: bootstrap draws.
        seed: their seed.

    Returns:
        One row a group: by, group, n, patients, positive (images of class 1), and auc, accuracy, sensitivity and
        specificity, each with value, low and high; None where a group has one class only.

    Raises:
        ValueError: a label, a probability or a patient is missing or no such thing.
    """
    rows: list[dict[str, object]] = []
    for by, names in groups.items():
        for name, part in table.groupby(np.asarray(names), sort=True):
            positive, chance = check_binary(part["truth"], part["probability"])
            bootstrap = Bootstrap(part["patient"], draws, seed)
            both = positive.any() and not positive.all()
            auc = NOTHING
            if both:
                area = partial(weighted_auc, positive, chance)
                auc = bootstrap.interval(roc_auc_score(positive, chance), area)
            found = {"auc": auc, **decisions(positive, chance >= threshold, bootstrap)}
            counts = {"n": len(part), "patients": bootstrap.patients, "positive": int(positive.sum())}
            rows.append({"by": by, "group": name, **counts} | {name: found[name] for name in SHOWN})
    return pd.DataFrame(rows)


def compare(
    truth: ArrayLike, first: ArrayLike, second: ArrayLike, patients: Patients, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """Two runs on the same images: how much better the second is, by paired bootstrap over patients.

    Args:
        truth: 0 or 1, (N,).
        first: probabilities of one run, (N,).
        second: of the other, for the same images in the same order.
        patients: whose image each is, (N,).
        draws: bootstrap draws.
        seed: their seed.

    Returns:
        One row a figure (auc, accuracy at 0.5, brier): first, second, difference, low and high (of the difference).
        The runs differ where the interval leaves 0 out.

    Raises:
        ValueError: as `evaluate`.
    """
    labels, one = check_scores(truth, first, patients)
    two = check_scores(truth, second, patients)[1]
    positive, bootstrap = labels == 1, Bootstrap(patients, draws, seed)
    areas = [float(roc_auc_score(positive, column)) for column in (one, two)]
    found = {
        "auc": bootstrap.interval(
            areas[1] - areas[0],
            lambda weights: weighted_auc(positive, two, weights) - weighted_auc(positive, one, weights),
        )
    }
    means = {"auc": areas}
    for name, of in (("accuracy", lambda p: (p >= 0.5) == positive), ("brier", lambda p: (p - positive) ** 2)):
        each = [np.asarray(of(column), dtype=float) for column in (one, two)]
        means[name] = [float(values.mean()) for values in each]
        found[name] = bootstrap.ratio(each[1] - each[0])
    return pd.DataFrame(
        [(name, *means[name], *found[name].values()) for name in found],
        columns=["figure", "first", "second", "difference", "low", "high"],
    )


def rank_correlation(
    first: ArrayLike, second: ArrayLike, patients: Patients, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Spearman's rank correlation with its 95% interval by bootstrap over patients; None where one is constant."""
    ranks = [rankdata(values) - (len(patients) + 1) / 2 for values in (first, second)]

    def correlation(weights: Floats) -> Floats:
        means = [weights @ rank / weights.sum(axis=1) for rank in ranks]
        x, y = (rank - mean[:, None] for rank, mean in zip(ranks, means, strict=True))  # (D, N) each
        with np.errstate(invalid="ignore"):
            found: Floats = (weights * x * y).sum(axis=1) / np.sqrt(
                (weights * x**2).sum(axis=1) * (weights * y**2).sum(axis=1)
            )
        return found

    value = float(correlation(np.ones((1, len(patients))))[0])
    return Bootstrap(patients, draws, seed).interval(value, correlation)
