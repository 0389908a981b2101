"""What a model is shown of each image when it is asked several times: test-time augmentation, on the device.

Each function takes images [B,S,S,C] and the size of what the model sees, and gives batches [B,size,size,C].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def flip(images: jax.Array, size: int) -> tuple[jax.Array, ...]:
    """The images, of that size already, and their mirror images."""
    assert images.shape[1:3] == (size, size), (images.shape, size)
    return images, images[:, :, ::-1]


def flip_shift(images: jax.Array, size: int) -> tuple[jax.Array, ...]:
    """`flip`, and both moved by a pixel up and left and by one down and right, the border repeated.

    The views of airbench (github.com/KellerJordan/cifar10-airbench, TTA level 2), all with the same weight.
    """
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    moved = (images, padded[:, 2:, 2:], padded[:, :-2, :-2])
    return tuple(view for each in moved for view in flip(each, size))


def five_crop(images: jax.Array, size: int) -> tuple[jax.Array, ...]:
    """The corners (upper left, upper right, lower left, lower right) and the centre, rounded as torchvision does."""
    end = images.shape[1] - size
    middle = round(end / 2)
    places = ((0, 0), (0, end), (end, 0), (end, end), (middle, middle))
    return tuple(images[:, top : top + size, left : left + size] for top, left in places)


def ten_crop(images: jax.Array, size: int) -> tuple[jax.Array, ...]:
    """The five crops and their mirror images (Krizhevsky et al. 2012, section 4.1)."""
    crops = five_crop(images, size)
    return (*crops, *(crop[:, :, ::-1] for crop in crops))


# By the name that --tta takes.
VIEWS = {"flip": flip, "flip_shift": flip_shift, "five_crop": five_crop, "ten_crop": ten_crop}
CROPS = ("five_crop", "ten_crop")  # those that want larger images than the model sees
COUNTS = {"flip": 2, "flip_shift": 6, "five_crop": 5, "ten_crop": 10}
