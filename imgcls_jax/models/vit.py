"""Vision transformers (Dosovitskiy et al., arXiv:2010.11929; the plain baselines of arXiv:2205.01580).

Names and layouts follow timm: `patch_embed.proj`, `cls_token`, `pos_embed`, `blocks.0/attn/qkv`, ..., `norm`, `head`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imgcls_jax.models import layers
from imgcls_jax.types import ConfigError

EPSILON = 1e-6  # of every layer norm


class Block(nn.Module):
    """Pre-norm transformer block, [B,N,D] -> [B,N,D]: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    num_heads: int
    mlp_dim: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: jax.Array | float | None, train: bool) -> jax.Array:
        """`drop_path` [] is this block's rate of stochastic depth, None for none."""

        def branch(y: jax.Array) -> jax.Array:
            y = nn.Dropout(self.dropout)(y, deterministic=not train)
            return layers.DropPath()(y, drop_path, train=train)

        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm1")(x)
        x = x + branch(layers.Attention(self.num_heads, dtype=self.dtype, name="attn")(y))
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm2")(x)
        return x + branch(layers.Mlp(self.mlp_dim, self.dropout, dtype=self.dtype, name="mlp")(y, train=train))


class AttentionPool(nn.Module):
    """Multi-head attention pooling (MAP, arXiv:1810.00825 as in big_vision): [B,N,D] -> [B,D].

    One learned query attends to all tokens; a residual MLP follows. Names as timm's `AttentionPoolLatent`.
    """

    num_heads: int
    mlp_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        size = layers.head_dim(width, self.num_heads)
        latent = self.param("latent", layers.xavier_uniform, (1, 1, width), jnp.float32)
        latent = layers.spread(latent, (x.shape[0], 1, width), self.dtype)
        q = layers.split_heads(1, self.num_heads, size, dtype=self.dtype, name="q")(latent)[:, :, 0]
        kv = layers.split_heads(2, self.num_heads, size, dtype=self.dtype, name="kv")(x)
        x = layers.attention(q, kv[:, :, 0], kv[:, :, 1])
        x = layers.merge_heads(width, dtype=self.dtype, name="proj")(x)
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        return (x + layers.Mlp(self.mlp_dim, dtype=self.dtype, name="mlp")(y, train=False))[:, 0]


def sincos2d(height: int, width: int, features: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed 2-D sine-cosine positions [1, height * width, features] float32, as big_vision's (after MoCo v3).

    Raises ConfigError unless features is a multiple of 4 and at least 8.
    """
    if features % 4 or features < 8:
        raise ConfigError(f"pos_embed 'sincos2d' needs a width that is a multiple of 4 and at least 8, not {features}")
    y, x = np.mgrid[:height, :width]
    omega = temperature ** -(np.arange(features // 4) / (features // 4 - 1))
    y, x = np.outer(y.ravel(), omega), np.outer(x.ravel(), omega)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)[None].astype(np.float32)


class ViT(nn.Module):
    """Vision transformer.

    Attributes:
      num_classes: K; 0 gives pooled features.
      patch_size: side of a patch in pixels; it must divide the image's sides.
      width: D.
      depth: number of blocks.
      num_heads: H; it must divide the width.
      mlp_dim: inner width of the MLPs; 0 is 4 * width.
      pool: after the last layer norm, "cls" (a class token's output), "gap" (mean of all tokens, norm before mean as
        in big_vision; timm's avg pool norms after it) or "map" (attention pooling). No class token with the last two.
      pos_embed: "learned" (the table's size comes from the image at init; a row for the class token as in timm) or
        "sincos2d" (no parameters; zeros for the class token).
      dropout: rate after the positions, after attention and within and after the MLP.
      drop_path: stochastic depth of the last block; the others' rise to it linearly from 0.
      remat: recompute each block in the backward pass: less memory for about a third more time.
      scan: one compiled block applied `depth` times: short compile times. Its parameters are stacked on a leading
        axis under `blocks` instead of `blocks.0`, `blocks.1`, ...
      dtype: of the computation.

    Initialisation as big_vision (arXiv:2205.01580): Xavier-uniform, MLP biases N(0, 1e-6), positions
    N(0, 1/sqrt(D)), class token and head zero, LeCun-normal patches.
    """

    num_classes: int
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 0
    pool: str = "cls"
    pos_embed: str = "learned"
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B,H,W,C] float -> logits [B,K] float32; features [B,D] if num_classes is 0. Raises ConfigError."""
        self._check(images)
        x = layers.Conv(
            self.width,
            self.patch_size,
            stride=self.patch_size,
            padding=0,
            use_bias=True,
            kernel_init=nn.initializers.lecun_normal(),
            dtype=self.dtype,
            name="patch_embed.proj",
        )(images)
        x = self._add_positions(x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = self._blocks(x, train)
        x = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        x = self._pool(x)
        return layers.classifier(x, self.num_classes, kernel_init=nn.initializers.zeros, name="head")

    def _check(self, images: jax.Array) -> None:
        layers.check_choice("pool", self.pool, ("cls", "gap", "map"))
        layers.check_choice("pos_embed", self.pos_embed, ("learned", "sincos2d"))
        height, width = images.shape[1:3]
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                f"patch_size={self.patch_size} does not divide the image size {height}x{width}: change one of them"
            )

    def _add_positions(self, x: jax.Array) -> jax.Array:
        """Patches [B,h,w,D] -> tokens [B,N,D], the class token first if there is one."""
        batch, height, width, features = x.shape
        x = x.reshape(batch, height * width, features)
        has_cls = self.pool == "cls"
        if has_cls:
            token = self.param("cls_token", nn.initializers.zeros, (1, 1, features), jnp.float32)
            x = jnp.concatenate([layers.spread(token, (batch, 1, features), self.dtype), x], axis=1)
        if self.pos_embed == "learned":
            init = nn.initializers.normal(features**-0.5)
            positions = self.param("pos_embed", init, (1, x.shape[1], features), jnp.float32)
        else:
            fixed = sincos2d(height, width, features)
            positions = jnp.asarray(np.pad(fixed, ((0, 0), (int(has_cls), 0), (0, 0))))
        return x + layers.spread(positions, x.shape, self.dtype)

    def _blocks(self, x: jax.Array, train: bool) -> jax.Array:
        # Under scan the compiler cannot undo the recomputation, so it need not be kept from trying (prevent_cse).
        block_class = nn.remat(Block, static_argnums=(3,), prevent_cse=not self.scan) if self.remat else Block
        fields = (self.num_heads, self.mlp_dim or 4 * self.width, self.dropout, self.dtype)
        rates = layers.drop_path_rates(self.drop_path, self.depth)
        if not self.scan:
            for i, rate in enumerate(rates):
                x = block_class(*fields, name=f"blocks.{i}")(x, rate, train)
            return x

        def body(block: Block, x: jax.Array, rate: jax.Array | None) -> tuple[jax.Array, None]:
            return block(x, rate, train), None

        scanned = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True, "drop_path": True},
            length=self.depth,
        )
        xs = jnp.asarray(rates, jnp.float32) if self.drop_path else None
        return scanned(block_class(*fields, name="blocks"), x, xs)[0]

    def _pool(self, x: jax.Array) -> jax.Array:
        """Tokens [B,N,D] -> [B,D]."""
        if self.pool == "cls":
            return x[:, 0]
        if self.pool == "gap":
            return jnp.mean(x, axis=1, dtype=jnp.float32)
        return AttentionPool(self.num_heads, self.mlp_dim or 4 * self.width, dtype=self.dtype, name="attn_pool")(x)
