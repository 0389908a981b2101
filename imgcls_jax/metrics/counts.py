"""Precision, recall and F1 of classes, from how often each was the label, was predicted, and was both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from imgcls_jax.metrics import intervals


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, and 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


def class_scores(support: np.ndarray, predicted: np.ndarray, correct: np.ndarray) -> dict[str, np.ndarray]:
    """precision, recall and f1 [K], 0 where undefined.

    Args:
      support: [K] examples that have the class as label.
      predicted: [K] examples for which the class is predicted.
      correct: [K] examples with both.
    """
    return {
        "precision": ratio(correct, predicted),
        "recall": ratio(correct, support),
        "f1": ratio(2 * correct, support + predicted),
    }


def class_rows(
    class_names: Sequence[str], support: np.ndarray, predicted: np.ndarray, correct: np.ndarray
) -> list[dict[str, Any]]:
    """A row for each class: class, precision, recall, f1, their intervals, support. For JSON."""
    scores = {name: score.tolist() for name, score in class_scores(support, predicted, correct).items()}
    rows = []
    for c, name in enumerate(class_names):
        s, p, hits = int(support[c]), int(predicted[c]), int(correct[c])
        rows.append(
            {
                "class": name,
                **{key: score[c] for key, score in scores.items()},
                "support": s,
                "precision_ci95": intervals.share_interval(hits, p),
                "recall_ci95": intervals.share_interval(hits, s),
                "f1_ci95": intervals.f1_interval(hits, p, s),
            }
        )
    return rows
