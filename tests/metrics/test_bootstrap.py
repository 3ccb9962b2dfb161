import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from xray_helpers.metrics.bootstrap import (
    Bootstrap,
    format_interval,
    format_table,
    share_interval,
    weighted_auc,
    weighted_precision,
)

NOTHING = {"value": None, "low": None, "high": None}
ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 4)), min_size=4, max_size=40)


@settings(max_examples=60)
@given(ROWS)
def test_weighted_figures_equal_those_of_scikit_learn_on_repeated_images(rows):
    truth, score, weight = (np.array(column) for column in zip(*rows, strict=True))
    repeated = np.repeat(np.arange(len(rows)), weight)
    weights = weight[None].astype(float)
    area, precision = (
        figure(truth.astype(bool), score.astype(float), weights)[0] for figure in (weighted_auc, weighted_precision)
    )
    if len(set(truth[repeated])) < 2:
        assert np.isnan(area)
    else:
        assert area == pytest.approx(roc_auc_score(truth[repeated], score[repeated]))
        assert precision == pytest.approx(average_precision_score(truth[repeated], score[repeated]))


def test_each_row_of_weights_has_its_own_figure():
    truth, score = np.array([False, True, False, True]), np.array([0.1, 0.2, 0.3, 0.4])
    weights = np.array([[1.0, 1, 1, 1], [2, 1, 0, 1], [1, 0, 1, 0]])
    assert weighted_auc(truth, score, weights) == pytest.approx([3 / 4, 1, np.nan], nan_ok=True)
    assert weighted_precision(truth, score, weights) == pytest.approx([(1 + 2 / 3) / 2, 1, np.nan], nan_ok=True)


def clustered(rng, patients, images):
    """Images of a patient share their label and most of their score; the true AUC is that of two normals."""
    patient = np.repeat(np.arange(patients), images)
    sick = rng.random(patients) < 0.5
    score = (1.5 * sick + rng.normal(0, 1, patients))[patient] + rng.normal(0, 0.5, len(patient))
    return sick[patient], score, patient


def test_intervals_over_images_would_be_too_narrow():
    sick, score, patient = clustered(np.random.default_rng(1), 60, 8)
    wide, narrow = (
        Bootstrap(units).interval(lambda weights: weighted_auc(sick, score, weights)) for units in (patient, range(480))
    )
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"])
    assert wide["value"] == narrow["value"] == pytest.approx(roc_auc_score(sick, score))


def test_a_better_model_differs_although_single_intervals_overlap():
    """The difference is drawn in pairs: the same patients for both models."""
    rng, patients = np.random.default_rng(0), np.arange(400) // 2
    truth = rng.random(400) < 0.5
    first = rng.normal(0, 1, 400) + 1.5 * truth
    models, bootstrap = {"first": first, "second": first + 0.3 * truth}, Bootstrap(patients)
    alone = {name: bootstrap.interval(partial(weighted_auc, truth, score)) for name, score in models.items()}
    assert alone["second"]["low"] < alone["first"]["high"]
    difference = bootstrap.interval(
        lambda weights: weighted_auc(truth, models["second"], weights) - weighted_auc(truth, first, weights)
    )
    assert difference["low"] > 0
    assert difference["value"] == pytest.approx(alone["second"]["value"] - alone["first"]["value"])
    same = bootstrap.interval(lambda weights: weighted_auc(truth, first, weights) - weighted_auc(truth, first, weights))
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_draws_pick_as_many_patients_as_there_are_with_all_their_images():
    seen = []

    def statistic(weights):
        seen.append(weights)
        return weights.sum(axis=1)

    bootstrap = Bootstrap(list("abac"), draws=450, seed=5)
    assert bootstrap.patients == 3
    assert bootstrap.interval(statistic)["value"] == 4
    weights = np.concatenate([part for part in seen if len(part) > 1])
    assert weights.shape == (450, 4)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert np.var(weights[:, 1]) == pytest.approx(2 / 3, abs=0.1)  # of a multinomial: 3 · 1/3 · 2/3


