"""The small network of the tests, for processes that the tests start."""

from conftest import TinyResNet

from xray_helpers.training import model


def use_tiny_networks():
    """In this process `build_model` makes a `TinyResNet`, whatever the architecture."""
    model.get_model = lambda arch, weights=None: TinyResNet()
