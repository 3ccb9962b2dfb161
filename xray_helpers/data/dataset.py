"""Everything before training, done once, and the loaders that feed a network from the image cache."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from xray_helpers.data.catalog import build_catalog
from xray_helpers.data.download import fetch
from xray_helpers.data.image_cache import ImageCache, build_cache
from xray_helpers.data.splits import KEY, SPLITS, check_manifest, make_splits
from xray_helpers.data.transforms import Preprocess
from xray_helpers.files import XrayError, print_once
from xray_helpers.settings import Settings

CLASSES = {"pneumonia": ("NORMAL", "PNEUMONIA"), "cause": ("normal", "bacterial", "viral")}
WELL = {"normal", "normals", "healthy", "negative", "negatives", "none", "control", "controls"}  # words of class names
BATCH_TIMEOUT = 120  # seconds that a loading process may take for a batch before it counts as hung


@dataclass(frozen=True)
class PreparedData:
    """What training and evaluation read.

    Attributes:
        settings: that it was prepared with.
        root: the folder that the paths of the images are relative to.
        manifest: the catalog's rows that could be decoded, with a column `split`.
        classes: names in the order of their numbers; of two, the second is the finding.
        cache: the decoded images.
    """

    settings: Settings
    root: Path
    manifest: pd.DataFrame
    classes: tuple[str, ...]
    cache: ImageCache

    @property
    def fingerprint(self) -> str:
        """A digest of the images' places and pixels."""
        return self.cache.fingerprint


def prepare_data(settings: Settings) -> PreparedData:
    """Everything before training, once: the files, the catalog, the split, the image cache.

    What was made before is read back, so that a second call takes a second or two.

    Raises:
        DownloadError, LeakError, ValueError, OSError: as the steps do; ValueError also where the data does not fit
            the task.
    """
    root = fetch(settings)
    catalog = build_catalog(root, settings.processed_folder, settings)
    broken = catalog[catalog["error"] != ""]
    if len(broken):
        names = "; ".join(f"{row.path}: {row.error}" for row in broken.head(5).itertuples())
        print_once(f"left out, since unreadable: {len(broken)} files ({names}{' …' if len(broken) > 5 else ''})")
    manifest = make_splits(settings, catalog)
    classes = class_names(manifest, settings.task, settings.finding)
    if len(classes) == 2:
        print_once(f"the finding is {classes[1]}, told from {classes[0]}")
    cache = build_cache(root, catalog, settings.processed_folder, settings.image_size, settings.resize)
    return PreparedData(settings, root, manifest, classes, cache)


def class_names(manifest: pd.DataFrame, task: str, finding: str = "") -> tuple[str, ...]:
    """The classes of a task, in the order of their numbers: for `pneumonia` and `cause` fixed, for `folders` sorted.

    The last of two is the finding, the class that counts as ill: `finding` where given, else PNEUMONIA, else the one
    beside a class that is called normal, healthy or the like. Of three and more none is, and one that is given comes
    last.

    Raises:
        ValueError: the data has other classes than the task; or `finding` is not one of them, or has to be given.
    """
    column = "cause" if task == "cause" else "label"
    found = sorted(manifest[column].unique())
    classes = CLASSES.get(task, tuple(found))
    if others := [name for name in found if name not in classes]:
        example = manifest.loc[manifest[column] == others[0], "path"].iloc[0]
        raise ValueError(
            f"task={task!r} knows {', '.join(classes)}, and this data has {', '.join(others)} too, such as {example}. "
            "Use task='folders' for one class per folder."
        )
    if len(found) < 2:
        raise ValueError(f"task={task!r} needs two classes or more, and this data has only {', '.join(found)}")
    if not finding and len(classes) == 2:
        ill = [name for name in classes if name.casefold() == "pneumonia"]
        ill = ill or [name for name, other in (classes, classes[::-1]) if _is_well(other, name)]
        if len(ill) != 1:
            example = f"FINDING={classes[1]} (or XRAY_FINDING, or --finding)"
            raise ValueError(f"which of the classes {' and '.join(classes)} counts as ill? Name it, as in {example}")
        finding = ill[0]
    if finding and finding not in classes:
        raise ValueError(f"finding={finding!r}: the classes of this data are {', '.join(classes)}")
    return tuple(sorted(classes, key=finding.__eq__))


def _is_well(name: str, other: str) -> bool:
    """Whether a class is called normal, healthy or the like, or as another one with a "no" before it."""
    spaced = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", each).casefold() for each in (name, other)]
    words, others = (re.findall(r"[^\W_]+", each) for each in spaced)
    no_more = words[:1] in (["no"], ["non"], ["not"], ["without"])
    return not WELL.isdisjoint(words) or (no_more and words[1:] in ([], ["finding"], ["findings"], others))


