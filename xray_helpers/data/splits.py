"""Step 3: divide the patients into train, val and test, save the result, and show that nothing leaks."""

import shutil
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from sklearn.model_selection import StratifiedGroupKFold

from xray_helpers.data.catalog import digest, fingerprint, read_rows
from xray_helpers.data.patients import patients_claim
from xray_helpers.files import LeakError, atomic_file, print_once, write_text
from xray_helpers.metrics import share_interval
from xray_helpers.settings import FRACTIONS, Settings, check_fractions

SPLITS = ("train", "val", "test")
KEY = {"pooled": "coarse", "official": "fine", "blocked": "fine"}  # the key by which each strategy separates patients
COLUMN = {"fine": "patient_fine", "coarse": "patient_coarse", "pixels": "pixel_hash"}  # what each key compares
KEYS = COLUMN | {"near": "near"}  # also near duplicates, which only some catalogs know of


def resplit(
    catalog: pd.DataFrame, strategy: str = "pooled", seed: int = 0,
    fractions: Sequence[float] | None = None, ends: tuple[str, str] = ("test", "val"),
) -> pd.DataFrame:  # fmt: skip
    """Assign every readable image to a split, so that no patient and no (near) duplicate of an image is in two splits.

    `pooled` divides all patients at random, stratified by label and cause and grouped by the coarse key. `official`
    keeps Kaggle's test folder whole and divides the other images in the same way; images that share a fine-key patient
    or a (near) duplicate with the test folder are left out. `blocked` holds out the lowest and the highest patient
    numbers of each counter, grouped by the fine key; it is neither random nor stratified.

    Args:
        catalog: from `build_catalog`.
        strategy: `pooled`, `official` or `blocked`.
        seed: seed of the random order (`blocked` has none).
        fractions: shares of the images for train, val, test (`official`: train, val); by default 70/15/15 (90/10).
        ends: for `blocked`, the split that gets the lowest patient numbers and the one that gets the highest.

    Returns:
        The catalog's readable rows, sorted by path, with a column `split`. Prints a note for each share that could not
        be met.

    Raises:
        ValueError: the strategy is unknown, the shares are impossible, no image is readable, `official` finds no test
            folder, or `blocked` finds no patient numbers.
    """
    if strategy not in FRACTIONS:
        raise ValueError(f"strategy={strategy!r}: expected one of {', '.join(FRACTIONS)}")
    shares = dict(zip(SPLITS, check_fractions(fractions or FRACTIONS[strategy], strategy), strict=False))
    manifest = catalog[catalog["error"] == ""].sort_values("path", ignore_index=True)
    if manifest.empty:
        raise ValueError("the catalog holds no readable image")
    divide = _official if strategy == "official" else _pooled
    manifest = _blocked(manifest, shares, ends) if strategy == "blocked" else divide(manifest, shares, seed)
    for note in unmet(manifest, shares):
        print(f"note: {note}")
    return manifest


def _pooled(manifest: pd.DataFrame, shares: Mapping[str, float], seed: int) -> pd.DataFrame:
    """Distribute groups of linked images so that each split gets its share of every label and cause.

    Groups come in random order, but those that are too large for the smallest split come first. Each goes to the split
    where it brings the counts closest to their targets; the last groups of a stratum go to splits that have none of it.
    """
    groups = linked(manifest, ["patient_coarse", "patient_fine", "pixel_hash", "near"])
    counts = pd.crosstab(groups, (manifest["label"] + " " + manifest["cause"]).to_numpy()).to_numpy(float)
    total, waiting = counts.sum(axis=0), (counts > 0).sum(axis=0)  # images and groups still to come, (strata,)
    target = np.array(list(shares.values()))[:, None] * total  # (splits, strata)
    filled, chosen = np.zeros_like(target), np.zeros(len(counts), dtype=int)

    # Large groups by size, then all others in random order: the sort is stable, and their key is 0.
    size, smallest = counts.sum(axis=1), target.sum(axis=1).min()
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    order = sorted(shuffled, key=lambda group: -size[group] * (size[group] > smallest))

    for group, images in zip(order, counts[order], strict=True):
        cost = (((filled + images - target) ** 2 - (filled - target) ** 2) / total**2).sum(axis=1)  # (splits,)
        # A stratum is scarce if no more of its groups are to come than splits have none of it: only those get one.
        empty = filled == 0
        scarce = (images > 0) & (waiting <= empty.sum(axis=0))
        cost[scarce.any() & ~empty[:, scarce.argmax()]] = np.inf
        chosen[group] = cost.argmin()
        filled[chosen[group]] += images
        waiting -= images > 0
    return manifest.assign(split=np.array(list(shares))[chosen[groups]])


