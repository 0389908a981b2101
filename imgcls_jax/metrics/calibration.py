"""Is a confidence of 0.8 right four times in five? Calibration errors, and the temperature that mends them."""

from __future__ import annotations

import numpy as np

BINS = 15  # as in arXiv:1706.04599
# Where a temperature is looked for: logits that separate the classes would have it go to 0.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
# Rows of logits that are worked on at a time, in float64: 16 MB at 1,000 classes.
_BLOCK = 2048


def equal_width_bins(confidence: np.ndarray) -> np.ndarray:
    """The bin 0..14 of each confidence [N]: bin m holds (m/15, (m+1)/15]. A NaN goes to bin 0, and makes it NaN."""
    return np.clip(np.ceil(np.nan_to_num(confidence.astype(np.float64)) * BINS).astype(np.int64) - 1, 0, BINS - 1)


def equal_mass_bins(confidence: np.ndarray) -> np.ndarray:
    """The bin 0..14 of each confidence [N], between the 15-quantiles of them all (arXiv:1904.01685).

    Equal confidences share a bin, as scikit-learn's `calibration_curve(strategy="quantile")` has it: with many of them
    the bins are of unequal mass, and the order of the examples has no part in it.
    """
    known = np.nan_to_num(confidence.astype(np.float64))
    inner = np.quantile(known, np.arange(1, BINS) / BINS)
    return np.searchsorted(inner, known)


def bin_sums(
    bins: np.ndarray, confidence: np.ndarray, right: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of the weights [N], of the weighted confidences [N] and of the weighted hits [N] in each bin: [15] each."""
    sums = (np.bincount(bins, weights * x, minlength=BINS) for x in (np.ones(1), confidence, right))
    mass, confidences, hits = sums
    return mass, confidences, hits


def expected_error(mass: np.ndarray, confidences: np.ndarray, hits: np.ndarray) -> float:
    """ECE of `bin_sums`: |accuracy - mean confidence| averaged over the bins by mass (arXiv:1706.04599)."""
    return float(np.abs(confidences - hits).sum() / mass.sum())


def maximum_error(mass: np.ndarray, confidences: np.ndarray, hits: np.ndarray) -> float:
    """MCE of `bin_sums`: the largest |accuracy - mean confidence| of a bin that is not empty (arXiv:1706.04599)."""
    filled = mass > 0
    return float((np.abs(confidences - hits)[filled] / mass[filled]).max())


def nll(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Minus the log of the label's softmax probability, in nats: [N] float64, of logits [N,K] / temperature."""
    out = np.empty(len(logits))
    for start in range(0, len(logits), _BLOCK):
        here = slice(start, start + _BLOCK)
        z = logits[here] / np.float64(temperature)
        z -= z.max(axis=1, keepdims=True)
        out[here] = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels[here]]
    return out


def confidence(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """The largest softmax probability [N] float64 of logits [N,K] / temperature."""
    out = np.empty(len(logits))
    for start in range(0, len(logits), _BLOCK):
        z = logits[start : start + _BLOCK] / np.float64(temperature)
        out[start : start + _BLOCK] = 1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)
    return out


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T that minimises the NLL of softmax(logits / T): temperature scaling (section 4.2 of arXiv:1706.04599).

    The NLL is convex in 1/T. Its minimum is found by Newton's steps between ends that close in, in float64.

    Args:
      logits: [N,K] float, finite.
      labels: [N] int.

    Returns:
      T, from 0.01 (also where every example is right by any margin, and the NLL falls for ever) to 100.

    Raises:
      ValueError: a logit is not finite, or there are none.
    """
    if not len(logits) or not np.isfinite(logits).all():
        raise ValueError("a temperature needs logits, all of them finite")
    low, high, inverse = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE, 1.0
    if _derivatives(logits, labels, high)[0] <= 0:
        return MIN_TEMPERATURE
    if _derivatives(logits, labels, low)[0] >= 0:
        return MAX_TEMPERATURE
    for _ in range(100):
        slope, curvature = _derivatives(logits, labels, inverse)
        if slope > 0:
            high = inverse
        else:
            low = inverse
        step = inverse - slope / curvature if curvature > 0 else np.inf
        # Where Newton leaves the interval, halve it, on the scale of ratios.
        new = step if low < step < high else (low * high) ** 0.5
        done, inverse = abs(new - inverse) <= 1e-9 * inverse, new
        if done:
            break
    return float(1 / inverse)


def _derivatives(logits: np.ndarray, labels: np.ndarray, inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean NLL by 1/T: mean and variance of the logits under the softmax."""
    slope = curvature = 0.0
    for start in range(0, len(logits), _BLOCK):
        z = logits[start : start + _BLOCK].astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        p = np.exp(z * inverse)
        p /= p.sum(axis=1, keepdims=True)
        mean = (p * z).sum(axis=1)
        slope += float((mean - z[np.arange(len(z)), labels[start : start + _BLOCK]]).sum())
        curvature += float((p * np.square(z - mean[:, None])).sum())
    return slope / len(logits), curvature / len(logits)
