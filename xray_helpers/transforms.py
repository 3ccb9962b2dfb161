"""From gray pixels to what the network sees: a fixed preparation for every image, and random augmentation in training.

Both work on whole batches, on the device of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import kornia.augmentation as ka
import torch
from torch import Tensor, nn

from xray_helpers.decoding import RESIZES, read_image
from xray_helpers.jpeg import jpeg

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's weights expect
GRAY = 0.449  # mean of IMAGENET_MEAN: what is erased becomes about 0 for the network


@dataclass(frozen=True)
class Preparation:
    """What turns an image into the network's input: the same for train, val, test and prediction, kept with a model.

    Attributes:
        size: side of the square images in pixels.
        resize: how a file becomes square: `squash`, `pad` or `crop`.
        mean: mean of each of the network's three channels.
        std: standard deviation of each channel.
    """

    size: int
    resize: str = "squash"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise ValueError(f"resize={self.resize!r}: expected {', '.join(RESIZES)}")
        for name in ("mean", "std"):  # lists, when they come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name}={getattr(self, name)}: expected one number for each of three channels")

    def read(self, path: Path) -> Tensor:
        """Decode one file; uint8 (1, S, S)."""
        return torch.tensor(read_image(path, self.size, self.resize)).unsqueeze(0)

    def __call__(self, images: Tensor) -> Tensor:
        """Scale to 0…1, repeat to three channels, standardise.

        Args:
            images: (B, 1, S, S), uint8 of 0…255 or float of 0…1.

        Returns:
            float32 (B, 3, S, S).

        Raises:
            ValueError: images of another shape or size.
            TypeError: images of another type of number.
        """
        if images.ndim != 4 or images.shape[1:] != (1, self.size, self.size):
            raise ValueError(f"expected images of shape (B, 1, {self.size}, {self.size}), got {tuple(images.shape)}")
        mean = images.new_tensor(self.mean, dtype=torch.float32).view(3, 1, 1)
        std = images.new_tensor(self.std, dtype=torch.float32).view(3, 1, 1)
        # (images - mean) / std in one pass: what limits it is writing three channels to memory.
        return torch.addcmul(-mean / std, to_unit(images), 1 / std)


def to_unit(images: Tensor) -> Tensor:
    """Gray levels as float32 of 0…1: uint8 is divided by 255, floats are taken to be in that range.

    Raises:
        TypeError: neither uint8 nor floating point.
    """
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise TypeError(f"expected uint8 or floating point images, got {images.dtype}")
    return images.float()


@dataclass(frozen=True)
class Strength:
    """How far each augmentation goes, and how often it is applied."""

    degrees: float  # rotation to either side
    shift: float  # of the side, in each direction
    stretch: float  # of width and of height, each on its own
    exposure: float  # of brightness and contrast
    gamma: float  # largest exponent; the smallest is one over it
    blur: float  # largest standard deviation, in pixels of a side of 224
    quality: float  # lowest JPEG quality
    area: float  # largest part that is erased
    frame: float  # widest frame that is erased, as part of the side
    chance: float  # of each of blur, JPEG, erasing and frame


STRENGTHS = {
    "light": Strength(5, 0.05, 0.05, 0.1, 1.2, 1.0, 40, 0.08, 0.10, 0.25),
    "strong": Strength(10, 0.10, 0.10, 0.2, 1.5, 2.0, 15, 0.15, 0.15, 0.5),
}


def augmentations(strength: str, size: int, flip: bool = False, always: bool = False) -> dict[str, nn.Module]:
    """The random augmentations by name, in the order in which they are applied; parameters differ by image.

    Args:
        strength: `none`, `light` or `strong`.
        size: side of the images in pixels.
        flip: mirror half of the images; off by default, since the heart has a side.
        always: apply each to every image, for figures.

    Raises:
        ValueError: an unknown strength.
    """
    if strength == "none":
        return {}
    if strength not in STRENGTHS:
        raise ValueError(f"augment={strength!r}: expected none, {', '.join(STRENGTHS)}")
    of = STRENGTHS[strength]
    chance = 1.0 if always else of.chance
    near = (1 - of.exposure, 1 + of.exposure)
    scale = (1 - of.stretch, 1 + of.stretch)
    blur = of.blur * size / 224  # pixels
    sides = max(1, round(3 * blur)) * 2 + 1  # three standard deviations to either side
    steps: dict[str, nn.Module] = {"flip": ka.RandomHorizontalFlip(p=1.0 if always else 0.5)} if flip else {}
    return steps | {
        "rotate, shift, stretch": ka.RandomAffine(of.degrees, (of.shift, of.shift), (*scale, *scale), p=1.0),
        "brightness": ka.RandomBrightness(near, p=1.0),
        "contrast": ka.RandomContrast(near, p=1.0),
        "gamma": ka.RandomGamma((1 / of.gamma, of.gamma), p=1.0),
        "blur": Sometimes(ka.RandomGaussianBlur((sides, sides), (0.2 * blur, blur), p=1.0), chance),
        "JPEG": Sometimes(RandomJPEG(of.quality), chance),
        "erase": Sometimes(ka.RandomErasing((0.02, of.area), (0.5, 2.0), value=GRAY, p=1.0), chance),
        "erase frame": Sometimes(RandomFrame(of.frame), chance),
    }


class Augmentation(nn.Module):
    """Random changes that leave the diagnosis as it is, for training batches; does nothing in evaluation mode.

    Each image has random parameters of its own, drawn from PyTorch's global generator: after `seed_everything` the
    same batch is changed in the same way.

    Args:
        strength: `none`, `light` or `strong`.
        size: side of the images in pixels.
        flip: as for `augmentations`.
    """

    def __init__(self, strength: str, size: int, flip: bool = False) -> None:
        super().__init__()
        self.strength, self.size, self.flip = strength, size, flip
        self.steps = nn.Sequential(*augmentations(strength, size, flip).values())

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Change each image of a batch in its own way.

        Args:
            images: (B, 1, S, S), uint8 of 0…255 or float of 0…1.

        Returns:
            float32 (B, 1, S, S) of 0…1, which `Preparation` takes.
        """
        images = to_unit(images)
        return self.steps(images) if self.training else images

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.strength!r}, size={self.size}, flip={self.flip}"


