import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from imgcls_jax import metrics


def rows_of(logits, labels):
    rows = jax.jit(metrics.per_example)(jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32))
    return {name: np.asarray(value) for name, value in rows.items()}


def sums_of(logits, labels, k, mask=None):
    sums = metrics.Sums([f"class {i}" for i in range(k)])
    sums.add(rows_of(logits, labels), labels, np.ones(len(labels), bool) if mask is None else mask)
    return sums


def random_scores(seed=0, n=200, k=7, levels=None):
    """Logits [n,k], with many ties if drawn from a few levels, and labels that the logits know something of."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n).astype(np.int32)
    logits = rng.normal(size=(n, k)) + 1.5 * np.eye(k)[labels]
    if levels:
        logits = np.round(logits * levels) / levels
    return logits.astype(np.float32), labels


def expected_ece(logits, labels):
    """Straight from the definition, one bin at a time."""
    z = logits.astype(np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    confidence, right, ece = p.max(1), p.argmax(1) == labels, 0.0
    for m in range(15):
        chosen = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if chosen.any():
            ece += chosen.mean() * abs(right[chosen].mean() - confidence[chosen].mean())
    return ece


@pytest.mark.parametrize("case", ["plain", "ties", "absent classes", "one class", "two classes"])
def test_equal_to_scikit_learn(case):
    k = 2 if case == "two classes" else 7
    logits, labels = random_scores(k=k, levels=1 if case == "ties" else None)
    if case == "absent classes":  # class 2 is only predicted, class 3 neither
        labels = np.where((labels == 2) | (labels == 3), 0, labels).astype(np.int32)
        logits[:, 3] = -9
    if case == "one class":
        labels[:] = 4
    got = sums_of(logits, labels, k).compute()
    predictions = np.array([np.argsort(-row, kind="stable")[0] for row in logits])
    in_top5 = [label in np.argsort(-row, kind="stable")[:5] for row, label in zip(logits, labels, strict=True)]
    log_p = logits.astype(np.float64)
    log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))

    assert got["num_examples"] == len(labels)
    assert got["top1"] == sk.accuracy_score(labels, predictions)
    assert got["top5"] == np.mean(in_top5)
    assert got["nll"] == pytest.approx(-log_p[np.arange(len(labels)), labels].mean(), rel=1e-5)
    assert got["ece"] == pytest.approx(expected_ece(logits, labels), abs=1e-6)
    for average in ("macro", "micro"):
        values = sk.precision_recall_fscore_support(labels, predictions, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), values[:3], strict=True):
            assert got[f"{name}_{average}"] == pytest.approx(value, abs=1e-12)
    per_class = sk.precision_recall_fscore_support(labels, predictions, labels=range(k), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), per_class, strict=True):
        np.testing.assert_allclose([row[name] for row in got["per_class"]], values, atol=1e-12)
    assert [row["class"] for row in got["per_class"]] == [f"class {i}" for i in range(k)]
    assert got["confusion_matrix"] == sk.confusion_matrix(labels, predictions, labels=range(k)).tolist()
    assert json.loads(json.dumps(got)) == got


@pytest.mark.parametrize("levels", [None, 1])
def test_rank_is_the_place_in_a_stable_descending_sort(levels):
    logits, labels = random_scores(levels=levels)
    rows = rows_of(logits, labels)
    order = np.argsort(-logits, axis=1, kind="stable")
    np.testing.assert_array_equal(rows["rank"], (order == labels[:, None]).argmax(1))
    np.testing.assert_array_equal(rows["prediction"], order[:, 0])
    assert {name: value.dtype.name for name, value in rows.items()} == {
        "prediction": "int32", "rank": "int32", "nll": "float32", "confidence": "float32",
    }  # fmt: skip


def test_top5_agrees_with_scikit_learn_without_ties():
    logits, labels = random_scores(k=9)
    assert sums_of(logits, labels, 9).compute()["top5"] == sk.top_k_accuracy_score(labels, logits, k=5)


def test_top5_of_fewer_classes_is_one():
    logits, labels = random_scores(k=4)
    got = sums_of(logits, labels, 4).compute()
    assert got["top5"] == 1 and got["top5_ci95"][1] == 1 and got["top1"] < 1


def test_masked_rows_leave_no_trace_whatever_they_hold():
    logits, labels = random_scores(n=50)
    want = sums_of(logits, labels, 7).compute()
    padded = np.concatenate([logits, np.full((3, 7), np.nan, np.float32)])
    padded_labels = np.concatenate([labels, np.array([-1, 7, 0], np.int32)])
    assert sums_of(padded, padded_labels, 7, np.arange(53) < 50).compute() == want


def test_bit_equal_for_any_split_order_and_merge():
    logits, labels = random_scores(n=1000)
    want = sums_of(logits, labels, 7).compute()
    rows, rng = rows_of(logits, labels), np.random.default_rng(3)
    for _ in range(5):
        pieces = np.split(rng.permutation(1000), np.sort(rng.integers(0, 1000, 6)))  # ragged, some may be empty
        parts = []
        for piece in pieces:
            part = metrics.Sums([f"class {i}" for i in range(7)])
            part.add({name: value[piece] for name, value in rows.items()}, labels[piece], np.ones(len(piece), bool))
            parts.append(part)
        total = parts[0]
        for part in parts[1:]:
            total.merge(part)
        assert total.compute() == want


def test_merging_in_any_order_and_leaving_the_other_as_it_was():
    logits, labels = random_scores(n=60)
    results = []
    for order in itertools.permutations(range(3)):
        parts = [sums_of(logits[i::3], labels[i::3], 7) for i in range(3)]
        last = parts[order[2]].compute()
        parts[order[0]].merge(parts[order[1]])
        parts[order[0]].merge(parts[order[2]])
        assert parts[order[2]].compute() == last
        results.append(parts[order[0]].compute())
    assert all(result == results[0] for result in results)
    assert results[0]["num_examples"] == 60


def test_a_nan_logit_is_not_averaged_away():
    logits, labels = random_scores(n=20)
    predictions = logits.argmax(1)
    labels[0] = predictions[0]  # right, until its logit is lost
    logits[0, labels[0]] = np.nan
    got = sums_of(logits, labels, 7).compute()
    assert math.isnan(got["nll"]) and math.isnan(got["ece"])
    assert got["top1"] == np.mean(predictions[1:] == labels[1:]) * 19 / 20


def test_many_classes_need_no_square_matrix():
    k = 100_000
    logits = np.zeros((2, k), np.float32)
    logits[:, 5] = 1
    got = sums_of(logits, np.array([5, k - 1], np.int32), k).compute()
    assert got["confusion_matrix"] is None and got["top1"] == 0.5 and got["per_class"][5]["recall"] == 1


def test_what_makes_no_sense_is_refused():
    logits, labels = random_scores(n=4)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.2"):
        sums_of(logits, np.array([0, 1, 2, 3]), 3)
    with pytest.raises(ValueError, match="no example"):
        sums_of(logits, labels, 7, np.zeros(4, bool)).compute()
    with pytest.raises(ValueError, match="different classes"):
        metrics.Sums(["a"]).merge(metrics.Sums(["b"]))


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

    low, high = metrics.wilson_interval(successes, n)
    assert low == pytest.approx(end(share, 0.0) if successes else 0.0, abs=1e-12)
    assert high == pytest.approx(end(share, 1.0) if successes < n else 1.0, abs=1e-12)
    assert 0 <= low <= share <= high <= 1


def test_wilson_published_value_and_bad_arguments():
    # 81 of 263: table I of Newcombe, Statistics in Medicine 17, 857-872 (1998), method 3.
    assert metrics.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    for successes, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="successes"):
            metrics.wilson_interval(successes, n)
