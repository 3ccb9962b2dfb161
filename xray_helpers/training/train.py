"""A whole run from `Settings`: prepare, fit, and calibrate on validation; what `make train` and notebook 05 do."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torchvision.models import ResNet, get_model_weights

from xray_helpers.data.dataset import Loaders, PreparedData, XrayDataset, make_loaders, prepare_data
from xray_helpers.data.transforms import Augmentation, gray_statistics
from xray_helpers.files import WeightsError, print_once, write_text
from xray_helpers.inference import make_accelerator, prediction_table, probabilities, run_network
from xray_helpers.metrics import operating_points, platt
from xray_helpers.settings import Settings, seed_everything
from xray_helpers.training import checkpoint
from xray_helpers.training.checkpoint import load_model
from xray_helpers.training.engine import Run, fit
from xray_helpers.training.model import build_model, freeze, outputs_for, prior_logits, set_prior

# Of one core, per training image and billion operations of the network's forward pass (docs/benchmarks.md).
FLOAT32_SECONDS = 0.06


def train(
    settings: Settings, data: PreparedData | None = None, fresh: bool = False, latest: bool = True, verbose: bool = True
) -> Run:
    """Prepare the data, fit the network that the settings describe, and calibrate it on validation.

    The test split stays closed. The run's folder follows from the settings; a run that was stopped goes on there.

    Args:
        settings: of the run.
        data: from `prepare_data`, for the same data, split and image size; prepared here when None.
        fresh: start over; an earlier run of these settings goes when the new one is whole.
        latest: name the run in `models/latest.txt`, which evaluation and prediction read; off for side comparisons.
        verbose: print a line per epoch.

    Raises:
        WeightsError: pretrained weights cannot be had, with data other than the sample.
        ValueError: `data` was prepared for other settings.
        XrayError, MemoryError, OSError: as `fit`.
    """
    data = data or prepare_data(settings)
    for field in ("data_name", "split", "fractions", "split_seed", "task", "finding", "image_size", "resize"):
        if getattr(data.settings, field) != getattr(settings, field):
            raise ValueError(f"data was prepared with {field}={getattr(data.settings, field)!r}, not the settings' own")
    loaders = make_loaders(data, settings.batch_size, settings.seed, settings.workers)
    begun = any(
        (folder / checkpoint.LAST).is_file()
        for folder in (settings.run_folder, checkpoint.fresh_folder(settings.run_folder))
    )
    if begun and not fresh:  # the weights that it began with are not needed any more
        model = build_model(settings.arch, outputs_for(loaders.classes), "none")
        model.weights = Path(settings.weights).name
    else:
        model, settings = initial_model(settings, loaders)
    if settings.weights != "none":
        freeze(model, settings.frozen)
    small = settings.small_size if settings.small_size < settings.image_size else 0
    folder, augment = settings.run_folder, Augmentation(settings.augment, settings.image_size)
    accelerator = make_accelerator(settings.device, settings.precision)
    if not begun and accelerator.is_main_process:
        for other in same_but_for_epochs(settings):
            print(
                f"note: models/{other} holds a run that differs only in EPOCHS; MORE_EPOCHS goes on with a finished one"
            )
        minutes = expected_minutes(settings, len(loaders.train.dataset))
        if accelerator.device.type == "cpu" and accelerator.mixed_precision == "no" and minutes >= 1:
            advice = "RECIPE=fast needs about half of it, and a run that is stopped can go on"
            print(f"note: in float32 on {os.cpu_count()} cores, training may take {minutes:.0f} minutes; {advice}")
    with checkpoint.lock_run_folder(folder, accelerator), checkpoint.made_aside(folder, fresh, accelerator) as work:
        run = fit(
            model, loaders, work, settings.epochs, settings.learning_rate, augment=augment, name=settings.run_name,
            small=small, more_epochs=settings.more_epochs, seed=settings.seed, device=settings.device,
            precision=settings.precision, verbose=verbose,
        )  # fmt: skip
        if accelerator.is_main_process:
            longer = int(run.history["epoch"].max()) - settings.epochs  # in this call or in an earlier one
            saved = replace(settings, more_epochs=longer).without_paths()
            write_text(work / checkpoint.SETTINGS, json.dumps(saved, indent=1) + "\n")
            if not (work / checkpoint.PREDICTIONS).is_file():
                calibrate(work, loaders, accelerator.device)
        accelerator.wait_for_everyone()
    if latest and accelerator.is_main_process:
        write_text(folder.parent / "latest.txt", folder.name + "\n")
    accelerator.wait_for_everyone()
    return replace(run, folder=folder, model=load_model(folder))


def expected_minutes(settings: Settings, images: int) -> float:
    """About how long all epochs take in float32 on this machine's cores, from what they took on two others.

    Args:
        settings: of the run; the cost grows with the network's operations and the area of the images.
        images: of the train split.
    """
    operations = get_model_weights(settings.arch).DEFAULT.meta["_ops"] * (settings.image_size / 224) ** 2  # billions
    epochs = settings.epochs + settings.more_epochs
    return float(FLOAT32_SECONDS * operations * images * epochs / (os.cpu_count() or 1) / 60)


def same_but_for_epochs(settings: Settings) -> list[str]:
    """The folders of runs whose settings are these but for the number of epochs."""
    wanted, found = settings.without_paths(), []
    for file in sorted(settings.run_folder.parent.glob("[!.]*/settings.json")):
        saved = json.loads(file.read_text(encoding="utf-8"))
        differ = {name for name, value in wanted.items() if json.loads(json.dumps(value)) != saved.get(name, "")}
        found += [file.parent.name] if "epochs" in differ and differ <= {"epochs", "more_epochs"} else []
    return found


def initial_model(settings: Settings, loaders: Loaders) -> tuple[ResNet, Settings]:
    """The network before training; a new head has its bias at the log-odds of the training labels.

    Returns:
        The network, and the settings that are true of it: where the sample has to do without pretrained weights, a note
        is printed, and `weights` is `none`.

    Raises:
        WeightsError: pretrained weights cannot be had, with data other than the sample; or an earlier run has another
            architecture or other classes.
        CheckpointError: the folder of an earlier run holds no model.
    """
    seed_everything(settings.seed)
    weights = settings.weights_source()
    if weights not in ("imagenet", "none") and (earlier := Path(weights)).is_dir():
        model: Any = load_model(earlier)
        if (model.info.arch, model.info.classes) != (settings.arch, loaders.classes):
            what = f"is a {model.info.arch} for {', '.join(model.info.classes)}"
            raise WeightsError(f"{earlier.name} {what}; this run is a {settings.arch} for {', '.join(loaders.classes)}")
        return model, settings
    try:
        model = build_model(settings.arch, outputs_for(loaders.classes), weights)
    except WeightsError as error:
        if settings.data != "sample" or settings.weights != "imagenet":
            raise
        print_once(f"note: {error}\nThe sample is trained from random weights instead.")
        return initial_model(replace(settings, weights="none"), loaders)
    set_prior(model, torch.bincount(loaders.train.dataset.labels, minlength=len(loaders.classes)))
    return model, settings


def gray_facts(dataset: XrayDataset) -> dict[str, list[float]]:
    """What `ModelInfo.gray` says of a dataset's images."""
    parts = torch.arange(len(dataset)).split(512)
    means, stds, thumbnails = map(
        torch.cat, zip(*(gray_statistics(dataset[p.tolist()][0]) for p in parts), strict=True)
    )
    ranges = {"mean": means, "standard deviation": stds}
    facts = {name: [float(each.min()), float(each.max())] for name, each in ranges.items()}
    return facts | {"thumbnail": thumbnails.mean(0).tolist()}


