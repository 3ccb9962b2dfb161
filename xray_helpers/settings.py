"""One place for what a run depends on: its settings, the device and precision to compute with, the random seeds."""

import hashlib
import json
import os
import re
import shlex
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

from xray_helpers.files import file_digest, project_root

ARCHS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
SOURCES = ("sample", "kaggle")  # anything else is a path
FRACTIONS = {"pooled": (0.70, 0.15, 0.15), "official": (0.90, 0.10), "blocked": (0.70, 0.15, 0.15)}
LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4")
RECIPES: dict[str, dict[str, Any]] = {
    "default": {"epochs": 3, "frozen": "layer1"},
    "fast": {"epochs": 2, "frozen": "layer2", "small_size": 128},
}
# What make takes besides settings.
MAKE_OPTIONS = ("PYTHON", "ORIGINALS", "PROCESSES", "MODEL", "FRESH", "IMAGES", "OUTPUT", "SHARE", "PDF", "PINNED")


def _setting(default: Any, meaning: str, choices: Sequence[str] = (), minimum: float | None = None) -> Any:
    return field(default=default, metadata={"meaning": meaning, "choices": choices, "minimum": minimum})


@dataclass(frozen=True)
class Settings:
    """Everything that a run depends on; wrong values are refused when it is made.

    Each field is `XRAY_<FIELD>` in the environment, `--<field>` on the command line and a `make` variable in
    capitals. For `image_size` 0 means "by data source", for `fractions` an empty tuple "by strategy", for `epochs` 0
    and for `frozen` an empty text "by recipe"; all are filled in at once.

    Raises:
        ValueError: a value is not possible; the message lists those that are.
    """

    data: str = _setting("sample", "sample, kaggle, or a path to a folder or zip")
    split: str = _setting("pooled", "how patients are shared out", ("pooled", "official", "blocked"))
    fractions: tuple[float, ...] = _setting((), "shares of train/val/test, as 70/15/15 (official: train/val, as 90/10)")
    split_seed: int = _setting(0, "seed of the split", minimum=0)
    patients: str = _setting("", "how patients are known: a pattern for file names, or a CSV of path,patient")
    task: str = _setting("pneumonia", "what is predicted", ("pneumonia", "cause", "folders"))
    finding: str = _setting("", "the class that counts as ill (by default PNEUMONIA, or the one not called normal)")
    arch: str = _setting("resnet18", "torchvision ResNet", ARCHS)
    weights: str = _setting("imagenet", "imagenet, none, a state-dict file, or the folder of an earlier run")
    image_size: int = _setting(0, "side of the square images in pixels (0: by data source)", minimum=32)
    resize: str = _setting("squash", "how images become square", ("squash", "pad", "crop"))
    augment: str = _setting("style", "random changes of training images", ("none", "light", "strong", "style"))
    recipe: str = _setting("default", "epochs, frozen, small_size", ("default", "fast"))
    frozen: str = _setting("", "the last layers that keep their pretrained weights", ("none", *LAYERS))
    small_size: int = _setting(0, "side of the images in all epochs but the last (0: full size)", minimum=32)
    batch_size: int = _setting(32, "images per step", minimum=1)
    epochs: int = _setting(0, "epochs of fine-tuning (0: by recipe)", minimum=1)
    more_epochs: int = _setting(0, "epochs to add to a finished run", minimum=0)
    learning_rate: float = _setting(3e-4, "highest learning rate of fine-tuning, that of the head", minimum=1e-8)
    seed: int = _setting(0, "seed of the training", minimum=0)
    device: str = _setting("auto", "where to compute", ("auto", "cuda", "mps", "cpu"))
    precision: str = _setting("auto", "arithmetic of the network", ("auto", "float32", "bf16", "fp16"))
    workers: int = _setting(0, "processes that load images", minimum=0)

    def __post_init__(self) -> None:
        if not self.image_size:
            object.__setattr__(self, "image_size", 128 if self.data == "sample" else 224)
        for name, value in RECIPES.get(self.recipe, {}).items():
            object.__setattr__(self, name, getattr(self, name) or value)
        for entry in fields(self):
            value, choices, minimum = getattr(self, entry.name), entry.metadata["choices"], entry.metadata["minimum"]
            if choices and value not in choices:
                raise _refuse(entry.name, value, "expected one of " + ", ".join(choices))
            if minimum is not None and not (value >= minimum or value == entry.default == 0):
                raise _refuse(entry.name, value, f"expected {minimum:g} or more")
        object.__setattr__(self, "fractions", check_fractions(self.fractions or FRACTIONS[self.split], self.split))
        if self.weights not in ("imagenet", "none") and not Path(self.weights_source()).exists():
            raise _refuse("weights", self.weights, "expected imagenet, none, or a file or a run's folder that exists")
        if self.data not in SOURCES and not (self.source().exists() or self.raw_folder.exists()):
            raise _refuse("data", self.data, "expected sample, kaggle, or a folder or zip that exists")
        known = self.patients_table.is_file() if self.patients_table else _groups(self.patients) == 1
        if self.patients and not known:
            expected = r"expected a pattern with exactly one group, as ^(\d+)_, or a file .csv that exists"
            raise _refuse("patients", self.patients, expected)

    @classmethod
    def from_env(cls, **defaults: Any) -> Self:
        """Settings from `defaults` (a notebook's own), each overridden by its `XRAY_<FIELD>` variable.

        Raises:
            ValueError: a value is not possible, or an `XRAY_` variable names no setting.
        """
        return cls(**{**defaults, **_from_environment()})

    @classmethod
    def from_args(cls, arguments: Sequence[str] | None = None, description: str = "") -> Self:
        """Settings from command-line flags (`sys.argv` when None), which win over the environment.

        Raises:
            SystemExit: a flag is unknown or its value not possible; the reason is printed.
        """
        parser = ArgumentParser(description=description, allow_abbrev=False, argument_default=SUPPRESS)
        for entry in fields(cls):
            text = ": ".join(filter(None, (entry.metadata["meaning"], ", ".join(entry.metadata["choices"]))))
            parser.add_argument(f"--{entry.name.replace('_', '-')}", metavar="VALUE", help=text)
        try:
            given = vars(parser.parse_args(arguments))
            return cls(**_from_environment() | {name: _parse(name, text) for name, text in given.items()})
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
        name = path.stem if path.suffix.lower() == ".zip" else path.resolve().name
        name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"
        return f"my-{name}" if name in SOURCES else name

    @property
    def data_description(self) -> str:
        """Whose images these are, for titles and tables."""
        kaggle = "Kaggle's chest X-rays: children of one to five years, one hospital"
        known = {"sample": "synthetic sample, no patients", "kaggle": kaggle}
        return known.get(self.data, f"images of {self.data_name}")

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
        """Where the catalog, the splits and the image cache lie."""
        return self.home / "data" / "processed" / self.data_name

    @property
    def run_name(self) -> str:
        """`<data>-<split>-<task>-<arch>-<weights>-<hash>`, the hash over all settings that change the result.

        A run with more epochs stays in its folder.
        """
        device, file = choose_device(self.device).value, Path(self.weights_source())
        result = self.without_paths() | {"device": device, "precision": choose_precision(self.precision, device)}
        del result["workers"], result["more_epochs"], result["recipe"]
        if self.weights not in ("imagenet", "none"):
            result["weights"] = file_digest(file / "best.safetensors" if file.is_dir() else file)
        if self.patients_table:
            result["patients"] = file_digest(self.patients_table)
        result = {name: value for name, value in result.items() if value != ""}  # as before there was such a setting
        digest = hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:8]
        origin = f"from-{file.resolve().name[-8:]}" if file.is_dir() else file.stem
        return f"{self.data_name}-{self.split}-{self.task}-{self.arch}-{origin}-{digest}"

    @property
    def run_folder(self) -> Path:
        """Where this run writes; two different runs never share it."""
        return self.home / "models" / self.run_name

    def source(self) -> Path:
        """The folder or zip that `data` names: from the working directory, or else from `home`."""
        return self._find(self.data)

    def weights_source(self) -> str:
        """`imagenet`, `none`, or the path of the file or folder that `weights` names, found in the same way.

        A file in the folder of a run stands for the folder, so that what the run learned from is known.
        """
        if self.weights in ("imagenet", "none"):
            return self.weights
        path = self._find(self.weights)
        return str(path.parent if (path.parent / "trained-on.csv").is_file() else path)

    @property
    def patients_table(self) -> Path | None:
        """The CSV file that `patients` names, or where it is gone its copy beside the split; None of a pattern."""
        if not self.patients.lower().endswith(".csv"):
            return None
        given = self._find(self.patients)
        return given if given.is_file() else self.processed_folder / given.name

    def _find(self, name: str) -> Path:
        path = Path(name).expanduser()
        return path if path.exists() else self.home / path

    def without_paths(self) -> dict[str, Any]:
        """All values by name, with files by their names alone: notebooks and runs are shared."""
        patients = Path(self.patients).name if self.patients_table else self.patients
        return asdict(self) | {"data": self.data_name, "weights": Path(self.weights).name, "patients": patients}

    def __str__(self) -> str:
        shown = self.without_paths() | {"fractions": "/".join(f"{100 * part:g}" for part in self.fractions)}
        return "\n".join(f"{name:<13} {value}" for name, value in shown.items())


