"""Saving and loading: `last.pt` to go on training, `best.safetensors` to use a model; neither can run code."""

import contextlib
import copy
import functools
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import recursively_apply
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from xray_helpers.data.dataset import worker_errors
from xray_helpers.data.transforms import Preprocess
from xray_helpers.files import CheckpointError, atomic_file, exchange, make_folder, settle, write_text
from xray_helpers.settings import ARCHS
from xray_helpers.training.model import build_model, misfit, outputs_for

VERSION = 1  # of the format of a run's files
LAST, BEST, CARD, SETTINGS = "last.pt", "best.safetensors", "model-card.md", "settings.json"
HISTORY, PREDICTIONS = "history.csv", "predictions-val.csv"
TRAINED_ON = "trained-on.csv"  # hashes of the training images and their patients; stays when a model is sent
JUDGEMENT = (PREDICTIONS, "predictions-test.csv", "metrics.json", CARD)
RUN_FILES = (HISTORY, LAST, BEST, TRAINED_ON, *JUDGEMENT)
EARLIER = "earlier"  # the folder for a model and its judgement, until a longer training of it was judged
STATE = {
    "version", "identity", "epoch", "model", "optimizer", "schedule", "scaler", "history", "best_epoch", "best_loss",
    "cycles",
}  # fmt: skip


@dataclass(frozen=True)
class ModelInfo:
    """What using a model takes besides its weights; kept in the header of `best.safetensors`.

    Attributes:
        arch: the network's architecture; of a network of your own, its class name.
        classes: names in the order of their numbers.
        preprocess: turns an image into the network's input; None where the caller did so.
        epoch: the epoch that these weights are from, counted from 1; 0 is the head alone.
        val_loss: its loss on validation.
        data: name of the dataset.
        fingerprint: of the dataset's images.
        split: digest of the manifest that says which images were for training; "" for batches of your own.
        weights: what training started from: `imagenet`, `none`, the name of a file, or that of an earlier run.
        weights_digest: SHA-256 of the file that these weights came from; "" without one.
        calibration: slope and intercept of the calibrated log-odds (two classes; fitted on validation).
        operating_points: name → threshold of the probability.
        equal_prior: the probabilities are those where all classes are equally frequent (`calibrate`).
        gray: of the training images, the lowest and highest `mean` and `standard deviation` of an image's gray levels,
            and the mean 8 × 8 `thumbnail`, row by row; None where they are not known.
    """

    arch: str
    classes: tuple[str, ...]
    preprocess: Preprocess | None
    epoch: int
    val_loss: float
    data: str = ""
    fingerprint: str = ""
    split: str = ""
    weights: str = "none"
    calibration: dict[str, float] = field(default_factory=lambda: {"slope": 1.0, "intercept": 0.0})
    operating_points: dict[str, float] = field(default_factory=lambda: {"0.5": 0.5})
    equal_prior: bool = False
    gray: dict[str, list[float]] | None = None
    weights_digest: str = ""

    @property
    def num_outputs(self) -> int:
        """Outputs of the network: 1 for two classes."""
        return outputs_for(self.classes)

    @property
    def threshold(self) -> float:
        """The probability from which the second of two classes is answered: chosen on validation, or else 0.5."""
        return self.operating_points.get("chosen", 0.5)

    @property
    def temperature(self) -> float:
        """What the log-odds are divided by to calibrate them, before the intercept is added (Guo et al. 2017)."""
        return 1 / self.calibration["slope"]


def save_model(folder: Path, model: nn.Module, info: ModelInfo) -> None:
    """Save weights, what they mean, and a digest of both as one file, `best.safetensors`; the old one or the new one.

    Raises:
        OSError: the disk is full; the message names the space needed, and the old file is intact.
    """
    state, layout = model.state_dict(), torch.contiguous_format
    weights = {name: value.cpu().clone(memory_format=layout) for name, value in state.items()}
    facts = json.dumps({"version": VERSION, **asdict(info)})
    metadata = {"facts": facts, "sha256": _digest(weights, facts)}
    with atomic_file(folder / BEST, tensor_bytes(weights)) as partial:
        partial.write_bytes(save(weights, metadata))  # `save_file` would make a file that only its owner may read


