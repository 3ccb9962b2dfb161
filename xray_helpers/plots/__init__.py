"""Every figure of the series, in one style, from plain arrays and DataFrames.

A figure with one pair of axes is drawn into `ax` (a new figure by default) and returned as `Axes`; one with several is
returned as `Figure`. What was drawn, in words and with its numbers, becomes the axes' label, which `show` passes on as
the alt text of the picture.
"""

from xray_helpers.plots.data import (
    auc_intervals,
    balance,
    bars,
    distributions,
    gallery,
    overlays,
    scatter,
    share_intervals,
)
from xray_helpers.plots.evaluation import confusions, heat_map, operating_curves, reliability, training_curves
from xray_helpers.plots.style import palette, show, use_house_style

__all__ = [
    "auc_intervals", "balance", "bars", "confusions", "distributions", "gallery", "heat_map", "operating_curves",
    "overlays", "palette", "reliability", "scatter", "share_intervals", "show", "training_curves", "use_house_style",
]  # fmt: skip
