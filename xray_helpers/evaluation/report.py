"""Judging a finished run: predictions, `metrics.json`, the model card. The only place that opens the test split."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from IPython.display import HTML
from scipy.special import logit
from torch import nn

from xray_helpers.data.catalog import read_rows
from xray_helpers.data.dataset import PreparedData, make_loaders, prepare_data
from xray_helpers.data.patients import patients_claim, patients_known
from xray_helpers.data.splits import check_unseen, split_digest
from xray_helpers.files import CheckpointError, write_text
from xray_helpers.inference import Transform, finding_of, judged_classes, prediction_table, run_network
from xray_helpers.metrics import LABELS, Bootstrap, calibration, evaluate, format_interval
from xray_helpers.settings import Settings, choose_device, choose_precision
from xray_helpers.training.checkpoint import BEST, CARD, EARLIER, HISTORY, TRAINED_ON, load_model

METRICS = "metrics.json"
HEADLINE = ("AUC", "accuracy", "sensitivity", "specificity")
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scikit-learn", "accelerate", "kornia")


def run_settings(folder: Path) -> Settings:
    """The settings that a run was trained with, for reading its data; where that lies, the environment may say.

    Raises:
        CheckpointError: `settings.json` is missing or damaged.
    """
    try:
        values = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        given = Settings.from_env()
        data = given.data if given.data_name == values["data"] else values["data"]
        if Path(given.patients).name == values.get("patients"):
            values["patients"] = given.patients
        # The weights that training began with are not needed any more, and may be gone.
        return Settings(**{**values, "data": data, "weights": "none", "device": "auto", "precision": "auto"})
    except (FileNotFoundError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder.name}/settings.json cannot be read ({error}); train again") from None


def load_run(
    folder: str | Path, model: Any = None, data: PreparedData | None = None, manifest: pd.DataFrame | None = None
) -> tuple[Any, PreparedData]:
    """A finished run's best model, on the device that is there, and the data that it was trained on.

    Args:
        folder: of the run.
        model: from `load_model` or `Run.model`; read from the folder when None.
        data: from `prepare_data`; prepared as `settings.json` says when None.
        manifest: the split that the run was trained with, where it was one of your own.

    Raises:
        CheckpointError: the run is not finished; its images or their split changed; or its files are of two runs.
        XrayError, ValueError, OSError: as `prepare_data`.
    """
    folder = Path(folder)
    model = model or load_model(folder, choose_device().value)
    data, info = data or prepare_data(run_settings(folder)), model.info
    data = data if manifest is None else replace(data, manifest=manifest)

    # A model is judged on the images and the split that it was trained with, and in the folder of its own run.
    if data.fingerprint != info.fingerprint:
        now = f"that of data/raw/{data.settings.data_name} is {data.fingerprint}"
        found = f"was trained on other files: their fingerprint is {info.fingerprint}, and {now}"
        raise CheckpointError(f"{folder.name} {found}. Bring the old files back, or train again.")
    if info.split not in ("", now := split_digest(data.manifest)):
        found = f"was trained with another split: the digest of its manifest is {info.split}, and now it is {now}"
        raise CheckpointError(f"{folder.name} {found}. Bring the old manifest back, or train again.")
    pairs: dict[str, tuple[object, object]] = {"classes": (info.classes, data.classes)}
    if info.preprocess:
        pairs["image_size"] = (info.preprocess.size, data.cache.size)
    if (folder / "settings.json").is_file():  # not there for networks of the caller's own
        pairs["arch"] = (info.arch, run_settings(folder).arch)
    for name, (saved, prepared) in pairs.items():
        if saved != prepared:
            found = f"{folder.name}/{BEST} has {name} {saved}, its settings or data have {prepared}"
            raise CheckpointError(f"{found}: they are of two runs. Copy the folder again, or train again.")
    return model, data


def evaluate_run(
    folder: str | Path,
    split: str = "test",
    model: nn.Module | None = None,
    data: PreparedData | None = None,
    preprocess: Transform | None = None,
    manifest: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Predict a split with a run's best model, in float32, and judge it; writes the predictions and `metrics.json`.

    Args:
        folder: of a finished run.
        split: `val` or `test`.
        model: from `load_model` or `Run.model`, for a run of a network of your own; read from the folder when None.
        data: from `prepare_data`; prepared as `settings.json` says when None.
        preprocess: for a run with preprocessing of your own, the function that it was trained with.
        manifest: as for `load_run`.

    Returns:
        What `metrics.json` holds for this split, as from `metrics.evaluate`.

    Raises:
        CheckpointError: the run is not finished, or was trained on other images or with another split.
        LeakError: it learned from one of these images, an exact copy of one, or another image of a patient.
        ValueError: another split, or preprocessing of the caller's own that is not given.
    """
    if split not in ("val", "test"):
        raise ValueError(f"split={split!r}: expected val or test")
    folder = Path(folder)
    network, data = load_run(folder, model, data, manifest)
    info, preprocess = network.info, preprocess or network.info.preprocess
    if preprocess is None:
        raise ValueError(f"{folder.name} was trained with preprocessing of your own: pass the function as preprocess=")

    # Refuse what the run learned from. Whoever trained on batches of their own has to know it themselves.
    protocol = f"{data.settings.split} split, {patients_claim(data.manifest)}"
    if info.split and network.trained_on is None:
        raise CheckpointError(f"{folder.name}/{TRAINED_ON} is missing, which tells what the run learned from")
    if info.split:
        check_unseen(data.manifest[data.manifest["split"] == split], network.trained_on, folder.name)
    else:
        protocol += ", trained on batches of your own: which images it learned from is not known"

    # Predict in float32, and keep the predictions.
    loader = getattr(make_loaders(data, test=split == "test"), split)
    table = prediction_table(loader.dataset, run_network(network.eval(), loader, preprocess), info.calibration)
    write_text(folder / f"predictions-{split}.csv", table.to_csv(index=False))

    # Judge them, with intervals over patients where these are known, and else over images.
    patients = table["patient"] if patients_known(data.manifest) else None
    probability = table["probability"] if info.num_outputs == 1 else table.filter(like="p_")
    found: dict[str, Any] = {"protocol": protocol}
    found |= evaluate(table["truth"], probability, patients, info.operating_points, info.classes)
    if info.num_outputs == 1:
        bootstrap = Bootstrap(range(len(table)) if patients is None else patients)
        found["calibrated"] = calibration(table["truth"], table["calibrated"], bootstrap)

    # Write them beside those of the other split, with what they depend on.
    file, settings = folder / METRICS, folder / "settings.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"val": {}, "test": {}}
    saved = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else data.settings.without_paths()
    history = pd.read_csv(folder / HISTORY)
    spent = history.groupby("stage")["seconds"].sum().round(1)
    device = choose_device(saved["device"]).value
    content |= {
        split: found,
        "finding": finding_of(info.classes),
        "whose": data.settings.data_description,
        "settings": saved,
        "data_fingerprint": info.fingerprint,
        "weights": info.weights,
        "device": device,
        "precision": choose_precision(saved["precision"], device),
        "versions": {name: version(name) for name in PACKAGES},
        "seconds": {"store": data.cache.seconds, "head": spent.get("head", 0.0), "fine_tune": spent["fine-tune"]},
        "more_epochs": int((history["stage"] == "more epochs").sum()),
    }
    write_text(file, json.dumps(content, indent=1) + "\n")
    return found


