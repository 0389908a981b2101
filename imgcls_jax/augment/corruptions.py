"""The 15 common corruptions of ImageNet-C and CIFAR-10-C at 5 severities (Hendrycks and Dietterich, arXiv:1903.12261).

`Corruption(name, severity)` is a transformation of `host`'s kind: uint8 [H,W,C], grey or RGB, any size, to the same.
What is random comes from the generator that it is called with, so the pixels are a function of (seed, record).

The constants are those that made the published data: ImageNet-C's (LARGE, create_c/make_imagenet_c.py of the authors'
repository, for 224 x 224) for images of at least SMALL_SIDE pixels, CIFAR-10-C's (SMALL, make_cifar_c.py, for 32 x 32)
below. Lengths among them are in pixels and are not scaled with the image. As there, results are rounded down.

What differs from the published data:
- Frost needs photographs of ice, which are not ours to give away. `synthetic_frost` blends in drawn crystals with
  frost's constants. It has a name of its own because its errors cannot be compared with published ones.
- Motion blur is ImageMagick's algorithm without ImageMagick, as in the package imagecorruptions.
- ImageNet-C was stored as JPEG (quality 85) after it was corrupted; here nothing is compressed twice.

Glass blur is said to swap neighbours. The published program copies them instead (its swap assigns views of one array),
and so do we.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image

from imgcls_jax.augment import geometry
from imgcls_jax.augment.arguments import check_choice, check_whole

# Images whose shorter side is below get CIFAR-10-C's constants.
SMALL_SIDE = 64

SEVERITIES = (1, 2, 3, 4, 5)

# Constants by corruption and severity, in the order of the arguments of the function of that name below.
Table = Mapping[str, tuple[tuple[float, ...], ...]]

LARGE: Table = {
    "gaussian_noise": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    "shot_noise": ((60,), (25,), (12,), (5,), (3,)),
    "impulse_noise": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "synthetic_frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    "contrast": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    "elastic_transform": (  # 244 is the published number, for images of 224
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ),
    "pixelate": ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    "jpeg_compression": ((25,), (18,), (15,), (10,), (7,)),
}

SMALL: Table = {
    "gaussian_noise": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
    "shot_noise": ((500,), (250,), (100,), (75,), (50,)),
    "impulse_noise": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "synthetic_frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    "contrast": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    "elastic_transform": (
        (0, 0, 32 * 0.08),
        (32 * 0.05, 32 * 0.2, 32 * 0.07),
        (32 * 0.08, 32 * 0.06, 32 * 0.06),
        (32 * 0.1, 32 * 0.04, 32 * 0.05),
        (32 * 0.1, 32 * 0.03, 32 * 0.03),
    ),
    "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    "jpeg_compression": ((80,), (65,), (58,), (50,), (40,)),
}


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One corruption at one severity.

    Attributes:
      name: one of NAMES.
      severity: 1 to 5.
    """

    name: str
    severity: int

    def __post_init__(self) -> None:
        check_choice("name", self.name, NAMES)
        check_whole("severity", self.severity, SEVERITIES[0], SEVERITIES[-1])

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        table = SMALL if min(image.shape[:2]) < SMALL_SIDE else LARGE
        out = _FUNCTIONS[self.name](image, rng, *table[self.name][self.severity - 1])
        return out.reshape(image.shape)  # OpenCV drops an axis of length 1


