"""All metrics of a task where an example has any number of the labels, or none."""

from __future__ import annotations

from typing import Any

import numpy as np

from imgcls_jax.metrics import counts, intervals, ranking
from imgcls_jax.metrics.examples import Examples

HEADLINES = ("map", "f1_micro", "nll")

# Pairs of (label, class) that are compared at a time, in `ranking_of_labels`.
_PAIRS = 2**24


def headline_values(examples: Examples) -> dict[str, float]:
    """The `HEADLINES`, without intervals."""
    logits = _logits(examples)
    areas = [ranking.curve(logits[:, c], positive).average_precision for c, positive in enumerate(examples.labels.T)]
    defined = [area for area in areas if area is not None]
    known = defined and not np.isnan(logits).any()
    micro = _micro(*_example_counts(examples.labels, logits > 0).sum(axis=1))
    return {
        "map": sum(defined) / len(defined) if known else float("nan"),
        "f1_micro": micro["f1_micro"],
        "nll": float(examples.rows["nll"].astype(np.float64).mean()),
    }


def report(examples: Examples) -> dict[str, Any]:
    """The metrics, as W/eval/<split>.json holds them: plain Python numbers, strings, lists and dicts.

    A class is predicted where its probability is above 0.5. All are scikit-learn's, with zero_division=0. Every value
    has its 95% interval beside it, as [low, high] under its name and `_ci95`: Wilson's for exact_match and for the
    precision, recall and (by way of it) F1 of a class, the bootstrap's over 1,000 seeded resamples of the examples for
    means over examples and micro averages, and the jackknife's, also by example, for means over classes and areas. What
    is not defined is None.

    num_examples; num_skipped: records that could not be read and are in no number.
    num_without_labels: examples that have none of the classes. They count in everything; in samples averages as 0.
    map: mean over the classes that have a positive of the average precision.
    roc_auc_macro: mean over the classes that have positives and negatives.
    precision, recall, f1: micro (over all decisions), macro (mean over all classes), weighted (by support), samples
      (mean over the examples).
    exact_match: share of examples whose classes are all as predicted. hamming_loss: share of wrong decisions.
    nll: binary cross-entropies in nats, summed over the classes, mean over the examples.
    lrap: label ranking average precision; coverage_error: how far to go down the ranking to find every label.
    per_class: class, precision, recall, f1, support, roc_auc, average_precision.
    """
    logits, labels, n = _logits(examples), examples.labels, len(examples)
    predictions = logits > 0
    result: dict[str, Any] = {
        "task": "multilabel",
        "num_examples": n,
        "num_skipped": examples.num_skipped,
        "num_without_labels": int((~labels.any(axis=1)).sum()),
    }
    macro, areas = ranking.per_class(np.ascontiguousarray(logits.T), labels)
    for ci in ("", "_ci95"):
        result[f"map{ci}"] = macro[f"average_precision_macro{ci}"]
        result[f"roc_auc_macro{ci}"] = macro[f"roc_auc_macro{ci}"]
    exact = int((predictions == labels).all(axis=1).sum())
    result |= {"exact_match": exact / n, "exact_match_ci95": intervals.share_interval(exact, n)}
    result |= _means(examples, predictions)
    result |= _over_classes(labels, predictions)
    rows = counts.class_rows(examples.class_names, *_class_counts(labels, predictions))
    result["per_class"] = [{**row, **area} for row, area in zip(rows, areas, strict=True)]
    result["notes"] = list[str]()
    return result


