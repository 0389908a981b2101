"""All metrics of a task with one label an example; two classes are a special case of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from imgcls_jax.metrics import calibration, counts, intervals, ranking
from imgcls_jax.metrics.examples import Examples

# The confusion matrix is K x K: beyond this many classes it is left out.
MAX_CONFUSION_CLASSES = 2000

# Of the metrics that do not lie between 0 and 1.
_BOUNDS = {"nll": (0.0, np.inf), "brier": (0.0, 2.0), "cohens_kappa": (-1.0, 1.0), "mcc": (-1.0, 1.0)}


def headlines(topk: Sequence[int]) -> tuple[str, ...]:
    """Names of the metrics that training logs; the first is what the best checkpoint is chosen by."""
    return (*(f"top{k}" for k in _ks(topk)), "nll", "ece")


def headline_values(examples: Examples, topk: Sequence[int]) -> dict[str, float]:
    """The `headlines`, quickly: no intervals, no rankings."""
    values = {f"top{k}": float((examples.rows["rank"] < k).mean()) for k in _ks(topk)}
    values |= statistics(examples)(np.ones(len(examples)))
    return {name: values[name] for name in headlines(topk)}


def report(examples: Examples, *, topk: Sequence[int], temperature: float | None = None) -> dict[str, Any]:
    """The metrics, as W/eval/<split>.json holds them: plain Python numbers, strings, lists and dicts.

    Every value has its 95% interval beside it, as [low, high] under its name and `_ci95`: Wilson's for shares of
    examples (top-k, micro averages, precision and recall of a class, and F1 by way of it), the jackknife's
    for ROC-AUC and average precision, and the bootstrap's over 1,000 seeded resamples of the examples for all others.
    What is not defined is None.

    num_examples; num_skipped: records that could not be read and are in no number.
    top<k>: share of examples whose label is among the k (or all K) largest logits.
    nll: mean over the examples, in nats; NaN or infinite if any example's is: nothing is averaged away.
    brier: squared distance of the probabilities from the one-hot label, mean over the examples, 0..2.
    balanced_accuracy: mean recall of the classes that occur among the labels.
    ece, ece_equal_mass, mce: `calibration`, 15 bins; NaN if a confidence is. A sample's are larger than the truth,
      which the interval makes up for (`intervals.bootstrap_interval`): of a small split it may lie below the value.
    cohens_kappa, mcc: agreement beyond chance (Cohen 1960), and the correlation of labels and predictions (Gorodkin
      2004; 0 where undefined, as scikit-learn has it).
    precision, recall, f1: 0 where undefined. macro: mean over the classes that occur among labels or predictions;
      weighted: the same by support; micro: over all decisions, which with one label an example are all top-1 (all as
      scikit-learn's defaults, zero_division=0).
    roc_auc_macro, average_precision_macro: each class against the rest, by softmax probability; means over the classes
      that have them. None if the logits were not kept (`examples.MAX_LOGIT_BYTES`); `notes` says so.
    per_class: class, precision, recall, f1, support, roc_auc, average_precision.
    binary: with two classes only; the second is the positive one: class, precision, recall, f1, specificity, roc_auc,
      average_precision.
    calibrated: with a temperature only: temperature, nll, ece, ece_equal_mass, mce of the logits divided by it.
    reliability: for the 15 bins of equal width: low, high, count, and the means confidence and accuracy.
    confusion_matrix: K x K counts, rows the true class; None if K > 2000.
    """
    n, k = len(examples), len(examples.class_names)
    ranks, labels, predictions = examples.rows["rank"], examples.labels, examples.rows["prediction"]
    right = int((labels == predictions).sum())
    result: dict[str, Any] = {"task": "multiclass", "num_examples": n, "num_skipped": examples.num_skipped}
    for top in _ks(topk):
        result |= _share(f"top{top}", int((ranks < top).sum()), n)
    statistic = statistics(examples)
    result |= intervals.with_bootstrap(statistic, n, _BOUNDS)
    if np.isnan(result["cohens_kappa"]):
        result["cohens_kappa"] = None
    for name in ("precision", "recall", "f1"):
        result |= _share(f"{name}_micro", right, n)
    notes = []
    areas: list[dict[str, Any]] = [{} for _ in range(k)]
    macro: dict[str, Any] = dict.fromkeys(
        f"{name}_macro{ci}" for name in ("roc_auc", "average_precision") for ci in ("", "_ci95")
    )
    if examples.logits is None:
        notes.append(f"ROC-AUC and average precision are left out: the logits of {n:,} x {k:,} were not kept.")
    elif k > 1:
        macro, areas = ranking.per_class(ranking.log_odds(examples.logits), labels)
    result |= macro
    rows = counts.class_rows(examples.class_names, *class_counts(labels, predictions, np.ones(n), k))
    result["per_class"] = [{**row, **area} for row, area in zip(rows, areas, strict=True)]
    if k == 2:
        result["binary"] = _binary(result["per_class"][1], labels, predictions)
    if temperature is not None:
        result["calibrated"] = _calibrated(examples, temperature)
    result["reliability"] = _reliability(examples)
    result["confusion_matrix"] = _confusion(labels, predictions, k) if k <= MAX_CONFUSION_CLASSES else None
    result["notes"] = notes
    return result


def class_counts(
    labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of the weights [N] by label, by prediction, and of the hits by label: three [K] float64."""
    right = labels == predictions
    return (
        np.bincount(labels, weights, minlength=k),
        np.bincount(predictions, weights, minlength=k),
        np.bincount(labels, weights * right, minlength=k),
    )


def agreement(support: np.ndarray, predicted: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """All that follows from `class_counts` and is one number: see `report`."""
    n, right = support.sum(), correct.sum()
    scores = counts.class_scores(support, predicted, correct)
    occurs, labelled = support + predicted > 0, support > 0
    values = {"balanced_accuracy": float(scores["recall"][labelled].mean())}
    for name, score in scores.items():
        values[f"{name}_macro"] = float(score[occurs].mean())
        values[f"{name}_weighted"] = float((score * support).sum() / n)
    by_chance = (support * predicted).sum() / n**2
    values["cohens_kappa"] = float((right / n - by_chance) / (1 - by_chance)) if by_chance < 1 else float("nan")
    spread = (1 - np.square(predicted / n).sum()) * (1 - np.square(support / n).sum())
    values["mcc"] = float((right / n - by_chance) / np.sqrt(spread)) if spread > 1e-12 else 0.0
    return values


def statistics(examples: Examples) -> Callable[[np.ndarray], dict[str, float]]:
    """The function from weights [N] of the examples to all metrics that are one number and no share, by name."""
    labels, k = examples.labels, len(examples.class_names)
    predictions = examples.rows["prediction"].astype(np.int64)
    nll, brier, confidence = (examples.rows[name].astype(np.float64) for name in ("nll", "brier", "confidence"))
    errors = _calibration_errors(confidence, (labels == predictions).astype(np.float64))

    def statistic(weights: np.ndarray) -> dict[str, float]:
        return {
            "nll": intervals.weighted_mean(nll, weights),
            "brier": intervals.weighted_mean(brier, weights),
            **errors(weights),
            **agreement(*class_counts(labels, predictions, weights, k)),
        }

    return statistic


def _calibration_errors(confidence: np.ndarray, right: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """The function from weights [N] to ece, ece_equal_mass and mce; the bins are those of the whole sample."""
    width, mass = calibration.equal_width_bins(confidence), calibration.equal_mass_bins(confidence)

    def errors(weights: np.ndarray) -> dict[str, float]:
        by_width = calibration.bin_sums(width, confidence, right, weights)
        by_mass = calibration.bin_sums(mass, confidence, right, weights)
        return {
            "ece": calibration.expected_error(*by_width),
            "ece_equal_mass": calibration.expected_error(*by_mass),
            "mce": calibration.maximum_error(*by_width),
        }

    return errors


def _share(name: str, successes: int, n: int) -> dict[str, Any]:
    return {name: successes / n if n else None, f"{name}_ci95": intervals.share_interval(successes, n)}


def _binary(positive: dict[str, Any], labels: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
    """The row of the positive class without its support, and the specificity: the recall of the negative class."""
    negatives = labels == 0
    row = {name: value for name, value in positive.items() if name != "support"}
    return row | _share("specificity", int((predictions[negatives] == 0).sum()), int(negatives.sum()))


def _calibrated(examples: Examples, temperature: float) -> dict[str, Any] | None:
    """NLL and calibration errors at a temperature; None if the logits were not kept."""
    if examples.logits is None:
        return None
    confidence = calibration.confidence(examples.logits, temperature)
    right = (examples.labels == examples.rows["prediction"]).astype(np.float64)
    errors = _calibration_errors(confidence, right)
    nll = calibration.nll(examples.logits, examples.labels, temperature)

    def statistic(weights: np.ndarray) -> dict[str, float]:
        return {"nll": intervals.weighted_mean(nll, weights), **errors(weights)}

    return {"temperature": temperature, **intervals.with_bootstrap(statistic, len(examples), _BOUNDS)}


def _reliability(examples: Examples) -> list[dict[str, Any]]:
    """The bins of equal width that the ECE is made of."""
    confidence = examples.rows["confidence"].astype(np.float64)
    right = examples.labels == examples.rows["prediction"]
    sums = calibration.bin_sums(calibration.equal_width_bins(confidence), confidence, right, np.ones(len(right)))
    return [
        {
            "low": m / calibration.BINS,
            "high": (m + 1) / calibration.BINS,
            "count": int(count),
            "confidence": float(confidences / count) if count else None,
            "accuracy": float(hits / count) if count else None,
        }
        for m, (count, confidences, hits) in enumerate(zip(*sums, strict=True))
    ]


def _confusion(labels: np.ndarray, predictions: np.ndarray, k: int) -> list[list[int]]:
    pairs = np.bincount(labels * k + predictions, minlength=k * k)
    rows: list[list[int]] = pairs.reshape(k, k).tolist()
    return rows


def _ks(topk: Sequence[int]) -> list[int]:
    """Top-1 and the others, ascending."""
    return sorted({1, *topk})
