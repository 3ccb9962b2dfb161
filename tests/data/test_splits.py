import hashlib

import numpy as np
import pandas as pd
import pytest
from conftest import rows_to_catalog
from hypothesis import given, settings
from hypothesis import strategies as st

from xray_helpers.data.catalog import CAUSE_OF, fingerprint
from xray_helpers.data.patients import assign_patients
from xray_helpers.data.splits import (
    KEY,
    SPLITS,
    check_manifest,
    class_shares,
    folds,
    leak_report,
    make_splits,
    manifest_path,
    resplit,
    share_leaked,
    unmet,
)
from xray_helpers.files import LeakError
from xray_helpers.metrics import share_interval
from xray_helpers.settings import FRACTIONS, Settings


def case(counter, number, pixels="", folder="train"):
    label = "NORMAL" if CAUSE_OF[counter] == "normal" else "PNEUMONIA"
    return (label, CAUSE_OF[counter], f"{counter}-{number}", f"{label}-{number}", pixels, folder)


def cases(*rows):
    """A catalog of these cases; where the pixel hash is empty, the image gets a hash of its own."""
    return rows_to_catalog([(*row[:4], row[4] or f"hash{index}", row[5]) for index, row in enumerate(rows)])


def many(patients=200, seed=0):
    """A catalog like the real one: several images per patient, all four counters."""
    rng = np.random.default_rng(seed)
    rows = []
    for counter, share in (("bacteria", 0.4), ("virus", 0.2), ("IM", 0.2), ("NORMAL2", 0.2)):
        for number in range(1, int(share * patients)):
            folder = "test" if number <= 0.1 * share * patients else "train"
            rows += [case(counter, number, folder=folder)] * int(rng.integers(1, 5))
    return cases(*rows)


def varied(seed):
    """A catalog with large patients, rare causes, copies across patients and file names without a number."""
    rng = np.random.default_rng(seed)
    rows = [case("bacteria", 500 + size) for size in (24, 16, 15, 14) for _ in range(size)]
    for index, counter in enumerate(rng.choice(list(CAUSE_OF), 120, p=[0.5, 0.03, 0.4, 0.07])):
        pixels = f"copy{index % 4}" if rng.random() < 0.08 else ""
        rows.append(case(counter, int(rng.integers(1, 90)), pixels, rng.choice(["train", "val", "test"])))
    strangers = [("NORMAL", "normal", f"file-{name}", f"file-{name}", "", "train") for name in "abc"]
    return cases(*rows, *strangers)


def digest(manifest):
    """A hash of the paths and their splits."""
    lines = "\n".join(manifest["path"] + " " + manifest["split"])
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def test_the_same_seed_gives_the_same_split_on_every_machine():
    """A digest taken on one machine: what it calls test must be test on every machine and in every later version."""
    sides = "".join(resplit(many(60), seed=7)["split"].str[1])
    assert hashlib.sha256(sides.encode()).hexdigest()[:12] == "6167da5b66f6"


@pytest.mark.parametrize(
    ("strategy", "digests"),
    [
        ("pooled", ["5188d04dc8b9", "5c2386282525", "066830a6ccac"]),
        ("official", ["8ff87350ad4c", "47aeddde9084", "3e91aff7200c"]),
        ("blocked", ["42ad29513523", "a13de1f0acd2", "0115cb05d80d"]),
    ],
)
def test_every_strategy_gives_the_rows_of_version_0_1(strategy, digests):
    """Digests taken from version 0.1: a saved model's test images must never become training images."""
    assert [digest(resplit(varied(seed), strategy, seed)) for seed in range(len(digests))] == digests


CASES = st.tuples(
    st.sampled_from(list(CAUSE_OF)), st.integers(1, 12), st.sampled_from(["", "", "", "x", "y"]),
    st.sampled_from(["train", "train", "val", "test"]),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(CASES, min_size=1, max_size=60), st.sampled_from(sorted(FRACTIONS)), st.integers(0, 5))
