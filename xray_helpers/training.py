"""Step 5: fine-tune a pretrained ResNet. First the head alone, then all layers; what is best on validation is kept."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import Accelerator
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.models import ResNet

from xray_helpers.archives import DownloadError
from xray_helpers.checkpoint import load_model, resume
from xray_helpers.dataset import Loaders, LoadingError, loading, make_loaders
from xray_helpers.device import choose_device
from xray_helpers.facts import CheckpointError
from xray_helpers.files import atomic_file
from xray_helpers.inference import memory_layout, start_accelerator
from xray_helpers.model import WeightsError, build_model, can_have_weights, misfit, outputs_for
from xray_helpers.record import FILES, JUDGED, Record, alone, fixed, is_finished
from xray_helpers.settings import Settings, seed_everything
from xray_helpers.splits import LeakError
from xray_helpers.steps import (
    HEAD_RATE,
    NonFiniteLossError,
    epoch_seed,
    make_optimizer,
    start_model,
    train_epoch,
    train_head,
)
from xray_helpers.transforms import Augmentation

EXPECTED = (
    CheckpointError, WeightsError, NonFiniteLossError, LeakError, DownloadError, LoadingError, MemoryError, ValueError,
    OSError,
)  # fmt: skip


@dataclass
class Run:
    """A finished run.

    Attributes:
        history: one row a stage or epoch: stage, epoch, train_loss, val_loss, val_auc, val_accuracy, learning_rate,
            seconds, images_per_second.
        folder: where its files lie.
        model: the best model by validation loss, on the CPU, in evaluation mode; its facts are `model.about`.
    """

    history: pd.DataFrame
    folder: Path
    model: ResNet


def fit(settings: Settings, fresh: bool = False, main: bool = True) -> Run:
    """Train, or finish training, or return what was trained before with the same settings.

    The test split stays closed. The last finished epoch is kept in the run's folder, so that a run that was stopped
    goes on from there; the result is the same as if it had never stopped.

    Args:
        settings: of the run; they name its folder.
        fresh: forget an earlier run of these settings and start over.
        main: name the run in `models/latest.txt`, which evaluation and prediction read; off for side comparisons.

    Raises:
        WeightsError: pretrained weights cannot be had, with data other than the sample.
        NonFiniteLossError: the loss became infinite; the best model so far is kept.
        CheckpointError: another process trains in this folder, what is there cannot be read, or it was trained with
            other images.
        LoadingError: a process that loads images was killed, or hangs.
        MemoryError, ValueError, OSError: as the steps do.
    """
    accelerator, folder = start_accelerator(settings), settings.run_folder
    with alone(folder, accelerator):
        if accelerator.is_main_process and (fresh or _fell_back(folder, settings)):
            for name in (*FILES, *JUDGED):
                (folder / name).unlink(missing_ok=True)
        accelerator.wait_for_everyone()
        loaders = make_loaders(settings)
        state = resume(folder, fixed(settings, loaders))
        if not is_finished(folder, state, settings.epochs):
            try:
                with loading():
                    _train(settings, accelerator, loaders, state)
            except KeyboardInterrupt:
                print(f"stopped; models/{folder.name} keeps the finished epochs, and the next run goes on from there")
                raise
        accelerator.wait_for_everyone()
        if main and accelerator.is_main_process:
            with atomic_file(folder.parent / "latest.txt") as partial:
                partial.write_text(folder.name + "\n", encoding="utf-8")
        return Run(pd.read_csv(folder / "history.csv"), folder, load_model(folder))


def _fell_back(folder: Path, settings: Settings) -> bool:
    """Whether an earlier run had to begin with random weights, and need not any more."""
    state = resume(folder) if settings.weights == "imagenet" else None
    again = state is not None and state["of"]["weights"] == "none" and can_have_weights(settings.arch)
    if again:
        print(f"models/{folder.name} began with random weights; the pretrained ones can be had now, so it starts over")
    return again


def _train(settings: Settings, accelerator: Accelerator, loaders: Loaders, state: dict[str, Any] | None) -> None:
    """From the state that was saved, or from the start, to the last epoch."""
    if state:  # the weights that it began with are not needed any more
        weights, model = state["of"]["weights"], build_model(settings.arch, outputs_for(loaders.classes), "none")
        if why := misfit(model.state_dict(), state["model"]):
            raise CheckpointError(f"models/{settings.run_name}/last.pt does not fit {settings.arch}: {why}")
        model.load_state_dict(state["model"])
    else:
        model, weights = start_model(settings, loaders)
    record = Record(settings, accelerator, loaders, weights, state)
    prepare = record.best.preparation
    augment = Augmentation(settings.augment, settings.image_size)
    start, head_loss = time.perf_counter(), math.nan
    if not state and weights != "none":  # random features are nothing for a head to rest on
        head_loss = train_head(model, loaders, prepare, accelerator)
    model.to(accelerator.device, memory_format=memory_layout(accelerator))
    optimizer = make_optimizer(model, settings, weights)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = OneCycleLR(optimizer, rates, total_steps=settings.epochs * len(loaders.train))
    if state:
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])

    def moving() -> dict[str, object]:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
        return {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "scaler": scaler}

    if not state and weights != "none":
        seconds = time.perf_counter() - start
        record.keep(model, "head", 0, head_loss, HEAD_RATE, seconds, moving())
    network, stepper, batches = accelerator.prepare(model, optimizer, loaders.train)
    if state and accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])
    for epoch in range((state["epoch"] if state else 0) + 1, settings.epochs + 1):
        seed_everything(epoch_seed(settings.seed, epoch, accelerator.process_index))
        batches.set_epoch(epoch - 1)  # the order of the training images: Accelerate would count from 0 again
        start = time.perf_counter()
        # Pretrained statistics stay: the head was fitted to them, and small batches estimate them badly.
        new = weights == "none"
        loss = train_epoch(network, batches, prepare, augment, stepper, schedule, accelerator, epoch, statistics=new)
        seconds, rate = time.perf_counter() - start, float(max(schedule.get_last_lr()))
        record.keep(model, "fine-tune", epoch, loss, rate, seconds, moving())
    if accelerator.is_main_process:
        record.finish()


def main() -> None:
    """Command line: `python -m xray_helpers.training [--fresh] [--data … --split … and all other settings]`."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--fresh"]
    settings = Settings.from_args(arguments, "Fine-tune a pretrained ResNet. --fresh forgets an earlier run.")
    first = os.environ.get("RANK", "0") == "0"
    try:
        with contextlib.redirect_stdout(sys.stdout if first else io.StringIO()):
            start = time.perf_counter()
            print(f"{settings}\n{choose_device(settings.device).reason}")
            run = fit(settings, fresh=len(arguments) < len(sys.argv) - 1)
            epoch = run.model.about.epoch
            print(f"models/{run.folder.name}: best in epoch {epoch}, {time.perf_counter() - start:.0f} s in all")
    except EXPECTED as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
