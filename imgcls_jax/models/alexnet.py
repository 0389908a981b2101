"""AlexNet in its one-column form (Krizhevsky, "One weird trick for parallelizing CNNs", arXiv:1404.5997).

Names follow torchvision: `features.0`, `features.3`, ..., `classifier.1`, `classifier.4`, `classifier.6`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imgcls_jax.models import layers
from imgcls_jax.models.pooling import max_pool
from imgcls_jax.models.variant import Layout, Variant

# (place in the sequence, channels, kernel, stride, padding, whether a pool follows) of each convolution.
CONVOLUTIONS = (
    (0, 64, 11, 4, 2, True),
    (3, 192, 5, 1, 2, True),
    (6, 384, 3, 1, 1, False),
    (8, 256, 3, 1, 1, False),
    (10, 256, 3, 1, 1, True),
)
# torch's default: uniform in +-fan_in**-0.5.
INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class AlexNet(nn.Module):
    """Five convolutions, three max pools, average pooling to 6x6, dense 4096, 4096 and num_classes.

    Attributes:
      num_classes: K; 0 gives the 4096 features before the last layer.
      dropout: before each of the two hidden dense layers (section 4.2 of Krizhevsky et al. 2012: 0.5).
      dtype: of the computation.

    Initialisation: torchvision's kernels, uniform in +-fan_in**-0.5; biases zero.
    """

    num_classes: int
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B,H,W,C] float -> logits [B,K] float32; features [B,4096] if num_classes is 0.

        Raises ConfigError for images of less than 63 pixels.
        """
        conv = functools.partial(layers.Conv, use_bias=True, kernel_init=INIT, dtype=self.dtype)
        x = images
        for place, channels, kernel, stride, padding, pool in CONVOLUTIONS:
            x = nn.relu(conv(channels, kernel, stride=stride, padding=padding, name=f"features.{place}")(x))
            if pool:
                x = max_pool(layers.FeatureMap()(x), 3, 2)
        x = layers.flatten(layers.adaptive_avg_pool(x, 6, 6))
        for place in (1, 4):
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
            x = nn.relu(layers.Dense((4096,), kernel_init=INIT, dtype=self.dtype, name=f"classifier.{place}")(x))
        return layers.classifier(x, self.num_classes, kernel_init=INIT, name="classifier.6")


VARIANTS = {
    "alexnet": Variant(
        AlexNet,
        {},
        Layout(stem="features.0", heads=("classifier.6",), layers=(r"features\.(\d+)", r"classifier\.([14])")),
        reference="torchvision",
        top1=0.56522,
        source="torchvision IMAGENET1K_V1",
    ),
}