def _official(manifest: pd.DataFrame, shares: Mapping[str, float], seed: int) -> pd.DataFrame:
    """Take Kaggle's test folder as the test split and divide the patients of the other folders."""
    in_test = manifest["folder"] == "test"
    if not in_test.any():
        what = "split='official' keeps Kaggle's test folder, and this data has none: chest_xray/test/<class>/"
        raise ValueError(f"{what} is missing. Use split='pooled' or 'blocked', or the whole dataset.")
    test, rest = manifest[in_test].assign(split="test"), manifest[~in_test]
    columns = ["patient_fine", "pixel_hash", "near"]
    leaks = np.any([_values(rest, column).isin(_values(test, column)) for column in columns], axis=0)
    if leaks.any():
        print(f"note: {leaks.sum()} images of train and val share a patient or a duplicate with test and are left out")
    if leaks.all():
        raise ValueError("split='official' finds no image to learn from outside the test folder")
    return pd.concat([_pooled(rest[~leaks], shares, seed), test]).sort_values("path", ignore_index=True)


def _blocked(manifest: pd.DataFrame, shares: Mapping[str, float], ends: tuple[str, str]) -> pd.DataFrame:
    """Hold out the two ends of each patient counter; images without a patient number stay in train."""
    if sorted(ends) != ["test", "val"]:
        raise ValueError(f"ends={ends!r}: expected ('test', 'val') or ('val', 'test')")
    case = manifest["patient_fine"].str.extract(r"^(?P<counter>bacteria|virus|IM|NORMAL2)-(?P<number>[0-9]+)$")
    unnumbered = case["number"].isna()
    lacking = unnumbered.groupby(manifest["label"]).all()
    if lacking.any():
        raise ValueError(f"'blocked' needs patient numbers; no name in {lacking.idxmax()} has one: use split='pooled'")
    if unnumbered.any():
        print(f"note: what has no patient number stays in train ({unnumbered.sum():,} of {len(manifest):,} images)")

    # Each patient's place in its counter, from 0 to 1: the share of images before the middle of the patient's own.
    patients = case["number"].astype(float).groupby(case["counter"])
    place = (patients.rank() - 0.5) / patients.transform("count")
    at_ends = [place < shares[ends[0]], place > 1 - shares[ends[1]]]

    # Copies of an image in two blocks move all images of their patients to the split that comes last in `SPLITS`.
    number = pd.Series(np.select(at_ends, [SPLITS.index(end) for end in ends], SPLITS.index("train")))
    last = number.groupby(linked(manifest, ["patient_fine", "pixel_hash", "near"])).transform("max")
    return manifest.assign(split=np.array(SPLITS)[last])


def _values(manifest: pd.DataFrame, column: str) -> pd.Series:
    """A column by which images belong together; one without near duplicates belongs to none, and has its own path."""
    values = manifest[column] if column in manifest or column != "near" else pd.Series("", manifest.index)
    return values.where(values != "", manifest["path"]) if column == "near" else values


def linked(manifest: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.int_]:
    """Number the groups of rows that share a value in any column, directly or through other rows, (N,)."""
    # A graph with a node per row and a node per value, and an edge from each row to each of its values.
    rows = np.tile(np.arange(len(manifest)), len(columns))
    values = pd.factorize(pd.concat([column + "=" + _values(manifest, column) for column in columns]))[0]
    edges = rows, len(manifest) + values
    graph = sparse.csr_array((np.ones(len(rows)), edges), shape=(len(manifest) + len(rows),) * 2)
    return np.asarray(sparse.csgraph.connected_components(graph, directed=False)[1][: len(manifest)])


def unmet(manifest: pd.DataFrame, shares: Mapping[str, float]) -> list[str]:
    """Say which shares could not be met.

    Args:
        manifest: rows with a column `split`.
        shares: for each split of interest, its intended share of the images in these splits.

    Returns:
        A sentence for each share that is off by more than 2 percentage points, and for each label or cause that a
        split lacks.
    """
    divided = manifest[manifest["split"].isin(list(shares))]
    largest = divided["patient_coarse"].value_counts().max()
    reason = f"a patient's images stay together (the largest patient has {largest} of {len(divided)})"
    notes = []
    for split, share in shares.items():
        rows = divided[divided["split"] == split]
        actual = len(rows) / len(divided)
        if abs(actual - share) > 0.02:
            notes.append(f"{split} holds {actual:.0%} of the images instead of {share:.0%}, since {reason}")
        for column, ignored in (("label", set()), ("cause", {"normal", "unknown"})):
            for missing in sorted(set(divided[column]) - set(rows[column]) - ignored):
                patients = divided.loc[divided[column] == missing, "patient_coarse"].nunique()
                notes.append(f"{split} has no {missing} image; the data has {patients} such patients")
    return notes


