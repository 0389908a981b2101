"""Pixel operations against Pillow (bit for bit, or the difference the docstring states) and torchvision."""

import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_sample_image

from imgcls_jax.augment import colour, filters, geometry

CHINA = load_sample_image("china.jpg")
RNG = np.random.default_rng(0)
IMAGES = {
    "photo": np.ascontiguousarray(CHINA[100:251, 200:397]),
    "mirrored": CHINA[100:233, 320:200:-1],  # a view with a negative stride, as `flip` makes
    "noise": RNG.integers(0, 256, (61, 83, 3), np.uint8),
    "faint": RNG.integers(100, 140, (40, 50, 3), np.uint8),
    "one value": np.full((20, 31, 3), 77, np.uint8),
    "two values": np.where(RNG.random((40, 41, 3)) < 0.2, 40, 200).astype(np.uint8),
    "grey": np.ascontiguousarray(CHINA[100:251, 200:397, 1:2]),
    "one pixel": np.array([[[3, 150, 201]]], np.uint8),
    "one row": RNG.integers(0, 256, (1, 9, 3), np.uint8),
    "one column": RNG.integers(0, 256, (9, 1, 1), np.uint8),
}
FACTORS = (0.0, 0.1, 0.55, 1.0, 1.3, 1.9)


def pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def array(image: Image.Image) -> np.ndarray:
    out = np.asarray(image)
    return out[..., None] if out.ndim == 2 else out


def enhance(kind):
    return lambda image, factor: array(kind(pillow(image)).enhance(factor))


def pillow_solarize_add(image, addend):
    table = [min(255, v + addend) if v < 128 else v for v in range(256)]
    return array(pillow(image).point(table * image.shape[2]))


# Ours, Pillow's, arguments.
EXACT = {
    "brightness": (colour.brightness, enhance(ImageEnhance.Brightness), FACTORS),
    "contrast": (colour.contrast, enhance(ImageEnhance.Contrast), FACTORS),
    "invert": (lambda x, _: colour.invert(x), lambda x, _: array(ImageOps.invert(pillow(x))), (0,)),
    "posterize": (colour.posterize, lambda x, bits: array(ImageOps.posterize(pillow(x), bits)), range(1, 9)),
    "solarize": (
        colour.solarize,
        lambda x, threshold: array(ImageOps.solarize(pillow(x), threshold)),
        (0, 1, 77, 127.5, 128, 255, 256),
    ),
    "solarize_add": (colour.solarize_add, pillow_solarize_add, (0, 30, 110)),
    "equalize": (lambda x, _: colour.equalize(x), lambda x, _: array(ImageOps.equalize(pillow(x))), (0,)),
    "autocontrast": (lambda x, _: colour.autocontrast(x), lambda x, _: array(ImageOps.autocontrast(pillow(x))), (0,)),
}


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("name", EXACT)
def test_colour_operations_are_pillows_bit_for_bit(name, image):
    ours, theirs, arguments = EXACT[name]
    before = IMAGES[image].copy()
    for argument in arguments:
        np.testing.assert_array_equal(ours(IMAGES[image], argument), theirs(IMAGES[image], argument), str(argument))
    np.testing.assert_array_equal(IMAGES[image], before)


def test_posterize_to_no_bits_is_black():
    assert not colour.posterize(IMAGES["noise"], 0).any()


@pytest.mark.parametrize("image", IMAGES)
def test_saturation_and_sharpness_are_pillows_but_for_one_level_in_a_thousand(image):
    x = IMAGES[image]
    for ours, theirs in ((colour.saturation, ImageEnhance.Color), (filters.sharpness, ImageEnhance.Sharpness)):
        for factor in FACTORS:
            out, expected = ours(x, factor), enhance(theirs)(x, factor)
            assert out.shape == x.shape and out.dtype == np.uint8
            difference = np.abs(out.astype(int) - expected)
            assert difference.max() <= 1 and (difference > 0).mean() < 1e-3, (ours, factor)


@pytest.mark.parametrize("image", IMAGES)
def test_grayscale_is_pillows_luma_in_every_channel(image):
    x = IMAGES[image]
    luma = np.asarray(pillow(x).convert("L"))
    np.testing.assert_array_equal(colour.luma(x), luma)
    np.testing.assert_array_equal(colour.grayscale(x), np.repeat(luma[..., None], x.shape[2], axis=2))


def test_luma_of_every_kind_of_colour_is_pillows_but_for_ties():
    x = np.random.default_rng(1).integers(0, 256, (1000, 1000, 3), np.uint8)
    difference = np.abs(colour.luma(x).astype(int) - np.asarray(Image.fromarray(x).convert("L")))
    assert difference.max() <= 1 and (difference > 0).sum() < 30


@pytest.mark.parametrize("shift", [-0.5, -0.2, 0.0, 0.1, 0.5])
def test_hue_turns_the_colour_circle(shift):
    def reference(red, green, blue):
        import colorsys

        h, s, v = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
        return [round(255 * value) for value in colorsys.hsv_to_rgb((h + shift) % 1, s, v)]

    x = IMAGES["noise"]
    expected = np.array([[reference(*pixel) for pixel in row] for row in x.tolist()])
    assert np.abs(colour.hue(x, shift).astype(int) - expected).max() <= 1


