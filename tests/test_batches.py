"""Training images that stay on the devices: the batches are those of images that are read."""

import jax
import numpy as np
import pytest
from helpers import tiny_config

from imgcls_jax import build
from imgcls_jax.types import ConfigError


def first_batches(count, start_step=0, **overrides):
    """The first batches of a run, from a step on, and where their arrays are."""
    run = build.build(tiny_config(**overrides))
    batches = build.batches_of(run, start_step, None)
    try:
        found = [next(batches) for _ in range(count)]
    finally:
        batches.close()
    return jax.tree.map(np.asarray, found), jax.tree.map(lambda x: x.sharding, found)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"data.train_split": "train[100:200]", "data.repeats": 2, "sharding.model": 2},
        {"data.sampling": "balanced", "data.positive_class": "3", "sharding.fsdp": 4},
    ],
)
def test_batches_of_images_that_stay_are_those_of_images_that_are_read(overrides):
    """Bit for bit, in every layout, over the end of an epoch, wherever the run starts."""
    read, places = first_batches(20, 3, **overrides)
    stay, places_of_those = first_batches(20, 3, **overrides, **{"data.on_device": True})
    jax.tree.map(np.testing.assert_array_equal, stay, read)
    assert places == places_of_those and set(stay[0]) == {"image", "label", "mask"}
    assert {array.dtype for array in jax.tree.leaves(stay)} == {np.dtype(t) for t in (np.uint8, np.int32, bool)}


@pytest.mark.parametrize(
    ("overrides", "need"),
    [
        ({"augment.host_train": ("flip()",)}, r"augment.host_train=\(\)"),
        ({"data.mix": (("digits", 1.0),)}, "without data.mix"),
        ({"data.image_size": 16, "augment.host_train": ()}, r"\[8, 8, 1\], but the config has \[16, 16, 1\]"),
    ],
)
def test_what_cannot_stay_is_one_sentence(overrides, need):
    with pytest.raises(ConfigError, match=f"data.on_device .*{need}"):
        first_batches(1, **overrides, **{"data.on_device": True})
