"""Where in an image a model looks: heat maps by gradients, by attention, or by hiding parts of the image.

Pure functions of (model, variables, images). What happens inside a model is read through `nn.intercept_methods`, so
that models neither know of it nor differ for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imgcls_jax.models import layers
from imgcls_jax.models.vit import ViT
from imgcls_jax.types import ConfigError, PyTree, check_choice

METHODS = ("auto", "gradcam", "rollout", "occlusion")
ROUNDING = 1e-5  # a loss of probability that is none
COLOURS = cv2.COLORMAP_INFERNO  # perceptually uniform: cold is dark, hot is bright
OPACITY = 0.5  # of the colours over the image


@partial(jax.jit, static_argnums=0)
def grad_cam(model: nn.Module, variables: PyTree, images: jax.Array, targets: jax.Array) -> jax.Array:
    """Grad-CAM (arXiv:1610.02391, equations 1 and 2) at the last `layers.FeatureMap` A of the model.

    relu(sum over channels of w * A), where the weight w of a channel is the mean over places of the gradient of the
    target's logit by A. For a model that ends with global average pooling and a linear layer this is the class
    activation map of arXiv:1512.04150 without its negative part, divided by the number of places.

    Args:
      model: of the zoo, but no vision transformer.
      variables: its parameters and statistics.
      images: [B,H,W,C] float, normalised.
      targets: [B] int, the class to explain.

    Returns:
      [B,h,w] float32, at least 0.

    Raises:
      ConfigError: for a model without a feature map.
    """
    shapes = _feature_maps(model, variables, images)
    if not shapes:
        raise ConfigError(f"{type(model).__name__} has no feature map for gradcam: choose rollout or occlusion.")
    last = len(shapes) - 1

    def target_logits(change: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, maps = _apply(model, variables, images, {last: change})
        return jnp.take_along_axis(logits.astype(jnp.float32), targets[:, None], axis=1).sum(), maps[last]

    # The gradient by what is added to the map is the gradient by the map.
    gradient, feature_map = jax.grad(target_logits, has_aux=True)(jnp.zeros(shapes[last].shape, shapes[last].dtype))
    places = tuple(range(1, gradient.ndim - 1))  # of [B,h,w,C], or of [B,N,D] tokens
    weights = jnp.mean(gradient.astype(jnp.float32), axis=places, keepdims=True)
    cam = nn.relu((weights * feature_map.astype(jnp.float32)).sum(-1))
    return cam if cam.ndim == 3 else cam.reshape(-1, *_grid(model, images.shape))


def _apply(
    model: nn.Module, variables: PyTree, images: jax.Array, changes: Mapping[int, jax.Array]
) -> tuple[jax.Array, list[jax.Array]]:
    """Logits [B,K] and the feature maps that the model marks, in its order, with what `changes` has for one added."""
    maps: list[jax.Array] = []

    def keep(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = next_fun(*args, **kwargs)
        if isinstance(context.module, layers.FeatureMap):
            out = out + changes[len(maps)] if len(maps) in changes else out
            maps.append(out)
        return out

    with nn.intercept_methods(keep):
        logits: jax.Array = model.apply(variables, images, train=False)  # type: ignore[assignment]
    return logits, maps


def _feature_maps(model: nn.Module, variables: PyTree, images: Any) -> list[jax.ShapeDtypeStruct]:
    """Shapes of the feature maps; variables and images may be shapes too."""
    return jax.eval_shape(lambda v, x: _apply(model, v, x, {})[1], variables, images)


def _grid(model: nn.Module, image_shape: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of the patches of images [B,H,W,C]."""
    patch_size: int = model.patch_size  # every model of tokens has one
    return image_shape[1] // patch_size, image_shape[2] // patch_size


