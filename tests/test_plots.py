import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from xray_helpers import plots
from xray_helpers.plots import COLOURS, balance, colour, gallery, interval_widths, shared_images, show

WIDTHS = pd.DataFrame(
    {"name": ["few", "many"], "n": [16, 1600], "accuracy": [0.875, 0.88], "low": [0.64, 0.86], "high": [0.965, 0.90]}
)
LEAKS = pd.DataFrame({"name": ["by image", "by patient"], "share": [0.4, 0.0], "images": [1568, 1569]})
COUNTS = pd.DataFrame({"viral": [10, 5], "normal": [20, 5], "bacterial": [70, 10]}, index=["train", "val"])


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


DRAWN = {
    "interval_widths": (lambda ax=None: interval_widths(WIDTHS, "How wide?", ax=ax), ["few", "64.0% to 96.5%"]),
    "shared_images": (lambda ax=None: shared_images(LEAKS, "Who is known?", ax=ax), ["by image 40.0%", "1568 images"]),
    "balance": (lambda ax=None: balance(COUNTS, "Causes", ax=ax), ["train: normal 20.0%", "viral 25.0%"]),
}


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


def test_the_widths_drawn_are_the_widths_given():
    ax = interval_widths(WIDTHS, "How wide?")
    segments = ax.collections[0].get_segments()
    assert [tuple(segment[:, 0]) for segment in segments] == [(0.64, 0.965), (0.86, 0.90)]
    assert list(ax.lines[0].get_xdata()) == [0.875, 0.88]


def test_the_shares_drawn_are_the_shares_given_with_their_n():
    ax = shared_images(LEAKS, "Who is known?")
    assert [bar.get_width() for bar in ax.patches] == [0.4, 0.0]
    assert [text.get_text() for text in ax.texts] == ["40.0% of 1,568 images", "0.0% of 1,569 images"]


def test_balance_stacks_to_one_in_the_series_order_and_colours():
    ax = balance(COUNTS, "Causes")
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["normal", "bacterial", "viral"]
    for bars, name in zip(ax.containers, names, strict=True):
        assert [bar.get_width() for bar in bars] == pytest.approx(COUNTS[name] / COUNTS.sum(axis=1))
        assert bars[0].get_facecolor()[:3] == pytest.approx(to_rgb(COLOURS[name]))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["train\n100 images", "val\n20 images"]


def luminance(name):
    return float(np.dot(to_rgb(colour(name)), (0.299, 0.587, 0.114)))


@pytest.mark.parametrize("names", [("NORMAL", "PNEUMONIA"), ("normal", "bacterial", "viral")])
def test_classes_are_told_apart_in_grayscale(names):
    levels = sorted(luminance(name) for name in names)
    assert min(np.diff(levels)) > 0.12


def test_classes_of_other_datasets_get_colours_of_their_own():
    assert len({colour(name, position) for position, name in enumerate("abcde")}) == 5


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
    monkeypatch.setattr(plots, "display", lambda figure, metadata: shown.append(metadata["image/png"]["alt"]))
    show(balance(COUNTS, "Causes"), "phantoms", alt)
    assert shown == [f"{alt or balance(COUNTS, 'Causes').get_label()} Data: phantoms."]
    plt.close("all")
    figure = gallery([np.zeros((4, 4), np.uint8)], ["one"], "Many")
    show(figure, "phantoms")
    assert figure.get_supxlabel() == "Data: phantoms"
    assert shown[1] == "one. Data: phantoms."
    assert not plt.get_fignums()
