"""Vision transformers (Dosovitskiy et al., arXiv:2010.11929; the plain baselines of arXiv:2205.01580) and their kin.

DeiT's distillation token (arXiv:2012.12877), DeiT III's layer scale (arXiv:2204.07118), registers (arXiv:2309.16588)
and SigLIP's attention pooling (arXiv:2303.15343) are fields of one module.

Names and layouts follow timm: `patch_embed.proj`, `cls_token`, `pos_embed`, `blocks.0/attn/qkv`, ..., `norm`, `head`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imgcls_jax.models import layers
from imgcls_jax.models.variant import HALF, Layout, Preprocessing, Variant
from imgcls_jax.types import ConfigError, check_choice

EPSILON = 1e-6  # of every layer norm
# What the backward pass finds kept of a block; a product over a batch axis is attention's.
REMAT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


class LayerScale(nn.Module):
    """A learned factor for each feature of a branch (arXiv:2103.17239), [B,N,D] -> [B,N,D]; parameter `gamma` [D]."""

    initial: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],), jnp.float32)
        return x * layers.spread(gamma, x.shape, self.dtype)


class Block(nn.Module):
    """Pre-norm transformer block, [B,N,D] -> [B,N,D]: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    num_heads: int
    mlp_dim: int
    layer_scale: float
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, drop_path: jax.Array | float | None, train: bool) -> jax.Array:
        """`drop_path` [] is this block's rate of stochastic depth, None for none."""

        def branch(y: jax.Array, scale: str) -> jax.Array:
            y = nn.Dropout(self.dropout)(y, deterministic=not train)
            if self.layer_scale:
                y = LayerScale(self.layer_scale, self.dtype, name=scale)(y)
            return layers.DropPath()(y, drop_path, train=train)

        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm1")(x)
        x = x + branch(layers.Attention(self.num_heads, dtype=self.dtype, name="attn")(y), "ls1")
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm2")(x)
        y = layers.Mlp(self.mlp_dim, self.dropout, dtype=self.dtype, name="mlp")(y, train=train)
        return x + branch(y, "ls2")


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
      pool: "cls" (a class token's output), "gap" (mean of the patches) or "map" (attention pooling of the patches). No
        class token with the last two.
      fc_norm: the last layer norm comes after pooling, as in timm's models with "gap", and not before as big_vision's.
      pos_embed: "learned" (the table's size comes from the image at init) or "sincos2d" (no parameters).
      no_embed_class: only patches have positions; else learned ones have rows for the tokens before the patches too.
      registers: number of tokens between the class token and the patches that no pooling reads.
      distilled: a second class token with a head of its own, which learns from a teacher. Logits are the mean of both
        heads, features that of both tokens; in training the second head's logits [B,K] float32 are `logits` of the
        collection `dist_logits`. Needs pool="cls" and no fc_norm.
      layer_scale: initial factor of every branch, learned for each feature; 0: no such factors.
      dropout: rate after the positions, after attention and within and after the MLP.
      drop_path: stochastic depth of the last block; the others' rise to it linearly from 0.
      even_drop_path: all blocks have that rate instead (arXiv:2204.07118).
      head_std: of the normal numbers that the heads start with; 0: they start at zero.
      remat: what of a block the backward pass computes again, for want of memory: "none", "dots" (all but the products
        with parameters, whose results are kept) or "full" (everything but the block's input). On a CPU it saves nothing
        without `scan`: XLA computes again, but too early.
      scan: one compiled block applied `depth` times: short compile times. Its parameters are stacked on a leading
        axis under `blocks` instead of `blocks.0`, `blocks.1`, ...
      dtype: of the computation.

    Initialisation as big_vision (arXiv:2205.01580): Xavier-uniform, MLP biases N(0, 1e-6), positions
    N(0, 1/sqrt(D)), class token zero, LeCun-normal patches; distillation token N(0, 0.02) as DeiT, registers
    N(0, 1e-6) as DINOv2.
    """

    num_classes: int
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 0
    pool: str = "cls"
    fc_norm: bool = False
    pos_embed: str = "learned"
    no_embed_class: bool = False
    registers: int = 0
    distilled: bool = False
    layer_scale: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    even_drop_path: bool = False
    head_std: float = 0.0
    remat: str = "none"
    scan: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B,H,W,C] float -> logits [B,K] float32; features [B,D] if num_classes is 0. Raises ConfigError."""
        self._check()
        x = layers.patches(images, self.width, self.patch_size, dtype=self.dtype, name="patch_embed.proj")
        x = self._tokens(x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = self._blocks(x, train)
        if not self.fc_norm:
            x = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        if self.distilled:
            return self._two_heads(x, train)
        x = self._pool(x)
        if self.fc_norm:
            x = nn.LayerNorm(EPSILON, name="fc_norm")(x)
        return self._head(x, "head")

    @property
    def prefix_tokens(self) -> int:
        """How many tokens come before the patches."""
        return int(self.pool == "cls") + int(self.distilled) + self.registers

    def _check(self) -> None:
        check_choice("pool", self.pool, ("cls", "gap", "map"))
        check_choice("pos_embed", self.pos_embed, ("learned", "sincos2d"))
        check_choice("remat", self.remat, ("none", *REMAT))
        if self.distilled and (self.pool != "cls" or self.fc_norm):
            raise ConfigError(f"a distilled model needs pool='cls' without fc_norm, not pool={self.pool!r}")

    def _tokens(self, x: jax.Array) -> jax.Array:
        """Patches [B,h,w,D] -> tokens [B,N,D] with positions: class, distillation, registers, patches."""
        batch, height, width, features = x.shape
        x = x.reshape(batch, height * width, features)
        prefix = self._prefix(batch, features)
        patches_only = self.no_embed_class or self.pos_embed == "sincos2d"
        if not patches_only:
            x = jnp.concatenate([*prefix, x], axis=1)
        if self.pos_embed == "learned":
            init = nn.initializers.normal(features**-0.5)
            positions = self.param("pos_embed", init, (1, x.shape[1], features), jnp.float32)
        else:
            positions = jnp.asarray(sincos2d(height, width, features))
        x = x + layers.spread(positions, x.shape, self.dtype)
        return jnp.concatenate([*prefix, x], axis=1) if patches_only else x

    def _prefix(self, batch: int, features: int) -> list[jax.Array]:
        """The learned tokens before the patches, each [B,n,D]."""
        normal, zeros = nn.initializers.normal, nn.initializers.zeros
        counts = {"cls_token": int(self.pool == "cls"), "dist_token": int(self.distilled), "reg_token": self.registers}
        inits = {"cls_token": zeros, "dist_token": normal(0.02), "reg_token": normal(1e-6)}
        tokens = []
        for name, count in counts.items():
            if count:
                token = self.param(name, inits[name], (1, count, features), jnp.float32)
                tokens.append(layers.spread(token, (batch, count, features), self.dtype))
        return tokens

    def _blocks(self, x: jax.Array, train: bool) -> jax.Array:
        # Under scan the compiler cannot undo the recomputation, so it need not be kept from trying (prevent_cse).
        block_class = Block
        if self.remat != "none":
            block_class = nn.remat(Block, static_argnums=(3,), prevent_cse=not self.scan, policy=REMAT[self.remat])
        fields = (self.num_heads, self.mlp_dim or 4 * self.width, self.layer_scale, self.dropout, self.dtype)
        rates = layers.drop_path_rates(self.drop_path, self.depth)
        if self.even_drop_path:
            rates = [rates[-1]] * self.depth  # type: ignore[assignment]
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
        x = x[:, self.prefix_tokens :]
        if self.pool == "gap":
            return jnp.mean(x, axis=1, dtype=jnp.float32)
        return AttentionPool(self.num_heads, self.mlp_dim or 4 * self.width, dtype=self.dtype, name="attn_pool")(x)

    def _head(self, x: jax.Array, name: str) -> jax.Array:
        init = nn.initializers.normal(self.head_std) if self.head_std else nn.initializers.zeros
        return layers.classifier(x, self.num_classes, kernel_init=init, name=name)

    def _two_heads(self, x: jax.Array, train: bool) -> jax.Array:
        """Tokens [B,N,D] -> the mean [B,K] of what the first two say."""
        logits, dist_logits = self._head(x[:, 0], "head"), self._head(x[:, 1], "head_dist")
        if train and not self.is_initializing():
            self.sow("dist_logits", "logits", dist_logits, init_fn=lambda: None, reduce_fn=lambda _, new: new)
        return (logits + dist_logits) / 2


# The names in transformers: those of its files (ViT, DeiT) and those of its modules since version 5.
_BLOCK = r"^(blocks\.\d+)\."
TRANSFORMERS = (
    (r"^(?:vit|deit)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (rf"{_BLOCK}attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.", r"\1.attn.\2."),
    (rf"{_BLOCK}attention\.(?:output\.dense|o_proj)\.", r"\1.attn.proj."),
    (rf"{_BLOCK}layernorm_before\.", r"\1.norm1."),
    (rf"{_BLOCK}layernorm_after\.", r"\1.norm2."),
    (rf"{_BLOCK}intermediate\.dense\.", r"\1.mlp.fc1."),
    (rf"{_BLOCK}output\.dense\.", r"\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
LAYOUT = Layout(
    stem="patch_embed.proj",
    heads=("head",),
    layers=(r"cls_token|dist_token|reg_token|pos_embed|patch_embed|norm_pre", r"blocks\.(\d+)"),
    joins=(r"norm",),
    aliases=TRANSFORMERS,
)
DISTILLED = dataclasses.replace(LAYOUT, heads=("head", "head_dist"))

HALF_384 = dataclasses.replace(HALF, crop_pct=1.0, image_size=384)
DEIT = Preprocessing(interpolation="bicubic", crop_pct=0.9)

# Width, depth, heads: table 1 of arXiv:2010.11929 and of arXiv:2106.10270; mu is big_vision's, for tests.
SIZES = {
    "mu": (32, 1, 2),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


def _variant(
    size: str,
    patch_size: int,
    preprocessing: Preprocessing,
    top1: float | None = None,
    tag: str = "",
    *,
    reference: str = "timm",
    **fields: Any,
) -> Variant:
    """`tag`: of timm's default weights, where their accuracy is published."""
    width, depth, num_heads = SIZES[size]
    return Variant(
        ViT,
        {"patch_size": patch_size, "width": width, "depth": depth, "num_heads": num_heads, **fields},
        DISTILLED if fields.get("distilled") else LAYOUT,
        reference=reference,
        preprocessing=preprocessing,
        top1=top1,
        source=f"timm results-imagenet.csv, {tag}" if tag else "",
    )


AUGREG, ORIG, FB = "augreg_in21k_ft_in1k", "orig_in21k_ft_in1k", "fb_in1k"
# As the authors' code has them: timm starts the layer scale at 1e-6.
DEIT3: dict[str, Any] = {"no_embed_class": True, "layer_scale": 1e-4, "even_drop_path": True, "head_std": 0.02}

# The 16 and 224 of a name say what its timm counterpart was trained at; any size that the patches divide will do.
VARIANTS = {
    "vit_mu_patch16_224": _variant("mu", 16, HALF, reference=""),
    "vit_tiny_patch16_224": _variant("tiny", 16, HALF, 0.75452, AUGREG),
    "vit_tiny_patch16_384": _variant("tiny", 16, HALF_384, 0.78438, AUGREG),
    "vit_small_patch16_224": _variant("small", 16, HALF, 0.81402, AUGREG),
    "vit_small_patch16_384": _variant("small", 16, HALF_384, 0.83814, AUGREG),
    "vit_small_patch32_224": _variant("small", 32, HALF, 0.76010, AUGREG),
    "vit_small_patch32_384": _variant("small", 32, HALF_384, 0.80476, AUGREG),
    "vit_base_patch16_224": _variant("base", 16, HALF, 0.85108, "augreg2_in21k_ft_in1k"),
    "vit_base_patch16_384": _variant("base", 16, HALF_384, 0.86010, AUGREG),
    "vit_base_patch32_224": _variant("base", 32, HALF, 0.80732, AUGREG),
    "vit_base_patch32_384": _variant("base", 32, HALF_384, 0.83358, AUGREG),
    "vit_large_patch16_224": _variant("large", 16, HALF, 0.85856, AUGREG),
    "vit_large_patch16_384": _variant("large", 16, HALF_384, 0.87096, AUGREG),
    "vit_large_patch32_224": _variant("large", 32, HALF),
    "vit_large_patch32_384": _variant("large", 32, HALF_384, 0.81508, ORIG),
    "deit_tiny_distilled_patch16_224": _variant("tiny", 16, DEIT, 0.74538, FB, distilled=True),
    "deit_small_distilled_patch16_224": _variant("small", 16, DEIT, 0.81204, FB, distilled=True),
    "deit_base_distilled_patch16_224": _variant("base", 16, DEIT, 0.83384, FB, distilled=True),
    "deit3_small_patch16_224": _variant("small", 16, DEIT, 0.81382, FB, **DEIT3),
    "deit3_base_patch16_224": _variant("base", 16, DEIT, 0.83800, FB, **DEIT3),
    "vit_small_patch14_reg4_dinov2": _variant(
        "small",
        14,
        dataclasses.replace(DEIT, crop_pct=1.0, image_size=518),
        registers=4,
        no_embed_class=True,
        layer_scale=1e-5,
    ),
    "vit_base_patch16_reg4_gap_256": _variant(
        "base",
        16,
        dataclasses.replace(HALF, image_size=256),
        pool="gap",
        fc_norm=True,
        registers=4,
        no_embed_class=True,
    ),
    "vit_base_patch16_siglip_224": _variant("base", 16, HALF, pool="map"),
}