@partial(jax.jit, static_argnums=0)
def attention_rollout(model: ViT, variables: PyTree, images: jax.Array) -> jax.Array:
    """Attention rollout (arXiv:2005.00928): how much of each patch reaches what the head reads, by attention alone.

    The product over blocks of (A + I) / 2, where A is the attention, mean of the heads, and I stands for the residual.
    Of its rows that of the class token is taken, with a distillation token the mean of both, with pool="gap" that of
    the patches; with pool="map" the rows are weighted as the pooling attends to them. Register and class tokens take
    part; of the columns only the patches' are kept.

    Args:
      model: a vision transformer; with scan or remat too.
      variables: its parameters and statistics.
      images: [B,H,W,C] float, normalised.

    Returns:
      [B,h,w] float32 shares of patches; with the other tokens' they sum to 1.
    """
    if model.scan:
        variables = _unstacked(variables)
    found = _projections(model.clone(scan=False, remat="none"), variables, images)
    attentions = [_attention_weights(qkv[:, :, 0], qkv[:, :, 1]) for qkv in found["qkv"]]
    batch, tokens = attentions[0].shape[:2]
    prefix = model.prefix_tokens
    if model.pool == "map":
        (query,), (pair,) = found["q"], found["kv"]
        patches = _attention_weights(query[:, :, 0], pair[:, :, 0])[:, 0]
        shares = jnp.pad(patches, ((0, 0), (prefix, 0)))
    else:
        read = slice(prefix, tokens) if model.pool == "gap" else slice(0, 1 + model.distilled)
        row = np.zeros(tokens, np.float32)
        row[read] = 1 / (read.stop - read.start)
        shares = jnp.broadcast_to(row, (batch, tokens))
    for attention in reversed(attentions):
        shares = 0.5 * shares + 0.5 * jnp.einsum("bn,bnm->bm", shares, attention)
    return shares[:, prefix:].reshape(-1, *_grid(model, images.shape))


