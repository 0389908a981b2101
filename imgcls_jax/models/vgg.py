"""VGG (Simonyan and Zisserman, arXiv:1409.1556), plain and with batch norm.

Names follow torchvision: `features.0`, ..., `classifier.0`, `classifier.3`, `classifier.6`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imgcls_jax.models import layers
from imgcls_jax.models.pooling import max_pool
from imgcls_jax.models.variant import Layout, Variant

WIDTHS = (64, 128, 256, 512, 512)  # channels of the stages


class VGG(nn.Module):
    """Stages of 3x3 convolutions, a 2x2 max pool after each, average pooling to 7x7, dense 4096, 4096, num_classes.

    Attributes:
      num_classes: K; 0 gives the 4096 features before the last layer.
      stage_sizes: number of convolutions in each of the five stages.
      batch_norm: whether one follows each convolution.
      dropout: after each of the two hidden dense layers (section 3.1 of the paper: 0.5).
      dtype: of the computation.

    Initialisation: torchvision's. Convolutions He-normal with fan-out, dense layers N(0, 0.01), biases zero.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    batch_norm: bool = False
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B,H,W,C] float -> logits [B,K] float32; features [B,4096] if num_classes is 0.

        Raises ConfigError for images of less than 32 pixels.
        """
        x = images
        place = 0  # in the reference's sequence of layers
        for width, size in zip(WIDTHS, self.stage_sizes, strict=True):
            for _ in range(size):
                x = layers.Conv(width, 3, use_bias=True, dtype=self.dtype, name=f"features.{place}")(x)
                if self.batch_norm:
                    x = layers.batch_norm(x, name=f"features.{place + 1}", train=train, dtype=self.dtype)
                x = nn.relu(x)
                place += 3 if self.batch_norm else 2
            x = max_pool(layers.FeatureMap()(x), 2, 2)
            place += 1
        x = layers.flatten(layers.adaptive_avg_pool(x, 7, 7))
        init = nn.initializers.normal(0.01)
        for place in (0, 3):
            x = nn.relu(layers.Dense((4096,), kernel_init=init, dtype=self.dtype, name=f"classifier.{place}")(x))
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return layers.classifier(x, self.num_classes, kernel_init=init, name="classifier.6")


LAYOUT = Layout(
    stem="features.0",
    heads=("classifier.6",),
    layers=(r"features\.(\d+)", r"classifier\.([03])"),
    # timm's, whose first two dense layers are convolutions.
    aliases=(
        (r"^pre_logits\.fc1\.", "classifier.0."),
        (r"^pre_logits\.fc2\.", "classifier.3."),
        (r"^head\.fc\.", "classifier.6."),
    ),
)


def _variant(stage_sizes: tuple[int, ...], top1: float, *, batch_norm: bool = False) -> Variant:
    fields = {"stage_sizes": stage_sizes, "batch_norm": batch_norm}
    return Variant(VGG, fields, LAYOUT, reference="torchvision", top1=top1, source="torchvision IMAGENET1K_V1")


# Columns A, B, D, E of table 1.
VARIANTS = {
    "vgg11": _variant((1, 1, 2, 2, 2), 0.69020),
    "vgg11_bn": _variant((1, 1, 2, 2, 2), 0.70370, batch_norm=True),
    "vgg13": _variant((2, 2, 2, 2, 2), 0.69928),
    "vgg13_bn": _variant((2, 2, 2, 2, 2), 0.71586, batch_norm=True),
    "vgg16": _variant((2, 2, 3, 3, 3), 0.71592),
    "vgg16_bn": _variant((2, 2, 3, 3, 3), 0.73360, batch_norm=True),
    "vgg19": _variant((2, 2, 4, 4, 4), 0.72376),
    "vgg19_bn": _variant((2, 2, 4, 4, 4), 0.74218, batch_norm=True),
}
