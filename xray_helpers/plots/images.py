"""Figures that show radiographs."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from xray_helpers.plots.style import Array, describe, panels

EMPTY = {"frame_on": False, "xticks": [], "yticks": []}  # axes that show nothing but an image


def gallery(images: Sequence[Array], titles: Sequence[str], heading: str, columns: int = 4) -> Figure:
    """Radiographs side by side, each with its title.

    Args:
        images: gray images, uint8 (H, W) each, of any sizes.
        titles: one per image.
        heading: title of the figure.
        columns: images per row.
    """
    rows = -(-len(images) // columns)
    # Fewer dots than in other figures: noise does not compress, and notebooks are to stay small.
    figure, axes = panels(heading, rows, columns, (2.7 * columns, 2.4 * rows + 0.6), dpi=72, subplot_kw=EMPTY)
    for ax, image, title in zip(axes, images, titles, strict=False):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        ax.set_title(title, fontsize=11, fontweight="normal")
        ax.set_label(f"{title}.".replace("\n", ", "))
    return figure


def mean_images(means: Mapping[str, Array], title: str) -> Figure:
    """The mean image of each class, and how each differs from the first.

    Args:
        means: class → mean gray levels, float (S, S).
        title: title of the figure.
    """
    first, *others = means
    changes = {f"{name} − {first}": means[name] - means[first] for name in others}
    # Not the largest difference: a letter in a corner would leave everything else white.
    limit = max(float(np.quantile(np.abs(change), 0.99)) for change in changes.values())
    shown = [(f"mean {name}", mean, "gray", 0.0, 255.0) for name, mean in means.items()]
    shown += [(name, change, "PuOr", -limit, limit) for name, change in changes.items()]
    figure, axes = panels(title, 1, len(shown), (3 * len(shown), 3.3), subplot_kw=EMPTY)
    for ax, (name, image, colours, low, high) in zip(axes, shown, strict=True):
        ax.imshow(image, cmap=colours, vmin=low, vmax=high)
        describe(ax, name, [f"mean {image.mean():.0f}, from {image.min():.0f} to {image.max():.0f} gray levels"])
    left, right = list(axes[: len(means)]), list(axes[len(means) :])
    figure.colorbar(left[0].images[0], ax=left, label="gray level (0 to 255)", shrink=0.8)
    figure.colorbar(right[0].images[0], ax=right, label="difference in gray levels", shrink=0.8, extend="both")
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
