"""From gray pixels to what the network sees: fixed preprocessing for every image, and random augmentation in training.

Both work on whole batches, on the device of the batch.
"""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import kornia.augmentation as ka
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from xray_helpers.data.reader import RESIZES, UNKNOWN, Source, Whites, read_film, to_square

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's weights expect
GRAY = 0.449  # mean of IMAGENET_MEAN: what is erased becomes about 0 for the network


@dataclass(frozen=True)
class Preprocess:
    """Turns images into the network's input: the same for train, val, test and prediction, and kept with a model.

    Attributes:
        size: side of the square images in pixels.
        resize: how a file becomes square: `squash`, `pad` or `crop`.
        mean: mean of each of the network's three channels.
        std: standard deviation of each channel.
        whites: the level that counts as white in images of more than 8 bits, of integers and of floats, as found from
            the training data; None where it had none, so that each file's own levels decide.
    """

    size: int
    resize: str = "squash"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    whites: Whites = field(default=UNKNOWN, repr=False)

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise ValueError(f"resize={self.resize!r}: expected {', '.join(RESIZES)}")
        for name in ("mean", "std", "whites"):  # lists, when they come from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not len(self.mean) == len(self.std) == 3:
            raise ValueError(f"mean={self.mean}, std={self.std}: expected one number for each of three channels")

    def read(self, path: Path) -> Tensor:
        """Decode one file; uint8 (1, S, S)."""
        return self.read_noted(path)[0]

    def read_noted(self, path: Source) -> tuple[Tensor, str]:
        """Decode one file, or a member of a zip: uint8 (1, S, S), and a note on what reading had to do."""
        film = read_film(path, self.size)
        image = to_square(film.gray(self.whites), self.size, self.resize)
        return torch.tensor(image).unsqueeze(0), film.notes(self.whites)

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
        if images.shape[1:] != (1, self.size, self.size):
            raise ValueError(f"expected images of shape (B, 1, {self.size}, {self.size}), got {tuple(images.shape)}")
        mean, std = (images.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (self.mean, self.std))
        # (images - mean) / std in one pass: what limits it is writing three channels to memory.
        return torch.addcmul(-mean / std, to_unit(images), 1 / std)


def to_unit(images: Tensor) -> Tensor:
    """Gray levels as float32 of 0…1: uint8 is divided by 255, floats are taken to be in that range.

    Raises:
        TypeError: neither uint8 nor floating point.
    """
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"expected uint8 or floating point images, got {images.dtype}")
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


@dataclass(frozen=True)
class Shrunk:
    """A step for images of a smaller side: larger ones are shrunk first, by averaging.

    Attributes:
        step: augmentation or preprocessing of images (B, 1, size, size).
        size: their side in pixels.
    """

    step: Callable[[Tensor], Tensor]
    size: int

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 1, S, S) to what the step makes of them."""
        if images.shape[-1] > self.size:
            images = functional.interpolate(to_unit(images), (self.size, self.size), mode="area")
        return self.step(images)


def gray_statistics(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What tells an unusual image from usual ones, by its gray levels alone.

    Args:
        images: uint8 (B, 1, S, S).

    Returns:
        Mean and standard deviation of each image's gray levels, float32 (B,), and its 8 × 8 thumbnail, (B, 64).
    """
    levels = images.float()
    return levels.mean((1, 2, 3)), levels.std((1, 2, 3)), functional.adaptive_avg_pool2d(levels, 8).flatten(1)


# How far each augmentation goes: degrees of rotation to either side; shift and stretch as part of the side; exposure as
# part of brightness and contrast; the largest gamma (the smallest is one over it); the largest blur, in pixels of a
# side of 224; the lowest JPEG quality; the largest area and the widest frame that are erased; the chance of each of
# blur, JPEG, erasing and frame; and that of a random filter. No area and no chance of a filter leave these two out.
Strength = namedtuple("Strength", "degrees shift stretch exposure gamma blur quality area frame chance filter")
STRENGTHS = {
    "light": Strength(5, 0.05, 0.05, 0.1, 1.2, 1.0, 40, 0.08, 0.10, 0.25, 0.0),
    "strong": Strength(10, 0.10, 0.10, 0.2, 1.5, 2.0, 15, 0.15, 0.15, 0.5, 0.0),
    # The default: another scanner's and exposure's picture of the same chest (docs/robustness.md).
    "style": Strength(5, 0.05, 0.05, 0.4, 1.6, 1.0, 40, 0.0, 0.15, 0.25, 0.5),
}


