"""How a synthetic radiograph is drawn: a chest as soft geometry, what pneumonia adds to it, and the exposure.

Densities are drawn in patient coordinates: the origin in the middle of the chest, lengths in units of half the
image's height, x growing towards the image's right (the patient's left), y growing downwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]  # floats
Mask = NDArray[np.bool_]

OPACITY = 0.26  # density that the densest bacterial consolidation adds; soft tissue has about 0.5
INTERSTITIAL = 0.13  # density of the viral network's strands

LETTER_R = np.array([[1, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1]], dtype=bool)


@dataclass(frozen=True)
class Anatomy:
    """What one patient's images share; lengths in units of half the image's height."""

    chest: float
    lung: float
    heart: float
    heart_shift: float
    dome: float
    ribs: float
    rib_phase: float
    clavicle: float
    tissue: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Anatomy:
        """Draw one patient's anatomy from `rng`."""
        low = np.array([0.80, 0.94, 0.25, 0.04, 0.38, 0.165, 0.0, 0.02, 0.42])
        high = np.array([0.95, 1.04, 0.35, 0.18, 0.58, 0.195, 1.0, 0.14, 0.54])
        return cls(*rng.uniform(low, high).tolist())


def _step(value: Array, softness: float) -> Array:
    """A soft step from 0 to 1 around zero."""
    return np.clip(value / np.float32(2 * softness) + np.float32(0.5), 0, 1)


def texture(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Array:
    """Smooth noise of unit deviation with about `cells` bumps along the height, (H, W)."""
    height, width = shape
    coarse = rng.standard_normal((cells, max(2, round(cells * width / height)))).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) * np.float32(1.4)


