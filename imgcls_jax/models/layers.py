"""What the architectures share: convolution, conv-BN-act, SE, stochastic depth, MLP, attention, classifier.

Every layer computes in its `dtype` and stores its parameters in float32; statistics (batch and layer norm, softmax)
are float32 whatever `dtype` is. Parameter names and layouts are those that `pretrained.py` maps to timm's: joining a
path with dots and turning `kernel`, `scale` into `weight` gives timm's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from imgcls_jax.models.convolution import Pads, convolve, product
from imgcls_jax.models.depthwise import depthwise
from imgcls_jax.types import ConfigError

Initializer = Callable[..., jax.Array]

# He et al. (arXiv:1502.01852) with fan-out, the one of torchvision's and timm's residual networks.
he_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
xavier_uniform: Initializer = nn.initializers.xavier_uniform()


def spread(parameter: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """A float32 parameter broadcast to shape, in dtype.

    Cast after it is broadcast and not before, so that its gradient, a sum over examples and places, is accumulated in
    float32: in bfloat16 XLA on a CPU gets a bias' gradient over 50,000 places wrong by more than half.
    """
    return jnp.broadcast_to(parameter, shape).astype(dtype)


class Conv(nn.Module):
    """2-D convolution, [B,H,W,C] -> [B,H',W',features], padded as torch does: `padding` zeros on every side.

    `padding=None` is kernel_size // 2, which keeps the size at stride 1 for odd kernels; "SAME" is TensorFlow's, which
    may add one more zero below and right than above and left. Parameters: `kernel` [k, k, C / groups, features],
    `bias` [features] if asked for. With `standardise`, an epsilon, it convolves with the standardised kernel.

    Two kinds are done as matrix multiplications, because XLA's convolution on a CPU is two to five times slower
    forward plus backward: 1x1, and non-overlapping patches (stride equal to the kernel, no padding). Depthwise ones
    (as many groups as channels and features) are done as `depthwise` says.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int | str | None = None
    groups: int = 1
    use_bias: bool = False
    standardise: float | None = None
    kernel_init: Initializer = he_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, s = self.kernel_size, self.stride
        pad = k // 2 if self.padding is None else self.padding
        shape = (k, k, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        if self.standardise is not None:
            kernel = standardised(kernel, self.standardise)
        kernel, x = kernel.astype(self.dtype), x.astype(self.dtype)
        whole = x.shape[1] % k == 0 and x.shape[2] % k == 0
        if k == 1 and pad in (0, "SAME"):
            x, s, pad = x[:, ::s, ::s], 1, 0
        pads = _pads(x.shape[1:3], k, s, pad)
        if s == k and whole and pad in (0, "SAME") and self.groups == 1:
            x = _patches_matmul(x, kernel)
        elif self.groups == x.shape[-1] == self.features and k > 1:
            x = depthwise(x, kernel, s, pads)
        else:
            x = convolve(x, kernel, s, pads, self.groups)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            x = x + spread(bias, x.shape, self.dtype)
        return x


def standardised(kernel: jax.Array, epsilon: float) -> jax.Array:
    """Kernel [k,k,C,F] at mean 0, variance 1 for each of F outputs: weight standardisation (arXiv:1903.10520)."""
    # As a matrix: for a large 1x1 kernel XLA's gradient of sums over three axes takes a hundred times as long on a CPU.
    rows = kernel.reshape(-1, kernel.shape[-1])
    rows = rows - jnp.mean(rows, axis=0)
    return (rows * lax.rsqrt(jnp.mean(jnp.square(rows), axis=0) + epsilon)).reshape(kernel.shape)


def patches(images: jax.Array, features: int, patch_size: int, *, dtype: Any, name: str) -> jax.Array:
    """Images [B,H,W,C] -> linearly embedded patches [B,H/patch_size,W/patch_size,features].

    Called inside a compact `__call__`; the convolution becomes a submodule called `name`, LeCun-normal. Raises
    ConfigError if the patches do not divide the image.
    """
    height, width = images.shape[1:3]
    if height % patch_size or width % patch_size:
        raise ConfigError(
            f"patch_size={patch_size} does not divide the image size {height}x{width}: change one of them"
        )
    return Conv(
        features,
        patch_size,
        stride=patch_size,
        padding=0,
        use_bias=True,
        kernel_init=nn.initializers.lecun_normal(),
        dtype=dtype,
        name=name,
    )(images)


def _pads(sides: tuple[int, ...], k: int, stride: int, padding: int | str) -> Pads:
    """Zeros ((above, below), (left, right))."""
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    rows, columns = lax.padtype_to_pads(sides, (k, k), (stride, stride), padding)
    return rows, columns


def _patches_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of x [B,H,W,C] with kernel [k,k,C,F] at stride k, without padding: [B,H/k,W/k,F]."""
    batch, height, width, channels = x.shape
    k, features = kernel.shape[0], kernel.shape[-1]
    h, w = height // k, width // k
    if k > 1:
        x = x.reshape(batch, h, k, w, k, channels).transpose(0, 1, 3, 2, 4, 5)
    x = product(x.reshape(-1, k * k * channels), kernel.reshape(-1, features))
    return x.reshape(batch, h, w, features)


def batch_norm(
    x: jax.Array,
    *,
    name: str,
    train: bool,
    dtype: Any,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    scale_init: Initializer = nn.initializers.ones,
) -> jax.Array:
    """Batch norm as torch's, called inside a compact `__call__`: [B,H,W,C] -> the same.

    Running statistics keep `momentum` of themselves a step (torch's momentum is 1 minus it); under jit with a sharded
    batch the statistics are the global batch's. (Running variances are the biased ones, torch's unbiased; the weights
    convert unchanged.)
    """
    norm = nn.BatchNorm(
        momentum=momentum,
        epsilon=epsilon,
        dtype=dtype,
        scale_init=scale_init,
        name=name,
    )
    return norm(x, use_running_average=not train)  # an argument of the call: `optim_groups.frozen` overrides it


def conv_bn_act(
    x: jax.Array,
    features: int,
    kernel_size: int,
    *,
    names: tuple[str, str],
    train: bool,
    dtype: Any,
    stride: int = 1,
    padding: int | str | None = None,
    groups: int = 1,
    use_bias: bool = False,
    act: Callable[[jax.Array], jax.Array] | None = nn.relu,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    scale_init: Initializer = nn.initializers.ones,
    kernel_init: Initializer = he_fan_out,
) -> jax.Array:
    """Convolution, batch norm, activation: [B,H,W,C] -> [B,H',W',features].

    A function, called inside a compact `__call__`, so that the two become submodules of the caller called `names`
    side by side (`conv1`, `bn1`) as in timm and torchvision.
    """
    conv, bn = names
    x = Conv(
        features,
        kernel_size,
        stride=stride,
        padding=padding,
        groups=groups,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=dtype,
        name=conv,
    )(x)
    x = batch_norm(x, name=bn, train=train, dtype=dtype, epsilon=epsilon, momentum=momentum, scale_init=scale_init)
    return x if act is None else act(x)


def make_divisible(value: float, divisor: int = 8, *, round_limit: float = 0.9) -> int:
    """`value` rounded to a multiple of `divisor`, at least one; up where rounding down would lose over 1 - round_limit.

    The rule of MobileNet and all that follow it (timm's `make_divisible`).
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * value else rounded


class SE(nn.Module):
    """Squeeze-and-excitation (arXiv:1709.01507), [B,H,W,C] -> the same: channels scaled by what the whole image says.

    Attributes:
      inner: channels of the bottleneck.
      names: of its two 1x1 convolutions with bias: timm's `SEModule` has `fc1` and `fc2`.
      act, gate: after the first and after the second.
    """

    inner: int
    names: tuple[str, str] = ("fc1", "fc2")
    act: Callable[[jax.Array], jax.Array] = nn.relu
    gate: Callable[[jax.Array], jax.Array] = nn.sigmoid
    kernel_init: Initializer = he_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        reduce, expand = self.names
        common: dict[str, Any] = {"use_bias": True, "kernel_init": self.kernel_init, "dtype": self.dtype}
        s = jnp.mean(x, axis=(1, 2), keepdims=True)  # [B,1,1,C]
        s = self.act(Conv(self.inner, 1, name=reduce, **common)(s))
        return x * self.gate(Conv(x.shape[-1], 1, name=expand, **common)(s))


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): in training, zeroes a residual branch [B,...] for each example by itself.

    What is kept is divided by 1 - rate, so the expectation is unchanged. Random numbers: stream `drop_path`.
    """

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array | float | None, *, train: bool) -> jax.Array:
        """`rate` in [0, 1) may be an array: under `nn.scan` it differs from layer to layer. None is no dropping."""
        if rate is None or not train:
            return x
        keep_prob = 1.0 - jnp.asarray(rate, jnp.float32)
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        keep = jax.random.bernoulli(self.make_rng("drop_path"), keep_prob, shape)
        return jnp.where(keep, x / keep_prob.astype(x.dtype), jnp.zeros_like(x))


def drop_path_rates(rate: float, depth: int) -> list[float] | list[None]:
    """Rates that rise linearly from 0 in the first of `depth` blocks to `rate` in the last (arXiv:1603.09382, eq. 4).

    Nones if `rate` is 0. Raises ConfigError unless 0 <= rate < 1.
    """
    if not 0 <= rate < 1:
        raise ConfigError(f"drop_path is {rate}: it must be at least 0 and less than 1")
    if rate == 0:
        return [None] * depth
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


class Dense(nn.Module):
    """Matrix product and bias: contracts the last `contract` axes of x, appends `features`.

    Parameters: `kernel` [*contracted axes, *features] and, with `use_bias`, `bias` [*features]. `kernel_init` sees a
    matrix, the contracted axes by the new ones.
    """

    features: tuple[int, ...]
    contract: int = 1
    use_bias: bool = True
    kernel_init: Initializer = xavier_uniform
    bias_init: Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-self.contract :]

        def kernel_init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return self.kernel_init(key, (math.prod(inputs), math.prod(self.features)), dtype).reshape(shape)

        kernel = self.param("kernel", kernel_init, (*inputs, *self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, self.features, jnp.float32) if self.use_bias else None
        x = product(x.astype(self.dtype), kernel.astype(self.dtype), self.contract)
        return x if bias is None else x + spread(bias, x.shape, self.dtype)


class Mlp(nn.Module):
    """Two dense layers with exact GELU between, [...,D] -> [...,D].

    Parameters: `fc1/kernel` [D, F], `fc2/kernel` [F, D]. Initialisation: Xavier-uniform kernels, biases N(0, 1e-6).
    """

    mlp_dim: int
    dropout: float = 0.0
    kernel_init: Initializer = xavier_uniform
    bias_init: Initializer = nn.initializers.normal(1e-6)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        common: dict[str, Any] = {"kernel_init": self.kernel_init, "bias_init": self.bias_init, "dtype": self.dtype}
        width = x.shape[-1]
        x = Dense((self.mlp_dim,), name="fc1", **common)(x)
        x = nn.gelu(x, approximate=False)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return Dense((width,), name="fc2", **common)(x)


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention of q [B,N,H,D/H] over k, v [B,M,H,D/H] -> [B,N,H,D/H], scaled by (D/H)**-0.5; float32 softmax.

    The only place where an implementation is chosen: cuDNN's flash attention (arXiv:2307.08691), which keeps no scores
    [B,H,N,M] in memory, in programs for NVIDIA GPUs where `_flash_pays` and `_flash_runs`; else XLA's.
    """
    plain = partial(jax.nn.dot_product_attention, implementation="xla")
    if _flash_pays(q, k) and _flash_runs():
        # What is traced here may still be compiled for another platform: the choice is made when it is lowered.
        flash = partial(jax.nn.dot_product_attention, implementation="cudnn")
        return lax.platform_dependent(q, k, v, cuda=flash, default=plain)
    return plain(q, k, v)


def _flash_pays(q: jax.Array, k: jax.Array) -> bool:
    """Whether cuDNN has kernels for these on all GPUs that it supports, and the scores are larger than q and k are.

    Attention pooling, with its one query, is left to XLA for the second reason.
    """
    size = q.shape[-1]
    takes = q.dtype in (jnp.bfloat16, jnp.float16) and size % 8 == 0 and size <= 128
    return takes and min(q.shape[1], k.shape[1]) > size


def _flash_runs() -> bool:
    """Whether JAX computes on NVIDIA GPUs of compute capability 8.0 (Ampere) or more, which cuDNN's kernels need.

    Under `jax.default_device` of a CPU it does not. That is how to trace a program to export: JAX (0.10) neither
    lowers cuDNN's part for several platforms at once nor vouches for its name.
    """
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    platform = getattr(device, "platform", device) or jax.default_backend()
    if platform not in ("gpu", "cuda"):
        return False
    # "9.0"; AMD's are called "gfx90a" and the like.
    majors = [device.compute_capability.partition(".")[0] for device in jax.local_devices(backend="gpu")]
    return all(major.isdecimal() and int(major) >= 8 for major in majors)


def split_heads(parts: int, num_heads: int, head_dim: int, *, dtype: Any, name: str) -> Dense:
    """Dense [B,N,D] -> [B,N,parts,H,D/H]; kernel [D, parts, H, D/H], where H is what the mesh axis `model` shards.

    Xavier-uniform for each of the `parts` square matrices: the fan-out of the fused one would be `parts` times theirs.
    """
    kernel_init = nn.initializers.variance_scaling((1 + parts) / 2, "fan_avg", "uniform")
    return Dense((parts, num_heads, head_dim), kernel_init=kernel_init, dtype=dtype, name=name)


def merge_heads(features: int, *, dtype: Any, name: str) -> Dense:
    """Dense [B,N,H,D/H] -> [B,N,D]; kernel [H, D/H, D], bias [D]."""
    return Dense((features,), contract=2, dtype=dtype, name=name)


def head_dim(width: int, num_heads: int) -> int:
    """D / H. Raises ConfigError when the heads do not divide the width."""
    if width % num_heads:
        raise ConfigError(f"num_heads={num_heads} does not divide width={width}: choose a divisor of the width")
    return width // num_heads


# The modules that `split_heads` makes are called one of these: their 4-axis kernels are not convolutions'.
SPLITS = ("qkv", "q", "kv")


class Attention(nn.Module):
    """Multi-head self-attention with qkv bias, [B,N,D] -> [B,N,D].

    Parameters: `qkv/kernel` [D, 3, H, D/H], `qkv/bias` [3, H, D/H], `proj/kernel` [H, D/H, D], `proj/bias` [D].
    """

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        size = head_dim(width, self.num_heads)
        qkv = split_heads(3, self.num_heads, size, dtype=self.dtype, name="qkv")(x)
        x = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return merge_heads(width, dtype=self.dtype, name="proj")(x)


class FeatureMap(nn.Module):
    """The identity, around what an architecture's convolutions end with, before pooling: [B,h,w,C], or [B,N,D] tokens.

    It has no parameters and leaves nothing in the compiled program; `explain` reads the last one of a model, and its
    gradient, through `nn.intercept_methods`.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class PooledFeatures(nn.Module):
    """The identity, around the features [B,D] float32 that a classifier is given, like `FeatureMap`.

    `objectives.forward` reads it: one pass gives features and logits.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def flatten(x: jax.Array) -> jax.Array:
    """[B,H,W,C] -> [B,C*H*W] in torch's order, so that the dense layer after it has torch's weights."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)


def adaptive_avg_pool(x: jax.Array, height: int, width: int) -> jax.Array:
    """Means over height x width windows that cover x [B,H,W,C], as torch's AdaptiveAvgPool2d: [B,height,width,C].

    Window i of n over N places reaches from floor(i * N / n) to ceil((i + 1) * N / n): where n does not divide N
    windows overlap, and where it is larger places repeat. Raises ConfigError if x is empty, which is what strides
    make of an image that is too small.
    """
    if 0 in x.shape[1:3]:
        raise ConfigError("the image is too small: after the strides of this model nothing is left of it")
    return _adaptive_means(_adaptive_means(x, 1, height), 2, width)


def _adaptive_means(x: jax.Array, axis: int, size: int) -> jax.Array:
    old = x.shape[axis]
    if old % size == 0:
        return jnp.mean(x.reshape(*x.shape[:axis], size, old // size, *x.shape[axis + 1 :]), axis=axis + 1)
    window, place = np.arange(size)[:, None], np.arange(old)
    inside = (place >= window * old // size) & (place < -(-(window + 1) * old // size))
    weights = (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)
    means = jnp.tensordot(x.astype(jnp.float32), weights, axes=(axis, 1), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(means, -1, axis).astype(x.dtype)


def classifier(
    x: jax.Array, num_classes: int, *, kernel_init: Initializer, name: str, use_bias: bool = True
) -> jax.Array:
    """Features [B,D] -> logits [B,K] float32 by a dense layer: `kernel` [D, K], with use_bias `bias` [K] (zeros).

    It computes in float32: the cost is nothing and a loss needs the precision. With num_classes=0 the features
    themselves, float32, and no parameters.
    """
    x = PooledFeatures(name=f"{name}.features")(x.astype(jnp.float32))
    if num_classes == 0:
        return x
    return Dense((num_classes,), use_bias=use_bias, kernel_init=kernel_init, name=name)(x)
