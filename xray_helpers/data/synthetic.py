"""Synthetic chest radiographs with known truth, and a dataset of them structured like Kaggle's.

The drawings are not meant to fool anybody. They have the parts a reader looks for (lung fields, ribs, spine,
heart, diaphragm, collar bones), a lesion whose place is known, and the real dataset's quirks in small, so that
every notebook runs without an account and every audit has something true to find.

A radiograph is a chest as soft geometry, plus what pneumonia adds to it, seen through an exposure. Densities are drawn
in patient coordinates: the origin in the middle of the chest, lengths in units of half the image's height, x growing
towards the image's right (the patient's left), y growing downwards.
"""

import shutil
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from xray_helpers.data.catalog import CAUSE_OF

Array = NDArray[Any]  # floats

CAUSES = ("normal", "bacterial", "viral")
VERSION = 2  # raised when the same seed gives other files
OPACITY = 0.26  # density that the densest bacterial consolidation adds; soft tissue has about 0.5
INTERSTITIAL = 0.13  # density of the strands of the viral pattern
LETTER_R = np.array([[1, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1]], dtype=bool)

# Kaggle's case counters: path of an image (folder, patient, number), share of the patients, begin and end of the block
# of them that makes up test, number of patients in val, and how many images a patient has beyond the first, on average.
COUNTERS = {
    "bacteria": ("{}/PNEUMONIA/person{}_bacteria_{}.jpeg", 0.36, 0.15, 0.25, 8, 1.35),
    "virus": ("{}/PNEUMONIA/person{}_virus_{}.jpeg", 0.23, 0.00, 0.10, 0, 1.15),
    "IM": ("{}/NORMAL/IM-{:04d}-{:04d}.jpeg", 0.20, 0.00, 0.18, 0, 0.35),
    "NORMAL2": ("{}/NORMAL/NORMAL2-IM-{:04d}-{:04d}.jpeg", 0.21, 0.10, 0.28, 8, 0.35),
}

# The planted shortcut: mean height in pixels, mean aspect ratio, JPEG quality, share with a marker, share in RGB.
LOOKS = {
    "NORMAL": (290, 1.26, (88, 96), 0.97, 0.0),
    "PNEUMONIA": (215, 1.44, (66, 90), 0.04, 0.08),
    "either": (250, 1.35, (66, 96), 0.5, 0.05),
}


