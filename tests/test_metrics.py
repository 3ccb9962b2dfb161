import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from xray_helpers.metrics import _weighted_auc, auc_interval, evaluate, mean_interval, platt, scores, share_interval


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


class TestEvaluate:
    TRUTH = np.array([0, 0, 1, 1, 1, 0])
    PROBABILITY = np.array([0.1, 0.6, 0.9, 0.4, 0.8, 0.2])
    PATIENTS = tuple("aabbcd")

    def test_numbers_worked_out_by_hand(self):
        found = evaluate(self.TRUTH, self.PROBABILITY, self.PATIENTS, draws=50)
        assert found["n"] == 6
        assert found["patients"] == 4
        assert found["prevalence"] == 0.5
        assert found["at"]["0.5"]["threshold"] == 0.5
        assert found["at"]["0.5"]["accuracy"]["value"] == pytest.approx(4 / 6)
        assert found["auc"]["value"] == pytest.approx(8 / 9)
        assert found["loss"] == pytest.approx(-np.log([0.9, 0.4, 0.9, 0.4, 0.8, 0.8]).mean())

    def test_more_classes(self):
        table = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.4, 0.5, 0.1]])
        found = evaluate([0, 1, 2, 0], table, list("abcd"), draws=50)
        assert found["at"]["argmax"]["accuracy"]["value"] == 0.75
        assert found["prevalence"] == [0.5, 0.25, 0.25]
        assert found["loss"] == pytest.approx(-np.log([0.8, 0.5, 0.7, 0.4]).mean())

    def test_no_probabilities_and_one_class_are_refused(self):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            scores(self.TRUTH, self.PROBABILITY * 5)
        with pytest.raises(ValueError, match="expected 0 to 1"):
            scores(self.TRUTH, self.PROBABILITY * np.nan)
        with pytest.raises(ValueError, match="every class"):
            evaluate(np.ones(6, dtype=int), self.PROBABILITY, self.PATIENTS)
        assert np.isnan(scores(np.ones(6, dtype=int), self.PROBABILITY)["auc"])


def test_the_interval_of_a_mean_is_wider_when_images_share_patients():
    values = np.repeat([0, 1] * 10, 5)
    alone = mean_interval(values, range(100))
    shared = mean_interval(values, np.repeat(range(20), 5))
    assert alone["value"] == shared["value"] == 0.5
    assert shared["high"] - shared["low"] > 1.8 * (alone["high"] - alone["low"])
    assert alone["low"] == pytest.approx(0.4, abs=0.02)


class TestPlatt:
    def test_overconfident_logits_are_tamed(self):
        rng = np.random.default_rng(0)
        logits = rng.normal(0.5, 2, 5000)
        truth = rng.random(5000) < 1 / (1 + np.exp(-logits))
        found = platt(truth.astype(int), 4 * logits + 3)
        assert found["slope"] == pytest.approx(0.25, rel=0.1)
        assert found["intercept"] == pytest.approx(-0.75, abs=0.15)

    def test_classes_told_apart_without_error_stay_finite(self):
        found = platt([0] * 10 + [1] * 10, [-5.0] * 10 + [5.0] * 10)
        assert 0 < found["slope"] < 1
        assert 1 / (1 + np.exp(-5 * found["slope"] - found["intercept"])) == pytest.approx(11 / 12, abs=0.01)
