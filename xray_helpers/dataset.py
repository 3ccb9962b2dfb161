"""Step 4: everything before training, and the loaders that feed the network from the image store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from xray_helpers.catalog import build_catalog
from xray_helpers.device import choose_device
from xray_helpers.download import fetch
from xray_helpers.settings import Settings
from xray_helpers.splits import make_splits
from xray_helpers.store import ImageStore, build_store

CLASSES = {"pneumonia": ("NORMAL", "PNEUMONIA"), "cause": ("normal", "bacterial", "viral")}
PATIENCE = 120  # seconds that a loading process may take for a batch before it counts as hung


class LoadingError(Exception):
    """A process that loads images was killed, or hangs; the message says what to do."""


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Say plainly what PyTorch says of its loading processes in the language of its own code.

    Raises:
        LoadingError: one was killed, or gave no batch in time.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if "DataLoader worker" not in said and "DataLoader timed out" not in said:
            raise
        what = f"gave no batch for {PATIENCE} s" if "timed out" in said else "was killed, mostly for want of memory"
        raise LoadingError(
            f"A process that loads images {what}. Set WORKERS to fewer, or to 0 to load in the main process; finished "
            "epochs are kept, and the next run goes on from there."
        ) from None


def class_names(manifest: pd.DataFrame, task: str) -> tuple[str, ...]:
    """The classes of a task, in the order of their numbers: for `pneumonia` and `cause` fixed, for `folders` sorted.

    Raises:
        ValueError: the data has other classes than the task.
    """
    column = "cause" if task == "cause" else "label"
    found = sorted(manifest[column].unique())
    classes = CLASSES.get(task, tuple(found))
    others = [name for name in found if name not in classes]
    if others:
        example = manifest.loc[manifest[column] == others[0], "path"].iloc[0]
        raise ValueError(
            f"task={task!r} knows {', '.join(classes)}, and this data has {', '.join(others)} too, such as {example}. "
            "Use task='folders' for one class a folder."
        )
    if len(found) < 2:
        raise ValueError(f"task={task!r} needs two classes or more, and this data has only {', '.join(found)}")
    return classes


class XrayDataset(Dataset[tuple[Tensor, int]]):
    """The images of one split, from the store, each with the number of its class.

    Args:
        manifest: rows with the columns path, split and `target`.
        store: from `build_store`.
        split: `train`, `val` or `test`.
        classes: names in the order of their numbers.
        target: the column with the class names, `label` or `cause`.

    Raises:
        ValueError: the manifest has no such split, or a class that is not among `classes`.
        KeyError: an image is not in the store.
    """

    def __init__(
        self, manifest: pd.DataFrame, store: ImageStore, split: str, classes: Sequence[str], target: str = "label"
    ) -> None:
        there = sorted(manifest["split"].unique())
        if split not in there:
            raise ValueError(f"split={split!r}: this manifest has {', '.join(there)}")
        rows = manifest[manifest["split"] == split]
        unknown = sorted(set(rows[target]) - set(classes))
        if unknown:
            raise ValueError(f"class {unknown[0]!r} in {split} is not one of {', '.join(classes)}")
        self.store, self.split, self.classes = store, split, tuple(classes)
        self.paths = rows["path"].tolist()
        self.rows = store.find(self.paths)  # (N,)
        self.labels = torch.tensor([self.classes.index(name) for name in rows[target]])  # (N,)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image, uint8 (1, S, S), and the number of its class."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Several images at once, which DataLoader asks for: one read for the whole batch."""
        images = torch.from_numpy(np.array(self.store.images[self.rows[indices]])).unsqueeze(1)  # (B, 1, S, S)
        return list(zip(images, self.labels[indices].tolist(), strict=True))

    def counts(self) -> dict[str, int]:
        """Class → images."""
        return {name: int((self.labels == number).sum()) for number, name in enumerate(self.classes)}

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in self.counts().items())
        return f"XrayDataset({self.split}: {len(self):,} images of {self.store.size} × {self.store.size}; {counts})"