def ranking_of_labels(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What LRAP and the coverage error are the means of (Tsoumakas et al. 2010): ([N], [N]) float64.

    Args:
      logits: [N,K] float.
      labels: [N,K] bool. A row with none or all of them has precision 1, one with none has coverage 0, and one
        with a NaN logit has NaN in both.
    """
    n, k = labels.shape
    row, column = np.nonzero(labels)
    share, depth = np.zeros(len(row)), np.zeros(len(row))
    step = max(1, _PAIRS // k)
    for start in range(0, len(row), step):
        r, c = row[start : start + step], column[start : start + step]
        no_lower = logits[r] >= logits[r, c][:, None]
        depth[start : start + step] = no_lower.sum(axis=1)
        share[start : start + step] = (no_lower & labels[r]).sum(axis=1)
    count = labels.sum(axis=1)
    precision = np.ones(n)
    some = (count > 0) & (count < k)
    with np.errstate(invalid="ignore"):
        precision[some] = np.bincount(row, share / depth, minlength=n)[some] / count[some]
    coverage, unknown = np.zeros(n), np.isnan(logits).any(axis=1)
    np.maximum.at(coverage, row, depth)
    precision[unknown] = coverage[unknown] = np.nan
    return precision, coverage


def _logits(examples: Examples) -> np.ndarray:
    assert examples.logits is not None, "several labels are not evaluated without their logits"
    return examples.logits


def _example_counts(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """By example: hits, predicted and labelled classes, [3,N] float64."""
    return np.stack([(labels & predictions).sum(1), predictions.sum(1), labels.sum(1)]).astype(np.float64)


def _micro(hits: float, predicted: float, labelled: float) -> dict[str, float]:
    """Micro averages of the sums, or the means, of `_example_counts`."""
    return {
        "precision_micro": float(hits / predicted) if predicted else 0.0,
        "recall_micro": float(hits / labelled) if labelled else 0.0,
        "f1_micro": float(2 * hits / (predicted + labelled)) if predicted + labelled else 0.0,
    }


def _means(examples: Examples, predictions: np.ndarray) -> dict[str, Any]:
    """Micro averages, means over the examples, and their bootstrap intervals."""
    labels, k = examples.labels, len(examples.class_names)
    by_example = _example_counts(labels, predictions)
    hits, predicted, labelled = by_example
    lrap, coverage = ranking_of_labels(_logits(examples), labels)
    columns = {
        "precision_samples": counts.ratio(hits, predicted),
        "recall_samples": counts.ratio(hits, labelled),
        "f1_samples": counts.ratio(2 * hits, predicted + labelled),
        "hamming_loss": (predicted + labelled - 2 * hits) / k,
        "nll": examples.rows["nll"].astype(np.float64),
        "lrap": lrap,
        "coverage_error": coverage,
    }

    def statistic(weights: np.ndarray) -> dict[str, float]:
        means = {name: intervals.weighted_mean(column, weights) for name, column in columns.items()}
        return _micro(*(intervals.weighted_mean(count, weights) for count in by_example)) | means

    return intervals.with_bootstrap(statistic, len(examples), {"nll": (0.0, np.inf), "coverage_error": (0.0, float(k))})


def _over_classes(labels: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
    """Macro and weighted averages of precision, recall and F1, with jackknife intervals by example."""
    k = labels.shape[1]
    support, predicted, correct = _class_counts(labels, predictions)
    total = max(support.sum(), 1.0)
    values: dict[str, float] = {}
    # An average is a sum over classes of share * score, a score is a / b, and both a and b are sums over the examples:
    # an example's influence on the score is (its part of a - score * its part of b) / b. Parts of a and b by name:
    # how often they count a hit, a label and a prediction.
    parts = {"precision": (1, 0, 1), "recall": (1, 1, 0), "f1": (2, 1, 1)}
    by_hit, by_label, by_prediction = [], [], []
    for name, score in counts.class_scores(support, predicted, correct).items():
        hit, label, prediction = parts[name]
        b = label * support + prediction * predicted
        for average, share in (("macro", np.full(k, 1 / k)), ("weighted", support / total)):
            values[f"{name}_{average}"] = value = float(share @ score)
            moved = (score - value) / total if average == "weighted" else 0.0  # by a label, which moves the shares
            by_hit.append(hit * counts.ratio(share, b))
            by_label.append(moved - label * counts.ratio(share * score, b))
            by_prediction.append(-prediction * counts.ratio(share * score, b))
    influence = (
        _product(labels & predictions, by_hit) + _product(labels, by_label) + _product(predictions, by_prediction)
    )
    result: dict[str, Any] = {}
    for (name, value), column in zip(values.items(), influence.T, strict=True):
        result[name] = value
        result[f"{name}_ci95"] = intervals.jackknife_interval(value, column)
    return result


def _product(flags: np.ndarray, columns: list[np.ndarray]) -> np.ndarray:
    """[N,K] bool times columns [K] -> [N, columns], without a float copy of the whole."""
    matrix = np.stack(columns, axis=1)
    return np.concatenate(
        [flags[i : i + ranking.BLOCK].astype(np.float64) @ matrix for i in range(0, len(flags), ranking.BLOCK)]
    )


def _class_counts(labels: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """support, predicted and correct [K] float64."""
    support, predicted, correct = (
        x.sum(axis=0).astype(np.float64) for x in (labels, predictions, labels & predictions)
    )
    return support, predicted, correct
