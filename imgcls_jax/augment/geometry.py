"""Operations that move the pixels of one image: pure functions on uint8 [H,W,C].

A map is six numbers (a, b, c, d, e, f), or eight for a perspective, that say where a pixel of the result comes from, as
in Pillow's Image.transform: (x, y) of the result is (a x + b y + c, d x + e y + f) of the input, in coordinates in
which the middle of the first pixel is (0.5, 0.5). Sides must be shorter than 32,768 pixels (OpenCV's limit).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from imgcls_jax.augment.arguments import Fill

# Pillow's filters, antialiased when they shrink: what the weights of timm and torchvision were measured with.
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
# OpenCV's, which are several times as fast (`resize`).
FAST = ("area", "linear")

Point = tuple[float, float]

_NO_MAP: Any = None  # OpenCV's stubs do not know that the second of two maps may be left out


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "area") -> np.ndarray:
    """Resizes uint8 [H,W,C] to uint8 [height,width,C].

    "area" averages over the area of each new pixel when it shrinks (OpenCV's INTER_AREA: its other filters look at a
    fixed number of pixels however small the result, and alias); enlarging, where there is nothing to average, is
    bicubic. "linear" is a third of its time: bilinear between the four nearest pixels, and "area" where a side shrinks
    to a half or less, so that no pixel is passed over. The names in FILTERS are Pillow's, pixel for pixel.
    """
    if image.shape[:2] == (height, width):
        return image
    if interpolation not in FAST:
        filter_ = Image.Resampling[interpolation.upper()]
        planes = [Image.fromarray(plane).resize((width, height), filter_) for plane in np.moveaxis(image, 2, 0)]
        return np.stack([np.asarray(plane) for plane in planes], axis=2)
    if interpolation == "linear" and image.shape[0] < 2 * height and image.shape[1] < 2 * width:
        method = cv2.INTER_LINEAR
    else:
        shrinks = height <= image.shape[0] and width <= image.shape[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    out = cv2.resize(image, (width, height), interpolation=method)
    return out.reshape(height, width, image.shape[2])  # OpenCV drops an axis of length 1


def centre_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of uint8 [H,W,C], as torchvision's CenterCrop for an image that is large enough."""
    top = round((image.shape[0] - height) / 2)
    left = round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


def short_side(height: int, width: int, short: int) -> tuple[int, int]:
    """(height, width) with the short side `short` and the aspect ratio kept, rounded down as torchvision's Resize."""
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def rotate(image: np.ndarray, degrees: float, interpolation: str = "nearest", fill: Fill = 0) -> np.ndarray:
    """Turns the image counter-clockwise about its middle: Image.rotate. Accuracy: see `affine`."""
    height, width = image.shape[:2]
    # Rounded as Pillow does, so that quarter turns are exact.
    cos, sin = (round(f(-math.radians(degrees)), 15) for f in (math.cos, math.sin))
    x, y = width / 2, height / 2
    return affine(image, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y), interpolation, fill)


def shear_x(image: np.ndarray, factor: float, interpolation: str = "nearest", fill: Fill = 0) -> np.ndarray:
    """Moves each row left by `factor` times its distance from the top, as AutoAugment (arXiv:1805.09501)."""
    return affine(image, (1, factor, 0, 0, 1, 0), interpolation, fill)


def shear_y(image: np.ndarray, factor: float, interpolation: str = "nearest", fill: Fill = 0) -> np.ndarray:
    """Moves each column up by `factor` times its distance from the left, as AutoAugment (arXiv:1805.09501)."""
    return affine(image, (1, 0, 0, factor, 1, 0), interpolation, fill)


def translate(image: np.ndarray, x: float, y: float, interpolation: str = "nearest", fill: Fill = 0) -> np.ndarray:
    """Moves the image `x` pixels to the right and `y` down."""
    return affine(image, (1, 0, -x, 0, 1, -y), interpolation, fill)


def affine_map(
    height: int, width: int, degrees: float, translation: Point, scale: float, shear: Point
) -> tuple[float, ...]:
    """The map of torchvision's `affine`: shear x, then y, scale and turn about the middle, then move.

    Args:
      height: pixels of the image.
      width: pixels of the image.
      degrees: turned by, clockwise.
      translation: pixels to the right and down.
      scale: above 1 enlarges.
      shear: degrees along x and along y.
    """
    turn, shear_x, shear_y = (math.radians(angle) for angle in (degrees, *shear))
    # What undoes the shears, and what undoes the turn and the scale: their product undoes all.
    unshear = np.array([[1, math.tan(shear_x)], [0, 1]]) @ np.array([[1, 0], [math.tan(shear_y), 1]])
    unturn = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) / scale
    linear = unshear @ unturn
    middle = np.array([width / 2, height / 2])
    offset = middle - linear @ (middle + np.array(translation))
    (a, b), (d, e) = linear.tolist()
    c, f = offset.tolist()
    return a, b, c, d, e, f


