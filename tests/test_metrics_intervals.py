import numpy as np
import pytest
from scipy import stats

from imgcls_jax.metrics import intervals, paired, ranking


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (1, 1), (3, 10), (9812, 10_000), (1, 1_000_000)])
def test_wilson_ends_are_where_the_score_test_just_rejects(successes, n):
    """The interval's ends p solve (s/n - p)^2 = z^2 p (1 - p) / n: found here by bisection, not by the formula."""
    z, share = 1.959963984540054, successes / n

    def end(inside, outside):
        for _ in range(200):
            middle = (inside + outside) / 2
            if (share - middle) ** 2 <= z * z * middle * (1 - middle) / n:
                inside = middle
            else:
                outside = middle
        return inside

    low, high = intervals.wilson_interval(successes, n)
    assert low == pytest.approx(end(share, 0.0) if successes else 0.0, abs=1e-12)
    assert high == pytest.approx(end(share, 1.0) if successes < n else 1.0, abs=1e-12)
    assert 0 <= low <= share <= high <= 1


def test_wilson_published_value_and_bad_arguments():
    # 81 of 263: table I of Newcombe, Statistics in Medicine 17, 857-872 (1998), method 3.
    assert intervals.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    for successes, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="successes"):
            intervals.wilson_interval(successes, n)
    assert intervals.share_interval(0, 0) is None


def coverage(draw, truth, times=300):
    """Share of the intervals that hold the truth."""
    ends = [draw(np.random.default_rng(seed)) for seed in range(times)]
    return np.mean([low <= truth <= high for low, high in ends])


# 300 intervals that hold the truth with probability 0.95 do so 277 to 294 times, in 99 of 100 cases. The bounds are
# wider: what is to be found out are intervals of a wrong kind, not the last percent.
WITHIN = pytest.approx(0.945, abs=0.04)


@pytest.fixture
def few_resamples(monkeypatch):
    """Enough for coverage."""
    monkeypatch.setattr(intervals, "RESAMPLES", 200)


def test_bootstrap_intervals_hold_a_known_mean(few_resamples):
    def draw(rng):
        x = rng.exponential(size=100)
        values = intervals.with_bootstrap(
            lambda w: {"mean": intervals.weighted_mean(x, w)}, 100, {"mean": (0.0, np.inf)}
        )
        return values["mean_ci95"]

    assert coverage(draw, 1.0) == pytest.approx(0.92, abs=0.04)  # a skewed distribution costs some


def test_bootstrap_intervals_hold_the_truth_of_a_biased_statistic(few_resamples):
    """Mean of 20 absolute means: every sample's is larger than the truth, as an ECE is."""
    truth = np.linspace(-0.5, 0.5, 20)
    groups = np.arange(2000) % 20

    def draw(rng):
        x = truth[groups] + 2 * rng.normal(size=2000)

        def statistic(w):
            sums = np.bincount(groups, w * x, minlength=20) / np.bincount(groups, w, minlength=20)
            return {"error": float(np.abs(sums).mean())}

        return intervals.with_bootstrap(statistic, 2000, {})["error_ci95"]

    assert coverage(draw, np.abs(truth).mean(), times=100) > 0.88


def test_jackknife_intervals_hold_a_known_area():
    truth = stats.norm.cdf(1 / np.sqrt(2))  # of two normal distributions, one standard deviation apart

    def draw(rng):
        positive = np.arange(300) < 100
        found = ranking.curve(rng.normal(size=300) + positive, positive)
        return intervals.jackknife_interval(found.roc_auc, found.roc_influence)

    assert coverage(draw, truth) == WITHIN


def test_f1_intervals_hold_a_known_f1():
    # Labels and predictions of one class: both with probability 0.2, only the label 0.1, only the prediction 0.1.
    def draw(rng):
        both, label, predicted, _ = rng.multinomial(200, (0.2, 0.1, 0.1, 0.6))
        return intervals.f1_interval(both, both + predicted, both + label)

    assert coverage(draw, 2 / 3) == WITHIN
    assert intervals.f1_interval(0, 0, 0) is None
    assert intervals.f1_interval(5, 5, 5)[1] == 1 and intervals.f1_interval(0, 3, 2)[0] == 0


def test_paired_differences_of_shares_hold_a_known_difference():
    def draw(rng):
        outcome = rng.choice(4, 80, p=(0.7, 0.12, 0.04, 0.14))  # both, only the second, only the first, none
        return paired.share_difference(np.isin(outcome, (0, 2)), np.isin(outcome, (0, 1)))[1]

    assert coverage(draw, 0.08) == pytest.approx(0.955, abs=0.04)


def test_bootstrap_is_seeded_and_weights_count_draws():
    seen = []
    first = intervals.bootstrap(lambda w: seen.append(w) or {"x": float(w @ np.arange(7))}, 7, resamples=30, seed=5)
    again = intervals.bootstrap(lambda w: {"x": float(w @ np.arange(7))}, 7, resamples=30, seed=5)
    other = intervals.bootstrap(lambda w: {"x": float(w @ np.arange(7))}, 7, resamples=30, seed=6)
    assert len(seen) == 30 and all(w.sum() == 7 and (w == np.round(w)).all() for w in seen)
    assert np.array_equal(first["x"], again["x"]) and not np.array_equal(first["x"], other["x"])


def test_what_is_not_finite_has_no_interval_and_bounds_hold():
    good = np.linspace(0.8, 1, 1000)
    assert intervals.bootstrap_interval(np.nan, good, (0, 1)) is None
    assert intervals.bootstrap_interval(0.9, np.append(good, np.inf), (0, 1)) is None
    assert intervals.bootstrap_interval(0.95, good, (0, 1)) == pytest.approx([0.905, 1.0])
    assert intervals.jackknife_interval(0.99, np.full(4, 0.1)) == [pytest.approx(0.99 - 1.96 * 0.2, abs=1e-4), 1.0]


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 3), (10, 2), (2, 10), (150, 100), (40_000, 40_500)])
def test_mcnemar_is_the_binomial_test(b, c):
    exact, mid = paired.mcnemar(b, c)
    if b + c == 0:
        assert (exact, mid) == (1, 1)
        return
    assert exact == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)
    here = stats.binom.pmf(min(b, c), b + c, 0.5)
    assert mid == pytest.approx(1.0 if b == c else stats.binomtest(b, b + c).pvalue - here, rel=1e-9)


def test_mcnemar_published_value():
    # Table 1 of Fagerland, Lydersen and Laake (2013): airway hyper-responsiveness, 1 and 7 discordant pairs.
    assert paired.mcnemar(1, 7) == pytest.approx((0.0703, 0.0391), abs=5e-5)


def test_paired_differences_and_their_signs():
    rng = np.random.default_rng(0)
    first = rng.random(400)
    second = first + 0.1 + 0.3 * rng.normal(size=400)
    difference, (low, high) = paired.mean_difference(first, second)
    assert difference == pytest.approx((second - first).mean(), abs=1e-12) and low < difference < high
    want = 1.96 * (second - first).std() / 20  # the plain standard error
    assert (high - low) / 2 == pytest.approx(want, rel=0.1)
    right = np.arange(10) < 6
    difference, (low, high) = paired.share_difference(right, np.arange(10) < 8)
    assert difference == pytest.approx(0.2) and low < 0.2 < high
