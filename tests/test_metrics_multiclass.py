"""One label an example: every metric against scikit-learn."""

import json
import math

import numpy as np
import pytest
from metric_cases import differences, examples_of, random_scores, softmax, without_intervals
from sklearn import metrics as sk

from imgcls_jax.metrics import intervals, multiclass, ranking


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """The values are under test here, not the ends of their intervals."""
    monkeypatch.setattr(intervals, "RESAMPLES", 20)


def report(logits, labels, topk=(1, 5), mask=None):
    return multiclass.report(examples_of(logits, labels, mask), topk=topk)


def case(name):
    k = 2 if name == "two classes" else 7
    logits, labels = random_scores(k=k, levels=1 if name == "ties" else None)
    if name == "absent classes":  # class 2 is only predicted, class 3 neither
        labels = np.where((labels == 2) | (labels == 3), 0, labels).astype(np.int32)
        logits[:, 3] = -9
    if name == "one class":
        labels[:] = 4
    return logits, labels, k


CASES = ["plain", "ties", "absent classes", "one class", "two classes"]


@pytest.mark.parametrize("name", CASES)
# scikit-learn says so of one class, and of classes that are only predicted.
@pytest.mark.filterwarnings("ignore:.*single label.*:UserWarning", "ignore:y_pred contains classes:UserWarning")
@pytest.mark.filterwarnings("ignore:Only one class|invalid value encountered in scalar divide")
def test_values_are_those_of_scikit_learn(name):
    logits, labels, k = case(name)
    got = report(logits, labels, topk=(3, 5))
    order = np.argsort(-logits, axis=1, kind="stable")
    predictions, p = order[:, 0], softmax(logits)
    n = len(labels)
    assert (got["num_examples"], got["num_skipped"], got["task"]) == (n, 0, "multiclass")
    assert got["top1"] == sk.accuracy_score(labels, predictions)
    for top in (3, 5):
        assert got[f"top{top}"] == np.mean((order[:, :top] == labels[:, None]).any(1))
    want = {
        "nll": sk.log_loss(labels, p, labels=range(k)),
        "brier": ((p - np.eye(k)[labels]) ** 2).sum(1).mean(),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predictions),
        "mcc": sk.matthews_corrcoef(labels, predictions),
    }
    for average in ("macro", "micro", "weighted"):
        values = sk.precision_recall_fscore_support(labels, predictions, average=average, zero_division=0)
        want |= {f"{key}_{average}": v for key, v in zip(("precision", "recall", "f1"), values[:3], strict=True)}
    for key, value in want.items():
        assert got[key] == pytest.approx(value, rel=1e-6, abs=1e-12), key
    if name == "one class":
        # The labels are all the same, and the predictions are not: agreement is what chance has.
        assert got["cohens_kappa"] == pytest.approx(0, abs=1e-12)
    else:
        assert got["cohens_kappa"] == pytest.approx(sk.cohen_kappa_score(labels, predictions), abs=1e-12)
    per_class = sk.precision_recall_fscore_support(labels, predictions, labels=range(k), zero_division=0)
    for key, values in zip(("precision", "recall", "f1", "support"), per_class, strict=True):
        np.testing.assert_allclose([row[key] for row in got["per_class"]], values, atol=1e-12)
    assert [row["class"] for row in got["per_class"]] == [f"class {i}" for i in range(k)]
    assert got["confusion_matrix"] == sk.confusion_matrix(labels, predictions, labels=range(k)).tolist()
    assert json.loads(json.dumps(got)) == got


@pytest.mark.parametrize("name", CASES)
def test_areas_are_those_of_scikit_learn_for_each_class_against_the_rest(name):
    logits, labels, _ = case(name)
    got, p = report(logits, labels), softmax(logits)
    if name == "ties":  # float64 would break them by its own rounding; test_metrics_ranking tests the log-odds
        p = ranking.log_odds(logits).T
    aucs, precisions = [], []
    for c, row in enumerate(got["per_class"]):
        positive = labels == c
        auc = sk.roc_auc_score(positive, p[:, c]) if 0 < positive.sum() < len(labels) else None
        ap = sk.average_precision_score(positive, p[:, c]) if positive.any() else None
        for value, want, all_of in ((row["roc_auc"], auc, aucs), (row["average_precision"], ap, precisions)):
            assert (value is None) == (want is None)
            if want is not None:
                assert value == pytest.approx(want, abs=1e-6)
                all_of.append(want)
    assert got["average_precision_macro"] == pytest.approx(np.mean(precisions), abs=1e-6)
    assert got["roc_auc_macro"] == (pytest.approx(np.mean(aucs), abs=1e-6) if aucs else None)
    if name == "plain":
        assert got["roc_auc_macro"] == pytest.approx(
            sk.roc_auc_score(labels, p, multi_class="ovr", average="macro"), abs=1e-6
        )


