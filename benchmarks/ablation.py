"""Which recipe does best where the shortcut is wrong: one row per run and test bed in `results/ablation.csv`.

Usage: python benchmarks/ablation.py [--names NAME …] [--add NAME JSON] [--seeds 0 1 2] [--size 128]
[--beds conflicting low high pooled] [--jobs 1], with XRAY_DATA=<zip of all radiographs>. A new recipe is what it
changes of version 0.1's default, as in --add "mixup, 5 epochs" '{"mixup": 0.4, "epochs": 5}' (see `Recipe`).

Every recipe is version 0.1's default but for what its name says. Each test bed trains a model of its own on the
training part of the data (the pooled split's train and val; its test part and Kaggle's test folder take no part), for
the recipe's number of epochs, and judges the last weights:

- `conflicting`: without the images whose style speaks for the other class, and judged on these;
- `low`, `high`: without the lowest or the highest patient numbers of each counter, and judged on these;
- `pooled`: the ordinary split, judged on validation, and on validation under each corruption.

Rows that the table holds for the same recipe, size, seed and bed are not made again.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kornia.augmentation as ka
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from xray_helpers.data.dataset import PreparedData, prepare_data
from xray_helpers.data.shortcuts import fit_boosting, style_features
from xray_helpers.data.splits import resplit
from xray_helpers.data.transforms import Preprocess, RandomApply, RandomFrame, Shrunk, augmentations, to_unit
from xray_helpers.evaluation.robustness import (
    CORRUPTIONS,
    FIGURES,
    LEVELS,
    SHARE,
    bed,
    corrupted_logits,
    hold_out_conflicting,
)
from xray_helpers.inference import classification_loss, make_accelerator, place_network, probabilities, run_network
from xray_helpers.metrics import scores
from xray_helpers.settings import Settings, seed_everything
from xray_helpers.training.engine import WEIGHT_DECAY, epoch_seed, fit_head, train_one_epoch
from xray_helpers.training.model import build_model, layer_groups, parameter_groups, prior_logits, set_prior

TABLE = Path(__file__).parent / "results" / "ablation.csv"
BEDS = ("conflicting", "low", "high", "pooled")
WITH_INTERVALS = ("auc", "specificity", "sensitivity")
INTERVALS = [f"{name}_{end}" for name in WITH_INTERVALS for end in ("low", "high")]
COLUMNS = ["recipe", "settings", "size", "seed", "bed", "n", *FIGURES, *INTERVALS, "worst", "seconds", "machine"]


@dataclass(frozen=True)
class Recipe:
    """What is varied; the defaults are those of version 0.1."""

    augment: str = "light"  # none, light or strong, without the parts after a minus, with those after a plus sign
    epochs: int = 3
    rate: float = 3e-4
    decay: float = 0.5  # of the learning rate from a group of layers to the one before it
    head_first: bool = True
    frozen: tuple[str, ...] = ()  # groups of layers
    statistics: str = "kept"  # of batch normalisation: kept, follow, estimated (before training), again (also after)
    average: str = "none"  # none, ema 0.98, swa (of the last third), interpolate 0.7 (share of the fine-tuned weights)
    loss: str = "plain"  # plain, balanced, focal, dro (groups by class and style)
    weight: int = 1  # how often an image that is conflicting within the training images is drawn
    style: float = 0.0  # times the style's log-odds, added to the logits in training alone (Clark et al. 2019)
    mixup: float = 0.0  # strength of mixing two images and their labels (Zhang et al. 2018)
    standardise: str = "none"  # none, image (its own mean and deviation), equal (its histogram), local (no low waves)
    sizes: tuple[int, ...] = ()  # sides of the images epoch by epoch; empty is the full size
    batch: int = 32
    smoothing: float = 0.0
    views: str = "one"  # at test time: one, flip, zoom, prior (as if both classes were equally frequent)


def recipes(table: pd.DataFrame) -> dict[str, Recipe]:
    """By name, every recipe that the table has rows of."""
    settings = dict(zip(table["recipe"], table["settings"].map(json.loads), strict=True))
    return {name: Recipe(**each) for name, each in settings.items() if "ensemble" not in each}


def key(recipe: Recipe) -> str:
    """What a recipe changes of version 0.1's default, as JSON."""
    before = asdict(Recipe())
    return json.dumps({name: value for name, value in asdict(recipe).items() if value != before[name]})