def test_no_split_ever_shares_a_patient_or_an_image_or_loses_an_image(rows, strategy, seed):
    catalog = cases(*(case(*row) for row in rows))
    if strategy == "official" and not (catalog["folder"] == "test").any():
        with pytest.raises(ValueError, match="has none"):
            resplit(catalog, strategy, seed)
        return
    held = catalog[catalog["folder"] == "test"]
    leaks = catalog["patient_fine"].isin(held["patient_fine"]) | catalog["pixel_hash"].isin(held["pixel_hash"])
    if strategy == "official" and leaks.all():
        with pytest.raises(ValueError, match="no image to learn from outside the test folder"):
            resplit(catalog, strategy, seed)
        return
    manifest = resplit(catalog, strategy, seed)
    check_manifest(manifest, KEY[strategy])
    assert set(manifest["split"]) <= set(SPLITS)
    assert manifest["path"].is_unique
    if strategy == "official":
        assert set(manifest.loc[manifest["split"] == "test", "path"]) == set(held["path"])
        assert set(manifest["path"]) == set(held["path"]) | set(catalog.loc[~leaks, "path"])
        rest = manifest[manifest["split"] != "test"]
        if len(rest):
            check_manifest(rest, "coarse")
    else:
        assert set(manifest["path"]) == set(catalog["path"])
    shuffled = catalog.sample(frac=1, random_state=seed)
    pd.testing.assert_frame_equal(resplit(shuffled, strategy, seed), manifest)


def test_pooled_meets_the_shares_of_every_label_and_cause():
    catalog = many()
    for seed in range(5):
        manifest = resplit(catalog, "pooled", seed)
        for _, group in manifest.groupby("cause"):
            shares = group["split"].value_counts(normalize=True)
            assert shares.to_dict() == pytest.approx({"train": 0.70, "val": 0.15, "test": 0.15}, abs=0.03)


def test_pooled_gives_every_split_large_and_small_patients():
    """If train were filled with the largest patients first, only patients with one image would be left for test."""
    sizes = []
    for seed in range(20):
        manifest = resplit(many(seed=seed), "pooled", seed)
        images = manifest.groupby(["split", "patient_coarse"]).size()
        sizes.append(images.groupby("split").mean())
    mean = pd.concat(sizes, axis=1).mean(axis=1)
    assert mean.max() / mean.min() < 1.1


def test_other_shares_are_met():
    shares = resplit(many(), fractions=(6, 2, 2))["split"].value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx({"train": 0.6, "val": 0.2, "test": 0.2}, abs=0.02)


def test_the_seed_decides_and_is_0_by_default():
    catalog = many()
    default, zero, one, again = (resplit(catalog, **seed)["split"] for seed in ({}, {"seed": 0}, *[{"seed": 1}] * 2))
    assert default.equals(zero)
    assert one.equals(again)
    assert (zero != one).mean() > 0.2


def test_only_readable_images_are_split(catalog):
    manifest = resplit(catalog)
    assert set(manifest["path"]) == set(catalog.loc[catalog["error"] == "", "path"])
    assert list(manifest.columns) == [*catalog.columns, "split"]
    assert "split" not in catalog


def test_official_keeps_the_test_folder_and_divides_the_rest():
    manifest = resplit(many(), "official")
    assert ((manifest["folder"] == "test") == (manifest["split"] == "test")).all()
    rest = manifest[manifest["split"] != "test"]["split"].value_counts(normalize=True)
    assert rest["val"] == pytest.approx(0.10, abs=0.02)
    check_manifest(manifest, "fine")
    with pytest.raises(LeakError, match="coarse key"):
        check_manifest(manifest, "coarse")


def test_official_leaves_out_what_shares_a_patient_or_an_image_with_test(capsys):
    catalog = cases(
        case("bacteria", 1, folder="test"),
        case("bacteria", 1),
        case("IM", 1, "same", "test"),
        case("IM", 2, "same"),
        *(case(counter, number) for counter in CAUSE_OF for number in range(5, 15)),
    )
    manifest = resplit(catalog, "official")
    assert set(catalog["path"]) - set(manifest["path"]) == set(catalog["path"].iloc[[1, 3]])
    assert (
        "2 images of train and val share a patient or a duplicate with test and are left out" in capsys.readouterr().out
    )


def test_official_without_a_test_folder_says_what_is_missing():
    with pytest.raises(ValueError, match=r"chest_xray/test/<class>/ is missing.*'pooled' or 'blocked'"):
        resplit(cases(case("IM", 1), case("bacteria", 1)), "official")