def test_draws_are_held_a_few_at_a_time_and_a_slow_statistic_can_ask_for_the_first_only():
    sizes, bootstrap = [], Bootstrap(range(4), draws=1000)

    def statistic(weights):
        sizes.append(len(weights))
        return weights[:, 0]

    bootstrap.interval(statistic)
    assert sum(sizes) == 1000 + 1  # and once the images themselves
    assert max(sizes) <= 250
    sizes.clear()
    few = bootstrap.interval(statistic, 30)
    assert sum(sizes) == 30 + 1
    assert few == Bootstrap(range(4), draws=30).interval(statistic)  # and these are the first


def test_the_interval_spans_the_middle_95_of_100_draws():
    values = np.random.default_rng(0).permutation(1000.0 + np.arange(200))
    found = Bootstrap(range(9), draws=200).interval(lambda weights: values[: len(weights)])
    assert found["value"] == values[0]
    assert found["low"] == pytest.approx(1000 + 0.025 * 200, abs=1)
    assert found["high"] == pytest.approx(1000 + 0.975 * 200, abs=1)


def test_draws_without_an_answer_are_left_out():
    def statistic(weights):
        return np.where(weights[:, 0] > 0, 5.0, np.nan)

    assert Bootstrap(range(4), 100).interval(statistic) == {"value": 5.0, "low": 5.0, "high": 5.0}
    assert Bootstrap(range(4), 100).interval(lambda weights: np.where(weights[:, 0] == 1, np.nan, 5.0)) == NOTHING
    never = Bootstrap(range(4), 100).interval(
        lambda weights: np.full(len(weights), 2.0 if len(weights) == 1 else np.nan)
    )
    assert never == {"value": 2.0, "low": None, "high": None}


def test_a_ratio_is_of_sums_and_not_a_mean_of_ratios():
    found = Bootstrap(list("aab"), 200).ratio([1, 0, 1], [1, 1, 1])
    assert found["value"] == pytest.approx(2 / 3)
    assert (found["low"], found["high"]) == (0.5, 1.0)
    assert Bootstrap(list("ab"), 50).ratio([3, 1], [1, 1])["value"] == 2.0


def test_without_a_denominator_a_ratio_is_the_mean():
    bootstrap = Bootstrap(list("aabc"), 200)
    assert bootstrap.ratio([1, 0, 4, 5]) == bootstrap.ratio([1, 0, 4, 5], [1, 1, 1, 1])
    assert bootstrap.ratio([1, 0, 4, 5])["value"] == 2.5


def test_what_does_not_exist_is_none_and_can_be_written_as_json():
    assert Bootstrap(list("ab")).ratio([0, 0], [0, 0]) == NOTHING
    assert Bootstrap(["one"] * 3).ratio([1, 0, 1]) == {"value": pytest.approx(2 / 3), "low": None, "high": None}
    infinite = Bootstrap(list("ab")).interval(
        lambda weights: np.where(len(weights) == 1, 2.0, np.inf) + 0 * weights[:, 0]
    )
    assert infinite == {"value": 2.0, "low": None, "high": None}
    json.dumps([NOTHING, infinite], allow_nan=False)


def test_a_seed_repeats_the_draws():
    values = np.arange(30.0)
    first, again, other = (Bootstrap(range(30), seed=seed).ratio(values) for seed in (3, 3, 4))
    assert first == again != other
    assert Bootstrap(range(30)).ratio(values) == Bootstrap(range(30), draws=2000, seed=0).ratio(values)


@pytest.mark.parametrize("patients", [[], pd.Series(["a", None]), [float("nan"), 1.0]])
def test_images_without_a_patient_are_refused(patients):
    with pytest.raises(ValueError, match="a patient for each image"):
        Bootstrap(patients)


