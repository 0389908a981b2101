"""Augmentation of a batch on the device, inside the jitted step: pure functions of (batch, key).

Each is a frozen dataclass called as `op(images [B,H,W,C] float32, targets [B,K] float32, key) -> (images, targets)`.
Images are in the units of 0..1 pixels, not yet normalised, so that padding and erasing are black.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp

Pair = tuple[jax.Array, jax.Array]


class DeviceOp(Protocol):
    """What `train_step` calls: images [B,H,W,C], targets [B,K] and a key to images and targets of the same shapes."""

    def __call__(self, images: jax.Array, targets: jax.Array, key: jax.Array) -> Pair: ...


@dataclasses.dataclass(frozen=True)
class PadAndCrop:
    """Pads every side by `padding` pixels of zeros and crops the original size at random (arXiv:1512.03385, 4.2).

    A crop is two gathers with one index vector per image, rows then columns: XLA vectorises them, where a vmapped
    `dynamic_slice` becomes a loop over the batch.
    """

    padding: int = 4

    def __call__(self, images: jax.Array, targets: jax.Array, key: jax.Array) -> Pair:
        b, h, w, _ = images.shape
        shift = jax.random.randint(key, (2, b, 1), 0, 2 * self.padding + 1) - self.padding

        def take(x: jax.Array, offset: jax.Array, size: int, axis: int) -> jax.Array:
            index = jnp.arange(size) + offset  # [B, size]
            inside = (index >= 0) & (index < size)
            shape = tuple(b if i == 0 else size if i == axis else 1 for i in range(4))
            x = jnp.take_along_axis(x, jnp.clip(index, 0, size - 1).reshape(shape), axis=axis)
            return x * inside.reshape(shape)

        return take(take(images, shift[0], h, 1), shift[1], w, 2), targets


@dataclasses.dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors each image left to right with probability `p`."""

    p: float = 0.5

    def __call__(self, images: jax.Array, targets: jax.Array, key: jax.Array) -> Pair:
        flip = jax.random.bernoulli(key, self.p, (images.shape[0], 1, 1, 1))
        return jnp.where(flip, images[:, :, ::-1], images), targets


@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """Adds normal noise of standard deviation `std`, in units of 0..1 pixels."""

    std: float = 0.1

    def __call__(self, images: jax.Array, targets: jax.Array, key: jax.Array) -> Pair:
        return images + self.std * jax.random.normal(key, images.shape, images.dtype), targets


@dataclasses.dataclass(frozen=True)
class MixUp:
    """x = l x_i + (1 - l) x_j with l ~ Beta(alpha, alpha), one l a batch, and the same for the targets.

    Equation 1 of arXiv:1710.09412; the partner is the batch rolled by one, as in big_vision: the batch is already in
    random order, and a roll moves one example per device boundary where a permutation moves them all.
    """

    alpha: float = 0.2

    def __call__(self, images: jax.Array, targets: jax.Array, key: jax.Array) -> Pair:
        lam = jax.random.beta(key, self.alpha, self.alpha)
        lam = jnp.maximum(lam, 1 - lam)
        mix = lambda x: lam * x + (1 - lam) * jnp.roll(x, 1, axis=0)  # noqa: E731
        return mix(images), mix(targets)


@dataclasses.dataclass(frozen=True)
class CutMix:
    """Pastes one random box of the batch rolled by one; the targets mix by the area that was really pasted.

    Algorithm 1 of arXiv:1905.04899: the box has sides sqrt(1 - l) of the image's, l ~ Beta(alpha, alpha), a uniform
    centre, and is clipped at the border, which is why l is computed again from the clipped box.
    """

    alpha: float = 1.0

    def __call__(self, images: jax.Array, targets: jax.Array, key: jax.Array) -> Pair:
        _, h, w, _ = images.shape
        key_lam, key_y, key_x = jax.random.split(key, 3)
        side = jnp.sqrt(1 - jax.random.beta(key_lam, self.alpha, self.alpha))

        def inside(key: jax.Array, size: int) -> jax.Array:
            centre = jax.random.randint(key, (), 0, size)
            half = (side * size).astype(jnp.int32) // 2
            index = jnp.arange(size)
            return (index >= centre - half) & (index < centre + half)

        box = inside(key_y, h)[:, None] & inside(key_x, w)[None, :]  # [H,W]
        lam = 1 - box.mean()
        mixed = jnp.where(box[None, :, :, None], jnp.roll(images, 1, axis=0), images)
        return mixed, lam * targets + (1 - lam) * jnp.roll(targets, 1, axis=0)


DEVICE = {
    "pad_and_crop": PadAndCrop,
    "flip": HorizontalFlip,
    "noise": GaussianNoise,
    "mixup": MixUp,
    "cutmix": CutMix,
}


def apply(ops: Sequence[DeviceOp], images: jax.Array, targets: jax.Array, key: jax.Array) -> Pair:
    """Applies `ops` in order, each with a key of its own."""
    for i, op in enumerate(ops):
        images, targets = op(images, targets, jax.random.fold_in(key, i))
    return images, targets


def to_float(images: jax.Array) -> jax.Array:
    """uint8 [B,H,W,C] in 0..255 to float32 in 0..1."""
    return images.astype(jnp.float32) / 255.0


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(images - mean) / std for images [B,H,W,C] in 0..1; `mean` and `std` have C entries or one."""
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)
