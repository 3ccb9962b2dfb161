"""How a model fares where a shortcut is wrong: on conflicting images, at the ends of a split, and under corruptions.

Ordinary validation images resemble the training images in style as well as in anatomy, so a model that learned the
style does well there. These test beds part the two. They are made from train and validation alone.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from kornia.filters import gaussian_blur2d
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional

from xray_helpers.data.dataset import PreparedData, make_loaders, prepare_data
from xray_helpers.data.shortcuts import out_of_fold_scores, style_features
from xray_helpers.data.splits import linked
from xray_helpers.data.transforms import GRAY, Augmentation, jpeg, to_unit
from xray_helpers.inference import Transform, judged_classes, probabilities, run_network
from xray_helpers.metrics import evaluate
from xray_helpers.settings import Settings
from xray_helpers.training.engine import fit
from xray_helpers.training.model import freeze
from xray_helpers.training.train import initial_model

SHARE = 0.15  # of each class that counts as conflicting
FIGURES = ("auc", "accuracy", "specificity", "sensitivity", "loss", "calibration_intercept")
LEVELS = (1, 2, 3)  # of each corruption, from slight to strong


def conflicting(data: PreparedData, share: float = SHARE) -> pd.DataFrame:
    """The training images of each class whose style speaks most for another class.

    Style is what `style_features` sees; its score of an image is learned from other patients' images.

    Args:
        data: from `prepare_data`; only its train part is looked at.
        share: of each class that is taken.

    Returns:
        Rows of `data.manifest`, with a column `style`: what the style says for the image's own class, as a place
        among all images from 0 to 1.

    Raises:
        ValueError: a class has too few patients for five folds.
    """
    target = data.settings.target
    train = data.manifest[data.manifest["split"] == "train"].reset_index(drop=True)
    features = style_features(data.cache.images[data.cache.find(train["path"].tolist())])
    scores = out_of_fold_scores(features, train[target], train["patient_coarse"])
    own = pd.factorize(train[target], sort=True)[0]
    train["style"] = scores[np.arange(len(train)), own]
    place = train.groupby(target)["style"].rank(method="first", pct=True)
    return train[place <= share]


def hold_out_conflicting(data: PreparedData, share: float = SHARE) -> pd.DataFrame:
    """A split to train a model that has seen no conflicting image, nor another image of these patients.

    Args:
        data: from `prepare_data`.
        share: as for `conflicting`.

    Returns:
        A manifest for `make_loaders(data, manifest=…, test=True)`: `test` holds the conflicting images, `val` is that
        of `data`, and `train` what is left of its train part. What was `test` before is not in it.
    """
    rows = data.manifest[data.manifest["split"] != "test"].reset_index(drop=True)
    chosen = rows["path"].isin(conflicting(data, share)["path"])
    groups = pd.Series(linked(rows, ["patient_fine", "patient_coarse", "pixel_hash", "near"]))
    kept = ~groups.isin(groups[chosen]) | (rows["split"] == "val")
    return rows.assign(split=rows["split"].mask(chosen, "test"))[kept | chosen].reset_index(drop=True)


def bed(
    truth: ArrayLike, probability: ArrayLike, patients: ArrayLike | None = None, draws: int = 500
) -> dict[str, Any]:
    """What a test bed shows of a model, by the names in `FIGURES`, at a threshold of 0.5.

    Args:
        truth: 0 or 1, (N,).
        probability: of class 1, (N,).
        patients: as for `metrics.evaluate`.
        draws: number of bootstrap draws.

    Returns:
        n and, for each figure, a mapping with value and, but for the loss, low and high.
    """
    found = evaluate(truth, probability, patients, draws=draws)
    figures = found | found["at"]["0.5"]
    return {"n": found["n"]} | {name: figures[name] for name in FIGURES} | {"loss": {"value": found["loss"]}}


def bed_table(beds: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row per test bed, from `bed`, and the worst value of each figure over all of them in a last row.

    The worst is the lowest for shares and the AUC, the highest loss, and the intercept that is farthest from 0.
    """
    table = pd.DataFrame.from_dict(beds, orient="index")
    quality = table[list(FIGURES)].map(lambda found: found["value"]).astype(float)  # the higher, the better
    quality["loss"], quality["calibration_intercept"] = -quality["loss"], -quality["calibration_intercept"].abs()
    worst = {"n": table["n"].min()} | {name: table.loc[quality[name].idxmin(), name] for name in FIGURES}
    return pd.concat([table, pd.DataFrame({"worst": worst}).T[table.columns]])


