"""The common corruptions: constants, shapes, determinism, how they grow, and parts against scipy and plain loops."""

import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_sample_image

from imgcls_jax.augment import corruptions, geometry
from imgcls_jax.augment.corruptions import NAMES, Corruption

# The lists `c` of make_imagenet_c.py and make_cifar_c.py of the authors' repository, but for frost's name.
IMAGENET_C = {
    "gaussian_noise": [0.08, 0.12, 0.18, 0.26, 0.38],
    "shot_noise": [60, 25, 12, 5, 3],
    "impulse_noise": [0.03, 0.06, 0.09, 0.17, 0.27],
    "glass_blur": [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    "defocus_blur": [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    "motion_blur": [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    "zoom_blur": [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
    "fog": [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    "synthetic_frost": [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    "snow": [
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ],
    "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
    "brightness": [0.1, 0.2, 0.3, 0.4, 0.5],
    "jpeg_compression": [25, 18, 15, 10, 7],
    "pixelate": [0.6, 0.5, 0.4, 0.3, 0.25],
    "elastic_transform": [
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ],
}
CIFAR_C = {
    "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "shot_noise": [500, 250, 100, 75, 50],
    "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom_blur": [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "synthetic_frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    "snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "jpeg_compression": [80, 65, 58, 50, 40],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
    "elastic_transform": [
        (32 * 0, 32 * 0, 32 * 0.08),
        (32 * 0.05, 32 * 0.2, 32 * 0.07),
        (32 * 0.08, 32 * 0.06, 32 * 0.06),
        (32 * 0.1, 32 * 0.04, 32 * 0.05),
        (32 * 0.1, 32 * 0.03, 32 * 0.03),
    ],
}

DETERMINISTIC = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
SHAPES = [(8, 8, 1), (28, 28, 1), (33, 21, 3), (63, 200, 3), (64, 97, 1), (120, 71, 3)]


@pytest.fixture(scope="module")
def photo():
    return load_sample_image("china.jpg")


def corrupted(name, severity, image, seed=0):
    return Corruption(name, severity)(image, np.random.default_rng(seed))


def photos(photo, side):
    """Six parts of a photograph, side x side."""
    parts = [photo[top : top + 200, left : left + 200] for top in (0, 220) for left in (0, 200, 420)]
    return [geometry.resize(part, side, side) for part in parts]


@pytest.mark.parametrize(("ours", "published"), [("LARGE", IMAGENET_C), ("SMALL", CIFAR_C)])
def test_constants_are_the_published_ones(ours, published):
    as_tuples = {
        name: tuple(c if isinstance(c, tuple) else (c,) for c in constants) for name, constants in published.items()
    }
    assert getattr(corruptions, ours) == as_tuples and set(as_tuples) == set(NAMES) and len(NAMES) == 15


def test_small_images_get_the_constants_of_small_images(photo):
    for shape, table in (((64, 80), corruptions.LARGE), ((63, 80), corruptions.SMALL)):
        image = photo[: shape[0], : shape[1]]
        want = corruptions.contrast(image, np.random.default_rng(0), *table["contrast"][2])
        assert (corrupted("contrast", 3, image) == want).all()


@pytest.mark.parametrize("name", NAMES)
def test_any_image_stays_its_shape_and_follows_from_the_seed(name, photo):
    for shape in SHAPES:
        image = np.ascontiguousarray(photo[100 : 100 + shape[0], 250 : 250 + shape[1], : shape[2]])
        image.flags.writeable = False
        for severity in (1, 5):
            out = corrupted(name, severity, image)
            assert (out.shape, out.dtype) == (shape, np.uint8)
            assert (out == corrupted(name, severity, image)).all()
            same = (out == corrupted(name, severity, image, seed=1)).all()
            if name in DETERMINISTIC:
                assert same
            elif shape[0] > 8 and (severity > 1 or name != "glass_blur"):
                assert not same
        assert (out != image).any()


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("name", NAMES)
def test_they_grow_with_severity(name, side, photo):
    """Mean absolute difference from the clean image over six photographs; the exceptions are the published constants'.

    Glass blur and snow do not grow at each step, small motion blur not from 3 to 4. Frost darkens as it thickens, so
    the difference of brightness comes and goes: what grows is what is not the image, 1 - correlation. Elastic's
    distortion changes its kind.
    """
    values = np.zeros(5)
    for i, image in enumerate(photos(photo, side)):
        for severity in corruptions.SEVERITIES:
            out = corrupted(name, severity, image, seed=i)
            if name == "synthetic_frost":
                values[severity - 1] += 1 - np.corrcoef(out.ravel(), image.ravel())[0, 1]
            else:
                values[severity - 1] += np.abs(out.astype(float) - image).mean() / 6
    if name == "elastic_transform":
        assert values.min() > 1
    elif name in ("glass_blur", "snow"):
        assert values[4] > 1.1 * values[0] and np.corrcoef(values, np.arange(5))[0, 1] > 0.7
    else:
        assert (np.diff(values) > (-0.001 if name == "motion_blur" else 0)).all(), values


def test_noise_has_the_published_statistics():
    grey = np.full((256, 256, 3), 128, np.uint8)
    for severity in (1, 2):  # of the others too much is clipped to say it simply
        noise = corrupted("gaussian_noise", severity, grey) - 128.0
        assert noise.std() == pytest.approx(255 * IMAGENET_C["gaussian_noise"][severity - 1], rel=0.01)
        assert abs(noise.mean() + 0.5) < 0.2  # rounded down
    counts = corrupted("shot_noise", 2, grey) / 255
    assert counts.mean() == pytest.approx(128 / 255, abs=0.005)
    assert counts.std() == pytest.approx(np.sqrt(128 / 255 / 25), rel=0.02)
    hit = corrupted("impulse_noise", 5, grey)
    assert (hit == 0).mean() == pytest.approx(0.135, abs=0.003)
    assert (hit == 255).mean() == pytest.approx(0.135, abs=0.003)
    assert ((hit == 128) | (hit == 0) | (hit == 255)).all()


@pytest.mark.parametrize("reach", [1, 3])
def test_glass_takes_pixels_one_after_the_other(reach, photo):
    image = photo[100:140, 250:283]
    want = image.copy()
    h, w = image.shape[:2]
    shifts = np.random.default_rng(0).integers(-reach, reach, (h - 2 * reach, w - 2 * reach, 2))
    for i, y in enumerate(range(h - reach, reach, -1)):
        for j, x in enumerate(range(w - reach, reach, -1)):
            dx, dy = shifts[i, j]
            want[y, x] = want[y + dy, x + dx]
    assert (corruptions._displaced(image, np.random.default_rng(0), reach) == want).all()


@pytest.mark.parametrize("factor", [1, 1.07, 1.3, 2.25, 4.5])
def test_zoom_is_scipys(factor, photo):
    image = photo[50:250, 100:270].astype(np.float32)
    starts = [(side - int(np.ceil(side / factor))) // 2 for side in image.shape[:2]]
    part = image[starts[0] : image.shape[0] - starts[0], starts[1] : image.shape[1] - starts[1]]
    part = part[: int(np.ceil(200 / factor)), : int(np.ceil(170 / factor))]
    whole = ndimage.zoom(part, (factor, factor, 1), order=1)
    top, left = (whole.shape[0] - 200) // 2, (whole.shape[1] - 170) // 2
    want = whole[top : top + 200, left : left + 170]
    # OpenCV may round where it looks to 1/32 of a pixel.
    assert np.abs(corruptions._zoomed(image, factor) - want).max() < 8
    assert np.abs(corruptions._zoomed(image, factor) - want).mean() < 0.3


@pytest.mark.parametrize("severity", corruptions.SEVERITIES)
def test_elastic_is_the_published_one(severity, photo):
    """The published steps, by scipy."""
    image = geometry.resize(photo[:400, 100:500], 224, 224)
    alpha, sigma, affine = IMAGENET_C["elastic_transform"][severity - 1]
    rng = np.random.default_rng(3)
    centre, square = np.float32([112, 112]), 74
    before = np.float32([centre + square, [centre[0] + square, centre[1] - square], centre - square])
    after = before + rng.uniform(-affine, affine, before.shape).astype(np.float32)
    moved = cv2.warpAffine(
        image / np.float32(255), cv2.getAffineTransform(before, after), (224, 224), borderMode=cv2.BORDER_REFLECT_101
    )
    noise = rng.random((2, 224, 224), np.float32) * 2 - 1
    dx, dy = (ndimage.gaussian_filter(n, sigma, mode="reflect", truncate=3) * alpha for n in noise)
    y, x, z = np.indices(image.shape)
    want = ndimage.map_coordinates(moved, (y + dy[..., None], x + dx[..., None], z), order=1, mode="reflect") * 255
    difference = np.abs(corrupted("elastic_transform", severity, image, seed=3) - want)
    assert difference.mean() < 1 and difference.max() < 8


def test_a_wrong_name_or_severity_is_refused():
    with pytest.raises(ValueError, match="name is 'frost'"):
        Corruption("frost", 1)
    with pytest.raises(ValueError, match="severity is 6"):
        Corruption("fog", 6)
