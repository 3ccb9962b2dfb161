"""The training loop, to be read from top to bottom: an epoch, validation, and `fit`, which repeats them and saves.

`fit` takes any network and any iterable of batches; `training.train` calls it for a run that `Settings` describe.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader
from torchvision.models import ResNet
from tqdm import tqdm

from xray_helpers import inference
from xray_helpers.data.dataset import Loaders
from xray_helpers.data.splits import check_unseen, split_digest, traces
from xray_helpers.data.transforms import Augmentation, Preprocess, Shrunk
from xray_helpers.files import CheckpointError, XrayError, write_text
from xray_helpers.inference import Batches, Transform, classification_loss, run_on_labelled
from xray_helpers.metrics import scores
from xray_helpers.settings import seed_everything
from xray_helpers.training import checkpoint
from xray_helpers.training.model import backbone, misfit, parameter_groups, set_prior, train_mode

HEAD_EPOCHS, HEAD_BATCH, HEAD_RATE = 100, 256, 0.01  # over stored features, in a second or two
WEIGHT_DECAY = 0.01
CHECK_EVERY = 20  # steps between two looks at the losses: each look waits for a GPU

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Metrics: TypeAlias = Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], dict[str, float]]


@dataclass
class Run:
    """A finished run.

    Attributes:
        history: one row per stage or epoch: stage, epoch, train_loss, val_loss, val_auc, val_accuracy, learning_rate,
            seconds, images_per_second, and val_<name> for each of the caller's metrics.
        folder: where its files lie.
        model: the best model by validation loss, on the CPU, in evaluation mode, with its `model.info`.
    """

    history: pd.DataFrame
    folder: Path
    model: Any


def train_one_epoch(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    accelerator: Accelerator,
    preprocess: Transform | None = None,
    augment: Transform | None = None,
    loss: Loss = classification_loss,
    epoch: int = 1,
    update_statistics: bool = True,
) -> tuple[float, int]:
    """One pass over the training batches.

    Args:
        model: on the accelerator's device; as Accelerate prepared it where there are several processes.
        batches: images (B, …) and class numbers (B,), the same in every process.
        optimizer: as Accelerate prepared it.
        schedule: of its learning rates, one step per batch.
        accelerator: from `make_accelerator`.
        preprocess: turns a batch into the network's input; None where it is that already.
        augment: random changes before that.
        loss: from logits (B, C) and labels (B,) to a scalar.
        epoch: for messages, counted from 1.
        update_statistics: as for `train_mode`.

    Returns:
        The mean loss over the images, and how many images there were.

    Raises:
        XrayError: the loss is not a finite number any more.
        MemoryError: the GPU's memory is too small for the batch.
    """
    train_mode(model, update_statistics)
    number, count = accelerator.process_index, accelerator.num_processes
    losses: list[Tensor] = []
    sizes: list[int] = []
    bar = tqdm(batches, f"epoch {epoch}", leave=False, unit="batch", disable=not accelerator.is_main_process)
    try:
        for images, labels in bar:
            if len(labels) < count:  # too few for every process to have a share
                continue
            # This process's share of the batch, weighted so that the mean gradient is that of the whole batch.
            share = labels[number::count].to(accelerator.device, non_blocking=True)
            weight = count * len(share) / len(labels)
            # On the device: augment, preprocess, predict.
            pixels = images[number::count].to(accelerator.device, non_blocking=True)
            inputs = inference.network_input(augment(pixels) if augment else pixels, preprocess, accelerator)
            with accelerator.autocast():  # bf16 where the hardware has it
                logits = model(inputs)
            value = loss(logits.float(), share) * weight
            # Move the weights against the gradient.
            accelerator.backward(value)
            optimizer.step()
            if not accelerator.optimizer_step_was_skipped:  # float16 skips steps whose gradients overflow
                schedule.step()
            optimizer.zero_grad()
            losses.append(value.detach())
            sizes.append(len(labels))
            if len(losses) % CHECK_EVERY == 0:
                _check_finite(losses, epoch, optimizer)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        advice = f"Set BATCH_SIZE to {2 * count} or more, or IMAGE_SIZE higher."
        raise ValueError(
            f"A batch of one image is too small for this network's batch normalisation. {advice}"
        ) from None
    except torch.cuda.OutOfMemoryError:
        size, shape = len(labels), tuple(images.shape[1:])
        advice = f"Set BATCH_SIZE to {max(1, size // 2)} or less; what was saved is kept."
        raise MemoryError(f"The GPU's memory is too small for batches of {size} images of {shape}. {advice}") from None
    _check_finite(losses, epoch, optimizer)
    mean = (torch.stack(losses) * torch.tensor(sizes, device=accelerator.device)).sum() / sum(sizes)
    return float(accelerator.reduce(mean, "mean")), sum(sizes)


def _check_finite(losses: list[Tensor], epoch: int, optimizer: torch.optim.Optimizer) -> None:
    if not losses:
        raise ValueError("there is no batch to train on: the training images are fewer than the batch size")
    finite = torch.stack(losses).isfinite()
    if not finite.all():
        batch = int((~finite).nonzero()[0]) + 1
        where = f"in batch {batch} of epoch {epoch}, at a learning rate of {_learning_rate(optimizer):.2g}"
        advice = "Lower LEARNING_RATE; the best model so far is kept."
        raise XrayError(f"The loss is {losses[batch - 1].item()} {where}. {advice}")


def _learning_rate(optimizer: torch.optim.Optimizer) -> float:
    return max(float(group["lr"]) for group in optimizer.param_groups)


def validate(
    model: nn.Module,
    batches: Batches,
    accelerator: Accelerator | None = None,
    preprocess: Transform | None = None,
    loss: Loss = classification_loss,
    metrics: Metrics | None = None,
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Judge a model on validation, over all images at once.

    Args:
        model: is put into evaluation mode.
        batches: images (B, …) and class numbers (B,).
        accelerator: as for `run_network`.
        preprocess: as for `train_one_epoch`.
        loss: as for `train_one_epoch`.
        metrics: from truth (N,) and probabilities (N,) or (N, C) to more figures by name.

    Returns:
        loss, auc, accuracy and the figures of `metrics` (the first three NaN where a logit is not finite); the logits,
        float32 (N, C); the labels, int64 (N,).
    """
    logits, truth = run_on_labelled(model.eval(), batches, preprocess, accelerator)
    found = dict.fromkeys(("loss", "auc", "accuracy"), math.nan)
    if logits.isfinite().all():
        answers = truth.numpy(), inference.probabilities(logits).numpy()
        figures = scores(*answers) | {"loss": loss(logits, truth)} | (metrics(*answers) if metrics else {})
        found = {name: float(value) for name, value in figures.items()}
    return found, logits, truth


