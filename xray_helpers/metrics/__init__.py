"""Numbers that judge a model, from labels, probabilities and patients alone, with 95% intervals."""

from xray_helpers.metrics.bootstrap import LABELS, Bootstrap, Interval, format_interval, format_table, share_interval
from xray_helpers.metrics.calibration import calibration, check_binary, ece, operating_points, platt
from xray_helpers.metrics.metrics import auc_interval, decisions, evaluate, scores, subgroups

__all__ = [
    "LABELS", "Bootstrap", "Interval", "auc_interval", "calibration", "check_binary", "decisions", "ece",
    "evaluate", "format_interval", "format_table", "operating_points", "platt", "scores", "share_interval", "subgroups",
]  # fmt: skip