def test_colour_has_no_meaning_for_grey_images():
    x = IMAGES["grey"]
    for out in (colour.hue(x, 0.3), colour.saturation(x, 0.2), colour.grayscale(x)):
        np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("image", ["photo", "grey", "one pixel", "one row"])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_gaussian_blur_is_the_convolution(image, sigma):
    x = IMAGES[image]
    radius = math.ceil(3 * sigma)
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = x.astype(float)
    for axis in (0, 1):
        padded = np.pad(padded, [(radius, radius) if i == axis else (0, 0) for i in range(3)], mode="reflect")
        padded = np.apply_along_axis(np.convolve, axis, padded, kernel, "valid")
    assert np.abs(filters.gaussian_blur(x, sigma) - np.rint(padded)).max() <= 1


def test_gaussian_blur_is_near_pillows():
    x = IMAGES["photo"]
    for sigma in (0.5, 1.0, 2.0):
        theirs = array(pillow(x).filter(ImageFilter.GaussianBlur(sigma))).astype(int)
        difference = np.abs(filters.gaussian_blur(x, sigma) - theirs)[8:-8, 8:-8]
        assert difference.mean() < 1.5, sigma


FILL = (128, 20, 240)
# Maps from the result to the input, for the photo of 151 x 197.
MAPS = {
    "identity": (1, 0, 0, 0, 1, 0),
    "shear x": (1, 0.23, 0, 0, 1, 0),
    "shear y": (1, 0, 0, -0.31, 1, 0),
    "whole shift": (1, 0, 20, 0, 1, -7),
    "fractional shift": (1, 0, 20.4, 0, 1, -7.7),
    "smaller": (1.7, 0, -60, 0, 2.1, -80),
    "general": (1.3, 0.2, -9.3, 0.1, 0.8, 4.4),
    "one corner, enlarged": (0.01, 0.002, 3, 0, 0.02, 5),
    "far outside": (300.0, 1, -20_000, 2, 900, -60_000),
    "seven turns": tuple(geometry.affine_map(151, 197, 77.7, (5, -9), 1.2, (12, -8))),
}


@pytest.mark.parametrize("image", ["photo", "grey", "mirrored", "one pixel"])
@pytest.mark.parametrize("name", MAPS)
def test_affine_nearest_is_pillows_bit_for_bit_and_bilinear_within_one_level(name, image):
    x = IMAGES[image]
    for interpolation in ("nearest", "bilinear"):
        fill = FILL if x.shape[2] == 3 else FILL[0]
        resampling = Image.Resampling[interpolation.upper()]
        kind = Image.Transform.AFFINE
        expected = array(pillow(x).transform(x.shape[1::-1], kind, MAPS[name], resampling, fillcolor=fill)).astype(int)
        difference = np.abs(geometry.affine(x, MAPS[name], interpolation, fill) - expected)
        assert difference.max() <= (1 if interpolation == "bilinear" else 0), interpolation


@pytest.mark.parametrize("image", ["photo", "noise", "grey", "one row"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_rotate_is_pillows(image, interpolation):
    x = IMAGES[image]
    limit = 0 if interpolation == "nearest" else 5 if image == "noise" else 1
    for degrees in (-133.3, -90, -15, 0, 0.5, 17, 45, 90, 180, 271):
        resampling = Image.Resampling[interpolation.upper()]
        expected = array(pillow(x).rotate(degrees, resampling, fillcolor=9 if x.shape[2] == 1 else (9, 9, 9)))
        difference = np.abs(geometry.rotate(x, degrees, interpolation, 9) - expected.astype(int))
        # A pixel whose place is on the border but for the 15th digit may be inside for one and outside for the other.
        assert (difference > limit).mean() < 2e-4, degrees


def test_shears_and_shifts_go_the_way_they_say():
    x = np.arange(1, 26, dtype=np.uint8).reshape(5, 5, 1)
    np.testing.assert_array_equal(geometry.translate(x, 2, 0)[:, 2:], x[:, :3])
    assert not geometry.translate(x, 2, 0)[:, :2].any()
    np.testing.assert_array_equal(geometry.translate(x, 0, -1, fill=7)[:4], x[1:])
    assert (geometry.translate(x, 0, -1, fill=7)[4] == 7).all()
    for row in range(5):  # a factor of 1 moves the middle of row y by y + 1/2: floor(x + 1/2 + y + 1/2)
        moved = np.pad(x[row, row + 1 :], ((0, row + 1), (0, 0))) if row < 4 else 0
        np.testing.assert_array_equal(geometry.shear_x(x, 1.0)[row], moved)
        np.testing.assert_array_equal(geometry.shear_y(x.swapaxes(0, 1), 1.0)[:, row], moved)


def test_affine_map_undoes_shear_scale_turn_and_shift_about_the_middle():
    def turned(degrees):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])

    def moved(x, y):
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])

    height, width = 60, 100
    shear_x = np.array([[1, -math.tan(math.radians(12)), 0], [0, 1, 0], [0, 0, 1]])
    shear_y = np.array([[1, 0, 0], [-math.tan(math.radians(-8)), 1, 0], [0, 0, 1]])
    middle, back = moved(50, 30), moved(-50, -30)
    forward = moved(5, -9) @ middle @ turned(33) @ np.diag([1.4, 1.4, 1]) @ shear_y @ shear_x @ back
    map_ = geometry.affine_map(height, width, 33, (5, -9), 1.4, (12, -8))
    np.testing.assert_allclose(np.array([*map_, 0, 0, 1]).reshape(3, 3) @ forward, np.eye(3), atol=1e-9)


