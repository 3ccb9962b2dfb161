"""Step 3: share the patients out to train, val and test, save who went where, and prove that nothing leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from xray_helpers.catalog import fingerprint
from xray_helpers.files import atomic_file
from xray_helpers.settings import FRACTIONS, Settings, check_fractions

SPLITS = ("train", "val", "test")
KEY = {"pooled": "coarse", "official": "fine", "blocked": "fine"}  # under which each strategy keeps patients apart


class LeakError(Exception):
    """Two splits share a patient or a picture: a score on one would flatter what was learned on the other."""


def resplit(
    catalog: pd.DataFrame,
    strategy: str = "pooled",
    seed: int = 0,
    fractions: Sequence[float] | None = None,
    ends: tuple[str, str] = ("test", "val"),
) -> pd.DataFrame:
    """Give every readable image a split, so that no patient and no picture stands in two.

    `pooled` shares all patients out, stratified by label and cause, grouped by the coarse key. `official` keeps
    Kaggle's test folder whole and shares out the rest in the same way; what shares a fine-key patient or a picture
    with the test folder is left out. `blocked` holds out the lowest and the highest case numbers of each counter,
    grouped by the fine key, and is neither random nor stratified.

    Args:
        catalog: from `build_catalog`.
        strategy: `pooled`, `official` or `blocked`.
        seed: seed of the shuffle (`blocked` has none).
        fractions: shares of the images for train, val, test (`official`: train, val); default 70/15/15 (90/10).
        ends: for `blocked`, which split gets the lowest case numbers and which the highest.

    Returns:
        The catalog's readable rows and a column `split`. Prints a note for each share that could not be met.

    Raises:
        ValueError: an unknown strategy or impossible shares, no readable image, no test folder for `official`, or
            no case numbers for `blocked`.
    """
    if strategy not in FRACTIONS:
        raise ValueError(f"strategy={strategy!r}: expected one of {', '.join(FRACTIONS)}")
    shares = dict(zip(SPLITS, check_fractions(fractions or FRACTIONS[strategy], strategy), strict=False))
    manifest = catalog[catalog["error"] == ""].sort_values("path", ignore_index=True)
    if manifest.empty:
        raise ValueError("the catalog holds no readable image")
    if strategy == "blocked":
        manifest["split"] = _blocks(manifest, shares, ends)
    elif strategy == "official":
        manifest = _keep_test(manifest, shares, seed)
    else:
        manifest["split"] = _balance(manifest, shares, seed)
    for note in unmet(manifest, shares):
        print(f"note: {note}")
    return manifest


def _keep_test(manifest: pd.DataFrame, shares: Mapping[str, float], seed: int) -> pd.DataFrame:
    """Kaggle's test folder as the test, the other folders' patients shared out."""
    test = manifest["folder"] == "test"
    if not test.any():
        raise ValueError(
            "split='official' keeps Kaggle's test folder, and this data has none: chest_xray/test/<class>/ is missing. "
            "Use split='pooled' or 'blocked', or the whole dataset."
        )
    held = manifest[test]
    leaks = ~test & (
        manifest["patient_fine"].isin(held["patient_fine"]) | manifest["pixel_hash"].isin(held["pixel_hash"])
    )
    if leaks.any():
        print(f"note: {leaks.sum()} images of train and val share a patient or a picture with test and are left out")
    rest = manifest[~test & ~leaks].reset_index(drop=True)
    if rest.empty:
        raise ValueError("split='official' finds no image outside the test folder to learn from")
    rest["split"] = _balance(rest, shares, seed)
    return pd.concat([rest, held.assign(split="test")]).sort_values("path", ignore_index=True)


def _groups(manifest: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.int_]:
    """Number the sets of rows that are linked, directly or through others, by equal values in any column, (N,)."""
    rows, nodes, links = np.arange(len(manifest)), len(manifest), []
    for column in columns:
        codes, values = pd.factorize(manifest[column])
        links.append(codes + nodes)
        nodes += len(values)
    ends = (np.tile(rows, len(links)), np.concatenate(links))
    graph = csr_matrix((np.ones(len(ends[0])), ends), shape=(nodes, nodes))
    groups: NDArray[np.int_] = connected_components(graph, directed=False)[1][: len(manifest)]
    return np.unique(groups, return_inverse=True)[1]


def _balance(manifest: pd.DataFrame, shares: Mapping[str, float], seed: int) -> NDArray[np.str_]:
    """Deal groups of images to splits so that each split has its share of every label and cause, (N,).

    Groups come in random order, but those too large for the smallest split first. Each goes where it brings the
    counts nearest to their targets; the last groups of a stratum go to splits that have none of it yet.
    """
    groups = _groups(manifest, ["patient_coarse", "patient_fine", "pixel_hash"])
    strata = pd.factorize(manifest["label"] + " " + manifest["cause"], sort=True)[0]
    counts = np.zeros((groups.max() + 1, strata.max() + 1))  # (groups, strata)
    np.add.at(counts, (groups, strata), 1)
    total = counts.sum(axis=0)
    target = np.array(list(shares.values()))[:, None] * total  # (splits, strata)
    filled = np.zeros_like(target)
    waiting = (counts > 0).sum(axis=0)  # groups of each stratum still to come
    order = np.random.default_rng(seed).permutation(len(counts))
    size = counts.sum(axis=1)[order]
    order = order[np.argsort(-np.where(size > target.sum(axis=1).min(), size, 0), kind="stable")]
    chosen = np.zeros(len(counts), dtype=int)
    for group in order:
        cost = (((filled + counts[group] - target) ** 2 - (filled - target) ** 2) / total**2).sum(axis=1)  # (splits,)
        for stratum in np.flatnonzero(counts[group]):
            empty = filled[:, stratum] == 0
            if empty.any() and waiting[stratum] <= empty.sum():
                cost = np.where(empty, cost, np.inf)
                break
        chosen[group] = cost.argmin()
        filled[chosen[group]] += counts[group]
        waiting -= counts[group] > 0
    return np.array(list(shares))[chosen[groups]]


def _blocks(manifest: pd.DataFrame, shares: Mapping[str, float], ends: tuple[str, str]) -> NDArray[np.str_]:
    """Hold out the two ends of each case counter, (N,); images without a case number stay in train."""
    if sorted(ends) != ["test", "val"]:
        raise ValueError(f"ends={ends!r}: expected ('test', 'val') or ('val', 'test')")
    case = manifest["patient_fine"].str.extract(r"^(bacteria|virus|IM|NORMAL2)-([0-9]+)$")
    bare = case[0].isna()
    for label, missing in bare.groupby(manifest["label"]):
        if missing.all():
            raise ValueError(f"split='blocked' needs case numbers, and no name in {label} has one; use split='pooled'")
    if bare.any():
        print(f"note: {bare.sum()} images without a case number stay in train")
    split = pd.Series("train", index=manifest.index)
    for _, numbers in case.loc[~bare, 1].astype(int).groupby(case[0]):
        images = numbers.value_counts().sort_index()  # images a patient, by case number
        middle = (images.cumsum() - images / 2) / images.sum()  # each patient's place in the counter, 0 to 1
        block = np.where(middle < shares[ends[0]], ends[0], np.where(middle > 1 - shares[ends[1]], ends[1], "train"))
        split[numbers.index] = numbers.map(dict(zip(images.index, block, strict=True)))
    # A picture that stands in two blocks takes all its patients' images to the one held out first.
    rank = split.map({"test": 0, "val": 1, "train": 2}).groupby(_groups(manifest, ["patient_fine", "pixel_hash"]))
    blocks: NDArray[np.str_] = np.array(["test", "val", "train"])[rank.transform("min")]
    return blocks


def unmet(manifest: pd.DataFrame, shares: Mapping[str, float]) -> list[str]:
    """Sentences on each share that is off by more than 2 points, and on each label or cause that a split lacks.

    `shares` gives for each split of the manifest its wanted share of the images in these splits.
    """
    dealt = manifest[manifest["split"].isin(list(shares))]
    notes = []
    for split, share in shares.items():
        rows = dealt[dealt["split"] == split]
        if abs(len(rows) / len(dealt) - share) > 0.02:
            largest = dealt["patient_coarse"].value_counts().iloc[0]
            notes.append(
                f"{split} holds {len(rows) / len(dealt):.0%} of the images instead of {share:.0%}, since a patient's "
                f"images stay together (the largest patient has {largest} of {len(dealt)})"
            )
        for column in ("label", "cause"):
            for missing in sorted(set(dealt[column]) - set(rows[column])):
                patients = dealt.loc[dealt[column] == missing, "patient_coarse"].nunique()
                if not (column == "cause" and missing in ("normal", "unknown")):
                    notes.append(f"{split} has no {missing} image; the data has {patients} such patients")
    return notes


def leak_report(manifest: pd.DataFrame) -> pd.DataFrame:
    """What each two splits share; never raises, so that bad splits can be shown.

    Args:
        manifest: any catalog rows with a column `split`.

    Returns:
        One row a pair of splits and key (`fine`, `coarse`, `pixels`): first, second, key, shared (patients, or
        pictures), and first_images and second_images, the images on each side that belong to them.
    """
    present = sorted(set(manifest["split"]), key=lambda name: (SPLITS.index(name) if name in SPLITS else 9, name))
    rows = []
    for first, second in combinations(present, 2):
        for key, column in (("fine", "patient_fine"), ("coarse", "patient_coarse"), ("pixels", "pixel_hash")):
            one, two = (manifest.loc[manifest["split"] == name, column] for name in (first, second))
            shared = set(one) & set(two)
            rows.append((first, second, key, len(shared), int(one.isin(shared).sum()), int(two.isin(shared).sum())))
    return pd.DataFrame(rows, columns=["first", "second", "key", "shared", "first_images", "second_images"])


def check_manifest(manifest: pd.DataFrame, key: str) -> None:
    """Refuse splits that share a patient under `key` (`fine` or `coarse`), or an exact picture.

    Raises:
        LeakError: they do; the message names one.
        ValueError: an unknown key.
    """
    if key not in ("fine", "coarse"):
        raise ValueError(f"key={key!r}: expected fine or coarse")
    for column, what in ((f"patient_{key}", f"patients under the {key} key"), ("pixel_hash", "exact pictures")):
        spread = manifest.groupby(column)["split"].nunique()
        shared = spread[spread > 1].index
        if len(shared):
            example = manifest.loc[manifest[column] == shared[0], ["patient_fine", "path"]].iloc[0]
            raise LeakError(
                f"{len(shared):,} {what} stand in more than one split, such as {example['path']} of patient "
                f"{example['patient_fine']}. Do not train on this."
            )


def manifest_path(settings: Settings, catalog: pd.DataFrame) -> Path:
    """Where this split of these files is saved: the name carries strategy, shares, seed and fingerprint."""
    shares = "-".join(f"{100 * part:g}" for part in settings.fractions)
    name = f"splits-{settings.split}-{shares}-seed{settings.split_seed}-{fingerprint(catalog)[:8]}.csv"
    return settings.processed_folder / name


def make_splits(settings: Settings, catalog: pd.DataFrame) -> pd.DataFrame:
    """The split that `settings` ask for: read back when it was saved, else made and saved; checked in any case.

    Raises:
        LeakError: a saved manifest was edited so that it leaks.
        ValueError: as `resplit`.
    """
    path = manifest_path(settings, catalog)
    if saved := path.is_file():
        manifest = pd.read_csv(path, keep_default_na=False)
    else:
        manifest = resplit(catalog, settings.split, settings.split_seed, settings.fractions)
    check_manifest(manifest, KEY[settings.split])
    if not saved:
        for earlier in path.parent.glob(f"{path.stem.rpartition('-')[0]}-*.csv"):
            print(f"note: the images have changed since {earlier.name} was made; patients are dealt anew")
        with atomic_file(path) as partial:
            manifest.to_csv(partial, index=False)
    print(f"data/processed/{settings.data_name}/{path.name}: {'read' if saved else 'saved'}, {len(manifest):,} images")
    return manifest
