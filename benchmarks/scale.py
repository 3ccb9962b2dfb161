"""Does the cost per image stay the same from 600 to 20,000 images? Time and memory of each step.

Usage: python benchmarks/scale.py [--counts 600 2000 5000 10000 20000] [--size 64] [--processes 1 2]

The images are phantoms. Each step runs in a process of its own, whose peak memory is read at its end; what the process
needs before it has an image (`fixed`: importing, and the step on 600 images less what they cost) is subtracted. The
last column says what NIH ChestX-ray14, with 112,120 images, would take at the cost per image of the largest count.
With --processes, it measures instead how fast that many training processes are together, on the sample, one epoch each.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from xray_helpers.files import project_root

STEPS = ("catalog", "cache", "epoch", "evaluation")
ROUNDS = {"epoch": 2, "evaluation": 2}  # the faster one counts; the other steps would find what they have made
NIH = 112_120


def one_step(step: str, size: int) -> None:
    """Run a step, for which the earlier ones have left their files, and print its seconds and peak memory in MB."""
    import torch

    from xray_helpers.data.catalog import build_catalog
    from xray_helpers.data.dataset import make_loaders, prepare_data
    from xray_helpers.data.download import fetch
    from xray_helpers.inference import make_accelerator, place_network, probabilities, run_on_labelled
    from xray_helpers.metrics import evaluate
    from xray_helpers.settings import Settings
    from xray_helpers.training.engine import train_one_epoch
    from xray_helpers.training.model import build_model

    settings = Settings.from_env(image_size=size)
    if step == "catalog":
        root = fetch(settings)
        start = time.perf_counter()
        build_catalog(root, settings.processed_folder, settings)
    elif step == "cache":
        start = time.perf_counter()
        prepare_data(settings)
    else:
        loaders, accelerator = make_loaders(prepare_data(settings), 32), make_accelerator()
        model = place_network(build_model("resnet18", 1, "none"), accelerator)
        start = time.perf_counter()
        if step == "epoch":
            optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
            train_one_epoch(
                model, loaders.train, accelerator.prepare(optimizer), schedule, accelerator, loaders.preprocess
            )
        else:  # the training images, since they are many
            logits, truth = run_on_labelled(model.eval(), loaders.train, loaders.preprocess, accelerator)
            evaluate(
                truth.numpy(), probabilities(logits.double()).numpy(), loaders.train.dataset.patients[: len(truth)]
            )
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def measure(count: int, size: int) -> list[dict[str, float | str]]:
    """Draw so many images and run each step on them."""
    from xray_helpers.data.synthetic import write_dataset

    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as home:
        drawn = len(write_dataset(Path(home) / "phantoms", seed=0, patients=count // 2))
        environment = os.environ | {"XRAY_HOME": home, "XRAY_DATA": str(Path(home) / "phantoms"), "TQDM_DISABLE": "1"}
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, "--size", str(size)]
            found = []
            for _ in range(ROUNDS.get(step, 1)):
                done = subprocess.run(  # noqa: S603 - this file
                    command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
                found.append(json.loads(done.stdout.splitlines()[-1]))
            seconds, memory = map(min, zip(*found, strict=True))
            rows.append({"step": step, "images": drawn, "seconds": seconds, "MB": memory})
            print(f"{step:<10} {drawn:>6} images: {seconds:7.1f} s, {memory:6.0f} MB", flush=True)
    return rows


def processes(counts: list[int]) -> None:
    """Images per second in training of one process, of two, …: together, on this machine."""
    before = 0.0
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"XRAY_HOME": home, "XRAY_EPOCHS": "1", "XRAY_WEIGHTS": "none", "TQDM_DISABLE": "1"}
        for count in counts:
            subprocess.run(  # noqa: S603 - make, with numbers
                ["make", "train", f"PROCESSES={count}", "FRESH=1"],  # noqa: S607 - the user's own make
                env=environment, cwd=project_root(), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            run = Path(home) / "models" / (Path(home) / "models" / "latest.txt").read_text().strip()
            speed = float(pd.read_csv(run / "history.csv")["images_per_second"].iloc[-1])
            before = before or speed
            print(f"{count} processes: {speed:.1f} images/s, {speed / before:.2f} times {counts[0]}", flush=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Per step: fixed cost, cost per 1,000 images at the largest count against that at about 5,000, exponent, NIH's."""
    rows = []
    for step, part in table.groupby("step", sort=False):
        for what in ("seconds", "MB"):
            images, cost = part["images"].to_numpy(float), part[what].to_numpy(float)
            slope = (cost[1] - cost[0]) / (images[1] - images[0])
            fixed = max(0.0, cost[0] - slope * images[0])
            each = (cost - fixed) / images
            middle = int(np.abs(images - 5000).argmin())
            exponent = np.polyfit(np.log(images), np.log(np.maximum(cost - fixed, 1e-9)), 1)[0]
            per_thousand = {"at 5,000": 1000 * each[middle], "at most": 1000 * each[-1]}
            rows.append({"step": step, "cost": what, "fixed": fixed} | per_thousand)
            rows[-1] |= {"ratio": each[-1] / each[middle], "exponent": exponent, "NIH": fixed + NIH * each[-1]}
    return pd.DataFrame(rows)


def main() -> None:
    """Measure all counts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="*", type=int, default=[600, 2000, 5000, 10000, 20000])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--processes", nargs="*", type=int)
    parser.add_argument("--step", choices=STEPS)
    given = parser.parse_args()
    if given.step:
        one_step(given.step, given.size)
        return
    if given.processes:
        processes(given.processes)
        return
    table = pd.DataFrame([row for count in given.counts for row in measure(count, given.size)])
    print(summary(table).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
