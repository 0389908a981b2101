import numpy as np
import pytest
from metric_cases import examples_of, random_scores, softmax
from scipy import optimize
from sklearn.calibration import calibration_curve

from imgcls_jax.metrics import calibration, multiclass


def sums(bins, confidence, right):
    return calibration.bin_sums(bins, confidence, right.astype(float), np.ones(len(right)))


def scores(seed=0, n=500, levels=None):
    logits, labels = random_scores(seed, n, levels=levels)
    p = softmax(logits)
    return p.max(1), p.argmax(1) == labels


@pytest.mark.parametrize("levels", [None, 1])
def test_errors_of_equal_width_bins_are_the_papers(levels):
    """Equations 2 to 5 of arXiv:1706.04599, one bin at a time; the upper end belongs to a bin."""
    confidence, right = scores(levels=levels)
    confidence[:20], right[:20] = 8 / 15, False
    confidence[20] = 1.0
    gaps, masses = [], []
    for m in range(15):
        chosen = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if chosen.any():
            gaps.append(abs(right[chosen].mean() - confidence[chosen].mean()))
            masses.append(chosen.mean())
    got = sums(calibration.equal_width_bins(confidence), confidence, right)
    assert calibration.expected_error(*got) == pytest.approx(np.dot(masses, gaps), abs=1e-12)
    assert calibration.maximum_error(*got) == pytest.approx(max(gaps), abs=1e-12)


@pytest.mark.parametrize("levels", [None, 1])
def test_equal_mass_bins_are_those_of_scikit_learn(levels):
    confidence, right = scores(levels=levels)
    mass, confidences, hits = sums(calibration.equal_mass_bins(confidence), confidence, right)
    filled = mass > 0
    accuracy, mean = calibration_curve(right, confidence, n_bins=15, strategy="quantile")
    np.testing.assert_allclose(hits[filled] / mass[filled], accuracy, atol=1e-12)
    np.testing.assert_allclose(confidences[filled] / mass[filled], mean, atol=1e-12)
    if levels is None:
        assert set(mass) <= {33, 34}  # 500 / 15


def test_a_calibrated_classifier_has_no_error_and_an_overconfident_one_has_its_excess():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 200_000)
    for excess in (0.0, 0.1):
        right = rng.random(200_000) < confidence - excess
        for bins in (calibration.equal_width_bins, calibration.equal_mass_bins):
            assert calibration.expected_error(*sums(bins(confidence), confidence, right)) == pytest.approx(
                excess, abs=5e-3
            )


def drawn_at(temperature, n=20_000, k=5, seed=0):
    """Logits, and labels drawn from the softmax of logits / temperature."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n, k))
    labels = (logits / temperature + rng.gumbel(size=(n, k))).argmax(1)
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 20.0])
def test_a_known_temperature_is_found(temperature):
    got = calibration.fit_temperature(*drawn_at(temperature))
    assert got == pytest.approx(temperature, rel=0.15 if temperature > 10 else 0.03)


def test_the_temperature_is_the_minimum_that_scipy_finds():
    logits, labels = drawn_at(1.7, n=2500)  # more than a block
    want = optimize.minimize_scalar(
        lambda t: calibration.nll(logits, labels, t).mean(), bounds=(0.1, 10), method="bounded", options={"xatol": 1e-9}
    ).x
    assert calibration.fit_temperature(logits, labels) == pytest.approx(want, rel=1e-5)
    # It does not depend on a constant added to an example's logits, and scales with them.
    shifted = logits * 4 + np.arange(2500)[:, None] % 7
    assert calibration.fit_temperature(shifted, labels) == pytest.approx(4 * want, rel=1e-5)


def test_without_a_minimum_the_temperature_is_an_end_of_the_range():
    logits = 9 * np.eye(4, dtype=np.float32)
    assert calibration.fit_temperature(logits, np.arange(4)) == calibration.MIN_TEMPERATURE
    assert calibration.fit_temperature(logits, (np.arange(4) + 1) % 4) == calibration.MAX_TEMPERATURE
    for bad in (np.full((2, 2), np.nan), np.zeros((0, 2))):
        with pytest.raises(ValueError, match="finite"):
            calibration.fit_temperature(bad, np.zeros(len(bad), int))


def test_calibrated_figures_are_the_raw_ones_of_divided_logits():
    logits, labels = drawn_at(2.0, n=400)
    got = multiclass.report(examples_of(logits, labels.astype(np.int32)), topk=(1,), temperature=2.0)
    want = multiclass.report(examples_of(logits / 2, labels.astype(np.int32)), topk=(1,))
    names = ("nll", "ece", "ece_equal_mass", "mce")
    assert got["calibrated"]["temperature"] == 2.0
    for name in (f"{name}{ci}" for name in names for ci in ("", "_ci95")):
        assert got["calibrated"][name] == pytest.approx(want[name], abs=1e-5), name
    assert got["nll"] > got["calibrated"]["nll"] and got["ece"] > got["calibrated"]["ece"]


def test_the_reliability_bins_make_up_the_ece():
    got = multiclass.report(examples_of(*random_scores()), topk=(1,))
    bins = [b for b in got["reliability"] if b["count"]]
    assert sum(b["count"] for b in bins) == 200 and len(got["reliability"]) == 15
    assert sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 200 == pytest.approx(got["ece"])
    assert all(b["low"] < b["confidence"] <= b["high"] for b in bins)
