import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from xray_helpers.metrics import (
    Bootstrap,
    auc_interval,
    calibration,
    decisions,
    evaluate,
    scores,
    subgroups,
)

NOTHING = {"value": None, "low": None, "high": None}


def test_auc_of_a_case_computed_by_hand():
    """Of the 2 × 3 pairs four are in order and one is tied: 4.5 / 6."""
    truth, scores = [0, 0, 0, 1, 1], [0.1, 0.4, 0.8, 0.4, 0.9]
    assert auc_interval(truth, scores, list("abcde"), draws=10)["value"] == pytest.approx(4.5 / 6)


def simulated(patients, images, seed):
    """Images of a patient share their label and most of their score."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), images)
    sick = rng.random(patients) < 0.5
    score = (sick + rng.normal(0, 1, patients))[patient] + rng.normal(0, 0.1, len(patient))
    return sick[patient].astype(int), score, patient


def test_the_interval_is_over_patients_and_not_over_images():
    truth, score, patient = simulated(60, 8, 0)
    over_patients = auc_interval(truth, score, patient)
    over_images = auc_interval(truth, score, np.arange(len(truth)))
    width = [found["high"] - found["low"] for found in (over_patients, over_images)]
    assert width[0] > 2 * width[1]
    assert over_patients["low"] < over_patients["value"] < over_patients["high"]


def test_a_seed_repeats_the_interval():
    truth, score, patient = simulated(40, 2, 1)
    assert auc_interval(truth, score, patient) == auc_interval(truth, score, patient, draws=2000, seed=0)
    assert auc_interval(truth, score, patient, seed=3) == auc_interval(truth, score, patient, seed=3)
    assert auc_interval(truth, score, patient, seed=3) != auc_interval(truth, score, patient, seed=4)


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
        ([0, 1, 1], [0.1, float("nan"), 0.3], "scores contains NaN"),
        ([0, 1, 1], [0.1, float("inf"), 0.3], "scores contains infinity"),
        ([0, 1], [0.1, 0.2, 0.3], "inconsistent numbers of samples: .2, 3, 3"),
        ([0, 1, 2], [0.1, 0.2, 0.3], "class numbers .0, 1."),
        ([0, 1, float("nan")], [0.1, 0.2, 0.3], "class numbers .0, 1."),
        ([0, 1, 1], [[0.1, 0.2, 0.3]] * 3, "class numbers .0, 1, 2."),
        ([0, 0, 0], [[0.1], [0.2], [0.3]], "two at least"),
    ],
)
def test_input_without_an_answer_is_an_error(truth, scores, message):
    with pytest.raises(ValueError, match=message):
        auc_interval(truth, scores, list("abc"))


def test_each_image_needs_a_patient():
    with pytest.raises(ValueError, match="inconsistent numbers of samples: .2, 2, 3"):
        auc_interval([0, 1], [0.1, 0.2], list("abc"))


def test_constant_scores_are_chance():
    assert auc_interval([0, 1, 1], [0.7] * 3, list("abc"), draws=50) == {"value": 0.5, "low": 0.5, "high": 0.5}


class TestEvaluate:
    TRUTH = np.array([0, 0, 1, 1, 1, 0])
    PROBABILITY = np.array([0.1, 0.6, 0.9, 0.4, 0.8, 0.2])
    PATIENTS = tuple("aabbcd")

    def test_numbers_worked_out_by_hand(self):
        found = evaluate(self.TRUTH, self.PROBABILITY, self.PATIENTS, draws=50)
        assert found["n"] == 6
        assert found["intervals"] == "over patients"
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
        reached = evaluate(self.TRUTH, self.PROBABILITY, self.PATIENTS, {"0.4": 0.4}, draws=50)["at"]["0.4"]
        assert reached["confusion"] == {"tn": 2, "fp": 1, "fn": 0, "tp": 3}  # a score at the threshold is positive
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
        assert found["classes"]["0"]["confusion"] == {"tn": 2, "fp": 0, "fn": 1, "tp": 1}
        assert [found["classes"][name]["average_precision"]["value"] for name in "012"] == pytest.approx(precisions)
        assert "brier" not in found

    def test_more_classes_go_by_their_names(self):
        rng = np.random.default_rng(0)
        table = rng.dirichlet(np.ones(3), 30)
        found = evaluate(np.arange(30) % 3, table, range(30), classes=("normal", "bacterial", "viral"), draws=50)
        assert list(found["classes"]) == ["normal", "bacterial", "viral"]

    def test_two_classes_come_with_their_calibration(self):
        found = evaluate(self.TRUTH, self.PROBABILITY, self.PATIENTS, draws=50, seed=4)
        expected = calibration(self.TRUTH, self.PROBABILITY, Bootstrap(self.PATIENTS, 50, 4))
        assert {name: found[name] for name in expected} == expected
        by_default = evaluate(self.TRUTH, self.PROBABILITY, self.PATIENTS)
        assert by_default == evaluate(self.TRUTH, self.PROBABILITY, self.PATIENTS, {"0.5": 0.5}, (), 2000, 0)

    def test_without_patients_each_image_counts_as_independent(self):
        found = evaluate(self.TRUTH, self.PROBABILITY, draws=50)
        assert found.pop("intervals") == "over images"
        assert found.pop("patients") is None
        expected = evaluate(self.TRUTH, self.PROBABILITY, range(6), draws=50)
        assert (expected.pop("intervals"), expected.pop("patients")) == ("over patients", 6)
        assert found == expected
        over_patients = evaluate(self.TRUTH, self.PROBABILITY, self.PATIENTS, draws=50)
        assert found["at"]["0.5"]["accuracy"] != over_patients["at"]["0.5"]["accuracy"]

    def test_without_patients_more_classes_are_over_images_too(self):
        rng = np.random.default_rng(0)
        found = evaluate(np.arange(30) % 3, rng.dirichlet(np.ones(3), 30), draws=50)
        assert (found["intervals"], found["patients"]) == ("over images", None)

    def test_labels_may_be_true_and_false_or_floats(self):
        expected = evaluate(self.TRUTH, self.PROBABILITY, draws=50)
        assert evaluate(self.TRUTH == 1, self.PROBABILITY, draws=50) == expected
        assert evaluate(self.TRUTH.astype(float), self.PROBABILITY, draws=50) == expected

    def test_probabilities_outside_of_0_to_1_and_a_single_class_are_refused(self):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            scores(self.TRUTH, self.PROBABILITY * 5)
        with pytest.raises(ValueError, match="expected 0 to 1"):
            scores(self.TRUTH, self.PROBABILITY - 0.2)
        with pytest.raises(ValueError, match="expected 0 to 1"):
            scores(self.TRUTH, self.PROBABILITY * np.nan)
        with pytest.raises(ValueError, match="every class"):
            evaluate(np.ones(6, dtype=int), self.PROBABILITY, self.PATIENTS)
        with pytest.raises(ValueError, match="inconsistent numbers of samples: .6, 5"):
            evaluate(self.TRUTH, self.PROBABILITY[:-1])


class TestScores:
    def test_a_case_worked_out_by_hand(self):
        found = scores([0, 1, 1, 0], [0.1, 0.5, 0.2, 0.3])
        assert found["loss"] == pytest.approx(-np.log([0.9, 0.5, 0.2, 0.7]).mean())
        assert found["auc"] == pytest.approx(3 / 4)
        assert found["accuracy"] == 3 / 4  # 0.5 counts as class 1

    def test_certainty_costs_a_finite_loss(self):
        assert scores([0, 1], [0.0, 1.0])["loss"] == 0.0
        assert scores([0, 1], [1.0, 1.0])["loss"] == pytest.approx(-np.log(1e-12) / 2)

    def test_more_classes_take_the_most_likely_one(self):
        table = np.array([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.1, 0.2, 0.7]])
        found = scores([0, 1, 2], table)
        assert found["accuracy"] == pytest.approx(2 / 3)
        assert found["loss"] == pytest.approx(-np.log([0.5, 0.35, 0.7]).mean())
        assert found["auc"] == pytest.approx(1.0)

    def test_the_auc_of_a_single_class_is_not_a_number(self):
        found = scores(np.ones(3, dtype=int), [0.2, 0.6, 0.9])
        assert np.isnan(found["auc"])
        assert found["accuracy"] == pytest.approx(2 / 3)
        assert np.isnan(scores([0, 1, 1], np.full((3, 3), 1 / 3))["auc"])  # no image of the third class


def test_decisions_equal_scikit_learn_s_and_what_cannot_be_divided_is_none():
    rng = np.random.default_rng(0)
    truth, answer = rng.random(200) < 0.6, rng.random(200) < 0.5
    found = decisions(truth, answer, Bootstrap(range(200), 200))
    assert found["f1"]["value"] == pytest.approx(f1_score(truth, answer))
    assert found["f1"]["low"] < found["f1"]["value"] < found["f1"]["high"]
    never = decisions(truth, np.zeros(200, dtype=bool), Bootstrap(range(200), 50))
    assert never["ppv"] == NOTHING
    assert never["sensitivity"]["value"] == 0.0
    assert never["confusion"]["tp"] == 0


def test_one_image_is_an_error_and_one_patient_has_no_interval():
    with pytest.raises(ValueError, match="every class"):
        evaluate([1], [0.7], ["a"])
    with pytest.raises(ValueError, match="a patient for each image"):
        evaluate([0, 1], [0.2, 0.7], ["a", None])
    found = evaluate([0, 1, 1], [0.2, 0.7, 0.4], list("aaa"), draws=50)
    assert found["auc"] == {"value": 1.0, "low": None, "high": None}
    assert found["calibration_slope"]["value"] is None  # separated without error: infinite


TABLE = pd.DataFrame(
    {
        "truth": [0, 0, 1, 1, 1, 0],
        "probability": [0.1, 0.6, 0.9, 0.4, 0.8, 0.2],
        "patient": list("aabbcd"),
    }
)


def test_subgroups_of_a_case_worked_out_by_hand():
    found = subgroups(TABLE, {"size": ["big"] * 4 + ["small"] * 2, "cause": list("nnbbvn")}, draws=50)
    assert found[["by", "group", "n", "patients", "positive"]].to_numpy().tolist() == [
        ["size", "big", 4, 2, 2],
        ["size", "small", 2, 2, 1],
        ["cause", "b", 2, 1, 2],
        ["cause", "n", 3, 2, 0],
        ["cause", "v", 1, 1, 1],
    ]
    big, _, bacterial, normal, _ = found.to_dict("records")
    assert big["auc"]["value"] == pytest.approx(3 / 4)
    assert big["sensitivity"]["value"] == big["specificity"]["value"] == 0.5
    assert bacterial["auc"] == NOTHING
    assert bacterial["specificity"]["value"] is None
    assert bacterial["sensitivity"] == {"value": 0.5, "low": None, "high": None}  # one patient: no interval
    assert normal["specificity"]["value"] == pytest.approx(2 / 3)
    assert list(found) == ["by", "group", "n", "patients", "positive", "auc", "accuracy", "sensitivity", "specificity"]


def test_a_subgroup_is_judged_like_a_dataset_of_its_own():
    truth, score, patient = simulated(40, 2, 3)
    chance = 1 / (1 + np.exp(-score))
    table = pd.DataFrame({"truth": truth, "probability": chance, "patient": patient})
    found = subgroups(table, {"all": np.zeros(80)}).to_dict("records")[0]
    expected = evaluate(truth, chance, patient)
    assert found["auc"] == expected["auc"]
    for figure in ("accuracy", "sensitivity", "specificity"):
        assert found[figure] == expected["at"]["0.5"][figure]
    assert found == subgroups(table, {"all": np.zeros(80)}, 0.5, draws=2000, seed=0).to_dict("records")[0]
    assert found != subgroups(table, {"all": np.zeros(80)}, draws=50, seed=1).to_dict("records")[0]


def test_subgroups_of_no_grouping_are_no_rows():
    assert len(subgroups(TABLE, {})) == 0


def test_a_score_at_the_threshold_is_positive():
    assert subgroups(TABLE, {"all": [1] * 6}, threshold=0.4, draws=50)["sensitivity"][0]["value"] == 1.0
    assert subgroups(TABLE, {"all": [1] * 6}, draws=50)["accuracy"][0]["value"] == pytest.approx(4 / 6)


def test_another_threshold_gives_other_decisions():
    found = subgroups(TABLE, {"all": [1] * 6}, threshold=0.3, draws=50)
    assert found["sensitivity"][0]["value"] == 1.0


def test_a_missing_probability_is_refused():
    with pytest.raises(ValueError, match="not a number between 0 and 1"):
        subgroups(TABLE.assign(probability=[0.1, np.nan, 0.9, 0.4, 0.8, 0.2]), {"all": [1] * 6}, draws=10)
