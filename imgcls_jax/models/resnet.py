"""Residual networks (He et al., arXiv:1512.03385) in their v1.5 form and what came of them.

Wide ones (arXiv:1605.07146), ResNeXt (arXiv:1611.05431) and squeeze-and-excitation (arXiv:1709.01507) are options.
Names and layouts follow timm: `conv1`, `bn1`, `layer1.0/conv1`, ..., `layer1.0/downsample.0`, `fc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from imgcls_jax.models import layers
from imgcls_jax.models.layers import conv_bn_act
from imgcls_jax.models.pooling import max_pool
from imgcls_jax.models.variant import SMALL, Layout, Preprocessing, Variant
from imgcls_jax.types import ConfigError, check_choice

EXPANSION = {"basic": 1, "bottleneck": 4}  # a block's output channels in units of its inner width


class ResidualBlock(nn.Module):
    """One residual block, [B,H,W,C] -> [B,H/stride,W/stride,width * EXPANSION[kind]].

    `basic` is 3x3, 3x3; `bottleneck` is 1x1, 3x3, 1x1 with the stride in the 3x3 (v1.5), whose 3x3 has `inner` channels
    in `groups` groups.
    """

    kind: str
    width: int
    inner: int
    groups: int
    stride: int
    shortcut: str
    se_ratio: float
    zero_init_last: bool
    drop_path: float | None
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        out = self.width * EXPANSION[self.kind]
        shortcut = self._shortcut(x, out, train)
        last_init = nn.initializers.zeros if self.zero_init_last else nn.initializers.ones
        common: dict[str, Any] = {"train": train, "dtype": self.dtype}
        last: dict[str, Any] = {"act": None, "scale_init": last_init, **common}
        if self.kind == "basic":
            x = conv_bn_act(x, self.width, 3, stride=self.stride, names=("conv1", "bn1"), **common)
            x = conv_bn_act(x, out, 3, names=("conv2", "bn2"), **last)
        else:
            middle: dict[str, Any] = {"stride": self.stride, "groups": self.groups, **common}
            x = conv_bn_act(x, self.inner, 1, names=("conv1", "bn1"), **common)
            x = conv_bn_act(x, self.inner, 3, names=("conv2", "bn2"), **middle)
            x = conv_bn_act(x, out, 1, names=("conv3", "bn3"), **last)
        if self.se_ratio:
            inner = layers.make_divisible(out * self.se_ratio, round_limit=0.0)
            x = layers.SE(inner, dtype=self.dtype, name="se")(x)
        x = layers.DropPath()(x, self.drop_path, train=train)
        return nn.relu(x + shortcut)

    def _shortcut(self, x: jax.Array, out: int, train: bool) -> jax.Array:
        if self.stride == 1 and x.shape[-1] == out:
            return x
        if self.shortcut == "pad":
            x = x[:, :: self.stride, :: self.stride]
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, out - x.shape[-1])))
        names = ("downsample.0", "downsample.1")
        return conv_bn_act(x, out, 1, stride=self.stride, names=names, act=None, train=train, dtype=self.dtype)


class SpaceToDepthConv(nn.Module):
    """`layers.Conv` of 7x7 at stride 2, [B,H,W,C] -> [B,H/2,W/2,features] (rounded up), for TPUs.

    Computed at stride 1, 4x4, from each 2x2 pixels as one place [B,H/2,W/2,4C], as MLPerf's submissions on TPUs do:
    few channels leave most of a matrix unit idle. The parameter is the same, `kernel` [7,7,C,features], and so are the
    values but for rounding.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        kernel = self.param("kernel", layers.he_fan_out, (7, 7, channels, self.features), jnp.float32)
        # Output i reads pixels 2i - 3 to 2i + 3, with a row and a column of zeros before the kernel's own from 2i - 4:
        # places i - 2 to i + 1.
        kernel = _places(jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0))), (0, 1))
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        return lax.conv_general_dilated(
            _places(x, (1, 2)).astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(1, 1),
            padding=((2, 1), (2, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def _places(x: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Each 2x2 along two neighbouring axes as one place: the axis after them gets 4 times as long."""
    a, b = axes
    before, (height, width, channels), after = x.shape[:a], x.shape[a : b + 2], x.shape[b + 2 :]
    x = x.reshape(*before, height // 2, 2, width // 2, 2, channels, *after)
    return jnp.moveaxis(x, a + 1, b + 1).reshape(*before, height // 2, width // 2, 4 * channels, *after)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, each stage after the first at half the size and twice the width, mean, dense.

    Attributes:
      num_classes: K; 0 gives pooled features.
      stage_sizes: number of blocks in each stage.
      block: "basic" or "bottleneck".
      width: channels of the stem; a block of stage i puts out width * 2**i channels, a bottleneck four times as many.
      groups: of a bottleneck's 3x3 convolution.
      base_width: channels of each of these groups in the first stage where `width` is 64, in proportion elsewhere.
      stem: "imagenet" (7x7 at stride 2, 3x3 max pool at stride 2), "space_to_depth" (the same, with the same weights,
        computed as a TPU likes it), "half" (3x3 at stride 2, no pool) or "small" (3x3 at stride 1, no pool).
      shortcut: where shapes differ, "conv" (1x1 and batch norm, option B of the paper) or "pad" (zeros for the new
        channels, option A: no parameters).
      se_ratio: inner width of squeeze-and-excitation relative to the block's output; 0 is none.
      zero_init_last: whether the last batch norm of a block starts with a scale of 0, so the block is the identity.
      drop_path: stochastic depth of the last block; the others' rise to it linearly from 0.
      dtype: of the computation.

    Initialisation: convolutions He-normal with fan-out (arXiv:1502.01852, as torchvision and timm); last scales zero
    and the classifier N(0, 0.01) as in Goyal et al. (arXiv:1706.02677, section 5.1).
    """

    num_classes: int
    stage_sizes: Sequence[int]
    block: str = "bottleneck"
    width: int = 64
    groups: int = 1
    base_width: int = 64
    stem: str = "imagenet"
    shortcut: str = "conv"
    se_ratio: float = 0.0
    zero_init_last: bool = True
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B,H,W,C] float -> logits [B,K] float32; features [B,D] if num_classes is 0. Raises ConfigError."""
        self._check()
        x = self._stem(images, train)
        rates = iter(layers.drop_path_rates(self.drop_path, sum(self.stage_sizes)))
        for stage, size in enumerate(self.stage_sizes):
            width = self.width * 2**stage
            for i in range(size):
                x = ResidualBlock(
                    kind=self.block,
                    width=width,
                    inner=width * self.base_width // 64 * self.groups,
                    groups=self.groups,
                    stride=2 if stage > 0 and i == 0 else 1,
                    shortcut=self.shortcut,
                    se_ratio=self.se_ratio,
                    zero_init_last=self.zero_init_last,
                    drop_path=next(rates),
                    dtype=self.dtype,
                    name=f"layer{stage + 1}.{i}",
                )(x, train=train)
        x = jnp.mean(layers.FeatureMap()(x), axis=(1, 2), dtype=jnp.float32)
        return layers.classifier(x, self.num_classes, kernel_init=nn.initializers.normal(0.01), name="fc")

    def _check(self) -> None:
        check_choice("block", self.block, EXPANSION)
        check_choice("stem", self.stem, ("imagenet", "space_to_depth", "half", "small"))
        check_choice("shortcut", self.shortcut, ("conv", "pad"))
        if not self.stage_sizes or min(self.stage_sizes) < 1:
            raise ConfigError(f"stage_sizes is {self.stage_sizes}: it must hold at least one block for each stage")
        if self.block == "basic" and (self.groups, self.base_width) != (1, 64):
            raise ConfigError("groups and base_width are of bottlenecks: with block='basic' leave them at 1 and 64")

    def _stem(self, images: jax.Array, train: bool) -> jax.Array:
        common: dict[str, Any] = {"train": train, "dtype": self.dtype}
        if self.stem == "space_to_depth":
            x = SpaceToDepthConv(self.width, dtype=self.dtype, name="conv1")(images)
            x = nn.relu(layers.batch_norm(x, name="bn1", **common))
        else:
            k, stride = {"imagenet": (7, 2), "half": (3, 2), "small": (3, 1)}[self.stem]
            x = conv_bn_act(images, self.width, k, stride=stride, names=("conv1", "bn1"), **common)
        if self.stem in ("imagenet", "space_to_depth"):
            x = max_pool(x, 3, 2, ((1, 1), (1, 1)))
        return x


# transformers' ResNetForImageClassification: what its modules are called here.
_TRANSFORMERS = (
    (r"^resnet\.", ""),
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    *((rf"^encoder\.stages\.{i}\.layers\.", f"layer{i + 1}.") for i in range(4)),
    *((rf"\.layer\.{i}\.convolution\.", f".conv{i + 1}.") for i in range(3)),
    *((rf"\.layer\.{i}\.normalization\.", f".bn{i + 1}.") for i in range(3)),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"^classifier\.1\.", "fc."),
)
LAYOUT = Layout(stem="conv1", heads=("fc",), layers=(r"conv1|bn1", r"layer(\d+)\.(\d+)"), aliases=_TRANSFORMERS)
BICUBIC = Preprocessing(interpolation="bicubic")  # at crop 0.875
BICUBIC_95 = Preprocessing(interpolation="bicubic", crop_pct=0.95)


def _variant(
    stage_sizes: tuple[int, ...],
    top1: float | None = None,
    tag: str = "",
    preprocessing: Preprocessing = BICUBIC_95,
    **fields: Any,
) -> Variant:
    """timm's model, whose default weights have this tag and, with this preprocessing, this accuracy."""
    source = f"timm results-imagenet.csv, {tag}" if tag else ""
    fields = {"stage_sizes": stage_sizes, **fields}
    return Variant(ResNet, fields, LAYOUT, reference="timm", preprocessing=preprocessing, top1=top1, source=source)


def _small(blocks: int) -> Variant:
    """Section 4.2 of arXiv:1512.03385: 3 stages of 16-32-64 channels for 32x32 images, option A shortcuts."""
    fields = {"stage_sizes": (blocks,) * 3, "block": "basic", "width": 16, "stem": "small", "shortcut": "pad"}
    return Variant(ResNet, fields, LAYOUT, preprocessing=SMALL, num_classes=10)


VARIANTS = {
    "resnet20": _small(3),
    "resnet32": _small(5),
    "resnet56": _small(9),
    # Table 1 of arXiv:1512.03385.
    "resnet18": _variant((2, 2, 2, 2), 0.71504, "a1_in1k", block="basic"),
    "resnet34": _variant((3, 4, 6, 3), 0.76420, "a1_in1k", block="basic"),
    "resnet50": _variant((3, 4, 6, 3), 0.80382, "a1_in1k"),
    "resnet101": _variant((3, 4, 23, 3), 0.81950, "a1h_in1k"),
    "resnet152": _variant((3, 8, 36, 3), 0.82818, "a1h_in1k"),
    # WRN-50-2-bottleneck of arXiv:1605.07146: twice as wide inside the blocks. Table 1 of arXiv:1611.05431.
    "wide_resnet50_2": _variant((3, 4, 6, 3), 0.81466, "racm_in1k", BICUBIC, base_width=128),
    "resnext50_32x4d": _variant((3, 4, 6, 3), 0.81140, "a1h_in1k", groups=32, base_width=4),
    # Table 1 of arXiv:1709.01507 and the same of the others above; timm has weights for one.
    "seresnet18": _variant((2, 2, 2, 2), preprocessing=BICUBIC, block="basic", se_ratio=1 / 16),
    "seresnet34": _variant((3, 4, 6, 3), preprocessing=BICUBIC, block="basic", se_ratio=1 / 16),
    "seresnet50": _variant((3, 4, 6, 3), 0.80012, "a1_in1k", se_ratio=1 / 16),
    "seresnet101": _variant((3, 4, 23, 3), preprocessing=BICUBIC, se_ratio=1 / 16),
    "seresnet152": _variant((3, 8, 36, 3), preprocessing=BICUBIC, se_ratio=1 / 16),
}
