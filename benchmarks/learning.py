"""How soon a model is good, beside the tutorials' loop and fastai, on the same radiographs and the same split.

Usage: python benchmarks/learning.py, with settings in the environment (XRAY_DATA=<zip of all radiographs>)

All begin with the same pretrained ResNet-18 and the same original-size files: smaller ones are enlarged to 1.4
megapixels first. Each runs as a command of its own; time counts from its start. fastai takes part where it is
installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import loky
import pandas as pd
import torch
from loading import enlarge
from others import GOAL
from watch import Watched, watch

from xray_helpers.data.catalog import build_catalog
from xray_helpers.data.dataset import prepare_data
from xray_helpers.data.download import fetch
from xray_helpers.files import WeightsError
from xray_helpers.settings import Settings, choose_device, choose_precision
from xray_helpers.training.model import imagenet_weights

PREPARE = (
    "from xray_helpers.data.dataset import prepare_data; from xray_helpers.settings import Settings; "
    "prepare_data(Settings.from_env())"
)
SMALL = 1_000_000  # pixels; files with fewer are enlarged


def originals(root: Path, target: Path) -> None:
    """Each readable file of the dataset at its original size, or enlarged to it."""
    catalog = build_catalog(root)
    with loky.ProcessPoolExecutor(loky.cpu_count()) as pool:
        jobs = []
        for row in catalog[catalog["error"] == ""].itertuples():
            file = target / row.path
            file.parent.mkdir(parents=True, exist_ok=True)
            if row.width * row.height < SMALL:
                jobs.append(pool.submit(enlarge, root / row.path, file, row.Index))
            else:
                os.link(root / row.path, file)
        for job in jobs:
            job.result()


def arrange(manifest: pd.DataFrame, root: Path, target: Path) -> None:
    """Links as `ImageFolder` wants them, `<split>/<class>/<file>`, without the test split."""
    for number, row in enumerate(manifest[manifest["split"] != "test"].itertuples()):
        file = target / row.split / row.label / f"{number}{Path(row.path).suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(root / row.path, file)


def reached(found: Watched) -> tuple[float, float]:
    """When the goal was reached, in seconds, and the AUC then; without success, those of the last epoch."""
    told = [(seconds, re.search(r"AUC (\d\.\d+)", line)) for seconds, line in found.lines]
    steps = [(seconds, float(match[1])) for seconds, match in told if match]
    return next((step for step in steps if step[1] >= GOAL), steps[-1])


def main() -> None:
    """Print one row per loop of a Markdown table."""
    given = Settings.from_env()
    try:
        imagenet_weights("resnet18")
    except WeightsError:
        print("\nThe pretrained weights cannot be had, so how soon a model is good is not measured.")
        return
    with tempfile.TemporaryDirectory(dir=given.home / "data") as name:  # files are linked, so on the same disk
        folder = Path(name)
        originals(fetch(given), folder / "originals" / "chest_xray")
        os.environ |= {"XRAY_HOME": name, "XRAY_DATA": str(folder / "originals")}
        preparing = watch([sys.executable, "-c", PREPARE])
        settings = replace(given, data=str(folder / "originals"), weights="imagenet", arch="resnet18")
        manifest = prepare_data(settings).manifest
        arrange(manifest, settings.raw_folder / "chest_xray", folder / "folders")
        commands = {"this project": ["-m", "xray_helpers.training", "--weights", "imagenet", "--arch", "resnet18"]}
        commands["tutorials' loop"] = ["benchmarks/others.py", "tutorial", str(folder / "folders")]
        if importlib.util.find_spec("fastai"):
            commands["fastai's fine_tune"] = ["benchmarks/others.py", "fastai", str(folder / "folders")]
        seen = {}
        for loop, command in commands.items():
            seen[loop] = watch([sys.executable, *command])
            print(f"{loop}: {reached(seen[loop])}, {seen[loop].seconds:.0f} s in all", file=sys.stderr, flush=True)
    device = choose_device(settings.device).value
    precision = choose_precision(settings.precision, device).value
    name = torch.cuda.get_device_name() if device == "cuda" else f"{loky.cpu_count()} CPU cores"
    counts = manifest["split"].value_counts()
    print(f"\nResNet-18 at 224, {counts['train']:,} images for training, {counts['val']:,} for validation; {name}\n")
    print(f"| loop | validation AUC of {GOAL} or more after | ratio | bar | AUC then | peak memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(f"| reading, splitting and decoding all files, once | {preparing.seconds:.0f} s | | | | "
          f"{preparing.memory / 1e9:.1f} GB |")  # fmt: skip
    ours, auc = reached(seen["this project"])
    ours += preparing.seconds
    print(f"| this project, {precision}, with that | {ours:.0f} s | | | {auc:.4f} | "
          f"{seen['this project'].memory / 1e9:.1f} GB (< 3) |")  # fmt: skip
    for loop, found in list(seen.items())[1:]:
        seconds, auc = reached(found)
        late = "" if auc >= GOAL else "not within "
        print(f"| {loop}, float32 | {late}{seconds:.0f} s | {ours / seconds:.2f} | ≤ 0.4 | {auc:.4f} | "
              f"{found.memory / 1e9:.1f} GB |")  # fmt: skip
    print(f"\nThe whole run of this project, {settings.epochs} epochs: {seen['this project'].seconds:.0f} s")


if __name__ == "__main__":
    main()
