"""Inverted residual blocks (MobileNetV2, arXiv:1801.04381), of which MobileNets and EfficientNets are tables.

Names follow timm: `blocks.STAGE.INDEX/conv_pw`, `bn1`, `conv_dw`, `bn2`, `se/conv_reduce`, ...
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from imgcls_jax.models import layers
from imgcls_jax.models.layers import Initializer, conv_bn_act

ACTIVATIONS = {"relu": nn.relu, "relu6": nn.relu6, "silu": nn.silu, "hard_swish": nn.hard_swish}
# Initialisation of TensorFlow's EfficientNet: kernels N(0, 2 / fan_out), where a depthwise convolution's fan-out is its
# k*k places (timm calls this fix_group_fanout), and a classifier uniform in +-K**-0.5.
depthwise_init: Initializer = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
classifier_init: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


@dataclasses.dataclass(frozen=True)
class Run:
    """Equal blocks in a row; the stride is that of a stage's first block.

    Attributes:
      kind: "mbconv" (1x1 expansion, depthwise, 1x1 projection), "separable" (depthwise, 1x1: an mbconv without
        expansion), "fused" (full convolution for expansion, 1x1 projection) or "conv" (one full convolution).
      kernel, stride: of the one convolution that is not 1x1.
      expansion: inner channels relative to the input's; of no meaning for "separable" and "conv".
      channels: of the output.
      repeats: number of blocks.
      se: inner channels of squeeze-and-excitation relative to what `Style.hard_se` says; 0 is none.
      act: a key of ACTIVATIONS; "" is the model's.
    """

    kind: str
    kernel: int
    stride: int
    expansion: float
    channels: int
    repeats: int
    se: float = 0.0
    act: str = ""


Stages = Sequence[Sequence[Run]]


@dataclasses.dataclass(frozen=True)
class Style:
    """What all the blocks of a model share.

    Attributes:
      act: a key of ACTIVATIONS.
      tf: TensorFlow's conventions: padding "SAME" and batch norm's epsilon 1e-3, where torch's are k // 2 zeros on all
        sides and 1e-5.
      hard_se: squeeze-and-excitation as MobileNetV3's (relative to the expanded channels, rounded to eights, ReLU and
        hard sigmoid) and not as EfficientNet's (relative to the block's input, the block's activation and sigmoid).
      dtype: of the computation.
    """

    act: str
    tf: bool = False
    hard_se: bool = False
    dtype: Any = None

    def conv(self, x: jax.Array, features: int, kernel: int, *, train: bool, **kwargs: Any) -> jax.Array:
        """`layers.conv_bn_act` with these conventions; groups equal to the channels are taken for depthwise."""
        if kwargs.get("groups", 1) > 1:
            kwargs["kernel_init"] = depthwise_init
        if self.tf:
            kwargs |= {"padding": "SAME", "epsilon": 1e-3}
        act = kwargs.pop("act", ACTIVATIONS[self.act])
        return conv_bn_act(x, features, kernel, train=train, act=act, dtype=self.dtype, **kwargs)


class InvertedResidual(nn.Module):
    """One block of a run, [B,H,W,C] -> [B,H/stride,W/stride,run.channels]; a shortcut where shapes allow one.

    `drop_path` is this block's rate of stochastic depth, None for none.
    """

    run: Run
    stride: int
    style: Style
    drop_path: float | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        branch = self._branch(x, train)
        if self.stride > 1 or x.shape[-1] != self.run.channels:
            return branch
        return x + layers.DropPath()(branch, self.drop_path, train=train)

    def _branch(self, x: jax.Array, train: bool) -> jax.Array:
        run, inputs = self.run, x.shape[-1]
        style = dataclasses.replace(self.style, act=run.act or self.style.act)
        conv = functools.partial(style.conv, train=train)
        inner = layers.make_divisible(inputs * run.expansion)
        if run.kind == "conv":
            return conv(x, run.channels, run.kernel, stride=self.stride, names=("conv", "bn1"))
        if run.kind == "fused":
            x = conv(x, inner, run.kernel, stride=self.stride, names=("conv_exp", "bn1"))
            last = ("conv_pwl", "bn2")
        elif run.kind == "separable":
            x = conv(x, inputs, run.kernel, stride=self.stride, groups=inputs, names=("conv_dw", "bn1"))
            last = ("conv_pw", "bn2")
        else:
            x = conv(x, inner, 1, names=("conv_pw", "bn1"))
            x = conv(x, inner, run.kernel, stride=self.stride, groups=inner, names=("conv_dw", "bn2"))
            last = ("conv_pwl", "bn3")
        if run.se:
            x = _squeeze_excite(x, inputs, run.se, style)
        return conv(x, run.channels, 1, names=last, act=None)


def _squeeze_excite(x: jax.Array, inputs: int, ratio: float, style: Style) -> jax.Array:
    """Called inside a block's compact `__call__`: x [B,H,W,C] of a block with `inputs` channels -> the same shape."""
    if style.hard_se:
        inner, act, gate = layers.make_divisible(x.shape[-1] * ratio), nn.relu, nn.hard_sigmoid
    else:
        inner, act, gate = round(inputs * ratio), ACTIVATIONS[style.act], nn.sigmoid
    return layers.SE(inner, names=("conv_reduce", "conv_expand"), act=act, gate=gate, dtype=style.dtype, name="se")(x)


def apply_stages(x: jax.Array, stages: Stages, style: Style, *, drop_path: float, train: bool) -> jax.Array:
    """The blocks of all stages, called inside a compact `__call__`: [B,H,W,C] -> [B,H',W',C'].

    They become submodules of the caller called `blocks.STAGE.INDEX`. `drop_path` is the last block's rate of stochastic
    depth; the others' rise to it linearly from 0. Raises ConfigError for a rate outside [0, 1).
    """
    rates = iter(layers.drop_path_rates(drop_path, sum(run.repeats for stage in stages for run in stage)))
    for i, stage in enumerate(stages):
        blocks = [run for run in stage for _ in range(run.repeats)]
        for j, run in enumerate(blocks):
            stride = run.stride if j == 0 else 1
            x = InvertedResidual(run, stride, style, next(rates), name=f"blocks.{i}.{j}")(x, train=train)
    return x