def gaussian_noise(image: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Adds normal noise of standard deviation `sigma` (1 is white)."""
    return _to_uint8(image + np.float32(255 * sigma) * rng.standard_normal(image.shape, np.float32))


def shot_noise(image: np.ndarray, rng: np.random.Generator, photons: float) -> np.ndarray:
    """Counts of photons, Poisson; white is `photons` on average."""
    return _to_uint8(rng.poisson(image * (photons / 255)) * (255 / photons))


def impulse_noise(image: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """A share of all values becomes black or white, with equal chances; each channel by itself."""
    drawn = rng.random(image.shape, np.float32)
    return np.where(drawn < share, np.where(drawn < share / 2, 0, 255), image).astype(np.uint8)


def defocus_blur(image: np.ndarray, rng: np.random.Generator, radius: float, sigma: float) -> np.ndarray:
    """Convolves with a disk of `radius` pixels, whose edge is smoothed with `sigma`."""
    del rng
    return _to_uint8(cv2.filter2D(image.astype(np.float32), -1, _disk(radius, sigma)))


def glass_blur(image: np.ndarray, rng: np.random.Generator, sigma: float, reach: float, rounds: float) -> np.ndarray:
    """Blurs, takes pixels from up to `reach` pixels away, `rounds` times, and blurs again."""
    image = _to_uint8(_gaussian(image, sigma)).reshape(image.shape)
    for _ in range(int(rounds)):
        image = _displaced(image, rng, int(reach))
    return _to_uint8(_gaussian(image, sigma))


def motion_blur(image: np.ndarray, rng: np.random.Generator, radius: float, sigma: float) -> np.ndarray:
    """Smears to one side, at an angle drawn from -45 to 45 degrees."""
    return _smeared(image, int(radius), sigma, rng.uniform(-45, 45))


def zoom_blur(image: np.ndarray, rng: np.random.Generator, stop: float, step: float) -> np.ndarray:
    """The mean of the image and of the image enlarged by 1, 1 + step, ... up to `stop`."""
    del rng
    image = image.astype(np.float32)
    factors = np.arange(1, stop, step)
    total = image.copy()
    for factor in factors:
        total += _zoomed(image, factor)
    return _to_uint8(total / (len(factors) + 1))


def snow(
    image: np.ndarray,
    rng: np.random.Generator,
    mean: float,
    spread: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    keep: float,
) -> np.ndarray:
    """Whitens the image and adds flakes: noise, enlarged, cut off below a threshold, smeared as it falls; and turned.

    Args:
      image: uint8 [H,W,C].
      rng: what is random.
      mean: of the noise; 1 is white.
      spread: its standard deviation.
      zoom: by which the noise is enlarged.
      threshold: below which there is no flake.
      radius: pixels of the smear.
      sigma: pixels, how fast it fades.
      keep: share of the image that is not whitened.
    """
    noise = _zoomed(rng.normal(mean, spread, image.shape[:2]).astype(np.float32)[..., None], zoom)[..., 0]
    flakes = _to_uint8(255 * np.where(noise < threshold, 0, noise))
    fallen = _smeared(flakes, int(radius), sigma, rng.uniform(-135, -45)).astype(np.float32)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] if image.shape[2] == 3 else image
    white = np.maximum(image, grey * np.float32(1.5) + np.float32(127.5))
    return _to_uint8(image * np.float32(keep) + white * np.float32(1 - keep) + (fallen + fallen[::-1, ::-1])[..., None])


def synthetic_frost(image: np.ndarray, rng: np.random.Generator, keep: float, strength: float) -> np.ndarray:
    """Adds a part of one of FROSTS drawn sheets of crystals, `strength` times, to the image times `keep`."""
    height, width, channels = image.shape
    shrink = 5 if min(height, width) < SMALL_SIDE else 1
    side = 512
    while side // shrink < max(height, width):
        side *= 2
    sheet = _frost(int(rng.integers(FROSTS)), side, shrink)
    top, left = (int(rng.integers(have - need + 1)) for have, need in zip(sheet.shape, (height, width), strict=False))
    part: Any = sheet[top : top + height, left : left + width].astype(np.float32)
    if channels == 1:
        part = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY)[..., None]
    return _to_uint8(image * np.float32(keep) + part * np.float32(strength))


def fog(image: np.ndarray, rng: np.random.Generator, strength: float, decay: float) -> np.ndarray:
    """Adds a plasma fractal, `strength` times, and scales so that white stays white."""
    height, width = image.shape[:2]
    side = 1 << (max(height, width) - 1).bit_length()
    # 256 even for smaller large images, as published: a larger plasma is smoother where it is looked at.
    side = max(side, 32 if min(height, width) < SMALL_SIDE else 256)
    haze = plasma(side, decay, rng)[:height, :width, None].astype(np.float32)
    brightest = float(image.max())
    return _to_uint8((image + np.float32(255 * strength) * haze) * np.float32(brightest / (brightest + 255 * strength)))


def brightness(image: np.ndarray, rng: np.random.Generator, more: float) -> np.ndarray:
    """Adds to the value of HSV, which is the largest channel; hue and saturation stay."""
    del rng
    value = image.max(axis=2, keepdims=True).astype(np.float32)
    brighter = np.minimum(value + np.float32(255 * more), 255)
    return _to_uint8(np.where(value > 0, image * (brighter / np.maximum(value, 1)), brighter))


def contrast(image: np.ndarray, rng: np.random.Generator, factor: float) -> np.ndarray:
    """Scales the distances from the mean of each channel."""
    del rng
    means = image.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    return _to_uint8((image - means) * np.float32(factor) + means)


def elastic_transform(
    image: np.ndarray, rng: np.random.Generator, alpha: float, sigma: float, affine: float
) -> np.ndarray:
    """Moves three points by up to `affine` pixels, and each pixel by `alpha` times noise smoothed with `sigma`.

    The published constants change what is distorted with the severity, not how much: severity 5 is not the furthest
    from the image.
    """
    height, width = image.shape[:2]
    centre = np.array([height, width], np.float32) // 2
    square = min(height, width) // 3
    before = np.array([centre + square, [centre[0] + square, centre[1] - square], centre - square], np.float32)
    after = before + rng.uniform(-affine, affine, before.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(before, after)
    moved = cv2.warpAffine(image.astype(np.float32), matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    if not alpha:
        return _to_uint8(moved)
    smooth_rows, smooth_columns = _smoothing(height, sigma), _smoothing(width, sigma)
    shifts = rng.random((2, height, width), np.float32) * 2 - 1
    x, y = (smooth_rows @ shift @ smooth_columns.T * np.float32(alpha) for shift in shifts)
    x += np.arange(width, dtype=np.float32)
    y += np.arange(height, dtype=np.float32)[:, None]
    return _to_uint8(cv2.remap(moved, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))


def pixelate(image: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """Shrinks both sides to a share, and enlarges again, without smoothing."""
    del rng
    height, width = image.shape[:2]
    small = geometry.resize(image, max(1, int(height * share)), max(1, int(width * share)), "box")
    return geometry.resize(small, height, width, "box")


def jpeg_compression(image: np.ndarray, rng: np.random.Generator, quality: float) -> np.ndarray:
    """To JPEG of a quality and back, by Pillow."""
    del rng
    file = io.BytesIO()
    Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f
    for f in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        defocus_blur,
        glass_blur,
        motion_blur,
        zoom_blur,
        snow,
        synthetic_frost,
        fog,
        brightness,
        contrast,
        elastic_transform,
        pixelate,
        jpeg_compression,
    )
}

# In the order of the paper.
NAMES = tuple(_FUNCTIONS)


def plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """A square plasma fractal, [side,side] float64 in 0 to 1, by the diamond-square algorithm; it tiles.

    Args:
      side: a power of two.
      decay: by which the roughness falls from one scale to the next.
      rng: what is random.
    """
    out = np.zeros((side, side))
    step, rough = side, 100.0

    def mean_and_noise(sums: np.ndarray) -> np.ndarray:
        return sums / 4 + rough * rng.uniform(-rough, rough, sums.shape)

    while step >= 2:
        half = step // 2
        corners = out[::step, ::step]
        sums = corners + np.roll(corners, -1, axis=0)
        out[half::step, half::step] = mean_and_noise(sums + np.roll(sums, -1, axis=1))
        middles = out[half::step, half::step]
        beside = corners + np.roll(corners, -1, axis=1)
        out[::step, half::step] = mean_and_noise(middles + np.roll(middles, 1, axis=0) + beside)
        above = corners + np.roll(corners, -1, axis=0)
        out[half::step, ::step] = mean_and_noise(middles + np.roll(middles, 1, axis=1) + above)
        step, rough = half, rough / decay
    out -= out.min()
    return out / out.max()


def _to_uint8(levels: np.ndarray) -> np.ndarray:
    """Levels 0..255, rounded down as in the published programs, but for what single precision may lack."""
    return np.clip(levels + 1e-3, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=32)
def _disk(radius: float, sigma: float) -> np.ndarray:
    """The kernel of `defocus_blur`: a disk, its edge smoothed."""
    reach = 8 if radius <= 8 else int(radius)
    squares = np.arange(-reach, reach + 1) ** 2
    disk = (squares[:, None] + squares <= radius**2).astype(np.float32)
    size = 3 if radius <= 8 else 5
    disk = cv2.GaussianBlur(disk / disk.sum(), (size, size), sigma)
    margin = max(0, reach - int(radius) - size // 2)  # zeros, which cost time
    return disk[margin : disk.shape[0] - margin, margin : disk.shape[1] - margin]


def _gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Float32 [H,W,C], blurred; cut off at 4 sigma, the border repeated, as scikit-image does."""
    size = 2 * int(4 * sigma + 0.5) + 1
    return cv2.GaussianBlur(image.astype(np.float32), (size, size), sigma, borderType=cv2.BORDER_REPLICATE)


def _displaced(image: np.ndarray, rng: np.random.Generator, reach: int) -> np.ndarray:
    """Each pixel replaced by one -reach to reach - 1 away each way, one after the other, from the last to the first.

    What a pixel takes may have been replaced before; then it goes where that came from, and so on. The pixels are
    therefore not walked over: all follow their pointers at once, each time twice as far.
    """
    height, width, channels = image.shape
    h = np.arange(height - reach, reach, -1)
    w = np.arange(width - reach, reach, -1)
    number = np.arange(len(h) * len(w)).reshape(len(h), len(w))  # in the order of replacement
    shifts = rng.integers(-reach, reach, (len(h), len(w), 2))
    from_h, from_w = h[:, None] + shifts[..., 1], w + shifts[..., 0]
    inside = (from_h > reach) & (from_h <= height - reach) & (from_w > reach) & (from_w <= width - reach)
    there = (height - reach - from_h) * len(w) + (width - reach - from_w)
    source = (from_h * width + from_w).ravel()
    pointer = np.where(inside & (there < number), there, -1).ravel()
    while (going := np.flatnonzero(pointer >= 0)).size:
        via = pointer[going]
        source[going], pointer[going] = source[via], pointer[via]
    out = image.reshape(-1, channels).copy()
    out[(h[:, None] * width + w).ravel()] = image.reshape(-1, channels)[source]
    return out.reshape(image.shape)


def _smeared(image: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """uint8, convolved with half a Gaussian along a line of 2 radius + 1 pixels (ImageMagick's MotionBlurImage)."""
    i = np.arange(2 * radius + 1)
    weights = np.exp(-(i**2) / (2 * sigma**2))
    angle = math.radians(degrees)
    x = np.ceil(i * math.cos(angle) - 0.5).astype(int)
    y = np.ceil(i * math.sin(angle) - 0.5).astype(int)
    kernel = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1), np.float32)
    np.add.at(kernel, (y - y.min(), x - x.min()), weights / weights.sum())
    anchor = (-int(x.min()), -int(y.min()))
    return cv2.filter2D(image, -1, kernel, anchor=anchor, borderType=cv2.BORDER_REPLICATE)


