"""How fast a whole epoch of fine-tuning is, beside a loop as PyTorch's tutorials write it, in one run.

Usage: python benchmarks/training.py [ZIP_OF_ORIGINALS]

The tutorials' loop reads original-size files with ImageFolder and two workers and trains in float32 with SGD; ours
reads the image cache. Both train the same ResNet-18 at 224 pixels, from random weights, in batches of 32.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from loading import BATCH, SIZE, originals, repeat, tutorial_transform
from others import tutorial_epoch
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import BatchSampler, DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

from xray_helpers.data.dataset import EpochSampler, XrayDataset
from xray_helpers.data.image_cache import build_cache
from xray_helpers.data.transforms import Augmentation, Preprocess
from xray_helpers.inference import make_accelerator, memory_layout
from xray_helpers.training.engine import train_one_epoch

IMAGES, ROUNDS = 640, 2


def epochs(root: Path, dataset: XrayDataset) -> Iterator[tuple[str, float]]:
    """Images a second of each loop, in turns."""
    folder = ImageFolder(str(root / "train"), tutorial_transform(v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()))
    part = Subset(folder, list(range(0, len(folder), max(1, len(folder) // IMAGES)))[:IMAGES])
    tutorial = DataLoader(part, BATCH, shuffle=True, num_workers=2)
    model = resnet18(num_classes=2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        tutorial_epoch(tutorial, model, optimizer)
        yield "tutorial", IMAGES / (time.perf_counter() - start)
        for precision in ("float32", "bf16"):
            accelerator = make_accelerator("cpu", precision)
            ours = resnet18(num_classes=1).to(memory_format=memory_layout(accelerator))
            steps = torch.optim.AdamW(ours.parameters(), 3e-4)
            schedule = OneCycleLR(steps, 3e-4, total_steps=IMAGES // BATCH)
            batches = DataLoader(dataset, None, sampler=BatchSampler(EpochSampler(IMAGES, 0), BATCH, drop_last=True))
            preprocess, augment, stepper = Preprocess(SIZE), Augmentation("light", SIZE), accelerator.prepare(steps)
            start = time.perf_counter()
            train_one_epoch(ours, batches, stepper, schedule, accelerator, preprocess, augment)
            yield precision, IMAGES / (time.perf_counter() - start)


def main() -> None:
    """Print one row per precision of a Markdown table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = folder / "repeated"
        catalog = repeat(originals(folder), root)
        cache = build_cache(root, catalog, folder / "cache", SIZE)
        dataset = XrayDataset(catalog.assign(split="train"), cache, "train", tuple(sorted(catalog["label"].unique())))
        rates: dict[str, list[float]] = {}
        for loop, rate in epochs(root, dataset):
            rates.setdefault(loop, []).append(rate)
            print(f"{loop}: {rate:.1f} images/s", file=sys.stderr, flush=True)
    mean = {loop: sum(values) / len(values) for loop, values in rates.items()}
    print("\n| whole epochs, ResNet-18 at 224, batch 32 | this project | tutorials' loop, float32 | ratio | bar |")
    print("| --- | --- | --- | --- | --- |")
    for precision, bar in (("float32", 1.1), ("bf16", 2.5)):
        ratio = mean[precision] / mean["tutorial"]
        print(f"| {precision} | {mean[precision]:.1f} img/s | {mean['tutorial']:.1f} img/s | {ratio:.2f} | ≥ {bar} |")


if __name__ == "__main__":
    main()
