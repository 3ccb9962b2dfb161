"""What inference needs to know beside a model's weights, kept as `best.json`, and bound to those very weights."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xray_helpers.files import atomic_file
from xray_helpers.model import outputs_for
from xray_helpers.transforms import Preparation

VERSION = 1  # of the format of a run's files
BEST, FACTS = "best.safetensors", "best.json"


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

    @property
    def threshold(self) -> float:
        """The probability from which the second of two classes is answered: chosen on validation, or else 0.5."""
        return self.operating_points.get("chosen", 0.5)

    @property
    def temperature(self) -> float:
        """What the log-odds are divided by to calibrate them, before the intercept is added (Guo et al. 2017)."""
        return 1 / self.calibration["slope"]


def write_about(folder: Path, about: Inference, coming: Path | None = None) -> None:
    """Save facts as `best.json`, with the checksum of the weights that they tell of.

    Args:
        folder: of the run.
        about: the facts.
        coming: weights that will take the place of `best.safetensors` next. Until then the file tells of both, so that
            a kill in between leaves a pair that fits.

    Raises:
        FullDiskError: the disk is full.
    """
    facts = _sealed({"version": VERSION, "sha256": _sha256(coming or folder / BEST), **asdict(about)})
    with atomic_file(folder / FACTS) as partial:
        content = facts | {"before": _usable(folder)} if coming else facts
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_about(folder: str | Path) -> Inference:
    """What `best.json` says.

    Raises:
        CheckpointError: it or the weights are missing, damaged or changed, or of a newer version.
    """
    folder = Path(folder)
    if not ((folder / FACTS).is_file() and (folder / BEST).is_file()):
        raise CheckpointError(f"{folder.name} holds no finished model ({FACTS}, {BEST}). Train it first.")
    try:
        facts = _facts(folder)
        if facts is None:
            raise CheckpointError(damaged(folder, BEST, f"it is not the file that {FACTS} tells of"))
        if _sealed(facts)["checksum"] != facts["checksum"]:
            raise CheckpointError(damaged(folder, FACTS, "it was changed after it was saved"))
        known = {name: value for name, value in facts.items() if name not in ("version", "sha256", "checksum")}
        preparation = Preparation(**known.pop("preparation"))
        return Inference(classes=tuple(known.pop("classes")), preparation=preparation, **known)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(damaged(folder, FACTS, error)) from None


def _facts(folder: Path) -> dict[str, Any] | None:
    """Of what `best.json` holds, the part that tells of the weights beside it; None where none does."""
    content = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    check_version(content["version"], f"{folder.name}/{FACTS}")
    before, digest = content.pop("before", None), _sha256(folder / BEST)
    return next((facts for facts in (content, before) if facts and facts.get("sha256") == digest), None)


def _usable(folder: Path) -> dict[str, Any] | None:
    """As `_facts`, and None where nothing there could be loaded anyhow."""
    try:
        return _facts(folder)
    except (CheckpointError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """With a checksum of all the rest: a bit that flips in a threshold would pass for another threshold."""
    rest = {name: value for name, value in facts.items() if name != "checksum"}
    return {**rest, "checksum": zlib.crc32(json.dumps(rest, sort_keys=True).encode())}


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def check_version(version: int, name: str) -> None:
    """Refuse a file of a newer format than this package knows."""
    if version > VERSION:
        raise CheckpointError(f"{name} is of format {version}; this package reads up to {VERSION}. Update it.")


def damaged(folder: Path, name: str, why: object) -> str:
    """What to say of a file of a run that cannot be used."""
    return (
        f"{folder.name}/{name} cannot be read: {why}. Copy it again from where it is whole, or delete the folder "
        f"{folder.name} and train again."
    )