def fit(  # noqa: PLR0912, PLR0915 - the order on the page is the order in time
    model: Any,
    loaders: Any,
    folder: str | Path,
    epochs: int = 3,
    learning_rate: float = 3e-4,
    preprocess: Transform | None = None,
    augment: Transform | None = None,
    classes: Sequence[str] | None = None,
    loss: Loss | None = None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    schedule: Callable[[torch.optim.Optimizer, int], LRScheduler] | None = None,
    metrics: Metrics | None = None,
    callbacks: Sequence[Callable[[dict[str, Any], nn.Module], object]] = (),
    name: str | None = None,
    more_epochs: int = 0,
    small: int = 0,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    fresh: bool = False,
    verbose: bool = True,
) -> Run:
    """Train a network, or finish training it, or return what was trained before in this folder in the same way.

    The model with the lowest validation loss is kept. The last finished epoch is saved, so that a run that was stopped
    goes on from there; the result is the same as if it had never stopped, where the order of the batches follows from
    the seed (the project's loaders, and a `DataLoader` without a generator of its own). Where training stops with an
    error or is interrupted, the model gets back the weights that it had.

    A folder holds one run. What makes it this run is saved with it: the images and their split, the network, the
    weights that it starts from, and everything below that changes the result. A function is known by its name, any
    other object by its class and plain attributes.

    Args:
        model: any network from a batch of inputs to logits (B, C), C = 1 for two classes. It is trained in place. One
            from `build_model` with pretrained weights has its head fitted first, on features that are computed once.
            One from `load_model` begins a new run from an earlier one.
        loaders: anything with `.train` and `.val`, or a pair: iterables of images (B, …) and class numbers (B,).
        folder: where the run's files are written.
        epochs: passes over the training images.
        learning_rate: the highest, of the default optimizer and schedule.
        preprocess: turns a batch into the network's input; by default that of the loaders, where they have one.
        augment: random changes before that; by default `style` for the project's loaders, none for others.
        classes: names in the order of their numbers; by default those of the loaders, else "0", "1", ….
        loss: from logits (B, C) and labels (B,) to a scalar; by default unweighted cross-entropy. It is also the
            validation loss that chooses the best model.
        optimizer: makes one for the model; by default AdamW, with lower rates for earlier pretrained layers.
        schedule: makes one for the optimizer and the number of steps; by default one cycle (Smith and Topin 2018).
        metrics: more validation figures for the history, from truth and probabilities.
        callbacks: called with the history's row and the model, in the main process, after an epoch was saved; an error
            in one stops the run, and the saved epochs are kept.
        name: stands for the starting weights and for your own objects when runs are told apart, lambdas included.
        small: side in pixels of the images that the head is fitted on, and those of all epochs but the last of a cycle:
            most of what there is to learn shows at half the size, at a quarter of the cost (progressive resizing, as in
            Howard 2018 and Touvron et al. 2019). 0 is the full size. It needs a `Preprocess`.
        more_epochs: go on with a finished run for so many epochs beyond `epochs`, in one more cycle of the schedule.
        seed: of everything that is random.
        device: `auto`, `cuda`, `mps` or `cpu`.
        precision: `auto`, `float32`, `bf16` or `fp16`.
        fresh: start over; what an earlier run left in this folder goes when the new run is whole.
        verbose: print a line per epoch.

    Raises:
        XrayError: the loss became infinite (the best model so far is kept), or a process that loads images was killed.
        CheckpointError: another process trains in this folder, what is there cannot be read, or it was trained in
            another way; the message says in which.
        LeakError: an earlier run that the model is from learned from images of val or test.
        ValueError: an object of your own is a lambda, and there is no `name`; there is no batch to train on; or `small`
            without a `Preprocess`, whose size it is about.
        MemoryError: the GPU's memory is too small for a batch.
        OSError: the disk is full.
    """
    # 1. What the caller did not choose.
    target, accelerator = Path(folder), inference.make_accelerator(device, precision)
    batches, val_batches = loaders if isinstance(loaders, tuple | list) else (loaders.train, loaders.val)
    batches_per_epoch = _count_batches(batches, val_batches)
    preprocess, loss = preprocess or getattr(loaders, "preprocess", None), loss or classification_loss
    if augment is None and isinstance(loaders, Loaders):
        augment = Augmentation("style", loaders.preprocess.size)
    at_first = preprocess, augment  # for the epochs of small images
    if small:
        if not isinstance(preprocess, Preprocess):
            raise ValueError(f"small={small} needs preprocess to be a Preprocess, which knows the size of the images")
        smaller = augment
        if isinstance(augment, Augmentation):
            smaller = Shrunk(Augmentation(augment.strength, small, augment.flip), small)
        at_first = Shrunk(replace(preprocess, size=small), small), smaller
    classes = classes or getattr(loaders, "classes", None) or _class_numbers(model, val_batches, preprocess)
    manifest = getattr(loaders, "manifest", None)  # where it is known which images these are
    if verbose and not _order_is_repeatable(batches):
        print("note: the order of these training batches cannot be repeated: a resumed run will see another one")

    with (
        checkpoint.lock_run_folder(target, accelerator),
        checkpoint.restored_on_error(model),
        checkpoint.made_aside(target, fresh, accelerator) as folder,  # noqa: PLR1704
    ):
        # 2. What an earlier run left here, and whether it was this run.
        state = checkpoint.resume(folder) or {}
        arch, weights, start_weights = _origin(model, folder, state)
        info = checkpoint.ModelInfo(
            arch=arch, classes=tuple(classes), weights=weights, epoch=-1, val_loss=math.inf,
            preprocess=preprocess if isinstance(preprocess, Preprocess) else None,
            data=getattr(loaders, "data_name", ""), fingerprint=getattr(loaders, "fingerprint", ""),
            split="" if manifest is None else split_digest(manifest),
            weights_digest=state.get("weights_digest", getattr(model, "weights_sha256", "")),
        )  # fmt: skip
        identity = {key: getattr(info, key) for key in ("arch", "classes", "weights", "fingerprint", "split")}
        identity |= {"epochs": epochs, "learning_rate": learning_rate, "batches per epoch": batches_per_epoch}
        frozen = sum(not parameter.requires_grad for parameter in model.parameters())
        identity |= {"small": small, "frozen parameters": frozen}
        identity |= {"seed": seed, "name": name, "preprocess": repr(info.preprocess)}
        if not name:
            brought = {"loss": loss, "optimizer": optimizer, "schedule": schedule, "augment": augment}
            brought |= {"preprocess": preprocess}
            identity |= {what: checkpoint.describe(thing, what) for what, thing in brought.items()}
            identity |= {"starting weights": start_weights}
        if state:
            checkpoint.check_identity(state, identity, target / checkpoint.LAST)
        has_head = isinstance(getattr(model, "fc", None), nn.Linear)
        pretrained = has_head and weights != "none"
        new_head = has_head and hasattr(model, "weights") and not model.fc.weight.any()
        done = state.get("epoch", -1 if pretrained and new_head else 0)  # epoch 0 fits the head
        history, cycles = state.get("history", []), state.get("cycles", [epochs])  # each cycle by its last epoch
        new_cycle = epochs + more_epochs > cycles[-1]
        if new_cycle and done < cycles[-1]:
            what = f"more_epochs goes on with a finished run, and models/{target.name} has finished {max(done, 0)}"
            raise CheckpointError(f"{what} of {cycles[-1]} epochs: train it to its end first.")
        accelerator.wait_for_everyone()
        if state:
            if reason := misfit(model.state_dict(), state["model"]):
                raise CheckpointError(f"models/{target.name}/last.pt does not fit this {arch}: {reason}")
            model.load_state_dict(state["model"])
            info = replace(info, epoch=state["best_epoch"], val_loss=state["best_loss"])
        else:
            trained_on = _trained_on(model, loaders, manifest, weights)
            if accelerator.is_main_process:
                write_text(folder / checkpoint.HISTORY, "")
                if trained_on is not None:
                    write_text(folder / checkpoint.TRAINED_ON, trained_on.to_csv(index=False))
        if new_cycle:
            cycles = [*cycles, epochs + more_epochs]
            if accelerator.is_main_process:
                checkpoint.set_aside(folder)

        # 3. With pretrained weights the head first: random features would give it nothing to rest on.
        seed_everything(seed)
        start = time.perf_counter()
        if not state and isinstance(loaders, Loaders) and new_head:
            set_prior(model, torch.bincount(loaders.train.dataset.labels, minlength=len(classes)))
        if done < 0:
            mean_loss, count = fit_head(model, batches, accelerator, at_first[0], loss)

        # 4. The optimizer and its schedule of learning rates.
        inference.place_network(model, accelerator)
        steps = optimizer(model) if optimizer else _default_optimizer(model, learning_rate, pretrained)
        rates = [group["lr"] for group in steps.param_groups]
        if new_cycle:  # keeps what the optimizer remembers, and begins at its first rates
            steps.load_state_dict(state["optimizer"])
            for group, rate in zip(steps.param_groups, rates, strict=True):
                group["lr"] = group["initial_lr"] = rate
        total = (cycles[-1] - sum(cycles[-2:-1])) * batches_per_epoch
        plan = schedule(steps, total) if schedule else OneCycleLR(steps, rates, total_steps=total)
        if state and not new_cycle:
            steps.load_state_dict(state["optimizer"])
            plan.load_state_dict(state["schedule"])
        steps = accelerator.prepare(steps)
        network = accelerator.prepare(model) if accelerator.num_processes > 1 else model
        if state and accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])

        # 5. The epochs: train on every image once, validate, save. Epoch 0 is that of the head, already fitted.
        for epoch in range(done + 1, cycles[-1] + 1):
            if epoch > 0:
                seed_everything(epoch_seed(seed, epoch))  # a resumed run draws what it would have drawn
                _set_epoch(batches, epoch - 1)
                start = time.perf_counter()
                views = (preprocess, augment) if epoch in cycles else at_first
                # Pretrained statistics stay: the head was fitted to them, and small batches estimate them badly.
                mean_loss, count = train_one_epoch(
                    network, batches, steps, plan, accelerator, *views, loss, epoch, weights == "none"
                )
            stage, rate = ("fine-tune", _learning_rate(steps)) if epoch > 0 else ("head", HEAD_RATE)
            stage = "more epochs" if epoch > epochs else stage
            seconds = time.perf_counter() - start

            # Validate, and see whether this model is the best so far.
            found, _, _ = validate(model, val_batches, accelerator, preprocess, loss, metrics)
            row = {"stage": stage, "epoch": epoch, "train_loss": mean_loss}
            row |= {f"val_{key}": value for key, value in found.items()}
            row |= {"learning_rate": rate, "seconds": seconds, "images_per_second": count / seconds}
            history.append(row)
            if found["loss"] < info.val_loss:  # never true of NaN
                info = replace(info, epoch=epoch, val_loss=found["loss"])

            # Save the best model so far and what is needed to go on; then tell the callbacks.
            if not accelerator.is_main_process:
                continue
            if info.epoch == epoch:
                checkpoint.save_model(folder, model, info)
            scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
            parts = {"optimizer": steps.state_dict(), "schedule": plan.state_dict(), "scaler": scaler}
            past = {"best_epoch": info.epoch, "best_loss": info.val_loss, "epoch": epoch, "history": history}
            past |= {"cycles": cycles, "weights_digest": info.weights_digest}
            checkpoint.save_state(folder, {"identity": identity, "model": model.state_dict(), **parts, **past})
            checkpoint.save_history(folder, history)
            if verbose:
                figures = "loss {loss:.4f}, AUC {auc:.4f}, accuracy {accuracy:.4f}".format(**found)
                speed = f"{seconds:.0f} s, {count / seconds:.0f} images/s"
                print(f"{stage:<9} {epoch}/{cycles[-1]}: loss {mean_loss:.4f}, validation {figures}; {speed}")
            for callback in callbacks:
                callback(row, model)

        # 6. The best model takes the place of the last.
        accelerator.wait_for_everyone()
        if info.epoch < 0:
            raise CheckpointError(f"no epoch of {target.name} had a finite validation loss; lower LEARNING_RATE")
        if accelerator.is_main_process:  # a kill right after saving the state leaves the table a row short
            checkpoint.save_history(folder, history)
        best: Any = checkpoint.load_model(folder, into=model.to(memory_format=torch.contiguous_format))
        best.run_name = target.name
        return Run(pd.DataFrame(history), target, best)