def _zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of float32 [H,W,C], enlarged to [H,W,C] bilinearly (scipy.ndimage.zoom: corners stay corners)."""
    height, width = image.shape[:2]
    starts, scales = [], []
    for side in (width, height):
        part = math.ceil(side / factor)
        whole = round(part * factor)
        scale = (part - 1) / max(1, whole - 1)  # pixels of the image in one of the result
        starts.append((side - part) // 2 + (whole - side) // 2 * scale)
        scales.append(scale)
    matrix = np.array([[scales[0], 0, starts[0]], [0, scales[1], starts[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    out = cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return out.reshape(image.shape)


@functools.lru_cache(maxsize=32)
def _smoothing(side: int, sigma: float) -> np.ndarray:
    """The matrix [side,side] that smooths a line; for a sigma of any size its product takes the same time."""
    from scipy.ndimage import gaussian_filter1d

    smoothing: Any = gaussian_filter1d(np.eye(side, dtype=np.float32), sigma, axis=0, mode="reflect", truncate=3)
    return smoothing


FROSTS = 5  # sheets that are drawn, once a process


@functools.lru_cache(maxsize=2 * FROSTS)
def _frost(number: int, side: int, shrink: int) -> np.ndarray:
    """A sheet of frost, uint8 [S,S,3], S = side / shrink: ferns of ice, stems with barbs at 60 degrees, on a film.

    Size, brightness and colour are about those in the photographs that ImageNet-C was made with (means 70 to 210,
    standard deviations 16 to 47, bluish). For small images the sheet is shrunk to a fifth, as those photographs were.
    """
    rng = np.random.default_rng(number)
    film = plasma(side, 2, rng).astype(np.float32)
    ferns, barbs = side * side // 160, 10
    base, length = rng.random((ferns, 2)) * side, rng.uniform(12, 40, (ferns, 1, 1))
    angle, bright = rng.uniform(0, 2 * math.pi, ferns), rng.uniform(10, 140, ferns)
    unit = lambda a: np.stack([np.cos(a), np.sin(a)], axis=-1)[:, None]  # noqa: E731
    along = np.linspace(0, 1, barbs)[:, None]
    stem = base[:, None] + along * length * unit(angle)
    lines = [np.stack([stem[:, :1], stem[:, -1:]], axis=2)]
    for turn in (-math.pi / 3, math.pi / 3):
        lines.append(np.stack([stem, stem + 0.3 * length * (1 - along) * unit(angle + turn)], axis=2))
    sixteenths = np.round(np.concatenate(lines, axis=1) * 16).astype(np.int32)
    ice = np.zeros((side, side), np.float32)
    for fern in range(ferns):
        cv2.polylines(ice, list(sixteenths[fern]), False, float(bright[fern]), 1, cv2.LINE_8, 4)
    level = 60 + 100 * film + cv2.GaussianBlur(ice, (3, 3), 0.6) * (0.4 + film)
    sheet = _to_uint8(level[..., None] * np.array([0.9, 1.0, 1.06], np.float32))
    return cv2.resize(sheet, (side // shrink, side // shrink), interpolation=cv2.INTER_AREA)