def _refuse(name: str, value: object, expected: str) -> ValueError:
    return ValueError(f"{name}={value!r}: {expected} (set by XRAY_{name.upper()}, --{name.replace('_', '-')} or make)")


def _groups(pattern: str) -> int:
    """How many groups a regular expression has; 0 for none."""
    try:
        return re.compile(pattern).groups
    except re.error:
        return 0


def given_to_make() -> dict[str, str]:
    """The settings on make's command line, such as `DATA=kaggle`, by the names of their variables (`XRAY_DATA`)."""
    # NAME=value …, with spaces escaped and dollars doubled by make.
    words = shlex.shlex(os.environ.get("XRAY_MAKE", "").replace("$$", "$"), posix=True)
    words.whitespace_split, words.quotes, words.commenters = True, "", ""
    pairs = (word.partition("=") for word in words)
    return {f"XRAY_{name}": text for name, _, text in pairs if name not in MAKE_OPTIONS}


def _from_environment() -> dict[str, Any]:
    """The settings that `XRAY_` variables give, parsed; what is given to make wins."""
    given = {**os.environ, **given_to_make()}
    names = {f"XRAY_{entry.name.upper()}": entry.name for entry in fields(Settings)}
    unknown = sorted(key for key in given if key.startswith("XRAY_") and key not in (*names, "XRAY_HOME", "XRAY_MAKE"))
    if unknown:
        raise ValueError(f"{unknown[0]} names no setting; there are {', '.join(names)}")
    return {name: _parse(name, given[key]) for key, name in names.items() if given.get(key)}