def bench(settings: Settings, start: str = "none", epochs: int = 2) -> pd.DataFrame:
    """Judge a recipe where style and anatomy disagree: train a small model of it without the conflicting images.

    It learns at 128 pixels at most, in `bench` of the processed folder, and is then judged on validation and on the
    conflicting images.

    Args:
        settings: of the recipe.
        start: what weights it starts from, `imagenet` or `none`.
        epochs: of its training.

    Returns:
        As `bed_table`; of more than two classes, each is judged against the rest.
    """
    small = replace(settings, image_size=min(128, settings.image_size), weights=start)
    data = prepare_data(small)
    loaders = make_loaders(data, settings.batch_size, settings.seed, manifest=hold_out_conflicting(data), test=True)
    network, augment = initial_model(small, loaders)[0], Augmentation(small.augment, small.image_size)
    if network.weights != "none":
        freeze(network, small.frozen)
    folder = settings.processed_folder / "bench"
    model = fit(network, loaders, folder, epochs, augment=augment, name="bench", fresh=True, verbose=False).model

    beds = {}
    for name, loader in (("validation", loaders.val), ("conflicting images", loaders.test)):
        truth, patients = loader.dataset.labels.numpy(), loader.dataset.patients
        chances = probabilities(run_network(model, loader, loaders.preprocess)).reshape(len(truth), -1).numpy()
        for judged, chance in zip(judged_classes(data.classes), chances.T, strict=True):
            beds[f"{name}, {judged}"] = bed(truth == data.classes.index(judged), chance, patients)
    return bed_table(beds)


def _downscale(images: Tensor, factor: float) -> Tensor:
    small = functional.interpolate(images, scale_factor=1 / factor, mode="area")
    return functional.interpolate(small, images.shape[2:], mode="bilinear")


def _zoom(images: Tensor, factor: float) -> Tensor:
    side = images.shape[-1]
    edge = round(side * (1 - 1 / factor) / 2)
    return functional.interpolate(images[..., edge : side - edge, edge : side - edge], (side, side), mode="bilinear")


def _blur(images: Tensor, sigma: float) -> Tensor:
    sigma *= images.shape[-1] / 224
    sides = max(1, math.ceil(3 * sigma)) * 2 + 1
    return gaussian_blur2d(images, (sides, sides), (sigma, sigma))


def _noise(images: Tensor, deviation: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)  # the same noise for every model
    return images + deviation * torch.randn(images.shape[1:], generator=generator).to(images)


def _border(images: Tensor, width: float) -> Tensor:
    edge = round(width * images.shape[-1])
    return functional.pad(images[..., edge:-edge, edge:-edge], (edge,) * 4, value=GRAY)


# Each corruption: what its number means, and its strength at each of `LEVELS`.
CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "darker": (lambda images, factor: images * factor, (0.85, 0.7, 0.5)),  # all gray levels times this
    "brighter": (lambda images, factor: images * factor, (1.15, 1.35, 1.7)),
    "less contrast": (lambda images, factor: (images - 0.5) * factor + 0.5, (0.75, 0.5, 0.3)),
    "more contrast": (lambda images, factor: (images - 0.5) * factor + 0.5, (1.25, 1.5, 2.0)),
    "gamma below 1": (lambda images, power: images**power, (0.8, 0.65, 0.5)),
    "gamma above 1": (lambda images, power: images**power, (1.25, 1.6, 2.0)),
    "blur": (_blur, (1.0, 2.0, 3.0)),  # standard deviation in pixels of a side of 224
    "noise": (_noise, (0.02, 0.05, 0.1)),  # standard deviation, white is 1
    "JPEG": (lambda images, quality: jpeg(images, torch.full((len(images),), quality).to(images)), (40, 20, 8)),
    "zoom in": (_zoom, (1.1, 1.25, 1.5)),
    "downscaled": (_downscale, (1.5, 2.0, 3.0)),  # and scaled up again
    "border erased": (_border, (0.04, 0.08, 0.12)),  # share of the side
}


def corrupt(images: Tensor, name: str, level: int) -> Tensor:
    """Change images as other scanners, exposures or archives would, more so at each level.

    Args:
        images: (B, 1, S, S), uint8 of 0…255 or float of 0…1.
        name: one of `CORRUPTIONS`.
        level: one of `LEVELS`.

    Returns:
        float32 (B, 1, S, S) of 0…1, which `Preprocess` takes.

    Raises:
        ValueError: an unknown corruption or level.
    """
    if name not in CORRUPTIONS or level not in LEVELS:
        raise ValueError(f"{name!r} at level {level}: expected one of {', '.join(CORRUPTIONS)}, at 1, 2 or 3")
    change, strengths = CORRUPTIONS[name]
    return change(to_unit(images), strengths[level - 1]).clamp(0, 1)


def corrupted_logits(
    network: nn.Module, images: Tensor, preprocess: Transform, name: str, level: int, batch: int = 64
) -> Tensor:
    """A network's outputs for corrupted images, float32 (N, C) on the CPU.

    Args:
        network: in evaluation mode.
        images: uint8 (N, 1, S, S).
        preprocess: as the network was trained with.
        name: as for `corrupt`.
        level: as for `corrupt`.
        batch: images at once.
    """
    device = next(network.parameters()).device
    parts = ((corrupt(part.to(device), name, level), None) for part in images.split(batch))
    return run_network(network, parts, preprocess)
