"""Figures about a model: its training, its results, its calibration."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

from xray_helpers.plots.style import BAD, GOOD, Array, describe, new_axes, panels, sentences, styles

Points = Mapping[str, Mapping[str, Any]]


def training_curves(history: pd.DataFrame, title: str) -> Figure:
    """Loss and AUC by epoch; the epoch with the lowest validation loss is marked.

    Args:
        history: as in `history.csv`; epoch 0 is the head alone.
        title: title of the figure.
    """
    figure, (left, right) = panels(title, 1, 2, (11, 3.4))
    epochs, best = history["epoch"], history.loc[history["val_loss"].idxmin()]
    left.plot(epochs, history["train_loss"], "o--", color=GOOD, label="train (augmented)")
    for ax, column in ((left, "val_loss"), (right, "val_auc")):
        ax.plot(epochs, history[column], "o-", color=GOOD, label="validation")
        ax.plot(best["epoch"], best[column], "*", ms=16, color=BAD, label="kept: lowest validation loss")
        ax.set(xticks=epochs, xlabel="epoch (0: the head alone)" if 0 in set(epochs) else "epoch")
    losses = sentences(history, "epoch {epoch}: train {train_loss:.3f}, validation {val_loss:.3f}")
    describe(left, "Loss", losses, ylabel="cross-entropy (nats)")
    describe(right, "AUC", sentences(history, "epoch {epoch}: {val_auc:.3f}"), ylabel="AUC")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
    return figure


def operating_curves(truth: Array, probability: Array, points: Points, positive: str, title: str) -> Figure:
    """The ROC curve and the precision-recall curve, with operating points.

    Args:
        truth: 0 or 1, (N,).
        probability: of class 1, (N,).
        points: name → threshold, sensitivity, specificity and ppv, as `at` in `metrics.evaluate`; what has no
            threshold is left out.
        positive: name of class 1.
        title: title of the figure.
    """
    figure, (left, right) = panels(title, 1, 2, (11, 4.6))
    for kind, ax in ((RocCurveDisplay, left), (PrecisionRecallDisplay, right)):
        drawn = kind.from_predictions(truth, probability, ax=ax, plot_chance_level=True)
        drawn.line_.set(color=GOOD, linewidth=2.5, label="_curve")  # a name with _ stays out of the legend
    parts = [f"{positive}, n = {len(truth):,}"]
    marked = [name for name, point in points.items() if "threshold" in point]
    for name, shade, marker, _ in styles(dict.fromkeys(marked, BAD)):
        hits, rejections, precision = (points[name][key]["value"] for key in ("sensitivity", "specificity", "ppv"))
        label = f"{name}: p ≥ {points[name]['threshold']:.3g}"
        for ax, x, y in ((left, 1 - rejections, hits), (right, hits, precision)):
            if y is not None:
                ax.plot(x, y, marker, color=shade, ms=10, markeredgecolor="black", clip_on=False, label=label)
        parts.append(f"{name} sensitivity {hits:.3f}, specificity {rejections:.3f}")
    found, missed = f"sensitivity ({positive} found)", f"1 − specificity (others called {positive})"
    describe(left, "ROC curve", parts, xlabel=missed, ylabel=found, aspect="auto")
    describe(right, "Precision-recall curve", parts, xlabel=found, ylabel="precision (PPV)", aspect="auto")
    right.set_ylim(min(0.45, np.mean(truth) - 0.05), 1.02)
    left.legend(loc="lower right", frameon=False)
    right.legend(loc="lower left", frameon=False)
    return figure


def confusions(points: Points, classes: Sequence[str], title: str) -> Figure:
    """A confusion matrix for each rule of decision, the truth in rows; shares are of the row.

    Args:
        points: name → threshold and confusion (tn, fp, fn, tp), or confusion alone (one row per class).
        classes: names of the classes.
        title: title of the figure.
    """
    figure, axes = panels(title, 1, len(points), (4.2 * len(points), 3.6))
    for ax, (name, point) in zip(axes, points.items(), strict=True):
        cells = point["confusion"]
        flat = [cells[key] for key in ("tn", "fp", "fn", "tp")] if isinstance(cells, Mapping) else cells
        counts = np.reshape(flat, (len(classes), len(classes)))
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        texts = np.vectorize("{:,}\n{:.1%}".format)(counts, shares)
        names = {"xticklabels": classes, "yticklabels": classes, "annot_kws": {"fontsize": 13}}
        sns.heatmap(shares, annot=texts, fmt="", cmap="Blues", vmin=0, vmax=1.3, cbar=False, ax=ax, **names)
        called = f"called {' / '.join(classes)}: "
        parts = [f"{true} {called}{' / '.join(map(str, row))}" for true, row in zip(classes, counts, strict=True)]
        rule = f"{name}: p ≥ {point['threshold']:.3g}" if "threshold" in point else "The likeliest class"
        describe(ax, rule, parts, xlabel="prediction", ylabel="truth")
    return figure


def heat_map(table: pd.DataFrame, title: str, xlabel: str, ax: Axes | None = None) -> Axes:
    """A table of AUCs, from chance (0.5, black) to 1 (white), with its numbers.

    Args:
        table: rows and columns with their names.
        title: title of the figure.
        xlabel: what the columns are.
        ax: where to draw; a new figure by default.
    """
    ax = ax or new_axes(0.3 * len(table) + 1.2)
    sns.heatmap(table, annot=True, fmt=".3f", vmin=0.5, vmax=1, cmap="Greys_r", cbar_kws={"label": "AUC"}, ax=ax)
    parts = [f"{name} {', '.join(row.map('{:.3f}'.format))}" for name, row in table.iterrows()]
    return describe(ax, title, parts, xlabel=xlabel, ylabel="")


def reliability(truth: Array, columns: Mapping[str, Array], title: str) -> Figure:
    """How often class 1 is true among images of about the same probability, and how many such images there are.

    Args:
        truth: 0 or 1, (N,).
        columns: name → probabilities of class 1, (N,).
        title: title of the figure.
    """
    figure, (top, bottom) = panels("", 2, 1, (7, 5.6), sharex=True, height_ratios=(3, 1))
    parts = []
    for name, shade, marker, line in styles(dict(zip(columns, cycle((BAD, GOOD)), strict=False))):
        style: dict[str, Any] = {"color": shade, "linestyle": line, "marker": marker, "markersize": 8}
        curve = CalibrationDisplay.from_predictions(truth, columns[name], n_bins=10, name=name, ax=top, **style)
        bottom.stairs(*np.histogram(columns[name], 10, (0, 1)), color=shade, linestyle=line, linewidth=2)
        bins = pd.DataFrame({"p": curve.prob_pred, "true": curve.prob_true})
        parts.append(f"{name}: " + ", ".join(sentences(bins, "{p:.2f} → {true:.2f}")))
    bottom.set(xlabel="probability (ten bins of equal width)", ylabel="images", yscale="log", ylim=(0.8, None))
    top.legend(frameon=False)
    describe(top, title, parts, xlabel="", ylabel="share of the class in truth")
    return figure
