"""SE-ResNet as its authors trained it in Caffe (Hu et al., arXiv:1709.01507), which timm calls legacy.

It differs from the SE of resnet.py in where the stride is (the first 1x1, as in v1), in the pool of the stem and in
names, which follow timm: `layer0.conv1`, `layer1.0/conv1`, ..., `layer1.0/se_module/fc1`, `last_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imgcls_jax.models import layers
from imgcls_jax.models.layers import conv_bn_act
from imgcls_jax.models.pooling import max_pool
from imgcls_jax.models.variant import Layout, Variant
from imgcls_jax.types import ConfigError

EXPANSION = 4  # a block's output channels in units of its inner width
REDUCTION = 16  # and in units of the squeezed ones


class SEBottleneck(nn.Module):
    """1x1 at `stride`, 3x3, 1x1, squeeze-and-excitation: [B,H,W,C] -> [B,H/stride,W/stride,width * EXPANSION]."""

    width: int
    stride: int
    drop_path: float | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        out = self.width * EXPANSION
        common: dict[str, Any] = {"train": train, "dtype": self.dtype}
        shortcut = x
        if self.stride > 1 or x.shape[-1] != out:
            names = ("downsample.0", "downsample.1")
            shortcut = conv_bn_act(x, out, 1, stride=self.stride, names=names, act=None, **common)
        x = conv_bn_act(x, self.width, 1, stride=self.stride, names=("conv1", "bn1"), **common)
        x = conv_bn_act(x, self.width, 3, names=("conv2", "bn2"), **common)
        x = conv_bn_act(x, out, 1, names=("conv3", "bn3"), act=None, **common)
        x = layers.SE(out // REDUCTION, dtype=self.dtype, name="se_module")(x)
        x = layers.DropPath()(x, self.drop_path, train=train)
        return nn.relu(x + shortcut)


class LegacySENet(nn.Module):
    """7x7 at stride 2, 3x3 max pool at stride 2 rounded up, stages of blocks as in ResNet, mean, dense.

    Attributes:
      num_classes: K; 0 gives pooled features.
      stage_sizes: number of blocks in each stage.
      width: channels of the stem and inner width of the first stage, a multiple of 4.
      dropout: before the classifier (the authors' has none; timm's 0.2 by default).
      drop_path: stochastic depth of the last block; the others' rise to it linearly from 0.
      dtype: of the computation.

    Initialisation: timm's. Convolutions He-normal with fan-out (arXiv:1502.01852), the classifier U(+-1/sqrt(inputs)).
    """

    num_classes: int
    stage_sizes: Sequence[int]
    width: int = 64
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B,H,W,C] float -> logits [B,K] float32; features [B,D] if num_classes is 0. Raises ConfigError."""
        if self.width % (REDUCTION // EXPANSION):
            raise ConfigError(f"width is {self.width}: squeeze-and-excitation needs a multiple of 4")
        common: dict[str, Any] = {"train": train, "dtype": self.dtype}
        x = conv_bn_act(images, self.width, 7, stride=2, names=("layer0.conv1", "layer0.bn1"), **common)
        x = _pool(x)
        rates = iter(layers.drop_path_rates(self.drop_path, sum(self.stage_sizes)))
        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                x = SEBottleneck(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    drop_path=next(rates),
                    dtype=self.dtype,
                    name=f"layer{stage + 1}.{i}",
                )(x, train=train)
        x = jnp.mean(layers.FeatureMap()(x), axis=(1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        return layers.classifier(x, self.num_classes, kernel_init=init, name="last_linear")


def _pool(x: jax.Array) -> jax.Array:
    """3x3 maxima at stride 2 whose last window may reach over the edge (Caffe's, torch's ceil_mode), [B,H,W,C]."""
    pads = []
    for size in x.shape[1:3]:
        windows = max(-(-(size - 3) // 2), 0) + 1
        pads.append((0, max((windows - 1) * 2 + 3 - size, 0)))
    return max_pool(x, 3, 2, (pads[0], pads[1]))


VARIANTS = {
    # SE-ResNet-50 of table 1.
    "legacy_seresnet50": Variant(
        LegacySENet,
        {"stage_sizes": (3, 4, 6, 3)},
        Layout(stem="layer0.conv1", heads=("last_linear",), layers=(r"layer0", r"layer(\d+)\.(\d+)")),
        reference="timm",
        top1=0.77650,
        source="timm results-imagenet.csv, in1k",
    ),
}