def test_two_classes_have_the_figures_of_the_positive_one_and_the_specificity():
    logits, labels, _ = case("two classes")
    got, predictions = report(logits, labels)["binary"], logits.argmax(1)
    assert got["class"] == "class 1"
    assert got["precision"] == sk.precision_score(labels, predictions)
    assert got["recall"] == sk.recall_score(labels, predictions)
    assert got["f1"] == pytest.approx(sk.f1_score(labels, predictions), abs=1e-12)
    assert got["specificity"] == sk.recall_score(labels, predictions, pos_label=0)
    assert got["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, softmax(logits)[:, 1]), abs=1e-9)
    assert got["average_precision"] == pytest.approx(
        sk.average_precision_score(labels, softmax(logits)[:, 1]), abs=1e-9
    )
    assert got["specificity_ci95"] == list(
        intervals.wilson_interval(int(((predictions == 0) & (labels == 0)).sum()), int((labels == 0).sum()))
    )
    assert "binary" not in report(*random_scores(k=3))


@pytest.mark.parametrize("kind", ["counts", "fractions"])
def test_weighted_statistics_are_those_of_scikit_learn_with_sample_weights(kind):
    logits, labels = random_scores(n=300, k=5)
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, 300).astype(np.float64) if kind == "counts" else rng.random(300)
    predictions, p = logits.argmax(1), softmax(logits)
    got = multiclass.statistics(examples_of(logits, labels))(weights)
    want = {
        "nll": sk.log_loss(labels, p, sample_weight=weights),
        "brier": np.average(((p - np.eye(5)[labels]) ** 2).sum(1), weights=weights),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predictions, sample_weight=weights),
        "cohens_kappa": sk.cohen_kappa_score(labels, predictions, sample_weight=weights),
        "mcc": sk.matthews_corrcoef(labels, predictions, sample_weight=weights),
    }
    for average in ("macro", "weighted"):
        values = sk.precision_recall_fscore_support(labels, predictions, average=average, sample_weight=weights)
        want |= {f"{key}_{average}": v for key, v in zip(("precision", "recall", "f1"), values[:3], strict=True)}
    for key, value in want.items():
        assert got[key] == pytest.approx(value, rel=1e-6), key


def test_the_quick_headlines_are_the_values_of_the_report():
    found = examples_of(*random_scores())
    full = multiclass.report(found, topk=(5, 3))
    quick = multiclass.headline_values(found, (5, 3))
    assert list(quick) == ["top1", "top3", "top5", "nll", "ece"] == list(multiclass.headlines((5, 3)))
    assert quick == {name: full[name] for name in quick}


def test_every_value_has_an_interval_that_holds_together():
    got = multiclass.report(examples_of(*random_scores(n=500, k=2)), topk=(1,), temperature=1.3)
    assert {key for key, value in got.items() if isinstance(value, float)} == {
        key.removesuffix("_ci95") for key in got if key.endswith("_ci95")
    }
    for group in (got, got["binary"], got["calibrated"], *got["per_class"]):
        for key, ends in group.items():
            if key.endswith("_ci95"):
                assert ends[0] <= ends[1] and ends[1] - ends[0] < 0.6, key
                if "ece" not in key and "mce" not in key:
                    assert ends[0] <= group[key.removesuffix("_ci95")] <= ends[1], key


def test_top_k_beyond_the_classes_is_one():
    got = report(*random_scores(k=4))
    assert got["top5"] == 1 and got["top5_ci95"][1] == 1 and got["top1"] < 1


def test_masked_rows_leave_no_trace_but_their_number():
    logits, labels = random_scores(n=50)
    want = report(logits, labels)
    padded = np.concatenate([logits, np.full((3, 7), np.nan, np.float32)])
    got = report(padded, np.concatenate([labels, [-1, 7, 0]]).astype(np.int32), mask=np.arange(53) < 50)
    assert got == {**want, "num_skipped": 3}


def test_the_order_of_the_examples_has_no_part_in_any_value():
    logits, labels = random_scores(n=1000, levels=1)
    want = without_intervals(report(logits, labels))
    order = np.random.default_rng(3).permutation(1000)
    assert differences(without_intervals(report(logits[order], labels[order])), want, 1e-12) == []


def test_a_nan_logit_is_not_averaged_away():
    logits, labels = random_scores(n=20)
    predictions = logits.argmax(1)
    labels[0] = predictions[0]  # right, until its logit is lost
    logits[0, labels[0]] = np.nan
    got = report(logits, labels)
    assert all(math.isnan(got[name]) and got[f"{name}_ci95"] is None for name in ("nll", "brier", "ece", "mce"))
    assert got["roc_auc_macro"] is None and got["per_class"][3]["average_precision"] is None
    assert got["top1"] == np.mean(predictions[1:] == labels[1:]) * 19 / 20


def test_a_class_that_is_ruled_out_makes_the_loss_infinite_and_the_interval_unknown():
    logits, labels = random_scores(n=20)
    logits[4, labels[4]] = -np.inf
    got = report(logits, labels)
    assert got["nll"] == math.inf and got["nll_ci95"] is None and 0 < got["roc_auc_macro"] < 1


def test_one_class_alone_is_all_right_and_nothing_else():
    got = report(np.zeros((5, 1), np.float32), np.zeros(5, np.int32))
    assert got["top1"] == got["f1_macro"] == 1 and got["mcc"] == 0
    assert got["cohens_kappa"] is None and got["cohens_kappa_ci95"] is None and got["roc_auc_macro"] is None


def test_many_classes_need_no_square_matrix_and_no_logits():
    k = 3000
    logits = np.zeros((2, k), np.float32)
    logits[:, 5] = 1
    got = multiclass.report(examples_of(logits, np.array([5, k - 1], np.int32), keep_logits=False), topk=(1,))
    assert got["confusion_matrix"] is None and got["top1"] == 0.5 and got["per_class"][5]["recall"] == 1
    assert got["roc_auc_macro"] is None and got["notes"] == [
        "ROC-AUC and average precision are left out: the logits of 2 x 3,000 were not kept."
    ]
