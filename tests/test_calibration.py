import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from xray_helpers.bootstrap import Bootstrap
from xray_helpers.calibration import calibration, ece, operating_points, platt, weighted_intercept, weighted_slope


def simulated(n, seed=0, scale=2.0):
    """Logits that mean what they say."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.5, scale, n)
    return rng.random(n) < 1 / (1 + np.exp(-logits)), logits


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class TestPlatt:
    def test_overconfident_logits_are_tamed(self):
        truth, logits = simulated(5000)
        found = platt(truth.astype(int), 4 * logits + 3)
        assert found["slope"] == pytest.approx(0.25, rel=0.1)
        assert found["intercept"] == pytest.approx(-0.75, abs=0.15)

    def test_classes_told_apart_without_error_stay_finite(self):
        found = platt([0] * 10 + [1] * 10, [-5.0] * 10 + [5.0] * 10)
        assert 0 < found["slope"] < 1
        assert 1 / (1 + np.exp(-5 * found["slope"] - found["intercept"])) == pytest.approx(11 / 12, abs=0.01)


class TestOperatingPoints:
    def test_a_case_worked_out_by_hand(self):
        """Youden: from 0.4 upwards, all three positives and one of four negatives. 95% of three are all three."""
        truth, scores = [0, 0, 1, 0, 1, 0, 1], [0.1, 0.2, 0.4, 0.3, 0.6, 0.7, 0.9]
        found = operating_points(truth, scores)
        assert found == pytest.approx({"0.5": 0.5, "chosen": 0.35, "sensitivity 0.95": 0.35})
        assert operating_points(truth, scores, target=0.3)["sensitivity 0.3"] == pytest.approx(0.8)

    def test_every_image_may_be_needed(self):
        assert operating_points([1, 0, 0], [0.2, 0.4, 0.6])["sensitivity 0.95"] == pytest.approx(0.1)

    def test_scores_that_tell_nothing_leave_one_half(self):
        assert operating_points([0, 1, 1], [0.7, 0.7, 0.7])["chosen"] == 0.5

    def test_one_class_is_refused(self):
        with pytest.raises(ValueError, match="images of both classes"):
            operating_points([1, 1], [0.2, 0.4])


def test_ece_of_a_case_worked_out_by_hand():
    """Bins 0.2 to 0.3: two images, 0.25 against 0.5. 0.9 to 1: two images, 0.95 against 1."""
    assert ece([0, 1, 1, 1], [0.25, 0.25, 0.95, 0.95]) == pytest.approx((2 * 0.25 + 2 * 0.05) / 4)
    assert ece([1], [1.0]) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_slopes_of_weighted_images_equal_scikit_learn_s(seed):
    truth, logits = simulated(80, seed)
    weights = np.random.default_rng(seed).multinomial(80, np.full(80, 1 / 80), size=3).astype(float)
    found = weighted_slope(truth, 3 * logits, weights)
    for row, slope in zip(weights, found, strict=True):
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
            3 * logits[:, None], truth, sample_weight=row
        )
        assert slope == pytest.approx(model.coef_[0, 0], rel=1e-4)


def test_an_intercept_makes_the_mean_probability_right():
    truth, logits = simulated(400)
    weights = np.random.default_rng(0).multinomial(400, np.full(400, 1 / 400), size=5).astype(float)
    found = weighted_intercept(truth, 5 * logits - 30, weights)
    for row, intercept in zip(weights, found, strict=True):
        assert row @ sigmoid(5 * logits - 30 + intercept) == pytest.approx(row @ truth, abs=1e-4)


def test_a_model_that_means_what_it_says_has_slope_one_and_intercept_zero():
    truth, logits = simulated(3000, 3)
    found = calibration(truth, sigmoid(logits), Bootstrap(range(3000), 200))
    for name, right in (("calibration_slope", 1), ("calibration_intercept", 0)):
        assert found[name]["value"] == pytest.approx(right, abs=0.1)
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert found["brier"]["value"] == pytest.approx(np.mean((sigmoid(logits) - truth) ** 2))
    assert list(found["ece"]) == ["value"]


def test_overconfidence_and_a_shift_show():
    truth, logits = simulated(3000, 4)
    found = calibration(truth, sigmoid(2 * logits), Bootstrap(range(3000), 200))
    assert found["calibration_slope"]["value"] == pytest.approx(0.5, abs=0.05)
    shifted = calibration(truth, sigmoid(logits - 1), Bootstrap(range(3000), 200))
    assert shifted["calibration_intercept"]["value"] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("truth", "probability", "value"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], None),  # told apart: infinite
        ([0, 1, 0, 1], [0.5] * 4, None),  # constant
        ([1, 1, 1, 1], [0.1, 0.2, 0.8, 0.9], None),  # one class
    ],
)
def test_a_slope_that_does_not_exist_is_none(truth, probability, value):
    found = calibration(np.array(truth), np.array(probability), Bootstrap(range(4), 50))["calibration_slope"]
    assert found["value"] is value


def test_certain_and_wrong_is_finite():
    found = calibration(np.array([0, 1, 0, 1]), np.array([1.0, 0.0, 0.0, 1.0]), Bootstrap(range(4), 50))
    assert found["calibration_slope"]["value"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    ("truth", "probability", "message"),
    [
        ([0, 1, 1], [0.1, 0.2], "expected one of each"),
        ([0, 2], [0.1, 0.2], "neither 0 nor 1"),
        ([0, float("nan")], [0.1, 0.2], "neither 0 nor 1"),
        ([0, 1], [0.1, float("nan")], "no number from 0 to 1"),
        ([0, 1], [0.1, 1.2], "no number from 0 to 1"),
    ],
)
@pytest.mark.parametrize("judge", [operating_points, ece, lambda y, p: calibration(y, p, Bootstrap(range(len(y))))])
def test_input_that_means_nothing_is_an_error(judge, truth, probability, message):
    with pytest.raises(ValueError, match=message):
        judge(truth, probability)
