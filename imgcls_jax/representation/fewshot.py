"""Few-shot: small training sets drawn from features, and what is said of several of them."""

from __future__ import annotations

import math

import numpy as np

from imgcls_jax.types import ConfigError


def draw(labels: np.ndarray, num_classes: int, shots: int, seed: int) -> np.ndarray:
    """The places of `shots` examples of each class among labels [N], [num_classes * shots] int64, ascending.

    Draws with the same seed are nested: those of 5 shots are among those of 10.

    Raises:
      ConfigError: a class has too few.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    places = []
    for label in range(num_classes):
        members = order[labels[order] == label]
        if len(members) < shots:
            raise ConfigError(
                f"--shots={shots} needs as many training examples of every class, but class {label} has "
                f"{len(members)}; ask for fewer shots or give a larger --train_split."
            )
        places.append(members[:shots])
    return np.sort(np.concatenate(places))


def mean_interval(values: list[float]) -> tuple[float, list[float] | None]:
    """Mean and its 95% interval by Student's t over independent draws, cut off at 0 and 1; None for one draw.

    The interval is for the draw of the training examples; the test examples are the same in all.
    """
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, [max(0.0, mean - half), min(1.0, mean + half)]
