"""Ctrl-C at a certain instant of a run, in the process that imports this: `interrupted.py INSTANT OPTIONS …`.

The signal comes from the process itself, so that neither the machine's speed nor its load decides where it falls.
"""

import signal
import sys

from networks import use_tiny_networks

from xray_helpers import inference
from xray_helpers.training import checkpoint, engine

INSTANTS = ("in the first batch", "in an epoch", "in validation", "between two epochs", "while saving")


def interrupt(instant):
    """Send this process an interrupt, once, when a run that has finished an epoch comes to an instant.

    Returns:
        A function that undoes this.
    """
    places = {
        "in the first batch": (engine, "classification_loss"),
        "in an epoch": (inference, "network_input"),
        "in validation": (engine, "validate"),
        "between two epochs": (engine, "epoch_seed"),
        "while saving": (checkpoint, "save_state"),
    }
    module, name = places[instant]
    real, finished = getattr(module, name), []
    save_history = checkpoint.save_history

    def note(*given):
        finished.append(given)
        save_history(*given)

    def call(*given):
        if (finished or instant == "in the first batch") and not sent:
            sent.append(instant)
            signal.raise_signal(signal.SIGINT)
        return real(*given)

    def undo():
        checkpoint.save_history = save_history
        setattr(module, name, real)

    sent = []
    checkpoint.save_history = note
    setattr(module, name, call)
    return undo


if __name__ == "__main__":
    from xray_helpers.training.__main__ import main

    use_tiny_networks()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    chosen = sys.argv.pop(1)
    if chosen != "never":
        interrupt(chosen)
    main()