def augmentations(strength: str, size: int, flip: bool = False, always: bool = False) -> dict[str, nn.Module]:
    """The random augmentations by name, in the order in which they are applied; each image gets parameters of its own.

    Args:
        strength: `none`, `light`, `strong`, or `style`: mild geometry, but large changes of exposure and texture.
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
    s = STRENGTHS[strength]
    chance, filters = (1.0, 1.0) if always else (s.chance, s.filter)
    near = (1 - s.exposure, 1 + s.exposure)
    scale = (1 - s.stretch, 1 + s.stretch) * 2
    blur = s.blur * size / 224  # pixels
    sides = max(1, round(3 * blur)) * 2 + 1  # three standard deviations to either side
    edge = "border" if s.filter else "zeros"  # what lies outside of a turned image
    steps: dict[str, nn.Module] = {"flip": ka.RandomHorizontalFlip(p=1.0 if always else 0.5)} if flip else {}
    if s.filter:
        steps["filter"] = RandomApply(RandomFilter(), filters)
    steps |= {
        "rotate, shift, stretch": ka.RandomAffine(s.degrees, (s.shift, s.shift), scale, p=1.0, padding_mode=edge),
        "brightness": ka.RandomBrightness(near, p=1.0),
        "contrast": ka.RandomContrast(near, p=1.0),
        "gamma": ka.RandomGamma((1 / s.gamma, s.gamma), p=1.0),
        "blur": RandomApply(ka.RandomGaussianBlur((sides, sides), (0.2 * blur, blur), p=1.0), chance),
        "JPEG": RandomApply(RandomJPEG(s.quality), chance),
    }
    if s.area:
        steps["erase"] = RandomApply(ka.RandomErasing((0.02, s.area), (0.5, 2.0), value=GRAY, p=1.0), chance)
    steps["erase frame"] = RandomApply(RandomFrame(s.frame), chance)
    return steps


class Augmentation(nn.Module):
    """Random changes that leave the diagnosis as it is, for training batches; does nothing in evaluation mode.

    Each image has random parameters of its own, drawn from PyTorch's global generator: after `seed_everything` the
    same batch is changed in the same way.

    Args:
        strength: as for `augmentations`.
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
            float32 (B, 1, S, S) of 0…1, which `Preprocess` takes.

        Raises:
            ValueError: images of another shape.
        """
        if images.ndim != 4 or images.shape[1] != 1:
            raise ValueError(f"Augmentation takes gray images of shape (B, 1, S, S), got {tuple(images.shape)}")
        images = to_unit(images)
        return self.steps(images) if self.training else images

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.strength!r}, size={self.size}, flip={self.flip}"


class RandomApply(nn.Module):
    """Apply a step to some images of a batch, each chosen with probability `p`, and compute nothing for the others."""

    def __init__(self, step: Callable[[Tensor], Tensor], p: float) -> None:
        super().__init__()
        self.step, self.p = step, p

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) to the same."""
        chosen = torch.nonzero(torch.rand(len(images)) < self.p).squeeze(1).to(images.device, non_blocking=True)
        return images.index_copy(0, chosen, self.step(images[chosen])) if len(chosen) else images


class RandomFilter(nn.Module):
    """Mix each image with what a random 3×3 filter makes of it, at the image's own mean and deviation.

    Edges stay where they are, and sharpness, noise and texture become those of no scanner in particular. After RandConv
    (Xu et al. 2021, "Robust and Generalizable Visual Representation Learning via Random Convolutions").
    """

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) to the same."""
        count = len(images)
        weights = torch.randn(count, 1, 3, 3).to(images, non_blocking=True)
        padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
        filtered = functional.conv2d(padded.transpose(0, 1), weights, groups=count).transpose(0, 1)
        (mean, spread), (new_mean, new_spread) = (
            (x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)) for x in (images, filtered)
        )
        filtered = (filtered - new_mean) * (spread / new_spread.clamp(min=1e-4)) + mean
        return torch.lerp(images, filtered, _uniform(images, 0, 1).view(-1, 1, 1, 1)).clamp(0, 1)


class RandomJPEG(nn.Module):
    """The effect of JPEG compression at a random quality, so that compression no longer goes with the class."""

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


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Compress and decompress gray images as JPEG, on the CPU; the result is on their device.

    Args:
        images: float (B, 1, H, W) of 0…1.
        quality: float (B,) of 1…100, on the scale of the Independent JPEG Group.

    Returns:
        float (B, 1, H, W) of 0…1.
    """
    levels, whole = (images * 255).round().to("cpu", torch.uint8), quality.round().int().tolist()
    saved = [v2.functional.jpeg(image, each) for image, each in zip(levels, whole, strict=True)]
    return torch.stack(saved).to(images) / 255
