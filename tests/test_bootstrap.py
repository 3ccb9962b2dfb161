import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from xray_helpers.bootstrap import Bootstrap, text, weighted_auc, weighted_precision

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 4)), min_size=4, max_size=40)


@settings(max_examples=60)
@given(ROWS)
def test_weighted_figures_equal_scikit_learn_s_of_the_repeated_images(rows):
    truth, score, weight = (np.array(column) for column in zip(*rows, strict=True))
    repeated = np.repeat(np.arange(len(rows)), weight)
    weights = weight[None].astype(float)
    area, precision = (
        f(truth.astype(bool), score.astype(float), weights)[0] for f in (weighted_auc, weighted_precision)
    )
    if len(set(truth[repeated])) < 2:
        assert np.isnan(area)
    else:
        assert area == pytest.approx(roc_auc_score(truth[repeated], score[repeated]))
        assert precision == pytest.approx(average_precision_score(truth[repeated], score[repeated]))


def clustered(rng, patients, images):
    """Images of a patient share their label and most of their score; the true AUC is that of two normals."""
    owner = np.repeat(np.arange(patients), images)
    sick = rng.random(patients) < 0.5
    score = (1.5 * sick + rng.normal(0, 1, patients))[owner] + rng.normal(0, 0.5, len(owner))
    return sick[owner], score, owner


def test_the_interval_holds_the_truth_about_95_times_in_100():
    rng, expected = (
        np.random.default_rng(0),
        {"auc": norm.cdf(1.5 / np.sqrt(2 * 1.25)), "sensitivity": norm.cdf(0.7 / np.sqrt(1.25))},
    )
    held = dict.fromkeys(expected, 0)
    for seed in range(400):
        sick, score, owner = clustered(rng, 120, 2)
        bootstrap = Bootstrap(owner, 400, seed)
        found = {
            "auc": bootstrap.interval(roc_auc_score(sick, score), lambda weights: weighted_auc(sick, score, weights)),  # noqa: B023
            "sensitivity": bootstrap.ratio(sick & (score >= 0.8), sick),
        }
        for name, truth in expected.items():
            held[name] += found[name]["low"] <= truth <= found[name]["high"]
    assert 0.92 <= held["auc"] / 400 <= 0.98, held
    assert 0.92 <= held["sensitivity"] / 400 <= 0.98, held


def test_intervals_over_images_would_be_too_narrow():
    rng = np.random.default_rng(1)
    sick, score, owner = clustered(rng, 60, 8)
    wide, narrow = (
        Bootstrap(who).interval(0.5, lambda weights: weighted_auc(sick, score, weights)) for who in (owner, range(480))
    )
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])


def test_a_ratio_is_of_sums_and_not_a_mean_of_ratios():
    found = Bootstrap(list("aab"), 200).ratio([1, 0, 1], [1, 1, 1])
    assert found["value"] == pytest.approx(2 / 3)
    assert (found["low"], found["high"]) == (0.5, 1.0)


def test_what_does_not_exist_is_none_and_can_be_written_as_json():
    nothing = {"value": None, "low": None, "high": None}
    assert Bootstrap(list("ab")).ratio([0, 0], [0, 0]) == nothing
    assert Bootstrap(["one"] * 3).ratio([1, 0, 1]) == {"value": pytest.approx(2 / 3), "low": None, "high": None}
    infinite = Bootstrap(list("ab")).interval(2.0, lambda weights: np.full(len(weights), np.inf))
    assert infinite == {"value": 2.0, "low": None, "high": None}
    json.dumps([nothing, infinite], allow_nan=False)


def test_a_seed_repeats_the_draws():
    values = np.arange(30.0)
    first, again, other = (Bootstrap(range(30), seed=seed).ratio(values) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("patients", [[], pd.Series(["a", None]), [float("nan"), 1.0]])
def test_images_without_a_patient_are_refused(patients):
    with pytest.raises(ValueError, match="a patient for each of them"):
        Bootstrap(patients)


def test_an_interval_reads_well():
    assert text({"value": 0.9571, "low": 0.941, "high": 0.97}) == "0.957 (0.941 to 0.970)"
    assert text({"value": 0.0312}) == "0.031"
    assert text({"value": 2.5, "low": 1.5, "high": None}, 1) == "2.5 (1.5 to –)"
    assert text({"value": None, "low": None, "high": None}) == "–"


def test_a_share_of_all_or_none_has_wilson_s_interval_over_patients():
    """Of 20 patients none: 0 to 0.161 (Newcombe 1998)."""
    none = Bootstrap(np.repeat(range(20), 3)).share([0] * 60)
    assert (none["value"], none["low"], round(none["high"], 3)) == (0.0, 0.0, 0.161)
    every = Bootstrap(range(30)).share([1] * 20 + [0] * 10, [1] * 20 + [0] * 10)
    assert (every["value"], round(every["low"], 3), every["high"]) == (1.0, 0.839, 1.0)
    some = Bootstrap(range(30))
    assert some.share([1, 0] * 15) == some.ratio([1, 0] * 15)
    assert Bootstrap(list("aaa")).share([1, 1, 1])["low"] is None


def test_the_interval_of_a_mean_is_wider_when_images_share_patients():
    values = np.repeat([0, 1] * 10, 5)
    alone = Bootstrap(range(100)).ratio(values)
    shared = Bootstrap(np.repeat(range(20), 5)).ratio(values)
    assert alone["value"] == shared["value"] == 0.5
    assert shared["high"] - shared["low"] > 1.8 * (alone["high"] - alone["low"])
    assert alone["low"] == pytest.approx(0.4, abs=0.02)