class Phantom(NamedTuple):
    """One synthetic radiograph: `image` uint8, `mask` (lesion) and `lungs` bool, (H, W) each, and its cause."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    lungs: NDArray[np.bool_]
    cause: str


# What the images of one patient share; lengths in units of half the image's height.
Anatomy = namedtuple("Anatomy", "chest lung heart heart_shift dome ribs rib_phase clavicle tissue")
SMALLEST = Anatomy(0.80, 0.94, 0.25, 0.04, 0.38, 0.165, 0.0, 0.02, 0.42)
LARGEST = Anatomy(0.95, 1.04, 0.35, 0.18, 0.58, 0.195, 1.0, 0.14, 0.54)


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one patient's anatomy from `rng`."""
    return Anatomy(*rng.uniform(SMALLEST, LARGEST).tolist())


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
        exposure: shift of the exposure, in steps of about one standard deviation; positive is brighter.
        marker: `""` for none, `left` or `right` for the top corner with a burned-in letter R.

    Returns:
        The image with the mask of its lesion (empty when normal) and of both lung fields.

    Raises:
        ValueError: `cause` is not one of `CAUSES`.
    """
    if cause not in CAUSES:
        raise ValueError(f"cause={cause!r}: expected one of {', '.join(CAUSES)}")
    anatomy = anatomy or draw_anatomy(rng)
    x, y = _view(rng, height, width)  # (H, W) each
    lungs, density = _chest(x, y, anatomy, rng)
    added, mask = _lesion(cause, x, y, lungs, rng)
    image = _expose(density + np.float32(strength) * added, rng, exposure)
    if marker:  # a letter R, two of its pixels away from the edges
        pixel = max(1, height // 70)
        letter = np.pad(np.kron(LETTER_R, np.ones((pixel, pixel), dtype=bool)), 2 * pixel)
        left = 0 if marker == "left" else width - letter.shape[1]
        image[: letter.shape[0], left : left + letter.shape[1]][letter] = 250
    return Phantom(image, mask, lungs > 0.5, cause)


def _view(rng: np.random.Generator, height: int, width: int) -> tuple[Array, Array]:
    """Patient coordinates of each pixel: a slightly turned, shifted and scaled view, (H, W) each."""
    columns, rows = np.meshgrid(*((2 * np.arange(n, dtype=np.float32) - n + 1) / height for n in (width, height)))
    angle, scale = np.deg2rad(rng.normal(0, 1.5)), rng.uniform(0.97, 1.06)
    dx, dy = rng.normal(0, 0.025, size=2)
    cos, sin = np.float32(np.cos(angle) * scale), np.float32(np.sin(angle) * scale)
    return cos * columns - sin * rows + np.float32(dx), sin * columns + cos * rows + np.float32(dy)


def _step(value: Array, softness: float) -> Array:
    """A soft step from 0 to 1 around zero."""
    return np.clip(value / np.float32(2 * softness) + np.float32(0.5), 0, 1)


def _texture(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Array:
    """Smooth noise of unit standard deviation with about `cells` bumps along the height, (H, W)."""
    height, width = shape
    coarse = rng.standard_normal((cells, max(2, round(cells * width / height)))).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) * np.float32(1.4)


def _chest(x: Array, y: Array, a: Anatomy, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a healthy chest.

    Args:
        x: patient coordinate of each pixel, (H, W).
        y: the same, downwards, (H, W).
        a: the patient's anatomy.
        rng: source of the vessels' pattern.

    Returns:
        The lung fields in [0, 1] and the density (0 is air, about 0.5 soft tissue), (H, W) each.
    """
    # The outlines of the lungs: chest wall, domes of the diaphragm, apex, and what lies between them.
    side = np.abs(x)
    wall = np.float32(a.chest) - 0.42 * np.clip(0.25 - y, 0, None) ** 1.5 - 0.05 * np.clip(y - 0.25, 0, None)
    dome = np.float32(a.dome) + np.float32(0.05) * (x > 0) - 0.02 + 0.9 * (side - 0.45) ** 2  # lower on the left
    apex = -0.70 + 1.6 * (side - 0.28) ** 2
    across, down = x - a.heart_shift, y - 0.20
    along, aside = 0.88 * across + 0.47 * down, 0.88 * down - 0.47 * across  # the heart's long and short axis
    heart = _step(1 - np.hypot(along / (a.heart * 1.30), aside / (a.heart * 0.95)), 0.10)
    mediastinum = _step(0.12 + 0.09 * np.clip(y + 0.35, 0, 1) - side, 0.05)
    centre = np.maximum(mediastinum, heart)
    lungs = _step(a.lung * wall - 0.05 - side, 0.03) * _step(dome - y, 0.02) * _step(y - apex, 0.05) * (1 - centre)

    # Soft tissue: trunk and shoulders, lungs cut out, heart and abdomen denser, the gastric bubble dark.
    shoulders = _step(np.float32(1.06) + 0.75 * np.clip(-y - 0.45, 0, 1) - side, 0.05)
    body = np.maximum(_step(wall + 0.13 - side, 0.04), shoulders * _step(-0.25 - y + 0.3 * (side - 1), 0.10))
    body *= _step(y + 1.02 - 0.25 * np.clip(side - 0.2, 0, 1), 0.10)
    density = a.tissue * body - 0.30 * lungs + 0.18 * centre
    density += 0.16 * body * _step(y - dome, 0.03) * (1 - 0.6 * centre)
    density -= 0.12 * _step(1 - np.hypot((x - 0.42) / 0.17, (y - a.dome - 0.24) / 0.12), 0.25)

    # Bones: spine, ribs, collar bones.
    vertebrae = 0.70 + 0.30 * np.cos(2 * np.pi * (y / 0.155 + a.rib_phase))
    density += 0.12 * _step(0.075 - side, 0.02) * vertebrae * body
    density += 0.13 * _ribs(side, y, a) * _step(wall + 0.03 - side, 0.03) * (1 - 0.75 * centre) * body
    collar = y + 0.62 + a.clavicle * (side - 0.3) * 2 + 0.10 * np.sin(5 * side)
    density += 0.15 * _step(0.035 - np.abs(collar), 0.018) * _step(side - 0.09, 0.03) * _step(0.92 - side, 0.05)

    # Vessels, densest at the hilum.
    hilum = np.exp(-(((side - 0.24) / 0.24) ** 2) - ((y - 0.02) / 0.34) ** 2)
    vessels = np.clip(1 - 2.2 * np.abs(_texture(rng, x.shape, 14)), 0, 1)
    density += 0.16 * lungs * hilum * (0.35 + vessels)
    return lungs, density.astype(np.float32)


def _ribs(side: Array, y: Array, a: Anatomy) -> Array:
    """Posterior ribs falling away from the spine, and fainter anterior ones rising towards it, (H, W)."""

    def bands(height: Array, half: float) -> Array:
        phase = height / a.ribs - a.rib_phase
        across = np.abs(phase - np.round(phase)) / half  # 0 on the midline, 1 at the edge
        return np.asarray(_step(1 - across, 0.12) * (0.65 + 0.35 * across**2))

    back = bands(y - 0.50 * side + 0.24 * side**2 + 0.9, 0.22) * _step(side - 0.06, 0.03)
    front = 0.5 * bands(y + 0.62 * side - 0.50 * side**2 + 0.7, 0.17) * _step(side - 0.35, 0.2)
    return _step(0.62 - y, 0.10) * _step(y + 0.92, 0.05) * (back + front)