def leak_report(manifest: pd.DataFrame) -> pd.DataFrame:
    """Count what each pair of splits shares. It never raises, so that bad splits can be shown.

    Args:
        manifest: any catalog rows with a column `split`.

    Returns:
        One row per pair of splits and key (`fine`, `coarse`, `pixels`, `near`): first, second, key, shared (the number
        of patients, or of distinct images, that are in both), and first_images and second_images, the images of each
        side that belong to them.
    """
    present = sorted(set(manifest["split"]), key=lambda name: ([*SPLITS, name].index(name), name))  # others come last
    rows = []
    for (first, second), (key, column) in product(combinations(present, 2), KEYS.items()):
        one, two = (_values(manifest, column)[manifest["split"] == name] for name in (first, second))
        rows.append((first, second, key, one[one.isin(two)].nunique(), one.isin(two).sum(), two.isin(one).sum()))
    return pd.DataFrame(rows, columns=["first", "second", "key", "shared", "first_images", "second_images"])


def share_leaked(manifest: pd.DataFrame, key: str) -> dict[str, float]:
    """How many of the images outside train show a patient of train.

    Args:
        manifest: any catalog rows with a column `split`.
        key: what counts as one patient, `fine` or `coarse`.

    Returns:
        share, from 0 to 1, and images: how many are outside train.
    """
    patients, learned = manifest[COLUMN[key]], manifest["split"] == "train"
    leaked, images = patients[~learned].isin(patients[learned]).sum(), (~learned).sum()
    return {"share": float(leaked / max(images, 1)), "images": int(images)}


def class_shares(manifest: pd.DataFrame, column: str) -> pd.DataFrame:
    """The share of each class in each split, for `plots.share_intervals`.

    Args:
        manifest: any catalog rows with a column `split`.
        column: `label` or `cause`.

    Returns:
        One row per split and class: group, name, n (images of the split), and value, low and high of the share.
    """
    rows = []
    for split in [name for name in SPLITS if name in set(manifest["split"])]:
        values = manifest.loc[manifest["split"] == split, column]
        for name in sorted(manifest[column].unique()):
            interval = share_interval(int((values == name).sum()), len(values))
            rows.append({"group": split, "name": name, "n": len(values), **interval})
    return pd.DataFrame(rows)


def check_manifest(manifest: pd.DataFrame, key: str) -> None:
    """Refuse splits that share a patient, exact pixels, or a near duplicate where the manifest knows of those.

    Args:
        manifest: catalog rows with a column `split`.
        key: what counts as one patient, `fine` or `coarse`.

    Raises:
        LeakError: two splits share a patient or an image; the message names one.
        ValueError: the key is unknown.
    """
    if key not in ("fine", "coarse"):
        raise ValueError(f"key={key!r}: expected fine or coarse")
    names = {COLUMN[key]: f"patients under the {key} key", "pixel_hash": "duplicate images", "near": "near duplicates"}
    for column, what in names.items():
        leaks = manifest[manifest["split"].groupby(_values(manifest, column)).transform("nunique") > 1]
        if len(leaks):
            path, patient = leaks.iloc[0][["path", "patient_fine"]]
            count = _values(leaks, column).nunique()
            leak = f"{count:,} {what} are in more than one split, such as {path} of patient {patient}"
            raise LeakError(f"{leak}. Do not train on this.")


def folds(manifest: pd.DataFrame, k: int, seed: int = 0) -> list[pd.DataFrame]:
    """Splits for a cross-validation by patient: each image is once in `test`, once in `val`, and else in `train`.

    Leave the rows out that are to stay closed, such as those of the split `test`.

    Args:
        manifest: catalog rows; a column `split` is replaced.
        k: number of folds, 3 or more.
        seed: seed of the random order.

    Returns:
        `k` manifests, in which no patient (under either key) and no (near) duplicate is in two splits.

    Raises:
        ValueError: fewer than three folds, or a class with fewer groups of linked patients than folds.
    """
    manifest = manifest.sort_values("path", ignore_index=True)
    groups, strata = linked(manifest, list(KEYS.values())), manifest["label"] + " " + manifest["cause"]
    fewest = pd.Series(groups).groupby(manifest["label"]).nunique().min()
    if k < 3 or fewest < k:
        raise ValueError(f"k={k}: expected 3 or more, and no more than the smallest class has patients ({fewest})")
    parts = StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(manifest, strata, groups)
    made = [manifest.assign(split="train") for _ in range(k)]
    for number, (_, held_out) in enumerate(parts):
        made[number].loc[held_out, "split"] = "test"
        made[number - 1].loc[held_out, "split"] = "val"
    for fold in made:
        check_manifest(fold, "coarse")
    return made


