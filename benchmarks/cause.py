"""How well normal, bacterial and viral are told apart, and bacterial from viral alone: on validation.

Usage: XRAY_DATA=<zip of all radiographs> python benchmarks/cause.py

It trains a run with TASK=cause, or finds the finished one, and reads its predictions; the test split stays closed.
"""

import numpy as np

from xray_helpers.data.catalog import read_rows
from xray_helpers.data.dataset import CLASSES
from xray_helpers.metrics import evaluate, format_interval
from xray_helpers.settings import Settings
from xray_helpers.training.checkpoint import PREDICTIONS
from xray_helpers.training.train import train


def main() -> None:
    """Train, and print one line per question."""
    run = train(Settings.from_env(task="cause"), latest=False)
    rows, classes = read_rows(run.folder / PREDICTIONS), CLASSES["cause"]
    truth = rows["truth"].to_numpy()
    chances = rows[[f"p_{name}" for name in classes]].to_numpy(float)
    found = evaluate(truth, chances, rows["patient"], classes=classes)
    counted = f"n = {found['n']} of {found['patients']} patients, validation, {run.folder.name}"
    print(f"{counted}: macro AUC {format_interval(found['auc'])}", end="")
    print(f", accuracy {format_interval(found['at']['argmax']['accuracy'])}")
    for name, figures in found["classes"].items():
        print(f"  {name} against the rest: AUC {format_interval(figures['auc'])}")
    ill = truth > 0
    viral = chances[ill, 2] / np.maximum(chances[ill, 1] + chances[ill, 2], 1e-12)
    found = evaluate(truth[ill] - 1, viral, rows["patient"][ill])
    print(f"  viral against bacterial, without normal: n = {found['n']} of {found['patients']} patients, ", end="")
    accuracy = found["at"]["0.5"]["accuracy"]
    print(f"AUC {format_interval(found['auc'])}, accuracy {format_interval(accuracy)}")


if __name__ == "__main__":
    main()
