"""Labels, patients and paths stay text in every CSV file, whatever they look like."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from conftest import rows_to_catalog
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from PIL import Image

from xray_helpers.data.catalog import build_catalog, read_rows
from xray_helpers.data.synthetic import draw

LABELS = st.text(st.characters(exclude_categories=("C",), exclude_characters="/"), min_size=1) | st.sampled_from(
    [
        "0",
        "1",
        "01",
        "1e5",
        "-0",
        "NA",
        "nan",
        "None",
        "null",
        "true",
        "False",
        "inf",
        "1_000",
        " 1 ",
        "2020-01-01",
        '"',
    ]
)


@pytest.mark.fault("class folders named 0, 01, NA, true")
@settings(max_examples=60)
@given(st.lists(LABELS, min_size=2, max_size=4))
def test_any_name_of_a_class_is_read_back_as_it_was_written(labels):
    rows = [(label, label, label, label, "0123", "train") for label in labels]
    table = rows_to_catalog(rows).assign(split="train", patient=labels, finding=labels[0])
    with TemporaryDirectory() as folder:
        table.to_csv(Path(folder) / "table.csv", index=False)
        found = read_rows(Path(folder) / "table.csv")
    pd.testing.assert_frame_equal(found, table, check_dtype=False)
    assert found["label"].tolist() == labels
    assert found["pixel_hash"].tolist() == ["0123"] * len(labels)


@pytest.mark.parametrize("labels", [("0", "1"), ("01", "10"), ("NA", "true")])
def test_a_catalog_is_the_same_when_it_is_read_back(tmp_path, labels):
    for number, label in enumerate(labels):
        (tmp_path / "x" / "train" / label).mkdir(parents=True)
        picture = draw("normal", default_rng(number))[0]
        Image.fromarray(picture).convert("1").save(tmp_path / "x" / "train" / label / f"{number}.png")
    first = build_catalog(tmp_path / "x", tmp_path)
    again = build_catalog(tmp_path / "x", tmp_path)
    pd.testing.assert_frame_equal(first, again)
    assert again["label"].tolist() == sorted(labels)
    assert again["mode"].tolist() == ["1", "1"]
