"""Keeping models: what is needed to go on training, and what is needed to use the result; both without running code."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import ResNet

from xray_helpers.files import atomic_file
from xray_helpers.model import build_model, outputs_for
from xray_helpers.transforms import Preparation

VERSION = 1  # of the files' format
LAST, BEST, CARD = "last.pt", "best.safetensors", "best.json"


class CheckpointError(Exception):
    """A checkpoint that is missing, damaged, or of something else; the message says which and what to do."""


@dataclass(frozen=True)
class Inference:
    """What inference needs to know beside the weights; kept as `best.json`.

    Attributes:
        arch: the network's architecture.
        classes: names in the order of their numbers.
        preparation: what turns an image into the network's input.
        epoch: the epoch that these weights are from, counted from 1; 0 is the head alone.
        val_loss: its loss on validation.
        calibration: slope and intercept of the calibrated log-odds (two classes; fitted on validation).
        operating_points: name → threshold of the probability.
        data: name of the dataset.
        fingerprint: of its files.
        weights: what training started from.
    """

    arch: str
    classes: tuple[str, ...]
    preparation: Preparation
    epoch: int
    val_loss: float
    calibration: dict[str, float]
    operating_points: dict[str, float]
    data: str
    fingerprint: str
    weights: str

    @property
    def num_outputs(self) -> int:
        """Outputs of the network: 1 for two classes."""
        return outputs_for(self.classes)


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Save everything that is needed to go on (tensors and simple values) as `last.pt`, whole or not at all.

    Raises:
        OSError: the disk is full; the message names the space needed, and the old file is intact.
    """
    with _room_for(folder / LAST, state) as partial:
        torch.save({"version": VERSION, **state}, partial)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The state of an unfinished or finished run, on the CPU; None where there is none.

    Raises:
        CheckpointError: the file is damaged, holds something else, or is of a newer version of this package.
    """
    file = folder / LAST
    if not file.is_file():
        return None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - on damaged bytes torch raises anything
        raise CheckpointError(_damaged(folder, LAST, error)) from None
    if not isinstance(state, dict) or "version" not in state:
        raise CheckpointError(_damaged(folder, LAST, "something else than a training state"))
    _check_version(state["version"], f"{folder.name}/{LAST}")
    return state


def save_best(folder: Path, model: nn.Module, about: Inference) -> None:
    """Save weights and facts for inference; first the weights, then the facts that name their size.

    Raises:
        OSError: as `save_state`.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with _room_for(folder / BEST, weights) as partial:
        save_file(weights, partial)
    write_about(folder, about)


def write_about(folder: Path, about: Inference) -> None:
    """Save `best.json`."""
    with atomic_file(folder / CARD) as partial:
        content = {"version": VERSION, "bytes": (folder / BEST).stat().st_size, **asdict(about)}
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_about(folder: Path) -> Inference:
    """What `best.json` says.

    Raises:
        CheckpointError: it is missing, damaged or of a newer version.
    """
    try:
        content = json.loads((folder / CARD).read_text(encoding="utf-8"))
        _check_version(content.pop("version"), f"{folder.name}/{CARD}")
        if content.pop("bytes") != (folder / BEST).stat().st_size:
            raise CheckpointError(_damaged(folder, BEST, "its size is not the one saved"))
        content["preparation"] = Preparation(**content["preparation"])
        content["classes"] = tuple(content["classes"])
        return Inference(**content)
    except FileNotFoundError:
        raise CheckpointError(f"{folder.name} holds no finished model ({CARD}, {BEST}). Train it first.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(_damaged(folder, CARD, error)) from None


def load_model(folder: str | Path, device: str = "cpu") -> ResNet:
    """The best model of a run, ready for inference: in evaluation mode, on `device`, its facts as `model.about`.

    Args:
        folder: of the run.
        device: such as `cpu` or `cuda`, whatever it was trained on.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit.
    """
    folder = Path(folder)
    about = read_about(folder)
    try:
        weights = load_file(folder / BEST)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_damaged(folder, BEST, error)) from None
    model = build_model(about.arch, about.num_outputs, "none")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{folder.name}/{BEST} does not fit {about.arch}: {error}") from None
    model.about = about
    model.eval()
    return model.to(device)


def latest_run(models: Path) -> Path:
    """The folder that `models/latest.txt` names.

    Raises:
        CheckpointError: nothing was trained yet, or the folder is gone.
    """
    try:
        name = (models / "latest.txt").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise CheckpointError("models/latest.txt is missing: train first (make train, or notebook 05)") from None
    if not (models / name).is_dir():
        raise CheckpointError(f"models/latest.txt names {name}, which is gone: train again, or name another folder")
    return models / name


@contextmanager
def _room_for(file: Path, content: object) -> Iterator[Path]:
    """`atomic_file`, with one clear error where the disk is too small: PyTorch and safetensors say it in riddles."""
    try:
        with atomic_file(file) as partial:
            yield partial
    except (OSError, RuntimeError, SafetensorError) as error:
        needed, free = _size(content), shutil.disk_usage(file.parent).free
        if getattr(error, "errno", None) != errno.ENOSPC and free >= needed:
            raise
        why = (
            f"the disk is full: saving {file.parent.name}/{file.name} needs {needed / 1e6:,.0f} MB, and "
            f"{free / 1e6:,.0f} MB are free. What was saved before is intact; free some space and run this again."
        )
        raise OSError(errno.ENOSPC, why) from None


def _size(content: object) -> int:
    """Bytes of all tensors in nested dictionaries and sequences."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, dict):
        return sum(map(_size, content.values()))
    return sum(map(_size, content)) if isinstance(content, list | tuple) else 0


def _check_version(version: int, name: str) -> None:
    if version > VERSION:
        raise CheckpointError(f"{name} is of format {version}; this package reads up to {VERSION}. Update it.")


def _damaged(folder: Path, name: str, why: object) -> str:
    return f"{folder.name}/{name} cannot be read ({why}). Delete the folder {folder.name}, and train again."
