"""Augmentation of one image on the host: frozen dataclasses, called as `transform(image, rng)`.

`image` is uint8 [H,W,C] and is never written to; the result, uint8, may be a view of it. All that is random comes from
`rng`, so the caller decides what makes two runs equal. A new transformation is a class here and a line in HOST.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import cv2
import numpy as np
from PIL import Image

# Pillow's filters, antialiased when they shrink: what the weights of timm and torchvision were measured with.
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "area") -> np.ndarray:
    """Resizes uint8 [H,W,C] to uint8 [height,width,C].

    "area" is fast: shrinking averages over the area of each new pixel (OpenCV's INTER_AREA: its other filters look at a
    fixed number of pixels however small the result, and alias); enlarging, where there is nothing to average, is
    bicubic. The names in FILTERS are Pillow's, pixel for pixel.
    """
    if image.shape[:2] == (height, width):
        return image
    if interpolation != "area":
        filter_ = Image.Resampling[interpolation.upper()]
        planes = [Image.fromarray(plane).resize((width, height), filter_) for plane in np.moveaxis(image, 2, 0)]
        return np.stack([np.asarray(plane) for plane in planes], axis=2)
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    out = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return out.reshape(height, width, image.shape[2])  # OpenCV drops an axis of length 1


def centre_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of uint8 [H,W,C], as torchvision's CenterCrop for an image that is large enough."""
    top = round((image.shape[0] - height) / 2)
    left = round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, resized to a square (Szegedy et al., arXiv:1409.4842; torchvision's algorithm).

    Up to ten times a share of the area and an aspect ratio (log-uniform) are drawn; the first that fits is taken from
    a uniform place. If none fits, the largest centred part whose aspect ratio is allowed.

    Attributes:
      size: pixels, height and width of the result.
      scale: least and largest share of the area.
      ratio: least and largest width / height.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _check(self.size > 0, f"size is {self.size}: it must be above 0")
        _check(0 < self.scale[0] <= self.scale[1] <= 1, f"scale is {self.scale}: it must be rising, in 0 to 1")
        _check(0 < self.ratio[0] <= self.ratio[1], f"ratio is {self.ratio}: it must be rising, above 0")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [size,size,C]."""
        top, left, height, width = self.box(image.shape[0], image.shape[1], rng)
        return self.resize(image[top : top + height, left : left + width])

    def resize(self, part: np.ndarray) -> np.ndarray:
        """[h,w,C] to [size,size,C]; with `box` it lets the pipeline decode no more than the part."""
        return resize(part, self.size, self.size)

    def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the part to take from an image of height x width pixels."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclasses.dataclass(frozen=True)
class ResizeCentreCrop:
    """Short side to size / crop_pct, aspect ratio kept, then the centre: the usual evaluation, as in timm.

    Attributes:
      size: pixels, height and width of the result.
      crop_pct: share of the short side that is kept; 0.875 is 224 of 256.
      interpolation: the filter: "area", or one of FILTERS.
    """

    size: int
    crop_pct: float = 0.875
    interpolation: str = "area"

    def __post_init__(self) -> None:
        _check(self.size > 0, f"size is {self.size}: it must be above 0")
        _check(0 < self.crop_pct <= 1, f"crop_pct is {self.crop_pct}: it must be above 0, at most 1")
        known = ("area", *FILTERS)
        _check(
            self.interpolation in known,
            f"interpolation is '{self.interpolation}': it must be one of {', '.join(known)}",
        )

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [size,size,C]."""
        del rng
        height, width = image.shape[:2]
        short = math.floor(self.size / self.crop_pct)
        if height <= width:
            image = resize(image, short, int(short * width / height), self.interpolation)
        else:
            image = resize(image, int(short * height / width), short, self.interpolation)
        return centre_crop(image, self.size, self.size)


@dataclasses.dataclass(frozen=True)
class Resize:
    """The whole image resized to a square, whatever its aspect ratio.

    Attributes:
      size: pixels, height and width of the result.
    """

    size: int

    def __post_init__(self) -> None:
        _check(self.size > 0, f"size is {self.size}: it must be above 0")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [size,size,C]."""
        del rng
        return resize(image, self.size, self.size)


@dataclasses.dataclass(frozen=True)
class PadAndCrop:
    """Shifts the image by up to `padding` pixels each way, black beyond the border (He et al., arXiv:1512.03385, 4.2).

    Attributes:
      padding: pixels.
    """

    padding: int

    def __post_init__(self) -> None:
        _check(self.padding >= 0, f"padding is {self.padding}: it must not be negative")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        p = self.padding
        height, width, channels = image.shape
        padded = np.zeros((height + 2 * p, width + 2 * p, channels), np.uint8)
        padded[p : p + height, p : p + width] = image
        top, left = rng.integers(2 * p + 1, size=2)
        return padded[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class HorizontalFlip:
    """Left and right exchanged with probability `p`.

    Attributes:
      p: probability, 0 to 1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        _check(0 <= self.p <= 1, f"p is {self.p}: it must be in 0 to 1")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[H,W,C] to [H,W,C]."""
        return image[:, ::-1] if rng.random() < self.p else image


# By the name that configs use.
HOST: dict[str, Any] = {
    "random_resized_crop": RandomResizedCrop,
    "resize_centre_crop": ResizeCentreCrop,
    "resize": Resize,
    "pad_and_crop": PadAndCrop,
    "flip": HorizontalFlip,
}


def _check(good: bool, message: str) -> None:
    if not good:
        raise ValueError(message)
