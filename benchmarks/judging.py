"""How long it takes to judge a model with intervals, and to predict new images, on this machine.

Usage: python benchmarks/judging.py [ZIP_OF_ORIGINALS]

Without a zip of original-size radiographs, phantoms enlarged to 1.4 megapixels stand in for them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from loading import originals
from scipy.special import expit

from xray_helpers.data.transforms import Preprocess
from xray_helpers.inference import probabilities, run_network
from xray_helpers.metrics import evaluate
from xray_helpers.predict import find_images, predict_images
from xray_helpers.settings import choose_device
from xray_helpers.training.checkpoint import ModelInfo, load_model, save_model
from xray_helpers.training.model import build_model

IMAGES, FILES, JUDGED = 5856, 500, 1000
POINTS = {"0.5": 0.5, "chosen": 0.4, "sensitivity 0.95": 0.3}
INFO = ModelInfo("resnet18", ("NORMAL", "PNEUMONIA"), Preprocess(224), 1, 0.5, operating_points=POINTS)


def main() -> None:
    """Print one row per step of a Markdown table."""
    print("| step | images | seconds | goal |\n| --- | --- | --- | --- |")
    rng = np.random.default_rng(0)
    truth = np.arange(IMAGES) % 4 > 0
    chance = expit(rng.normal(0, 2, IMAGES) + 4 * truth - 2)
    start = time.perf_counter()
    evaluate(truth.astype(int), chance, rng.integers(0, IMAGES // 2, IMAGES), POINTS)
    print(
        f"| all figures, 2,000 draws of patients | {IMAGES:,} | {time.perf_counter() - start:.1f} | < 5 |", flush=True
    )
    with tempfile.TemporaryDirectory() as name:
        root = originals(Path(name))
        files, _ = find_images(root)
        save_model(Path(name) / "run", build_model("resnet18", 1, "none"), INFO)
        start = time.perf_counter()
        model = load_model(Path(name) / "run", choose_device().value)
        print(f"| load a model |  | {time.perf_counter() - start:.2f} | < 2 |", flush=True)
        predict_images((files * FILES)[:FILES], model)
        print(f"| load a model and predict original-size files | {FILES} | {time.perf_counter() - start:.1f} | < 20 |")
        images = torch.randint(0, 256, (JUDGED, 1, 224, 224), dtype=torch.uint8)
        start = time.perf_counter()
        logits = run_network(model, [(part, None) for part in images.split(64)], INFO.preprocess)
        chance = probabilities(logits.double()).numpy()
        evaluate(np.arange(JUDGED) % 2, chance, np.arange(JUDGED) // 2, POINTS)
        print(f"| evaluate images of 224 pixels, in float32 | {JUDGED:,} | {time.perf_counter() - start:.1f} | < 20 |")


if __name__ == "__main__":
    main()