class XrayDataset(Dataset[tuple[Tensor, Any]]):
    """The images of one split, from the cache, each with the number of its class.

    Args:
        manifest: rows with the columns path, split, patient_coarse and `target`.
        cache: from `build_cache`.
        split: `train`, `val` or `test`.
        classes: names in the order of their numbers.
        target: the column with the class names, `label` or `cause`.

    Raises:
        ValueError: the manifest has no such split, or a class that is not among `classes`.
        KeyError: an image is not in the cache.
    """

    def __init__(
        self, manifest: pd.DataFrame, cache: ImageCache, split: str, classes: Sequence[str], target: str = "label"
    ) -> None:
        rows = manifest[manifest["split"] == split]
        if rows.empty:
            raise ValueError(f"split={split!r}: this manifest has {', '.join(sorted(manifest['split'].unique()))}")
        if unknown := sorted(set(rows[target]) - set(classes)):
            raise ValueError(f"class {unknown[0]!r} in {split} is not one of {', '.join(classes)}")
        self.cache, self.split, self.classes = cache, split, tuple(classes)
        self.paths = rows["path"].tolist()
        self.patients = rows["patient_coarse"].tolist()
        self.rows = cache.find(self.paths)  # (N,)
        self.labels = torch.tensor([self.classes.index(name) for name in rows[target]])  # (N,)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | Sequence[int]) -> tuple[Tensor, Any]:
        """One image, uint8 (1, S, S), and the number of its class; or for a list of indices a whole batch.

        A batch is uint8 (B, 1, S, S) and int64 (B,), read at once: a `DataLoader` asks for it with `batch_size=None`
        and a `BatchSampler` as its sampler, and then has nothing to stack.
        """
        images = torch.from_numpy(np.array(self.cache.images[self.rows[index]])).unsqueeze(-3)
        return images, self.labels[index] if isinstance(index, Sequence) else int(self.labels[index])

    def counts(self) -> dict[str, int]:
        """Class → images."""
        return {name: int((self.labels == number).sum()) for number, name in enumerate(self.classes)}

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in self.counts().items())
        return f"XrayDataset({self.split}: {len(self):,} images of {self.cache.size} × {self.cache.size}; {counts})"


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


class XrayLoader(DataLoader[Any]):
    """A `DataLoader` whose dataset is an `XrayDataset`."""

    dataset: XrayDataset


@dataclass(frozen=True)
class Loaders:
    """Loaders of whole batches: images uint8 (B, 1, S, S), class numbers int64 (B,).

    Attributes:
        train: shuffled, in batches of full size.
        val: in the manifest's order, with the last, smaller batch.
        classes: names in the order of their numbers.
        preprocess: turns a batch into a network's input.
        fingerprint: of the images.
        data_name: name of the dataset.
        manifest: the rows that they load, with their split.
        key: what counts as one patient, `fine` or `coarse`.
    """

    train: XrayLoader
    val: XrayLoader
    classes: tuple[str, ...]
    preprocess: Preprocess
    fingerprint: str
    data_name: str
    manifest: pd.DataFrame
    key: str
    _test: XrayLoader | None = None

    @property
    def test(self) -> XrayLoader:
        """The test split, as `val`; there only when `make_loaders` was asked for it."""
        if self._test is None:
            raise ValueError("the test split is closed; evaluation opens it with make_loaders(data, test=True)")
        return self._test


def make_loaders(
    data: PreparedData,
    batch_size: int = 32,
    seed: int = 0,
    workers: int = 0,
    manifest: pd.DataFrame | None = None,
    test: bool = False,
) -> Loaders:
    """The loaders of a run.

    Args:
        data: from `prepare_data`.
        batch_size: images per batch.
        seed: of the order of the training images.
        workers: processes that load images; 0 loads in the main process.
        manifest: catalog rows with a split of your own, in place of `data.manifest`; checked for leaks.
        test: open the test split too; for evaluation only.

    Raises:
        ValueError: a split is missing or lacks a class.
        LeakError: your split shares a patient or an image.
    """
    table, key = data.manifest if manifest is None else manifest, KEY[data.settings.split]
    check_manifest(table, key)
    for name in data.classes:
        rows = table[table[data.settings.target] == name]
        for split in (split for split in SPLITS if split not in set(rows["split"])):
            found = f"patients with {name} in this data: {rows['patient_coarse'].nunique()}, and each split needs one"
            lacking = f"{split} has no image of {name} ({found})"
            if split != "test" or test:
                raise ValueError(f"{lacking}. Bring more images, or use another SPLIT or FRACTIONS.")
            if manifest is None:
                print_once(f"note: {lacking}: it cannot judge the model")
    options: dict[str, Any] = {"num_workers": workers, "timeout": BATCH_TIMEOUT if workers else 0}
    options |= {"persistent_workers": workers > 0, "pin_memory": torch.cuda.is_available()}

    def load(split: str) -> XrayLoader:
        dataset = XrayDataset(table, data.cache, split, data.classes, data.settings.target)
        train = split == "train"
        order = EpochSampler(len(dataset), seed) if train else SequentialSampler(dataset)
        batches = BatchSampler(order, batch_size, drop_last=train and len(dataset) >= batch_size)
        # Without one of its own, a loader would draw from the global generator, and shift what comes after.
        generator = torch.Generator().manual_seed(seed)
        # No batch size, since the dataset gives whole batches.
        return XrayLoader(dataset, None, sampler=batches, generator=generator, **options)

    preprocess, name = Preprocess(data.cache.size, data.cache.resize, whites=data.cache.whites), data.settings.data_name
    opened = load("test") if test else None
    return Loaders(load("train"), load("val"), data.classes, preprocess, data.fingerprint, name, table, key, opened)


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Say plainly what PyTorch says of its loading processes in terms of its own code.

    Raises:
        XrayError: one was killed, or gave no batch in time.
    """
    try:
        yield
    except RuntimeError as error:
        hung = "DataLoader timed out" in str(error)
        if not hung and "DataLoader worker (pid" not in str(error):
            raise
        what = f"gave no batch for {BATCH_TIMEOUT} s" if hung else "was killed, often since memory ran out"
        raise XrayError(
            f"A process that loads images {what}. Set WORKERS to fewer, or to 0 for none; finished epochs are kept."
        ) from None
