import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from xray_helpers.plots import (
    auc_intervals,
    balance,
    bars,
    confusions,
    distributions,
    gallery,
    heat_map,
    operating_curves,
    overlays,
    palette,
    reliability,
    scatter,
    share_intervals,
    show,
    style,
    training_curves,
)
from xray_helpers.plots.style import COLOURS, GROUPS, OTHERS

WIDTHS = pd.DataFrame(
    [
        {"group": "few", "name": "accuracy", "n": 16, "value": 0.875, "low": 0.64, "high": 0.965},
        {"group": "many", "name": "accuracy", "n": 1600, "value": 0.88, "low": 0.86, "high": 0.90},
    ]
)
IMAGES = pd.DataFrame(
    {
        "label": ["PNEUMONIA"] * 30 + ["NORMAL"] * 20,
        "width": [*range(100, 130), *range(300, 320)],
        "height": [*range(50, 80), *range(200, 220)],
        "images": [1, 2, 3, 3, 4] * 10,
    }
)
AUCS = pd.DataFrame(
    [
        {"features": "width", "condition": "as delivered", "auc": 0.913, "low": 0.88, "high": 0.94, "n": 300},
        {"features": "width", "condition": "decoded", "auc": 0.5, "low": 0.5, "high": 0.5, "n": 300},
        {"features": "border", "condition": "as delivered", "auc": 0.97, "low": 0.95, "high": 0.99, "n": 300},
    ]
)
SHARE = "{share:.1%} of {images:,} images"
LEAKS = pd.DataFrame({"name": ["by image", "by patient"], "share": [0.4, 0.0], "images": [1568, 1569]})
COUNTS = pd.DataFrame({"viral": [10, 5], "normal": [20, 5], "bacterial": [70, 10]}, index=["train", "val"])
HISTORY = pd.DataFrame(
    {"epoch": [0, 1, 2], "train_loss": [0.5, 0.3, 0.1], "val_loss": [0.4, 0.2, 0.3], "val_auc": [0.9, 0.98, 0.97]}
)
DRAWN = {
    "share_intervals": (
        lambda ax=None: share_intervals(WIDTHS, "How wide?", ax=ax),
        ["few, 16 images, accuracy: 87.5% (64.0% to 96.5%)"],
    ),
    "distributions": (
        lambda ax=None: distributions(IMAGES, "width", "label", "width in pixels", "Widths", ax=ax),
        ["NORMAL median 309.5, n = 20", "PNEUMONIA median 114.5"],
    ),
    "scatter": (
        lambda ax=None: scatter(IMAGES, "width", "height", "label", "Sizes", ax=ax),
        ["NORMAL median width 310, height 210"],
    ),
    "auc_intervals": (
        lambda ax=None: auc_intervals(AUCS, "Shortcuts", ax=ax),
        ["width, as delivered: 0.913 (0.880 to 0.940)", "border"],
    ),
    "bars": (
        lambda ax=None: bars(LEAKS, "share", SHARE, "Who is known?", "share of images", ax=ax),
        ["by image 40.0% of 1,568 images"],
    ),
    "balance": (lambda ax=None: balance(COUNTS, "Causes", ax=ax), ["train: normal 20.0%", "viral 25.0%"]),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", DRAWN)
def test_every_plot_takes_an_ax_and_has_title_label_and_a_text_with_its_numbers(name):
    draw, words = DRAWN[name]
    figure, ax = plt.subplots()
    assert draw(ax) is ax
    assert ax.get_title(loc="left") or ax.get_title()
    assert ax.get_xlabel()
    for word in words:
        assert word in ax.get_label()
    assert draw().figure is not figure


def test_the_intervals_drawn_are_those_given():
    ax = share_intervals(WIDTHS, "How wide?")
    segments = ax.collections[0].get_segments()
    assert [tuple(segment[:, 0]) for segment in segments] == [(0.64, 0.965), (0.86, 0.90)]
    assert list(ax.lines[0].get_xdata()) == [0.875, 0.88]
    assert [text.get_text() for text in ax.texts] == ["87.5% (64.0% to 96.5%)", "88.0% (86.0% to 90.0%)"]
    assert ax.get_legend() is None


def test_several_classes_have_a_legend_in_the_series_order():
    table = pd.concat([WIDTHS.assign(name=name) for name in ("viral", "normal", "bacterial")])
    legend = share_intervals(table, "Shares").get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["normal", "bacterial", "viral"]


def test_more_classes_than_markers_can_be_drawn():
    table = pd.concat([WIDTHS.assign(name=name) for name in "abcdefgh"])
    assert len(share_intervals(table, "Shares").get_legend().get_texts()) == 8


def test_a_distribution_has_area_one_and_whole_numbers_get_bins_of_their_own():
    ax = distributions(IMAGES, "images", "label", "images", "Images per patient")
    for patch in ax.patches:
        data = patch.get_data()
        assert (data.values * np.diff(data.edges)).sum() == pytest.approx(1)
        assert data.edges.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert ax.patches[0].get_data().values.tolist() == pytest.approx([0.2, 0.2, 0.4, 0.2])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["NORMAL (n = 20)", "PNEUMONIA (n = 30)"]


def test_a_constant_number_can_be_drawn():
    distributions(IMAGES.assign(width=224), "width", "label", "width", "Widths")
    distributions(IMAGES.assign(width=1.5), "width", "label", "width", "Widths")


def test_the_points_drawn_are_the_images():
    ax = scatter(IMAGES, "width", "height", "label", "Sizes")
    points = np.concatenate([collection.get_offsets() for collection in ax.collections])
    assert sorted(map(tuple, points)) == sorted(map(tuple, IMAGES[["width", "height"]].to_numpy(float)))


def test_the_aucs_drawn_are_those_given_with_chance_marked():
    ax = auc_intervals(AUCS, "Shortcuts")
    drawn = [list(line.get_xdata()) for line in ax.lines]
    assert drawn == [[0.913, 0.97], [0.5], [0.5, 0.5]]
    assert [text.get_text() for text in ax.texts] == [
        "0.913 (0.880 to 0.940)",
        "0.970 (0.950 to 0.990)",
        "0.500 (0.500 to 0.500)",
    ]
    assert "n = 300" in ax.get_xlabel()
    assert [tuple(segment[:, 0]) for segment in ax.collections[0].get_segments()] == [(0.88, 0.94), (0.95, 0.99)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["as delivered", "decoded"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["width", "border"]


def test_the_shares_drawn_are_the_shares_given_with_their_n():
    ax = bars(LEAKS, "share", SHARE, "Who is known?", "share of images")
    assert [bar.get_width() for bar in ax.patches] == [0.4, 0.0]
    assert [text.get_text() for text in ax.texts] == ["40.0% of 1,568 images", "0.0% of 1,569 images"]


def test_balance_stacks_to_one_in_the_series_order_and_colours():
    ax = balance(COUNTS, "Causes")
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["normal", "bacterial", "viral"]
    for row, name in zip(ax.containers, names, strict=True):
        assert [bar.get_width() for bar in row] == pytest.approx(COUNTS[name] / COUNTS.sum(axis=1))
        assert row[0].get_facecolor()[:3] == pytest.approx(to_rgb(COLOURS[name]))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["train\n100 images", "val\n20 images"]


def luminance(name):
    return float(np.dot(to_rgb(COLOURS[name]), (0.299, 0.587, 0.114)))


@pytest.mark.parametrize("names", [("NORMAL", "PNEUMONIA"), ("normal", "bacterial", "viral")])
def test_classes_are_told_apart_in_grayscale(names):
    levels = sorted(luminance(name) for name in names)
    assert min(np.diff(levels)) > 0.12


def test_each_class_has_its_colour_whatever_stands_beside_it():
    names = ["viral", "NORMAL", "test", "bacterial", "NORMAL", "train"]
    assert list(palette(names).items()) == [
        *((name, COLOURS[name]) for name in ("NORMAL", "bacterial", "viral")),
        *((name, GROUPS[name]) for name in ("train", "test")),
    ]


def test_classes_of_other_datasets_get_colours_of_their_own_by_alphabet():
    assert palette("ecadb") == dict(zip("abcde", OTHERS, strict=True))
    assert len(set(OTHERS)) == 5


def test_groups_do_not_have_the_colours_of_classes():
    assert not set(GROUPS.values()) & set(COLOURS.values())


def test_a_gallery_shows_each_image_with_its_title():
    images = [np.full((20, 30), value, dtype=np.uint8) for value in (10, 20, 30, 40, 50)]
    figure = gallery(images, [f"image {i}" for i in range(5)], "A gallery", columns=3)
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.images[0].get_array()[0, 0] for ax in shown] == [10, 20, 30, 40, 50]
    assert [ax.get_title() or ax.get_title(loc="left") for ax in shown] == [f"image {i}" for i in range(5)]
    assert figure.get_suptitle() == "A gallery"


@pytest.mark.parametrize("alt", ["", "A text of my own."])
def test_show_displays_with_alt_text_and_closes(monkeypatch, alt):
    shown = []
    monkeypatch.setattr(style, "display", lambda figure, metadata: shown.append(metadata["image/png"]["alt"]))
    show(balance(COUNTS, "Causes"), "phantoms", alt)
    assert shown == [f"{alt or balance(COUNTS, 'Causes').get_label()} Data: phantoms."]
    plt.close("all")
    figure = gallery([np.zeros((4, 4), np.uint8)], ["one"], "Many")
    show(figure, "phantoms")
    assert figure.get_supxlabel() == "Data: phantoms"
    assert shown[1] == "one. Data: phantoms."
    assert not plt.get_fignums()


def test_training_curves_mark_the_epoch_with_the_lowest_validation_loss():
    figure = training_curves(HISTORY, "Fine-tuning")
    for axes, value in zip(figure.axes, (0.2, 0.98), strict=True):
        star = next(line for line in axes.lines if line.get_marker() == "*")
        assert (list(star.get_xdata()), list(star.get_ydata())) == ([1], [value])
        assert axes.get_xlabel() == "epoch (0: the head alone)"
        assert "epoch 2: " in axes.get_label()


TRUTH, PROBABILITY = np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.6, 0.4, 0.8, 0.9])
POINTS = {
    name: {
        "threshold": threshold, "sensitivity": {"value": sensitivity}, "specificity": {"value": specificity},
        "ppv": {"value": ppv}, "confusion": confusion,
    }
    for name, threshold, sensitivity, specificity, ppv, confusion in (
        ("0.5", 0.5, 2 / 3, 2 / 3, 2 / 3, {"tn": 2, "fp": 1, "fn": 1, "tp": 2}),
        ("never", 1.0, 0.0, 1.0, None, {"tn": 3, "fp": 0, "fn": 3, "tp": 0}),
    )
}  # fmt: skip