def chest(x: Array, y: Array, a: Anatomy, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a healthy chest.

    Args:
        x: patient coordinate of each pixel, (H, W).
        y: the same, downwards, (H, W).
        a: the patient's anatomy.
        rng: source of the vessels' pattern.

    Returns:
        The lung fields in [0, 1] and the density (0 is air, about 0.5 soft tissue), (H, W) each.
    """
    side = np.abs(x)
    left = np.float32(1.0) * (x > 0)  # the patient's left is on the image's right
    wall = np.float32(a.chest) - 0.42 * np.clip(0.25 - y, 0, None) ** 1.5 - 0.05 * np.clip(y - 0.25, 0, None)
    dome = np.float32(a.dome) + 0.05 * left - 0.02 + 0.9 * (side - 0.45) ** 2
    apex = -0.70 + 1.6 * (side - 0.28) ** 2
    across, down = x - a.heart_shift, y - 0.20
    tilted = np.hypot(
        (0.88 * across + 0.47 * down) / (a.heart * 1.30), (0.88 * down - 0.47 * across) / (a.heart * 0.95)
    )
    heart = _step(1 - tilted, 0.10)
    mediastinum = _step(0.12 + 0.09 * np.clip(y + 0.35, 0, 1) - side, 0.05)
    centre = np.maximum(mediastinum, heart)
    lungs = _step(a.lung * wall - 0.05 - side, 0.03) * _step(dome - y, 0.02) * _step(y - apex, 0.05) * (1 - centre)

    shoulders = _step(np.float32(1.06) + 0.75 * np.clip(-y - 0.45, 0, 1) - side, 0.05)
    body = np.maximum(_step(wall + 0.13 - side, 0.04), shoulders * _step(-0.25 - y + 0.3 * (side - 1), 0.10))
    body *= _step(y + 1.02 - 0.25 * np.clip(side - 0.2, 0, 1), 0.10)
    density = a.tissue * body - 0.30 * lungs + 0.18 * centre
    density += 0.16 * body * _step(y - dome, 0.03) * (1 - 0.6 * centre)
    density -= 0.12 * _step(1 - np.hypot((x - 0.42) / 0.17, (y - a.dome - 0.24) / 0.12), 0.25)  # gastric bubble

    vertebrae = 0.70 + 0.30 * np.cos(2 * np.pi * (y / 0.155 + a.rib_phase))
    density += 0.12 * _step(0.075 - side, 0.02) * vertebrae * body
    density += 0.13 * _ribs(side, y, a) * _step(wall + 0.03 - side, 0.03) * (1 - 0.75 * centre) * body
    collar = y + 0.62 + a.clavicle * (side - 0.3) * 2 + 0.10 * np.sin(5 * side)
    density += 0.15 * _step(0.035 - np.abs(collar), 0.018) * _step(side - 0.09, 0.03) * _step(0.92 - side, 0.05)

    hilum = np.exp(-(((side - 0.24) / 0.24) ** 2) - ((y - 0.02) / 0.34) ** 2)
    vessels = np.clip(1 - 2.2 * np.abs(texture(rng, x.shape, 14)), 0, 1)
    density += 0.16 * lungs * hilum * (0.35 + vessels)
    return lungs, density.astype(np.float32)


def _ribs(side: Array, y: Array, a: Anatomy) -> Array:
    """Posterior ribs falling away from the spine, and fainter anterior ones rising towards it, (H, W)."""
    back = (y - 0.50 * side + 0.24 * side**2 + 0.9) / a.ribs - a.rib_phase
    front = (y + 0.62 * side - 0.50 * side**2 + 0.7) / a.ribs - a.rib_phase

    def bands(phase: Array, half: float) -> Array:
        across = np.abs(phase - np.round(phase)) / half  # 0 on the midline, 1 at the edge
        return _step(1 - across, 0.12) * (0.65 + 0.35 * across**2)

    shown = _step(0.62 - y, 0.10) * _step(y + 0.92, 0.05)
    return shown * (bands(back, 0.22) * _step(side - 0.06, 0.03) + 0.5 * bands(front, 0.17) * _step(side - 0.35, 0.2))


def lesion(cause: str, x: Array, y: Array, lungs: Array, rng: np.random.Generator) -> tuple[Array, Mask]:
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
        net = np.clip(1 - 1.6 * np.abs(texture(rng, x.shape, 44)), 0, 1)
        net += np.clip(1 - 1.2 * np.abs(texture(rng, x.shape, 26)), 0, 1)
        patchy = 0.75 + 0.35 * texture(rng, x.shape, 4)
        return (INTERSTITIAL * weight * lungs * np.clip(patchy, 0.2, 1.3) * net).astype(np.float32), lungs > 0.5
    centre_x = rng.choice((-1, 1)) * rng.uniform(0.38, 0.62)
    centre_y = rng.uniform(-0.35, 0.35)
    radius_x, radius_y = rng.uniform(0.16, 0.28, size=2)
    edge = 0.16 * texture(rng, x.shape, 9)
    blob = _step(1 - np.hypot((x - centre_x) / radius_x, (y - centre_y) / radius_y) + edge, 0.35) * lungs
    return (OPACITY * weight * blob * (1 + 0.12 * texture(rng, x.shape, 20))).astype(np.float32), blob > 0.5


def view(rng: np.random.Generator, height: int, width: int) -> tuple[Array, Array]:
    """Patient coordinates of each pixel: a slightly turned, shifted and scaled view, (H, W) each."""
    columns, rows = np.meshgrid(
        (np.arange(width, dtype=np.float32) - (width - 1) / 2) / (height / 2),
        (np.arange(height, dtype=np.float32) - (height - 1) / 2) / (height / 2),
    )
    angle, scale = np.deg2rad(rng.normal(0, 1.5)), rng.uniform(0.97, 1.06)
    dx, dy = rng.normal(0, 0.025, size=2)
    cos, sin = np.float32(np.cos(angle) * scale), np.float32(np.sin(angle) * scale)
    return cos * columns - sin * rows + np.float32(dx), sin * columns + cos * rows + np.float32(dy)


def expose(density: Array, rng: np.random.Generator, shift: float) -> NDArray[np.uint8]:
    """Density to gray levels, with exposure, contrast and noise of this view's own, uint8 (H, W)."""
    gain, offset = rng.normal(1.0, 0.10), rng.normal(0.09, 0.06) + 0.05 * shift
    gamma = np.exp(rng.normal(0.0, 0.16) - 0.15 * shift)
    drift = np.float32(0.025) * texture(rng, density.shape, 3)
    noise = rng.uniform(0.006, 0.016) * rng.standard_normal(density.shape, dtype=np.float32)
    bright = gain * density + offset + drift * (density > 0.1)
    bright = np.where(bright > 0.6, 0.6 + 0.4 * np.tanh((bright - 0.6) / 0.4), bright)  # film saturates softly
    level = np.clip(bright, 0.01, 1) ** gamma + noise
    gray: NDArray[np.uint8] = (255 * np.clip(level, 0, 1)).round().astype(np.uint8)
    return gray


def burn_in(image: NDArray[np.uint8], side: str) -> None:
    """Write a letter R into a top corner of `image`, in place."""
    pixel = max(1, image.shape[0] // 70)
    letter = np.kron(LETTER_R, np.ones((pixel, pixel), dtype=bool))
    height, width = letter.shape
    left = 2 * pixel if side == "left" else image.shape[1] - width - 2 * pixel
    image[2 * pixel : 2 * pixel + height, left : left + width][letter] = 250
