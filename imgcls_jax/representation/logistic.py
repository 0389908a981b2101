"""The linear probe: multinomial logistic regression on standardised features, its regularisation chosen on a part.

The loss is ours, on the devices, and the optimiser SciPy's L-BFGS-B, which scikit-learn's LogisticRegression calls too.
On a CPU the two take as long; this one also has accelerators, and never more logits than a block's in memory, which is
what 1,000 classes of a million examples need.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imgcls_jax.representation import local

GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # L2, from strong to weak: each fit starts from the one before
HELD_OUT = 0.2  # share of each class that chooses
FEWEST = 5  # examples of a class, below which nothing is held out and the regularisation is UNCHOSEN
UNCHOSEN = 1e-1

MAX_ITERATIONS = 200
BLOCK = 8192  # examples whose logits exist at a time, over all devices


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear classifier: logits are (features - mean) / std @ weights + bias.

    Attributes:
      weights: [D,K] float64.
      bias: [K] float64.
      mean: [D] float32, of the features it was fitted on.
      std: [D] float32, the same; 1 where a feature was constant.
      l2: the regularisation it was fitted with.
      converged: False if MAX_ITERATIONS came first.
    """

    weights: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    l2: float
    converged: bool

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Features [N,D] -> classes [N] int64, the lowest of equal ones."""
        parts = [self._logits(features[i : i + BLOCK]).argmax(axis=1) for i in range(0, len(features), BLOCK)]
        return np.concatenate(parts)

    def _logits(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) / self.std @ self.weights.astype(np.float32) + self.bias


class Problem:
    """Features and labels on the devices, to fit with one regularisation after the other.

    What is minimised is the mean cross-entropy + l2 / 2 * |weights|^2; the bias is free.
    The C of scikit-learn is 1 / (l2 N).

    Args:
      features: [N,D] float32.
      labels: [N] int.
      num_classes: K.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
        self.shape = (features.shape[1], num_classes)
        self.mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        std = features.std(axis=0, dtype=np.float64).astype(np.float32)
        self.std = np.where(std > 0, std, np.float32(1))
        n, (rows, self._replicated, devices) = len(features), local.shardings(axis=1)
        block = -(-min(BLOCK, n) // devices) * devices
        blocks = -(-n // block)
        x = np.zeros((blocks * block, self.shape[0]), np.float32)
        np.subtract(features, self.mean, out=x[:n])
        x[:n] /= self.std
        y = np.zeros(blocks * block, np.int32)
        y[:n] = labels
        share = np.zeros(blocks * block, np.float32)
        share[:n] = 1 / n
        self._data = tuple(jax.device_put(a.reshape(blocks, block, *a.shape[1:]), rows) for a in (x, y, share))

    def fit(self, l2: float, start: Linear | None = None) -> Linear:
        """The minimum for a regularisation, to about float32's precision, looked for from `start` or zeros."""
        from scipy import optimize

        d, k = self.shape
        x0 = np.zeros((d + 1) * k) if start is None else np.append(start.weights.ravel(), start.bias)

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            parameters = jax.device_put(flat.astype(np.float32).reshape(d + 1, k), self._replicated)
            value, gradient = _loss(parameters, *self._data)
            weights = flat[: d * k]
            total = np.asarray(gradient, np.float64).ravel()
            total[: d * k] += l2 * weights
            return float(value) + l2 / 2 * float(weights @ weights), total

        # Below these tolerances float32 has only noise.
        options = {"maxiter": MAX_ITERATIONS, "gtol": 1e-5, "ftol": 1e-7, "maxls": 50}
        found = optimize.minimize(loss, x0, jac=True, method="L-BFGS-B", options=options)
        solution = found.x.reshape(d + 1, k)
        return Linear(solution[:d], solution[d], self.mean, self.std, l2, bool(found.success))


@jax.jit
def _loss(parameters: jax.Array, x: jax.Array, y: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weighted cross-entropy [] and its gradient [D+1,K], block after block, so that one block's logits exist."""

    def block_loss(parameters: jax.Array, x: jax.Array, y: jax.Array, share: jax.Array) -> jax.Array:
        logits = jnp.matmul(x, parameters[:-1], precision=jax.lax.Precision.HIGHEST) + parameters[-1]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)[:, 0]
        return -(chosen * share).sum()

    def body(total: Any, block: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(block_loss)(parameters, *block)), None

    total, _ = jax.lax.scan(body, (jnp.zeros(()), jnp.zeros_like(parameters)), (x, y, share))
    return total


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the regularisation was chosen.

    Attributes:
      l2: the chosen one.
      held_out: number of examples that chose; 0: nothing was held out, and l2 is UNCHOSEN.
      sweep: (l2, accuracy on those) in the order of GRID.
    """

    l2: float
    held_out: int
    sweep: tuple[tuple[float, float], ...] = ()


def fit(features: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[Linear, Choice]:
    """The linear probe of features [N,D] with labels [N]: chooses the regularisation, then fits on all examples.

    HELD_OUT of each class, drawn with a fixed seed, chooses the value of GRID with the highest accuracy, the strongest
    of equal ones. If a class that occurs has fewer than FEWEST examples, nothing is held out.
    """
    chosen = held_out(labels)
    if not chosen.any():
        return Problem(features, labels, num_classes).fit(UNCHOSEN), Choice(UNCHOSEN, 0)
    problem = Problem(features[~chosen], labels[~chosen], num_classes)
    fits: list[Linear] = []
    for l2 in GRID:
        fits.append(problem.fit(l2, fits[-1] if fits else None))
    accuracies = [float((f.predict(features[chosen]) == labels[chosen]).mean()) for f in fits]
    best = int(np.argmax(accuracies))
    choice = Choice(GRID[best], int(chosen.sum()), tuple(zip(GRID, accuracies, strict=True)))
    # The standardisation differs by a hair, so that this is a start, not the answer.
    return Problem(features, labels, num_classes).fit(GRID[best], fits[best]), choice


def held_out(labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Which examples choose, [N] bool: HELD_OUT of each class; none if some class has fewer than FEWEST examples."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() >= FEWEST:
        for label, count in zip(classes, counts, strict=True):
            members = np.flatnonzero(labels == label)
            chosen[rng.choice(members, round(HELD_OUT * count), replace=False)] = True
    return chosen