def fit_head(
    model: ResNet, batches: Batches, accelerator: Accelerator, preprocess: Transform | None, loss: Loss
) -> tuple[float, int]:
    """Fit the head `fc` alone, in place, on features that the frozen rest of the network computes once.

    The same in every process: the features are gathered, and the head is small.

    Returns:
        The last mean loss, and how many images there were.
    """
    frozen = inference.place_network(backbone(model).eval(), accelerator)
    _set_epoch(batches, 0)  # whatever was read from them before
    features, labels = run_on_labelled(frozen, batches, preprocess, accelerator)  # (N, F), (N,)
    head = model.fc.cpu()
    optimizer = torch.optim.AdamW(head.parameters(), lr=HEAD_RATE, weight_decay=WEIGHT_DECAY)
    schedule = OneCycleLR(optimizer, HEAD_RATE, total_steps=HEAD_EPOCHS * math.ceil(len(labels) / HEAD_BATCH))
    for _ in range(HEAD_EPOCHS):
        total = 0.0
        for part in torch.randperm(len(labels)).split(HEAD_BATCH):
            value = loss(head(features[part]), labels[part])
            value.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += value.item() * len(part) / len(labels)
    return total, len(labels)


def _origin(model: nn.Module, folder: Path, state: dict[str, Any]) -> tuple[str, str, str]:
    """The network's architecture, the name of the weights that it starts from, and their digest.

    Those that the run in the folder began with, where the model is this run's own result: training it again with the
    same call gives the same run.
    """
    digest, known = checkpoint.weights_digest(model.state_dict()), getattr(model, "info", None)
    best = folder / checkpoint.BEST
    if state and best.is_file() and checkpoint.weights_digest(load_file(best)) == digest:
        before = state["identity"]
        return before["arch"], before["weights"], before.get("starting weights", digest)
    if isinstance(known, checkpoint.ModelInfo):
        return known.arch, str(model.run_name), digest
    weights = getattr(model, "weights", "none")
    arch = getattr(model, "arch", type(model).__name__)
    return arch, weights if isinstance(weights, str) else "none", digest


