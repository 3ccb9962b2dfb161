import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from xray_helpers.metrics import _weighted_auc, auc_interval, share_interval


def test_a_share_has_wilson_s_interval():
    """Newcombe 1998, table 1: 81 of 263 and 15 of 148."""
    assert share_interval(81, 263) == pytest.approx({"value": 0.3080, "low": 0.2553, "high": 0.3662}, abs=1e-4)
    assert share_interval(15, 148) == pytest.approx({"value": 0.1014, "low": 0.0624, "high": 0.1605}, abs=1e-4)
    assert share_interval(0, 20)["low"] == 0.0


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_an_impossible_share_is_refused(hits, n):
    with pytest.raises(ValueError):
        share_interval(hits, n)


def test_auc_of_a_case_computed_by_hand():
    """Of the 2 × 3 pairs four are in order and one is tied: 4.5 / 6."""
    truth, scores = [0, 0, 0, 1, 1], [0.1, 0.4, 0.8, 0.4, 0.9]
    assert auc_interval(truth, scores, list("abcde"), draws=10)["value"] == pytest.approx(4.5 / 6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 4)), min_size=4, max_size=40))
def test_weighted_auc_equals_that_of_the_repeated_images(rows):
    truth, score, weight = (np.array(column) for column in zip(*rows, strict=True))
    repeated = np.repeat(np.arange(len(rows)), weight)
    ours = _weighted_auc(truth.astype(bool), score.astype(float), weight[None].astype(float))[0]
    if len(set(truth[repeated])) < 2:
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(roc_auc_score(truth[repeated], score[repeated]))


def simulated(patients, images, seed):
    """Images of a patient share their label and most of their score."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), images)
    sick = rng.random(patients) < 0.5
    score = (sick + rng.normal(0, 1, patients))[owner] + rng.normal(0, 0.1, len(owner))
    return sick[owner].astype(int), score, owner


def test_the_interval_is_over_patients_and_not_over_images():
    truth, score, owner = simulated(60, 8, 0)
    over_patients = auc_interval(truth, score, owner)
    over_images = auc_interval(truth, score, np.arange(len(truth)))
    width = [found["high"] - found["low"] for found in (over_patients, over_images)]
    assert width[0] > 2 * width[1]
    assert over_patients["low"] < over_patients["value"] < over_patients["high"]


def test_a_seed_repeats_the_interval():
    truth, score, owner = simulated(40, 2, 1)
    assert auc_interval(truth, score, owner, seed=3) == auc_interval(truth, score, owner, seed=3)
    assert auc_interval(truth, score, owner, seed=3) != auc_interval(truth, score, owner, seed=4)


def test_more_classes_give_the_mean_of_one_versus_rest():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 90)
    scores = rng.random((90, 3)) + 0.5 * np.eye(3)[truth]
    expected = np.mean([roc_auc_score(truth == c, scores[:, c]) for c in range(3)])
    found = auc_interval(truth, scores, pd.Series(range(90)))
    assert found["value"] == pytest.approx(expected)
    assert found["low"] < expected < found["high"]


@pytest.mark.parametrize(
    ("truth", "scores", "message"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "every class"),
        ([0, 1, 1], [0.1, float("nan"), 0.3], "not a finite number"),
        ([0, 1], [0.1, 0.2, 0.3], "expected one length"),
    ],
)
def test_input_without_an_answer_is_an_error(truth, scores, message):
    with pytest.raises(ValueError, match=message):
        auc_interval(truth, scores, list("abc"))


def test_constant_scores_are_chance():
    assert auc_interval([0, 1, 1], [0.7] * 3, list("abc"), draws=50) == {"value": 0.5, "low": 0.5, "high": 0.5}
