"""Random transformations that change one thing about an image: where its pixels are, their colour, or their detail.

Frozen dataclasses, called as `transform(image, rng)`, uint8 [H,W,C] to uint8 [H,W,C] (see `host`). Names and defaults
are torchvision's where it has the transformation, `p` among them: 1 where torchvision always applies it. What each does
to pixels is in `geometry`, `colour` and `filters`. For grey images [H,W,1], grey-scale, saturation and hue do nothing;
all others work as on one channel of an RGB image.
"""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from imgcls_jax.augment import colour, filters, geometry
from imgcls_jax.augment.arguments import (
    Fill,
    check,
    check_choice,
    check_probability,
    check_rising,
    check_sampling,
    check_whole,
    interval,
)

# A number v means -v to v (or 1 - v to 1 + v for factors); a pair means itself.
Range = float | tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Sometimes:
    """A change without numbers of its own, made with probability `p`; a subclass says which.

    Attributes:
      p: probability, 0 to 1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        return self.change(image) if rng.random() < self.p else image

    def change(self, image: np.ndarray) -> np.ndarray:
        """[H,W,C] to [H,W,C], always."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Rotate:
    """Turns the image about its middle; what comes from outside is `fill` (torchvision's RandomRotation).

    Attributes:
      degrees: counter-clockwise, drawn from -degrees to degrees, or from a pair.
      interpolation: "nearest" or "bilinear".
      fill: grey levels, one for all channels or one for each.
      p: probability, 0 to 1.
    """

    degrees: Range = 15.0
    interpolation: str = "nearest"
    fill: Fill = 0
    p: float = 1.0

    def __post_init__(self) -> None:
        interval("degrees", self.degrees, 0, -math.inf, math.inf)
        check_sampling(self.interpolation, self.fill)
        check_probability(self.p)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        if rng.random() >= self.p:
            return image
        low, high = interval("degrees", self.degrees, 0, -math.inf, math.inf)
        return geometry.rotate(image, rng.uniform(low, high), self.interpolation, self.fill)


