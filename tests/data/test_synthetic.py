import hashlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from xray_helpers.data import synthetic
from xray_helpers.data.catalog import build_catalog
from xray_helpers.data.synthetic import CAUSES, Phantom, draw, draw_anatomy, write_dataset, write_twins


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).digest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("cause", CAUSES)
def test_a_phantom_has_the_size_asked_for_and_its_truth(cause):
    phantom = draw(cause, np.random.default_rng(0), height=120, width=150)
    assert phantom.image.shape == phantom.mask.shape == phantom.lungs.shape == (120, 150)
    assert phantom.image.dtype == np.uint8
    assert phantom.cause == cause
    assert 0.1 < phantom.lungs.mean() < 0.5
    assert phantom.mask.any() == (cause != "normal")


def test_a_phantom_looks_like_a_chest():
    """Dark lungs on both sides, bright spine between them, bright abdomen below, dark air beside the neck."""
    rng = np.random.default_rng(1)
    images = np.stack([draw("normal", rng, 200, 250).image.astype(float) for _ in range(20)]).mean(axis=0)
    right_lung, left_lung = images[70:90, 60:80].mean(), images[60:80, 175:195].mean()
    spine, abdomen, air = images[70:90, 120:130].mean(), images[185:, 60:80].mean(), images[2:10, :20].mean()
    assert spine > right_lung + 40
    assert spine > left_lung + 40
    assert abdomen > right_lung + 30
    assert air < right_lung


def same_chest(cause, seed):
    return draw(cause, np.random.default_rng(seed), 160, 200, draw_anatomy(np.random.default_rng(9)))


def test_a_bacterial_lesion_is_focal_and_a_viral_one_diffuse_in_both_lungs():
    for seed in range(10):
        bacterial, viral = same_chest("bacterial", seed), same_chest("viral", seed)
        assert bacterial.mask.sum() < 0.4 * bacterial.lungs.sum()
        assert viral.mask.sum() > 0.9 * viral.lungs.sum()
        assert not (bacterial.mask & ~bacterial.lungs).any()
        columns = np.flatnonzero(bacterial.mask.any(axis=0))
        assert np.ptp(columns) < 90  # on one side
        assert viral.mask[:, :100].any()
        assert viral.mask[:, 100:].any()


def test_a_lesion_brightens_the_image_where_its_mask_is_and_strength_scales_it():
    gains = []
    for strength in (0.0, 1.0, 2.0):
        phantom = draw("bacterial", np.random.default_rng(5), 160, 200, strength=strength)
        gains.append(phantom.image[phantom.mask].mean())
    assert gains[0] + 5 < gains[1] < gains[2] - 5


def test_a_marker_changes_its_corner_only():
    plain, left = draw("normal", np.random.default_rng(2)), draw("normal", np.random.default_rng(2), marker="left")
    changed = np.argwhere(plain.image != left.image)
    assert len(changed) > 20
    assert changed[:, 0].max() < 60
    assert changed[:, 1].max() < 60
    right = draw("normal", np.random.default_rng(2), marker="right")
    assert np.argwhere(plain.image != right.image)[:, 1].min() > 260


def test_views_of_one_patient_are_more_alike_than_those_of_two():
    def edges(patient, view):
        phantom = draw("normal", np.random.default_rng(view), 96, 120, draw_anatomy(np.random.default_rng(patient)))
        return phantom.lungs.astype(float).ravel()

    same = np.mean([np.abs(edges(p, 2 * p) - edges(p, 2 * p + 1)).mean() for p in range(60)])
    other = np.mean([np.abs(edges(p, 2 * p) - edges(p + 99, 2 * p + 1)).mean() for p in range(60)])
    assert same < 0.8 * other


def test_an_unknown_cause_is_refused():
    with pytest.raises(ValueError, match="expected one of normal, bacterial, viral"):
        draw("fungal", np.random.default_rng(0))


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tiny, tmp_path):
    write_dataset(tmp_path / "again", seed=3, patients=60)
    write_dataset(tmp_path / "other", seed=4, patients=60)
    assert files_of(tmp_path / "again") == files_of(tiny)
    assert files_of(tmp_path / "other") != files_of(tiny)


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    folder = tmp_path_factory.mktemp("default")
    return folder, write_dataset(folder)


