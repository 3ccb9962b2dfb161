"""The style that all figures share: colours, fonts, titles, and how a figure is shown with its alt text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[Any]

# Distinct for colour-blind readers and in grayscale (from light to dark); hatches, in `balance`, help in print.
COLOURS = {"NORMAL": "#9CCBEB", "normal": "#9CCBEB", "bacterial": "#DD7A32", "viral": "#5E2A73", "PNEUMONIA": "#A63C1C"}
# Groups that are not classes: folders and samplers.
GROUPS = {"train": "#3D3D3D", "val": "#9A9A9A", "test": "#3E8E7E", "plain": "#3D3D3D", "balanced": "#3E8E7E"}
OTHERS = ("#9CCBEB", "#DD7A32", "#5E2A73", "#4F9D69", "#2B2D42")  # classes of other datasets, in order
GOOD, BAD, NEUTRAL = "#3A6EA5", "#A63C1C", "#7A7A7A"


def use_house_style() -> None:
    """Set fonts, sizes and grid of every figure, and the width of every table, for this session."""
    pd.options.display.max_colwidth = 140
    titles = {"axes.titleweight": "bold", "axes.titlesize": 12, "axes.titlelocation": "left"}
    sns.set_theme(style="whitegrid", font="DejaVu Sans", rc={"figure.dpi": 90, **titles})


def palette(names: Iterable[Any]) -> dict[str, str]:
    """Each class, cause or group with its colour, the same in every figure.

    Args:
        names: in any order, with repetitions.

    Returns:
        Name → colour, in the series' order; the classes of other datasets follow in alphabetical order.
    """
    known, given = COLOURS | GROUPS, {str(name) for name in names}
    ordered = [name for name in known if name in given] + sorted(given - known.keys())
    return {name: known.get(name, OTHERS[position % len(OTHERS)]) for position, name in enumerate(ordered)}


def styles(colours: Mapping[str, str]) -> Iterator[tuple[str, str, str, str]]:
    """Name, colour, marker and line style of each series, so that colours are never all that tells series apart."""
    return zip(colours, colours.values(), cycle("osD^v"), cycle(("-", "--", ":", "-.")), strict=False)


def new_axes(height: float) -> Axes:
    """The axes of a new figure, 8 inches wide and `height` inches high."""
    return plt.subplots(figsize=(8, height), layout="constrained")[1]


def panels(title: str, rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure with a title (size in inches), and the flat array of its axes."""
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    return figure, axes.ravel()


def sentences(table: pd.DataFrame, template: str) -> list[str]:
    """The template filled in for each row of a table, such as "{name}: {share:.1%}"."""
    return [template.format_map(row) for row in table.to_dict("records")]


def describe(ax: Axes, title: str, parts: Sequence[str], **properties: Any) -> Axes:
    """Give axes their title and `properties` (axis labels, limits), and the description that becomes alt text."""
    ax.set(title=title, label=f"{title}: {'; '.join(parts)}.".replace("\n", ", "), **properties)
    return ax


def show(drawn: Axes | Figure, data_description: str, alt: str = "") -> None:
    """Display a figure with its title and alt text and a note on which data it is about, and close it.

    Args:
        drawn: a figure, or any of its axes.
        data_description: `Settings.data_description`; printed under the figure, so that it stays with a copy of it.
        alt: what the figure shows, in words; by default the descriptions of its axes.
    """
    drawn.figure.supxlabel(f"Data: {data_description}", x=0.99, ha="right", fontsize=8, color=NEUTRAL)
    labels = [str(axes.get_label()) for axes in drawn.figure.axes]
    title = drawn.figure.get_suptitle() or drawn.figure.axes[0].get_title(loc="left")  # becomes the report's caption
    text = alt or " ".join(label for label in labels if label and not label.startswith(("<", "_")))
    about = {"title": title.replace("\n", ", "), "alt": f"{text} Data: {data_description}."}
    display(drawn.figure, metadata={"image/png": about})
    plt.close("all")
