import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from xray_helpers.bootstrap import Bootstrap
from xray_helpers.metrics import auc_interval, decisions, evaluate, scores, share_interval


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
        ([0, 1, 2], [0.1, 0.2, 0.3], "no number of a class"),
        ([0, 1, float("nan")], [0.1, 0.2, 0.3], "no number of a class"),
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
        assert found["brier"]["value"] == pytest.approx((0.01 + 0.36 + 0.01 + 0.36 + 0.04 + 0.04) / 6)
        # From the highest score down: a hit, a hit, a miss, a hit.
        assert found["average_precision"]["value"] == pytest.approx((1 + 1 + 3 / 4) / 3)

    def test_each_threshold_has_its_own_answers(self):
        found = evaluate(self.TRUTH, self.PROBABILITY, self.PATIENTS, {"0.5": 0.5, "low": 0.15}, draws=50)["at"]
        assert found["0.5"]["confusion"] == {"tn": 2, "fp": 1, "fn": 1, "tp": 2}
        assert found["low"]["confusion"] == {"tn": 1, "fp": 2, "fn": 0, "tp": 3}
        values = {key: found["low"][key]["value"] for key in ("sensitivity", "specificity", "ppv", "npv", "f1")}
        assert values == pytest.approx({"sensitivity": 1, "specificity": 1 / 3, "ppv": 3 / 5, "npv": 1, "f1": 3 / 4})

    def test_more_classes(self):
        table = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.4, 0.5, 0.1]])
        found = evaluate([0, 1, 2, 0], table, list("abcd"), draws=50)
        assert found["at"]["argmax"]["accuracy"]["value"] == 0.75
        assert found["prevalence"] == [0.5, 0.25, 0.25]
        assert found["loss"] == pytest.approx(-np.log([0.8, 0.5, 0.7, 0.4]).mean())
        assert found["at"]["argmax"]["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
        areas = [roc_auc_score(np.array([0, 1, 2, 0]) == c, table[:, c]) for c in range(3)]
        precisions = [average_precision_score(np.array([0, 1, 2, 0]) == c, table[:, c]) for c in range(3)]
        assert found["auc"]["value"] == pytest.approx(np.mean(areas))
        assert found["average_precision"]["value"] == pytest.approx(np.mean(precisions))
        assert [found["classes"][name]["auc"]["value"] for name in "012"] == pytest.approx(areas)
        assert found["classes"]["0"]["sensitivity"]["value"] == 0.5
        assert "brier" not in found

    def test_more_classes_go_by_their_names(self):
        rng = np.random.default_rng(0)
        table = rng.dirichlet(np.ones(3), 30)
        found = evaluate(np.arange(30) % 3, table, range(30), classes=("normal", "bacterial", "viral"), draws=50)
        assert list(found["classes"]) == ["normal", "bacterial", "viral"]

    def test_no_probabilities_and_one_class_are_refused(self):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            scores(self.TRUTH, self.PROBABILITY * 5)
        with pytest.raises(ValueError, match="expected 0 to 1"):
            scores(self.TRUTH, self.PROBABILITY * np.nan)
        with pytest.raises(ValueError, match="every class"):
            evaluate(np.ones(6, dtype=int), self.PROBABILITY, self.PATIENTS)
        assert np.isnan(scores(np.ones(6, dtype=int), self.PROBABILITY)["auc"])


def test_decisions_equal_scikit_learn_s_and_what_cannot_be_divided_is_none():
    rng = np.random.default_rng(0)
    truth, answer = rng.random(200) < 0.6, rng.random(200) < 0.5
    found = decisions(truth, answer, Bootstrap(range(200), 200))
    assert found["f1"]["value"] == pytest.approx(f1_score(truth, answer))
    assert found["f1"]["low"] < found["f1"]["value"] < found["f1"]["high"]
    never = decisions(truth, np.zeros(200, dtype=bool), Bootstrap(range(200), 50))
    assert never["ppv"] == {"value": None, "low": None, "high": None}
    assert never["sensitivity"]["value"] == 0.0
    assert never["confusion"]["tp"] == 0


def test_one_image_is_an_error_and_one_patient_has_no_interval():
    with pytest.raises(ValueError, match="images of every class"):
        evaluate([1], [0.7], ["a"])
    with pytest.raises(ValueError, match="a patient for each"):
        evaluate([0, 1], [0.2, 0.7], ["a", None])
    found = evaluate([0, 1, 1], [0.2, 0.7, 0.4], list("aaa"), draws=50)
    assert found["auc"] == {"value": 1.0, "low": None, "high": None}
    assert found["calibration_slope"]["value"] is None  # told apart without an error: infinite
