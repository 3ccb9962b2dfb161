"""How fast images reach the network, side by side with the pipeline of PyTorch's tutorials, in one run.

Usage: python benchmarks/loading.py [ZIP_OF_ORIGINALS]

Without a zip of original-size radiographs, phantoms enlarged to 1.4 megapixels stand in for them.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import loky
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2
from watch import watch

from xray_helpers.data.catalog import build_catalog
from xray_helpers.data.dataset import EpochSampler, XrayDataset
from xray_helpers.data.download import extract
from xray_helpers.data.image_cache import ImageCache, build_cache
from xray_helpers.data.synthetic import write_dataset
from xray_helpers.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Augmentation, Preprocess
from xray_helpers.settings import choose_device

SIZE, BATCH, FILES, ROUNDS = 224, 32, 3000, 3
BUILD = f"""
import sys
from pathlib import Path
from xray_helpers.data.catalog import build_catalog
from xray_helpers.data.dataset import build_cache  # with PyTorch, as in a notebook
root = Path(sys.argv[1])
build_cache(root, build_catalog(root), Path(sys.argv[2]), {SIZE})
"""


def row(what: str, ours: str, other: str, ratio: float, bar: float) -> None:
    """Print one row of the Markdown table."""
    print(f"| {what} | {ours} | {other} | {ratio:.2f} | ≥ {bar:g} |", flush=True)


def originals(folder: Path) -> Path:
    """300 original-size images from the zip on the command line, or phantoms enlarged to their size."""
    root = folder / "chest_xray"
    if len(sys.argv) > 1:
        extract(Path(sys.argv[1]), root)
        return root
    write_dataset(folder)
    catalog = build_catalog(root)
    for number, path in enumerate(catalog.loc[catalog["error"] == "", "path"]):
        enlarge(root / path, root / path, number)
    return root


def enlarge(file: Path, target: Path, seed: int) -> None:
    """Save an image with the size and the noise of an original radiograph; without noise, it would decode faster."""
    with Image.open(file) as image:
        enlarged = image.convert("L").resize((1400, 1000), Image.Resampling.BICUBIC)
    noisy = np.asarray(enlarged) + np.random.default_rng(seed).normal(0, 3, (1000, 1400))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(target, "JPEG", quality=90)


def repeat(root: Path, target: Path) -> pd.DataFrame:
    """Link the readable images to `FILES` names in `target/train/<class>/`; returns their catalog."""
    catalog = build_catalog(root)
    readable = catalog.loc[catalog["error"] == "", ["path", "label"]].sample(frac=1, random_state=0)
    for number in range(FILES):
        path, label = readable.iloc[number % min(len(readable), 300)]
        file = target / "train" / label / f"{number}{Path(path).suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(root / path, file)
    return build_catalog(target)


def decode_rgb(paths: list[Path]) -> None:
    """What the tutorials do with each file: all of it, to RGB, then resized."""
    for path in paths:
        with Image.open(path) as image:
            np.asarray(image.convert("RGB").resize((SIZE, SIZE)))


def first_pass(root: Path, catalog: pd.DataFrame, folder: Path) -> ImageCache:
    """Building the cache, against decoding to RGB and resizing in a process per core (their start is not counted)."""
    paths = [root / path for path in catalog["path"]]
    processes = loky.cpu_count()
    parts = [paths[first : first + 64] for first in range(0, len(paths), 64)]
    seconds = {"RGB": 0.0, "ours": 0.0}
    for number in range(ROUNDS):
        with loky.ProcessPoolExecutor(processes) as pool:
            list(pool.map(len, [paths[:1]] * 2 * processes))
            start = time.perf_counter()
            list(pool.map(decode_rgb, parts))
            seconds["RGB"] += time.perf_counter() - start
        start = time.perf_counter()
        cache = build_cache(root, catalog, folder / f"cache {number}", SIZE)
        seconds["ours"] += time.perf_counter() - start
    rate = {name: ROUNDS * len(paths) / seconds[name] for name in ("ours", "RGB")}
    what = f"first pass over {len(paths):,} originals, {processes} cores"
    row(what, f"cache: {rate['ours']:.0f} img/s", f"PIL RGB + resize: {rate['RGB']:.0f}", rate["ours"] / rate["RGB"], 3)
    command = [sys.executable, "-c", BUILD, str(root), str(folder / "cache of another process")]
    print(f"| &nbsp;&nbsp;peak memory, with PyTorch | {watch(command).memory / 1e6:.0f} MB | | | < 1,000 |")
    return cache


def images_a_second(batches: Callable[[], Iterator[Tensor]], seconds: float = 4) -> float:
    """Images that come per second, over whole passes of at least `seconds` together, after a first pass."""
    images, start = 0, 0.0
    for number in range(1000):
        for batch in batches():
            images += len(batch)
        if number == 0:
            images, start = 0, time.perf_counter()
        elif time.perf_counter() - start > seconds:
            break
    return images / (time.perf_counter() - start)


def tutorial_transform(*changes: nn.Module) -> v2.Compose:
    """What the tutorials do with each image: some changes, then numbers as the network takes them."""
    numbers = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD))
    return v2.Compose([*changes, *numbers])


def later_epochs(root: Path, dataset: XrayDataset) -> None:
    """Batches ready for the network, against ImageFolder with the tutorials' transforms."""
    folder = ImageFolder(str(root / "train"), tutorial_transform(v2.RandomResizedCrop(SIZE)))
    part = torch.utils.data.Subset(folder, list(range(0, len(folder), 4)))
    tutorial = DataLoader(part, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    loader = DataLoader(dataset, None, sampler=BatchSampler(EpochSampler(len(dataset), 0), BATCH, drop_last=False))
    preprocess, augment = Preprocess(SIZE), Augmentation("light", SIZE)
    rate = {
        "tutorial": images_a_second(lambda: (images for images, _ in tutorial)),
        "plain": images_a_second(lambda: (preprocess(images) for images, _ in loader)),
        "augmented": images_a_second(lambda: (preprocess(augment(images)) for images, _ in loader)),
    }
    other = f"ImageFolder, 2 workers: {rate['tutorial']:.0f}"
    for name, bar in (("plain", 20), ("augmented", 3)):
        what = f"later epochs, {name}"
        row(what, f"{rate[name]:,.0f} img/s", other, rate[name] / rate["tutorial"], bar)


def fed_steps(dataset: XrayDataset, device: str, precision: str, batch: int, bar: float) -> None:
    """Training steps fed by loader and augmentation, against the same steps on one resident batch."""
    layout = torch.channels_last if precision == "bf16" else torch.contiguous_format
    model = resnet18(num_classes=1).to(device, memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters())
    preprocess, augment = Preprocess(SIZE), Augmentation("light", SIZE)
    sampler = BatchSampler(EpochSampler(len(dataset), 0), batch, drop_last=True)
    loader = DataLoader(dataset, None, sampler=sampler, pin_memory=device == "cuda")

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = nn.functional.binary_cross_entropy_with_logits(model(images).squeeze(1), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def fed() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for images, labels in loader:
                prepared = preprocess(augment(images.to(device, non_blocking=True)))
                yield prepared.to(memory_format=layout), labels.to(device, non_blocking=True).float()

    batches = fed()
    resident = next(batches)
    steps, blocks = (2, 8) if device == "cpu" else (10, 10)
    seconds: dict[str, list[float]] = {"resident": [], "fed": []}
    for number in range(blocks + 1):
        for name, times in seconds.items():
            start = time.perf_counter()
            for _ in range(steps):
                step(*(resident if name == "resident" else next(batches)))
            if device == "cuda":
                torch.cuda.synchronize()
            if number:  # the first block warms up
                times.append((time.perf_counter() - start) / steps)
    rate = {name: batch / float(np.median(times)) for name, times in seconds.items()}
    what = f"ResNet-18 steps, {device}, {precision}, batch {batch}"
    row(
        what,
        f"fed: {rate['fed']:,.0f} img/s",
        f"resident: {rate['resident']:,.0f}",
        rate["fed"] / rate["resident"],
        bar,
    )


def main() -> None:
    """Print one row per comparison of a Markdown table."""
    torch.set_num_threads(loky.cpu_count())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = folder / "repeated"
        catalog = repeat(originals(folder), root)
        print(f"\n| at 224 pixels ({loky.cpu_count()} cores) | this project | other | ratio | bar |")
        print("| --- | --- | --- | --- | --- |")
        cache = first_pass(root, catalog, folder)
        classes = tuple(sorted(catalog["label"].unique()))
        dataset = XrayDataset(catalog.assign(split="train"), cache, "train", classes)
        later_epochs(root, dataset)
        fed_steps(dataset, "cpu", "float32", BATCH, 0.92)
        fed_steps(dataset, "cpu", "bf16", BATCH, 0.88)
        if choose_device().value == "cuda":
            fed_steps(dataset, "cuda", "bf16", 256, 0.90)


if __name__ == "__main__":
    main()
