"""Figures about a model: its training, its mistakes."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xray_helpers.plots.style import BAD, GOOD, NEUTRAL, describe


def rate_sweep(found: pd.DataFrame, chosen: float, title: str, ax: Axes | None = None) -> Axes:
    """The loss while the learning rate grows, and the rate in use.

    Args:
        found: from `find_learning_rate`, with columns learning_rate, loss and smoothed.
        chosen: the learning rate in use.
        title: title of the figure.
        ax: where to draw.
    """
    ax = ax or plt.subplots(figsize=(8, 3.2), layout="constrained")[1]
    ax.plot(found["learning_rate"], found["loss"], color=NEUTRAL, lw=1, label="each step")
    ax.plot(found["learning_rate"], found["smoothed"], color=GOOD, lw=2.5, label="smoothed")
    ax.axvline(chosen, color=BAD, ls="--", label=f"in use: {chosen:.0e}")
    ax.set_xscale("log")
    ax.set(xlabel="learning rate of the head (logarithmic)", ylabel="training loss")
    ax.legend(frameon=False)
    least = found.loc[found["smoothed"].idxmin()]
    parts = [f"least smoothed loss {least['smoothed']:.3f} at {least['learning_rate']:.1e}", f"in use {chosen:.0e}"]
    return describe(ax, title, parts)


def training_curves(history: pd.DataFrame, title: str) -> Figure:
    """Loss and AUC by epoch; the epoch with the lowest validation loss is marked.

    Args:
        history: as in `history.csv`; epoch 0 is the head alone.
        title: title of the figure.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
    best = history.loc[history["val_loss"].idxmin()]
    for column, style, name in (("train_loss", "--", "train (augmented)"), ("val_loss", "-", "validation")):
        left.plot(history["epoch"], history[column], style, marker="o", color=GOOD, label=name)
    right.plot(history["epoch"], history["val_auc"], marker="o", color=GOOD, label="validation")
    for ax, column in ((left, "val_loss"), (right, "val_auc")):
        ax.plot(best["epoch"], best[column], marker="*", ms=16, color=BAD, ls="", label="kept: lowest validation loss")
        ax.set_xticks(history["epoch"])
        ax.set_xlabel("epoch (0: the head alone)" if 0 in set(history["epoch"]) else "epoch")
    left.set_ylabel("cross-entropy (nats)")
    right.set_ylabel("AUC")
    describe(
        left,
        "Loss",
        [f"epoch {r.epoch}: train {r.train_loss:.3f}, validation {r.val_loss:.3f}" for r in history.itertuples()],
    )
    describe(right, "AUC", [f"epoch {r.epoch}: {r.val_auc:.3f}" for r in history.itertuples()])
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    return figure
