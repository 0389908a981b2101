"""Densely connected networks, DenseNet-BC (Huang et al., arXiv:1608.06993).

Names follow timm and torchvision: `features.conv0`, `features.denseblock1.denselayer1/norm1`, `features.transition1`,
`features.norm5`, `classifier`.
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
from imgcls_jax.models.variant import SMALL, Layout, Preprocessing, Variant
from imgcls_jax.types import check_choice

BOTTLENECK = 4  # channels between the two convolutions of a layer, in units of the growth rate
HE_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def _norm_act_conv(
    x: jax.Array, features: int, kernel_size: int, *, names: tuple[str, str], dropout: float, train: bool, dtype: Any
) -> jax.Array:
    """Batch norm, ReLU, convolution, dropout: [B,H,W,C] -> [B,H,W,features]."""
    norm, conv = names
    x = nn.relu(layers.batch_norm(x, name=norm, train=train, dtype=dtype))
    x = layers.Conv(features, kernel_size, kernel_init=HE_FAN_IN, dtype=dtype, name=conv)(x)
    return nn.Dropout(dropout)(x, deterministic=not train)


class DenseLayer(nn.Module):
    """What a layer adds to the maps of all before it: 1x1 then 3x3, [B,H,W,C] -> [B,H,W,growth]."""

    growth: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        step = functools.partial(_norm_act_conv, dropout=self.dropout, train=train, dtype=self.dtype)
        x = step(x, BOTTLENECK * self.growth, 1, names=("norm1", "conv1"))
        return step(x, self.growth, 3, names=("norm2", "conv2"))


class DenseNet(nn.Module):
    """Stem of 2 growth channels, dense blocks with halving transitions between them, norm, mean, dense.

    Attributes:
      num_classes: K; 0 gives pooled features.
      growth: channels that each layer adds (k of the paper).
      block_sizes: number of layers in each block.
      stem: "imagenet" (7x7 at stride 2, norm, 3x3 max pool at stride 2) or "small" (3x3 at stride 1).
      dropout: after each convolution but the first (section 4.2 of the paper: 0.2 for data that is not augmented).
      dtype: of the computation.

    Transitions halve the channels (compression 0.5). Initialisation: convolutions He-normal with fan-in, as the paper
    and both references; classifier uniform in +-fan_in**-0.5, torch's default, with zero bias, as theirs.
    """

    num_classes: int
    growth: int = 32
    block_sizes: Sequence[int] = (6, 12, 24, 16)
    stem: str = "imagenet"
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B,H,W,C] float -> logits [B,K] float32; features [B,D] if num_classes is 0.

        Raises ConfigError, also for images that the pools leave nothing of.
        """
        check_choice("stem", self.stem, ("imagenet", "small"))
        common: dict[str, Any] = {"dropout": self.dropout, "train": train, "dtype": self.dtype}
        x = self._stem(images, train)
        for i, size in enumerate(self.block_sizes, 1):
            if i > 1:
                names = (f"features.transition{i - 1}.norm", f"features.transition{i - 1}.conv")
                x = _norm_act_conv(x, x.shape[-1] // 2, 1, names=names, **common)
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
            for j in range(1, size + 1):
                layer = DenseLayer(self.growth, self.dropout, self.dtype, name=f"features.denseblock{i}.denselayer{j}")
                x = jnp.concatenate([x, layer(x, train=train)], axis=-1)
        x = nn.relu(layers.batch_norm(x, name="features.norm5", train=train, dtype=self.dtype))
        x = layers.adaptive_avg_pool(layers.FeatureMap()(x).astype(jnp.float32), 1, 1)[:, 0, 0]
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        return layers.classifier(x, self.num_classes, kernel_init=init, name="classifier")

    def _stem(self, images: jax.Array, train: bool) -> jax.Array:
        conv = functools.partial(layers.Conv, 2 * self.growth, kernel_init=HE_FAN_IN, dtype=self.dtype)
        if self.stem == "small":
            return conv(kernel_size=3, name="features.conv0")(images)
        x = conv(kernel_size=7, stride=2, name="features.conv0")(images)
        x = nn.relu(layers.batch_norm(x, name="features.norm0", train=train, dtype=self.dtype))
        return max_pool(x, 3, 2, ((1, 1), (1, 1)))


LAYOUT = Layout(
    stem="features.conv0",
    heads=("classifier",),
    layers=(r"features\.(?:conv|norm)0", r"features\.denseblock(\d+)\.denselayer(\d+)"),
    joins=(r"features\.transition(\d+)",),
    # Of torchvision's published files, which are older than its names.
    aliases=((r"\.(norm|conv)\.([12])\.", r".\1\2."),),
)


def _variant(growth: int, block_sizes: tuple[int, ...], top1: float, tag: str) -> Variant:
    return Variant(
        DenseNet,
        {"growth": growth, "block_sizes": block_sizes},
        LAYOUT,
        reference="timm",
        preprocessing=Preprocessing(interpolation="bicubic"),
        top1=top1,
        source=f"timm results-imagenet.csv, {tag}",
    )


VARIANTS = {
    # Table 1; DenseNet-161 (k = 48) is not in it but among the authors' published weights.
    "densenet121": _variant(32, (6, 12, 24, 16), 0.76500, "ra_in1k at 288 pixels, crop 0.95"),
    "densenet161": _variant(48, (6, 12, 36, 24), 0.77358, "tv_in1k"),
    "densenet169": _variant(32, (6, 12, 32, 32), 0.75900, "tv_in1k"),
    "densenet201": _variant(32, (6, 12, 48, 32), 0.77286, "tv_in1k"),
    # Section 3 and table 2: three blocks of (L - 4) / 6 layers for 32x32 images, L = 100, k = 12; 0.8 million.
    "densenet_bc_100_12": Variant(
        DenseNet,
        {"growth": 12, "block_sizes": (16, 16, 16), "stem": "small"},
        LAYOUT,
        preprocessing=SMALL,
        num_classes=10,
    ),
}
