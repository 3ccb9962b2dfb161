"""What JPEG does to an image, computed on whole batches and on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

# Luminance table of the JPEG standard, ITU-T T.81, Annex K.1.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Compress and decompress gray images as JPEG does, on their device: quantise the cosine transform of 8×8 blocks.

    Args:
        images: float (B, 1, H, W) of 0…1.
        quality: float (B,) of 1…100, on the scale of the Independent JPEG Group.

    Returns:
        float (B, 1, H, W) of 0…1.
    """
    height, width = images.shape[2:]
    frequency = torch.arange(8, device=images.device, dtype=images.dtype)
    cosine = torch.cos((2 * frequency + 1) * frequency[:, None] * math.pi / 16) / 2  # (frequency, position)
    cosine[0] /= math.sqrt(2)
    transform = torch.kron(cosine, cosine)  # (64, 64): of a block's 8×8 pixels
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    table = images.new_tensor(LUMINANCE).view(1, 64, 1) * percent.view(-1, 1, 1)
    table = ((table + 50) / 100).floor().clamp(1, 255)  # (B, 64, 1)
    padded = functional.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate") * 255 - 128
    waves = transform @ functional.unfold(padded, 8, stride=8)  # (B, 64, blocks)
    waves.div_(table).round_().mul_(table)
    pixels = functional.fold(transform.T @ waves, padded.shape[2:], 8, stride=8)
    return pixels.add_(128).round_().clamp_(0, 255).div_(255)[:, :, :height, :width]