# --- the parts that are not in the package ------------------------------------------------------------------------


def _shade(images: Tensor) -> Tensor:
    """Multiply by a smooth random field, as uneven exposure would."""
    field = torch.randn(len(images), 1, 4, 4).to(images) * 0.3
    return (images * functional.interpolate(field, images.shape[2:], mode="bicubic").exp()).clamp(0, 1)


def _moments(images: Tensor) -> Tensor:
    """Give each image the mean and deviation of the next one of its batch."""
    mean, deviation = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
    return ((images - mean) / deviation * deviation.roll(1, 0) + mean.roll(1, 0)).clamp(0, 1)


def _histogram(images: Tensor) -> Tensor:
    """Give each image the gray levels of the next one of its batch, in its own order."""
    flat = images.flatten(1)
    levels = flat.sort(1).values.roll(1, 0)
    return torch.empty_like(flat).scatter_(1, flat.argsort(1), levels).view_as(images)


def _waves(images: Tensor) -> Tensor:
    """Give each image the strength of the lowest waves of the next one of its batch (Yang and Soatto 2020)."""
    waves = torch.fft.rfft2(images)
    size, angle = waves.abs(), waves.angle()
    edge = max(1, round(images.shape[-1] * 0.02))
    for rows in (slice(None, edge), slice(-edge, None)):
        size[..., rows, :edge] = size.roll(1, 0)[..., rows, :edge]
    found: Tensor = torch.fft.irfft2(torch.polar(size, angle), s=images.shape[2:])
    return found.clamp(0, 1)


