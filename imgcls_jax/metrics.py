"""Classification metrics: small per-example arrays on the device, sums that merge on the host.

The sums do not depend on how the examples were split into batches, ordered or merged, not even in the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ECE_BINS = 15  # as in arXiv:1706.04599
# The confusion matrix is K x K: beyond this many classes it is left out and memory stays linear in K.
MAX_CONFUSION_CLASSES = 2000
# Float sums are of multiples of 2^-24 (the spacing of float32 just below 1), so that float64 adds them without
# rounding, in any order, up to a total of 2^29.
_QUANTUM = 2.0**-24


def per_example(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """What `Sums.add` needs to know of each example; pure and jit-able.

    A NaN logit ranks below all others, as it does in a NumPy sort; it also makes that example's nll and confidence NaN.

    Args:
      logits: [B,K] float.
      labels: [B] int; rows that are masked out later may hold anything.

    Returns:
      Four arrays [B]:
      prediction: int32, the class with the largest logit, the lowest such class on a tie.
      rank: int32, number of classes before the label when classes are sorted by falling logit, ties by rising class
        number: the label is among the top k if and only if rank < k.
      nll: float32, minus the natural log of the label's softmax probability.
      confidence: float32, the largest softmax probability.
    """
    logits = logits.astype(jnp.float32)
    sortable = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    column = labels[:, None].astype(jnp.int32)
    own = jnp.take_along_axis(sortable, column, axis=1)
    earlier = jnp.arange(logits.shape[1]) < column
    before = (sortable > own) | ((sortable == own) & earlier)
    log_probabilities = jax.nn.log_softmax(logits, axis=1)
    return {
        "prediction": sortable.argmax(axis=1).astype(jnp.int32),
        "rank": before.sum(axis=1, dtype=jnp.int32),
        "nll": -jnp.take_along_axis(log_probabilities, column, axis=1)[:, 0],
        "confidence": jnp.exp(log_probabilities.max(axis=1)),
    }


def wilson_interval(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a proportion (JASA 22, 1927); the default z gives 95%.

    Raises:
      ValueError: not 0 <= successes <= n with n > 0.
    """
    if not 0 <= successes <= n or n <= 0:
        raise ValueError(f"need 0 <= successes <= n and n > 0, got successes={successes}, n={n}")
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The ends are exactly 0 and 1 where they should be, not a rounding error beyond.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, and 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


class Sums:
    """Streaming sums over a data set: `add` batches, `merge` others' sums, `compute` the metrics.

    Args:
      class_names: K names, in label order.
    """

    def __init__(self, class_names: Sequence[str]):
        k = len(class_names)
        self.class_names = tuple(class_names)
        self.top5 = 0
        self.nll = 0.0
        self.support = np.zeros(k, np.int64)  # examples by label
        self.predicted = np.zeros(k, np.int64)  # examples by prediction
        self.correct = np.zeros(k, np.int64)  # right predictions by label
        self.confusion = np.zeros((k, k), np.int64) if k <= MAX_CONFUSION_CLASSES else None
        self.bin_correct = np.zeros(ECE_BINS, np.int64)
        self.bin_confidence = np.zeros(ECE_BINS, np.float64)

    def add(self, rows: Mapping[str, np.ndarray], labels: np.ndarray, mask: np.ndarray) -> None:
        """Counts the examples of one batch whose mask is True.

        Args:
          rows: what `per_example` returned, arrays [B] on the host.
          labels: [B] int, in 0..K-1 where mask is True.
          mask: [B] bool; False rows are padding and leave no trace.

        Raises:
          ValueError: a counted label is not in 0..K-1.
        """
        k = len(self.class_names)
        mask = np.asarray(mask, bool)
        labels = np.asarray(labels)[mask].astype(np.int64)
        prediction, rank, nll, confidence = (
            np.asarray(rows[name])[mask] for name in ("prediction", "rank", "nll", "confidence")
        )
        if labels.size and (labels.min() < 0 or labels.max() >= k):
            raise ValueError(f"labels must be in 0..{k - 1}, got {labels.min()}..{labels.max()}")
        right = prediction == labels
        self.top5 += int((rank < 5).sum())
        self.nll += float(_quantised(nll).sum())
        self.support += np.bincount(labels, minlength=k)
        self.predicted += np.bincount(prediction, minlength=k)
        self.correct += np.bincount(labels[right], minlength=k)
        if self.confusion is not None:
            np.add.at(self.confusion, (labels, prediction), 1)
        # Bin m holds confidences in (m/15, (m+1)/15]. A NaN goes to bin 0 and makes its sum, and so the ECE, NaN.
        confidence = _quantised(confidence)
        bins = np.clip(np.ceil(np.nan_to_num(confidence) * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
        self.bin_correct += np.bincount(bins[right], minlength=ECE_BINS)
        self.bin_confidence += np.bincount(bins, weights=confidence, minlength=ECE_BINS)

    def merge(self, other: Sums) -> None:
        """Adds the sums of other examples of the same classes.

        Raises:
          ValueError: the classes are not the same.
        """
        if self.class_names != other.class_names:
            raise ValueError("sums over different classes cannot be merged")
        for name, value in vars(other).items():
            if name != "class_names" and value is not None:
                setattr(self, name, getattr(self, name) + value)

    def compute(self) -> dict[str, Any]:
        """The metrics, as W/eval/<split>.json holds them: plain Python numbers, strings and lists.

        top1, top5: share of examples whose label is among the 1 (or min(5, K)) largest logits; top1_ci95, top5_ci95:
          [low, high], their 95% Wilson interval.
        nll: mean over the examples, in nats; NaN or infinite if any example's is: nothing is averaged away.
        ece: expected calibration error, 15 bins of equal width (arXiv:1706.04599); NaN if a confidence is.
        precision, recall, f1: 0 where undefined. macro: mean over the classes that occur among labels or predictions;
          micro: over all decisions, which with one label an example are all top-1 (all as scikit-learn's defaults,
          zero_division=0).
        confusion_matrix: K x K counts, rows the true class; None if K > 2000.

        Raises:
          ValueError: no example was counted.
        """
        n, top1 = int(self.support.sum()), int(self.correct.sum())
        if n == 0:
            raise ValueError("no example was counted: every mask was False")
        occurs = (self.support + self.predicted) > 0
        precision = _ratio(self.correct, self.predicted)
        recall = _ratio(self.correct, self.support)
        f1 = _ratio(2 * self.correct, self.support + self.predicted)
        macro, micro = {}, {}
        for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
            macro[f"{name}_macro"] = float(values[occurs].mean())
            micro[f"{name}_micro"] = top1 / n
        return {
            "num_examples": n,
            "top1": top1 / n,
            "top1_ci95": list(wilson_interval(top1, n)),
            "top5": self.top5 / n,
            "top5_ci95": list(wilson_interval(self.top5, n)),
            "nll": self.nll / n,
            "ece": float(np.abs(self.bin_confidence - self.bin_correct).sum() / n),
            **macro,
            **micro,
            "per_class": [
                {"class": name, "precision": p, "recall": r, "f1": f, "support": s}
                for name, p, r, f, s in zip(
                    self.class_names,
                    precision.tolist(),
                    recall.tolist(),
                    f1.tolist(),
                    self.support.tolist(),
                    strict=True,
                )
            ],
            "confusion_matrix": None if self.confusion is None else self.confusion.tolist(),
        }


def _quantised(x: np.ndarray) -> np.ndarray:
    """x as float64, rounded to the nearest multiple of 2^-24."""
    return np.round(x.astype(np.float64) / _QUANTUM) * _QUANTUM