@pytest.mark.parametrize("ends", [("test", "val"), ("val", "test")])
def test_blocked_holds_out_the_two_ends_of_each_counter(ends):
    manifest = resplit(many(), "blocked", ends=ends)
    parts = manifest["patient_fine"].str.split("-", expand=True)
    for _, rows in manifest.groupby(parts[0]):
        number = parts.loc[rows.index, 1].astype(int).groupby(rows["split"]).agg(["min", "max"])
        assert number.loc[ends[0], "max"] < number.loc["train", "min"]
        assert number.loc["train", "max"] < number.loc[ends[1], "min"]
    shares = manifest["split"].value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx({"train": 0.70, "val": 0.15, "test": 0.15}, abs=0.05)
    check_manifest(manifest, "fine")


def test_blocked_in_a_case_worked_out_by_hand():
    """Ten images of nine patients: a patient is held out if the middle of its images lies in the outer 15%."""
    catalog = cases(*(case("IM", number) for number in (1, 2, 3, 4, 5, 6, 7, 8, 9, 9)), case("virus", 1))
    split = resplit(catalog, "blocked").groupby("patient_fine")["split"].first()
    assert split["IM-1"] == "test"  # its middle is at 0.05
    assert split["IM-2"] == "train"  # at 0.15 exactly
    assert split["IM-8"] == "train"  # at 0.75
    assert split["IM-9"] == "val"  # two images, from 0.8 to 1: their middle is at 0.9
    single = resplit(cases(*(case("IM", number) for number in range(10)), case("virus", 1)), "blocked")
    assert single["split"].tolist() == ["test", *["train"] * 8, "val", "train"]


@pytest.mark.parametrize(("ends", "expected"), [(("test", "val"), (3, 1)), (("val", "test"), (1, 3))])
def test_blocked_gives_each_end_the_share_of_its_split(ends, expected):
    catalog = cases(*(case("IM", number) for number in range(10)), case("virus", 1))
    split = resplit(catalog, "blocked", fractions=(6, 1, 3), ends=ends)["split"].tolist()
    low, high = expected
    assert split == [ends[0]] * low + ["train"] * (10 - low - high) + [ends[1]] * high + ["train"]


def test_blocked_without_patient_numbers_says_what_to_use():
    catalog = rows_to_catalog([(name, "unknown", f"file-{name}", f"file-{name}", name, "train") for name in "ab"])
    with pytest.raises(ValueError, match=r"no name in a has one: use split='pooled'"):
        resplit(catalog, "blocked")


def test_blocked_keeps_images_without_a_number_in_train_and_says_so(catalog, capsys):
    manifest = resplit(catalog, "blocked")
    strangers = manifest[manifest["patient_fine"].str.startswith("file-")]
    assert set(strangers["split"]) == {"train"}
    assert "note: what has no patient number stays in train (1 of " in capsys.readouterr().out


def test_an_image_under_two_patients_joins_them():
    catalog = cases(*(case("IM", n, "same" if n in (1, 20) else "") for n in range(1, 21)), case("bacteria", 1))
    for strategy in ("pooled", "blocked"):
        manifest = resplit(catalog, strategy).set_index("patient_fine")
        assert manifest.loc["IM-1", "split"] == manifest.loc["IM-20", "split"]


@pytest.mark.parametrize(("middle", "expected"), [(10, "val"), (1, "test")])
def test_copies_in_two_blocks_go_to_the_block_that_is_held_out_first(middle, expected):
    """Test comes before val, and val before train."""
    catalog = cases(*(case("IM", n, "same" if n in (middle, 20) else "") for n in range(1, 21)), case("bacteria", 1))
    split = resplit(catalog, "blocked").set_index("patient_fine")["split"]
    assert split[[f"IM-{middle}", "IM-20"]].tolist() == [expected] * 2
    assert split["IM-19"] == "val"


@pytest.mark.parametrize(("patients", "expected"), [(1, {"train"}), (2, {"train", "val"}), (3, set(SPLITS))])
def test_a_class_of_few_patients_reaches_as_many_splits_as_it_can(patients, expected, capsys):
    catalog = cases(*(case("bacteria", n) for n in range(60)), *(case("IM", n) for n in range(patients)))
    manifest = resplit(catalog)
    assert set(manifest.loc[manifest["label"] == "NORMAL", "split"]) == expected
    notes = capsys.readouterr().out
    for split in set(SPLITS) - expected:
        assert f"{split} has no NORMAL image; the data has {patients} such patients" in notes


