"""One place for what a run depends on: its settings, the project's paths, the random seeds."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from xray_helpers.device import choose_device, choose_precision
from xray_helpers.files import project_root

ARCHS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
SOURCES = ("sample", "kaggle")  # anything else is a path
FRACTIONS = {"pooled": (0.70, 0.15, 0.15), "official": (0.90, 0.10), "blocked": (0.70, 0.15, 0.15)}
BY_SOURCE = {"image_size": (128, 224), "batch_size": (32, 32), "epochs": (3, 3)}  # for the sample, for real images


def _setting(default: Any, meaning: str, choices: Sequence[str] = (), least: float | None = None) -> Any:
    return field(default=default, metadata={"meaning": meaning, "choices": choices, "least": least})


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on; refuses wrong values when it is made.

    Each field is `XRAY_<FIELD>` in the environment, `--<field>` on the command line and a `make` variable in
    capitals. A 0 or an empty tuple means "by data source" or "by strategy" and is filled in at once.

    Raises:
        ValueError: a value is not possible; the message lists those that are.
    """

    data: str = _setting("sample", "sample, kaggle, or a path to a folder or zip")
    split: str = _setting("pooled", "how patients are shared out", ("pooled", "official", "blocked"))
    fractions: tuple[float, ...] = _setting((), "shares of train/val/test, as 70/15/15 (official: train/val, as 90/10)")
    split_seed: int = _setting(0, "seed of the split", least=0)
    task: str = _setting("pneumonia", "what is predicted", ("pneumonia", "cause", "folders"))
    arch: str = _setting("resnet18", "torchvision ResNet", ARCHS)
    weights: str = _setting("imagenet", "imagenet, none, or a path to a state-dict file")
    image_size: int = _setting(0, "side of the square images in pixels (0: by data source)", least=32)
    resize: str = _setting("squash", "how images become square", ("squash", "pad", "crop"))
    augment: str = _setting("light", "strength of augmentation", ("none", "light", "strong"))
    batch_size: int = _setting(0, "images a step (0: by data source)", least=1)
    epochs: int = _setting(0, "epochs of fine-tuning (0: by data source)", least=1)
    learning_rate: float = _setting(3e-4, "highest learning rate of fine-tuning, that of the head", least=1e-8)
    seed: int = _setting(0, "seed of the training", least=0)
    device: str = _setting("auto", "where to compute", ("auto", "cuda", "mps", "cpu"))
    precision: str = _setting("auto", "arithmetic of the network", ("auto", "float32", "bf16", "fp16"))
    workers: int = _setting(0, "processes that load images", least=0)

    def __post_init__(self) -> None:
        for name, (sample, real) in BY_SOURCE.items():
            if not getattr(self, name):
                object.__setattr__(self, name, sample if self.data == "sample" else real)
        for entry in fields(self):
            value, choices, least = getattr(self, entry.name), entry.metadata["choices"], entry.metadata["least"]
            if choices and value not in choices:
                raise _refuse(entry.name, value, "expected one of " + ", ".join(choices))
            if least is not None and not value >= least:
                raise _refuse(entry.name, value, f"expected {least:g} or more")
        default = FRACTIONS[self.split]
        object.__setattr__(self, "fractions", check_fractions(self.fractions or default, self.split))
        if self.weights not in ("imagenet", "none") and not Path(self.weights).expanduser().is_file():
            raise _refuse("weights", self.weights, "expected imagenet, none, or a file that exists")
        if self.data not in SOURCES and not (self.source().exists() or self.raw_folder.exists()):
            raise _refuse("data", self.data, "expected sample, kaggle, or a folder or zip that exists")

    @classmethod
    def from_env(cls, **values: Any) -> Settings:
        """Settings from `values` (a notebook's own), each overridden by its `XRAY_<FIELD>` variable.

        Raises:
            ValueError: a value is not possible, or an `XRAY_` variable names no setting.
        """
        return cls(**{**values, **_from_environment()})

    @classmethod
    def from_args(cls, arguments: Sequence[str] | None = None, description: str = "") -> Settings:
        """Settings from command-line flags (`sys.argv` when None), which win over the environment.

        Raises:
            SystemExit: a flag is unknown or its value not possible; the reason is printed.
        """
        parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
        for entry in fields(cls):
            choices = ", ".join(entry.metadata["choices"])
            meaning = entry.metadata["meaning"] + (f": {choices}" if choices else "")
            parser.add_argument(f"--{entry.name.replace('_', '-')}", dest=entry.name, metavar="VALUE", help=meaning)
        flags = {name: text for name, text in vars(parser.parse_args(arguments)).items() if text is not None}
        try:
            return cls(**{**_from_environment(), **_parse(flags)})
        except ValueError as error:
            parser.error(str(error))

    @property
    def home(self) -> Path:
        """The folder that holds `data/` and `models/`: `XRAY_HOME`, or the project's root."""
        return Path(os.environ.get("XRAY_HOME") or project_root()).expanduser().resolve()

    @property
    def data_name(self) -> str:
        """`sample`, `kaggle`, or a path's last part without its suffix: the name under `data/raw`."""
        if self.data in SOURCES:
            return self.data
        path = Path(self.data)
        stem = path.stem if path.suffix.lower() == ".zip" else path.resolve().name
        name = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "data"
        return f"my-{name}" if name in SOURCES else name

    @property
    def whose(self) -> str:
        """Whose images these are, for titles and tables."""
        kaggle = "Kaggle's chest X-rays: children of one to five years, one hospital"
        return {"sample": "synthetic sample, no patients", "kaggle": kaggle}.get(
            self.data, f"images of {self.data_name}"
        )

    @property
    def target(self) -> str:
        """The catalog's column that is predicted."""
        return "cause" if self.task == "cause" else "label"

    @property
    def raw_folder(self) -> Path:
        """Where the files lie as downloaded."""
        return self.home / "data" / "raw" / self.data_name

    @property
    def processed_folder(self) -> Path:
        """Where the catalog, the splits and the image store lie."""
        return self.home / "data" / "processed" / self.data_name

    @property
    def run_name(self) -> str:
        """`<data>-<split>-<task>-<arch>-<weights>-<hash>`, the hash over all settings that change the result."""
        device = choose_device(self.device).value
        result = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "workers"}
        result |= {
            "data": self.data_name,
            "device": device,
            "precision": choose_precision(self.precision, device).value,
        }
        weights = self.weights
        if weights not in ("imagenet", "none"):
            path = Path(weights).expanduser()
            result["weights"], weights = hashlib.sha256(path.read_bytes()).hexdigest(), path.stem
        digest = hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.data_name}-{self.split}-{self.task}-{self.arch}-{weights}-{digest}"

    @property
    def run_folder(self) -> Path:
        """Where this run writes; two different runs never share it."""
        return self.home / "models" / self.run_name

    def source(self) -> Path:
        """The folder or zip that `data` names: from the working directory, or else from `home`."""
        path = Path(self.data).expanduser()
        return path if path.exists() else self.home / path

    def __str__(self) -> str:
        """One line a setting; paths by their name only, since notebooks are shared."""
        shown = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        shown |= {"data": self.data_name, "fractions": "/".join(f"{100 * part:g}" for part in self.fractions)}
        if self.weights not in ("imagenet", "none"):
            shown["weights"] = Path(self.weights).name
        return "\n".join(f"{name:<13} {value}" for name, value in shown.items())


