"""Figures about data: shares, distributions, intervals, and the radiographs themselves."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xray_helpers.plots.style import BAD, GOOD, NEUTRAL, Array, describe, new_axes, palette, panels, sentences, styles

HATCHES = {"bacterial": "//", "viral": "..", "PNEUMONIA": "xx"}
EMPTY = {"frame_on": False, "xticks": [], "yticks": []}  # axes that show nothing but an image
WHITE_BOX = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none"}  # behind text


def bars(table: pd.DataFrame, value: str, text: str, title: str, xlabel: str, ax: Axes | None = None) -> Axes:
    """Horizontal bars of one column, each with its numbers beside it.

    Args:
        table: one row per bar, with a column name.
        value: column that gives the lengths.
        text: template of what stands beside a bar, filled in from its row, such as "{share:.1%} of {images:,}".
        title: title of the figure.
        xlabel: what the lengths are, with their unit.
        ax: where to draw; a new figure by default.
    """
    ax = ax or new_axes(0.5 * len(table) + 1.5)
    drawn = ax.barh(range(len(table)), table[value], color=GOOD)
    ax.bar_label(drawn, sentences(table, text), padding=5, bbox=WHITE_BOX)
    ax.set(xlim=(0, 1.5 * max(table[value].max(), 0.1)), xlabel=xlabel)  # leaves room for the texts
    return _label_rows(ax, list(table["name"]), title, sentences(table, "{name} " + text))


def balance(counts: pd.DataFrame, title: str, ax: Axes | None = None) -> Axes:
    """Stacked bars of the share of each class or cause in each split.

    Args:
        counts: numbers of images, one row per split and one column per class or cause.
        title: title of the figure.
        ax: where to draw; a new figure by default.
    """
    ax, colours, totals = ax or new_axes(0.55 * len(counts) + 1.6), palette(counts), counts.sum(axis=1)
    shares = counts[list(colours)].div(totals, axis=0)
    starts = shares.cumsum(axis=1) - shares
    for name, shade in colours.items():
        style: dict[str, Any] = {"color": shade, "edgecolor": "white", "hatch": HATCHES.get(name), "label": name}
        bars = ax.barh(range(len(shares)), shares[name], left=starts[name], **style)
        ax.bar_label(bars, fmt="{:.1%}", label_type="center", fontsize=9, bbox=WHITE_BOX)
    ax.set(xlim=(0, 1), xlabel="share of the split's images")
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    parts = [f"{split}: " + ", ".join(f"{name} {row[name]:.1%}" for name in shares) for split, row in shares.iterrows()]
    return _label_rows(ax, [f"{split}\n{total:,} images" for split, total in totals.items()], title, parts)


def share_intervals(table: pd.DataFrame, title: str, xlabel: str = "share of images", ax: Axes | None = None) -> Axes:
    """Shares with their 95% intervals, such as each class in each split.

    Args:
        table: one row per group and class, with columns group, name, n (of the group), value, low and high (shares).
        title: title of the figure.
        xlabel: what the shares are of.
        ax: where to draw; a new figure by default.
    """
    colours = palette(table["name"]) if table["name"].nunique() > 1 else {table["name"].iloc[0]: GOOD}
    ax = _intervals(table.assign(group=sentences(table, "{group}\n{n:,} images")), colours, ".1%", title, ax)
    ax.set_xlabel(f"{xlabel} (bar: 95% Wilson interval)")
    ax.xaxis.set_major_formatter("{x:.0%}")
    return ax


def auc_intervals(table: pd.DataFrame, title: str, xlabel: str = "cross-validated AUC", ax: Axes | None = None) -> Axes:
    """AUCs with their 95% intervals: one line per predictor, one colour and marker per condition.

    Args:
        table: one row per predictor and condition, with columns features, condition, auc, low, high and n.
        title: title of the figure.
        xlabel: which AUC it is.
        ax: where to draw; a new figure by default.
    """
    colours = dict(zip(table["condition"].unique(), cycle((BAD, GOOD, NEUTRAL)), strict=False))
    table = table.assign(group=table["features"], name=table["condition"], value=table["auc"])
    ax = _intervals(table, colours, ".3f", title, ax)
    ax.axvline(0.5, color=NEUTRAL, linestyle="--")
    ax.set_xlim(min(0.4, table["low"].min() - 0.02), 1.005)
    ax.set_xlabel(f"{xlabel} (bar: 95% interval; dashed: chance; n = {table['n'].iloc[0]:,})")
    return ax


def _intervals(table: pd.DataFrame, colours: Mapping[str, str], number: str, title: str, ax: Axes | None) -> Axes:
    """Points with horizontal intervals: a line per group, a colour per name, and the numbers at the right.

    Args:
        table: one row per point, with columns group, name, value, low and high.
        colours: name → colour, in the order of the legend.
        number: how numbers are written, such as ".3f".
        title: title of the figure.
        ax: where to draw; a new figure by default.
    """
    ax, groups = ax or new_axes(0.34 * max(len(table), 4) + 1.4), list(table["group"].unique())
    text = "{value:NUMBER} ({low:NUMBER} to {high:NUMBER})".replace("NUMBER", number)
    for position, (name, shade, marker, _) in enumerate(styles(colours)):
        rows = table[table["name"] == name]
        places = rows["group"].map(groups.index) + 0.7 / len(colours) * (position - (len(colours) - 1) / 2)
        ax.hlines(places, rows["low"], rows["high"], color=shade, linewidth=5)
        ax.plot(rows["value"], places, marker, color=shade, markeredgecolor="black", label=name, zorder=3)
        for place, numbers in zip(places, sentences(rows, text), strict=True):
            ax.annotate(numbers, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    _label_rows(ax, groups, title, sentences(table, "{group}, {name}: " + text))
    if len(colours) > 1:  # the legend stands between the title and the axes
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=len(colours), frameon=False)
        ax.set_title(title, pad=28)
    return ax


def _label_rows(ax: Axes, labels: Sequence[str], title: str, parts: Sequence[str]) -> Axes:
    """Name the rows of a horizontal chart, the first at the top, and describe it."""
    ax.set_yticks(range(len(labels)), labels)
    ax.grid(visible=False, axis="y")
    return describe(ax, title, parts, ylim=(len(labels) - 0.5, -0.5))


def distributions(frame: pd.DataFrame, value: str, by: str, xlabel: str, title: str, ax: Axes | None = None) -> Axes:
    """How a number is distributed in each group: outlines of histograms, each with area one.

    Args:
        frame: one row per image (or per patient).
        value: column of the number.
        by: column of the group.
        xlabel: what the number is, with its unit.
        title: title of the figure.
        ax: where to draw; a new figure by default.
    """
    ax, parts, low, high = ax or new_axes(3), [], frame[value].min(), frame[value].max()
    whole = pd.api.types.is_integer_dtype(frame[value]) and high - low < 40  # few whole numbers: a bin for each
    edges = np.arange(low - 0.5, high + 1) if whole else np.histogram_bin_edges(frame[value], bins=25)
    for name, shade, _, line in styles(palette(frame[by])):
        values = frame.loc[frame[by] == name, value]
        label = f"{name} (n = {len(values):,})"
        ax.stairs(*np.histogram(values, edges, density=True), color=shade, ls=line, lw=2.5, label=label)
        parts.append(f"{name} median {values.median():.4g}, n = {len(values)}")
    ax.legend(facecolor="white", edgecolor="none", framealpha=1)  # opaque, over a line that marks a threshold
    return describe(ax, title, parts, xlabel=xlabel, ylabel="density", ylim=(0, 1.4 * ax.get_ylim()[1]))


def scatter(frame: pd.DataFrame, x: str, y: str, by: str, title: str, ax: Axes | None = None) -> Axes:
    """Two numbers of each image against each other, in the colour of its class.

    Args:
        frame: one row per image.
        x: column on the horizontal axis; its name, with the unit, is the label.
        y: column on the vertical axis.
        by: column of the class.
        title: title of the figure.
        ax: where to draw; a new figure by default.
    """
    ax, parts = ax or new_axes(4.2), []
    for name, shade, marker, _ in styles(palette(frame[by])):
        rows = frame[frame[by] == name]
        label = f"{name} (n = {len(rows):,})"
        ax.scatter(rows[x], rows[y], s=20, c=shade, marker=marker, alpha=0.7, lw=0.3, edgecolor="black", label=label)
        parts.append(f"{name} median {x} {rows[x].median():.0f}, {y} {rows[y].median():.0f}")
    ax.legend(frameon=False)
    return describe(ax, title, parts, xlabel=x, ylabel=y)


def gallery(images: Sequence[Array], titles: Sequence[str], heading: str, columns: int = 4) -> Figure:
    """Radiographs side by side, each with its title.

    Args:
        images: gray images, uint8 (H, W) each, of any sizes.
        titles: one per image.
        heading: title of the figure.
        columns: most images per row.
    """
    rows, columns = -(-len(images) // columns), min(columns, len(images))
    # Fewer dots than in other figures: noise does not compress, and notebooks are to stay small.
    figure, axes = panels(heading, rows, columns, (2.7 * columns, 2.4 * rows + 0.6), dpi=72, subplot_kw=EMPTY)
    for ax, image, title in zip(axes, images, titles, strict=False):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        ax.set_title(title, fontsize=11, fontweight="normal")
        ax.set_label(f"{title}.".replace("\n", ", "))
    return figure


def overlays(
    images: Array, maps: Array, titles: Sequence[str], heading: str, unit: str, outlines: Array | None = None
) -> Figure:
    """Radiographs under the maps of what speaks for a class and against it; a cross marks the strongest place for it.

    Args:
        images: gray images, uint8 (N, H, W).
        maps: float (N, h, w), in `unit`; smaller ones are drawn smoothly to the size of the images. NaN is left out.
        titles: one per image.
        heading: title of the figure.
        unit: what the colours count.
        outlines: masks to draw the edge of, bool (N, H, W), such as known lesions.
    """
    figure, limit = gallery(list(images), titles, heading), max(float(np.nanmax(np.abs(maps))), 1e-6)
    for number, (ax, evidence) in enumerate(zip(figure.axes, maps, strict=False)):
        tint = ax.imshow(evidence, cmap="PuOr_r", vmin=-limit, vmax=limit, alpha=0.45, interpolation="bicubic")
        tint.set_extent(ax.images[0].get_extent())  # over the whole image
        if outlines is not None:
            ax.contour(outlines[number], levels=[0.5], colors="white", linewidths=1.5)
        top, left = (np.array(np.unravel_index(np.nanargmax(evidence), evidence.shape)) + 0.5) / evidence.shape
        ax.plot(left * images.shape[2], top * images.shape[1], "P", ms=9, color="white", markeredgecolor="black")
        words = str(ax.get_label()).removesuffix(".")
        ax.set_label(f"{words}, most for it at {left:.0%} from the left and {top:.0%} from the top.")
    figure.colorbar(figure.axes[0].images[1], ax=figure.axes, label=unit, shrink=0.8)
    return figure
