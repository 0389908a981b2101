"""Losses per example: whoever calls them weighs, masks and reduces.

All compute in float32, whatever the logits' dtype. Targets are class numbers [B] int, or one probability (or 0/1 for
several labels) per class [B,K] float.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

# (logits [B,K], targets [B,K]) -> loss [B].
Loss = Callable[[jax.Array, jax.Array], jax.Array]


def dense_targets(targets: jax.Array, num_classes: int, label_smoothing: float) -> jax.Array:
    """Targets as [B,K] float32, smoothed: `t * (1 - s) + s / K` (section 7 of arXiv:1512.00567).

    Args:
      targets: [B] int, or [B,K] float.
      num_classes: K.
      label_smoothing: s, in [0, 1].

    Raises:
      ValueError: targets are neither [B] int nor [B,K].
    """
    if targets.ndim == 1 and jnp.issubdtype(targets.dtype, jnp.integer):
        targets = jax.nn.one_hot(targets, num_classes, dtype=jnp.float32)
    if targets.ndim != 2 or targets.shape[1] != num_classes:
        raise ValueError(
            f"targets must be [B] int or [B,{num_classes}] float, got {list(targets.shape)} {targets.dtype}"
        )
    return optax.smooth_labels(targets.astype(jnp.float32), label_smoothing)


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of the softmax: `-sum_k t_k log softmax(z)_k`.

    Args:
      logits: z [B,K].
      targets: [B] int class numbers, or t [B,K] float, each row summing to 1.
      label_smoothing: share of the target that is spread evenly over all K classes (arXiv:1512.00567).

    Returns:
      [B] float32.

    Raises:
      ValueError: targets are neither [B] int nor [B,K].
    """
    logits = logits.astype(jnp.float32)
    return optax.softmax_cross_entropy(logits, dense_targets(targets, logits.shape[-1], label_smoothing))


def sigmoid_binary_cross_entropy(
    logits: jax.Array, targets: jax.Array, *, label_smoothing: float = 0.0, class_weights: jax.Array | None = None
) -> jax.Array:
    """One binary cross-entropy per class, summed: `-sum_k t_k log s(z_k) + (1 - t_k) log(1 - s(z_k))`, s the sigmoid.

    As an alternative to the softmax for ImageNet: arXiv:2006.07159 and arXiv:2110.00476. The sum over
    classes is big_vision's; timm takes the mean, which is K times smaller.

    Args:
      logits: z [B,K].
      targets: [B] int class numbers, or t [B,K] float, every entry in [0, 1].
      label_smoothing: s of `t * (1 - s) + s / K`.
      class_weights: [K], what the term of each class counts in the sum; by default 1.

    Returns:
      [B] float32.

    Raises:
      ValueError: targets are neither [B] int nor [B,K].
    """
    logits = logits.astype(jnp.float32)
    targets = dense_targets(targets, logits.shape[-1], label_smoothing)
    terms = optax.sigmoid_binary_cross_entropy(logits, targets)
    return (terms if class_weights is None else terms * class_weights).sum(axis=-1)


# The names that `loss.name` of a config may have.
LOSSES: dict[str, Callable[..., jax.Array]] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_binary_cross_entropy": sigmoid_binary_cross_entropy,
}

# The values of `loss.class_weights` but "none".
CLASS_WEIGHTS = ("inverse", "effective")


def class_counts(labels: np.ndarray, num_classes: int, frequencies: np.ndarray) -> np.ndarray:
    """How often each class is met in an epoch: float64 [K].

    Args:
      labels: [N] ints, or [N,K] float, 1 for each class that is there.
      num_classes: K.
      frequencies: [N], how often each record is met (`order.AnyOrder.frequencies`).
    """
    if labels.ndim == 1:
        return np.bincount(labels, weights=frequencies, minlength=num_classes)
    return frequencies @ labels


def class_weights(counts: np.ndarray, kind: str, beta: float) -> np.ndarray:
    """Weights that give rare classes more say in the loss: float32 [K].

    "inverse" is 1 / n. "effective" is (1 - beta) / (1 - beta^n), the inverse of the effective number of examples
    (equation 2 of arXiv:1901.05555): 1 for every class with beta = 0, 1 / n in the limit of beta = 1.

    They are scaled so that their mean over the examples, sum_k n_k w_k / sum_k n_k, is 1: the loss keeps its size and
    the learning rate its meaning. For "inverse" these are the numbers of scikit-learn's "balanced" and of Keras'
    examples, sum(n) / (K n). The paper makes their mean over the classes 1 instead: the mean loss is then smaller, the
    more so the rarer the rare classes are.

    Args:
      counts: n [K], not negative. A class without examples has weight 1: it can only be learnt as absent.
      kind: inverse | effective.
      beta: for effective, 0 <= beta < 1; the paper takes 0.9 to 0.9999.

    Raises:
      ValueError: the kind is another.
    """
    there = counts > 0
    n = np.where(there, counts, 1.0)
    if kind == "inverse":
        weights = 1 / n
    elif kind == "effective":
        # 1 - beta**n by expm1: for beta near 1 the difference has lost its digits.
        weights = (1 - beta) / -np.expm1(n * np.log(beta)) if beta > 0 else np.ones_like(n)
    else:
        raise ValueError(f"class weights are {' or '.join(CLASS_WEIGHTS)}, not {kind!r}")
    scale = (n * weights)[there].sum() / n[there].sum()
    return np.where(there, weights / scale, 1.0).astype(np.float32)


def weighted(loss: Loss, weights: np.ndarray) -> Loss:
    """`loss` times the weight of the example's class, sum_k t_k w_k where its label is mixed of several."""
    return lambda logits, targets: loss(logits, targets) * (targets @ weights)
