import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgcls_jax import augment
from imgcls_jax.augment import device
from imgcls_jax.types import ConfigError

KEY = jax.random.key(3)
IMAGES = np.asarray(jax.random.uniform(jax.random.key(0), (16, 9, 7, 3))) + 0.1
TARGETS = np.eye(16, dtype=np.float32)


def test_pad_and_crop_is_a_window_of_the_padded_image():
    out, targets = jax.jit(device.PadAndCrop(2))(IMAGES, TARGETS, KEY)
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    offsets = set()
    for image, source in zip(np.asarray(out), padded, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if np.array_equal(image, source[y : y + 9, x : x + 7])]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) > 5
    np.testing.assert_array_equal(targets, TARGETS)


def test_flip_mirrors_some_images_exactly_and_leaves_the_others():
    out, _ = jax.jit(device.HorizontalFlip())(IMAGES, TARGETS, KEY)
    flipped = [np.array_equal(a, b[:, ::-1]) for a, b in zip(np.asarray(out), IMAGES, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(np.asarray(out), IMAGES, strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert 3 <= sum(flipped) <= 13
    always, _ = device.HorizontalFlip(1.0)(IMAGES, TARGETS, KEY)
    np.testing.assert_array_equal(always, IMAGES[:, :, ::-1])


def test_noise_has_its_standard_deviation():
    out, _ = device.GaussianNoise(0.3)(jnp.zeros((64, 32, 32, 1)), TARGETS, KEY)
    assert float(out.std()) == pytest.approx(0.3, rel=0.02)
    assert float(out.mean()) == pytest.approx(0.0, abs=0.01)


def test_mixup_mixes_images_and_targets_by_the_same_share():
    for i in range(5):
        out, targets = jax.jit(device.MixUp(1.0))(IMAGES, TARGETS, jax.random.fold_in(KEY, i))
        lam = float(targets[0, 0])
        assert 0.5 <= lam <= 1.0
        np.testing.assert_allclose(targets.sum(1), 1.0, rtol=1e-6)
        np.testing.assert_allclose(out, lam * IMAGES + (1 - lam) * np.roll(IMAGES, 1, 0), rtol=1e-5)


def test_cutmix_pastes_a_box_whose_area_is_the_share_of_the_label():
    shares = set()
    for i in range(20):
        out, targets = jax.jit(device.CutMix(1.0))(IMAGES, TARGETS, jax.random.fold_in(KEY, i))
        pasted = np.asarray(out) == np.roll(IMAGES, 1, 0)
        kept = np.asarray(out) == IMAGES
        assert np.all(pasted | kept)
        area = pasted[0].all(-1)
        assert all(np.array_equal(p.all(-1), area) for p in pasted)
        if area.any():  # one rectangle
            ys, xs = np.where(area)
            assert area[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].all()
        np.testing.assert_allclose(targets.sum(1), 1.0, rtol=1e-6)
        assert float(1 - targets[0, 0]) == pytest.approx(area.mean(), abs=1e-6)
        shares.add(round(float(area.mean()), 3))
    assert len(shares) > 5


def test_apply_gives_each_operation_its_own_key_and_is_a_function_of_it():
    ops = [device.HorizontalFlip(), device.HorizontalFlip()]
    once, _ = device.apply(ops, IMAGES, TARGETS, KEY)
    again, _ = device.apply(ops, IMAGES, TARGETS, KEY)
    np.testing.assert_array_equal(once, again)
    # With one key for both, the second flip would undo the first everywhere.
    assert not np.array_equal(once, IMAGES)


def test_normalise():
    images = np.array([[[[0, 255, 51]]]], np.uint8)
    got = device.normalise(device.to_float(jnp.asarray(images)), (0.5, 0.5, 0.2), (0.5, 0.25, 1.0))
    np.testing.assert_allclose(got, [[[[-1.0, 2.0, 0.0]]]], atol=1e-6)


def test_parse_reads_calls_and_refuses_what_it_does_not_know():
    ops = augment.parse("augment.device", ("pad_and_crop(2)", "flip(p=0.25)", "mixup"), device.DEVICE)
    assert ops == [device.PadAndCrop(2), device.HorizontalFlip(0.25), device.MixUp()]
    with pytest.raises(ConfigError, match=r"augment.device: unknown 'flop' \(did you mean 'flip'\?\)"):
        augment.parse("augment.device", ("flop()",), device.DEVICE)
    with pytest.raises(ConfigError, match="is not a call like"):
        augment.parse("augment.device", ("flip(__import__('os'))",), device.DEVICE)
    with pytest.raises(ConfigError, match="unexpected keyword argument 'q'"):
        augment.parse("augment.device", ("flip(q=1)",), device.DEVICE)
