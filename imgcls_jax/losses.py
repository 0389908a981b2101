"""Losses per example: whoever calls them weighs, masks and reduces.

All compute in float32, whatever the logits' dtype. Targets are class numbers [B] int, or one probability (or 0/1 for
several labels) per class [B,K] float.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


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


def sigmoid_binary_cross_entropy(logits: jax.Array, targets: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """One binary cross-entropy per class, summed: `-sum_k t_k log s(z_k) + (1 - t_k) log(1 - s(z_k))`, s the sigmoid.

    As an alternative to the softmax for ImageNet: arXiv:2006.07159 and arXiv:2110.00476. The sum over
    classes is big_vision's; timm takes the mean, which is K times smaller.

    Args:
      logits: z [B,K].
      targets: [B] int class numbers, or t [B,K] float, every entry in [0, 1].
      label_smoothing: s of `t * (1 - s) + s / K`.

    Returns:
      [B] float32.

    Raises:
      ValueError: targets are neither [B] int nor [B,K].
    """
    logits = logits.astype(jnp.float32)
    targets = dense_targets(targets, logits.shape[-1], label_smoothing)
    return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


# The names that `loss.name` of a config may have.
LOSSES: dict[str, Callable[..., jax.Array]] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_binary_cross_entropy": sigmoid_binary_cross_entropy,
}
