"""How soon a model is good, beside the tutorials' loop and fastai, on the same radiographs and the same split.

Usage: python benchmarks/learning.py, with settings in the environment (XRAY_DATA=<zip of all radiographs>)

All begin with the same pretrained ResNet-18 and the same original-size files: smaller ones are enlarged to 1.4
megapixels first. Each runs as a command of its own; time counts from its start. fastai takes part where it is
installed.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

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


def throughput(found: Watched, models: Path) -> float:
    """Training images seen in all epochs of this project's run, per second of head stage and epochs."""
    name = re.search(r"models/(\S+):", found.lines[-1][1])
    history = pd.read_csv(models / (name[1] if name else "") / "history.csv")
    epochs = history[history["epoch"] > 0]
    return float((epochs["images_per_second"] * epochs["seconds"]).sum() / history["seconds"].sum())


def told_speed(found: Watched) -> float:
    """Training images per second that a loop of others told, the mean over its epochs; NaN where it told none."""
    told = [re.search(r"([\d.]+) images/s", line) for _, line in found.lines]
    return float(pd.Series([float(match[1]) for match in told if match], dtype=float).mean())


def number(value: float, digits: int = 2) -> str:
    """As text, with a dash for what is not known."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


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
        train = ["-m", "xray_helpers.training", "--weights", "imagenet", "--arch", "resnet18"]
        commands = {"this project, default": train, "this project, RECIPE=fast": [*train, "--recipe", "fast"]}
        commands["tutorials' loop, float32"] = ["benchmarks/others.py", "tutorial", str(folder / "folders")]
        if importlib.util.find_spec("fastai"):
            commands["fastai's fine_tune, float32"] = ["benchmarks/others.py", "fastai", str(folder / "folders")]
        rows: list[dict[str, Any]] = []
        for loop, command in commands.items():
            seen = watch([sys.executable, *command])
            ours = loop.startswith("this project")
            seconds, auc = reached(seen)
            row: dict[str, Any] = {"loop": loop, "seconds": seconds + ours * preparing.seconds, "AUC then": auc}
            row |= {"images/s": throughput(seen, given.home / "models") if ours else told_speed(seen)}
            rows.append(
                row | {"memory, GB": seen.memory / 1e9, "whole run, s": seen.seconds + ours * preparing.seconds}
            )
            print(rows[-1], file=sys.stderr, flush=True)
    device = choose_device(settings.device).value
    precision = choose_precision(settings.precision, device)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{loky.cpu_count()} CPU cores"
    counts = manifest["split"].value_counts()
    sizes = f"{counts['train']:,} images for training, {counts['val']:,} for validation"
    print(f"\nResNet-18 at 224, {sizes}; {name}, this project in {precision}.")
    print(f"Reading, splitting and decoding all files, once, took {preparing.seconds:.0f} s and is counted.\n")
    others = {row["loop"].split(",")[0]: row for row in rows if not row["loop"].startswith("this project")}
    print(f"| loop | validation AUC of {GOAL} or more after | AUC then | images/s in training | memory | "
          + " | ".join(f"share of the time of {name} | times its speed" for name in others) + " |")  # fmt: skip
    print("| --- " * (5 + 2 * len(others)) + "|")
    for row in rows:
        late = "" if row["AUC then"] >= GOAL else "not within "
        cells = [row["loop"], f"{late}{row['seconds']:.0f} s", f"{row['AUC then']:.4f}"]
        cells += [number(row["images/s"], 1), f"{row['memory, GB']:.1f} GB"]
        for other in others.values():
            cells += [number(row["seconds"] / other["seconds"]), number(row["images/s"] / other["images/s"])]
        print(f"| {' | '.join(cells)} |")
    for row in rows:
        print(f"The whole run of {row['loop']}: {row['whole run, s']:.0f} s")


if __name__ == "__main__":
    main()