def corners_moved(x: np.ndarray, by: list[tuple[int, int]]) -> tuple[list, list]:
    h, w = x.shape[:2]
    start = [(0, 0), (w - 1, 0), (w - 1, h - 1), (0, h - 1)]
    return start, [(a + c, b + d) for (a, b), (c, d) in zip(start, by, strict=True)]


@pytest.mark.parametrize("image", ["photo", "grey"])
def test_perspective_is_pillows_and_brings_the_points_where_it_should(image):
    x = IMAGES[image]
    start, end = corners_moved(x, [(30, 12), (-3, 20), (-40, -5), (9, -30)])
    map_ = geometry.perspective_map(start, end)
    for (u, v), (px, py) in zip(start, end, strict=True):
        a, b, c, d, e, f, g, h = map_
        scale = g * px + h * py + 1
        assert ((a * px + b * py + c) / scale, (d * px + e * py + f) / scale) == pytest.approx((u, v), abs=1e-6)
    for interpolation in ("nearest", "bilinear"):
        resampling = Image.Resampling[interpolation.upper()]
        theirs = pillow(x).transform(x.shape[1::-1], Image.Transform.PERSPECTIVE, map_, resampling)
        difference = np.abs(geometry.perspective(x, map_, interpolation) - array(theirs).astype(int))
        assert (difference > (0 if interpolation == "nearest" else 1)).mean() < 2e-4


def test_fill_of_another_number_of_channels_is_its_mean():
    assert geometry.colour_of((10, 20, 60), 1) == (30,)
    assert geometry.colour_of(5, 3) == (5, 5, 5)
    assert geometry.colour_of((10, 20, 60), 3) == (10, 20, 60)


@pytest.mark.parity
@pytest.mark.parametrize("image", ["photo", "noise", "faint"])
def test_colour_functions_are_torchvisions(torch, image):
    from torchvision.transforms import functional

    x = IMAGES[image]
    tensor = torch.from_numpy(x).permute(2, 0, 1)

    def off(ours, theirs):
        if isinstance(theirs, torch.Tensor):
            theirs = theirs.permute(1, 2, 0).numpy()
        return np.abs(ours.astype(int) - np.asarray(theirs)).max()

    for factor in FACTORS:
        assert off(colour.brightness(x, factor), functional.adjust_brightness(pillow(x), factor)) == 0
        assert off(colour.contrast(x, factor), functional.adjust_contrast(pillow(x), factor)) == 0
        assert off(colour.saturation(x, factor), functional.adjust_saturation(pillow(x), factor)) <= 1
        assert off(filters.sharpness(x, factor), functional.adjust_sharpness(pillow(x), factor)) <= 1
    for shift in (-0.5, -0.13, 0.0, 0.08, 0.5):
        assert off(colour.hue(x, shift), functional.adjust_hue(tensor, shift)) <= 1
    for sigma in (0.1, 0.8, 2.0):
        theirs = functional.gaussian_blur(tensor, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma, sigma])
        assert off(filters.gaussian_blur(x, sigma), theirs) <= 1


@pytest.mark.parity
def test_affine_and_perspective_are_torchvisions(torch):
    from torchvision.transforms import InterpolationMode, functional

    x = IMAGES["photo"]
    for degrees, shift, scale, shear in (
        (0, (0, 0), 1, (0, 0)),
        (30, (5, -9), 1.3, (12, -8)),
        (-77, (0, 3), 0.6, (-40, 20)),
    ):
        map_ = geometry.affine_map(*x.shape[:2], degrees, shift, scale, shear)
        theirs = functional.affine(pillow(x), degrees, list(shift), scale, list(shear), InterpolationMode.NEAREST, 50)
        assert (geometry.affine(x, map_, "nearest", 50) != np.asarray(theirs)).mean() < 2e-4
        theirs = functional.affine(pillow(x), degrees, list(shift), scale, list(shear), InterpolationMode.BILINEAR, 50)
        difference = np.abs(geometry.affine(x, map_, "bilinear", 50).astype(int) - np.asarray(theirs))
        assert (difference > 1).mean() < 2e-4
    start, end = corners_moved(x, [(30, 12), (-3, 20), (-40, -5), (9, -30)])
    theirs = functional.perspective(pillow(x), start, end, InterpolationMode.NEAREST)
    ours = geometry.perspective(x, geometry.perspective_map(start, end), "nearest")
    assert (ours != np.asarray(theirs)).mean() < 1e-3  # torchvision keeps float32 of the map
