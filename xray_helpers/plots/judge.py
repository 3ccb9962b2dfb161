"""Figures that judge a model: curves, confusions, calibration, and what it saw in each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from xray_helpers.plots.style import BAD, GOOD, LINES, MARKERS, NEUTRAL, describe

BINS = 10


def operating_curves(
    truth: NDArray[Any], probability: NDArray[Any], points: Mapping[str, Mapping[str, Any]], positive: str, title: str
) -> Figure:
    """The ROC curve and the precision-recall curve, with operating points.

    Args:
        truth: 0 or 1, (N,).
        probability: of class 1, (N,).
        points: name → threshold, sensitivity, specificity and ppv, as `at` in `metrics.evaluate`.
        positive: name of class 1.
        title: title of the figure.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    misses, hits, _ = roc_curve(truth, probability)
    precision, recall, _ = precision_recall_curve(truth, probability)
    left.plot(misses, hits, color=GOOD, lw=2.5)
    left.plot([0, 1], [0, 1], color=NEUTRAL, ls="--", label="guessing")
    right.plot(recall, precision, color=GOOD, lw=2.5)
    right.axhline(np.mean(truth), color=NEUTRAL, ls="--", label=f"always {positive}")
    for (name, point), marker in zip(points.items(), MARKERS, strict=False):
        style: dict[str, Any] = {"marker": marker, "ms": 10, "ls": "", "color": BAD, "markeredgecolor": "black"}
        values = {key: point[key]["value"] for key in ("sensitivity", "specificity", "ppv")}
        label = f"{name}: p ≥ {point['threshold']:.3g}"
        left.plot(1 - values["specificity"], values["sensitivity"], label=label, **style)
        if values["ppv"] is not None:
            right.plot(values["sensitivity"], values["ppv"], label=label, **style)
    left.set(xlabel=f"1 − specificity (others called {positive})", ylabel=f"sensitivity ({positive} found)")
    right.set(
        xlabel=f"sensitivity ({positive} found)",
        ylabel="precision (PPV)",
        ylim=(min(0.45, np.mean(truth) - 0.05), 1.02),
    )
    parts = [
        f"{name} sensitivity {point['sensitivity']['value']:.3f}, specificity {point['specificity']['value']:.3f}"
        for name, point in points.items()
    ]
    for ax, name in ((left, "ROC curve"), (right, "Precision-recall curve")):
        ax.legend(frameon=False, loc="lower right" if ax is left else "lower left")
        describe(ax, name, parts)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    return figure


def confusions(points: Mapping[str, Mapping[str, Any]], classes: Sequence[str], title: str) -> Figure:
    """A confusion matrix for each operating point, the truth in rows; shares are of the row.

    Args:
        points: name → threshold and confusion (tn, fp, fn, tp).
        classes: names of both classes.
        title: title of the figure.
    """
    figure, axes = plt.subplots(1, len(points), figsize=(4.2 * len(points), 3.6), squeeze=False, layout="constrained")
    for ax, (name, point) in zip(axes.flat, points.items(), strict=True):
        counts = np.array([[point["confusion"][key] for key in row] for row in (("tn", "fp"), ("fn", "tp"))])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1.3)  # never so dark that black text is lost
        for (row, column), count in np.ndenumerate(counts):
            ax.text(column, row, f"{count:,}\n{shares[row, column]:.1%}", ha="center", va="center", fontsize=13)
        ax.set_xticks([0, 1], classes)
        ax.set_yticks([0, 1], classes, rotation=90, va="center")
        ax.set(xlabel="answer", ylabel="truth")
        ax.grid(visible=False)
        describe(
            ax, f"{name}: p ≥ {point['threshold']:.3g}", [f"{key} {count}" for key, count in point["confusion"].items()]
        )
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    return figure


def reliability(truth: NDArray[Any], columns: Mapping[str, NDArray[Any]], title: str) -> Figure:
    """How often class 1 is true among images of about the same probability, and how many such images there are.

    Args:
        truth: 0 or 1, (N,).
        columns: name → probabilities of class 1, (N,).
        title: title of the figure.
    """
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(7, 5.6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    top.plot([0, 1], [0, 1], color=NEUTRAL, ls="--", label="probability = frequency")
    edges, parts = np.linspace(0, 1, BINS + 1), []
    for position, (name, column) in enumerate(columns.items()):
        bin_of = np.clip(np.digitize(column, edges) - 1, 0, BINS - 1)
        table = (
            pd.DataFrame({"bin": bin_of, "p": column, "y": truth}).groupby("bin").agg(p=("p", "mean"), y=("y", "mean"))
        )
        shade = (BAD, GOOD)[position % 2]
        top.plot(table["p"], table["y"], LINES[position], marker=MARKERS[position], ms=8, color=shade, label=name)
        bottom.stairs(np.bincount(bin_of, minlength=BINS), edges, color=shade, ls=LINES[position], lw=2)
        parts.append(f"{name}: " + ", ".join(f"{row.p:.2f} → {row.y:.2f}" for row in table.itertuples()))
    top.set(ylabel="share of the class in truth")
    bottom.set(xlabel="probability (ten bins of equal width)", ylabel="images", yscale="log")
    top.legend(frameon=False)
    describe(top, title, parts)
    return figure


def overlays(
    images: NDArray[Any],
    maps: NDArray[Any],
    titles: Sequence[str],
    heading: str,
    unit: str,
    outlines: NDArray[np.bool_] | None = None,
    columns: int = 4,
) -> Figure:
    """Radiographs under the maps of what speaks for a class and against it; a cross marks the strongest place for it.

    Args:
        images: gray images, uint8 (N, H, W).
        maps: float (N, h, w), in `unit`; smaller ones are drawn smoothly to the size of the images.
        titles: one an image.
        heading: title of the figure.
        unit: what the colours count.
        outlines: masks to draw the edge of, bool (N, H, W), such as known lesions.
        columns: images a row.
    """
    rows = -(-len(images) // columns)
    shape = (2.7 * columns + 0.9, 2.5 * rows + 0.6)
    figure, axes = plt.subplots(rows, columns, figsize=shape, dpi=72, squeeze=False, layout="constrained")
    limit = max(float(np.abs(maps).max()), 1e-6)
    for ax in axes.flat:
        ax.set_axis_off()
    for number, (ax, image, seen, title) in enumerate(zip(axes.flat, images, maps, titles, strict=False)):
        height, width = image.shape
        ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        place: dict[str, Any] = {"extent": (-0.5, width - 0.5, height - 0.5, -0.5), "interpolation": "bicubic"}
        shown = ax.imshow(seen, cmap="PuOr_r", vmin=-limit, vmax=limit, alpha=0.45, **place)
        if outlines is not None:
            ax.contour(outlines[number], levels=[0.5], colors="white", linewidths=1.5)
        ax.set_title(title, fontsize=11, fontweight="normal")
        row, column = np.unravel_index(seen.argmax(), seen.shape)
        left, top = (column + 0.5) / seen.shape[1], (row + 0.5) / seen.shape[0]
        ax.plot(left * width, top * height, "P", ms=9, color="white", markeredgecolor="black")
        where = f"most for it at {left:.0%} from the left and {top:.0%} from the top"
        ax.set_label(f"{title}, {where}.".replace("\n", ", "))
    figure.colorbar(shown, ax=axes, label=unit, shrink=0.8)
    figure.suptitle(heading, x=0.01, ha="left", fontweight="bold", fontsize=14)
    return figure
