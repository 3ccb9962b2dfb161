"""Synthetic chest radiographs whose truth is known, and a dataset of them shaped like Kaggle's.

The drawings are not meant to fool anybody. They have the parts a reader looks for (lung fields, ribs, spine,
heart, diaphragm, collar bones), a lesion whose place is known, and the real dataset's quirks in small, so that
every notebook runs without an account and every audit has something true to find.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from xray_helpers.drawing import Anatomy, Mask, burn_in, chest, expose, lesion, view
from xray_helpers.files import CAUSE_OF

CAUSES = ("normal", "bacterial", "viral")
VERSION = 2  # raised when the same seed gives other files

# Case counters as in Kaggle's names: share of the patients, where the block of them begins and ends that makes up
# the test folder, and how many images a patient has beyond the first, on average.
COUNTERS = {
    "bacteria": (0.36, 0.15, 0.25, 1.35),
    "virus": (0.23, 0.00, 0.10, 1.15),
    "IM": (0.20, 0.00, 0.18, 0.35),
    "NORMAL2": (0.21, 0.10, 0.28, 0.35),
}

# The planted shortcut: mean height in pixels, mean aspect ratio, JPEG quality, share with a marker, share in RGB.
LOOKS = {
    "NORMAL": (290, 1.26, (88, 96), 0.97, 0.0),
    "PNEUMONIA": (215, 1.44, (66, 90), 0.04, 0.08),
    "either": (250, 1.35, (66, 96), 0.5, 0.05),
}


@dataclass(frozen=True)
class Phantom:
    """One synthetic radiograph: `image` uint8, `mask` (lesion) and `lungs` bool, (H, W) each, and its cause."""

    image: NDArray[np.uint8]
    mask: Mask
    lungs: Mask
    cause: str


def draw(
    cause: str,
    rng: np.random.Generator,
    height: int = 256,
    width: int = 320,
    anatomy: Anatomy | None = None,
    strength: float = 1.0,
    exposure: float = 0.0,
    marker: str = "",
) -> Phantom:
    """Draw one radiograph.

    Args:
        cause: `normal`, `bacterial` (one focal lobar opacity) or `viral` (a diffuse interstitial pattern in
            both lungs).
        rng: source of everything random in this view (position, exposure, noise, lesion).
        height: image height in pixels.
        width: image width in pixels.
        anatomy: the patient's; drawn from `rng` when None.
        strength: how dense lesions are, relative to the default.
        exposure: shift of the exposure, in steps of about one deviation; positive is brighter.
        marker: `""` for none, `left` or `right` for the top corner where a burned-in letter R stands.

    Returns:
        The image with the mask of its lesion (empty when normal) and of both lung fields.

    Raises:
        ValueError: `cause` is not one of `CAUSES`.
    """
    if cause not in CAUSES:
        raise ValueError(f"cause={cause!r}: expected one of {', '.join(CAUSES)}")
    anatomy = anatomy or Anatomy.sample(rng)
    x, y = view(rng, height, width)  # (H, W) each
    lungs, density = chest(x, y, anatomy, rng)
    added, mask = lesion(cause, x, y, lungs, rng)
    image = expose(density + np.float32(strength) * added, rng, exposure)
    if marker:
        burn_in(image, marker)
    return Phantom(image, mask, lungs > 0.5, cause)


@dataclass(frozen=True)
class _Case:
    """One file to write: `patient` and `number` name it, `body` seeds its anatomy and `stream` its view."""

    counter: str
    patient: int
    number: int
    body: int
    stream: int
    folder: str = "train"
    name: str = ""

    @property
    def cause(self) -> str:
        return CAUSE_OF[self.counter]

    @property
    def path(self) -> str:
        label = "NORMAL" if self.cause == "normal" else "PNEUMONIA"
        prefix = "" if self.counter == "IM" else "NORMAL2-"
        normal = f"{prefix}IM-{self.patient:04d}-{self.number:04d}"
        pneumonia = f"person{self.patient}_{self.counter}_{self.number}"
        return f"{self.folder}/{label}/{self.name or (normal if label == 'NORMAL' else pneumonia)}.jpeg"


def write_dataset(
    folder: Path, seed: int = 0, patients: int = 300, shortcut: bool = True, strength: float = 1.0
) -> pd.DataFrame:
    """Write a synthetic dataset with Kaggle's folders, names and quirks under `folder/chest_xray`.

    The quirks: several images a patient, a 16-image `val`, a test folder that is a block of case numbers with
    another exposure, exact duplicates, a bare UUID as a name, RGB files, burned-in markers, a truncated file, a
    text file named .jpeg, everything a second time under `chest_xray/chest_xray`, and `.DS_Store`. Lesion masks go
    to `folder/masks`, the truth of every image to `folder/truth.csv`. The same seed gives the same bytes.

    Args:
        folder: where to write; created when missing.
        seed: seed of everything.
        patients: number of patients (about two images each), 60 at least.
        shortcut: let size, JPEG quality, colour mode and marker depend on the class, as in the real dataset;
            otherwise they are drawn alike for both.
        strength: how dense lesions are, relative to the default.

    Returns:
        One row an image: path (relative to `chest_xray`), label, cause, patient, marker, width, height.

    Raises:
        ValueError: fewer than 60 patients, too few for the folders' quirks.
    """
    if patients < 60:
        raise ValueError(f"patients={patients}: at least 60 are needed to fill train, val and test")
    root = folder / "chest_xray"
    cases = list(_plan(np.random.default_rng([seed, 0]), patients))
    for sub in {case.path.rpartition("/")[0] for case in cases}:
        (root / sub).mkdir(parents=True, exist_ok=True)
        (folder / "masks" / sub).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        written = pool.map(lambda case: _write(folder, case, seed, shortcut, strength), cases)
        rows = list(tqdm(written, "drawing", len(cases), leave=False, unit="image"))
    _break_files(root)
    truth = pd.DataFrame(rows).sort_values("path", ignore_index=True)
    truth.to_csv(folder / "truth.csv", index=False, lineterminator="\n")
    return truth


def write_twins(folder: Path, pairs: int = 200, seed: int = 99, strength: float = 2.0) -> None:
    """Write a dataset without shortcuts: each chest once normal, once with a bacterial (focal) lesion.

    Exposure and noise are drawn anew for each image, alike for both classes. The names make patients of the two, so
    that a split may part them: only new phantoms judge a model that was trained on twins.

    Args:
        folder: where to write `chest_xray/train`; created when missing.
        pairs: how many.
        seed: of the drawings.
        strength: how dense lesions are.
    """
    names = {"normal": "NORMAL/IM-{0:04}-0001.jpeg", "bacterial": "PNEUMONIA/person{0}_bacteria_{0}.jpeg"}
    for cause, name in names.items():
        (folder / "chest_xray" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        for number in range(pairs):
            phantom = draw(cause, np.random.default_rng((seed, number)), strength=strength)
            Image.fromarray(phantom.image).save(folder / "chest_xray" / "train" / name.format(number), quality=95)


def _plan(rng: np.random.Generator, patients: int) -> Iterator[_Case]:
    """Who is examined how often, and under which name and folder each image goes."""
    stream = 0
    for counter, (share, begin, end, more) in COUNTERS.items():
        count, number, patient = round(share * patients), 0, 0
        in_val = 0 if counter in ("virus", "IM") else 8
        for index in range(count):
            patient += 1 + int(rng.random() < 0.25)
            # The last eight patients have one image each and make up Kaggle's 16-image val.
            folder = "val" if index >= count - in_val else "train"
            if begin * count <= index < end * count:
                folder = "test"
            images = 1 if folder == "val" else 1 + int(rng.geometric(1 / (1 + more)) - 1)
            for visit in range(images):
                number = number + 1 if counter in ("bacteria", "virus") else visit + 1
                stream += 1
                yield _Case(counter, patient, number, patient, stream, folder)
            if folder == "train" and index % 40 == 10:  # the same picture again, as the patient's next number
                yield _Case(counter, patient, number + 1, patient, stream, folder)
                number += 1
        stream += 2
        middle = _Case(counter, patient // 2, 999, patient // 2, stream)
        if counter == "IM":
            yield replace(middle, patient=9000, name=str(uuid.UUID(int=int(rng.integers(1 << 62)))))
        if counter == "NORMAL2":  # one picture under two patients, and a name with a third number
            yield replace(middle, patient=patient + 1, number=1)
            yield replace(middle, patient=patient + 2, number=1)
            yield replace(middle, name=f"NORMAL2-IM-{middle.patient:04d}-0001-0002", stream=stream - 1)
        if counter == "virus":
            yield replace(middle, name=f"person{middle.patient}_virus_999_1")


def _write(folder: Path, case: _Case, seed: int, shortcut: bool, strength: float) -> dict[str, object]:
    """Draw and save one case; returns its row of the truth."""
    label = case.path.split("/")[1]
    rng = np.random.default_rng([seed, 1, case.stream])
    person = np.random.default_rng([seed, 2, list(COUNTERS).index(case.counter), case.body])
    look = label if shortcut else "either"
    tall, aspect, quality, marked, colour = LOOKS[look]
    height = int(np.clip(rng.normal(tall, 34), 150, 400))
    width = int(height * np.clip(rng.normal(aspect, 0.12), 1.0, 2.0))
    marker = "left" if rng.random() < marked else ""
    exposure = 1.2 if case.folder == "test" else 0.0
    phantom = draw(case.cause, rng, height, width, Anatomy.sample(person), strength, exposure, marker)
    image = Image.fromarray(phantom.image)
    if rng.random() < colour:
        image = image.convert("RGB")
    image.save(folder / "chest_xray" / case.path, quality=int(rng.integers(*quality)))
    if phantom.mask.any():
        mask = (folder / "masks" / case.path).with_suffix(".png")
        Image.fromarray(phantom.mask).save(mask)
    patient = f"{case.counter}-{case.patient}"
    row = {"path": case.path, "label": label, "cause": case.cause, "patient": patient}
    return {**row, "marker": marker, "width": width, "height": height}


def _break_files(root: Path) -> None:
    """Add what the real archive has beside its images: broken files, a second copy, a Mac's leftovers."""
    train = root / "train"
    whole = min((train / "PNEUMONIA").iterdir()).read_bytes()
    (train / "PNEUMONIA" / "person9001_bacteria_9001.jpeg").write_bytes(whole[: len(whole) // 2])
    (train / "NORMAL" / "IM-9002-0001.jpeg").write_text("This is not an image.\n")
    shutil.copytree(root, root.parent / "second")
    shutil.move(root.parent / "second", root / "chest_xray")
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