def _parse(name: str, text: str) -> Any:
    """The value of a field, of its default's type, from text."""
    wanted = {int: "a whole number", float: "a number", tuple: "numbers as 70/15/15"}
    kind: Any = type(getattr(Settings, name))
    try:
        return kind(map(float, re.split(r"[/, ]+", text.strip())) if kind is tuple else text)
    except ValueError:
        raise _refuse(name, text, f"expected {wanted[kind]}") from None


def check_fractions(fractions: Sequence[float], strategy: str) -> tuple[float, ...]:
    """Shares that add up to 1.

    Args:
        fractions: positive numbers in any unit: train, val, test (`official`: train, val).
        strategy: the split's strategy.

    Raises:
        ValueError: a wrong count, or a share that is not positive.
    """
    names, example = ("train/val", "90/10") if strategy == "official" else ("train/val/test", "70/15/15")
    if len(fractions) != len(FRACTIONS[strategy]) or not all(0 < part < float("inf") for part in fractions):
        raise _refuse("fractions", tuple(fractions), f"expected positive shares of {names}, as {example}")
    return tuple(round(part / sum(fractions), 6) for part in fractions)


class Choice(NamedTuple):
    """What was chosen, and the reason in one line."""

    value: str
    reason: str


def choose_device(device: str = "auto") -> Choice:
    """The device to compute on: CUDA, then MPS, then CPU, by capability and never by timing.

    Raises:
        ValueError: `device` was asked for by name and this machine has none.
    """
    import torch  # takes seconds, and modules that only need paths import this one

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    found = {"cuda": cuda, "mps": "Apple GPU" if torch.backends.mps.is_available() else "", "cpu": "no GPU was found"}
    present = [name for name, what in found.items() if what]
    if device == "auto":
        return Choice(present[0], f"{present[0]}: {found[present[0]]}")
    if device not in present:
        raise ValueError(f"device={device!r}: this machine has {', '.join(present)}.")
    return Choice(device, f"{device}: as asked for")


def choose_precision(precision: str, device: str) -> str:
    """The arithmetic for `device` (`cuda`, `mps` or `cpu`): bf16 where the hardware has it, else fp16 on CUDA.

    Raises:
        ValueError: fp16 was asked for away from CUDA, where its loss scaling is not supported.
    """
    import torch

    if precision == "fp16" and device != "cuda":
        raise ValueError(f"precision='fp16' needs device='cuda'; on {device} use bf16 or float32.")
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Early releases of torch that we support cannot tell what a CPU has; there, and on Apple GPUs, float32 is safe.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)() if device == "cpu" else {}
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "float32"


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global random generators."""
    from accelerate.utils import set_seed

    set_seed(seed)