def read_predictions(folder: str | Path, split: str, data: PreparedData) -> pd.DataFrame:
    """A run's predictions on a split, in long form: of more than two classes, each is judged against the rest.

    Args:
        folder: of the run.
        split: `val`, or `test` once `evaluate_run` has opened it.
        data: that the run was trained on.

    Returns:
        One row per image and judged class (of two, the finding alone): path, class, truth (1 where the image is of that
        class, else 0), probability, log-odds, calibrated (two classes), p_true (probability of the image's true class),
        answer (the likeliest class), patient (where they are not known, the path), and the manifest's columns.
    """
    table, classes = read_rows(Path(folder) / f"predictions-{split}.csv"), np.array(data.classes)
    judged, numbers = table.filter(regex="^p_|^probability$").to_numpy(), table["truth"]  # (N, 1) or (N, C); (N,)
    chances = np.hstack([1 - judged, judged]) if judged.shape[1] == 1 else judged  # (N, C)
    table = table.assign(p_true=chances[np.arange(len(table)), numbers], answer=classes[chances.argmax(axis=1)])
    if not patients_known(data.manifest):  # then each image counts by itself
        table["patient"] = table["path"]
    parts = []
    for name, chance in zip(judged_classes(data.classes), judged.T, strict=True):
        truth, odds = (numbers == data.classes.index(name)).astype(int), logit(chance.clip(1e-9, 1 - 1e-9))
        parts.append(table.assign(**{"class": name, "truth": truth, "probability": chance, "log-odds": odds}))
    return pd.concat(parts, ignore_index=True).join(data.manifest.set_index("path"), on="path")