def test_the_default_sample_has_about_600_images_of_300_patients(default):
    folder, truth = default
    assert 550 <= len(truth) <= 650
    assert 290 <= truth["patient"].nunique() <= 310
    counts = truth.groupby([truth["path"].str.split("/").str[0], "label"]).size()
    assert counts["val"].to_dict() == {"NORMAL": 8, "PNEUMONIA": 8}
    assert counts["test"].sum() == pytest.approx(0.107 * len(truth), rel=0.25)
    prevalence = counts.xs("PNEUMONIA", level="label") / counts.groupby(level=0).sum()
    assert prevalence["test"] < prevalence["train"] - 0.05
    read_back = pd.read_csv(folder / "truth.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(read_back, truth)


def test_mean_brightness_alone_does_not_tell_the_label(default):
    folder, truth = default
    mean = [np.asarray(Image.open(folder / "chest_xray" / path).convert("L")).mean() for path in truth["path"]]
    auc = roc_auc_score(truth["label"] == "PNEUMONIA", mean)
    assert max(auc, 1 - auc) < 0.75


def test_the_sample_has_the_quirks_of_the_real_archive(default):
    folder, truth = default
    root = folder / "chest_xray"
    names = truth["path"].str.split("/").str[-1]
    assert names.str.fullmatch(r"person\d+_virus_\d+_\d+\.jpeg").sum() == 1
    assert names.str.fullmatch(r"NORMAL2-IM-\d{4}-\d{4}-\d{4}\.jpeg").sum() == 1
    assert names.str.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.jpeg").sum() == 1
    labels = {}
    for row in truth.itertuples():
        with Image.open(root / row.path) as image:
            labels.setdefault(image.mode, set()).add(row.label)
    assert labels == {"L": {"NORMAL", "PNEUMONIA"}, "RGB": {"PNEUMONIA"}}
    text, cut = root / "train/NORMAL/IM-9002-0001.jpeg", root / "train/PNEUMONIA/person9001_bacteria_9001.jpeg"
    assert "not an image" in text.read_text()
    with pytest.raises(OSError, match="truncated"), Image.open(cut) as image:
        image.load()
    first = {path.relative_to(root) for path in root.glob("[tv]*/*/*")}
    second = {path.relative_to(root / "chest_xray") for path in (root / "chest_xray").glob("*/*/*")}
    assert first == second
    assert len(first) == len(truth) + 2
    assert (root / ".DS_Store").is_file()


def test_test_images_are_brighter(default):
    folder, truth = default
    root = folder / "chest_xray"
    normal = truth[truth["cause"] == "normal"]
    mean = normal["path"].map(lambda path: np.asarray(Image.open(root / path).convert("L")).mean())
    by_folder = mean.groupby(normal["path"].str.split("/").str[0]).mean()
    assert by_folder["test"] > by_folder["train"] + 10


def test_every_pneumonia_has_a_mask_of_its_size(tiny):
    truth = pd.read_csv(tiny / "truth.csv", keep_default_na=False)
    for row in truth[truth["label"] == "PNEUMONIA"].itertuples():
        mask = Image.open((tiny / "masks" / row.path).with_suffix(".png"))
        assert mask.size == (row.width, row.height)
        assert np.asarray(mask).any()
    assert not list((tiny / "masks").glob("*/NORMAL/*"))


def test_the_planted_shortcut_can_be_switched_off(default, tmp_path, monkeypatch):
    def aucs(truth):
        sick = truth["label"] == "PNEUMONIA"
        facts = (truth["height"], truth["width"] / truth["height"], (truth["marker"] != "").astype(int))
        return [roc_auc_score(sick, fact) for fact in facts]

    dot = np.zeros((1, 1), dtype=np.uint8)  # nobody looks at these drawings
    monkeypatch.setattr(synthetic, "draw", lambda cause, *_: Phantom(dot, dot > 0, dot > 0, cause))
    on, off = aucs(default[1]), aucs(write_dataset(tmp_path, shortcut=False))
    assert all(abs(auc - 0.5) > 0.3 for auc in on)
    assert all(abs(auc - 0.5) < 0.08 for auc in off)


def test_too_few_patients_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 60"):
        write_dataset(tmp_path, patients=59)
    assert "60 at least" in write_dataset.__doc__


def test_twins_differ_in_their_lesion_and_share_their_chest(tmp_path):
    write_twins(tmp_path, pairs=3)
    files = sorted(path.relative_to(tmp_path / "chest_xray").as_posix() for path in tmp_path.rglob("*.jpeg"))
    assert files == [f"train/NORMAL/IM-{n:04}-0001.jpeg" for n in range(3)] + [
        f"train/PNEUMONIA/person{n}_bacteria_{n}.jpeg" for n in range(3)
    ]
    pixels = [np.asarray(Image.open(tmp_path / "chest_xray" / file), dtype=float) for file in files]
    for number in range(3):
        lesion = draw("bacterial", np.random.default_rng((99, number))).mask
        well, ill = (image - np.median(image[~lesion]) for image in (pixels[number], pixels[3 + number]))
        assert (ill - well)[lesion].mean() > 15
        own = np.corrcoef(well[~lesion], ill[~lesion])[0, 1]
        other = np.corrcoef(well[~lesion], pixels[3 + (number + 1) % 3][~lesion])[0, 1]
        assert own > max(0.95, other)
    catalog = build_catalog(tmp_path / "chest_xray")
    assert catalog["cause"].value_counts().to_dict() == {"normal": 3, "bacterial": 3}
