"""Figures that show radiographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xray_helpers.plots.style import describe


def gallery(images: Sequence[NDArray[Any]], titles: Sequence[str], heading: str, columns: int = 4) -> Figure:
    """Radiographs side by side, each with its title.

    Args:
        images: gray images, uint8 (H, W) each, of any sizes.
        titles: one an image.
        heading: title of the figure.
        columns: images a row.
    """
    rows = -(-len(images) // columns)
    shape = (2.7 * columns, 2.4 * rows + 0.6)
    # Fewer dots than in other figures: noise does not compress, and notebooks are to stay small.
    figure, axes = plt.subplots(rows, columns, figsize=shape, dpi=72, squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        ax.set_title(title, fontsize=11, fontweight="normal")
        ax.set_label(f"{title}.".replace("\n", ", "))
    figure.suptitle(heading, x=0.01, ha="left", fontweight="bold", fontsize=14)
    return figure


def mean_images(means: Mapping[str, NDArray[np.float64]], title: str) -> Figure:
    """The mean image of each class, and how each differs from the first.

    Args:
        means: class → mean gray levels, float (S, S).
        title: title of the figure.
    """
    first, *others = means
    figure, axes = plt.subplots(
        1, len(means) + len(others), figsize=(3 * (len(means) + len(others)), 3.3), layout="constrained"
    )
    for ax, (name, mean) in zip(axes, means.items(), strict=False):
        picture = ax.imshow(mean, cmap="gray", vmin=0, vmax=255)
        describe(ax, f"mean {name}", [f"mean gray level {mean.mean():.0f}"]).set_axis_off()
    figure.colorbar(picture, ax=list(axes[: len(means)]), label="gray level (0 to 255)", shrink=0.8)
    # Not the largest difference: a letter in a corner would leave everything else white.
    limit = max(float(np.quantile(np.abs(means[name] - means[first]), 0.99)) for name in others)
    for ax, name in zip(axes[len(means) :], others, strict=True):
        difference = means[name] - means[first]
        shown = ax.imshow(difference, cmap="PuOr", vmin=-limit, vmax=limit)
        describe(
            ax, f"{name} − {first}", [f"from {difference.min():.0f} to {difference.max():.0f} gray levels"]
        ).set_axis_off()
    label = "difference in gray levels"
    figure.colorbar(shown, ax=list(axes[len(means) :]), label=label, shrink=0.8, extend="both")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12)
    return figure