def split_digest(manifest: pd.DataFrame) -> str:
    """A hash of each row's image, classes, patient and split: another one wherever a split or a label differs.

    Args:
        manifest: catalog rows with a column `split`.

    Returns:
        12 hexadecimal digits.
    """
    columns = ["path", "split", "label", "cause", *COLUMN.values()]
    return digest(sorted(manifest[columns].astype(str).agg(" ".join, axis=1)))


def traces(manifest: pd.DataFrame, key: str) -> pd.DataFrame:
    """Hashes by which images, their exact copies and their patients are known again, without naming them.

    Args:
        manifest: catalog rows.
        key: what counts as one patient, `fine` or `coarse`.

    Returns:
        One row per image: path, pixel_hash and the key's column (`patient_fine` or `patient_coarse`), each hashed.
    """
    return manifest[["path", "pixel_hash", COLUMN[key]]].map(_hash)


def _hash(value: object) -> str:
    return digest([str(value)])


def check_unseen(manifest: pd.DataFrame, trained_on: pd.DataFrame, run: str) -> None:
    """Refuse images that a run learned from, or whose patients it learned from.

    Args:
        manifest: catalog rows of the images to judge.
        trained_on: from `traces`, of the run's training images.
        run: its name, for the message.

    Raises:
        LeakError: the run learned from one of them; the message names one.
    """
    words = {"path": "file", "pixel_hash": "exact pixels"}
    for column in trained_on:
        known = manifest[column].map(_hash).isin(trained_on[column].dropna())
        if known.any():
            what = f"{known.sum():,} of {len(manifest):,} images share their {words.get(column, 'patient')}"
            example = manifest.loc[known, "path"].iloc[0]
            raise LeakError(f"{what} with images that {run} learned from, such as {example}: they cannot judge it.")


def manifest_path(settings: Settings, catalog: pd.DataFrame) -> Path:
    """Where the split is saved: the name holds strategy, shares, patients if set, seed and the files' fingerprint."""
    shares = "-".join(f"{100 * part:g}" for part in settings.fractions)
    patients = f"-patients{digest(catalog['patient_fine'].tolist())[:6]}" if settings.patients else ""
    name = f"splits-{settings.split}-{shares}{patients}-seed{settings.split_seed}-{fingerprint(catalog)[:8]}.csv"
    return settings.processed_folder / name


def make_splits(settings: Settings, catalog: pd.DataFrame) -> pd.DataFrame:
    """The split that the settings ask for: read back if it was saved before, otherwise made and saved.

    Args:
        settings: strategy, fractions and seed of the split, and the data's name.
        catalog: from `build_catalog`.

    Returns:
        As `resplit`; checked for leaks in either case.

    Raises:
        LeakError: a saved manifest was edited so that it leaks.
        ValueError: as `resplit`.
    """
    path = manifest_path(settings, catalog)
    if saved := path.is_file():
        manifest = read_rows(path)
        added = catalog.columns.difference(manifest.columns, sort=False)  # those that its version did not know yet
        manifest = manifest.merge(catalog[["path", *added]], on="path", how="left") if len(added) else manifest
    else:
        manifest = resplit(catalog, settings.split, settings.split_seed, settings.fractions)
    try:
        check_manifest(manifest, KEY[settings.split])
    except LeakError as error:
        raise LeakError(f"{error} Remove {path.name} to divide the patients anew." if saved else str(error)) from None
    if not saved:
        for earlier in path.parent.glob(f"{path.stem.rpartition('-')[0]}-*.csv"):
            print(f"note: the images have changed since {earlier.name} was made; the patients are divided again")
        write_text(path, manifest.to_csv(index=False))
    if (table := settings.patients_table) and table.parent != path.parent:
        with atomic_file(path.with_name(table.name)) as copy:
            shutil.copyfile(table, copy)
    what = f"{'read' if saved else 'saved'}, {len(manifest):,} images; {patients_claim(manifest)}"
    print_once(f"data/processed/{settings.data_name}/{path.name}: {what}")
    return manifest