def test_operating_points_lie_on_their_curves():
    figure = operating_curves(TRUTH, PROBABILITY, POINTS, "PNEUMONIA", "Curves")
    roc, precision = figure.axes
    marks = [(*line.get_xdata(), *line.get_ydata()) for line in roc.lines[2:]]
    assert marks == [pytest.approx((1 / 3, 2 / 3)), (0.0, 0.0)]
    assert (1 / 3, 2 / 3) in [pytest.approx(point) for point in zip(*roc.lines[0].get_data(), strict=True)]
    assert len(precision.lines) == 3  # nothing called PNEUMONIA has no precision
    assert "0.5 sensitivity 0.667, specificity 0.667" in roc.get_label()
    assert "PNEUMONIA" in roc.get_xlabel()
    assert "PNEUMONIA" in precision.get_xlabel()
    assert roc.get_ylabel() == precision.get_xlabel()
    legends = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in figure.axes]
    assert legends[0] == ["Chance level (AUC = 0.5)", "0.5: p ≥ 0.5", "never: p ≥ 1"]
    assert legends[1] == ["Chance level (AP = 0.50)", "0.5: p ≥ 0.5"]


def test_confusions_have_the_truth_in_rows():
    figure = confusions(POINTS, ("NORMAL", "PNEUMONIA"), "Answers")
    assert [text.get_text() for text in figure.axes[0].texts] == ["2\n66.7%", "1\n33.3%", "1\n33.3%", "2\n66.7%"]
    assert figure.axes[0].get_ylabel() == "truth"
    assert "PNEUMONIA called NORMAL / PNEUMONIA: 3 / 0" in figure.axes[1].get_label()


