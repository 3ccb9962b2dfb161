"""Helpers for chest X-ray classification with PyTorch, used by the notebooks and by yours."""

__version__ = "0.2.0"
