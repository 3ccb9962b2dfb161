"""Keeping models: what is needed to go on training, and what is needed to use the result; both without running code."""

from __future__ import annotations

import errno
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torchvision.models import ResNet

from xray_helpers.facts import (
    BEST,
    VERSION,
    CheckpointError,
    Inference,
    check_version,
    damaged,
    read_about,
    write_about,
)
from xray_helpers.files import atomic_file
from xray_helpers.model import build_model, misfit

LAST, CARD = "last.pt", "model-card.md"
STATE = {
    "version", "of", "epoch", "model", "optimizer", "schedule", "scaler", "history", "best_epoch", "best_loss",
}  # fmt: skip


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Save everything that is needed to go on (tensors and simple values) as `last.pt`, whole or not at all.

    Args:
        folder: of the run.
        state: the entries of `STATE` but the version; `of` holds what must not change before going on.

    Raises:
        FullDiskError: the disk is full; the message names the space needed, and the old file is intact.
    """
    with _room_for(folder / LAST, state) as partial:
        torch.save({"version": VERSION, **state}, partial)


def resume(folder: str | Path, of: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The state of a run at the end of its last finished epoch, to go on from, on the CPU; None where there is none.

    `training.fit` does the rest: what it draws at random depends on the seed and the epoch alone, so that it ends with
    the very weights of a run that never stopped.

    Args:
        folder: of the run.
        of: what the run must have been trained with, by name; checked against what the state says.

    Raises:
        CheckpointError: the file is damaged, holds something else, is of a newer version of this package, or of a run
            with another architecture, classes, image size, dataset or anything else in `of`.
    """
    folder = Path(folder)
    file, where = folder / LAST, f"{folder.name}/{LAST}"
    if not file.is_file():
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            if broken := archive.testzip():  # torch.load does not look at the checksums that torch.save writes
                raise CheckpointError(damaged(folder, LAST, f"the checksum of {broken} is wrong"))
        state = torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:  # PyTorch's own words advise to run it
        why = "it holds more than tensors and plain values, which could run code, and was not opened"
        raise CheckpointError(damaged(folder, LAST, why)) from None
    except Exception as error:  # noqa: BLE001 - on damaged bytes zipfile and torch raise anything
        raise CheckpointError(damaged(folder, LAST, str(error).split("\n", 1)[0])) from None
    if not isinstance(state, dict) or "version" not in state:
        raise CheckpointError(damaged(folder, LAST, "something else than a training state"))
    check_version(state["version"], where)
    if missing := sorted(STATE - state.keys()):
        raise CheckpointError(damaged(folder, LAST, f"it lacks {', '.join(missing)}"))
    if extra := sorted(state.keys() - STATE):
        raise CheckpointError(damaged(folder, LAST, f"it holds {', '.join(extra)}, which this package does not know"))
    for name, value in (of or {}).items():
        if state["of"].get(name) != value:
            raise CheckpointError(
                f"models/{where} was trained with another {name} ({state['of'].get(name)}, now {value}). Start over "
                "with --fresh (in a notebook: fit(settings, fresh=True))."
            )
    return state


def save_best(folder: Path, model: nn.Module, about: Inference) -> None:
    """Save weights and facts for inference, such that a pair that fits is there at every instant.

    Raises:
        FullDiskError: as `save_state`.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with _room_for(folder / BEST, weights) as partial:
        partial.write_bytes(save(weights))  # `save_file` would make a file that only its owner may read
        write_about(folder, about, coming=partial)
    write_about(folder, about)


def load_model(folder: str | Path, device: str = "cpu") -> ResNet:
    """The best model of a run, ready for inference.

    Args:
        folder: of the run, or of a copy of its `best.safetensors`, `best.json` and `model-card.md`.
        device: such as `cpu` or `cuda`, whatever it was trained on.

    Returns:
        The network on `device`, in evaluation mode: float (B, 3, S, S) to logits (B, C). Its facts (classes,
        preparation, threshold, calibration) are `model.about`; `model.card` is the model card's text, `""` before the
        run was judged.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit.
    """
    folder = Path(folder)
    about = read_about(folder)
    try:
        weights = load_file(folder / BEST)
        with torch.device("meta"):  # nothing is drawn from the random generator for what is replaced
            model = build_model(about.arch, about.num_outputs, "none")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(damaged(folder, BEST, error)) from None
    if why := misfit(model.state_dict(), weights):
        raise CheckpointError(f"{folder.name}/{BEST} does not fit {about.arch} for {about.num_outputs} outputs: {why}")
    model.to_empty(device="cpu").load_state_dict(weights)
    model.about = about
    model.card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    return model.eval().to(device)


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


def tensor_bytes(content: object) -> int:
    """Bytes of all tensors in nested dictionaries and sequences, such as a training state."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(map(tensor_bytes, content.values()))
    return sum(map(tensor_bytes, content)) if isinstance(content, list | tuple) else 0


@contextmanager
def _room_for(file: Path, content: object) -> Iterator[Path]:
    """`atomic_file`, which names the space needed where the disk is full: PyTorch says it in riddles."""
    needed = tensor_bytes(content)
    with atomic_file(file, needed) as partial:
        try:
            yield partial
        except RuntimeError:
            if shutil.disk_usage(file.parent).free >= needed:
                raise
            raise OSError(errno.ENOSPC, "no space left") from None
