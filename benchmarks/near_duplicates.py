"""How many near duplicates are found, how many are joined by mistake, and how long it takes.

Usage: python benchmarks/near_duplicates.py [ZIP_OF_RADIOGRAPHS]

Without a zip only phantoms are tried.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from xray_helpers.data.catalog import audit, build_catalog
from xray_helpers.data.download import extract
from xray_helpers.data.near_duplicates import SIZE, find_near_duplicates, near_duplicates
from xray_helpers.data.reader import to_square
from xray_helpers.data.synthetic import draw

FILMS = 200
KINDS = ("half the size", "1.7 times the size", "JPEG of quality 30", "JPEG of quality 10", "mirrored", "all three",
         "turned by 2°", "turned by 3°", "turned by 5°")  # fmt: skip


def change(film: Image.Image, kind: str) -> Image.Image:
    """The film as `kind` says."""
    if kind.startswith("turned"):
        return film.rotate(float(kind.rsplit(maxsplit=1)[-1][:-1]), Image.Resampling.BILINEAR)
    if "size" in kind or kind == "all three":
        factor = 1.7 if "1.7" in kind else 0.5
        film = film.resize((round(film.width * factor), round(film.height * factor)), Image.Resampling.BICUBIC)
    if "JPEG" in kind or kind == "all three":
        content = io.BytesIO()
        film.save(content, "JPEG", quality=10 if "10" in kind else 30)
        film = Image.open(content).convert("L")
    return ImageOps.mirror(film) if kind in ("mirrored", "all three") else film


def recall(films: list[Image.Image], kind: str) -> float:
    """The share of films that are found again among all of them once changed."""
    images: NDArray[np.uint8] = np.stack([to_square(film, SIZE) for film in films + [change(f, kind) for f in films]])
    groups = near_duplicates(images)
    return float((groups[: len(films)] == groups[len(films) :]).mean())


def main() -> None:
    """Print two Markdown tables."""
    rng = np.random.default_rng(0)
    causes = ("normal", "bacterial", "viral")
    drawn = [draw(causes[n % 3], rng, *rng.integers(150, 400, 2).tolist()).image for n in range(FILMS)]
    sets = {"phantoms": [Image.fromarray(image) for image in drawn]}
    with tempfile.TemporaryDirectory() as name:
        if len(sys.argv) > 1:
            root = Path(name) / "chest_xray"
            extract(Path(sys.argv[1]), root)
            catalog = build_catalog(root)
            start = time.perf_counter()
            find_near_duplicates(root, catalog)
            print(f"{len(catalog):,} images compared in {time.perf_counter() - start:.1f} s (goal: at most 10)")
            row = audit(catalog).set_index("check").loc["near duplicates across patients"]
            readable = catalog[catalog["near"] != ""].groupby("near")["pixel_hash"].nunique()
            print(f"groups that are not exact copies: {(readable > 1).sum()}")
            print(f"groups across patients: {row['found']} {row['note']}\n")
            chosen = catalog[catalog["error"] == ""].sample(FILMS, random_state=0)["path"]
            sets["radiographs"] = [Image.open(root / path).convert("L") for path in chosen]
        print("| recall |", " | ".join(sets), "|\n| --- |", "--- | " * len(sets))
        for kind in KINDS:
            print(f"| {kind} |", " | ".join(f"{recall(films, kind):.3f}" for films in sets.values()), "|", flush=True)


if __name__ == "__main__":
    main()
