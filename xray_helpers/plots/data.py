"""Figures about tables: shares, distributions, sizes, shortcuts."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from xray_helpers.plots.style import BAD, GOOD, HATCHES, LINES, MARKERS, NEUTRAL, colour, describe, in_order


def shared_images(table: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Bars of the share of held-out images whose patient stands in train too.

    Args:
        table: one row a way to split, with columns name, share (0 to 1) and images.
        title: title of the figure.
        ax: where to draw.
    """
    ax = ax or plt.subplots(figsize=(8, 0.5 * len(table) + 1.5), layout="constrained")[1]
    bars = ax.barh(table["name"], table["share"], color=[BAD if share else GOOD for share in table["share"]])
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
    ax.bar_label(bars, [f"{row.share:.1%} of {row.images:,} images" for row in table.itertuples()], padding=5, bbox=box)
    ax.grid(visible=False, axis="y")
    ax.invert_yaxis()
    ax.set(xlim=(0, max(1.5 * table["share"].max(), 0.2)), xlabel="held-out images whose patient is also in train")
    ax.set_xticks([tick for tick in ax.get_xticks() if tick <= 1])
    ax.xaxis.set_major_formatter("{x:.0%}")
    return describe(ax, title, [f"{row.name} {row.share:.1%}, {row.images} images" for row in table.itertuples()])