def _trained_on(model: Any, loaders: Any, manifest: pd.DataFrame | None, weights: str) -> pd.DataFrame | None:
    """Hashes of the images that a new run learns from, with those of the run that its model is from.

    Raises:
        LeakError: that run learned from images of val or test.
    """
    earlier = getattr(model, "trained_on", None) if hasattr(model, "run_name") else None
    if hasattr(model, "run_name") and earlier is None:
        print(
            f"note: {weights} comes without {checkpoint.TRAINED_ON}: whether it learned from val or test is not known"
        )
    if manifest is None:
        return earlier
    if earlier is not None:
        check_unseen(manifest[manifest["split"] != "train"], earlier, weights)
    return pd.concat([traces(manifest[manifest["split"] == "train"], loaders.key), earlier])


def _default_optimizer(model: nn.Module, learning_rate: float, pretrained: bool) -> torch.optim.Optimizer:
    """AdamW; with pretrained weights, layers learn the slower, the nearer they are to the input."""
    grouped = parameter_groups(model, learning_rate) if pretrained else model.parameters()
    return torch.optim.AdamW(grouped, learning_rate, weight_decay=WEIGHT_DECAY)


def _count_batches(train: Batches, val: Batches) -> int:
    """Batches per epoch, by reading them once where they have no length.

    Raises:
        ValueError: training or validation batches can be read only once.
    """
    if isinstance(train, Iterator) or isinstance(val, Iterator):
        raise ValueError("these batches can be read only once: give a list, a DataLoader, or an object with __iter__")
    try:
        return len(train)  # type: ignore[arg-type]
    except TypeError:
        return sum(1 for _ in train)


