"""The house style: colours, fonts, and how a figure is shown with its alt text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Told apart by colour-blind readers and in grayscale (from light to dark); hatches help in print.
COLOURS = {"NORMAL": "#9CCBEB", "normal": "#9CCBEB", "bacterial": "#DD7A32", "viral": "#5E2A73", "PNEUMONIA": "#A63C1C"}
HATCHES = {"NORMAL": "", "normal": "", "bacterial": "//", "viral": "..", "PNEUMONIA": "xx"}
GROUPS = {  # what is no class
    "train": "#3D3D3D", "val": "#9A9A9A", "test": "#3E8E7E", "plain": "#3D3D3D", "balanced": "#3E8E7E",
}  # fmt: skip
OTHERS = ("#9CCBEB", "#DD7A32", "#5E2A73", "#4F9D69", "#2B2D42")  # classes of other datasets, in order
MARKERS, LINES = ("o", "s", "D", "^", "v"), ("-", "--", ":", "-.", "-")
GOOD, BAD, NEUTRAL = "#3A6EA5", "#A63C1C", "#7A7A7A"


def use_house_style() -> None:
    """Set fonts, sizes and grid of every figure, and the width of every table, for this session."""
    pd.options.display.max_colwidth = 140
    sns.set_theme(style="whitegrid", context="notebook", font="DejaVu Sans")
    plt.rcParams.update(
        {"figure.dpi": 90, "axes.titleweight": "bold", "axes.titlesize": 12, "axes.titlelocation": "left"}
    )


def colour(name: str, position: int = 0) -> str:
    """The colour of a class or cause, the same in every figure; by `position` for classes of other datasets."""
    return {**COLOURS, **GROUPS}.get(name, OTHERS[position % len(OTHERS)])


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


def in_order(names: Sequence[Any]) -> list[str]:
    """Class names in the series' order, those of other datasets by alphabet."""
    known = [name for name in (*COLOURS, *GROUPS) if name in names]
    return known + sorted(str(name) for name in names if name not in known)


def describe(ax: Axes, title: str, parts: Sequence[str]) -> Axes:
    """Give axes their title, and the description that becomes alt text."""
    ax.set_title(title)
    ax.set_label(f"{title}: {'; '.join(parts)}.")
    return ax
