"""95% intervals: Wilson's for shares, the bootstrap over examples, and the jackknife where resamples cost too much."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

Z95 = 1.959963984540054  # a standard normal lies within +-Z95 with probability 0.95

RESAMPLES = 1000  # of the bootstrap

Interval = list[float]


def wilson_interval(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
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


def share_interval(successes: float, n: float) -> Interval | None:
    """`wilson_interval` as JSON has it, or None for a share of nothing."""
    return list(wilson_interval(successes, n)) if n > 0 else None


def f1_interval(correct: float, predicted: float, support: float) -> Interval | None:
    """Interval of a class's F1, or None if the class occurs nowhere.

    F1 = 2J / (1 + J), where J is the share of hits among the examples that have the class as label or prediction. That
    is a proportion, and F1 rises with it: the ends are those of J's Wilson interval, mapped.
    """
    union = predicted + support - correct
    if union <= 0:
        return None
    return [2 * j / (1 + j) for j in wilson_interval(correct, union)]


def bootstrap(
    statistic: Callable[[np.ndarray], dict[str, float]], n: int, *, resamples: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """A statistic over resamples of n examples, drawn with replacement (Efron, Annals of Statistics 7, 1979).

    Args:
      statistic: weights [n] float64 -> values by name; a weight says how often the example was drawn.
      n: number of examples.
      resamples: how many.
      seed: of the draws.

    Returns:
      [resamples] float64 by name.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)) for _ in range(resamples)]
    return {name: np.array([value[name] for value in values]) for name in values[0]}


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Mean of values [N] with weights [N]; NaN if a value is infinite and was not drawn, and so its interval None."""
    with np.errstate(invalid="ignore"):
        # Not a dot product: to start its threads a thousand times takes far longer than the product.
        return float((weights * values).sum() / weights.sum())


def bootstrap_interval(value: float, resampled: np.ndarray, bounds: tuple[float, float]) -> Interval | None:
    """The central 95% of resampled values [R], mirrored at the sample's own value and cut off at the bounds.

    Mirrored because many metrics are biased, and a resample differs from the sample as the sample does from the truth
    (Davison and Hinkley 1997, equation 5.6): the ECE of a sample is larger than the truth, that of a resample larger
    still. The interval is the truth's: where the bias is large, the value itself may lie outside.

    Returns:
      [low, high]; None if a value is not finite.
    """
    if not (math.isfinite(value) and np.isfinite(resampled).all()):
        return None
    low, high = (2 * value - float(q) for q in np.quantile(resampled, (0.975, 0.025)))
    return [max(bounds[0], low), min(bounds[1], high)]


def with_bootstrap(
    statistic: Callable[[np.ndarray], dict[str, float]],
    n: int,
    bounds: Mapping[str, tuple[float, float]],
) -> dict[str, float | Interval | None]:
    """The values of a statistic (see `bootstrap`), each with its interval under its name and `_ci95`.

    Args:
      statistic: weights [n] -> values by name.
      n: number of examples.
      bounds: of those values that are not between 0 and 1.
    """
    values, result = statistic(np.ones(n)), dict[str, float | Interval | None]()
    resampled = bootstrap(statistic, n, resamples=RESAMPLES)
    for name, value in values.items():
        result[name] = value
        result[f"{name}_ci95"] = bootstrap_interval(value, resampled[name], bounds.get(name, (0.0, 1.0)))
    return result


def jackknife_interval(value: float, influence: np.ndarray, *, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval:
    """value +- 1.96 standard errors, cut off at the bounds; the error is the infinitesimal jackknife's.

    That is the bootstrap to first order (Efron, Biometrika 68, 1981), and DeLong's for a ROC-AUC (Biometrics 44, 1988).

    Args:
      value: of the statistic.
      influence: [n], derivative of the statistic by the weight of each example, at weights 1.
      bounds: of the statistic.
    """
    half = Z95 * float(np.sqrt(np.square(influence, dtype=np.float64).sum()))
    return [max(bounds[0], value - half), min(bounds[1], value + half)]