def _lesion(cause: str, x: Array, y: Array, lungs: Array, rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Draw what pneumonia adds to a chest.

    Args:
        cause: `normal`, `bacterial` or `viral`.
        x: patient coordinate of each pixel, (H, W).
        y: the same, downwards, (H, W).
        lungs: lung fields in [0, 1], (H, W).
        rng: source of place, size, weight and pattern.

    Returns:
        The density to add and the mask of the lesion (both lungs when viral, empty when normal), (H, W) each.
    """
    if cause == "normal":
        return np.zeros_like(x), np.zeros(x.shape, dtype=bool)
    weight = rng.uniform(0.35, 1.0)
    if cause == "viral":
        net = np.clip(1 - 1.6 * np.abs(_texture(rng, x.shape, 44)), 0, 1)
        net += np.clip(1 - 1.2 * np.abs(_texture(rng, x.shape, 26)), 0, 1)
        patchy = 0.75 + 0.35 * _texture(rng, x.shape, 4)
        return (INTERSTITIAL * weight * lungs * np.clip(patchy, 0.2, 1.3) * net).astype(np.float32), lungs > 0.5
    centre_x, centre_y = rng.choice((-1, 1)) * rng.uniform(0.38, 0.62), rng.uniform(-0.35, 0.35)
    radius_x, radius_y = rng.uniform(0.16, 0.28, size=2)
    edge = 0.16 * _texture(rng, x.shape, 9)
    blob = _step(1 - np.hypot((x - centre_x) / radius_x, (y - centre_y) / radius_y) + edge, 0.35) * lungs
    return (OPACITY * weight * blob * (1 + 0.12 * _texture(rng, x.shape, 20))).astype(np.float32), blob > 0.5


def _expose(density: Array, rng: np.random.Generator, shift: float) -> NDArray[np.uint8]:
    """Density to gray levels, with this view's own exposure, contrast and noise, uint8 (H, W)."""
    gain, offset = rng.normal(1.0, 0.10), rng.normal(0.09, 0.06) + 0.05 * shift
    gamma = np.exp(rng.normal(0.0, 0.16) - 0.15 * shift)
    drift = np.float32(0.025) * _texture(rng, density.shape, 3)
    noise = rng.uniform(0.006, 0.016) * rng.standard_normal(density.shape, dtype=np.float32)
    bright = gain * density + offset + drift * (density > 0.1)
    bright = np.where(bright > 0.6, 0.6 + 0.4 * np.tanh((bright - 0.6) / 0.4), bright)  # film saturates softly
    level = np.clip(bright, 0.01, 1) ** gamma + noise
    return np.asarray((255 * np.clip(level, 0, 1)).round(), dtype=np.uint8)


def write_dataset(
    folder: Path, seed: int = 0, patients: int = 300, shortcut: bool = True, strength: float = 1.0
) -> pd.DataFrame:
    """Write a synthetic dataset with Kaggle's folders, names and quirks under `folder/chest_xray`.

    The quirks: several images per patient, a 16-image `val`, a test folder that is a block of case numbers with
    another exposure, exact duplicates, a bare UUID as a name, RGB files, burned-in markers, a truncated file, a
    text file named .jpeg, everything a second time under `chest_xray/chest_xray`, and `.DS_Store`. Lesion masks go
    to `folder/masks`, the truth of every image to `folder/truth.csv`. The same seed gives the same bytes.

    Args:
        folder: where to write; created when missing.
        seed: seed of everything.
        patients: number of patients (about two images each), 60 at least.
        shortcut: let size, JPEG quality, colour mode and marker depend on the class, as in the real dataset;
            otherwise both classes share one distribution.
        strength: how dense lesions are, relative to the default.

    Returns:
        One row per image: path (relative to `chest_xray`), label, cause, patient, marker, width, height.

    Raises:
        ValueError: fewer than 60 patients, too few for the folders' quirks.
    """
    if patients < 60:
        raise ValueError(f"patients={patients}: at least 60 are needed to fill train, val and test")
    root = folder / "chest_xray"
    cases = list(_plan(np.random.default_rng([seed, 0]), patients))
    for path in {(folder / kind / case.path).parent for case in cases for kind in ("chest_xray", "masks")}:
        path.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        written = pool.map(lambda case: _write(folder, case, seed, shortcut, strength), cases)
        rows = list(tqdm(written, "drawing", len(cases), leave=False, unit="image"))

    # What the real archive has beside its images: broken files, a second copy, what a Mac leaves behind.
    whole = min((root / "train" / "PNEUMONIA").iterdir()).read_bytes()
    (root / "train" / "PNEUMONIA" / "person9001_bacteria_9001.jpeg").write_bytes(whole[: len(whole) // 2])
    (root / "train" / "NORMAL" / "IM-9002-0001.jpeg").write_text("This is not an image.\n")
    shutil.copytree(root, root / "chest_xray")  # lists what is there before it makes the new folder
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    truth = pd.DataFrame(rows).sort_values("path", ignore_index=True)
    truth.to_csv(folder / "truth.csv", index=False, lineterminator="\n")
    return truth


# One image to write: `body` seeds the patient's anatomy, `stream` the view.
_Case = namedtuple("_Case", "path counter patient body stream")


def _plan(rng: np.random.Generator, patients: int) -> Iterator[_Case]:
    """Who is examined how often, and under which name and folder each image goes."""
    stream = 0
    for counter, (path, share, begin, end, in_val, more) in COUNTERS.items():
        count, number, patient = round(share * patients), 0, 0
        for index in range(count):
            patient += 1 + int(rng.random() < 0.25)
            folder = "test" if begin * count <= index < end * count else "val" if index >= count - in_val else "train"
            images = 1 if folder == "val" else int(rng.geometric(1 / (1 + more)))
            repeated = folder == "train" and index % 40 == 10  # the last picture again, as the patient's next number
            for visit in range(images + repeated):
                number = number + 1 if counter in ("bacteria", "virus") else visit + 1
                stream += visit < images
                yield _Case(path.format(folder, patient, number), counter, patient, patient, stream)
        stream, body = stream + 2, patient // 2
        if counter == "IM":
            yield _Case(f"train/NORMAL/{UUID(int=int(rng.integers(1 << 62)))}.jpeg", counter, 9000, body, stream)
        if counter == "NORMAL2":  # one picture under two patients, and a name with a third number
            for other in (patient + 1, patient + 2):
                yield _Case(path.format("train", other, 1), counter, other, body, stream)
            yield _Case(f"train/NORMAL/NORMAL2-IM-{body:04d}-0001-0002.jpeg", counter, body, body, stream - 1)
        if counter == "virus":
            yield _Case(f"train/PNEUMONIA/person{body}_virus_999_1.jpeg", counter, body, body, stream)


def _write(folder: Path, case: _Case, seed: int, shortcut: bool, strength: float) -> dict[str, object]:
    """Draw and save one image; returns its row of the truth."""
    part, label, _ = case.path.split("/")
    cause = CAUSE_OF[case.counter]
    rng = np.random.default_rng([seed, 1, case.stream])
    anatomy = draw_anatomy(np.random.default_rng([seed, 2, list(COUNTERS).index(case.counter), case.body]))
    tall, aspect, quality, marked, colour = LOOKS[label if shortcut else "either"]
    height = int(np.clip(rng.normal(tall, 34), 150, 400))
    width = int(height * np.clip(rng.normal(aspect, 0.12), 1.0, 2.0))
    marker = "left" if rng.random() < marked else ""
    phantom = draw(cause, rng, height, width, anatomy, strength, 1.2 if part == "test" else 0.0, marker)
    image = Image.fromarray(phantom.image).convert("RGB" if rng.random() < colour else "L")
    image.save(folder / "chest_xray" / case.path, quality=int(rng.integers(*quality)))
    if phantom.mask.any():
        Image.fromarray(phantom.mask).save((folder / "masks" / case.path).with_suffix(".png"))
    row = {"path": case.path, "label": label, "cause": cause, "patient": f"{case.counter}-{case.patient}"}
    return {**row, "marker": marker, "width": width, "height": height}


def write_twins(folder: Path, pairs: int = 200, seed: int = 99, strength: float = 2.0) -> None:
    """Write a dataset without shortcuts: each chest once normal, once with a bacterial (focal) lesion.

    Exposure and noise are drawn anew for each image, from the same distribution for both classes. By their names the
    two images of a pair belong to different patients, so a split may separate them: judge a model that was trained on
    twins on new phantoms only.

    Args:
        folder: where to write `chest_xray/train`; created when missing.
        pairs: how many.
        seed: seed of the drawings.
        strength: how dense lesions are, relative to the default.
    """
    names = {"normal": "NORMAL/IM-{0:04}-0001.jpeg", "bacterial": "PNEUMONIA/person{0}_bacteria_{0}.jpeg"}
    for cause, name in names.items():
        (folder / "chest_xray" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        for number in range(pairs):
            phantom = draw(cause, np.random.default_rng((seed, number)), strength=strength)
            Image.fromarray(phantom.image).save(folder / "chest_xray" / "train" / name.format(number), quality=95)