class EpochSampler(Sampler[int]):
    """A random order that depends on the seed and the epoch alone, so that a resumed run sees what it would have seen.

    Each pass takes the next epoch's order; `set_epoch` goes to a certain one.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass, counted from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        self.epoch += 1
        return iter(order.tolist())

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class Loaders:
    """Loaders of batches: images uint8 (B, 1, S, S), class numbers int64 (B,).

    Attributes:
        train: shuffled, in batches of full size.
        val: in the manifest's order, with the last, smaller batch.
        classes: names in the order of their numbers.
        manifest: the rows of all splits.
        fingerprint: of the data's files.
    """

    train: DataLoader[Any]
    val: DataLoader[Any]
    classes: tuple[str, ...]
    manifest: pd.DataFrame
    fingerprint: str
    _test: DataLoader[Any] | None = None

    @property
    def train_set(self) -> XrayDataset:
        """The dataset behind `train`."""
        return cast(XrayDataset, self.train.dataset)

    @property
    def val_set(self) -> XrayDataset:
        """The dataset behind `val`."""
        return cast(XrayDataset, self.val.dataset)

    @property
    def test_set(self) -> XrayDataset:
        """The dataset behind `test`."""
        return cast(XrayDataset, self.test.dataset)

    @property
    def test(self) -> DataLoader[Any]:
        """The test split, as `val`; there only when `make_loaders` was asked for it."""
        if self._test is None:
            raise ValueError("the test split is closed; evaluation opens it with make_loaders(settings, test=True)")
        return self._test


def prepare(settings: Settings) -> pd.DataFrame:
    """Everything before training: the files, the catalog, the split, the image store; what is there already is kept.

    Returns:
        The manifest: the catalog's rows that could be decoded, with a column `split`.

    Raises:
        DownloadError, LeakError, ValueError, OSError: as the steps do.
    """
    return _prepare(settings)[0]


def _prepare(settings: Settings) -> tuple[pd.DataFrame, ImageStore]:
    root = fetch(settings)
    catalog = build_catalog(root, settings.processed_folder)
    broken = catalog[catalog["error"] != ""]
    if len(broken):
        names = "; ".join(f"{row.path}: {row.error}" for row in broken.head(5).itertuples())
        print(f"left out, since unreadable: {len(broken)} files ({names}{' …' if len(broken) > 5 else ''})")
    manifest = make_splits(settings, catalog)
    store = build_store(root, catalog, settings.processed_folder, settings.image_size, settings.resize)
    return manifest[~manifest["path"].isin(store.left_out)].reset_index(drop=True), store


def make_loaders(settings: Settings, test: bool = False) -> Loaders:
    """The loaders of a run, after `prepare`.

    Args:
        settings: data, split, task, image size, batch size, seed and workers.
        test: open the test split too; for evaluation only.

    Raises:
        ValueError: the data does not fit the task, a split is missing or lacks a class; and as `prepare`.
    """
    manifest, store = _prepare(settings)
    classes = class_names(manifest, settings.task)
    shared: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "num_workers": settings.workers,
        "persistent_workers": settings.workers > 0,
        "timeout": PATIENCE if settings.workers else 0,
        "pin_memory": choose_device(settings.device).value == "cuda",
    }

    def load(split: str) -> DataLoader[Any]:
        dataset = XrayDataset(manifest, store, split, classes, settings.target)
        missing = [name for name, count in dataset.counts().items() if not count]
        if missing:
            raise ValueError(f"{split} has no image of {', '.join(missing)}: use another SPLIT or FRACTIONS")
        train = split == "train"
        return DataLoader(
            dataset,
            sampler=EpochSampler(len(dataset), settings.seed) if train else None,
            drop_last=train and len(dataset) >= settings.batch_size,
            # Without one of its own, a loader would draw from the global generator, and shift what comes after.
            generator=torch.Generator().manual_seed(settings.seed),
            **shared,
        )

    opened = load("test") if test else None
    return Loaders(load("train"), load("val"), classes, manifest, store.fingerprint, opened)
