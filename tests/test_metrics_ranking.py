import numpy as np
import pytest
from metric_cases import random_scores, softmax
from sklearn import metrics as sk

from imgcls_jax.metrics import intervals, ranking


def scores(seed, n=60, levels=None, share=0.3):
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < share
    positive[0] = True
    values = rng.normal(size=n) + positive
    return (np.round(values * levels) / levels if levels else values).astype(np.float32), positive


@pytest.mark.parametrize("levels", [None, 2, 1])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_areas_are_those_of_scikit_learn(levels, share):
    for seed in range(10):
        values, positive = scores(seed, levels=levels, share=share)
        got = ranking.curve(values, positive)
        assert got.roc_auc == pytest.approx(sk.roc_auc_score(positive, values), abs=1e-12)
        assert got.average_precision == pytest.approx(sk.average_precision_score(positive, values), abs=1e-12)


@pytest.mark.parametrize("levels", [None, 2])
def test_influence_is_the_derivative_by_an_examples_weight(levels):
    values, positive = scores(0, levels=levels)
    got, step = ranking.curve(values, positive), 1e-5
    for metric, influence in (
        (sk.roc_auc_score, got.roc_influence),
        (sk.average_precision_score, got.precision_influence),
    ):
        for i in range(len(values)):
            up, down = (metric(positive, values, sample_weight=1 + s * np.eye(len(values))[i]) for s in (step, -step))
            assert influence[i] == pytest.approx((up - down) / (2 * step), abs=1e-8)


def test_ends_of_the_range():
    values = np.arange(6, dtype=np.float32)
    perfect = ranking.curve(values, values > 3)
    assert (perfect.roc_auc, perfect.average_precision) == (1, 1)
    assert not perfect.roc_influence.any() and not perfect.precision_influence.any()
    none, everything = ranking.curve(values, values > 9), ranking.curve(values, values >= 0)
    assert (none.roc_auc, none.average_precision) == (None, None)
    assert (everything.roc_auc, everything.average_precision) == (None, 1)
    same = ranking.curve(np.zeros(6, np.float32), values > 3)
    assert same.roc_auc == 0.5 and same.average_precision == pytest.approx(1 / 3)


def test_the_jackknifes_error_of_a_roc_auc_is_delongs():
    """Equations 3 to 5 of DeLong, DeLong and Clarke-Pearson (1988), whose variances divide by n - 1."""
    values, positive = scores(3, n=200, levels=4)
    a, b = values[positive].astype(np.float64), values[~positive].astype(np.float64)
    wins = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    want = wins.mean(1).var() / len(a) + wins.mean(0).var() / len(b)
    got = ranking.curve(values, positive)
    low, high = intervals.jackknife_interval(got.roc_auc, got.roc_influence)
    assert (high - low) / 2 == pytest.approx(1.959963984540054 * np.sqrt(want), rel=1e-9)


def test_the_error_of_the_mean_over_classes_is_that_of_a_bootstrap():
    logits, labels = random_scores(n=400, k=4)
    macro, _ = ranking.per_class(logits.T, labels)
    eye = np.eye(4)[labels]
    for name, metric in (("roc_auc", sk.roc_auc_score), ("average_precision", sk.average_precision_score)):
        assert macro[f"{name}_macro"] == pytest.approx(metric(eye, logits), abs=1e-12)
        rng = np.random.default_rng(0)
        draws = [rng.integers(0, 400, 400) for _ in range(200)]
        spread = np.std([metric(eye[d], logits[d]) for d in draws])
        low, high = macro[f"{name}_macro_ci95"]
        assert (high - low) / (2 * 1.96) == pytest.approx(spread, rel=0.15)  # 200 draws: 5% standard error


def test_log_odds_are_those_of_the_softmax_whatever_the_blocks(monkeypatch):
    logits, _ = random_scores(n=50)
    p = softmax(logits)
    want = ranking.log_odds(logits)
    np.testing.assert_allclose(want.T, np.log(p / (1 - p)), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(ranking, "BLOCK", 7)
    np.testing.assert_array_equal(ranking.log_odds(logits), want)


def test_log_odds_tell_apart_what_float32_probabilities_cannot():
    logits = np.array([[0, 20, 0], [0, 25, 0], [0, 90, 0]], np.float32)
    assert (softmax(logits).astype(np.float32)[:, 1] == 1).all()
    np.testing.assert_allclose(ranking.log_odds(logits)[1], [20 - np.log(2), 25 - np.log(2), 90 - np.log(2)], rtol=1e-6)
