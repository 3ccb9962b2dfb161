"""Command line: `python -m xray_helpers.training [--fresh] [--data … --split … and all other settings]`."""

import contextlib
import io
import os
import sys
import time

from xray_helpers.files import exit_on_error
from xray_helpers.settings import Settings, choose_device
from xray_helpers.training.train import train


def main() -> None:
    """Train with the settings of the command line and the environment; one line per epoch."""
    start, arguments = time.perf_counter(), [argument for argument in sys.argv[1:] if argument != "--fresh"]
    settings = Settings.from_args(arguments, "Fine-tune a pretrained ResNet. --fresh starts over.")
    first = os.environ.get("RANK", "0") == "0"  # of several processes
    with exit_on_error(), contextlib.redirect_stdout(sys.stdout if first else io.StringIO()):
        print(f"{settings}\n{choose_device(settings.device).reason}")
        run = train(settings, fresh=len(arguments) < len(sys.argv) - 1)
        seconds = time.perf_counter() - start
        print(f"models/{run.folder.name}: best in epoch {run.model.info.epoch}, {seconds:.0f} s in all")


if __name__ == "__main__":
    main()
