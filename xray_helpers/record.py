"""What a training run writes: a history, the state to go on from, the best model, its predictions on validation."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torchvision.models import ResNet

from xray_helpers.calibration import operating_points, platt
from xray_helpers.checkpoint import CARD, LAST, load_model, save_best, save_state
from xray_helpers.dataset import Loaders
from xray_helpers.device import choose_device
from xray_helpers.facts import BEST, FACTS, CheckpointError, Inference, write_about
from xray_helpers.files import atomic_file, make_folder
from xray_helpers.inference import predictions, probabilities, run_network
from xray_helpers.metrics import scores
from xray_helpers.settings import Settings
from xray_helpers.transforms import Preparation

PREDICTIONS = "predictions-val.csv"
FILES = ("settings.json", "history.csv", LAST, BEST, FACTS, PREDICTIONS)
JUDGED = ("predictions-test.csv", "metrics.json", CARD)  # by evaluation, of the model that is there


class Record:
    """The run's folder while it is trained.

    Args:
        settings: of the run.
        accelerator: from `start_accelerator`; only the first process writes.
        loaders: of the run.
        weights: what the model starts from.
        state: from `resume`, to go on from; None for a new run.
    """

    def __init__(
        self,
        settings: Settings,
        accelerator: Accelerator,
        loaders: Loaders,
        weights: str,
        state: dict[str, Any] | None,
    ) -> None:
        self.settings, self.accelerator, self.loaders = settings, accelerator, loaders
        self.folder, self.of = settings.run_folder, {**fixed(settings, loaders), "weights": weights}
        self.best = Inference(
            arch=settings.arch, classes=loaders.classes, preparation=Preparation(settings.image_size, settings.resize),
            epoch=-1, val_loss=math.inf, calibration={"slope": 1.0, "intercept": 0.0}, operating_points={"0.5": 0.5},
            data=settings.data_name, fingerprint=loaders.fingerprint, weights=weights,
        )  # fmt: skip
        self.history: list[dict[str, Any]] = []
        if state:
            self.history = state["history"]
            self.best = replace(self.best, epoch=state["best_epoch"], val_loss=state["best_loss"])

    def keep(
        self,
        model: ResNet,
        stage: str,
        epoch: int,
        train_loss: float,
        rate: float,
        seconds: float,
        moving: dict[str, Any],
    ) -> None:
        """Judge a model on validation, and save the best so far and what is needed to go on; then print a line.

        Args:
            model: without Accelerate's wrapper; is put into evaluation mode.
            stage: `head` or `fine-tune`.
            epoch: finished epochs of fine-tuning.
            train_loss: mean over the epoch.
            rate: learning rate of the head.
            seconds: that training took.
            moving: states of the optimizer, the schedule and the scaler.
        """
        logits = run_network(model.eval(), self.loaders.val, self.best.preparation, self.accelerator)
        labels, found = self.loaders.val_set.labels.numpy(), dict.fromkeys(("loss", "auc", "accuracy"), math.nan)
        if logits.isfinite().all():
            found = scores(labels, probabilities(logits).numpy())
        speed = len(self.loaders.train_set) / seconds
        self.history.append(
            {"stage": stage, "epoch": epoch, "train_loss": train_loss}
            | {f"val_{name}": value for name, value in found.items()}
            | {"learning_rate": rate, "seconds": seconds, "images_per_second": speed}
        )
        better = found["loss"] < self.best.val_loss  # never true of NaN
        if better:
            self.best = replace(self.best, epoch=epoch, val_loss=found["loss"])
        if not self.accelerator.is_main_process:
            return
        if better:
            save_best(self.folder, model, self.best)
        best = {"best_epoch": self.best.epoch, "best_loss": self.best.val_loss}
        kept = {"of": self.of, "epoch": epoch, "model": model.state_dict(), "history": self.history}
        save_state(self.folder, {**kept, **best, **moving})
        self._write_tables()
        print(
            f"{stage:<9} {epoch}/{self.settings.epochs}: loss {train_loss:.4f}, validation loss {found['loss']:.4f}, "
            f"AUC {found['auc']:.4f}, accuracy {found['accuracy']:.4f}; {seconds:.0f} s, {speed:.0f} images/s"
        )

    def _write_tables(self) -> None:
        """`history.csv`, and the settings without the paths of this machine."""
        with atomic_file(self.folder / "history.csv") as partial:
            pd.DataFrame(self.history).to_csv(partial, index=False)
        named = {"data": self.settings.data_name}
        if self.settings.weights not in ("imagenet", "none"):
            named["weights"] = Path(self.settings.weights).name
        with atomic_file(self.folder / "settings.json") as partial:
            partial.write_text(json.dumps(asdict(self.settings) | named, indent=1) + "\n", encoding="utf-8")

    def finish(self) -> None:
        """Calibrate the best model and choose its thresholds on validation; write its predictions there, in float32.

        Raises:
            CheckpointError: no epoch had a finite validation loss.
        """
        if not (self.folder / FACTS).is_file():
            raise CheckpointError(f"no epoch of {self.folder.name} had a finite validation loss; lower LEARNING_RATE")
        model, val = load_model(self.folder, choose_device(self.settings.device).value), self.loaders.val_set
        about = model.about
        logits = run_network(model, self.loaders.val, about.preparation)
        if about.num_outputs == 1:
            truth, scale = val.labels.numpy(), platt(val.labels.numpy(), logits.squeeze(1).numpy())
            points = operating_points(truth, probabilities(logits.double()).numpy())
            about = replace(about, calibration=scale, operating_points=points)
            write_about(self.folder, about)
        self._write_tables()  # again: a kill between the last state and its tables would leave them a row short
        with atomic_file(self.folder / PREDICTIONS) as partial:
            predictions(val.paths, val.labels, logits, about.classes, about.calibration).to_csv(partial, index=False)


def fixed(settings: Settings, loaders: Loaders) -> dict[str, Any]:
    """What a run must go on with as it began; its folder's name stands for all settings that change the result."""
    return {
        "arch": settings.arch,
        "classes": loaders.classes,
        "image_size": settings.image_size,
        "resize": settings.resize,
        "fingerprint": loaders.fingerprint,
        "run": settings.run_name,
    }


def is_finished(folder: Path, state: dict[str, Any] | None, epochs: int) -> bool:
    """Whether a run with this state has its last epoch, and its predictions on validation."""
    return state is not None and state["epoch"] == epochs and (folder / PREDICTIONS).is_file()


@contextlib.contextmanager
def alone(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the run's folder, so that two runs never write to it at once; the first process of a run does so for all.

    Raises:
        CheckpointError: another run holds it.
    """
    make_folder(folder)
    with contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                stack.enter_context(FileLock(folder / ".lock", timeout=0))
            except Timeout:
                why = f"another process is training in models/{folder.name}; wait for it, or stop it"
                raise CheckpointError(why) from None
            for half in folder.glob(".*.partial*"):  # of a process that was killed while saving
                half.unlink()
        yield