def _refuse(name: str, value: object, expected: str) -> ValueError:
    flag = name.replace("_", "-")
    return ValueError(f"{name}={value!r}: {expected}. (Set by XRAY_{name.upper()}, --{flag} or make.)")


def _from_environment() -> dict[str, Any]:
    """The settings that `XRAY_` variables give, parsed."""
    names = {f"XRAY_{entry.name.upper()}": entry.name for entry in fields(Settings)}
    unknown = sorted(key for key in os.environ if key.startswith("XRAY_") and key not in {*names, "XRAY_HOME"})
    if unknown:
        raise ValueError(f"{unknown[0]} names no setting; there are {', '.join(names)}")
    return _parse({name: os.environ[key] for key, name in names.items() if os.environ.get(key)})


def _parse(texts: dict[str, str]) -> dict[str, Any]:
    """Text to each field's type."""
    values: dict[str, Any] = {}
    for entry in fields(Settings):
        if entry.name in texts:
            convert, wanted = PARSERS[str(entry.type)]
            try:
                values[entry.name] = convert(texts[entry.name])
            except ValueError:
                raise _refuse(entry.name, texts[entry.name], f"expected {wanted}") from None
    return values


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in re.split(r"[/, ]+", text.strip()))


PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "str": (str, "text"),
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "tuple[float, ...]": (_numbers, "numbers as 70/15/15"),
}


def check_fractions(fractions: Sequence[float], strategy: str) -> tuple[float, ...]:
    """Shares that add up to 1.

    Args:
        fractions: positive numbers in any unit: train, val, test (`official`: train, val).
        strategy: the split's strategy.

    Raises:
        ValueError: a wrong count, or a share that is not positive.
    """
    names = "train/val" if strategy == "official" else "train/val/test"
    if len(fractions) != len(FRACTIONS[strategy]) or not all(0 < part < float("inf") for part in fractions):
        example = "90/10" if strategy == "official" else "70/15/15"
        raise _refuse("fractions", tuple(fractions), f"expected positive shares of {names}, as {example}")
    return tuple(round(part / sum(fractions), 6) for part in fractions)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global random generators."""
    import torch  # takes seconds, and modules that only need paths import this one

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries still draw from it
    torch.manual_seed(seed)
