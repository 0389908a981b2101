"""Several labels an example, or none: every metric against scikit-learn."""

import json

import numpy as np
import pytest
from metric_cases import differences, examples_of, random_label_sets, without_intervals
from sklearn import metrics as sk

from imgcls_jax.metrics import intervals, multilabel

SCORES = ("precision", "recall", "f1")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 20)


def case(name):
    logits, labels = random_label_sets(levels=1 if name == "ties" else None)
    if name == "ties":
        logits += 0.25  # no score at the threshold itself
    if name == "absent classes":  # class 1 has no positive, class 2 is neither there nor predicted, class 3 is in all
        labels[:, 1] = labels[:, 2] = 0
        logits[:, 2] = -3
        labels[:, 3] = 1
    if name == "no label at all":
        labels[:] = 0
    if name == "nothing predicted":
        logits -= 20
    return logits, labels


@pytest.mark.parametrize("name", ["plain", "ties", "absent classes", "no label at all", "nothing predicted"])
def test_values_are_those_of_scikit_learn(name):
    logits, labels = case(name)
    got, predictions = multilabel.report(examples_of(logits, labels)), logits > 0
    k = labels.shape[1]
    for average in ("micro", "macro", "weighted", "samples"):
        values = sk.precision_recall_fscore_support(labels, predictions, average=average, zero_division=0)
        for key, value in zip(SCORES, values[:3], strict=True):
            assert got[f"{key}_{average}"] == pytest.approx(value, abs=1e-12), (key, average)
    assert got["exact_match"] == sk.accuracy_score(labels, predictions)
    assert got["hamming_loss"] == pytest.approx(sk.hamming_loss(labels, predictions), abs=1e-12)
    assert got["lrap"] == pytest.approx(sk.label_ranking_average_precision_score(labels, logits), abs=1e-12)
    assert got["coverage_error"] == pytest.approx(sk.coverage_error(labels, logits), abs=1e-12)
    z, y = logits.astype(np.float64), labels
    assert got["nll"] == pytest.approx((np.log1p(np.exp(-abs(z))) + np.maximum(z, 0) - z * y).sum(1).mean(), rel=1e-6)
    per_class = sk.precision_recall_fscore_support(labels, predictions, average=None, zero_division=0)
    for key, values in zip((*SCORES, "support"), per_class, strict=True):
        np.testing.assert_allclose([row[key] for row in got["per_class"]], values, atol=1e-12)
    areas = {"roc_auc": [], "average_precision": []}
    for c in range(k):
        positive, row = labels[:, c] > 0, got["per_class"][c]
        want = {
            "roc_auc": sk.roc_auc_score(positive, logits[:, c]) if 0 < positive.sum() < len(labels) else None,
            "average_precision": sk.average_precision_score(positive, logits[:, c]) if positive.any() else None,
        }
        for key, value in want.items():
            assert row[key] == (None if value is None else pytest.approx(value, abs=1e-12))
            areas[key] += [] if value is None else [value]
    for key, values in (("roc_auc_macro", areas["roc_auc"]), ("map", areas["average_precision"])):
        assert got[key] == (pytest.approx(np.mean(values), abs=1e-12) if values else None)
    assert got["num_without_labels"] == (labels.sum(1) == 0).sum()
    assert json.loads(json.dumps(got)) == got


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_intervals_over_classes_are_the_jackknifes_by_numeric_derivatives(average):
    logits, labels = case("absent classes")
    got, predictions = multilabel.report(examples_of(logits, labels)), logits > 0

    def values(weights):
        scores = sk.precision_recall_fscore_support(
            labels, predictions, average=average, zero_division=0, sample_weight=weights
        )
        return np.array(scores[:3])

    n, step = len(labels), 1e-4
    slopes = np.array(
        [(values(1 + step * np.eye(n)[i]) - values(1 - step * np.eye(n)[i])) / (2 * step) for i in range(n)]
    )
    half = 1.959963984540054 * np.sqrt((slopes**2).sum(0))
    for key, value, width in zip(SCORES, values(np.ones(n)), half, strict=True):
        assert got[f"{key}_{average}_ci95"] == pytest.approx([value - width, value + width], abs=1e-6)


def test_the_quick_headlines_are_the_values_of_the_report():
    found = examples_of(*case("absent classes"))
    full, quick = multilabel.report(found), multilabel.headline_values(found)
    assert list(quick) == list(multilabel.HEADLINES)
    assert quick == pytest.approx({name: full[name] for name in quick}, abs=1e-12)
    assert np.isnan(multilabel.headline_values(examples_of(*case("no label at all")))["map"])


def test_every_value_has_an_interval_around_it():
    got = multilabel.report(examples_of(*case("plain")))
    assert {key for key, value in got.items() if isinstance(value, float)} == {
        key.removesuffix("_ci95") for key in got if key.endswith("_ci95")
    }
    for group in (got, *got["per_class"]):
        for key, ends in group.items():
            if key.endswith("_ci95"):
                assert ends[0] < group[key.removesuffix("_ci95")] < ends[1], key


def test_the_order_of_the_examples_has_no_part_in_any_value():
    logits, labels = case("ties")
    want = without_intervals(multilabel.report(examples_of(logits, labels)))
    order = np.random.default_rng(3).permutation(len(labels))
    got = without_intervals(multilabel.report(examples_of(logits[order], labels[order])))
    assert differences(got, want, 1e-12) == []


def test_a_nan_logit_is_not_averaged_away():
    logits, labels = case("plain")
    labels[7, 2], logits[7, 2] = 1, np.nan
    got = multilabel.report(examples_of(logits, labels))
    for name in ("nll", "lrap", "coverage_error"):
        assert np.isnan(got[name]) and got[f"{name}_ci95"] is None
    assert got["map"] is None and got["roc_auc_macro"] is None
    assert got["hamming_loss"] == pytest.approx(sk.hamming_loss(labels, logits > 0), abs=1e-12)
    assert np.isnan(multilabel.headline_values(examples_of(logits, labels))["map"])


def test_rankings_in_pieces_are_rankings_at_once(monkeypatch):
    logits, labels = case("ties")
    want = multilabel.ranking_of_labels(logits, labels > 0)
    monkeypatch.setattr(multilabel, "_PAIRS", 17)
    got = multilabel.ranking_of_labels(logits, labels > 0)
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