def calibrate(folder: Path, loaders: Loaders, device: torch.device | str = "cpu") -> None:
    """Prepare a run's best model for use, and save it: `best.safetensors` anew, and its predictions on validation.

    The head's bias is moved, once, so that the probabilities are those where all classes are equally frequent (logit
    adjustment, Menon et al. 2021): how often each was collected says nothing about an image, and a model that leans on
    it calls normal images ill where the images differ from the training images (`docs/robustness.md`). Calibration,
    which undoes this for validation's own shares, and thresholds are fitted on validation, in float32. What the grays
    of the training images are like is saved too.
    """
    model: Any = load_model(folder, str(device))
    info, dataset, labels = model.info, loaders.val.dataset, loaders.train.dataset.labels
    if not info.equal_prior:
        with torch.no_grad():
            prior = prior_logits(torch.bincount(labels, minlength=len(info.classes)), info.num_outputs)
            model.fc.bias -= prior.to(model.fc.bias)
        info = replace(info, equal_prior=True)
    logits = run_network(model, loaders.val, info.preprocess)
    if info.num_outputs == 1:
        truth, chance = dataset.labels.numpy(), probabilities(logits.double()).numpy()
        scale, points = platt(truth, logits.squeeze(1).numpy()), operating_points(truth, chance)
        info = replace(info, calibration=scale, operating_points=points)
    checkpoint.save_model(folder, model, replace(info, gray=gray_facts(loaders.train.dataset)))
    table = prediction_table(dataset, logits, info.calibration)
    write_text(folder / checkpoint.PREDICTIONS, table.to_csv(index=False))