def _projections(model: ViT, variables: PyTree, images: jax.Array) -> dict[str, list[jax.Array]]:
    """Queries, keys and values [B,N,parts,H,D/H] as the model makes them: by the name of the layer, block by block."""
    found: dict[str, list[jax.Array]] = {}

    def keep(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = next_fun(*args, **kwargs)
        if isinstance(context.module, layers.Dense) and context.module.name in layers.SPLITS:
            found.setdefault(context.module.name, []).append(out)
        return out

    with nn.intercept_methods(keep):
        model.apply(variables, images, train=False)
    return found


def _attention_weights(q: jax.Array, k: jax.Array) -> jax.Array:
    """Softmax of q [B,N,H,d] over k [B,M,H,d] as in `layers.attention`, mean of the heads: [B,N,M] float32."""
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    return jax.nn.softmax(scores, axis=-1).mean(axis=1)


def _unstacked(variables: PyTree) -> PyTree:
    """Variables of a scanned ViT as those of one with blocks of their own."""
    params = dict(variables["params"])
    stacked = params.pop("blocks")
    depth = jax.tree.leaves(stacked)[0].shape[0]
    blocks = {f"blocks.{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(depth)}
    return {**variables, "params": {**params, **blocks}}


def occlusion(
    model: nn.Module,
    variables: PyTree,
    images: jax.Array,
    targets: jax.Array,
    *,
    task: str = "multiclass",
    patch: int = 0,
    stride: int = 0,
    batch_size: int = 32,
) -> np.ndarray:
    """How much of the target's probability is lost where a patch hides the image (arXiv:1311.2901, section 4.2).

    The patch is a square of zeros, the mean colour of normalised images. A pixel's value is the mean loss over the
    patches that cover it; below 0 where hiding it helps. Memory is that of `batch_size` images.

    Args:
      model: any.
      variables: its parameters and statistics.
      images: [B,H,W,C] float, normalised.
      targets: [B] int, the class to explain.
      task: "multiclass" (softmax) or "multilabel" (sigmoid).
      patch: side in pixels; 0 is a fifth of the shorter side.
      stride: pixels from one place to the next, at most `patch`; the last one ends at the border. 0 is half a patch.
      batch_size: images that the model sees at once.

    Returns:
      [B,H,W] float32.
    """
    height, width = images.shape[1:3]
    patch = min(patch or max(1, min(height, width) // 5), height, width)
    stride = stride or max(1, patch // 2)
    if not 1 <= stride <= patch:
        raise ValueError(f"stride is {stride}: it must be 1 to {patch}, or pixels between the patches are never hidden")
    corners = np.array(
        [(top, left) for top in _places(height, patch, stride) for left in _places(width, patch, stride)]
    )
    # Patches outside the image hide nothing: the last one's probability is the whole image's, the others fill a batch.
    outside = np.full((1 + -(len(corners) + 1) % batch_size, 2), (height, width))
    corners = np.concatenate([corners, outside]).astype(np.int32)
    rows, columns = (_covers(corners[:, axis], patch, images.shape[1 + axis]) for axis in (0, 1))
    heats = []
    for image, target in zip(images, targets, strict=True):
        batches = [
            _occluded(model, variables, image, target, part, patch, task) for part in corners.reshape(-1, batch_size, 2)
        ]
        p = np.concatenate(batches)
        heats.append((rows * (p[-1] - p)[:, None]).T @ columns / (rows.T @ columns))
    return np.stack(heats)


def _places(side: int, patch: int, stride: int) -> list[int]:
    """Where patches begin: every `stride` pixels, and one that ends at the border."""
    return sorted({*range(0, side - patch, stride), side - patch})


def _covers(starts: np.ndarray, patch: int, side: int) -> np.ndarray:
    """[P,side] float32: 1 for the pixels from each of the starts [P] on, `patch` of them."""
    pixels = np.arange(side) - starts[:, None]
    return ((pixels >= 0) & (pixels < patch)).astype(np.float32)


@partial(jax.jit, static_argnums=(0, 5, 6))
def _occluded(
    model: nn.Module,
    variables: PyTree,
    image: jax.Array,
    target: jax.Array,
    corners: jax.Array,
    patch: int,
    task: str,
) -> jax.Array:
    """Probabilities [b] of the target for an image [H,W,C] with a patch of zeros at each of the corners [b,2]."""
    down, right = (jnp.arange(image.shape[axis]) - corners[:, axis, None] for axis in (0, 1))
    rows, columns = ((each >= 0) & (each < patch) for each in (down, right))
    hidden = rows[:, :, None, None] & columns[:, None, :, None]
    logits = model.apply(variables, jnp.where(hidden, 0, image), train=False)
    return probabilities(logits, task)[:, target]


def probabilities(logits: Any, task: str) -> jax.Array:
    """Logits [B,K] -> what the model gives each class, float32: softmax, or each by itself for "multilabel"."""
    logits = jnp.asarray(logits, jnp.float32)
    return nn.sigmoid(logits) if task == "multilabel" else nn.softmax(logits)


def choose_method(method: str, model: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """The method that `auto` stands for, for images [H,W,C]; any other is handed back.

    Raises:
      ConfigError: if there is no such method, or it has nothing to say of this model.
    """
    check_choice("--method", method, METHODS)
    if isinstance(model, ViT):
        if method == "gradcam":
            raise ConfigError(
                "--method=gradcam needs a map of features that are pooled, which a vision transformer lacks: choose "
                "rollout or occlusion."
            )
        return "rollout" if method == "auto" else method
    if method == "rollout":
        raise ConfigError(f"--method=rollout is for vision transformers, not {type(model).__name__}: choose gradcam.")
    if method == "occlusion":
        return method
    height, width = map_size(model, image_shape)
    if height * width > 1:
        return "gradcam"
    if method == "auto":
        return "occlusion"
    raise ConfigError(
        f"--method=gradcam: at {image_shape[0]}x{image_shape[1]} pixels the last feature map of this model is a single "
        "place, which has no heat map: choose occlusion."
    )


@cache
def map_size(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """(rows, columns) of the map that Grad-CAM reads, for images [H,W,C]; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    shape = _feature_maps(model, variables, image)[-1].shape
    return shape[1:3] if len(shape) == 4 else _grid(model, image.shape)


def heat_maps(
    method: str, model: nn.Module, variables: PyTree, images: jax.Array, targets: jax.Array, *, task: str = "multiclass"
) -> np.ndarray:
    """What a method (see `choose_method`) finds, at the size of the images and in 0..1.

    The largest value of an image is 1, unless all are 0. 0 is what does not speak for the target; of an attention
    rollout, which is positive everywhere, it is the least attended place.

    Args:
      method: "gradcam", "rollout" or "occlusion".
      model: one that has it.
      variables: its parameters and statistics.
      images: [B,H,W,C] float, normalised.
      targets: [B] int, the class to explain; "rollout" does not look at it.
      task: "multiclass" or "multilabel".

    Returns:
      [B,H,W] float32.
    """
    if method == "gradcam":
        found = grad_cam(model, variables, images, targets)
    elif method == "rollout":
        found = attention_rollout(model, variables, images)
    else:
        found = occlusion(model, variables, images, targets, task=task)
        found = np.where(found < ROUNDING, 0, found)
    heat = np.array(jax.image.resize(found, images.shape[:3], "bilinear"))
    if method == "rollout":
        heat -= heat.min(axis=(1, 2), keepdims=True)
    largest = heat.max(axis=(1, 2), keepdims=True)
    return np.divide(heat, largest, out=np.zeros_like(heat), where=largest > 0)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Image uint8 [H,W,C], of 1 or 3 channels, under the colours of heat [H,W] in 0..1: uint8 [H,W,3]."""
    colours = cv2.applyColorMap(np.rint(255 * heat).astype(np.uint8), COLOURS)[..., ::-1]
    return np.rint((1 - OPACITY) * image + OPACITY * colours).astype(np.uint8)
