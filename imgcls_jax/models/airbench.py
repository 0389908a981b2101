"""The network of airbench: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv:2404.00498)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imgcls_jax.models import layers
from imgcls_jax.models.pooling import max_pool
from imgcls_jax.models.variant import SMALL, Layout, Variant
from imgcls_jax.types import ConfigError

NEIGHBOURS = 0.88  # correlation of neighbouring pixels that the first filters assume; Fashion-MNIST's, about
LEAST = 9  # pixels: the first filters take one, and each group halves what is left


class AirBench(nn.Module):
    """2x2 filters that whiten, three groups of two 3x3 convolutions with a max pool in the first, max, dense.

    Attributes:
      num_classes: K; 0 gives pooled features.
      width: channels of the first group, at half the size; the two others have four times as many.
      dtype: of the computation.

    The classifier has no bias, and what it puts out is divided by the number of its inputs.

    Initialisation: `whiten` as in `whitening`, to be frozen (configs/speedrun.py does); the other convolutions as
    torch's default, but their first filters hand the channels on as they are; the classifier N(0, 1). In the original
    `whiten` is computed from 5,000 training images, and batch norms keep 0.6 of their running statistics a step (of
    2,000 images), here 0.9, and their scales of 1.
    """

    num_classes: int
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B,H,W,C] float -> logits [B,K] float32; features [B,D] if num_classes is 0. Raises ConfigError."""
        if min(images.shape[1:3]) < LEAST:
            height, width = images.shape[1:3]
            raise ConfigError(f"the image size {height}x{width} is too small: sides must be {LEAST} pixels or more")
        act = functools.partial(nn.gelu, approximate=False)
        norm = functools.partial(layers.batch_norm, train=train, dtype=self.dtype, epsilon=1e-12)
        conv = functools.partial(layers.Conv, kernel_size=3, kernel_init=handing_on, dtype=self.dtype)
        channels = images.shape[-1]
        x = layers.Conv(
            2 * 4 * channels, 2, padding=0, use_bias=True, kernel_init=whitening, dtype=self.dtype, name="whiten"
        )(images.astype(self.dtype))
        x = act(x)
        for i, width in enumerate((self.width, 4 * self.width, 4 * self.width), 1):
            x = max_pool(conv(width, name=f"layers.{i}.conv1")(x), 2, 2)
            x = act(norm(x, name=f"layers.{i}.norm1"))
            x = conv(width, name=f"layers.{i}.conv2")(x)
            x = act(norm(x, name=f"layers.{i}.norm2"))
        x = jnp.max(layers.FeatureMap()(x), axis=(1, 2)).astype(jnp.float32) / x.shape[-1]
        normal = nn.initializers.normal(1.0)
        return layers.classifier(x, self.num_classes, kernel_init=normal, use_bias=False, name="head")


def whitening(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Kernel [2,2,C,8C] that whitens each channel's 2x2 pixels, then the same negated.

    Pixels of variance 1 whose correlation is NEIGHBOURS to the power of their distance along each axis (the separable
    Markov model of images) have sums and differences for principal components: means, differences along each axis,
    differences of differences, which are scaled to variance 1.
    """
    del key
    pair = np.array([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5 / np.sqrt([[1 + NEIGHBOURS], [1 - NEIGHBOURS]])
    each = np.einsum("ih,jw->hwij", pair, pair).reshape(2, 2, 1, 4, 1)
    channels = shape[2]
    kernel = (each * np.eye(channels).reshape(1, 1, channels, 1, channels)).reshape(2, 2, channels, 4 * channels)
    return jnp.asarray(np.concatenate([kernel, -kernel], axis=-1), dtype)


def handing_on(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Kernel [3,3,C,F] uniform with variance 1 / (3 * 9 * C), but output c is input c for the first C."""
    kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)
    handed = min(shape[2:])
    kernel = kernel.at[:, :, :, :handed].set(0.0)
    return kernel.at[shape[0] // 2, shape[1] // 2, jnp.arange(handed), jnp.arange(handed)].set(1.0)


VARIANTS = {
    "airbench94": Variant(
        AirBench,
        {},
        Layout(stem="whiten", heads=("head",), layers=(r"whiten", r"layers\.(\d)")),
        preprocessing=SMALL,
        num_classes=10,
    ),
}