def _filters(images: Tensor, sides: tuple[int, ...] = (3,)) -> Tensor:
    """Mix each image with what a random filter makes of it, at the same mean and deviation (Xu et al. 2021)."""
    side = sides[int(torch.randint(len(sides), ()))]
    weights = torch.randn(len(images), 1, side, side).to(images) / side
    found = functional.conv2d(
        functional.pad(images, (side // 2,) * 4, mode="replicate").transpose(0, 1), weights, groups=len(images)
    )
    found = found.transpose(0, 1)
    deviation = found.std((2, 3), keepdim=True) + 1e-3
    part = torch.rand(len(images), 1, 1, 1).to(images)
    mean = images.mean((2, 3), keepdim=True)
    changed = (found - found.mean((2, 3), keepdim=True)) / deviation * images.std((2, 3), keepdim=True) + mean
    return torch.lerp(images, changed, part).clamp(0, 1)


def make_augmentation(spec: str, size: int) -> Any:
    """The package's augmentation, before it the parts that the recipe adds."""
    start, *parts = spec.split("+")
    strength, *without = start.split("-")
    near = (0.6, 1.4)
    extra: dict[str, list[nn.Module]] = {
        "crop": [ka.RandomResizedCrop((size, size), scale=(0.35, 1.0), ratio=(0.8, 1.25), p=1.0)],
        "mild": [ka.RandomResizedCrop((size, size), scale=(0.6, 1.0), ratio=(0.8, 1.25), p=1.0)],
        "photo": [ka.RandomBrightness(near, p=1.0), ka.RandomContrast(near, p=1.0), ka.RandomGamma(near, p=1.0)],
        "shade": [RandomApply(_shade, 0.5)],
        "moments": [RandomApply(_moments, 0.5)],
        "histogram": [RandomApply(_histogram, 0.5)],
        "waves": [RandomApply(_waves, 0.5)],
        "filters": [RandomApply(_filters, 0.5)],
        "filters7": [RandomApply(partial(_filters, sides=(1, 3, 5, 7)), 0.5)],
        "filters always": [RandomApply(_filters, 1.0)],
        "geometry": [ka.RandomAffine(5, (0.05, 0.05), (0.95, 1.05), padding_mode="border", p=1.0)],
        "wide": [ka.RandomAffine(10, (0.1, 0.1), (0.8, 1.2), padding_mode="border", p=1.0)],
        "photo more": [
            ka.RandomBrightness((0.5, 1.5), p=1.0),
            ka.RandomContrast((0.4, 1.6), p=1.0),
            ka.RandomGamma((0.4, 2.5), p=1.0),
        ],
        "frame": [RandomApply(RandomFrame(0.15), 0.25)],
        "zoom": [ka.RandomAffine(0, (0.0, 0.0), (0.8, 1.4), padding_mode="border", p=1.0)],
        "invert": [RandomApply(lambda images: 1 - images, 0.5)],
        "flip": [ka.RandomHorizontalFlip(p=0.5)],
    }
    steps = nn.Sequential(*(step for part in parts for step in extra[part]))
    groups = {
        "geometry": ("rotate, shift, stretch",),
        "exposure": ("brightness", "contrast", "gamma"),
        "blur": ("blur", "JPEG"),
        "erase": ("erase", "erase frame"),
    }
    left_out = [step for group in without for step in groups[group]]
    kept = {name: step for name, step in augmentations(strength, size).items() if name not in left_out}
    package = nn.Sequential(*kept.values())

    def augment(images: Tensor) -> Tensor:
        with torch.no_grad():
            changed: Tensor = package(steps(to_unit(images)))
            return changed

    return augment


def make_preprocess(recipe: Recipe) -> Any:
    """The package's preprocessing, and before it what the recipe does to each image."""

    def prepare(images: Tensor) -> Tensor:
        images = to_unit(images)
        if recipe.standardise == "image":
            mean, deviation = images.mean((2, 3), keepdim=True), images.std((2, 3), keepdim=True)
            images = ((images - mean) / (deviation + 1e-3) * 0.25 + 0.5).clamp(0, 1)
        if recipe.standardise == "equal":
            places = images.flatten(1).argsort(dim=1, stable=True)
            levels = torch.linspace(0, 1, places.shape[1]).to(images).expand_as(places)
            images = torch.empty_like(levels).scatter_(1, places, levels).view_as(images)
        if recipe.standardise == "local":
            low = functional.interpolate(functional.adaptive_avg_pool2d(images, 8), images.shape[2:], mode="bicubic")
            rest = images - low
            images = (rest / (rest.std((2, 3), keepdim=True) + 1e-3) * 0.2 + 0.5).clamp(0, 1)
        return Preprocess(images.shape[-1])(images)

    return prepare


def make_loss(recipe: Recipe, counts: Tensor, device: torch.device) -> Any:
    """From logits (B, 1) and what `GpuBatches` says of the images, (B, 3), to a scalar."""
    share = counts / counts.sum()
    weights = (0.5 / share if recipe.loss == "balanced" else torch.ones(2)).to(device)
    groups = torch.ones(4, device=device) / 4

    def loss(logits: Tensor, facts: Tensor) -> Tensor:
        labels, unusual, style = facts.to(logits.device).unbind(1)
        target = labels * (1 - recipe.smoothing) + recipe.smoothing / 2
        scores = logits.squeeze(1) + recipe.style * style.clamp(-5, 5)
        each = functional.binary_cross_entropy_with_logits(scores, target, reduction="none")
        if recipe.loss == "focal":
            each = each * (1 - (-each).exp()) ** 2
        if recipe.loss == "dro":
            group = (labels + 2 * unusual).long()
            means = torch.stack([each[group == n].mean() if (group == n).any() else each.sum() * 0 for n in range(4)])
            groups.mul_((0.05 * means.detach()).exp()).div_(groups.sum())
            return (groups * means).sum()
        return (each * weights[labels.round().long()]).mean()

    return loss


class GpuBatches:
    """Batches from images that lie on the device, in a new random order at each pass.

    Each image comes with its label or, where `facts` (N, 3) are given, with these: label, conflicting, style.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, size: int, seed: int, repeats: Tensor | None = None, mixup: float = 0.0
    ) -> None:
        self.images, self.labels, self.size, self.seed, self.epoch = images, labels, size, seed, 0
        self.repeats, self.mixup = repeats, mixup

    def __len__(self) -> int:
        return len(self.labels) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        count = len(self.labels)
        order = torch.randperm(count, generator=generator)
        if self.repeats is not None:
            order = torch.multinomial(self.repeats, count, replacement=True, generator=generator)
        for part in order.split(self.size)[: len(self)]:
            images, labels = self.images[part.to(self.images.device)], self.labels[part]
            if self.mixup:
                share = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
                images = to_unit(images) * share + to_unit(images.roll(1, 0)) * (1 - share)
                labels = labels * share + labels.roll(1, 0) * (1 - share)
            yield images, labels


# --- data ---------------------------------------------------------------------------------------------------------


@cache
def load_data(size: int) -> PreparedData:
    """The pooled split of this data, at this size."""
    return prepare_data(replace(Settings.from_env(split="pooled"), image_size=size))


def bed_rows(name: str, size: int) -> pd.DataFrame:
    """The manifest of a test bed: what to train on is `train`, what to judge is `test`."""
    data = load_data(size)
    development = data.manifest[(data.manifest["split"] != "test") & (data.manifest["folder"] != "test")]
    if name == "conflicting":
        rows = hold_out_conflicting(replace(data, manifest=development))
        return rows[rows["split"] != "val"]
    if name == "pooled":
        return development.assign(split=development["split"].replace("val", "test"))
    ends = ("test", "val") if name == "low" else ("val", "test")
    rows = resplit(development.drop(columns="split"), "blocked", ends=ends)
    return rows.assign(split=rows["split"].replace("val", "train"))


def style_odds(features: Any, labels: Any, patients: Any) -> Any:
    """Log-odds of class 1 by style alone, each image's learned from other patients' images, (N,)."""
    odds = np.zeros(len(labels))
    for train, held_out in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(features, labels, patients):
        odds[held_out] = fit_boosting(features[train], labels[train]).decision_function(features[held_out])
    return odds


def save_bed(name: str, size: int, folder: Path) -> None:
    """Write what the runs of a test bed read: images uint8 (N, 1, S, S) and labels of both sides, patients, style."""
    file = folder / f"{name}-{size}.pt"
    if file.is_file():
        return
    rows, found, data = bed_rows(name, size), {}, load_data(size)
    for side in ("train", "test"):
        part = rows[rows["split"] == side]
        paths = part["path"].tolist()
        found[side] = torch.from_numpy(np.array(data.cache.images[data.cache.find(paths)])).unsqueeze(1)
        found[f"{side} labels"] = torch.tensor([data.classes.index(label) for label in part["label"]])
        found[f"{side} patients"] = part["patient_coarse"].tolist()
    labels, patients = found["train labels"].numpy(), found["train patients"]
    odds = style_odds(style_features(found["train"].squeeze(1).numpy()), labels, patients)
    own = pd.Series(np.where(labels == 1, odds, -odds))  # what the style says for the image's own class
    found["conflicting"] = torch.tensor((own.groupby(labels).rank(pct=True) <= SHARE).to_numpy())
    found["style"] = torch.from_numpy(odds).float()
    torch.save(found, file)


@cache
def load_bed(name: str, size: int, folder: Path) -> dict[str, Any]:
    """What `save_bed` wrote."""
    return torch.load(folder / f"{name}-{size}.pt")  # type: ignore[no-any-return]


# --- one run ------------------------------------------------------------------------------------------------------


def estimate_statistics(model: nn.Module, batches: Any, preprocess: Any, accelerator: Any) -> None:
    """Batch normalisation's means and variances of the training images, as `torch.optim.swa_utils.update_bn` does."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all batches
    model.train()
    with torch.no_grad():
        for images, _ in batches:
            pixels = images.to(accelerator.device)
            with accelerator.autocast():
                model(preprocess(pixels))
    for layer in layers:
        layer.momentum = 0.1
    model.eval()


class Averaging:
    """A schedule that also averages the weights, after each step of a chosen part of the run."""

    def __init__(self, schedule: OneCycleLR, model: nn.Module, average: str, total: int) -> None:
        kind, _, number = average.partition(" ")
        self.schedule, self.model, self.done = schedule, model, 0
        self.first = total * 2 // 3 if kind == "swa" else 0
        how = {"multi_avg_fn": get_ema_multi_avg_fn(float(number))} if kind == "ema" else {}
        self.mean = AveragedModel(model, use_buffers=True, **how)

    def step(self) -> None:
        """After each step of the optimizer."""
        self.schedule.step()
        self.done += 1
        if self.done > self.first:
            self.mean.update_parameters(self.model)


def train_recipe(recipe: Recipe, data: dict[str, Any], size: int, seed: int) -> tuple[Any, Any]:
    """A network trained by a recipe on the training images of a test bed, and its preprocessing."""
    accelerator = make_accelerator()
    seed_everything(seed)
    images, labels, unusual = data["train"].to(accelerator.device), data["train labels"], data["conflicting"]
    counts = torch.bincount(labels, minlength=2)
    facts = torch.stack([labels.float(), unusual.float(), data["style"]], dim=1)
    repeats = torch.where(unusual, recipe.weight, 1).float() if recipe.weight > 1 else None
    model: Any = build_model("resnet18", 1, "imagenet")
    set_prior(model, counts)
    for group in recipe.frozen:
        layer_groups(model)[group].requires_grad_(False)
    place_network(model, accelerator)
    preprocess = make_preprocess(recipe)
    batches = GpuBatches(images, labels, recipe.batch, seed)
    if recipe.statistics in ("estimated", "again"):
        estimate_statistics(model, GpuBatches(images, labels, 128, seed), preprocess, accelerator)
    if recipe.head_first:
        fit_head(model, batches, accelerator, preprocess, classification_loss)
    place_network(model, accelerator)
    head_only = {name: value.clone() for name, value in model.state_dict().items()}
    batches = GpuBatches(images, facts, recipe.batch, seed, repeats, recipe.mixup)
    groups = parameter_groups(model, recipe.rate, recipe.decay)
    optimizer = torch.optim.AdamW(groups, recipe.rate, weight_decay=WEIGHT_DECAY)
    total = recipe.epochs * len(batches)
    schedule: Any = OneCycleLR(optimizer, [group["lr"] for group in groups], total_steps=total)
    if recipe.average.startswith(("ema", "swa")):
        schedule = Averaging(schedule, model, recipe.average, total)
    steps, loss = accelerator.prepare(optimizer), make_loss(recipe, counts, accelerator.device)
    for epoch in range(1, recipe.epochs + 1):
        seed_everything(epoch_seed(seed, epoch))
        batches.epoch = epoch
        side = recipe.sizes[epoch - 1] if recipe.sizes else size
        augment = Shrunk(make_augmentation(recipe.augment, side), side)
        train_one_epoch(
            model,
            batches,
            steps,
            schedule,
            accelerator,
            preprocess,
            augment,
            loss,
            epoch,
            recipe.statistics == "follow",
        )
    if isinstance(schedule, Averaging):
        model.load_state_dict(schedule.mean.module.state_dict())
    if recipe.average.startswith("interpolate"):
        part = float(recipe.average.split()[1])
        after = model.state_dict()
        mixed = {
            name: torch.lerp(head_only[name], value, part) if value.is_floating_point() else value
            for name, value in after.items()
        }
        model.load_state_dict(mixed)
    if recipe.statistics == "again":
        estimate_statistics(model, GpuBatches(images, labels, 128, seed), preprocess, accelerator)
    return model.eval(), preprocess


@torch.inference_mode()
def answer(model: Any, images: Tensor, preprocess: Any, views: str) -> Tensor:
    """Logits (N, 1), in float32."""

    def once(change: Any) -> Tensor:
        return run_network(model, ((change(part), None) for part in images.split(128)), preprocess)

    logits = once(lambda part: part)
    if views == "flip":
        return (logits + once(lambda part: part.flip(-1))) / 2
    if views == "zoom":
        edge = images.shape[-1] // 16
        inside = once(
            lambda part: functional.interpolate(
                to_unit(part)[..., edge:-edge, edge:-edge], part.shape[2:], mode="bilinear"
            )
        )
        return (logits + inside) / 2
    return logits


def row(name: str, logits: Tensor, labels: Tensor, patients: list[str]) -> dict[str, Any]:
    """The figures of one bed as columns of the table."""
    figures = bed(labels.numpy(), probabilities(logits.double()).numpy(), patients, draws=200)
    flat = {figure: figures[figure]["value"] for figure in FIGURES}
    flat |= {f"{name}_{end}": figures[name][end] for name in WITH_INTERVALS for end in ("low", "high")}
    return {"bed": name, "n": figures["n"], **flat}


def job(name: str, recipe: Recipe, bed_name: str, size: int, seed: int, folder: Path) -> tuple[list[Any], Any]:
    """Train on a bed and judge it: rows of the table, and the logits on the bed."""
    start, data = time.perf_counter(), load_bed(bed_name, size, folder)
    model, preprocess = train_recipe(recipe, data, size, seed)
    return judge(name, recipe, bed_name, size, seed, data, model, preprocess, time.perf_counter() - start)


def judge(
    name: str, recipe: Recipe, bed_name: str, size: int, seed: int, data: dict[str, Any], model: Any, preprocess: Any,
    seconds: float,
) -> tuple[list[Any], Any]:  # fmt: skip
    """Rows of the table for a trained network, and its logits on the bed."""
    images, labels, patients = data["test"], data["test labels"], data["test patients"]
    if recipe.views == "prior":
        with torch.no_grad():
            model.fc.bias -= prior_logits(torch.bincount(data["train labels"]), 1).to(model.fc.bias)
    logits = answer(model, images, preprocess, recipe.views)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    same = {"recipe": name, "settings": key(recipe), "size": size, "seed": seed}
    same |= {"seconds": round(seconds, 1), "machine": device}
    rows = [same | row(bed_name, logits, labels, patients)]
    if bed_name == "pooled":  # validation under corruptions: the mean over all, and the worst by AUC
        kinds = [(kind, level) for kind in CORRUPTIONS for level in LEVELS]
        found = {
            f"{kind} {level}": corrupted_logits(model, images, preprocess, kind, level, 128) for kind, level in kinds
        }
        quick = {which: quick_figures(labels.numpy(), answers) for which, answers in found.items()}
        rows.append(same | {"bed": "corrupted, mean", "n": len(labels)} | pd.DataFrame(quick).mean(axis=1).to_dict())
        worst = min(quick, key=lambda which: quick[which]["auc"])
        rows.append(same | row("corrupted, worst", found[worst], labels, patients) | {"worst": worst})
    return rows, logits


def quick_figures(truth: Any, logits: Tensor) -> dict[str, float]:
    """Without intervals: AUC, accuracy, specificity and sensitivity at 0.5, loss."""
    chance = probabilities(logits.double()).numpy()
    called = chance >= 0.5
    shares = {"specificity": float((~called)[truth == 0].mean()), "sensitivity": float(called[truth == 1].mean())}
    return scores(truth, chance) | shares


def draw(table: pd.DataFrame, file: Path) -> None:
    """AUC, specificity and sensitivity on conflicting images at 128 pixels of version 0.1 and the 45 best recipes."""
    rows = table[(table["bed"] == "conflicting") & (table["size"] == 128)]
    order = rows.groupby("recipe")["auc"].mean().sort_values().index.tolist()
    order = ["default 0.1", *(name for name in order[-45:] if name != "default 0.1")]
    rows = rows[rows["recipe"].isin(order)]
    place = rows["recipe"].map(order.index)
    panels = plt.subplots(1, 3, figsize=(10, 1.5 + 0.17 * len(order)), sharey=True, layout="constrained")
    for ax, name in zip(panels[1], ("auc", "specificity", "sensitivity"), strict=True):
        today = rows["recipe"] == "default 0.1"
        ax.axvline(rows.loc[today, name].mean(), color="0.6", ls="--", lw=1)
        ax.plot(rows[name], place, "o", color="0.15", ms=3)
        ax.plot(rows.loc[today, name], place[today], "s", color="tab:orange", ms=5)
        ax.set(xlabel={"auc": "AUC"}.get(name, f"{name} at 0.5"), ylim=(-1, len(order)))
        ax.grid(axis="x", alpha=0.3)
        ax.locator_params(axis="x", nbins=4)
    panels[1][0].set_yticks(range(len(order)), order, fontsize=7)
    count = int(rows["n"].iloc[0])
    heading = (
        f"Conflicting images (n = {count}), 45 best recipes, trained without them; a dot per seed, squares: version 0.1"
    )
    panels[0].suptitle(heading, fontsize=10)
    panels[0].savefig(file, dpi=110)


def main() -> None:  # noqa: PLR0915 - a queue of runs, in the order in time
    """Run what is asked for and is not in the table yet; print the means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="*", help="recipes of the table; by default all")
    parser.add_argument("--add", nargs=2, action="append", default=[], metavar=("NAME", "JSON"), help="a new recipe")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--beds", nargs="*", choices=BEDS, default=["conflicting"])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no run is begun")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--folder", type=Path, help="where the test beds' images are kept for the next call")
    parser.add_argument("--figure", type=Path, help="draw the table into this file, and train nothing")
    given = parser.parse_args()
    if given.figure:
        draw(pd.read_csv(given.table), given.figure)
        return

    start = time.perf_counter()
    os.environ["TQDM_DISABLE"] = "1"  # in the processes to come
    table = pd.read_csv(given.table) if given.table.is_file() else pd.DataFrame(columns=COLUMNS)
    added = {name: Recipe(**json.loads(text)) for name, text in given.add}
    known, names = recipes(table) | added, given.names or (list(added) or None)
    done = set(zip(table["settings"], table["size"], table["seed"], table["bed"], strict=True))
    wanted = [
        (name, known[name], bed_name, given.size, seed)
        for seed in given.seeds for name in names or known for bed_name in given.beds
        if (key(known[name]), given.size, seed, bed_name) not in done
    ]  # fmt: skip
    given.table.parent.mkdir(exist_ok=True, parents=True)
    if given.folder is None:
        load_data(given.size)  # once, before the processes read it
    threads = max(1, (os.cpu_count() or 1) // given.jobs)
    context = multiprocessing.get_context("spawn")
    with (
        TemporaryDirectory() as temporary,
        ProcessPoolExecutor(given.jobs, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool,
    ):
        folder = given.folder or Path(temporary)
        list(pool.map(save_bed, given.beds, [given.size] * len(given.beds), [folder] * len(given.beds)))
        print(f"{len(wanted)} runs; the data took {time.perf_counter() - start:.0f} s", flush=True)
        waiting = {pool.submit(job, *each, folder): each for each in wanted}
        together: dict[tuple[Any, ...], list[Tensor]] = {}
        for future in as_completed(waiting):
            if time.perf_counter() - start > given.limit:
                pool.shutdown(wait=False, cancel_futures=True)
            if future.cancelled():
                continue
            name, recipe, bed_name, size, _ = waiting[future]
            if error := future.exception():
                print(f"{name}: {error!r}", flush=True)
                continue
            rows, logits = future.result()
            seeds = together.setdefault((name, bed_name), [])
            seeds.append(logits)
            if len(seeds) == len(given.seeds) > 1:  # an ensemble: the mean of the logits
                data, changed = load_bed(bed_name, size, folder), json.loads(key(recipe)) | {"ensemble": len(seeds)}
                mean = torch.stack(seeds).mean(0)
                found = row(bed_name, mean, data["test labels"], data["test patients"])
                same = {"recipe": f"{name}, {len(seeds)} together", "settings": json.dumps(changed), "size": size}
                rows.append(same | {"seed": 0, "machine": rows[0]["machine"]} | found)
            table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
            table[COLUMNS].round(4).to_csv(given.table, index=False)
    means = table[table["size"] == given.size].groupby(["bed", "recipe"])[["auc", "specificity", "sensitivity"]]
    print(means.agg(["mean", "std"]).assign(runs=means.size()).round(3).to_string())
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
