"""How long the sample, the catalog and a split take on this machine.

Usage: python benchmarks/spine.py [ZIP_OF_ORIGINALS]

With a zip of original-size radiographs, the catalog's rate on them is measured too, and extrapolated to Kaggle's
5,856 images.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from xray_helpers.data.catalog import build_catalog
from xray_helpers.data.download import extract
from xray_helpers.data.splits import resplit
from xray_helpers.data.synthetic import write_dataset

KAGGLE_IMAGES = 5856


def main() -> None:
    """Print one row per step of a Markdown table."""
    print(f"| step ({os.cpu_count()} cores) | images | seconds | images a second |\n| --- | --- | --- | --- |")

    def row(step: str, images: int, start: float) -> float:
        seconds = time.perf_counter() - start
        print(f"| {step} | {images:,} | {seconds:.1f} | {images / seconds:,.0f} |", flush=True)
        return seconds

    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), time.perf_counter()
        truth = write_dataset(folder)
        row("draw and save the sample", len(truth), start)
        start = time.perf_counter()
        catalog = build_catalog(folder / "chest_xray")
        row("catalog of the sample", len(catalog), start)
        start = time.perf_counter()
        row("split by patient", len(resplit(catalog)), start)
        if len(sys.argv) > 1:
            extract(Path(sys.argv[1]), folder / "originals")
            start = time.perf_counter()
            originals = build_catalog(folder / "originals")
            seconds = row("catalog of originals", len(originals), start)
            print(f"\nKaggle's {KAGGLE_IMAGES:,} images at this rate: {seconds / len(originals) * KAGGLE_IMAGES:.0f} s")


if __name__ == "__main__":
    main()