def balance(counts: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Stacked bars of the share of each class or cause in each split.

    Args:
        counts: images, one row a split and one column a class or cause.
        title: title of the figure.
        ax: where to draw.
    """
    ax = ax or plt.subplots(figsize=(8, 0.55 * len(counts) + 1.6), layout="constrained")[1]
    shares = counts[in_order(list(counts))].div(counts.sum(axis=1), axis=0)
    left = np.zeros(len(shares))
    for position, name in enumerate(shares.columns):
        fill: dict[str, Any] = {
            "color": colour(str(name), position),
            "hatch": HATCHES.get(str(name), ""),
            "edgecolor": "white",
        }
        bars = ax.barh([str(split) for split in shares.index], shares[name], left=left, label=str(name), **fill)
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none"}
        ax.bar_label(bars, [f"{share:.1%}" for share in shares[name]], label_type="center", fontsize=9, bbox=box)
        left += shares[name].to_numpy()
    ax.set_yticks(range(len(counts)), [f"{split}\n{total:,} images" for split, total in counts.sum(axis=1).items()])
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(xlim=(0, 1), xlabel="share of the split's images")
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    parts = [f"{split}: " + ", ".join(f"{name} {row[name]:.1%}" for name in shares) for split, row in shares.iterrows()]
    return describe(ax, title, parts)


def share_intervals(
    table: pd.DataFrame, title: str, xlabel: str = "share of the images", ax: Axes | None = None
) -> Axes:
    """Shares with their 95% intervals, such as each class in each split.

    Args:
        table: one row a group and class, with columns group, name, n (of the group), value, low and high (shares).
        title: title of the figure.
        xlabel: what is shared.
        ax: where to draw.
    """
    groups, names = list(dict.fromkeys(table["group"])), in_order(table["name"].unique())
    ax = ax or plt.subplots(figsize=(8, 0.34 * max(len(table), 4) + 1.4), layout="constrained")[1]
    for position, name in enumerate(names):
        rows = table[table["name"] == name]
        shift = 0.7 / len(names) * (position - (len(names) - 1) / 2)
        place = np.array([groups.index(group) for group in rows["group"]]) + shift
        shade = colour(name, position) if len(names) > 1 else GOOD
        texts = [f"{row.value:.1%} ({row.low:.1%} to {row.high:.1%})" for row in rows.itertuples()]
        _draw_intervals(ax, place, rows["value"], rows, texts, position, color=shade, label=name)
    sizes = table.groupby("group")["n"].first()
    ax.set_yticks(range(len(groups)), [f"{group}\n{sizes[group]:,} images" for group in groups])
    ax.grid(visible=False, axis="y")
    ax.set(ylim=(len(groups) - 0.5, -0.5), xlabel=f"{xlabel} (bar: 95% Wilson interval)")
    ax.xaxis.set_major_formatter("{x:.0%}")
    if len(names) > 1:
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=len(names), frameon=False)
    parts = [
        f"{row.group}, {row.n} images, {row.name}: {row.value:.1%} ({row.low:.1%} to {row.high:.1%})"
        for row in table.itertuples()
    ]
    describe(ax, title, parts).set_title(title, pad=28 if len(names) > 1 else None)
    return ax


def distributions(frame: pd.DataFrame, value: str, by: str, xlabel: str, title: str, ax: Axes | None = None) -> Axes:
    """How a number is distributed in each group: histograms as outlines, each with the same area.

    Args:
        frame: one row an image (or a patient).
        value: column of the number.
        by: column of the group.
        xlabel: what the number is, with its unit.
        title: title of the figure.
        ax: where to draw.
    """
    ax = ax or plt.subplots(figsize=(8, 3), layout="constrained")[1]
    low, high, names = frame[value].min(), frame[value].max(), in_order(frame[by].unique())
    counted = pd.api.types.is_integer_dtype(frame[value]) and high - low < 40
    edges = np.arange(low - 0.5, high + 1) if counted else np.histogram_bin_edges(frame[value], bins=25)
    parts = []
    for position, name in enumerate(names):
        values = frame.loc[frame[by] == name, value]
        heights = np.histogram(values, edges, density=True)[0]
        line = LINES[position % len(LINES)]
        ax.stairs(heights, edges, color=colour(name, position), ls=line, lw=2.5, label=f"{name} (n = {len(values):,})")
        parts.append(f"{name} median {values.median():.3g}, n = {len(values)}")
    ax.set(xlabel=xlabel, ylabel="density", ylim=(0, 1.4 * ax.get_ylim()[1]))  # room for the legend
    ax.legend(facecolor="white", edgecolor="none", framealpha=1)  # over a line that marks a threshold
    return describe(ax, title, parts)


def scatter(frame: pd.DataFrame, x: str, y: str, by: str, title: str, ax: Axes | None = None) -> Axes:
    """Two numbers of each image against each other, in the colour of its class.

    Args:
        frame: one row an image.
        x: column on the horizontal axis; its name, with the unit, is the label.
        y: column on the vertical axis.
        by: column of the class.
        title: title of the figure.
        ax: where to draw.
    """
    ax = ax or plt.subplots(figsize=(8, 4.2), layout="constrained")[1]
    names = in_order(frame[by].unique())
    for position, name in enumerate(names):
        rows = frame[frame[by] == name]
        style: dict[str, Any] = {"marker": MARKERS[position % len(MARKERS)], "color": colour(name, position)}
        ax.scatter(
            rows[x],
            rows[y],
            s=16,
            alpha=0.7,
            linewidth=0.3,
            edgecolor="black",
            label=f"{name} (n = {len(rows):,})",
            **style,
        )
    ax.set(xlabel=x, ylabel=y)
    ax.legend(frameon=False)
    middle = frame.groupby(by)[[x, y]].median()
    return describe(
        ax, title, [f"{name} median {x} {middle.loc[name, x]:.0f}, {y} {middle.loc[name, y]:.0f}" for name in names]
    )


def auc_intervals(table: pd.DataFrame, title: str, what: str = "cross-validated AUC", ax: Axes | None = None) -> Axes:
    """AUCs with their 95% intervals, one line a predictor and one colour and marker a condition.

    Args:
        table: one row a predictor and condition, with columns features, condition, auc, low, high and n.
        title: title of the figure.
        what: which AUC it is.
        ax: where to draw.
    """
    names, conditions = list(dict.fromkeys(table["features"])), list(dict.fromkeys(table["condition"]))
    ax = ax or plt.subplots(figsize=(8, 0.45 * len(names) + 1.8), layout="constrained")[1]
    for position, condition in enumerate(conditions):
        rows = table[table["condition"] == condition]
        place = np.array([names.index(name) for name in rows["features"]]) + 0.3 * (
            position - (len(conditions) - 1) / 2
        )
        shade = (BAD, GOOD, NEUTRAL)[position]
        texts = [f"{auc:.3f}" for auc in rows["auc"]]
        _draw_intervals(ax, place, rows["auc"], rows, texts, position, color=shade, label=condition)
    ax.axvline(0.5, color=NEUTRAL, linestyle="--")
    ax.set_yticks(range(len(names)), names)
    ax.grid(visible=False, axis="y")
    ax.set(ylim=(len(names) - 0.5, -0.5), xlim=(min(0.4, table["low"].min() - 0.02), 1.005))
    ax.set_xlabel(f"{what} (bar: 95% interval over patients; dashed: chance; n = {table['n'].iloc[0]:,})")
    if len(conditions) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1.08, 1), frameon=False)
    return describe(
        ax,
        title,
        [
            f"{row.features}, {row.condition}: {row.auc:.3f} ({row.low:.3f} to {row.high:.3f})"
            for row in table.itertuples()
        ],
    )


def rates(table: pd.DataFrame, title: str, xlabel: str = "images a second", ax: Axes | None = None) -> Axes:
    """Bars of rates on a logarithmic axis, each with its value and how many times the first it is.

    Args:
        table: one row a bar, with columns name and rate.
        title: title of the figure.
        xlabel: what the rate counts.
        ax: where to draw.
    """
    ax = ax or plt.subplots(figsize=(8, 0.5 * len(table) + 1.4), layout="constrained")[1]
    first = table["rate"].iloc[0]
    texts = [f"{rate:,.0f} ({rate / first:.3g} ×)" for rate in table["rate"]]
    bars = ax.barh(table["name"], table["rate"], color=[NEUTRAL] + [GOOD] * (len(table) - 1))
    ax.bar_label(bars, texts, padding=5)
    ax.set_xscale("log")
    ax.set(xlim=(first / 5, 12 * table["rate"].max()), xlabel=f"{xlabel} (logarithmic)")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.grid(visible=False, axis="y")
    ax.invert_yaxis()
    return describe(ax, title, [f"{name} {text}" for name, text in zip(table["name"], texts, strict=True)])


def _draw_intervals(
    ax: Axes, place: NDArray[Any], values: pd.Series, rows: pd.DataFrame, texts: list[str], position: int, **style: Any
) -> None:
    """One series of horizontal intervals (`rows`' low and high), each with its value and a text at the right."""
    ax.hlines(place, rows["low"], rows["high"], color=style["color"], linewidth=5)
    marker = MARKERS[position % len(MARKERS)]
    ax.plot(values, place, linestyle="", marker=marker, markeredgecolor="black", zorder=3, **style)
    for y, text in zip(place, texts, strict=True):
        ax.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9)