def test_an_interval_reads_well():
    assert format_interval({"value": 0.9571, "low": 0.941, "high": 0.97}) == "0.957 (0.941 to 0.970)"
    assert format_interval({"value": 0.0312}) == "0.031"
    assert format_interval({"value": 2.5, "low": 1.5, "high": None}, 1) == "2.5 (1.5 to –)"
    assert format_interval({"value": 0.0, "low": None, "high": 0.25}, 2) == "0.00 (– to 0.25)"
    assert format_interval(NOTHING) == "–"


def test_a_table_is_shown_with_intervals_as_text_and_names_in_words():
    interval = {"value": 0.9571, "low": 0.941, "high": 0.97}
    found = format_table(pd.DataFrame({"n": [9], "auc": [interval], "calibration_slope": [1.23456]}, ["one"]))
    assert found.loc["one"].to_dict() == {"n": 9, "AUC": "0.957 (0.941 to 0.970)", "calibration slope": "1.235"}


def test_a_share_has_wilson_s_interval():
    """Newcombe 1998, table 1: 81 of 263 and 15 of 148."""
    assert share_interval(81, 263) == pytest.approx({"value": 0.3080, "low": 0.2553, "high": 0.3662}, abs=1e-4)
    assert share_interval(15, 148) == pytest.approx({"value": 0.1014, "low": 0.0624, "high": 0.1605}, abs=1e-4)
    assert share_interval(0, 20)["low"] == 0.0


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_an_impossible_share_is_refused(hits, n):
    with pytest.raises(ValueError):
        share_interval(hits, n)


def test_a_share_of_all_or_none_has_wilson_s_interval_over_patients():
    """Of 20 patients none: 0 to 0.161 (Newcombe 1998)."""
    none = Bootstrap(np.repeat(range(20), 3)).share([0] * 60)
    assert (none["value"], none["low"], round(none["high"], 3)) == (0.0, 0.0, 0.161)
    every = Bootstrap(range(30)).share([1] * 20 + [0] * 10, [1] * 20 + [0] * 10)
    assert (every["value"], round(every["low"], 3), every["high"]) == (1.0, 0.839, 1.0)
    some = Bootstrap(range(30))
    assert some.share([1, 0] * 15) == some.ratio([1, 0] * 15)
    assert some.share([1, 0] * 15, [1, 1] * 15) == some.ratio([1, 0] * 15)
    assert Bootstrap(list("aaa")).share([1, 1, 1])["low"] is None
    assert Bootstrap(list("aab")).share([0, 0, 0], [0, 0, 0]) == NOTHING


def test_the_interval_of_a_mean_is_wider_when_images_share_patients():
    values = np.repeat([0, 1] * 10, 5)
    single = Bootstrap(range(100)).ratio(values)
    shared = Bootstrap(np.repeat(range(20), 5)).ratio(values)
    assert single["value"] == shared["value"] == 0.5
    assert shared["high"] - shared["low"] > 1.8 * (single["high"] - single["low"])
    assert single["low"] == pytest.approx(0.4, abs=0.02)


def test_the_interval_contains_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    expected = {"auc": norm.cdf(1.5 / np.sqrt(2 * 1.25)), "sensitivity": norm.cdf(0.7 / np.sqrt(1.25))}
    contained = dict.fromkeys(expected, 0)
    for seed in range(400):
        sick, score, patient = clustered(rng, 120, 2)
        bootstrap = Bootstrap(patient, 400, seed)
        found = {
            "auc": bootstrap.interval(lambda weights: weighted_auc(sick, score, weights)),  # noqa: B023
            "sensitivity": bootstrap.ratio(sick & (score >= 0.8), sick),
        }
        for name, truth in expected.items():
            contained[name] += found[name]["low"] <= truth <= found[name]["high"]
    assert 0.92 <= contained["auc"] / 400 <= 0.98, contained
    assert 0.92 <= contained["sensitivity"] / 400 <= 0.98, contained
