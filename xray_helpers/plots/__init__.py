"""Every figure of the series, in one house style, from plain arrays and DataFrames.

Each function draws into `ax` (a new figure when None) and returns it. What was drawn, in words and with its
numbers, becomes the axes' label, which `show` passes on as the picture's alt text.
"""

from xray_helpers.plots.data import (
    auc_intervals,
    balance,
    distributions,
    rates,
    scatter,
    share_intervals,
    shared_images,
)
from xray_helpers.plots.images import gallery, mean_images
from xray_helpers.plots.judge import confusions, operating_curves, overlays, reliability
from xray_helpers.plots.model import rate_sweep, training_curves
from xray_helpers.plots.style import colour, show, use_house_style

__all__ = [
    "auc_intervals",
    "balance",
    "colour",
    "confusions",
    "distributions",
    "gallery",
    "mean_images",
    "operating_curves",
    "overlays",
    "rate_sweep",
    "rates",
    "reliability",
    "scatter",
    "share_intervals",
    "shared_images",
    "show",
    "training_curves",
    "use_house_style",
]