def _digest(weights: Mapping[str, Tensor], facts: str) -> str:
    """SHA-256 of tensors, with their names, types and shapes, and of the facts about them."""
    digest = hashlib.sha256(facts.encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(file: Path) -> tuple[dict[str, Tensor], ModelInfo]:
    """The weights and the facts of a model's file, which are as they were saved."""
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - it is no dict
        if "facts" not in metadata:
            raise CheckpointError(_damaged(file, "it was not saved by this package, and its weights have no classes"))
        if _digest(weights, metadata["facts"]) != metadata.get("sha256"):
            raise CheckpointError(_damaged(file, "its checksum does not match"))
        facts = json.loads(metadata["facts"])
        _check_version(facts.pop("version"), file)
        preprocess = Preprocess(**facts["preprocess"]) if facts["preprocess"] else None
        return weights, ModelInfo(**facts | {"classes": tuple(facts["classes"]), "preprocess": preprocess})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(_damaged(file, error)) from None


def load_model(folder_or_file: str | Path, device: str = "cpu", into: nn.Module | None = None) -> nn.Module:
    """The best model of a run, ready for inference.

    Args:
        folder_or_file: of a run, any file in its folder, or a copy of its `best.safetensors`.
        device: such as `cpu` or `cuda`, whatever it was trained on.
        into: for a network of your own, one of the same class, which takes the weights; None builds the ResNet.

    Returns:
        The network on `device`, in evaluation mode: a batch of images to logits (B, C). `model.info` says what is known
        about it (classes, preprocessing, threshold, calibration); `model.card` is the text of the model card beside
        the file, `""` before the run was evaluated; `model.run_name` names the folder, and `model.trained_on` has the
        hashes of its training images, None where the file is alone. Given to `fit`, it begins a new run.

    Raises:
        CheckpointError: the file is missing or damaged, or the weights do not fit.
    """
    path = run_folder(Path(folder_or_file))
    file = path if path.is_file() else path / BEST
    if not file.is_file():
        raise CheckpointError(f"{path.name} holds no finished model ({BEST}). Train it first.")
    weights, info = _read(file)
    name = f"{file.parent.name}/{file.name}"
    if into is None and info.arch not in ARCHS:
        raise CheckpointError(f"{name} was trained as {info.arch}: make one, and call load_model(file, into=model)")
    if into is None:
        with torch.device("meta"):  # nothing is drawn from the random generator for weights that are replaced
            into = build_model(info.arch, info.num_outputs, "none").to_empty(device="cpu")
    if reason := misfit(into.state_dict(), weights):
        raise CheckpointError(f"{name} does not fit {info.arch} for {info.num_outputs} outputs: {reason}")
    into.load_state_dict(weights)
    card, seen = file.with_name(CARD), file.with_name(TRAINED_ON)
    into.info, into.card = info, card.read_text(encoding="utf-8") if card.is_file() else ""
    into.trained_on, into.run_name = pd.read_csv(seen, dtype=str) if seen.is_file() else None, file.parent.name
    return into.eval().to(device)


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Save everything that is needed to go on (tensors and simple values) as `last.pt`, whole or not at all.

    Args:
        folder: of the run.
        state: the entries of `STATE` but the version; `identity` holds what must not change before going on.

    Raises:
        OSError: the disk is full; the message names the space needed, and the old file is intact.
    """
    with atomic_file(folder / LAST, tensor_bytes(state)) as partial:
        # Numbers of NumPy become Python's own: `resume` would refuse to read them.
        plain = recursively_apply(np.generic.item, state, test_type=lambda value: isinstance(value, np.generic))
        torch.save({"version": VERSION, **plain}, partial)


def describe(thing: Any, what: str) -> str:
    """A text that tells what a caller brought from something else, so that a run is not mistaken for another one.

    Args:
        thing: a function or class, described by its module and name, or any other object, by its class, its plain
            attributes (numbers, texts, and sequences of them) and, for a module, those of its parts and its tensors.
        what: what it is, for the message.

    Raises:
        ValueError: it is a lambda, which has no name.
    """
    if thing is None:
        return "the default"
    if isinstance(thing, functools.partial):
        return f"{describe(thing.func, what)} with {thing.args} {thing.keywords}"
    if name := getattr(thing, "__qualname__", ""):
        if "<lambda>" in name:
            raise ValueError(f"{what}: a lambda has no name that tells it from another one; use def, or fit(name=…)")
        return f"{thing.__module__}.{name}"
    parts = list(thing.modules()) if isinstance(thing, nn.Module) else [thing]
    facts = [
        f"{name}={value}"
        for part in parts
        for name, value in getattr(part, "__dict__", {}).items()
        if _is_plain(value) and not name.startswith("_") and name != "training"
    ]
    if isinstance(thing, nn.Module) and (tensors := thing.state_dict()):
        facts.append(f"tensors={weights_digest(tensors)}")
    return f"{type(thing).__module__}.{type(thing).__qualname__}({', '.join(facts)})"


def _is_plain(value: object) -> bool:
    inner = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(each, int | float | str | None) for each in inner)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A hash of all entries of a state dict, with their names, types and shapes."""
    return _digest({name: value.cpu().contiguous() for name, value in weights.items()}, "")[:12]


@contextlib.contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """Where the block fails or is interrupted, the model gets back the weights that it had before."""
    before = copy.deepcopy(model.state_dict())
    try:
        yield
    except BaseException:
        model.load_state_dict(before)
        raise


def set_aside(folder: Path) -> None:
    """Move a judged model's judgement, and copy the model, to the subfolder `earlier`."""
    earlier = make_folder(folder / EARLIER)
    shutil.copy2(folder / BEST, earlier)
    for name in JUDGEMENT:
        if (folder / name).is_file():
            os.replace(folder / name, earlier / name)


def save_history(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write `history.csv`, one row per stage or epoch."""
    write_text(folder / HISTORY, pd.DataFrame(history).to_csv(index=False))


def resume(folder: str | Path, identity: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The state of a run at the end of its last finished epoch, on the CPU; None where there is none.

    `fit` does the rest: what it draws at random depends on the seed and the epoch alone, so that it ends with the very
    weights of a run that never stopped.

    Args:
        folder: of the run.
        identity: what the run must have been trained with, by name; compared with what the state says.

    Raises:
        CheckpointError: the file is damaged, holds something else, is of a newer version of this package, or of a run
            with another architecture, classes, image size, dataset or anything else in `identity`.
    """
    file = Path(folder) / LAST
    if not file.is_file():
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            if broken := archive.testzip():  # torch.load does not look at the checksums that torch.save writes
                raise zipfile.BadZipFile(f"the checksum of {broken} does not match")
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # PyTorch's own message advises to run it
        reason = "it holds more than tensors and plain values, which could run code, and was not opened"
        raise CheckpointError(_damaged(file, reason)) from None
    except Exception as error:  # noqa: BLE001 - on damaged bytes zipfile and torch raise anything
        raise CheckpointError(_damaged(file, str(error).split("\n", 1)[0])) from None
    if not isinstance(state, dict) or "version" not in state:
        raise CheckpointError(_damaged(file, "it is something else than a training state"))
    _check_version(state["version"], file)
    if missing := sorted(STATE - state.keys()):
        raise CheckpointError(_damaged(file, f"it lacks {', '.join(missing)}"))
    check_identity(state, identity or {}, file)
    return state


def check_identity(state: Mapping[str, Any], identity: Mapping[str, Any], file: Path) -> None:
    """Refuse the state of a run that was trained in another way; arguments and errors as for `resume`."""
    for name, value in identity.items():
        before = state["identity"].get(name)
        if before != value:
            # Of long descriptions, what differs and a little before it.
            pairs = enumerate(zip(str(before), str(value), strict=False))
            start = max(0, next((place for place, (was, now) in pairs if was != now), 0) - 20)
            was, now = (shorten(str(each)[start:], 100, placeholder=" …") for each in (before, value))
            change = f"models/{file.parent.name}/{LAST} was trained with another {name} ({was}, now {now})"
            advice = "Start over with --fresh (in a notebook: fresh=True), or choose another folder."
            raise CheckpointError(f"{change}. {advice}")


@contextlib.contextmanager
def lock_run_folder(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold a run's folder, so that two runs never write to it at once; a run's first process does so for all.

    What stops the run inside is said plainly, Ctrl-C included, wherever it comes.

    Raises:
        CheckpointError: another run holds the folder.
        XrayError: a process that loads images was killed, or hangs.
    """
    # Beside the folder, which may be exchanged; `train` holds it around `fit`.
    lock = FileLock(make_folder(folder.parent) / f".{folder.name}.lock", timeout=0, is_singleton=True)
    try:
        with lock if accelerator.is_main_process else contextlib.nullcontext(), worker_errors():
            make_folder(folder)
            for partial in folder.glob(".*.partial*") if accelerator.is_main_process else ():
                partial.unlink()  # of a process that was killed while saving
            yield
    except Timeout:
        raise CheckpointError(f"another process is training in models/{folder.name}; wait for it, or stop it") from None
    except KeyboardInterrupt:
        if accelerator.is_main_process:
            print(f"stopped; models/{folder.name} keeps the finished epochs, and the next run goes on from there")
        raise


@contextlib.contextmanager
def made_aside(folder: Path, fresh: bool, accelerator: Accelerator) -> Iterator[Path]:
    """Give the folder to train in: the run's own, or for a fresh run one beside it, which takes its place when whole.

    Until then the earlier run and its judgement stay as they are. A fresh run that was stopped goes on, unless it is
    to be fresh again.

    Args:
        folder: of the run.
        fresh: start over.
        accelerator: of this process; the first one moves the folders.

    Raises:
        CheckpointError: there is a model and no state to go on from, and the run is not fresh.
    """
    aside = fresh_folder(folder)
    if accelerator.is_main_process:
        settle(folder)
        if fresh:
            shutil.rmtree(aside, ignore_errors=True)
            if any((folder / name).exists() for name in RUN_FILES):
                aside.mkdir()
    accelerator.wait_for_everyone()
    if not aside.exists():
        new = (folder / HISTORY).is_file() and not (folder / HISTORY).stat().st_size  # killed in its first epoch
        if (folder / BEST).is_file() and not (folder / LAST).is_file() and not new:
            advice = "Choose another folder, or start over with --fresh (in a notebook: fresh=True)."
            raise CheckpointError(f"{folder.name} holds a model, and no {LAST} to go on from. {advice}")
        yield folder
        return
    yield aside
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in (*RUN_FILES, SETTINGS, EARLIER):  # somebody's own
                path.rename(aside / path.name)
        exchange(aside, folder)


def fresh_folder(folder: Path) -> Path:
    """Where a fresh run is made, beside the earlier one."""
    return folder.with_name(f".{folder.name}.fresh")


def run_folder(path: Path) -> Path:
    """The folder of a run where one of its files is named; any other path as it is."""
    return path.parent if path.is_file() and path.name in (*RUN_FILES, SETTINGS) else path


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
    if isinstance(content, Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(map(tensor_bytes, content.values()))
    return sum(map(tensor_bytes, content)) if isinstance(content, list | tuple) else 0


def _check_version(version: int, file: Path) -> None:
    if version > VERSION:
        name = f"{file.parent.name}/{file.name}"
        raise CheckpointError(f"{name} is of format {version}; this package reads up to {VERSION}. Update it.")


def _damaged(file: Path, reason: object) -> str:
    """What to say about a file of a run that cannot be used."""
    folder = file.parent.name
    advice = f"Copy it again from where it is intact, or delete the folder {folder} and train again."
    return f"{folder}/{file.name} cannot be read: {reason}. {advice}"
