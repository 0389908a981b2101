"""Two classifiers on the same examples: differences with their intervals, and McNemar's test."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from imgcls_jax.metrics import intervals


def mcnemar(only_first: int, only_second: int) -> tuple[float, float]:
    """P-values of "both are right equally often" (McNemar 1947; Fagerland et al., BMC Med Res Methodol 13:91, 2013).

    Args:
      only_first: examples that only the first has right.
      only_second: examples that only the second has right.

    Returns:
      (exact, mid-p), both two-sided. The mid-p counts the outcome itself half: it is the better one to read, as the
      exact test is too cautious with few such examples.
    """
    from scipy import stats  # imported here: it takes half a second

    n, fewer = only_first + only_second, min(only_first, only_second)
    below, here = float(stats.binom.cdf(fewer - 1, n, 0.5)), float(stats.binom.pmf(fewer, n, 0.5))
    return min(1.0, 2 * (below + here)), min(1.0, 2 * below + here)


def share_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, intervals.Interval]:
    """Difference of two shares on the same examples, second minus first, and its 95% interval.

    The interval is Wald's after half an example was added to each of the four cells: close to 95% for small samples
    too (Agresti and Min, Statistics in Medicine 24, 729-740, 2005).

    Args:
      first: [N] bool.
      second: [N] bool.
    """
    gained, lost, n = int((second & ~first).sum()), int((first & ~second).sum()), len(first)
    b, c, m = gained + 0.5, lost + 0.5, n + 2
    centre = (b - c) / m
    half = intervals.Z95 * math.sqrt((b + c) - (b - c) ** 2 / m) / m
    return (gained - lost) / n, [max(-1.0, centre - half), min(1.0, centre + half)]


def mean_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, intervals.Interval | None]:
    """Difference of two means on the same examples, second minus first, and its 95% bootstrap interval.

    Args:
      first: [N] float.
      second: [N] float.
    """
    difference = second.astype(np.float64) - first.astype(np.float64)
    statistic = lambda weights: {"mean": intervals.weighted_mean(difference, weights)}  # noqa: E731
    values: dict[str, Any] = intervals.with_bootstrap(statistic, len(difference), {"mean": (-np.inf, np.inf)})
    return values["mean"], values["mean_ci95"]