@dataclasses.dataclass(frozen=True)
class Affine:
    """Turns, moves, scales and shears the image about its middle at random (torchvision's RandomAffine).

    Attributes:
      degrees: turned by, clockwise, drawn from -degrees to degrees, or from a pair.
      translate: largest shift to each side along x and y, as a share of width and height, 0 to 1; whole pixels.
      scale: least and largest factor of the size.
      shear: degrees along x, drawn from -shear to shear, or a pair, or four: a pair along x and a pair along y.
      interpolation: "nearest" or "bilinear".
      fill: grey levels outside the image, one for all channels or one for each.
      p: probability, 0 to 1.
    """

    degrees: Range = 15.0
    translate: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    shear: Range | tuple[float, float, float, float] = 0.0
    interpolation: str = "nearest"
    fill: Fill = 0
    p: float = 1.0

    def __post_init__(self) -> None:
        interval("degrees", self.degrees, 0, -math.inf, math.inf)
        x, y = self.translate
        check(0 <= x <= 1 and 0 <= y <= 1, f"translate is {self.translate}: it must be two shares in 0 to 1")
        check_rising("scale", self.scale)
        self._shears()
        check_sampling(self.interpolation, self.fill)
        check_probability(self.p)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        if rng.random() >= self.p:
            return image
        height, width = image.shape[:2]
        map_ = geometry.affine_map(height, width, *self.draw(height, width, rng))
        return geometry.affine(image, map_, self.interpolation, self.fill)

    def draw(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[float, tuple[int, int], float, tuple[float, float]]:
        """(degrees, pixels to the right and down, scale, degrees of shear along x and y) for an image of that size."""
        degrees = rng.uniform(*interval("degrees", self.degrees, 0, -math.inf, math.inf))
        x, y = self.translate[0] * width, self.translate[1] * height
        shift = (round(rng.uniform(-x, x)), round(rng.uniform(-y, y)))
        scale = rng.uniform(*self.scale)
        along_x, along_y = self._shears()
        return degrees, shift, scale, (rng.uniform(*along_x), rng.uniform(*along_y))

    def _shears(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The ranges of the shear along x and along y, degrees."""
        if isinstance(self.shear, (tuple, list)) and len(self.shear) == 4:
            x, y = self.shear[:2], self.shear[2:]
            return interval("shear", x, 0, -89, 89), interval("shear", y, 0, -89, 89)
        return interval("shear", self.shear, 0, -89, 89), (0.0, 0.0)


def shear(x: float = 15.0, y: float = 15.0, interpolation: str = "nearest", fill: Fill = 0, p: float = 1.0) -> Affine:
    """An `Affine` that only shears, by up to `x` degrees along x and `y` along y, each to both sides."""
    check(x >= 0 and y >= 0, f"x, y are {x}, {y}: they must not be negative")
    return Affine(degrees=0, shear=(-x, x, -y, y), interpolation=interpolation, fill=fill, p=p)


def translate(x: float = 0.1, y: float = 0.1, interpolation: str = "nearest", fill: Fill = 0, p: float = 1.0) -> Affine:
    """An `Affine` that only moves the image, by up to the share `x` of its width and `y` of its height."""
    return Affine(degrees=0, translate=(x, y), interpolation=interpolation, fill=fill, p=p)


@dataclasses.dataclass(frozen=True)
class Perspective:
    """Draws each corner towards the middle and maps the image onto them (torchvision's RandomPerspective).

    Attributes:
      distortion_scale: how far corners move at most, as a share of half the side, 0 to 1.
      interpolation: "nearest" or "bilinear".
      fill: grey levels outside the image, one for all channels or one for each.
      p: probability, 0 to 1.
    """

    distortion_scale: float = 0.5
    interpolation: str = "bilinear"
    fill: Fill = 0
    p: float = 0.5

    def __post_init__(self) -> None:
        scale = self.distortion_scale
        check(0 <= scale <= 1, f"distortion_scale is {scale}: it must be in 0 to 1")
        check_sampling(self.interpolation, self.fill)
        check_probability(self.p)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        if rng.random() >= self.p:
            return image
        height, width = image.shape[:2]
        start = [(0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1)]
        map_ = geometry.perspective_map(start, self.corners(height, width, rng))
        return geometry.perspective(image, map_, self.interpolation, self.fill)

    def corners(self, height: int, width: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Where the corners top left, top right, bottom right and bottom left go: (x, y), whole pixels."""
        dx, dy = (int(self.distortion_scale * (side // 2)) for side in (width, height))
        left, right = (0, dx + 1), (width - dx - 1, width)
        top, bottom = (0, dy + 1), (height - dy - 1, height)
        ranges = ((left, top), (right, top), (right, bottom), (left, bottom))
        return [(int(rng.integers(*x)), int(rng.integers(*y))) for x, y in ranges]


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, changed in random order (torchvision's ColorJitter).

    A number v draws a factor from 1 - v (at least 0) to 1 + v; a pair is the range itself.

    Attributes:
      brightness: number or pair.
      contrast: number or pair.
      saturation: number or pair; nothing on grey images.
      hue: share of the colour circle: a number, up to 0.5, to both sides, or a pair; nothing on grey images.
      p: probability, 0 to 1.
    """

    brightness: Range = 0.4
    contrast: Range = 0.4
    saturation: Range = 0.4
    hue: Range = 0.0
    p: float = 1.0

    def __post_init__(self) -> None:
        self.ranges()
        check_probability(self.p)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        if rng.random() >= self.p:
            return image
        operations = (colour.brightness, colour.contrast, colour.saturation, colour.hue)
        ranges = self.ranges()
        for i in rng.permutation(4):
            low, high = ranges[i]
            value = rng.uniform(low, high)
            if value != (1, 1, 1, 0)[i]:  # hue 0, the default, is the slowest of the four
                image = operations[i](image, value)
        return image

    def ranges(self) -> list[tuple[float, float]]:
        """What is drawn for brightness, contrast, saturation and hue, as (low, high)."""
        factors = (("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation))
        ranges = [interval(name, value, 1, 0, math.inf) for name, value in factors]
        return [*ranges, interval("hue", self.hue, 0, -0.5, 0.5)]


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """Sharpens with probability `p` (torchvision's RandomAdjustSharpness).

    Attributes:
      factor: 0 is smoothed, 1 changes nothing, 2 is sharpened.
      p: probability, 0 to 1.
    """

    factor: float = 2.0
    p: float = 0.5

    def __post_init__(self) -> None:
        check(self.factor >= 0, f"factor is {self.factor}: it must not be negative")
        check_probability(self.p)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        return filters.sharpness(image, self.factor) if rng.random() < self.p else image


@dataclasses.dataclass(frozen=True)
class Grayscale(Sometimes):
    """Takes the colour away with probability `p`, keeping the number of channels (torchvision's RandomGrayscale)."""

    p: float = 0.1

    def change(self, image: np.ndarray) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        return colour.grayscale(image)


@dataclasses.dataclass(frozen=True)
class Solarize:
    """Inverts the values from `threshold` up with probability `p` (torchvision's RandomSolarize).

    Attributes:
      threshold: grey level, 0 to 256.
      p: probability, 0 to 1.
    """

    threshold: float = 128
    p: float = 0.5

    def __post_init__(self) -> None:
        check(0 <= self.threshold <= 256, f"threshold is {self.threshold}: it must be in 0 to 256")
        check_probability(self.p)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        return colour.solarize(image, self.threshold) if rng.random() < self.p else image


@dataclasses.dataclass(frozen=True)
class Posterize:
    """Keeps the highest bits of each value with probability `p` (torchvision's RandomPosterize).

    Attributes:
      bits: to keep, 0 to 8.
      p: probability, 0 to 1.
    """

    bits: int = 4
    p: float = 0.5

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 0, 8)
        check_probability(self.p)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        return colour.posterize(image, self.bits) if rng.random() < self.p else image


@dataclasses.dataclass(frozen=True)
class Equalize(Sometimes):
    """Gives each channel a flat histogram with probability `p` (torchvision's RandomEqualize)."""

    def change(self, image: np.ndarray) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        return colour.equalize(image)


@dataclasses.dataclass(frozen=True)
class AutoContrast(Sometimes):
    """Stretches each channel over 0 to 255 with probability `p` (torchvision's RandomAutocontrast)."""

    def change(self, image: np.ndarray) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        return colour.autocontrast(image)


@dataclasses.dataclass(frozen=True)
class Invert(Sometimes):
    """Makes the negative with probability `p` (torchvision's RandomInvert)."""

    def change(self, image: np.ndarray) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        return colour.invert(image)


@dataclasses.dataclass(frozen=True)
class GaussianBlur:
    """Blurs with a Gaussian of random width (torchvision's GaussianBlur, the kernel as wide as it needs to be).

    Attributes:
      sigma: standard deviation in pixels, drawn from a pair, or one number.
      p: probability, 0 to 1.
    """

    sigma: Range = (0.1, 2.0)
    p: float = 1.0

    def __post_init__(self) -> None:
        check_rising("sigma", self._range())
        check_probability(self.p)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        return filters.gaussian_blur(image, rng.uniform(*self._range())) if rng.random() < self.p else image

    def _range(self) -> tuple[float, float]:
        return self.sigma if isinstance(self.sigma, (tuple, list)) else (self.sigma, self.sigma)


@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """Adds normal noise to every value, rounded and cut off at 0 and 255.

    Attributes:
      std: standard deviation, in units of 0..1 pixels.
      p: probability, 0 to 1.
    """

    std: float = 0.1
    p: float = 1.0

    def __post_init__(self) -> None:
        check(self.std >= 0, f"std is {self.std}: it must not be negative")
        check_probability(self.p)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        if rng.random() >= self.p:
            return image
        noise = rng.standard_normal(image.shape, np.float32)
        noise *= np.float32(255 * self.std)
        return cv2.add(image, noise, dtype=cv2.CV_8U).reshape(image.shape)


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Overwrites a random rectangle (Zhong et al., arXiv:1708.04896; timm's algorithm and modes).

    timm erases after the normalisation, with 0 or with standard normal numbers. Here it is before: a value z becomes
    the grey level 255 (mean + z std). Up to ten times a share of the area and an aspect ratio (log-uniform) are drawn;
    the first rectangle smaller than the image is erased; if none is, nothing.

    Attributes:
      p: probability, 0 to 1.
      area: least and largest share of the image's area.
      aspect: least and largest height / width.
      mode: "const" erases with the mean, "rand" with one random colour, "pixel" with a random colour for each pixel.
      mean: of the data set, in units of 0..1 pixels, one a channel or one for all: `data.mean`. ImageNet's by default.
      std: of the data set, like `mean`: `data.std`.
    """

    p: float = 0.5
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    mode: str = "const"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        check_probability(self.p)
        check_rising("area", self.area, 1)
        check_rising("aspect", self.aspect)
        check_choice("mode", self.mode, ("const", "rand", "pixel"))
        good = all(0 <= v <= 1 for v in (*self.mean, *self.std)) and self.mean and self.std
        check(bool(good), f"mean, std are {self.mean}, {self.std}: they must be tuples of numbers in 0 to 1")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        if rng.random() >= self.p:
            return image
        top, left, height, width = self.box(image.shape[0], image.shape[1], rng)
        channels = image.shape[2]
        mean, std = (np.array(geometry.colour_of(v, channels), np.float32) for v in (self.mean, self.std))
        shape = {"const": (), "rand": (channels,), "pixel": (height, width, channels)}[self.mode]
        z = np.float32(0) if self.mode == "const" else rng.standard_normal(shape, np.float32)
        out = image.copy()
        out[top : top + height, left : left + width] = np.rint(255 * (mean + z * std)).clip(0, 255)
        return out

    def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of what to erase of an image of height x width pixels; zeros for nothing."""
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        for _ in range(10):
            area = height * width * rng.uniform(*self.area)
            aspect = math.exp(rng.uniform(low, high))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        return 0, 0, 0, 0
