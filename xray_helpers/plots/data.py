"""Every figure of the series, in one house style, from plain arrays and DataFrames.

Each function draws into `ax` (a new figure when None) and returns it. What was drawn, in words and with its
numbers, becomes the axes' label, which `show` passes on as the picture's alt text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Told apart by colour-blind readers and in grayscale (from light to dark); hatches help in print.
COLOURS = {"NORMAL": "#9CCBEB", "normal": "#9CCBEB", "bacterial": "#DD7A32", "viral": "#5E2A73", "PNEUMONIA": "#A63C1C"}
HATCHES = {"NORMAL": "", "normal": "", "bacterial": "//", "viral": "..", "PNEUMONIA": "xx"}
OTHERS = ("#9CCBEB", "#DD7A32", "#5E2A73", "#4F9D69", "#2B2D42")  # classes of other datasets, in order
GOOD, BAD, NEUTRAL = "#3A6EA5", "#A63C1C", "#7A7A7A"


def use_house_style() -> None:
    """Set fonts, sizes and grid of every figure, and the width of every table, for this session."""
    pd.options.display.max_colwidth = 90
    sns.set_theme(style="whitegrid", context="notebook", font="DejaVu Sans")
    plt.rcParams.update(
        {"figure.dpi": 110, "axes.titleweight": "bold", "axes.titlesize": 12, "axes.titlelocation": "left"}
    )


def colour(name: str, position: int = 0) -> str:
    """The colour of a class or cause, the same in every figure; by `position` for classes of other datasets."""
    return COLOURS.get(name, OTHERS[position % len(OTHERS)])


def show(drawn: Axes | Figure, whose: str, alt: str = "") -> None:
    """Display a figure with its alt text and a note on whose images it is about, and close it.

    Args:
        drawn: a figure, or any of its axes.
        whose: `Settings.whose`; stands under the figure, so that it stays with a copy of the picture.
        alt: what the picture shows, in words; by default the descriptions its axes carry.
    """
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    figure.supxlabel(f"Data: {whose}", x=0.99, ha="right", fontsize=8, color=NEUTRAL)
    labels = [str(axes.get_label()) for axes in figure.axes]
    text = alt or " ".join(label for label in labels if label and not label.startswith(("<", "_")))
    display(figure, metadata={"image/png": {"alt": f"{text} Data: {whose}."}})
    plt.close("all")


def gallery(images: Sequence[NDArray[Any]], titles: Sequence[str], heading: str, columns: int = 4) -> Figure:
    """Radiographs side by side, each with its title.

    Args:
        images: gray images, uint8 (H, W) each, of any sizes.
        titles: one a image.
        heading: title of the figure.
        columns: images a row.
    """
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.7 * columns, 2.5 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        ax.set_title(title, fontsize=9, fontweight="normal")
        ax.set_label(f"{title}.")
    figure.suptitle(heading, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure


def interval_widths(table: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """How wide the 95% interval of an accuracy is, by the number of images it was measured on.

    Args:
        table: one row a set of images, with columns name, n, accuracy, low and high (shares).
        title: title of the figure.
        ax: where to draw.
    """
    ax = ax or plt.subplots(figsize=(8, 0.6 * len(table) + 1.5), layout="constrained")[1]
    place = np.arange(len(table))
    ax.hlines(place, table["low"], table["high"], color=GOOD, linewidth=6)
    ax.plot(table["accuracy"], place, "o", color="white", markeredgecolor="black", zorder=3)
    for y, row in zip(place, table.itertuples(), strict=True):
        ax.annotate(f"{row.low:.1%} to {row.high:.1%}", (1.01, y), xycoords=("axes fraction", "data"), va="center")
    ax.set_yticks(place, [f"{row.name}\n{row.n:,} images" for row in table.itertuples()])
    ax.grid(visible=False, axis="y")
    ax.set(xlabel="accuracy (circle: measured; bar: 95% Wilson interval)", ylim=(len(table) - 0.5, -0.5))
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.set_title(title)
    parts = [f"{row.name}, {row.n} images: {row.low:.1%} to {row.high:.1%}" for row in table.itertuples()]
    ax.set_label(f"{title}: {'; '.join(parts)}.")
    return ax


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
    ax.set_title(title)
    parts = [f"{row.name} {row.share:.1%}, {row.images} images" for row in table.itertuples()]
    ax.set_label(f"{title}: {'; '.join(parts)}.".replace("\n", " "))
    return ax


def balance(counts: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Stacked bars of the share of each class or cause in each split.

    Args:
        counts: images, one row a split and one column a class or cause.
        title: title of the figure.
        ax: where to draw.
    """
    ax = ax or plt.subplots(figsize=(8, 0.55 * len(counts) + 1.6), layout="constrained")[1]
    known = [name for name in COLOURS if name in counts]
    shares = counts[known + [name for name in counts if name not in known]].div(counts.sum(axis=1), axis=0)
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
    ax.set_title(title)
    parts = [f"{split}: " + ", ".join(f"{name} {row[name]:.1%}" for name in shares) for split, row in shares.iterrows()]
    ax.set_label(f"{title}: {'; '.join(parts)}.")
    return ax
