"""The residual networks of Big Transfer (Kolesnikov et al., arXiv:1912.11370): pre-activation without batch norm.

Group norm (arXiv:1803.08494) and standardised convolutions (arXiv:1903.10520) in its stead. Names follow timm:
`stem.conv`, `stages.0.blocks.0/norm1`, `conv1`, ..., `downsample.conv`, `norm`, `head.fc`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imgcls_jax.models import layers
from imgcls_jax.models.pooling import max_pool
from imgcls_jax.models.variant import HALF, Layout, Preprocessing, Variant
from imgcls_jax.types import ConfigError

EXPANSION = 4  # a block's output channels in units of its inner width
GROUPS = 32

StdConv = functools.partial(layers.Conv, standardise=1e-8)


def _norm_relu(x: jax.Array, *, dtype: Any, name: str) -> jax.Array:
    """Group norm (32 groups, float32 statistics) and ReLU, [B,H,W,C] -> the same."""
    # The fast variance is a difference of two large numbers where the mean is large.
    return nn.relu(nn.GroupNorm(GROUPS, epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)(x))


class PreActBottleneck(nn.Module):
    """Norm, ReLU and 1x1, 3x3 at `stride`, 1x1: [B,H,W,C] -> [B,H/stride,W/stride,width * EXPANSION].

    With `project` the shortcut is a 1x1 convolution of what the first ReLU gives.
    """

    width: int
    stride: int
    project: bool
    drop_path: float | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(StdConv, dtype=self.dtype)
        out = self.width * EXPANSION
        shortcut = x
        x = _norm_relu(x, dtype=self.dtype, name="norm1")
        if self.project:
            shortcut = conv(out, 1, stride=self.stride, name="downsample.conv")(x)
        x = conv(self.width, 1, name="conv1")(x)
        x = _norm_relu(x, dtype=self.dtype, name="norm2")
        x = conv(self.width, 3, stride=self.stride, name="conv2")(x)
        x = _norm_relu(x, dtype=self.dtype, name="norm3")
        x = conv(out, 1, name="conv3")(x)
        return layers.DropPath()(x, self.drop_path, train=train) + shortcut


class ResNetV2(nn.Module):
    """7x7 at stride 2, 3x3 max pool at stride 2, stages of blocks as in ResNet, norm, ReLU, mean, dense.

    Attributes:
      num_classes: K; 0 gives pooled features.
      stage_sizes: number of blocks in each stage.
      width: channels of the stem and inner width of the first stage, a multiple of 32.
      drop_path: stochastic depth of the last block; the others' rise to it linearly from 0.
      dtype: of the computation.

    Initialisation: timm's. Convolutions He-normal with fan-out (arXiv:1502.01852; the scale only sets how fast they
    learn, since they are standardised), the classifier N(0, 0.01).
    """

    num_classes: int
    stage_sizes: Sequence[int]
    width: int = 64
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B,H,W,C] float -> logits [B,K] float32; features [B,D] if num_classes is 0. Raises ConfigError."""
        if self.width % GROUPS:
            raise ConfigError(f"width is {self.width}: group norm needs a multiple of {GROUPS}")
        x = StdConv(self.width, 7, stride=2, dtype=self.dtype, name="stem.conv")(images)
        # Zeros and not -inf around it, as in the original: there is no ReLU before it, so they can be the maximum.
        x = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)
        rates = iter(layers.drop_path_rates(self.drop_path, sum(self.stage_sizes)))
        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                x = PreActBottleneck(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    project=i == 0,
                    drop_path=next(rates),
                    dtype=self.dtype,
                    name=f"stages.{stage}.blocks.{i}",
                )(x, train=train)
        x = _norm_relu(x, dtype=self.dtype, name="norm")
        x = jnp.mean(layers.FeatureMap()(x), axis=(1, 2), dtype=jnp.float32)
        x = layers.PooledFeatures(name="head.fc.features")(x)
        if self.num_classes:  # a 1x1 convolution in the reference
            init = nn.initializers.normal(0.01)
            head = layers.Conv(self.num_classes, 1, use_bias=True, kernel_init=init, name="head.fc")
            x = head(x[:, None, None])[:, 0, 0]
        return x


def _variant(stage_sizes: tuple[int, ...], crop: Preprocessing, top1: float, tag: str, *, factor: int = 1) -> Variant:
    return Variant(
        ResNetV2,
        {"stage_sizes": stage_sizes, "width": 64 * factor},
        Layout(
            stem="stem.conv", heads=("head.fc",), layers=(r"stem", r"stages\.(\d+)\.blocks\.(\d+)"), joins=(r"norm",)
        ),
        reference="timm",
        preprocessing=crop,
        top1=top1,
        source=f"timm results-imagenet.csv, {tag}",
    )


DISTILLED = Preprocessing(mean=HALF.mean, std=HALF.std, interpolation="bicubic", crop_pct=0.875)
TUNED = Preprocessing(mean=HALF.mean, std=HALF.std, interpolation="bilinear", crop_pct=1.0, image_size=448)

VARIANTS = {
    # BiT's R50x1, R101x1 and R50x3; the first's weights are those of arXiv:2106.05237.
    "resnetv2_50x1_bit": _variant((3, 4, 6, 3), DISTILLED, 0.82820, "goog_distilled_in1k"),
    "resnetv2_101x1_bit": _variant((3, 4, 23, 3), TUNED, 0.82332, "goog_in21k_ft_in1k"),
    "resnetv2_50x3_bit": _variant((3, 4, 6, 3), TUNED, 0.83982, "goog_in21k_ft_in1k", factor=3),
}
