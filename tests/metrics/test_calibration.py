import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit as sigmoid
from sklearn.linear_model import LogisticRegression

from xray_helpers.metrics.bootstrap import Bootstrap
from xray_helpers.metrics.calibration import calibration, check_binary, ece, operating_points, platt


def simulated(n, seed=0, scale=2.0):
    """Logits that mean what they say."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.5, scale, n)
    return rng.random(n) < 1 / (1 + np.exp(-logits)), logits


class TestPlatt:
    def test_overconfident_logits_are_tamed(self):
        truth, logits = simulated(5000)
        found = platt(truth.astype(int), 4 * logits + 3)
        assert found["slope"] == pytest.approx(0.25, rel=0.1)
        assert found["intercept"] == pytest.approx(-0.75, abs=0.15)

    def test_separated_classes_stay_finite(self):
        found = platt([0] * 10 + [1] * 10, [-5.0] * 10 + [5.0] * 10)
        assert 0 < found["slope"] < 1
        assert sigmoid(5 * found["slope"] + found["intercept"]) == pytest.approx(11 / 12, abs=1e-3)

    def test_smoothed_targets_depend_on_each_class_s_images(self):
        """Two logits: the line goes through both targets, 4 / 5 for the three ones and 1 / 3 for the one zero."""
        found = platt([1, 1, 1, 0], [2.0, 2.0, 2.0, -1.0])
        assert sigmoid(2 * found["slope"] + found["intercept"]) == pytest.approx(4 / 5, abs=1e-3)
        assert sigmoid(-1 * found["slope"] + found["intercept"]) == pytest.approx(1 / 3, abs=1e-3)


class TestOperatingPoints:
    def test_a_case_worked_out_by_hand(self):
        """Youden: from 0.4 upwards, all three positives and one of four negatives. 95% of three means all."""
        truth, scores = [0, 0, 1, 0, 1, 0, 1], [0.1, 0.2, 0.4, 0.3, 0.6, 0.7, 0.9]
        found = operating_points(truth, scores)
        assert found == pytest.approx({"0.5": 0.5, "chosen": 0.35, "sensitivity 0.95": 0.35})
        assert operating_points(truth, scores, target=0.3)["sensitivity 0.3"] == pytest.approx(0.8)

    def test_every_image_may_be_needed(self):
        assert operating_points([1, 0, 0], [0.2, 0.4, 0.6])["sensitivity 0.95"] == pytest.approx(0.1)

    def test_uninformative_scores_leave_one_half(self):
        assert operating_points([0, 1, 1], [0.7, 0.7, 0.7])["chosen"] == 0.5
        assert operating_points([0, 1, 1], [0.9, 0.7, 0.6])["chosen"] == 0.5

    def test_a_sensitivity_that_is_reached_exactly_is_enough(self):
        found = operating_points([1, 1, 0, 1, 1], [0.9, 0.8, 0.7, 0.6, 0.4], target=0.75)
        assert found["sensitivity 0.75"] == pytest.approx(0.5)

    def test_one_class_is_refused(self):
        with pytest.raises(ValueError, match="images of both classes"):
            operating_points([1, 1], [0.2, 0.4])


def test_ece_of_a_case_worked_out_by_hand():
    """Bins 0.2 to 0.3: two images, 0.25 against 0.5. 0.9 to 1: two images, 0.95 against 1."""
    assert ece([0, 1, 1, 1], [0.25, 0.25, 0.95, 0.95]) == pytest.approx((2 * 0.25 + 2 * 0.05) / 4)
    assert ece([1], [1.0]) == 0.0


def test_ece_bins_are_a_tenth_wide_by_default():
    """0.12 and 0.18 share a bin, so that their gaps cancel; 0.18 and 0.22 do not."""
    assert ece([0, 1] * 3 + [0, 0, 0, 0], [0.12, 0.18] * 3 + [0.15] * 4) == pytest.approx(abs(3 - 1.5) / 10)
    assert ece([1, 0], [0.85, 0.95]) == pytest.approx((0.15 + 0.95) / 2)
    assert ece([1, 0], [0.18, 0.22]) == pytest.approx((0.82 + 0.22) / 2)
    assert ece([1, 0], [0.18, 0.22], bins=2) == pytest.approx((0.82 - 0.22) / 2)


def point(truth, probability, weights=None):
    """Slope and intercept of images repeated as often as their weights say."""
    index = np.repeat(np.arange(len(truth)), np.ones(len(truth), dtype=int) if weights is None else weights)
    found = calibration(np.asarray(truth)[index], np.asarray(probability)[index], Bootstrap(range(len(index)), 1))
    return found["calibration_slope"]["value"], found["calibration_intercept"]["value"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shift", [0, -8])
def test_slope_and_intercept_maximize_the_likelihood(seed, shift):
    truth, logits = simulated(80, seed)
    logits = 3 * logits + shift
    weights = np.random.default_rng(seed).multinomial(80, np.full(80, 1 / 80))

    def loss(line):
        values = line[0] + line[1] * (logits - shift)
        return weights @ np.logaddexp(0, np.where(truth, -values, values))

    slope, intercept = point(truth, sigmoid(logits), weights)
    best = minimize(loss, [0, 0], tol=1e-10)
    assert slope == pytest.approx(best.x[1], rel=1e-4)
    alone = minimize(lambda line: loss([line[0] + shift, 1]), [-shift], tol=1e-10)
    assert intercept == pytest.approx(alone.x[0], rel=1e-4)


def test_the_intercept_makes_the_mean_probability_right():
    truth, logits = simulated(400)
    _, intercept = point(truth, sigmoid(5 * logits - 10))
    assert sigmoid(5 * logits - 10 + intercept).mean() == pytest.approx(truth.mean(), abs=1e-6)


def test_the_intercept_of_certain_and_wrong_answers_is_finite():
    assert point([1, 0, 0, 0], [0.0] * 4)[1] == pytest.approx(np.log(1 / 3) - np.log(1e-12), abs=1e-3)
    assert point([1, 1, 1, 0], [1.0] * 4)[1] == pytest.approx(np.log(3) + np.log(1e-12), abs=1e-3)


def test_intervals_are_those_of_fits_to_the_first_200_draws():
    truth, logits = simulated(60, 5)
    bootstrap, slopes = Bootstrap(np.arange(60) // 2, 300), []
    for counts in bootstrap.counts[:200]:
        index = np.repeat(np.arange(60), np.repeat(counts.astype(int), 2))
        model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(logits[index, None], truth[index])
        slopes.append(model.coef_[0, 0])
    found = calibration(truth, sigmoid(logits), bootstrap)["calibration_slope"]
    low, high = np.quantile(slopes, (0.025, 0.975), method="closest_observation")
    assert (found["low"], found["high"]) == (pytest.approx(low, rel=1e-3), pytest.approx(high, rel=1e-3))


def test_a_model_that_means_what_it_says_has_slope_one_and_intercept_zero():
    truth, logits = simulated(3000, 3)
    found = calibration(truth, sigmoid(logits), Bootstrap(range(3000), 60))
    for name, right in (("calibration_slope", 1), ("calibration_intercept", 0)):
        assert found[name]["value"] == pytest.approx(right, abs=0.1)
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert found["brier"]["value"] == pytest.approx(np.mean((sigmoid(logits) - truth) ** 2))
    assert list(found["ece"]) == ["value"]


def test_overconfidence_and_a_shift_show():
    truth, logits = simulated(3000, 4)
    found = calibration(truth, sigmoid(2 * logits), Bootstrap(range(3000), 20))
    assert found["calibration_slope"]["value"] == pytest.approx(0.5, abs=0.05)
    shifted = calibration(truth, sigmoid(logits - 1), Bootstrap(range(3000), 20))
    assert shifted["calibration_intercept"]["value"] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("truth", "probability"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]),  # separated: infinite
        ([0, 0, 1, 1], [0.8, 0.9, 0.1, 0.2]),  # separated, the wrong way round
        ([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9]),  # separated but for one shared score: infinite too
        ([0, 0, 1, 1], [0.9, 0.5, 0.5, 0.1]),
        ([0, 1, 0, 1], [0.5] * 4),  # constant
        ([1, 1, 1, 1], [0.1, 0.2, 0.8, 0.9]),  # one class
    ],
)
def test_a_slope_that_does_not_exist_is_none(truth, probability):
    found = calibration(np.array(truth), np.array(probability), Bootstrap(range(4), 50))["calibration_slope"]
    assert found["value"] is None


@pytest.mark.parametrize(("truth", "open_end"), [([0, 0, 0, 1, 0, 1, 1, 1], "high"), ([1, 1, 1, 0, 1, 0, 0, 0], "low")])
def test_where_many_draws_are_separated_one_end_of_the_interval_is_open(truth, open_end):
    """Without the image in the middle that stands on the wrong side, a draw is separated."""
    found = calibration(truth, np.arange(1, 9) / 10, Bootstrap(range(8), 200))["calibration_slope"]
    assert found["value"] is not None
    assert found.pop(open_end) is None
    assert None not in found.values()


def test_one_class_has_no_intercept():
    found = [calibration([label] * 3, [0.2, 0.4, 0.9], Bootstrap(range(3), 50)) for label in (0, 1)]
    assert [result["calibration_intercept"]["value"] for result in found] == [None, None]
    mixed = calibration([0, 0, 1], [0.2, 0.4, 0.9], Bootstrap(range(3), 50))["calibration_intercept"]
    assert None not in mixed.values()  # draws of one class are left out


@settings(max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0, 1e-9, 0.4, 0.4 + 1e-12, 0.5, 0.9, 1])), min_size=1))
def test_no_input_makes_a_fit_warn(rows):
    """Warnings are errors here: nearly separated, nearly constant, certain and wrong."""
    truth, probability = zip(*rows, strict=True)
    found = calibration(np.array(truth), np.array(probability), Bootstrap(range(len(rows)), 10))
    assert (found["calibration_intercept"]["value"] is None) == (len(set(truth)) == 1)


def test_certain_and_wrong_is_finite():
    found = calibration(np.array([0, 1, 0, 1]), np.array([1.0, 0.0, 0.0, 1.0]), Bootstrap(range(4), 50))
    assert found["calibration_slope"]["value"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    ("truth", "probability", "message"),
    [
        ([0, 1, 1], [0.1, 0.2], "expected (N,) for both"),
        ([0, 2], [0.1, 0.2], "neither 0 nor 1"),
        ([0, float("nan")], [0.1, 0.2], "neither 0 nor 1"),
        ([0, 1], [0.1, float("nan")], "not a number between 0 and 1"),
        ([0, 1], [0.1, 1.2], "not a number between 0 and 1"),
        ([0, 1], [-0.1, 1.0], "not a number between 0 and 1"),
        ([[0], [1]], [[0.1], [0.2]], "expected (N,) for both"),
    ],
)
@pytest.mark.parametrize("judge", [operating_points, ece, lambda y, p: calibration(y, p, Bootstrap(range(len(y))))])
def test_invalid_input_is_an_error(judge, truth, probability, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        judge(truth, probability)


def test_truth_and_probability_become_arrays():
    truth, probability = check_binary([0, 1, 1.0], (0, 0.5, 1))
    assert truth.tolist() == [False, True, True]
    assert probability.tolist() == [0.0, 0.5, 1.0]
