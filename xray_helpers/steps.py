"""The pieces of a training run: a model to start from, the head, one epoch, and the search for a learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torchvision.models import ResNet
from tqdm import tqdm

from xray_helpers.dataset import Loaders
from xray_helpers.inference import loss_of, memory_layout, network_input, run_network
from xray_helpers.model import (
    DECAY,
    WeightsError,
    backbone,
    build_model,
    outputs_for,
    parameter_groups,
    set_prior,
    train_mode,
)
from xray_helpers.settings import Settings, seed_everything
from xray_helpers.transforms import Augmentation, Preparation

HEAD_EPOCHS, HEAD_BATCH, HEAD_RATE = 100, 256, 0.01  # over stored features, in a second or two
WEIGHT_DECAY = 0.01
LOOK = 20  # steps between two looks at the losses: each look waits for a GPU


class NonFiniteLossError(Exception):
    """The loss became infinite or no number; the message names the batch, the epoch and the learning rate."""


def start_model(settings: Settings, loaders: Loaders) -> tuple[ResNet, str]:
    """The model before training, its head's bias at the log-odds of the training labels; and what weights it has.

    Raises:
        WeightsError: pretrained weights cannot be had; on the sample a note is printed instead, and the model starts
            from random weights.
    """
    seed_everything(settings.seed)
    outputs, weights = outputs_for(loaders.classes), settings.weights
    try:
        model = build_model(settings.arch, outputs, weights)
    except WeightsError as error:
        if settings.data != "sample" or weights != "imagenet":
            raise
        _say_once(f"note: {error}\nThe sample is trained from random weights instead.")
        model, weights = build_model(settings.arch, outputs, "none"), "none"
    set_prior(model, torch.tensor(list(loaders.train_set.counts().values())))
    return model, Path(weights).name  # of a file its name: where it lies is nobody's business


@cache
def _say_once(text: str) -> None:
    """Print a note, once in a process: a notebook starts from the same weights several times."""
    print(text)


def make_optimizer(model: ResNet, settings: Settings, weights: str) -> torch.optim.AdamW:
    """AdamW; with pretrained weights, layers learn the slower, the nearer they are to the input."""
    groups = parameter_groups(model, settings.learning_rate, 1.0 if weights == "none" else DECAY)
    return torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)


def train_head(model: ResNet, loaders: Loaders, prepare: Preparation, accelerator: Accelerator) -> float:
    """Train the head alone, in place, on features that the frozen backbone computes once; returns the last loss.

    The same in every process: the features are gathered, and the head is small.
    """
    features_of = backbone(model).eval().to(memory_format=memory_layout(accelerator)).to(accelerator.device)
    ordered = DataLoader(loaders.train_set, loaders.train.batch_size)
    features = run_network(features_of, ordered, prepare, accelerator).clone()  # (N, F)
    labels, head = loaders.train_set.labels, model.fc.cpu()
    batches = math.ceil(len(features) / HEAD_BATCH)
    optimizer = torch.optim.AdamW(head.parameters(), lr=HEAD_RATE, weight_decay=WEIGHT_DECAY)
    schedule = OneCycleLR(optimizer, HEAD_RATE, total_steps=HEAD_EPOCHS * batches)
    total = 0.0
    for _ in range(HEAD_EPOCHS):
        total = 0.0
        for part in torch.randperm(len(features)).split(HEAD_BATCH):
            loss = loss_of(head(features[part]), labels[part])
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(part) / len(features)
    return total


def train_epoch(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    prepare: Preparation,
    augment: Augmentation,
    optimizer: torch.optim.Optimizer,
    schedule: OneCycleLR,
    accelerator: Accelerator,
    epoch: int,
    statistics: bool,
) -> float:
    """One pass over the training batches; returns the mean loss.

    Args:
        model: as Accelerate prepared it.
        batches: as Accelerate prepared them.
        prepare: from gray images to the network's input.
        augment: random changes before that.
        optimizer: as Accelerate prepared it.
        schedule: of its learning rates, a step a batch.
        accelerator: from `start_accelerator`.
        epoch: for messages, counted from 1.
        statistics: as for `train_mode`.

    Raises:
        NonFiniteLossError: the loss is no finite number any more.
        MemoryError: the GPU's memory is too small for the batch.
    """
    train_mode(model, statistics)
    losses, size = [], 0
    bar = tqdm(batches, f"epoch {epoch}", leave=False, unit="batch", disable=not accelerator.is_main_process)
    try:
        for images, labels in bar:
            size = len(images)
            inputs = network_input(augment(images), prepare, accelerator)
            with accelerator.autocast():
                loss = loss_of(model(inputs), labels)
            accelerator.backward(loss)
            optimizer.step()
            if not accelerator.optimizer_step_was_skipped:  # float16 skips steps whose gradients overflow
                schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            if len(losses) % LOOK == 0:
                _check_finite(losses, epoch, schedule)
    except torch.cuda.OutOfMemoryError:
        raise MemoryError(
            f"The GPU's memory is too small for {size} images of {prepare.size} × {prepare.size} pixels a step. Set "
            f"BATCH_SIZE to {max(1, size // 2) * accelerator.num_processes} or less; what was saved is kept."
        ) from None
    _check_finite(losses, epoch, schedule)
    return float(torch.stack(losses).mean())


def _check_finite(losses: list[Tensor], epoch: int, schedule: OneCycleLR) -> None:
    finite = torch.stack(losses).isfinite()
    if not finite.all():
        batch = int((~finite).nonzero()[0]) + 1
        raise NonFiniteLossError(
            f"The loss is {losses[batch - 1].item()} in batch {batch} of epoch {epoch}, at a learning rate of "
            f"{max(schedule.get_last_lr()):.2g}. Lower LEARNING_RATE; the best model so far is kept."
        )


def find_learning_rate(
    settings: Settings,
    loaders: Loaders,
    accelerator: Accelerator,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 60,
) -> pd.DataFrame:
    """Train a few steps with an ever larger learning rate, and watch the loss (Smith 2017); keeps nothing.

    It begins where fine-tuning does: with pretrained weights, after the head alone was trained.

    Args:
        settings: of the run.
        loaders: its loaders; only `train` is used.
        accelerator: from `start_accelerator`, of one process.
        lowest: learning rate of the first step, of the head; other layers in proportion.
        highest: of the last step.
        steps: how many; it stops early when the loss has grown to four times its least.

    Returns:
        One row a step: learning_rate, loss, smoothed.
    """
    model, weights = start_model(settings, loaders)
    prepare = Preparation(settings.image_size, settings.resize)
    augment = Augmentation(settings.augment, settings.image_size)
    if weights != "none":
        train_head(model, loaders, prepare, accelerator)
    model.to(accelerator.device, memory_format=memory_layout(accelerator))
    optimizer = make_optimizer(model, settings, weights)
    shares = [group["lr"] / settings.learning_rate for group in optimizer.param_groups]
    train_mode(model, statistics=weights == "none")
    rows: list[tuple[float, float, float]] = []
    batches, mean = chain.from_iterable(repeat(loaders.train)), 0.0
    for step in range(steps):
        rate = lowest * (highest / lowest) ** (step / (steps - 1))
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        images, labels = next(batches)
        inputs = network_input(augment(images.to(accelerator.device)), prepare, accelerator)
        with accelerator.autocast():
            loss = loss_of(model(inputs), labels.to(accelerator.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = 0.9 * mean + 0.1 * loss.item()
        rows.append((rate, loss.item(), mean / (1 - 0.9 ** (step + 1))))
        if not math.isfinite(mean) or rows[-1][2] > 4 * min(row[2] for row in rows):
            break
    return pd.DataFrame(rows, columns=["learning_rate", "loss", "smoothed"])


def epoch_seed(seed: int, epoch: int, process: int) -> int:
    """A seed for everything random in one epoch of one process: a resumed run draws what it would have drawn."""
    return int(np.random.SeedSequence((seed, epoch, process)).generate_state(1)[0])