def _class_numbers(model: nn.Module, batches: Batches, preprocess: Transform | None) -> tuple[str, ...]:
    """Names for classes that have none: "0", "1", …, as many as the model has outputs (two for one output)."""
    outputs, _ = run_on_labelled(model.eval(), [next(iter(batches))], preprocess)
    return tuple(map(str, range(max(2, outputs.shape[1]))))


def _order_givers(batches: Any) -> list[Any]:
    """What may decide about the order: the batches themselves, and the samplers of a `DataLoader`."""
    samplers = [getattr(batches, name, None) for name in ("sampler", "batch_sampler")]
    return [batches, *samplers, *(getattr(sampler, "sampler", None) for sampler in samplers)]


def _epoch_sampler(batches: Any) -> Any:
    """What has a `set_epoch`: the batches themselves, or a sampler of a `DataLoader`; None where nothing has."""
    return next((giver for giver in _order_givers(batches) if hasattr(giver, "set_epoch")), None)


def _set_epoch(batches: Any, epoch: int) -> None:
    """Choose the order of the next pass, counted from 0, where it follows from a number."""
    if sampler := _epoch_sampler(batches):
        sampler.set_epoch(epoch)


def _order_is_repeatable(batches: Any) -> bool:
    """Whether the order of the batches follows from `set_epoch`, or from the global generators."""
    plain = all(getattr(giver, "generator", None) is None for giver in _order_givers(batches))
    return (isinstance(batches, DataLoader) and plain) or isinstance(batches, Sequence) or bool(_epoch_sampler(batches))


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for everything random in one epoch, whatever came before it."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