def results_table(found: Mapping[str, Mapping[str, Any]], whole: bool = False) -> pd.DataFrame:
    """Results as text: one row per figure, grouped by what it judges; one column per split.

    Args:
        found: name → what `evaluate_run` returned for a split.
        whole: all figures, not only the headline's.
    """
    columns = {}
    for name, result in found.items():
        patients = f", {result['patients']:,} patients" if result["patients"] else ""
        first = "mean over the classes" if "classes" in result else "all thresholds"
        columns[f"{name}: {result['n']:,} images{patients}"] = dict(_figures(result, first))
    table = pd.DataFrame(columns)
    return table if whole else table[[name in HEADLINE and "sensitivity" not in at for at, name in table.index]]


def _figures(found: Mapping[str, Any], where: str) -> Iterator[tuple[tuple[str, str], str]]:
    """((what is judged, figure), value with interval), of all figures in nested results."""
    for name, value in found.items():
        if isinstance(value, dict) and value.keys() <= {"value", "low", "high"}:
            yield (where, LABELS.get(name, name.replace("_", " "))), format_interval(value)
        elif isinstance(value, dict):
            rule = f"at {name}" if "threshold" in value else name.replace("argmax", "likeliest class")
            yield from _figures(value, rule)


def folded(table: pd.DataFrame, summary: str) -> HTML:
    """A table that a notebook shows when the reader clicks on its summary."""
    return HTML(f"<details><summary>{summary}</summary>{table.to_html()}</details>")


def write_card(folder: str | Path, model: nn.Module | None = None) -> str:
    """Write `model-card.md` of a judged run (Mitchell et al. 2019): its data, how it was judged, what it is not for.

    Args:
        folder: of a run that `evaluate_run` judged on both splits.
        model: as for `evaluate_run`.

    Returns:
        The card, as Markdown.

    Raises:
        CheckpointError: the run was not judged yet.
    """
    folder = Path(folder)
    info, file = (model or load_model(folder)).info, folder / METRICS
    if not file.is_file() or not (found := json.loads(file.read_text(encoding="utf-8")))["test"]:
        raise CheckpointError(f"{folder.name} was not judged yet: run make evaluate, or notebook 06")
    template = jinja2.Template(Path(__file__).with_name("model_card.md.j2").read_text(encoding="utf-8"))
    card = f"{template.render(found, name=folder.name, info=info, interval=format_interval)}\n"
    write_text(folder / CARD, card)
    shutil.rmtree(folder / EARLIER, ignore_errors=True)  # the judgement that this one replaces
    return card