class Sometimes(nn.Module):
    """Apply a step to some images of a batch, each chosen with the same chance, and compute nothing for the others."""

    def __init__(self, step: nn.Module, chance: float) -> None:
        super().__init__()
        self.step, self.chance = step, chance

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) to the same."""
        chosen = torch.nonzero(torch.rand(len(images)) < self.chance).squeeze(1).to(images.device, non_blocking=True)
        return images.index_copy(0, chosen, self.step(images[chosen])) if len(chosen) else images


class RandomJPEG(nn.Module):
    """What JPEG compression at a random quality leaves, so that compression no longer goes with the class."""

    def __init__(self, lowest: float, highest: float = 95) -> None:
        super().__init__()
        self.lowest, self.highest = lowest, highest

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) to the same."""
        return jpeg(images, _uniform(images, self.lowest, self.highest))


class RandomFrame(nn.Module):
    """Erase a frame of random width, where letters and collimation tell the class without the lungs."""

    def __init__(self, widest: float, narrowest: float = 0.02) -> None:
        super().__init__()
        self.narrowest, self.widest = narrowest, widest

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) to the same."""
        sides = [(torch.arange(side, device=images.device) + 0.5) / side for side in images.shape[2:]]
        y, x = (torch.minimum(side, 1 - side) for side in sides)  # distance from the nearer edge, as part of the side
        width = _uniform(images, self.narrowest, self.widest).view(-1, 1, 1, 1)
        return torch.where(torch.minimum(y[:, None], x) >= width, images, GRAY)


def _uniform(images: Tensor, low: float, high: float) -> Tensor:
    """A random number for each image, (B,), drawn on the CPU so that every device sees the same ones."""
    return torch.empty(len(images)).uniform_(low, high).to(images, non_blocking=True)
