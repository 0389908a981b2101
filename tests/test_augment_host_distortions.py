"""What the random transformations draw: ranges, shares, places; and that they do to pixels what they drew."""

import math

import numpy as np
import pytest

from imgcls_jax.augment import colour, distortions, filters, geometry

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(10, 240, (23, 31, 3), np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def check_uniform(values, low, high):
    """Inside the range, and Kolmogorov-Smirnov at 0.1%."""
    values = np.sort(np.asarray(values, float))
    assert low <= values[0] and values[-1] <= high
    expected = (values - low) / (high - low)
    assert np.abs(expected - (np.arange(len(values)) + 0.5) / len(values)).max() < 1.95 / math.sqrt(len(values)) + 1e-3


def spy(monkeypatch, module, name):
    """Notes the second argument of every call of a pixel operation, and returns the image untouched."""
    seen = []
    monkeypatch.setattr(module, name, lambda image, value, *_: (seen.append(value), image)[1])
    return seen


@pytest.mark.parametrize(("degrees", "low", "high"), [(30.0, -30, 30), ((10, 20), 10, 20), (0, -1e-9, 1e-9)])
def test_rotate_draws_its_angle_evenly(monkeypatch, degrees, low, high):
    seen = spy(monkeypatch, geometry, "rotate")
    generator = rng()
    for _ in range(2000):
        distortions.Rotate(degrees)(IMAGE, generator)
    if degrees:
        check_uniform(seen, low, high)
    else:
        assert set(seen) == {0.0}


def test_rotate_turns_by_what_it_drew_with_its_fill():
    drawn = rng(3)
    drawn.random()
    expected = geometry.rotate(IMAGE, drawn.uniform(-40, 40), "bilinear", 99)
    np.testing.assert_array_equal(distortions.Rotate(40, "bilinear", 99)(IMAGE, rng(3)), expected)


def test_affine_draws_each_of_its_ranges_evenly():
    affine = distortions.Affine(30, translate=(0.2, 0.1), scale=(0.5, 2.0), shear=(-10, 5, 1, 3))
    generator = rng()
    drawn = [affine.draw(1000, 2000, generator) for _ in range(2000)]
    check_uniform([d[0] for d in drawn], -30, 30)
    check_uniform([d[1][0] for d in drawn], -400, 400)
    check_uniform([d[1][1] for d in drawn], -100, 100)
    check_uniform([d[2] for d in drawn], 0.5, 2.0)
    check_uniform([d[3][0] for d in drawn], -10, 5)
    check_uniform([d[3][1] for d in drawn], 1, 3)
    assert abs(np.corrcoef([d[0] for d in drawn], [d[3][0] for d in drawn])[0, 1]) < 0.1


def test_shear_and_translate_do_only_that():
    generator = rng()
    for _ in range(20):
        degrees, shift, scale, shears = distortions.shear(20, 10).draw(50, 60, generator)
        assert (
            (degrees, shift, scale) == (0, (0, 0), 1) and abs(shears[0]) <= 20 and abs(shears[1]) <= 10 and all(shears)
        )
        degrees, shift, scale, shears = distortions.translate(0.5, 0.25).draw(40, 60, generator)
        assert (degrees, scale, shears) == (0, 1, (0, 0)) and abs(shift[0]) <= 30 and abs(shift[1]) <= 10


def test_translate_moves_by_every_whole_number_of_pixels():
    x = np.arange(1, 26, dtype=np.uint8).reshape(5, 5, 1)
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    every = {padded[t : t + 5, s : s + 5].tobytes() for t in range(3) for s in range(3)}
    generator = rng()
    assert {distortions.translate(0.2, 0.2)(x, generator).tobytes() for _ in range(200)} == every


def test_perspective_moves_each_corner_inwards_by_up_to_its_scale():
    generator = rng()
    corners = np.array([distortions.Perspective(0.5).corners(101, 201, generator) for _ in range(3000)])
    ranges = [((0, 50), (0, 25)), ((150, 200), (0, 25)), ((150, 200), (75, 100)), ((0, 50), (75, 100))]
    for corner, (xs, ys) in enumerate(ranges):
        assert set(corners[:, corner, 0]) == set(range(xs[0], xs[1] + 1))
        assert set(corners[:, corner, 1]) == set(range(ys[0], ys[1] + 1))
    assert distortions.Perspective(0.0).corners(9, 7, generator) in [
        [(0, 0), (6, 0), (6, 8), (0, 8)],
    ]


def test_color_jitter_draws_factors_evenly_and_operations_in_every_order(monkeypatch):
    orders, values = set(), {name: [] for name in ("brightness", "contrast", "saturation", "hue")}
    order: list[str] = []
    for name in values:
        monkeypatch.setattr(
            colour, name, lambda x, value, name=name: (order.append(name), values[name].append(value), x)[2]
        )
    generator = rng()
    for _ in range(1000):
        order.clear()
        distortions.ColorJitter(0.4, 1.5, (0.9, 1.2), 0.1)(IMAGE, generator)
        orders.add(tuple(order))
    assert len(orders) == 24
    check_uniform(values["brightness"], 0.6, 1.4)
    check_uniform(values["contrast"], 0.0, 2.5)
    check_uniform(values["saturation"], 0.9, 1.2)
    check_uniform(values["hue"], -0.1, 0.1)


def test_color_jitter_of_one_thing_is_that_thing():
    outs = {
        "brightness": colour.brightness(IMAGE, 1.5),
        "contrast": colour.contrast(IMAGE, 1.5),
        "saturation": colour.saturation(IMAGE, 1.5),
        "hue": colour.hue(IMAGE, 0.25),
    }
    for name, expected in outs.items():
        value = (0.25, 0.25) if name == "hue" else (1.5, 1.5)
        jitter = distortions.ColorJitter(**{**dict.fromkeys(outs, 0.0), name: value})
        np.testing.assert_array_equal(jitter(IMAGE, rng()), expected)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (distortions.Sharpness(0.3, p=1), filters.sharpness(IMAGE, 0.3)),
        (distortions.Grayscale(p=1), colour.grayscale(IMAGE)),
        (distortions.Solarize(90, p=1), colour.solarize(IMAGE, 90)),
        (distortions.Posterize(3, p=1), colour.posterize(IMAGE, 3)),
        (distortions.Equalize(p=1), colour.equalize(IMAGE)),
        (distortions.AutoContrast(p=1), colour.autocontrast(IMAGE)),
        (distortions.Invert(p=1), colour.invert(IMAGE)),
        (distortions.GaussianBlur(1.5), filters.gaussian_blur(IMAGE, 1.5)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_the_simple_ones_do_what_their_name_says(transform, expected):
    assert not np.array_equal(expected, IMAGE)
    np.testing.assert_array_equal(transform(IMAGE, rng()), expected)


def test_gaussian_blur_draws_its_width_evenly(monkeypatch):
    seen = spy(monkeypatch, filters, "gaussian_blur")
    generator = rng()
    for _ in range(2000):
        distortions.GaussianBlur((0.1, 2.0))(IMAGE, generator)
    check_uniform(seen, 0.1, 2.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_gaussian_noise_has_its_mean_and_spread_and_is_independent(channels):
    image = np.full((200, 200, channels), 128, np.uint8)
    noise = distortions.GaussianNoise(0.05)(image, rng()).astype(float) - 128
    assert abs(noise.mean()) < 0.4
    assert noise.std() == pytest.approx(math.sqrt(12.75**2 + 1 / 12), rel=0.02)
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.03
    black_and_white = np.array([0, 255], np.uint8).repeat(500).reshape(20, 50, 1)
    out = distortions.GaussianNoise(0.2)(black_and_white, rng())
    assert out[:10].max() < 250 and out[10:].min() > 5  # cut off, not wrapped around


@pytest.mark.parametrize(("height", "width"), [(224, 224), (100, 300)])
def test_random_erasing_draws_area_and_aspect_in_range_and_any_place(height, width):
    erasing = distortions.RandomErasing()
    generator = rng()
    boxes = np.array([erasing.box(height, width, generator) for _ in range(4000)], float)
    top, left, h, w = boxes[boxes[:, 2] > 0].T
    assert len(h) > 3990
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    area, aspect = h * w / (height * width), h / w
    rounding = 0.5 / np.minimum(h, w) + 0.5 / np.maximum(h, w) + 1e-3  # of the sides to whole pixels, relative
    assert (area > 0.02 * (1 - rounding)).all() and (area < (1 + rounding) / 3).all()
    assert (aspect > 0.3 * (1 - 2 * rounding)).all() and (aspect < (1 + 2 * rounding) / 0.3).all()
    if height == width:  # few are refused there, and those are large and long
        assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, rel=0.05)
        assert abs(np.log(aspect).mean()) < 0.05
        assert (top / (height - h)).mean() == pytest.approx(0.5, abs=0.03)
        assert (left / (width - w)).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_random_erasing_overwrites_its_box_and_nothing_else(mode, channels):
    image = np.full((90, 80, channels), 255, np.uint8)
    erasing = distortions.RandomErasing(p=1.0, mode=mode, mean=(0.2, 0.4, 0.6), std=(0.05, 0.01, 0.02))
    mean = np.array([51.0, 102, 153]) if channels == 3 else np.array([102.0])
    spread = np.array([12.75, 2.55, 5.1]) if channels == 3 else np.array([6.8])
    colours = []
    for seed in range(60):
        drawn = rng(seed)
        drawn.random()
        top, left, h, w = erasing.box(90, 80, drawn)
        out = erasing(image, rng(seed))
        inside = out[top : top + h, left : left + w].reshape(-1, channels).astype(float)
        assert len(inside) > 20
        rest = out.copy()
        rest[top : top + h, left : left + w] = 255
        assert (rest == 255).all()
        if mode == "pixel":
            assert inside.std(axis=0) == pytest.approx(spread, rel=0.6)
        else:
            assert (inside == inside[0]).all()
        colours.append(inside.mean(axis=0))
    if mode == "const":
        assert (np.array(colours) == mean).all()
    else:
        assert np.mean(colours, axis=0) == pytest.approx(mean, abs=8)
    if mode == "rand":
        assert np.std(colours, axis=0) == pytest.approx(spread, rel=0.4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: distortions.Rotate((20, 10)),
        lambda: distortions.Rotate(10, "cubic"),
        lambda: distortions.Rotate(10, fill=256),
        lambda: distortions.Rotate(p=1.5),
        lambda: distortions.Affine(translate=(0.1, 1.1)),
        lambda: distortions.Affine(scale=(0, 1)),
        lambda: distortions.Affine(shear=(1, 2, 3)),
        lambda: distortions.shear(-1),
        lambda: distortions.Perspective(1.2),
        lambda: distortions.ColorJitter(-0.1),
        lambda: distortions.ColorJitter(hue=(-0.6, 0)),
        lambda: distortions.Sharpness(-1),
        lambda: distortions.Solarize(300),
        lambda: distortions.Posterize(9),
        lambda: distortions.GaussianBlur(0),
        lambda: distortions.GaussianNoise(-0.1),
        lambda: distortions.RandomErasing(area=(0.5, 0.2)),
        lambda: distortions.RandomErasing(mode="normal"),
        lambda: distortions.RandomErasing(mean=()),
        lambda: distortions.RandomErasing(mean=(128, 128, 128)),
    ],
)
def test_senseless_arguments_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()