def test_one_patient_with_most_images_goes_to_train_and_the_shares_are_told(capsys):
    catalog = cases(
        *[case("bacteria", 1)] * 150, *(case("virus", n) for n in range(2, 30)), *(case("IM", n) for n in range(20))
    )
    manifest = resplit(catalog)
    assert set(manifest.loc[manifest["patient_fine"] == "bacteria-1", "split"]) == {"train"}
    notes = capsys.readouterr().out
    assert "train holds" in notes
    assert "the largest patient has 150 of 198" in notes


def test_shares_that_are_met_print_nothing(capsys):
    manifest = resplit(many())
    assert unmet(manifest, dict(zip(SPLITS, FRACTIONS["pooled"], strict=True))) == []
    assert capsys.readouterr().out == ""


def test_unmet_shares_in_a_case_worked_out_by_hand():
    catalog = cases(*(case("virus", n) for n in range(98)), case("IM", 1), case("IM", 1), case("bacteria", 1))
    manifest = catalog.assign(split=["train"] * 68 + ["val"] * 30 + ["train"] * 2 + ["test"])
    assert unmet(manifest, {"train": 0.70, "val": 0.30}) == ["val has no NORMAL image; the data has 1 such patients"]
    assert unmet(manifest, {"train": 0.60, "val": 0.40}) == [
        "train holds 70% of the images instead of 60%, since a patient's images stay together "
        "(the largest patient has 2 of 100)",
        "val holds 30% of the images instead of 40%, since a patient's images stay together "
        "(the largest patient has 2 of 100)",
        "val has no NORMAL image; the data has 1 such patients",
    ]
    causes = unmet(manifest.replace({"split": {"test": "val"}}), {"train": 0.693, "val": 0.307})
    assert causes == [
        "train has no bacterial image; the data has 1 such patients",
        "val has no NORMAL image; the data has 1 such patients",
    ]