def test_more_classes_have_counts_and_no_thresholds():
    points = {"argmax": {"confusion": [[5, 0, 0], [1, 2, 1], [0, 0, 4]]}}
    matrix, roc = confusions(points, ("a", "b", "c"), "Answers"), operating_curves(TRUTH, PROBABILITY, points, "b", "b")
    assert [text.get_text() for text in matrix.axes[0].texts][3:6] == ["1\n25.0%", "2\n50.0%", "1\n25.0%"]
    assert matrix.axes[0].get_title() == "The likeliest class"
    assert "b called a / b / c: 1 / 2 / 1" in matrix.axes[0].get_label()
    assert len(roc.axes[0].lines) == 2  # the curve and chance


def test_a_heat_map_shows_each_number_and_says_it():
    ax = heat_map(pd.DataFrame({1: [0.9, 0.8], 2: [0.7, 0.5]}, ["blur", "noise"]), "Corrupted", "level")
    assert [text.get_text() for text in ax.texts] == ["0.900", "0.700", "0.800", "0.500"]
    assert ax.get_label() == "Corrupted: blur 0.900, 0.700; noise 0.800, 0.500."
    assert ax.get_xlabel() == "level"


def test_reliability_sets_frequency_against_probability():
    figure = reliability(TRUTH, {"plain": np.array([0.1, 0.1, 0.1, 0.1, 0.95, 0.95])}, "Right?")
    top, bottom = figure.axes
    assert top.lines[1].get_xdata() == pytest.approx([0.1, 0.95])
    assert top.lines[1].get_ydata() == pytest.approx([0.25, 1.0])
    assert bottom.patches[0].get_data().values.tolist() == [0, 4, 0, 0, 0, 0, 0, 0, 0, 2]
    assert "plain: 0.10 → 0.25, 0.95 → 1.00" in top.get_label()
    assert (top.get_ylabel(), bottom.get_ylabel()) == ("share of the class in truth", "images")
    assert "probability" in bottom.get_xlabel()


def test_overlays_mark_the_strongest_cell_and_share_one_scale():
    images, maps = np.zeros((3, 40, 40), np.uint8), np.zeros((3, 4, 4))
    maps[0, 1, 2], maps[1] = 3.0, -6.0
    outlines = np.zeros((3, 40, 40), bool)
    outlines[:, 10:20, 20:30] = True
    figure = overlays(images, maps, ["one", "two\np = 0.1", "three"], "Maps", "log-odds", outlines)
    first, *_, colours = figure.axes
    assert [picture.get_clim() for picture in (ax.images[1] for ax in figure.axes[:3])] == [(-6.0, 6.0)] * 3
    assert (*first.lines[0].get_xdata(), *first.lines[0].get_ydata()) == (25.0, 15.0)
    assert colours.get_ylabel() == "log-odds"
    assert first.get_label() == "one, most for it at 62% from the left and 38% from the top."
    assert "two, p = 0.1" in figure.axes[1].get_label()
