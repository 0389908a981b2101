"""Residual networks (He et al., arXiv:1512.03385) in their v1.5 form, with squeeze-and-excitation if asked for.

Names and layouts follow timm: `conv1`, `bn1`, `layer1.0/conv1`, ..., `layer1.0/downsample.0`, `fc`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imgcls_jax.models import layers
from imgcls_jax.models.layers import conv_bn_act
from imgcls_jax.types import ConfigError

EXPANSION = {"basic": 1, "bottleneck": 4}  # a block's output channels in units of its inner width


class ResidualBlock(nn.Module):
    """One residual block, [B,H,W,C] -> [B,H/stride,W/stride,width * EXPANSION[kind]].

    `basic` is 3x3, 3x3; `bottleneck` is 1x1, 3x3, 1x1 with the stride in the 3x3 (v1.5).
    """

    kind: str
    width: int
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
            x = conv_bn_act(x, self.width, 1, names=("conv1", "bn1"), **common)
            x = conv_bn_act(x, self.width, 3, stride=self.stride, names=("conv2", "bn2"), **common)
            x = conv_bn_act(x, out, 1, names=("conv3", "bn3"), **last)
        if self.se_ratio:
            x = layers.SE(self.se_ratio, dtype=self.dtype, name="se")(x)
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


class ResNet(nn.Module):
    """Stem, stages of residual blocks, each stage after the first at half the size and twice the width, mean, dense.

    Attributes:
      num_classes: K; 0 gives pooled features.
      stage_sizes: number of blocks in each stage.
      block: "basic" or "bottleneck".
      width: channels of the stem and inner width of the first stage.
      stem: "imagenet" (7x7 at stride 2, 3x3 max pool at stride 2), "half" (3x3 at stride 2, no pool) or "small" (3x3 at
        stride 1, no pool).
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
            for i in range(size):
                x = ResidualBlock(
                    kind=self.block,
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    shortcut=self.shortcut,
                    se_ratio=self.se_ratio,
                    zero_init_last=self.zero_init_last,
                    drop_path=next(rates),
                    dtype=self.dtype,
                    name=f"layer{stage + 1}.{i}",
                )(x, train=train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return layers.classifier(x, self.num_classes, kernel_init=nn.initializers.normal(0.01), name="fc")

    def _check(self) -> None:
        layers.check_choice("block", self.block, EXPANSION)
        layers.check_choice("stem", self.stem, ("imagenet", "half", "small"))
        layers.check_choice("shortcut", self.shortcut, ("conv", "pad"))
        if not self.stage_sizes or min(self.stage_sizes) < 1:
            raise ConfigError(f"stage_sizes is {self.stage_sizes}: it must hold at least one block for each stage")

    def _stem(self, images: jax.Array, train: bool) -> jax.Array:
        k, stride = {"imagenet": (7, 2), "half": (3, 2), "small": (3, 1)}[self.stem]
        x = conv_bn_act(images, self.width, k, stride=stride, names=("conv1", "bn1"), train=train, dtype=self.dtype)
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pads with -inf, as torch
        return x