def test_a_share_that_is_off_by_2_points_counts_as_met():
    catalog = cases(*(case("virus", n) for n in range(50)))
    manifest = catalog.assign(split=["train"] * 49 + ["val"])
    assert unmet(manifest, {"train": 0.98, "val": 0.0}) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "random"}, "expected one of pooled, official, blocked"),
        ({"fractions": (1, 1)}, "train/val/test"),
        ({"strategy": "official", "fractions": (7, 1, 2)}, "train/val"),
        ({"strategy": "blocked", "ends": ("test", "test")}, r"expected \('test', 'val'\)"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        resplit(many(60), **options)


def test_a_catalog_without_a_readable_image_is_refused():
    with pytest.raises(ValueError, match="no readable image"):
        resplit(cases(case("IM", 1)).assign(error="damaged"))


def test_the_leak_report_counts_patients_and_images():
    catalog = cases(
        case("bacteria", 1, "same"), case("bacteria", 1), case("bacteria", 1, "same"), case("virus", 1), case("IM", 1)
    ).assign(split=["train", "train", "val", "test", "test"])  # fmt: skip
    report = leak_report(catalog).set_index(["first", "second", "key"])
    assert report.loc[("train", "val", "fine")].tolist() == [1, 2, 1]
    assert report.loc[("train", "val", "pixels")].tolist() == [1, 1, 1]
    assert report.loc[("train", "test", "fine")].tolist() == [0, 0, 0]
    assert report.loc[("train", "test", "coarse")].tolist() == [1, 2, 1]
    assert report.loc[("val", "test", "coarse")].tolist() == [1, 1, 1]


@pytest.mark.parametrize("split", [["train"] * 3, ["a", "test", "val"]])
def test_the_leak_report_never_raises_and_lists_splits_of_other_names_last(split):
    report = leak_report(cases(case("IM", 1), case("IM", 1), case("IM", 2)).assign(split=split))
    pairs = [] if len(set(split)) == 1 else [("val", "test"), ("val", "a"), ("test", "a")]
    assert list(zip(report["first"], report["second"], strict=True)) == [pair for pair in pairs for _ in range(4)]
    assert report["key"].tolist() == ["fine", "coarse", "pixels", "near"] * len(pairs)


def test_the_share_that_leaks_in_a_case_worked_out_by_hand():
    catalog = cases(case("bacteria", 1), case("bacteria", 1), case("virus", 1), case("virus", 2), case("IM", 1))
    rows = catalog.assign(split=["train", "val", "val", "test", "test"])
    assert share_leaked(rows, "fine") == {"share": 0.25, "images": 4}
    assert share_leaked(rows, "coarse") == {"share": 0.5, "images": 4}
    assert share_leaked(rows.assign(split="train"), "fine") == {"share": 0.0, "images": 0}


def test_the_shares_of_classes_have_their_n_and_interval_in_the_order_of_the_splits():
    rows = cases(*[case("bacteria", number) for number in range(3)], case("IM", 1), case("IM", 2))
    table = class_shares(rows.assign(split=["test", "train", "train", "train", "train"]), "label")
    assert table[["group", "name", "n"]].to_numpy().tolist() == [
        ["train", "NORMAL", 4], ["train", "PNEUMONIA", 4], ["test", "NORMAL", 1], ["test", "PNEUMONIA", 1],
    ]  # fmt: skip
    assert table["value"].tolist() == [0.5, 0.5, 0.0, 1.0]
    assert table.loc[0, ["value", "low", "high"]].to_dict() == share_interval(2, 4)


def test_the_check_names_the_patient_or_image_that_leaks():
    shared = cases(case("IM", 4), case("IM", 5), case("IM", 5)).assign(split=["train", "train", "val"])
    for key in ("fine", "coarse"):
        message = f"1 patients under the {key} key are in more than one split, such as train/NORMAL/00001.jpeg .* IM-5"
        with pytest.raises(LeakError, match=message):
            check_manifest(shared, key)
    copies = cases(case("IM", 5, "same"), case("IM", 6, "same")).assign(split=["train", "val"])
    with pytest.raises(LeakError, match="1 duplicate images are in more than one split, such as .* of patient IM-5"):
        check_manifest(copies, "fine")
    check_manifest(cases(case("bacteria", 5), case("virus", 5)).assign(split=["train", "val"]), "fine")
    with pytest.raises(ValueError, match="expected fine or coarse"):
        check_manifest(copies, "pixels")


def test_a_manifest_is_saved_read_back_and_named_after_what_made_it(catalog, capsys):
    plain = Settings()
    made = make_splits(plain, catalog)
    path = manifest_path(plain, catalog)
    assert path.name == f"splits-pooled-70-15-15-seed0-{fingerprint(catalog)[:8]}.csv"
    assert f"data/processed/sample/{path.name}: saved, {len(made)} images" in capsys.readouterr().out
    pd.testing.assert_frame_equal(make_splits(plain, catalog), made)
    assert f"{path.name}: read, {len(made)} images" in capsys.readouterr().out
    fewer = catalog[catalog["folder"] != "val"]
    others = [Settings(split="blocked"), Settings(split_seed=1), Settings(fractions=(6, 2, 2))]
    paths = {manifest_path(settings, catalog) for settings in others} | {manifest_path(plain, fewer), path}
    assert len(paths) == 5


def test_patients_are_divided_again_once_the_images_change_and_that_is_told(catalog, capsys):
    earlier = manifest_path(Settings(), catalog)
    make_splits(Settings(), catalog)
    make_splits(Settings(split_seed=1), catalog)
    assert "have changed" not in capsys.readouterr().out
    make_splits(Settings(), catalog[catalog["folder"] != "val"])
    assert f"note: the images have changed since {earlier.name} was made" in capsys.readouterr().out
    assert earlier.is_file()


def test_a_manifest_edited_so_that_it_leaks_is_refused(catalog):
    plain = Settings()
    manifest = make_splits(plain, catalog)
    patient = manifest["patient_coarse"].value_counts().index[0]
    first = manifest.index[manifest["patient_coarse"] == patient][0]
    manifest.loc[first, "split"] = "test" if manifest.loc[first, "split"] != "test" else "train"
    manifest.to_csv(manifest_path(plain, catalog), index=False)
    with pytest.raises(LeakError, match="1 patients under the coarse key"):
        make_splits(plain, catalog)


def near(catalog, *groups):
    """The catalog with these groups of rows as near duplicates."""
    column = pd.Series("", catalog.index)
    for number, rows in enumerate(groups):
        column[list(rows)] = f"near{number}"
    return catalog.assign(near=column)


@pytest.mark.parametrize("strategy", ["pooled", "blocked", "official"])
def test_near_duplicates_of_two_patients_are_kept_on_one_side(strategy):
    rows = [case("IM", n, folder="test" if n < 4 else "train") for n in range(1, 21)]
    catalog = near(cases(*rows, case("bacteria", 1), case("bacteria", 2, folder="test")), (0, 19), (1, 10))
    manifest = resplit(catalog, strategy)
    check_manifest(manifest, KEY[strategy])
    found = manifest.set_index("patient_fine")["split"]
    if strategy == "official":
        assert {"IM-20", "IM-11"}.isdisjoint(found.index)  # their likes are in the test folder
    else:
        assert found["IM-1"] == found["IM-20"]
        assert found["IM-2"] == found["IM-11"]


def test_near_duplicates_of_one_patient_and_catalogs_without_the_column_give_the_rows_as_before():
    catalog = varied(0)
    expected = resplit(catalog)["split"].tolist()
    same = catalog.groupby("patient_fine").indices["bacteria-524"]
    assert resplit(near(catalog, same))["split"].tolist() == expected
    assert resplit(catalog.drop(columns="near"))["split"].tolist() == expected


@pytest.mark.fault("the same radiograph under two patients")
def test_near_duplicates_in_two_splits_are_counted_and_refused():
    shared = near(cases(case("IM", 4), case("IM", 5), case("IM", 6), case("IM", 7)), (1, 3))
    shared["split"] = ["train", "train", "val", "val"]
    report = leak_report(shared).set_index("key")
    assert report.loc["near", ["shared", "first_images", "second_images"]].tolist() == [1, 1, 1]
    assert report.drop(index="near")["shared"].sum() == 0
    with pytest.raises(LeakError, match="1 near duplicates are in more than one split, such as .* of patient IM-5"):
        check_manifest(shared, "fine")


def test_folds_keep_near_duplicates_together():
    catalog = near(many(40), (0, 60))
    for manifest in folds(catalog, 3):
        assert manifest.loc[manifest["near"] != "", "split"].nunique() == 1


def test_a_manifest_of_an_earlier_version_gains_the_columns_that_are_new(catalog):
    made = make_splits(Settings(), catalog)
    path = manifest_path(Settings(), catalog)
    made.drop(columns=["near", "low", "high", "note"]).to_csv(path, index=False)
    pd.testing.assert_frame_equal(make_splits(Settings(), catalog)[made.columns], made)
    leaking = made["split"].ne(made["split"][0]).idxmax()
    joined = catalog.assign(near=catalog["path"].isin(made["path"][[0, leaking]]).map({True: "x", False: ""}))
    made.drop(columns="near").to_csv(path, index=False)
    with pytest.raises(LeakError, match=rf"near duplicates .* Remove {path.name} to divide the patients anew"):
        make_splits(Settings(), joined)


def test_the_split_says_what_is_known_of_the_patients(catalog, capsys):
    known = catalog[~catalog["patient_fine"].str.startswith("file-")]
    make_splits(Settings(), known)
    assert "images; patients apart\n" in capsys.readouterr().out
    make_splits(Settings(), catalog)
    claim = f"patients apart; 1 of {len(catalog) - 2} images has no patient number and counts as a patient of its own"
    assert claim in capsys.readouterr().out


def test_how_patients_are_known_is_in_the_manifest_s_name_and_a_table_is_kept_beside_it(catalog, tmp_path):
    table = tmp_path / "who.csv"
    pd.DataFrame({"path": catalog["path"], "patient": range(len(catalog))}).to_csv(table, index=False)
    plain, by_table, pattern = Settings(), Settings(patients=str(table)), Settings(patients="(.)")
    known = assign_patients(catalog, by_table)
    names = [manifest_path(plain, catalog), manifest_path(by_table, known)]
    names.append(manifest_path(pattern, assign_patients(catalog, pattern)))
    assert len(set(names)) == 3
    make_splits(by_table, known)
    assert Settings(patients="who.csv").patients_table.read_bytes() == table.read_bytes()
    make_splits(Settings(patients="who.csv"), known)