def affine(image: np.ndarray, map_: Sequence[float], interpolation: str = "nearest", fill: Fill = 0) -> np.ndarray:
    """Applies a map of six numbers; where it leads outside the image, the pixel is `fill`: Image.transform(AFFINE).

    "nearest" is Pillow's result pixel for pixel: it uses the same 16.16 fixed-point coordinates. "bilinear" is within
    one level of Pillow's, which drops the fraction where OpenCV rounds.
    """
    height, width = image.shape[:2]
    rows, columns = np.arange(height), np.arange(width)
    if interpolation == "nearest":
        fixed = [math.floor(v * 65536 + 0.5) for v in _centred(map_)]
        places = [_whole(rows * fixed[k + 1] + fixed[k + 2], columns * fixed[k]) for k in (0, 3)]
        return _sample_nearest(image, places, fill)
    a, b, c, d, e, f = _centred(map_)
    x = np.add.outer((rows * b + (c - 0.5)).astype(np.float32), (columns * a).astype(np.float32))
    y = np.add.outer((rows * e + (f - 0.5)).astype(np.float32), (columns * d).astype(np.float32))
    return _sample_bilinear(image, x, y, fill)


def perspective_map(start: Sequence[Point], end: Sequence[Point]) -> tuple[float, ...]:
    """The eight numbers of the perspective that brings the four points `start` of the input to `end` of the result.

    Points are (x, y). Numbers 7 and 8 (g, h) divide: the input's x is (a x + b y + c) / (g x + h y + 1).
    """
    rows = []
    for (x, y), (u, v) in zip(end, start, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    # Least squares and not `solve`: points that coincide, as the corners of a 1x1 image do, have no unique answer.
    return tuple(np.linalg.lstsq(np.array(rows, float), np.array(start, float).ravel())[0].tolist())


def perspective(
    image: np.ndarray, map_: Sequence[float], interpolation: str = "bilinear", fill: Fill = 0
) -> np.ndarray:
    """Applies a map of eight numbers: Image.transform(PERSPECTIVE). Accuracy: see `affine`."""
    height, width = image.shape[:2]
    a, b, c, d, e, f, g, h = map_
    rows, columns = (np.arange(0.5, side, dtype=np.float32) for side in (height, width))
    scale = 1 / np.add.outer(rows * h + 1, columns * g)
    x = np.add.outer(rows * b + c, columns * a) * scale
    y = np.add.outer(rows * e + f, columns * d) * scale
    if interpolation == "nearest":
        return _sample_nearest(image, [np.floor(v).clip(-1, 32767).astype(np.int16) for v in (x, y)], fill)
    return _sample_bilinear(image, x - 0.5, y - 0.5, fill)


def colour_of(fill: Fill | tuple[float, ...], channels: int) -> tuple[float, ...]:
    """`fill` as one value a channel; where their numbers differ (RGB for a grey image), the mean for every channel."""
    values = fill if isinstance(fill, tuple) else (fill,)
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _centred(map_: Sequence[float]) -> tuple[float, ...]:
    """The map from whole pixel numbers of the result to the coordinates of their middles in the input."""
    a, b, c, d, e, f = map_
    return a, b, c + 0.5 * a + 0.5 * b, d, e, f + 0.5 * d + 0.5 * e


def _whole(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(rows [H] + columns [W]) / 65536 as int16 [H,W], rounded down; what does not fit is outside any image."""
    if max(abs(int(v)) for v in (rows[0], rows[-1])) + max(abs(int(v)) for v in (columns[0], columns[-1])) < 2**31:
        return (np.add.outer(rows.astype(np.int32), columns.astype(np.int32)) >> 16).astype(np.int16)
    return (np.add.outer(rows, columns) >> 16).clip(-1, 32767).astype(np.int16)


def _sample_nearest(image: np.ndarray, places: Sequence[np.ndarray], fill: Fill) -> np.ndarray:
    """The pixels whose numbers are `places`, x and y, int16 [H,W]; `fill` for those outside."""
    colour = tuple(round(v) for v in colour_of(fill, image.shape[2]))
    both = cv2.merge(places)
    out = cv2.remap(image, both, _NO_MAP, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=colour)
    return out.reshape(image.shape)


def _sample_bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray, fill: Fill) -> np.ndarray:
    """Between the middles of pixels, at (x, y) float32 [H,W], whole at the middles; `fill` outside the pixels' area."""
    height, width, channels = image.shape
    out = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    pixel = np.array(colour_of(fill, channels)).round().astype(np.uint8).reshape(1, 1, channels)
    # The fastest way to fill an image with a colour: NumPy's own takes longer than all that is above.
    background = cv2.copyMakeBorder(pixel, 0, height - 1, 0, width - 1, cv2.BORDER_REPLICATE)
    return cv2.copyTo(out, inside.view(np.uint8), background).reshape(image.shape)
