"""What the architectures share: convolution, conv-BN-act, SE, stochastic depth, MLP, attention, classifier.

Every layer computes in its `dtype` and stores its parameters in float32; statistics (batch and layer norm, softmax)
are float32 whatever `dtype` is. Parameter names and layouts are those that `pretrained.py` maps to timm's: joining a
path with dots and turning `kernel`, `scale` into `weight` gives timm's name.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from imgcls_jax.types import ConfigError

Initializer = Callable[..., jax.Array]

# He et al. (arXiv:1502.01852) with fan-out, the one of torchvision's and timm's residual networks.
he_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
xavier_uniform: Initializer = nn.initializers.xavier_uniform()


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Raises ConfigError, naming the nearest choice (all of them when none is near), unless value is one of choices."""
    choices = sorted(choices)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(choices)}"
        raise ConfigError(f"unknown {what} {value!r}: {hint}")


def spread(parameter: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """A float32 parameter broadcast to shape, in dtype.

    Cast after it is broadcast and not before, so that its gradient, a sum over examples and places, is accumulated in
    float32: in bfloat16 XLA on a CPU gets a bias' gradient over 50,000 places wrong by more than half.
    """
    return jnp.broadcast_to(parameter, shape).astype(dtype)


class Conv(nn.Module):
    """2-D convolution, [B,H,W,C] -> [B,H',W',features], padded as torch does: `padding` zeros on every side.

    `padding=None` is kernel_size // 2, which keeps the size at stride 1 for odd kernels. Parameters: `kernel`
    [k, k, C / groups, features], `bias` [features] if asked for.

    Two kinds are done as matrix multiplications, because XLA's convolution on a CPU is two to five times slower
    forward plus backward: 1x1, and non-overlapping patches (stride equal to the kernel, no padding).
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int | None = None
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = he_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, s = self.kernel_size, self.stride
        pad = k // 2 if self.padding is None else self.padding
        shape = (k, k, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        if k == 1 and pad == 0:
            x, s = x[:, ::s, ::s], 1
        if s == k and pad == 0 and self.groups == 1 and x.shape[1] % k == 0 and x.shape[2] % k == 0:
            x = _patches_matmul(x, kernel)
        else:
            x = lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(s, s),
                padding=((pad, pad), (pad, pad)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=self.groups,
            )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            x = x + spread(bias, x.shape, self.dtype)
        return x


def _patches_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of x [B,H,W,C] with kernel [k,k,C,F] at stride k, without padding: [B,H/k,W/k,F]."""
    batch, height, width, channels = x.shape
    k, features = kernel.shape[0], kernel.shape[-1]
    h, w = height // k, width // k
    if k > 1:
        x = x.reshape(batch, h, k, w, k, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(-1, k * k * channels) @ kernel.reshape(-1, features)
    return x.reshape(batch, h, w, features)


def conv_bn_act(
    x: jax.Array,
    features: int,
    kernel_size: int,
    *,
    names: tuple[str, str],
    train: bool,
    dtype: Any,
    stride: int = 1,
    act: Callable[[jax.Array], jax.Array] | None = nn.relu,
    scale_init: Initializer = nn.initializers.ones,
) -> jax.Array:
    """Convolution without bias, batch norm, activation: [B,H,W,C] -> [B,H',W',features].

    A function, called inside a compact `__call__`, so that the two become submodules of the caller called `names`
    side by side (`conv1`, `bn1`) as in timm and torchvision. Batch norm as torch's: running statistics keep 0.9 of
    themselves a step, epsilon 1e-5; under jit with a sharded batch the statistics are the global batch's. (Running
    variances are the biased ones, torch's unbiased; the weights convert unchanged.)
    """
    conv, bn = names
    x = Conv(features, kernel_size, stride=stride, dtype=dtype, name=conv)(x)
    norm = nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, scale_init=scale_init, name=bn
    )
    x = norm(x)
    return x if act is None else act(x)


class SE(nn.Module):
    """Squeeze-and-excitation (arXiv:1709.01507), [B,H,W,C] -> the same: channels scaled by what the whole image says.

    The inner width is C * ratio rounded to a multiple of 8, at least 8, as timm's `SEModule`. `fc1` and `fc2` are
    1x1 convolutions with bias, again as timm's.
    """

    ratio: float = 1 / 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        inner = max(8, int(channels * self.ratio + 4) // 8 * 8)
        s = jnp.mean(x, axis=(1, 2), keepdims=True)  # [B,1,1,C]
        s = nn.relu(Conv(inner, 1, use_bias=True, dtype=self.dtype, name="fc1")(s))
        s = Conv(channels, 1, use_bias=True, dtype=self.dtype, name="fc2")(s)
        return x * nn.sigmoid(s)


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

    Parameters: `kernel` [*contracted axes, *features], `bias` [*features]. `kernel_init` sees a matrix, the contracted
    axes by the new ones.
    """

    features: tuple[int, ...]
    contract: int = 1
    kernel_init: Initializer = xavier_uniform
    bias_init: Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-self.contract :]

        def kernel_init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return self.kernel_init(key, (math.prod(inputs), math.prod(self.features)), dtype).reshape(shape)

        kernel = self.param("kernel", kernel_init, (*inputs, *self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, self.features, jnp.float32)
        x = jnp.tensordot(x.astype(self.dtype), kernel.astype(self.dtype), axes=self.contract)
        return x + spread(bias, x.shape, self.dtype)


class Mlp(nn.Module):
    """Two dense layers with exact GELU between, [B,N,D] -> [B,N,D].

    Parameters: `fc1/kernel` [D, F], `fc2/kernel` [F, D]. Initialisation: Xavier-uniform kernels, biases N(0, 1e-6).
    """

    mlp_dim: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        bias_init = nn.initializers.normal(1e-6)
        width = x.shape[-1]
        x = Dense((self.mlp_dim,), bias_init=bias_init, dtype=self.dtype, name="fc1")(x)
        x = nn.gelu(x, approximate=False)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return Dense((width,), bias_init=bias_init, dtype=self.dtype, name="fc2")(x)


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention of q [B,N,H,D/H] over k, v [B,M,H,D/H] -> [B,N,H,D/H], scaled by (D/H)**-0.5; float32 softmax.

    The only place where an implementation (XLA's now; cuDNN's has to be asked for) is chosen.
    """
    return jax.nn.dot_product_attention(q, k, v, implementation=None)


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


def classifier(x: jax.Array, num_classes: int, *, kernel_init: Initializer, name: str) -> jax.Array:
    """Features [B,D] -> logits [B,K] float32 by a dense layer: `kernel` [D, K], `bias` [K] (zeros).

    It computes in float32: the cost is nothing and a loss needs the precision. With num_classes=0 the features
    themselves, float32, and no parameters.
    """
    x = x.astype(jnp.float32)
    if num_classes == 0:
        return x
    return Dense((num_classes,), kernel_init=kernel_init, name=name)(x)
