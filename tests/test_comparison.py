import numpy as np
import pandas as pd
import pytest

from xray_helpers.comparison import compare, rank_correlation, subgroups

TABLE = pd.DataFrame(
    {
        "truth": [0, 0, 1, 1, 1, 0],
        "probability": [0.1, 0.6, 0.9, 0.4, 0.8, 0.2],
        "patient": list("aabbcd"),
    }
)


def test_groups_of_a_case_worked_out_by_hand():
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
    assert bacterial["auc"] == {"value": None, "low": None, "high": None}
    assert bacterial["specificity"]["value"] is None
    assert bacterial["sensitivity"] == {"value": 0.5, "low": None, "high": None}  # one patient: no interval
    assert normal["specificity"]["value"] == pytest.approx(2 / 3)


def test_another_threshold_decides_otherwise():
    found = subgroups(TABLE, {"all": [1] * 6}, threshold=0.3, draws=50)
    assert found["sensitivity"][0]["value"] == 1.0


def test_a_probability_that_is_missing_is_no_answer():
    with pytest.raises(ValueError, match="no number from 0 to 1"):
        subgroups(TABLE.assign(probability=[0.1, np.nan, 0.9, 0.4, 0.8, 0.2]), {"all": [1] * 6}, draws=10)


class TestCompare:
    def runs(self, better):
        rng = np.random.default_rng(0)
        truth = rng.integers(0, 2, 400)
        one = (rng.normal(0, 1, 400) + 1.5 * truth - 0.75) / 6 + 0.5
        return truth, one.clip(0.01, 0.99), (one + better * (truth - 0.5)).clip(0.01, 0.99), np.arange(400) // 2

    def test_a_run_equals_itself(self):
        truth, one, _, patients = self.runs(0)
        found = compare(truth, one, one, patients, draws=100)
        assert (found[["difference", "low", "high"]] == 0).all(axis=None)

    def test_a_better_run_is_told_from_noise_although_single_intervals_overlap(self):
        truth, one, two, patients = self.runs(0.05)
        found = compare(truth, one, two, patients).set_index("figure")
        assert found.index.tolist() == ["auc", "accuracy", "brier"]
        assert found.loc["auc", "low"] > 0
        assert found.loc["brier", "high"] < 0
        assert found.loc["auc", "difference"] == pytest.approx(found.loc["auc", "second"] - found.loc["auc", "first"])

    def test_other_images_are_refused(self):
        truth, one, two, patients = self.runs(0)
        with pytest.raises(ValueError, match="expected one length"):
            compare(truth, one, two[:-1], patients)


def test_rank_correlation_equals_spearman_s():
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    y = np.exp(x + rng.normal(size=300))
    found = rank_correlation(x, y, range(300), draws=500)
    assert found["value"] == pytest.approx(pd.Series(x).corr(pd.Series(y), method="spearman"))
    assert found["low"] < found["value"] < found["high"]
    assert rank_correlation(x, np.ones(300), range(300))["value"] is None
