"""How often maps point at lesions, over seeds and precisions: the pointing game of notebook 06, repeated.

Usage: python benchmarks/pointing.py [SEEDS]

Each run trains a ResNet-18 from random weights on 200 pairs of synthetic twins, and plays on the same 200 new images.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from xray_helpers.data.synthetic import write_twins
from xray_helpers.evaluation.explain import activation_maps, draw_lesions, pointing_game
from xray_helpers.metrics import format_interval
from xray_helpers.settings import Settings
from xray_helpers.training.train import train


def main() -> None:
    """Print one row per run of a Markdown table, and the mean and spread over the runs."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rates: dict[str, list[float]] = {"layer4": [], "layer3": []}
    known = draw_lesions(200, 128, seed=6, strength=2.0)
    print("| precision | seed | last block | block before | by chance |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as home:
        os.environ["XRAY_HOME"] = home
        write_twins(Path(home) / "twins")
        for precision in ("bf16", "float32"):
            for seed in range(seeds):
                small: dict[str, Any] = {"image_size": 128, "batch_size": 32, "epochs": 16, "learning_rate": 1e-3}
                small["augment"] = "light"  # as in notebook 06
                settings = Settings(str(Path(home) / "twins"), weights="none", seed=seed, precision=precision, **small)
                model = train(settings, latest=False, verbose=False).model
                cells = [precision, str(seed)]
                for block, found in rates.items():
                    game: dict[str, Any] = pointing_game(activation_maps(model, known.images, block=block), known)
                    found.append(game["accuracy"]["value"])
                    cells.append(format_interval(game["accuracy"]))
                print(f"| {' | '.join(cells)} | {game['chance']:.3f} |", flush=True)
    means = [f"{np.mean(found):.3f} ± {np.std(found, ddof=1):.3f}" for found in rates.values()]
    print(f"| mean ± standard deviation | | {' | '.join(means)} | |")


if __name__ == "__main__":
    main()
